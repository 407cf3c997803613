//! Messages between metadata servers: openraft's requests as opaque bodies over a [`Transport`].
//!
//! Every body fits a message header: append batches are cut by bytes where they are read from the log, snapshot parts by
//! openraft's setting, commands when they are proposed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use dfs_common::MetaId;
use dfs_net::BootInstant;
use openraft::error::{InstallSnapshotError, RPCError, RaftError, RemoteError, Unreachable};
use openraft::impls::EmptyNode;
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse, VoteRequest,
    VoteResponse,
};
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::confirm::{Confirmations, leader_id};
use super::hearing::Hearing;
use super::log::Log;
use super::types::{LogId, TypeConfig, Vote};

pub(super) const KIND_APPEND: u8 = 1;
pub(super) const KIND_VOTE: u8 = 2;
pub(super) const KIND_SNAPSHOT_PART: u8 = 3;
/// May the sender stand for election? Answered by milliseconds from now, or not at all; and by the
/// wall clock, see `clocks`.
pub(super) const KIND_MAY_I_STAND: u8 = 4;

/// Is anybody there? Answered at once, by the wall clock.
pub(super) const KIND_HELLO: u8 = 5;
/// The leader of this term is deaf and says nothing more for a while: others may stand.
pub(super) const KIND_RESIGN: u8 = 6;
/// Where does the receiver's log end? See `joining`.
pub(super) const KIND_LOG_END: u8 = 7;

/// For a question about an election. Who does not answer in time has no say.
pub(super) const ASK_DEADLINE: Duration = Duration::from_millis(100);

/// Pause after a failed message. A server that returns is heard within it; one that is away costs ten attempts a second.
const BACKOFF: Duration = Duration::from_millis(100);

/// The longest that a sync may take before its server is no fit leader.
const STALL_LIMIT: Duration = Duration::from_millis(700);

/// How long a follower may wait to hear of a commit when no entry carries it; well below a heartbeat.
const COMMIT_DELAY: Duration = Duration::from_millis(50);

/// Carries an opaque message to another server's [`super::Consensus::handle`] and its answer back. Must not hang beyond
/// the deadline; dropping the future cancels.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    async fn send(&self, to: MetaId, kind: u8, body: Vec<u8>, deadline: Duration) -> dfs_common::Result<Vec<u8>>;

    /// Returns when the process of that server is dead for certain; where nobody can know, never.
    async fn death(&self, _of: MetaId) {
        std::future::pending::<()>().await;
    }
}

/// Whether a message of this kind moves much data and should not delay the others.
#[must_use]
pub const fn is_bulk(kind: u8) -> bool {
    kind == KIND_SNAPSHOT_PART
}

#[derive(Clone)]
pub(super) struct Network {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) confirmations: Arc<Mutex<Confirmations>>,
    pub(super) log: Log,
    pub(super) hearing: Arc<Mutex<Hearing>>,
}

pub(super) struct Link {
    to: u64,
    network: Network,
    answered: Option<Answered>,
    /// The commit that was last told, and when.
    told: Option<(LogId, Instant)>,
}

/// What the other server last said yes to on this link.
struct Answered {
    vote: Vote,
    sent: BootInstant,
    matched: Option<LogId>,
}

impl Link {
    /// What to say of the commit. Followers only apply what is committed, which nobody waits for: they hear of it a few
    /// times a second and do that work in batches, instead of in the way of every entry.
    fn commit_to_tell(&mut self, committed: Option<LogId>) -> Option<LogId> {
        match (self.told, committed) {
            (Some((told, at)), Some(id)) if at.elapsed() < COMMIT_DELAY => Some(told.min(id)),
            (_, Some(id)) => {
                self.told = Some((id, Instant::now()));
                Some(id)
            }
            (_, None) => None,
        }
    }

    /// Whether an append without entries would tell the other server nothing but a newer commit: it said yes to the same
    /// leader about the same log a moment ago. openraft sends one after every commit, and the next entry waits behind it.
    /// A link made for a read barrier has no answer yet, so its message always goes.
    fn is_news(&self, rpc: &AppendEntriesRequest<TypeConfig>) -> bool {
        let known = self.answered.as_ref().is_some_and(|answered| {
            answered.vote == rpc.vote && answered.matched >= rpc.prev_log_id && answered.sent.elapsed() < COMMIT_DELAY
        });
        !(rpc.entries.is_empty() && known)
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: u64, _node: &EmptyNode) -> Link {
        Link {
            to: target,
            network: self.clone(),
            answered: None,
            told: None,
        }
    }
}

type Failed<E> = RPCError<u64, EmptyNode, E>;

impl Link {
    async fn ask<Q, R, E>(&self, kind: u8, request: &Q, option: &RPCOption) -> Result<R, Failed<E>>
    where
        Q: Serialize,
        R: DeserializeOwned,
        E: std::error::Error + DeserializeOwned,
    {
        let unreachable = |error: dfs_common::Error| RPCError::Unreachable(Unreachable::new(&error));
        let body = dfs_common::codec::encode(request).map_err(unreachable)?;
        let answer = self
            .network
            .transport
            .send(MetaId(self.to), kind, body, option.hard_ttl())
            .await
            .map_err(unreachable)?;
        dfs_common::codec::decode::<Result<R, E>>(&answer)
            .map_err(unreachable)?
            .map_err(|error| RPCError::RemoteError(RemoteError::new(self.to, error)))
    }
}

impl Link {
    /// A deaf leader says nothing, see `hearing`.
    fn may_speak(&self) -> Result<(), Unreachable> {
        if self.network.hearing.lock().is_mute(Instant::now()) {
            let detail = "this server hears no quorum, so it says nothing as leader";
            return Err(Unreachable::new(&dfs_common::Error::new(
                dfs_common::ErrorCode::Unreachable,
                detail,
            )));
        }
        Ok(())
    }
}

impl RaftNetwork<TypeConfig> for Link {
    async fn append_entries(
        &mut self,
        mut rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, Failed<RaftError<u64>>> {
        self.may_speak()?;
        // A leader whose own disk hangs acknowledges nothing: somebody else should lead, and will if it falls silent.
        let stalled = self.network.log.stalled_for();
        if stalled > STALL_LIMIT {
            let detail = format!("this server's log disk has not answered for {} ms", stalled.as_millis());
            return Err(RPCError::Unreachable(Unreachable::new(&dfs_common::Error::new(
                dfs_common::ErrorCode::Overloaded,
                detail,
            ))));
        }
        // The engine counts this server's copy before it is on disk; others must not believe in a commit until it is.
        rpc.leader_commit = rpc.leader_commit.min(self.network.log.last_durable());
        if !self.is_news(&rpc) {
            return Ok(AppendEntriesResponse::Success);
        }
        rpc.leader_commit = self.commit_to_tell(rpc.leader_commit);
        let sent = BootInstant::now();
        let answer = self.ask(KIND_APPEND, &rpc, &option).await?;
        if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
            self.network
                .confirmations
                .lock()
                .answered(leader_id(&rpc.vote), self.to, sent);
        }
        self.answered = matches!(answer, AppendEntriesResponse::Success).then(|| Answered {
            vote: rpc.vote,
            sent,
            matched: rpc.entries.last().map(|entry| entry.log_id).or(rpc.prev_log_id),
        });
        Ok(answer)
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, Failed<RaftError<u64, InstallSnapshotError>>> {
        self.may_speak()?;
        self.ask(KIND_SNAPSHOT_PART, &rpc, &option).await
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, Failed<RaftError<u64>>> {
        self.ask(KIND_VOTE, &rpc, &option).await
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(BACKOFF))
    }
}
