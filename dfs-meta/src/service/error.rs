//! Why a metadata server does not start: each one line with the thing, the cause and the next step.

use std::io;
use std::path::{Path, PathBuf};

use dfs_common::{ClusterId, Error, ErrorCode, NodeName};

use crate::consensus::ConsensusError;

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("can not {doing} {}: {source}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("data directory {} is in use by a running dfs meta (pid {pid}): stop it first", path.display())]
    InUse { path: PathBuf, pid: String },
    #[error(
        "data directory {} belongs to {owner} of cluster {owner_cluster}, this is {me} of cluster {cluster}: set another `data` in its node.toml",
        path.display()
    )]
    Foreign {
        path: PathBuf,
        owner: String,
        owner_cluster: String,
        me: NodeName,
        cluster: ClusterId,
    },
    #[error(
        "data directory {} has format {found}, this program knows {known}: start the newer program",
        path.display(), known = super::data_directory::FORMAT
    )]
    NewerFormat { path: PathBuf, found: u32 },
    #[error(
        "{} is of format {found}, older than this program's ({known}), which can not read it: keep it for the program that \
         wrote it, or give an empty directory",
        path.display(), known = super::data_directory::FORMAT
    )]
    OlderFormat { path: PathBuf, found: u32 },
    #[error("{} is damaged ({source}): restore it, or give an empty directory and let the others fill it", path.display())]
    NodeFile { path: PathBuf, source: serde_json::Error },
    #[error("the configuration does not fit: {}", .0.detail)]
    Config(Error),
    #[error("the credentials do not fit: {}", .0.detail)]
    Credentials(Error),
    #[error("the network can not be used: {}", .0.detail)]
    Network(Error),
    #[error("the applied state can not be opened: {}", .0.detail)]
    State(Error),
    #[error("consensus can not start: {0}")]
    Consensus(#[source] ConsensusError),
}

impl StartError {
    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { doing, path, source }
    }
}

impl From<StartError> for Error {
    fn from(error: StartError) -> Self {
        let code = match &error {
            StartError::Io { .. } | StartError::NodeFile { .. } => ErrorCode::Internal,
            StartError::InUse { .. } => ErrorCode::Busy,
            StartError::Foreign { .. } | StartError::NewerFormat { .. } | StartError::OlderFormat { .. } => {
                ErrorCode::Incompatible
            }
            StartError::Config(e) | StartError::Credentials(e) | StartError::Network(e) | StartError::State(e) => {
                e.code
            }
            StartError::Consensus(_) => ErrorCode::Corrupt,
        };
        Self::new(code, error.to_string())
    }
}
