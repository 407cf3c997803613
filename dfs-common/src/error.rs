//! The one error that crosses the wire, its errno and what a caller may do about it.
//!
//! Crates have their own error enums with sources; at a boundary they become this: a code that programs act on and a
//! sentence that people read (the thing, the cause, the next step).

use std::fmt;

use serde::{Deserialize, Serialize};

/// Result with the system's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller may do after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryClass {
    /// Send the same request again, after a pause.
    Retry,
    /// What the caller believes (leader, chain, epoch) is out of date: refresh it, then send the same request again.
    Refresh,
    /// Trying again can not help.
    Fatal,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $code:ident = $wire:literal, $errno:literal, $class:ident;)*) => {
        /// Kinds of failure. The number is the wire's and never changes meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(into = "u16", from = "u16")]
        #[repr(u16)]
        pub enum ErrorCode {
            $($(#[$doc])* $code = $wire,)*
        }

        impl ErrorCode {
            /// Every code, for tests and documentation.
            pub const EVERY: &'static [Self] = &[$(Self::$code),*];

            /// Linux's errno for it: the only place that maps.
            #[must_use]
            pub const fn errno(self) -> i32 {
                match self {
                    $(Self::$code => $errno,)*
                }
            }

            /// What the caller may do.
            #[must_use]
            pub const fn retry_class(self) -> RetryClass {
                match self {
                    $(Self::$code => RetryClass::$class,)*
                }
            }
        }

        impl From<u16> for ErrorCode {
            fn from(code: u16) -> Self {
                match code {
                    $($wire => Self::$code,)*
                    _ => Self::Internal,
                }
            }
        }
    };
}

codes! {
    // Answers of the namespace: final, errno as POSIX has it.
    NotFound = 1, 2, Fatal;
    Exists = 2, 17, Fatal;
    NotDirectory = 3, 20, Fatal;
    IsDirectory = 4, 21, Fatal;
    NotEmpty = 5, 39, Fatal;
    NameTooLong = 6, 36, Fatal;
    InvalidArgument = 7, 22, Fatal;
    AccessDenied = 8, 13, Fatal;
    NotPermitted = 9, 1, Fatal;
    NoSpace = 10, 28, Fatal;
    TooManyLinks = 11, 31, Fatal;
    FileTooBig = 12, 27, Fatal;
    NoAttribute = 13, 61, Fatal;
    RangeTooSmall = 14, 34, Fatal;
    /// The inode is gone.
    StaleInode = 15, 116, Fatal;
    Busy = 16, 16, Fatal;
    NotSupported = 17, 95, Fatal;
    ArgumentTooBig = 18, 7, Fatal;
    Interrupted = 19, 4, Fatal;
    BadHandle = 20, 9, Fatal;
    Overflow = 21, 75, Fatal;

    // The caller's picture of the cluster is out of date.
    /// This metadata server is not the leader; the detail of the response names who is.
    NotLeader = 40, 5, Refresh;
    /// The request's epoch is not the chain's.
    StaleEpoch = 41, 5, Refresh;
    /// This node is not a serving member of that chain.
    NotInChain = 42, 5, Refresh;
    /// This node lost its lease from the metadata group and must not serve until it has one.
    LeaseLost = 43, 5, Refresh;
    /// Fewer replicas in sync than the level needs; waits for repair.
    TooFewReplicas = 44, 5, Refresh;

    // Passing trouble.
    Unreachable = 60, 5, Retry;
    Timeout = 61, 110, Retry;
    Overloaded = 62, 11, Retry;
    /// A replica has not seen the version before this one yet.
    OutOfOrder = 63, 5, Retry;
    /// Written bytes that were acknowledged and not synced went with every replica that had them.
    UnsyncedLost = 67, 5, Fatal;
    /// This replica has an older version than the caller has seen: ask another.
    Behind = 66, 5, Fatal;
    /// The sender must copy the chunk whole before it can forward writes of it.
    NeedsResync = 64, 5, Fatal;
    Cancelled = 65, 4, Retry;

    // Final, of the system.
    /// A conditional write met another version than it expected; read again, merge, and write anew.
    ConditionFailed = 80, 11, Fatal;
    SessionExpired = 81, 5, Fatal;
    /// Stored bytes do not match their checksum or do not open.
    Corrupt = 82, 5, Fatal;
    /// The node's store saw an I/O error and takes nothing more until it is rebuilt.
    Poisoned = 83, 5, Refresh;
    Unauthorized = 84, 13, Fatal;
    /// Wrong cluster, wrong role, unknown version or format.
    Incompatible = 85, 71, Fatal;
    /// Not decodable, or over a size limit.
    BadMessage = 86, 71, Fatal;
    /// The session's hold was taken before it told this change, and others may have gone on since.
    HoldLost = 88, 5, Fatal;
    /// The file was truncated, or cut at its end, since the sender last looked at it: read its attributes and write anew.
    StaleCut = 89, 11, Fatal;
    Internal = 99, 5, Fatal;
}

impl From<ErrorCode> for u16 {
    fn from(code: ErrorCode) -> Self {
        code as Self
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// An error as it stands on the wire and in a user's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{detail} ({code})")]
pub struct Error {
    pub code: ErrorCode,
    pub detail: String,
}

impl Error {
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
        }
    }

    #[must_use]
    pub const fn errno(&self) -> i32 {
        self.code.errno()
    }

    #[must_use]
    pub const fn retry_class(&self) -> RetryClass {
        self.code.retry_class()
    }

    /// The same error with what was being done in front.
    #[must_use]
    pub fn context(self, doing: impl fmt::Display) -> Self {
        Self {
            code: self.code,
            detail: format!("{doing}: {}", self.detail),
        }
    }
}

impl From<ErrorCode> for Error {
    fn from(code: ErrorCode) -> Self {
        Self::new(code, format!("{code:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_survive_the_wire_and_unknown_ones_become_internal() {
        for &code in ErrorCode::EVERY {
            assert_eq!(ErrorCode::from(u16::from(code)), code);
            assert!(code.errno() > 0);
        }
        assert_eq!(ErrorCode::from(60000), ErrorCode::Internal);
    }
}
