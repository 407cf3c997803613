//! Bytes <-> values: bincode 2 with serde, little-endian, fixed-width integers, a size limit before any allocation.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorCode, Result};
use crate::units::MAX_HEADER_SIZE_BYTES;

type Config = Configuration<LittleEndian, Fixint, Limit<MAX_HEADER_SIZE_BYTES>>;

const CONFIG: Config = bincode::config::standard()
    .with_little_endian()
    .with_fixed_int_encoding()
    .with_limit::<MAX_HEADER_SIZE_BYTES>();

/// # Errors
/// `BadMessage` when the value is over [`MAX_HEADER_SIZE_BYTES`].
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>> {
    let bytes = bincode::serde::encode_to_vec(
        value,
        bincode::config::standard()
            .with_little_endian()
            .with_fixed_int_encoding(),
    )
    .map_err(|e| Error::new(ErrorCode::BadMessage, format!("a message can not be encoded: {e}")))?;
    if bytes.len() > MAX_HEADER_SIZE_BYTES {
        return Err(Error::new(
            ErrorCode::BadMessage,
            format!(
                "a message of {} bytes is over the limit of {MAX_HEADER_SIZE_BYTES}",
                bytes.len()
            ),
        ));
    }
    Ok(bytes)
}

/// Decodes the whole of `bytes`; what is left over is an error too.
///
/// # Errors
/// `BadMessage` when the bytes are not such a value, too long, or claim lengths over the limit.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    if bytes.len() > MAX_HEADER_SIZE_BYTES {
        return Err(Error::new(
            ErrorCode::BadMessage,
            format!("{} bytes are over the limit of {MAX_HEADER_SIZE_BYTES}", bytes.len()),
        ));
    }
    let (value, used) = bincode::serde::decode_from_slice(bytes, CONFIG)
        .map_err(|e| Error::new(ErrorCode::BadMessage, format!("bytes that are no such message: {e}")))?;
    if used != bytes.len() {
        return Err(Error::new(
            ErrorCode::BadMessage,
            format!("{} bytes after the end of a message", bytes.len() - used),
        ));
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_lengths_are_refused_before_allocation() {
        let huge = u64::MAX.to_le_bytes();
        assert!(decode::<Vec<u8>>(&huge).is_err());
        assert!(decode::<String>(&huge).is_err());
        assert!(decode::<Vec<u64>>(&(1_u64 << 40).to_le_bytes()).is_err());
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = encode(&7_u32).unwrap_or_default();
        assert_eq!(decode::<u32>(&bytes).ok(), Some(7));
        bytes.push(0);
        assert!(decode::<u32>(&bytes).is_err());
    }
}
