//! Requests to chains: the right member, the right epoch, again until it worked or the deadline passed.
//!
//! Invariants: a retry of a mutation carries the same `RequestId`; a request whose chain got another epoch is dropped at
//! once and sent to the new configuration, instead of waiting for a dead head to time out; a write is not even sent
//! while the chain has fewer replicas in sync than its level needs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dfs_common::chain::RoutingTable;
use dfs_common::wire::Lane;
use dfs_common::wire::storage::{BlockRun, MutateRequest, Mutation, StorageRequest, StorageResponse};
use dfs_common::{
    BlockIndex, ChainId, ChunkId, ChunkIndex, ChunkVersion, Epoch, Error, ErrorCode, InodeId, Level, RequestId, Result,
    SequenceNumber, SessionId, StorageId,
};
use tokio::time::Instant;

use crate::network::Network;
use crate::retry::{self, Step};
use crate::routing::{RoutingCache, epoch_changed};

/// One replica's time to answer. It may rightly wait for a pending write or a slow disk; a dead one is noticed sooner by
/// its connection or by the chain's new epoch.
const ATTEMPT: Duration = Duration::from_secs(5);

/// A read that takes this long is sent to another member too; the first answer counts.
const HEDGE: Duration = Duration::from_millis(250);

/// Least time between two looks at a chain that can not take a write now.
const REPAIR_POLL: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Head,
    /// Any serving member but these; the number spreads load.
    Any {
        turn: usize,
    },
}

pub(crate) struct Chunks {
    network: Network,
    routing: Arc<RoutingCache>,
    sequence: AtomicU64,
}

/// What a caller wants, apart from the request itself.
struct Ask<'a> {
    chain: ChainId,
    level: Level,
    target: Target,
    lane: Lane,
    deadline: Instant,
    avoid: &'a [StorageId],
    what: &'a (dyn Fn() -> String + Sync),
}

type Member = (StorageId, SocketAddr);

/// Whom to ask in this table, best first, and in which epoch; or why nobody can answer now.
fn members(table: &RoutingTable, ask: &Ask<'_>) -> std::result::Result<(Epoch, Vec<Member>), Error> {
    let chain = table.chain(ask.chain).ok_or_else(|| {
        Error::new(
            ErrorCode::TooFewReplicas,
            format!(
                "chain {} is not in the routing table (version {})",
                ask.chain, table.version
            ),
        )
    })?;
    let serving: Vec<Member> = chain
        .serving()
        .filter_map(|node| table.address(node).map(|address| (node, address)))
        .collect();
    let needed = match ask.target {
        Target::Head => ask.level.min_in_sync(),
        Target::Any { .. } => 1,
    };
    if serving.len() < needed {
        return Err(Error::new(
            ErrorCode::TooFewReplicas,
            format!(
                "chain {} has {} of {} replicas in sync, {} needs {needed}",
                chain.id,
                serving.len(),
                chain.members.len(),
                ask.level,
            ),
        ));
    }
    match ask.target {
        Target::Head => Ok((chain.epoch, serving.into_iter().take(1).collect())),
        Target::Any { turn } => {
            let count = serving.len().max(1);
            let mut order: Vec<_> = (0..serving.len()).map(|i| serving[(i + turn) % count]).collect();
            if order.len() > ask.avoid.len() {
                order.retain(|member| !ask.avoid.contains(&member.0));
            }
            Ok((chain.epoch, order))
        }
    }
}

impl Chunks {
    pub(crate) fn new(network: Network, routing: Arc<RoutingCache>) -> Self {
        Self {
            network,
            routing,
            sequence: AtomicU64::new(1),
        }
    }

    pub(crate) fn routing(&self) -> &RoutingCache {
        &self.routing
    }

    /// A name for one mutation, to be kept over all its attempts.
    pub(crate) fn request_id(&self, session: SessionId, chain: ChainId) -> RequestId {
        RequestId {
            session,
            channel: chain.0,
            sequence: SequenceNumber(self.sequence.fetch_add(1, Ordering::Relaxed)),
        }
    }

