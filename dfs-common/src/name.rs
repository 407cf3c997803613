//! A directory entry's name, checked once at the edge.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorCode};
use crate::units::NAME_MAX_BYTES;

/// Any bytes but `/` and NUL, 1 to 255 of them, and neither `.` nor `..`. Not necessarily UTF-8.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct ValidName(Vec<u8>);

impl ValidName {
    /// # Errors
    /// `NameTooLong` over 255 bytes, `InvalidArgument` for an empty name, `.`, `..`, or one with `/` or NUL.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, Error> {
        let bytes = bytes.into();
        if bytes.len() > NAME_MAX_BYTES {
            return Err(Error::new(
                ErrorCode::NameTooLong,
                format!("a name of {} bytes; the limit is {NAME_MAX_BYTES}", bytes.len()),
            ));
        }
        if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.iter().any(|&byte| byte == b'/' || byte == 0) {
            return Err(Error::new(
                ErrorCode::InvalidArgument,
                "a name that is empty, '.', '..', or holds '/' or NUL",
            ));
        }
        Ok(Self(bytes))
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<Vec<u8>> for ValidName {
    type Error = Error;

    fn try_from(bytes: Vec<u8>) -> Result<Self, Error> {
        Self::new(bytes)
    }
}

impl From<ValidName> for Vec<u8> {
    fn from(name: ValidName) -> Self {
        name.0
    }
}

impl fmt::Debug for ValidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_but_slash_and_nul() {
        assert!(ValidName::new(b"caf\xe9 \xff\n".to_vec()).is_ok());
        assert!(ValidName::new(vec![b'x'; 255]).is_ok());
        assert_eq!(
            ValidName::new(vec![b'x'; 256]).map_err(|e| e.code).err(),
            Some(ErrorCode::NameTooLong)
        );
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0"] {
            assert_eq!(
                ValidName::new(bad.to_vec()).map_err(|e| e.code).err(),
                Some(ErrorCode::InvalidArgument)
            );
        }
    }
}
