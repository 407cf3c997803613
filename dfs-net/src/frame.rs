//! Bytes of one request and one response on their stream.
//!
//! ```text
//! request   deadline_ms u32, header_len u32, payload_len u32, header, payload
//! response  status u32 (0 answer, 1 error), header_len u32, payload_len u32, header, payload
//! ```
//! Little-endian. Lengths are checked before anything is allocated.

use bytes::{Bytes, BytesMut};
use dfs_common::units::{MAX_HEADER_SIZE_BYTES, MAX_PAYLOAD_SIZE_BYTES};
use quinn::{ReadExactError, RecvStream, SendStream, WriteError};

pub(crate) const PREFIX_BYTES: usize = 12;

pub(crate) struct Frame {
    /// Deadline or status.
    pub(crate) word: u32,
    pub(crate) header: Bytes,
    pub(crate) payload: Bytes,
}

/// Lengths of a frame whose bytes are still to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prefix {
    pub(crate) word: u32,
    header: usize,
    payload: usize,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("a header of {header} B and a payload of {payload} B are over the limits")]
    TooBig { header: usize, payload: usize },
    #[error("the stream ended early: {0}")]
    Read(#[from] ReadExactError),
    #[error(transparent)]
    Chunk(#[from] quinn::ReadError),
    #[error("the stream ended within a payload")]
    Short,
    #[error("the stream goes on behind its payload")]
    Long,
}

impl Prefix {
    pub(crate) fn parse(bytes: [u8; PREFIX_BYTES]) -> Result<Self, FrameError> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let (header, payload) = (word(4) as usize, word(8) as usize);
        if header > MAX_HEADER_SIZE_BYTES || payload > MAX_PAYLOAD_SIZE_BYTES {
            return Err(FrameError::TooBig { header, payload });
        }
        Ok(Self {
            word: word(0),
            header,
            payload,
        })
    }

    /// Bytes that the frame will take in memory.
    pub(crate) const fn size_bytes(&self) -> usize {
        self.header + self.payload
    }
}

pub(crate) async fn read_prefix(stream: &mut RecvStream) -> Result<Prefix, FrameError> {
    let mut bytes = [0; PREFIX_BYTES];
    stream.read_exact(&mut bytes).await?;
    Prefix::parse(bytes)
}

pub(crate) async fn read_body(stream: &mut RecvStream, prefix: Prefix) -> Result<Frame, FrameError> {
    let header = read_bytes(stream, prefix.header).await?;
    let payload = read_bytes(stream, prefix.payload).await?;
    // To the very end: a stream that is dropped before it tells its sender to stop, which costs a datagram each way.
    if stream.read_chunk(1, true).await?.is_some() {
        return Err(FrameError::Long);
    }
    Ok(Frame {
        word: prefix.word,
        header,
        payload,
    })
}

/// `length` bytes; not copied when they lie in one piece already.
async fn read_bytes(stream: &mut RecvStream, length: usize) -> Result<Bytes, FrameError> {
    if length == 0 {
        return Ok(Bytes::new());
    }
    let first = stream.read_chunk(length, true).await?.ok_or(FrameError::Short)?.bytes;
    if first.len() == length {
        return Ok(first);
    }
    let mut whole = BytesMut::with_capacity(length);
    whole.extend_from_slice(&first);
    while whole.len() < length {
        let chunk = stream
            .read_chunk(length - whole.len(), true)
            .await?
            .ok_or(FrameError::Short)?;
        whole.extend_from_slice(&chunk.bytes);
    }
    Ok(whole.freeze())
}

/// Sends a whole frame; payload parts go as they are.
pub(crate) async fn write(
    stream: &mut SendStream,
    word: u32,
    header: &[u8],
    payload: &[Bytes],
) -> Result<(), WriteError> {
    let payload_size: usize = payload.iter().map(Bytes::len).sum();
    let mut head = BytesMut::with_capacity(PREFIX_BYTES + header.len());
    head.extend_from_slice(&word.to_le_bytes());
    head.extend_from_slice(&(header.len() as u32).to_le_bytes());
    head.extend_from_slice(&(payload_size as u32).to_le_bytes());
    head.extend_from_slice(header);
    let mut chunks = Vec::with_capacity(payload.len() + 1);
    chunks.push(head.freeze());
    chunks.extend(payload.iter().filter(|part| !part.is_empty()).cloned());
    stream.write_all_chunks(&mut chunks).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_over_the_limits_are_refused_before_allocation() {
        let prefix = |header: u32, payload: u32| {
            let mut bytes = [0; PREFIX_BYTES];
            bytes[..4].copy_from_slice(&7_u32.to_le_bytes());
            bytes[4..8].copy_from_slice(&header.to_le_bytes());
            bytes[8..].copy_from_slice(&payload.to_le_bytes());
            Prefix::parse(bytes)
        };
        assert!(matches!(
            prefix(10, 1 << 20),
            Ok(Prefix {
                word: 7,
                header: 10,
                payload: 1_048_576
            })
        ));
        assert!(prefix(u32::MAX, 0).is_err());
        assert!(prefix(0, u32::MAX).is_err());
        assert!(prefix(0, MAX_PAYLOAD_SIZE_BYTES as u32 + 1).is_err());
    }
}
