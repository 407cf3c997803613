//! What can go wrong in the block log, and what each means to a caller.

use std::io;

use dfs_common::{BlockIndex, ChainId, ChunkId, DiskCall, Error, ErrorCode, Meaning, Scarce};

use crate::disk::meaning;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Nothing changed; removing and truncating still work.
    #[error("the store is full ({used_bytes} of {total_bytes} bytes used): remove files or add a storage node")]
    NoSpace { used_bytes: u64, total_bytes: u64 },

    /// The caller's mistake; nothing changed.
    #[error("chunk {chunk}: {reason}")]
    Invalid { chunk: ChunkId, reason: String },

    /// Stored bytes do not match their checksum.
    #[error("chunk {chunk} block {block} does not match its checksum: it must be copied from another replica")]
    Corrupt { chunk: ChunkId, block: BlockIndex },

    /// An earlier I/O error: what is on the disk is uncertain, so nothing more is taken.
    #[error(
        "the store is poisoned ({reason}): replace the disk if it fails again, then restart to rebuild from the peers"
    )]
    Poisoned { reason: String },

    /// Something had run out for too long. What is on the disk is whole.
    #[error("the store takes nothing more until this server starts anew ({reason})")]
    Stopped { reason: String },

    /// A call failed; the store still takes writes.
    #[error("{doing}: {source}")]
    Io { doing: String, source: io::Error },

    /// Another cluster's or node's directory, or a newer format.
    #[error("{0}")]
    Incompatible(String),

    #[error("chunk {chunk} belongs to chain {holds}, not to chain {asked}")]
    WrongChain {
        chunk: ChunkId,
        holds: ChainId,
        asked: ChainId,
    },
}

impl StoreError {
    pub(crate) fn io(doing: impl Into<String>, source: io::Error) -> Self {
        Self::Io {
            doing: doing.into(),
            source,
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::NoSpace { .. } => ErrorCode::NoSpace,
            StoreError::Invalid { .. } | StoreError::WrongChain { .. } => ErrorCode::InvalidArgument,
            StoreError::Corrupt { .. } => ErrorCode::Corrupt,
            StoreError::Poisoned { .. } | StoreError::Stopped { .. } => ErrorCode::Poisoned,
            StoreError::Io { source, .. } => match meaning(DiskCall::Read, source) {
                Meaning::NotNow(Scarce::Space) => ErrorCode::NoSpace,
                Meaning::NotNow(_) => ErrorCode::Overloaded,
                Meaning::Broken => ErrorCode::Internal,
            },
            StoreError::Incompatible(_) => ErrorCode::Incompatible,
        };
        Self::new(code, error.to_string())
    }
}
