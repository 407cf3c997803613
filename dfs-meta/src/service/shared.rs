//! What every request and every background task of this server may use.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dfs_common::conflict::{ConflictEntry, ConflictId};
use dfs_common::wire::meta::{LiveSessions, MetaDamage};
use dfs_common::wire::namespace::{NamespaceAnswer, NamespaceRead, StatFs};
use dfs_common::wire::storage::{StorageRequest, StorageResponse};
use dfs_common::{
    ClusterId, Error, ErrorCode, Hold, Incarnation, InodeId, MetaId, Result, RoutingTable, SequenceNumber, SessionId,
    StorageId, codec,
};
use tokio::sync::{mpsc, oneshot, watch};

use super::clock::Clock;
use super::holds::Wants;
use super::owner::Ask;
use crate::command::{Command, CommandKind, Outcome};
use crate::consensus::Consensus;
use crate::namespace::Obstacle;
use crate::state::{Counts, SessionInfo, State};
use crate::store::Store;

/// What the service asks of the applied state, whatever store is below. Calls may block for a disk read.
pub(super) trait Applied: Send + Sync + 'static {
    /// Answers from one state, or what must happen first.
    fn read(
        &self,
        asker: SessionId,
        reads: &[NamespaceRead],
        usage: StatFs,
    ) -> std::result::Result<Vec<Result<NamespaceAnswer>>, Obstacle>;
    fn is_held(&self, hold: Hold) -> Result<bool>;
    fn sessions(&self) -> Result<Vec<SessionInfo>>;
    fn is_answered(&self, session: SessionId, sequence: SequenceNumber) -> Result<bool>;
    fn sessions_version(&self) -> (SessionId, u64);
    /// The sessions that live, and which list that is.
    fn live_sessions(&self) -> Result<((SessionId, u64), LiveSessions)>;
    fn orphans(&self, limit: usize) -> Result<Vec<InodeId>>;
    fn counts(&self) -> Counts;
    /// Conflicts after one, with their paths if wanted; and whether there are no more.
    fn conflicts(
        &self,
        after: Option<(InodeId, ConflictId)>,
        limit: usize,
        paths: bool,
    ) -> Result<(Vec<ConflictEntry>, bool)>;
}

impl<S: Store> Applied for State<S> {
    fn read(
        &self,
        asker: SessionId,
        reads: &[NamespaceRead],
        usage: StatFs,
    ) -> std::result::Result<Vec<Result<NamespaceAnswer>>, Obstacle> {
        Self::read(self, asker, reads, usage)
    }

    fn is_held(&self, hold: Hold) -> Result<bool> {
        Ok(Self::is_held(self, hold)?)
    }

    fn sessions(&self) -> Result<Vec<SessionInfo>> {
        Ok(Self::sessions(self)?)
    }

    fn is_answered(&self, session: SessionId, sequence: SequenceNumber) -> Result<bool> {
        Ok(Self::is_answered(self, session, sequence)?)
    }

    fn sessions_version(&self) -> (SessionId, u64) {
        Self::sessions_version(self)
    }

    fn live_sessions(&self) -> Result<((SessionId, u64), LiveSessions)> {
        Ok(Self::live_sessions(self)?)
    }

    fn orphans(&self, limit: usize) -> Result<Vec<InodeId>> {
        let orphans = Self::orphans(self, None, limit)?;
        Ok(orphans.into_iter().map(|orphan| orphan.inode).collect())
    }

    fn counts(&self) -> Counts {
        Self::counts(self)
    }

    fn conflicts(
        &self,
        after: Option<(InodeId, ConflictId)>,
        limit: usize,
        paths: bool,
    ) -> Result<(Vec<ConflictEntry>, bool)> {
        Ok(Self::conflicts(self, after, limit, paths)?)
    }
}

/// Calls to storage nodes.
#[async_trait]
pub(super) trait StorageCaller: Send + Sync + 'static {
    async fn call(
        &self,
        node: StorageId,
        address: SocketAddr,
        request: &StorageRequest,
        deadline: Duration,
    ) -> Result<StorageResponse>;

    /// Returns when that process is dead for certain; mostly never.
    async fn death(&self, address: SocketAddr, incarnation: Incarnation);
}

pub(super) struct Shared {
    pub(super) cluster: ClusterId,
    pub(super) me: MetaId,
    pub(super) clock: Arc<Clock>,
    pub(super) consensus: Arc<dyn Consensus>,
    pub(super) state: Arc<dyn Applied>,
    /// The table as last applied here, with the metadata servers' addresses filled in.
    pub(super) routing: watch::Receiver<Arc<RoutingTable>>,
    pub(super) usage: watch::Receiver<StatFs>,
    pub(super) wants: Wants,
    pub(super) owner: mpsc::Sender<Ask>,
    pub(super) storage: Arc<dyn StorageCaller>,
    /// What was damaged on this server's disk when it started.
    pub(super) damage: Vec<MetaDamage>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("me", &self.me).finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn leads(&self) -> bool {
        self.consensus.leadership().borrow().is_self
    }

    /// Puts a command through consensus and returns what applying it gave.
    pub(super) async fn propose(&self, kind: CommandKind, deadline: Duration) -> Result<Outcome> {
        let command = Command {
            time: self.clock.command_time(),
            kind,
        };
        let outcome = self.consensus.propose(codec::encode(&command)?, deadline).await?;
        codec::decode(&outcome)
    }

    /// Asks the owner of the leader's soft state. `NotLeader` when there is none here.
    pub(super) async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.owner.try_send(ask(reply)).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => Error::new(
                ErrorCode::Overloaded,
                "too many requests wait for the metadata leader; try again",
            ),
            mpsc::error::TrySendError::Closed(_) => not_leader(),
        })?;
        answer.await.map_err(|_| not_leader())
    }

    /// Runs what may wait for the disk on a thread where that is fine.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        what: impl FnOnce(&dyn Applied) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let state = Arc::clone(&self.state);
        tokio::task::spawn_blocking(move || what(state.as_ref()))
            .await
            .map_err(|e| Error::new(ErrorCode::Internal, format!("a read of the state was cut off: {e}")))?
    }
}

pub(super) fn not_leader() -> Error {
    Error::new(ErrorCode::NotLeader, "this metadata server does not lead")
}
