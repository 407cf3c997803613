//! What can go wrong, so that a caller can tell: ask another server, wait, rebuild, or stop.

use std::path::{Path, PathBuf};

use dfs_common::{ErrorCode, MetaId};

use super::MachineError;

/// Trouble of the log, votes or snapshots on disk.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("{doing} {}: {source}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    /// Bytes that were once durable are not what was written. Entries may be gone: rebuild this server from its peers.
    #[error(
        "{} is damaged at byte {offset}: {detail}; this server must be rebuilt from the others", path.display()
    )]
    Rot { path: PathBuf, offset: u64, detail: String },
    #[error("{} has format version {found}, this program reads {known}: start the newer program", path.display())]
    Version { path: PathBuf, found: u32, known: u32 },
    #[error("{} belongs to cluster {found}, not to {expected}: check the data directory", path.display())]
    ForeignCluster {
        path: PathBuf,
        found: dfs_common::ClusterId,
        expected: dfs_common::ClusterId,
    },
    /// An earlier write or fsync failed. Never retried: the kernel may already have dropped what it could not write.
    #[error("the log stopped after an I/O error: {0}; restart this server, and rebuild it if its disk is failing")]
    Poisoned(String),
    #[error("sealing or opening at byte {offset} of {}: {source}", path.display())]
    Seal {
        path: PathBuf,
        offset: u64,
        source: MachineError,
    },
    #[error("log entry {index} is not here (the log holds {first} up to {next})")]
    NotHere { index: u64, first: u64, next: u64 },
    #[error("a log entry of {0} bytes is over the limit")]
    TooBig(usize),
}

impl LogError {
    pub(super) fn io(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { doing, path, source }
    }
}

/// Trouble of consensus.
#[derive(Debug, thiserror::Error)]
pub enum ConsensusError {
    #[error("this metadata server does not lead{}", leader.map_or(String::new(), |id| format!("; meta-{id} does")))]
    NotLeader { leader: Option<MetaId> },
    #[error("no quorum of metadata servers answered within {0} ms")]
    Timeout(u64),
    #[error("too many commands wait for the log; try again")]
    Overloaded,
    #[error("a command of {0} bytes is over the limit of {max}", max = super::MAX_COMMAND_SIZE_BYTES)]
    TooBig(usize),
    #[error("consensus stopped on this server: {0}")]
    Stopped(String),
    /// The applied state knows more than log and snapshots do: it can not be trusted. Delete it, open it empty, start again.
    #[error(
        "the applied state is at {position}, which the log does not know ({log}); delete the state and start again"
    )]
    StateAhead { position: String, log: String },
    /// The applied state's position is not ours at all. Delete it as with `StateAhead`.
    #[error("the applied state's position can not be read: {0}; delete the state and start again")]
    StateUnreadable(String),
    /// The log begins behind the applied state and no snapshot covers the gap.
    #[error("log entries {from} up to {to} are in no snapshot; this server must be rebuilt from the others")]
    Gap { from: u64, to: u64 },
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("the state machine failed: {0}")]
    Machine(MachineError),
}

impl ConsensusError {
    /// The state machine's store must be deleted and opened empty; then starting again works.
    #[must_use]
    pub const fn wants_empty_state(&self) -> bool {
        matches!(self, Self::StateAhead { .. } | Self::StateUnreadable(_))
    }

    /// Log or snapshot are damaged: [`super::reset_for_rebuild`], empty the state, start again, catch up from the others.
    #[must_use]
    pub const fn wants_rebuild(&self) -> bool {
        matches!(
            self,
            Self::Gap { .. } | Self::Log(LogError::Rot { .. } | LogError::Seal { .. })
        )
    }
}

impl From<ConsensusError> for dfs_common::Error {
    fn from(error: ConsensusError) -> Self {
        let code = match &error {
            ConsensusError::NotLeader { .. } => ErrorCode::NotLeader,
            ConsensusError::Timeout(_) => ErrorCode::Timeout,
            ConsensusError::Overloaded => ErrorCode::Overloaded,
            ConsensusError::TooBig(_) => ErrorCode::ArgumentTooBig,
            ConsensusError::Stopped(_) => ErrorCode::Poisoned,
            ConsensusError::StateAhead { .. }
            | ConsensusError::StateUnreadable(_)
            | ConsensusError::Gap { .. }
            | ConsensusError::Log(_) => ErrorCode::Corrupt,
            ConsensusError::Machine(_) => ErrorCode::Internal,
        };
        Self::new(code, error.to_string())
    }
}
