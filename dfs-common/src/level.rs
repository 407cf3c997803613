//! Consistency levels.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorCode};

/// How many replicas must have a write, or answer for a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Level {
    One,
    #[default]
    Quorum,
    All,
}

/// Replicas that a chain aims at.
pub const REPLICATION_TARGET: usize = 3;

/// Majority of [`REPLICATION_TARGET`], whatever the chain's present length is.
pub const QUORUM: usize = REPLICATION_TARGET / 2 + 1;

impl Level {
    /// In-sync replicas below which a write of this level must wait (and finally fail).
    #[must_use]
    pub const fn min_in_sync(self) -> usize {
        match self {
            Self::One => 1,
            Self::Quorum | Self::All => QUORUM,
        }
    }

    /// In-sync replicas below which a read of this level must wait (and finally fail). A read at ALL sees what was acknowledged
    /// at ONE, and any replica that is not there may be the only one that has it.
    #[must_use]
    pub const fn min_for_read(self) -> usize {
        match self {
            Self::One | Self::Quorum => 1,
            Self::All => REPLICATION_TARGET,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::One => "ONE",
            Self::Quorum => "QUORUM",
            Self::All => "ALL",
        })
    }
}

impl FromStr for Level {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text.to_ascii_uppercase().as_str() {
            "ONE" => Ok(Self::One),
            "QUORUM" => Ok(Self::Quorum),
            "ALL" => Ok(Self::All),
            _ => Err(Error::new(
                ErrorCode::InvalidArgument,
                format!("level {text:?} is none of ONE, QUORUM, ALL"),
            )),
        }
    }
}
