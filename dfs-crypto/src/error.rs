//! What can go wrong with keys, seals and certificates.

use std::path::PathBuf;

use dfs_common::{BlockIndex, ChunkIndex, Error, ErrorCode};

pub type Result<T, E = CryptoError> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum CryptoError {
    /// Wrong key, wrong place, or changed bytes: AES-GCM does not tell which.
    #[error(
        "block {block} of chunk {chunk} does not open: its bytes, its place or its key are not those it was sealed with"
    )]
    BlockDoesNotOpen { chunk: ChunkIndex, block: BlockIndex },
    #[error("a sealed record does not open: its bytes, its place or its key are not those it was sealed with")]
    RecordDoesNotOpen,
    #[error("a file key wrapped by key version {kek_version} does not open with this cluster's root key")]
    KeyDoesNotOpen { kek_version: u32 },
    #[error("sealed bytes of {actual} B, expected {expected} B")]
    WrongLength { expected: usize, actual: usize },
    #[error("the operating system gives no randomness: {0}")]
    NoRandomness(String),
    #[error("{path}: {source}; check that the credentials directory of the configuration is complete and readable")]
    File { path: PathBuf, source: std::io::Error },
    #[error("{path}: {reason}")]
    BadFile { path: PathBuf, reason: String },
    #[error("a certificate that is none of dfs: {0}")]
    BadCertificate(String),
    #[error("certificates can not be made: {0}")]
    Generation(#[from] rcgen::Error),
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("sealing failed")]
    Seal,
}

impl From<CryptoError> for Error {
    fn from(error: CryptoError) -> Self {
        let code = match &error {
            CryptoError::BlockDoesNotOpen { .. }
            | CryptoError::RecordDoesNotOpen
            | CryptoError::KeyDoesNotOpen { .. }
            | CryptoError::WrongLength { .. } => ErrorCode::Corrupt,
            CryptoError::BadCertificate(_) | CryptoError::Tls(_) => ErrorCode::Unauthorized,
            CryptoError::File { .. } | CryptoError::BadFile { .. } => ErrorCode::InvalidArgument,
            CryptoError::NoRandomness(_) | CryptoError::Generation(_) | CryptoError::Seal => ErrorCode::Internal,
        };
        Self::new(code, error.to_string())
    }
}

/// Fills `bytes` from the operating system.
pub(crate) fn random(bytes: &mut [u8]) -> Result<()> {
    getrandom::fill(bytes).map_err(|error| CryptoError::NoRandomness(error.to_string()))
}
