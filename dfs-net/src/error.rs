//! What can go wrong between two processes.

use std::net::SocketAddr;
use std::time::Duration;

use dfs_common::{Error, ErrorCode, NodeName};

#[derive(Clone, Debug, thiserror::Error)]
pub enum NetError {
    #[error("{address}: {reason}")]
    Bind { address: SocketAddr, reason: String },
    #[error("{peer} at {address} did not answer within {} ms", deadline.as_millis())]
    Timeout {
        peer: NodeName,
        address: SocketAddr,
        deadline: Duration,
    },
    #[error("{peer} at {address} can not be reached: {reason}")]
    Unreachable {
        peer: NodeName,
        address: SocketAddr,
        reason: String,
    },
    /// Its machine answers, its process is not there.
    #[error("{peer} at {address} can not be reached: nobody listens there")]
    NobodyListens { peer: NodeName, address: SocketAddr },
    /// The other side does not accept this certificate, or shows one that is not accepted here.
    #[error(
        "{peer} at {address} and this process do not accept each other's certificate or protocol: {reason}; check that the credentials are of this cluster and role"
    )]
    Refused {
        peer: NodeName,
        address: SocketAddr,
        reason: String,
    },
    #[error("{0}")]
    Remote(#[from] Error),
    #[error("credentials: {0}")]
    Credentials(String),
}

impl From<NetError> for Error {
    fn from(error: NetError) -> Self {
        let code = match &error {
            NetError::Remote(inner) => return inner.clone(),
            NetError::Timeout { .. } => ErrorCode::Timeout,
            NetError::Unreachable { .. } | NetError::NobodyListens { .. } => ErrorCode::Unreachable,
            NetError::Refused { .. } | NetError::Credentials(_) => ErrorCode::Unauthorized,
            NetError::Bind { .. } => ErrorCode::InvalidArgument,
        };
        Self::new(code, error.to_string())
    }
}