    pub(crate) async fn mutate(
        &self,
        chain: ChainId,
        chunk: ChunkId,
        session: SessionId,
        (level, sync): (Level, bool),
        mutation: &Mutation,
        payload: Bytes,
        deadline: Instant,
    ) -> Result<ChunkVersion> {
        let id = self.request_id(session, chain);
        let what = || format!("{} inode {} chunk {}", doing(mutation), chunk.inode, chunk.index);
        let ask = Ask {
            chain,
            level,
            target: Target::Head,
            lane: Lane::Bulk,
            deadline,
            avoid: &[],
            what: &what,
        };
        let build = |epoch| {
            StorageRequest::Mutate(MutateRequest {
                chain,
                epoch,
                chunk,
                id,
                level,
                sync,
                mutation: mutation.clone(),
            })
        };
        match self.drive(&ask, build, &[payload]).await? {
            (_, StorageResponse::Mutated { version }, _) => Ok(version),
            _ => Err(unexpected("a mutation")),
        }
    }

    /// Blocks of a chunk as one member has them, and who that was.
    pub(crate) async fn read(
        &self,
        chain: ChainId,
        chunk: ChunkId,
        (first, blocks): (BlockIndex, u32),
        level: Level,
        avoid: &[StorageId],
        deadline: Instant,
    ) -> Result<(StorageId, Vec<BlockRun>, Bytes)> {
        let what = || format!("read of inode {} chunk {}", chunk.inode, chunk.index);
        let turn = (chunk.inode.0 as usize).wrapping_add(chunk.index.0 as usize);
        let ask = Ask {
            chain,
            level,
            target: Target::Any { turn },
            lane: Lane::Bulk,
            deadline,
            avoid,
            what: &what,
        };
        let build = |epoch| StorageRequest::Read {
            chain,
            epoch,
            chunk,
            first,
            blocks,
            level,
        };
        match self.drive(&ask, build, &[]).await? {
            (node, StorageResponse::Read { runs, .. }, payload) => Ok((node, runs, payload)),
            _ => Err(unexpected("a read")),
        }
    }

    /// Everything this chain acknowledged becomes durable on every in-sync replica.
    pub(crate) async fn sync(&self, chain: ChainId, level: Level, inode: InodeId, deadline: Instant) -> Result<()> {
        let what = || format!("fsync of inode {inode}");
        let ask = Ask {
            chain,
            level,
            target: Target::Head,
            lane: Lane::Control,
            deadline,
            avoid: &[],
            what: &what,
        };
        match self
            .drive(&ask, |epoch| StorageRequest::Sync { chain, epoch }, &[])
            .await?
        {
            (_, StorageResponse::Synced, _) => Ok(()),
            _ => Err(unexpected("a sync")),
        }
    }

    /// Removes every chunk of an inode at or after `from` on this chain.
    pub(crate) async fn remove_range(
        &self,
        chain: ChainId,
        level: Level,
        inode: InodeId,
        from: ChunkIndex,
        deadline: Instant,
    ) -> Result<()> {
        let what = || format!("truncate of inode {inode} from chunk {from}");
        let ask = Ask {
            chain,
            level,
            target: Target::Head,
            lane: Lane::Control,
            deadline,
            avoid: &[],
            what: &what,
        };
        let build = |epoch| StorageRequest::RemoveRange {
            chain,
            epoch,
            inodes: vec![inode],
            from,
        };
        match self.drive(&ask, build, &[]).await? {
            (_, StorageResponse::RangeRemoved { .. }, _) => Ok(()),
            _ => Err(unexpected("a removal")),
        }
    }

