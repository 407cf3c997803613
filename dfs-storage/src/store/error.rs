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

    /// Something has run out; everything is as it was.
    #[error("{doing}: {source}: this node has run out of {scarce}")]
    NotNow {
        doing: String,
        scarce: Scarce,
        source: io::Error,
    },

    /// A write or a sync failed while the store was being opened.
    #[error("{doing}: {source}")]
    Unwritten {
        doing: String,
        call: DiskCall,
        source: io::Error,
    },

    /// A read or the like failed; the store still takes writes.
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
    pub(crate) fn unwritten(doing: impl Into<String>, call: DiskCall) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Unwritten { doing, call, source }
    }

    pub(crate) fn io(doing: impl Into<String>, source: io::Error) -> Self {
        Self::Io {
            doing: doing.into(),
            source,
        }
    }
}

const fn code_of(scarce: Scarce) -> ErrorCode {
    match scarce {
        Scarce::Space => ErrorCode::NoSpace,
        Scarce::Descriptors | Scarce::Memory | Scarce::Turn | Scarce::Permission => ErrorCode::Overloaded,
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::NoSpace { .. } => ErrorCode::NoSpace,
            StoreError::Invalid { .. } | StoreError::WrongChain { .. } => ErrorCode::InvalidArgument,
            StoreError::Corrupt { .. } => ErrorCode::Corrupt,
            StoreError::Poisoned { .. } | StoreError::Stopped { .. } => ErrorCode::Poisoned,
            StoreError::NotNow { scarce, .. } => code_of(*scarce),
            StoreError::Io { source, .. } => match meaning(DiskCall::Read, source) {
                Meaning::NotNow(scarce) => code_of(scarce),
                Meaning::Broken => ErrorCode::Internal,
            },
            StoreError::Unwritten { .. } => ErrorCode::Internal,
            StoreError::Incompatible(_) => ErrorCode::Incompatible,
        };
        Self::new(code, error.to_string())
    }
}
