//! The policy of a file: its levels, and what settles conflicts of its versions.
//!
//! A file gets its directory's when it is created. Users see and set it as extended attributes, by `dfs policy`, or for a whole
//! mount; all of them parse here.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorCode};
use crate::level::Level;

/// Extended attributes that are the policy. They are not listed, so that a copy of a file takes its new directory's.
pub const ATTRIBUTE_PREFIX: &str = "user.dfs.";

/// Who reads this extended attribute, of anything on a mount, has everything that was written through the mount made durable
/// first. It is never listed.
pub const SYNC_ATTRIBUTE: &str = "user.dfs.sync";

/// What settles two concurrent versions of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConflictPolicy {
    #[default]
    LastWriteWins,
    KeepBoth,
    Application,
}

impl fmt::Display for ConflictPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LastWriteWins => "lww",
            Self::KeepBoth => "keep-both",
            Self::Application => "app",
        })
    }
}

impl FromStr for ConflictPolicy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "lww" => Ok(Self::LastWriteWins),
            "keep-both" => Ok(Self::KeepBoth),
            "app" => Ok(Self::Application),
            _ => Err(invalid(format!(
                "conflict policy {text:?} is none of lww, keep-both, app"
            ))),
        }
    }
}

/// Levels and conflict policy of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Policy {
    pub read: Level,
    pub write: Level,
    pub conflict: ConflictPolicy,
}

/// What is to be set of a policy; the rest stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PolicyChange {
    pub read: Option<Level>,
    pub write: Option<Level>,
    pub conflict: Option<ConflictPolicy>,
}

/// Levels that go well together, by what they are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Reads see every write that was acknowledged.
    Billing,
    /// Reads are quick and may be a little behind; writes survive a node.
    CallRecords,
    /// Both are quick; the last writes may go with a node.
    Analytics,
}

impl Profile {
    pub const EVERY: [Self; 3] = [Self::Billing, Self::CallRecords, Self::Analytics];

    /// Level of reads and of writes.
    #[must_use]
    pub const fn levels(self) -> (Level, Level) {
        match self {
            Self::Billing => (Level::Quorum, Level::Quorum),
            Self::CallRecords => (Level::One, Level::Quorum),
            Self::Analytics => (Level::One, Level::One),
        }
    }

    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Billing => "billing",
            Self::CallRecords => "call-records",
            Self::Analytics => "analytics",
        }
    }
}

impl FromStr for Profile {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::EVERY
            .into_iter()
            .find(|profile| profile.name() == text)
            .ok_or_else(|| invalid(format!("profile {text:?} is none of billing, call-records, analytics")))
    }
}

impl From<Profile> for PolicyChange {
    fn from(profile: Profile) -> Self {
        let (read, write) = profile.levels();
        Self {
            read: Some(read),
            write: Some(write),
            conflict: None,
        }
    }
}

impl Policy {
    #[must_use]
    pub fn with(self, change: PolicyChange) -> Self {
        Self {
            read: change.read.unwrap_or(self.read),
            write: change.write.unwrap_or(self.write),
            conflict: change.conflict.unwrap_or(self.conflict),
        }
    }

    /// The profile with these levels, if there is one.
    #[must_use]
    pub fn profile(self) -> Option<Profile> {
        Profile::EVERY
            .into_iter()
            .find(|profile| profile.levels() == (self.read, self.write))
    }

    /// The value of an extended attribute that starts with [`ATTRIBUTE_PREFIX`].
    ///
    /// # Errors
    /// `NoAttribute`: there is none of that name, or no profile with these levels.
    pub fn attribute(self, name: &[u8]) -> Result<String, Error> {
        match Attribute::parse(name).map_err(|error| Error::new(ErrorCode::NoAttribute, error.detail))? {
            Attribute::Read => Ok(self.read.to_string()),
            Attribute::Write => Ok(self.write.to_string()),
            Attribute::Conflict => Ok(self.conflict.to_string()),
            Attribute::Profile => self
                .profile()
                .map(|profile| profile.name().to_owned())
                .ok_or_else(|| Error::new(ErrorCode::NoAttribute, "no profile has these levels")),
        }
    }
}

