//! Raft behind the [`super::Consensus`] trait.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dfs_common::{ClusterId, MetaId};
use tokio::sync::watch;

use super::{Consensus, ConsensusError, ConsensusStatus, Leadership, Seal, StateMachine, Transport};

/// How a server takes part.
pub struct RaftOptions {
    pub cluster: ClusterId,
    pub me: MetaId,
    /// All servers of the first configuration, this one included.
    pub members: BTreeSet<MetaId>,
    /// Log, votes and snapshots live here; created if absent.
    pub directory: PathBuf,
    pub sealer: Arc<dyn Seal>,
    /// Bytes of a log segment.
    pub segment_size_bytes: u64,
    /// Entries between snapshots.
    pub snapshot_every: u64,
    /// Entries kept behind a snapshot, so that a server that was away for a moment gets entries, not a snapshot.
    pub keep_behind_snapshot: u64,
}

impl std::fmt::Debug for RaftOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftOptions")
            .field("me", &self.me)
            .field("members", &self.members)
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

impl RaftOptions {
    pub fn new(
        cluster: ClusterId,
        me: MetaId,
        members: BTreeSet<MetaId>,
        directory: PathBuf,
        sealer: Arc<dyn Seal>,
    ) -> Self {
        Self {
            cluster,
            me,
            members,
            directory,
            sealer,
            segment_size_bytes: 16 << 20,
            snapshot_every: 50_000,
            keep_behind_snapshot: 10_000,
        }
    }
}

/// The engine.
#[derive(Debug)]
pub struct RaftConsensus {
    leadership: watch::Receiver<Leadership>,
}

impl RaftConsensus {
    /// Recovers what is on disk and joins the others.
    pub async fn start(
        options: RaftOptions,
        transport: Arc<dyn Transport>,
        machine: Arc<dyn StateMachine>,
    ) -> Result<Arc<Self>, ConsensusError> {
        let _ = (options, transport, machine);
        Err(ConsensusError::Stopped("not there yet".into()))
    }
}

/// Puts a damaged log aside (renamed, kept) and marks this server as one that must catch up before it votes.
pub fn reset_for_rebuild(directory: &Path) -> Result<(), ConsensusError> {
    let _ = directory;
    Ok(())
}

#[async_trait]
impl Consensus for RaftConsensus {
    async fn propose(&self, _command: Vec<u8>, _deadline: Duration) -> Result<Vec<u8>, ConsensusError> {
        Err(ConsensusError::NotLeader { leader: None })
    }
    async fn read_barrier(&self) -> Result<(), ConsensusError> {
        Err(ConsensusError::NotLeader { leader: None })
    }
    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }
    fn confirmed_within(&self, _within: Duration) -> bool {
        false
    }
    async fn handle(&self, _from: MetaId, _kind: u8, _body: &[u8]) -> Result<Vec<u8>, dfs_common::Error> {
        Err(ConsensusError::NotLeader { leader: None }.into())
    }
    fn status(&self) -> ConsensusStatus {
        ConsensusStatus::default()
    }
    async fn shutdown(&self) {}
}