    async fn drive(
        &self,
        ask: &Ask<'_>,
        build: impl Fn(Epoch) -> StorageRequest,
        payload: &[Bytes],
    ) -> Result<(StorageId, StorageResponse, Bytes)> {
        let started = Instant::now();
        let mut updates = self.routing.subscribe();
        let mut attempt = 0;
        let mut tried: Vec<StorageId> = Vec::new();
        loop {
            let table = Arc::clone(&updates.borrow_and_update());
            let remaining = ask.deadline.saturating_duration_since(Instant::now());
            let mut untried = 0;
            let error = match members(&table, ask) {
                Err(reason) => reason,
                Ok((epoch, mut order)) => {
                    if matches!(ask.target, Target::Any { .. }) {
                        if order.iter().all(|member| tried.contains(&member.0)) {
                            tried.clear();
                        }
                        order.retain(|member| !tried.contains(&member.0));
                        // Members with a living connection first: a dead one costs a timeout.
                        order.sort_by_key(|&member| !self.network.is_connected(member));
                    }
                    let request = build(epoch);
                    let sent = self.send(&order, &request, payload, ask, remaining.min(ATTEMPT));
                    let answer = tokio::select! {
                        answer = sent => answer,
                        () = epoch_changed(updates.clone(), ask.chain, epoch) => {
                            attempt = 0;
                            tried.clear();
                            continue;
                        }
                    };
                    match answer {
                        Ok(answer) => return Ok(answer),
                        Err(error) => {
                            tried.extend(order.first().map(|member| member.0));
                            untried = order.len().saturating_sub(1);
                            error
                        }
                    }
                }
            };
            let repair = error.code == ErrorCode::TooFewReplicas;
            let step = if remaining.is_zero() {
                Step::Fail
            } else {
                retry::after_replica(error.code, attempt, untried)
            };
            let remaining = ask.deadline.saturating_duration_since(Instant::now());
            match step {
                Step::Fail if error.code.retry_class() == dfs_common::RetryClass::Fatal => {
                    return Err(error.context((ask.what)()));
                }
                Step::Fail => return Err(give_up(ask, &error, started)),
                Step::NextMember => {}
                Step::Refresh(pause) => {
                    let pause = if repair { REPAIR_POLL } else { pause };
                    self.routing.newer_than(table.version, pause.min(remaining)).await;
                }
                Step::Again(pause) => tokio::time::sleep(pause.min(remaining)).await,
            }
            attempt += 1;
        }
    }

    /// To the first of `order`; a slow read also to the second.
    async fn send(
        &self,
        order: &[Member],
        request: &StorageRequest,
        payload: &[Bytes],
        ask: &Ask<'_>,
        time: Duration,
    ) -> Result<(StorageId, StorageResponse, Bytes)> {
        let Some(&first) = order.first() else {
            return Err(Error::new(
                ErrorCode::Unreachable,
                format!("chain {} has nobody to ask", ask.chain),
            ));
        };
        let call = async |member: Member| {
            let answer = self.network.storage(member, ask.lane, request, payload, time).await;
            answer
                .map(|(response, bytes)| (member.0, response, bytes))
                .map_err(|error| error.context(format_args!("storage-{}", member.0)))
        };
        let primary = call(first);
        tokio::pin!(primary);
        let Some(&second) = order.get(1) else {
            return primary.await;
        };
        if let Ok(answer) = tokio::time::timeout(HEDGE, &mut primary).await {
            return answer;
        }
        let hedge = call(second);
        tokio::pin!(hedge);
        tokio::select! {
            answer = &mut primary => if answer.is_ok() { answer } else { hedge.await },
            answer = &mut hedge => if answer.is_ok() { answer } else { primary.await },
        }
    }
}

fn give_up(ask: &Ask<'_>, error: &Error, started: Instant) -> Error {
    let detail = format!(
        "{}: chain {}: {}; gave up after {} s",
        (ask.what)(),
        ask.chain,
        error.detail,
        started.elapsed().as_secs()
    );
    tracing::warn!("{detail}");
    let code = match error.code {
        ErrorCode::TooFewReplicas => ErrorCode::TooFewReplicas,
        _ => ErrorCode::Timeout,
    };
    Error::new(code, detail)
}

fn doing(mutation: &Mutation) -> &'static str {
    match mutation {
        Mutation::Write { .. } => "write to",
        Mutation::Truncate { .. } | Mutation::Remove => "truncate of",
    }
}

fn unexpected(to: &str) -> Error {
    Error::new(
        ErrorCode::BadMessage,
        format!("a storage node answered {to} with something else; are all programs of one version?"),
    )
}