impl PolicyChange {
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// What setting an extended attribute means.
    ///
    /// # Errors
    /// `InvalidArgument`: there is no such attribute or no such value; the detail names those that there are.
    pub fn of_attribute(name: &[u8], value: &[u8]) -> Result<Self, Error> {
        let attribute = Attribute::parse(name)?;
        let value = std::str::from_utf8(value)
            .map_err(|_| invalid("the value of a policy is not text".to_owned()))?
            .trim_end_matches('\0');
        let none = Self::default();
        Ok(match attribute {
            Attribute::Read => Self {
                read: Some(value.parse()?),
                ..none
            },
            Attribute::Write => Self {
                write: Some(value.parse()?),
                ..none
            },
            Attribute::Conflict => Self {
                conflict: Some(value.parse()?),
                ..none
            },
            Attribute::Profile => value.parse::<Profile>()?.into(),
        })
    }

    /// What removing an extended attribute means: back to the default.
    ///
    /// # Errors
    /// `NoAttribute`: there is no such attribute.
    pub fn of_removal(name: &[u8]) -> Result<Self, Error> {
        let default = Policy::default();
        let none = Self::default();
        let attribute = Attribute::parse(name).map_err(|error| Error::new(ErrorCode::NoAttribute, error.detail))?;
        Ok(match attribute {
            Attribute::Read => Self {
                read: Some(default.read),
                ..none
            },
            Attribute::Write => Self {
                write: Some(default.write),
                ..none
            },
            Attribute::Conflict => Self {
                conflict: Some(default.conflict),
                ..none
            },
            Attribute::Profile => Self {
                read: Some(default.read),
                write: Some(default.write),
                conflict: None,
            },
        })
    }
}

#[derive(Clone, Copy)]
enum Attribute {
    Read,
    Write,
    Conflict,
    Profile,
}

impl Attribute {
    fn parse(name: &[u8]) -> Result<Self, Error> {
        match name.strip_prefix(ATTRIBUTE_PREFIX.as_bytes()) {
            Some(b"read_level") => Ok(Self::Read),
            Some(b"write_level") => Ok(Self::Write),
            Some(b"conflict") => Ok(Self::Conflict),
            Some(b"profile") => Ok(Self::Profile),
            _ => Err(invalid(format!(
                "attribute {:?} is none of user.dfs.read_level, .write_level, .conflict, .profile",
                String::from_utf8_lossy(name)
            ))),
        }
    }
}

fn invalid(detail: String) -> Error {
    Error::new(ErrorCode::InvalidArgument, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_the_policy() {
        let mut policy = Policy::default();
        let text = |policy: Policy, name: &str| policy.attribute(format!("user.dfs.{name}").as_bytes()).ok();
        assert_eq!(text(policy, "read_level").as_deref(), Some("QUORUM"));
        assert_eq!(text(policy, "profile").as_deref(), Some("billing"));
        assert_eq!(text(policy, "conflict").as_deref(), Some("lww"));
        for (name, value) in [("write_level", "all"), ("conflict", "keep-both")] {
            let change = PolicyChange::of_attribute(format!("user.dfs.{name}").as_bytes(), value.as_bytes());
            policy = policy.with(change.unwrap_or_default());
        }
        assert_eq!((policy.read, policy.write), (Level::Quorum, Level::All));
        assert_eq!(policy.conflict, ConflictPolicy::KeepBoth);
        assert_eq!(text(policy, "profile"), None, "no profile reads QUORUM and writes ALL");
        for profile in Profile::EVERY {
            assert_eq!(policy.with(profile.into()).profile(), Some(profile));
            assert_eq!(profile.name().parse::<Profile>().ok(), Some(profile));
        }
        let removed = PolicyChange::of_removal(b"user.dfs.write_level").unwrap_or_default();
        assert_eq!(policy.with(removed).write, Level::Quorum);
    }

    #[test]
    fn what_does_not_exist_is_named_with_what_does() {
        for (name, value, says) in [
            ("user.dfs.read_level", "TWO", "none of ONE, QUORUM, ALL"),
            ("user.dfs.conflict", "mine", "none of lww, keep-both, app"),
            ("user.dfs.profile", "fast", "none of billing, call-records, analytics"),
            ("user.dfs.colour", "red", "none of user.dfs.read_level"),
        ] {
            let error = PolicyChange::of_attribute(name.as_bytes(), value.as_bytes()).err();
            assert!(error.is_some_and(|error| error.detail.contains(says)), "{name}={value}");
        }
        let absent = Policy::default().attribute(b"user.dfs.colour").err();
        assert_eq!(absent.map(|error| error.code), Some(ErrorCode::NoAttribute));
    }
}
