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
use dfs_common::wire::storage::{
    BlockRun, FileRuns, MutateRequest, Mutation, RunsWanted, StorageRequest, StorageResponse,
};
use dfs_common::{
    BlockIndex, ChainId, ChunkId, ChunkIndex, ChunkVersion, CutEpoch, Epoch, Error, ErrorCode, InodeId, Level,
    RequestId, Result, SequenceNumber, SessionId, StorageId,
};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::network::Network;
use crate::retry::{self, Step};
use crate::routing::{RoutingCache, epoch_changed};
use crate::seen::Seen;

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
    /// For reads: a member that may answer at the level, but for these; the number spreads load.
    Reader {
        turn: usize,
    },
}

pub(crate) struct Chunks {
    network: Network,
    routing: Arc<RoutingCache>,
    sequence: AtomicU64,
    seen: Mutex<Seen>,
}

/// A member's answer.
struct Answered {
    node: StorageId,
    /// Of the request, so it was acknowledged in this one or a later one.
    epoch: Epoch,
    response: StorageResponse,
    payload: Bytes,
}

/// Blocks of a chunk as one member has them.
pub(crate) struct Found {
    pub(crate) node: StorageId,
    /// The chunk's; `NONE`: that member has never heard of it.
    pub(crate) version: ChunkVersion,
    /// In block order, holes left out.
    pub(crate) runs: Vec<BlockRun>,
    /// For each run its seals, then its ciphertexts.
    pub(crate) payload: Bytes,
}

/// A mutation's place in its chain.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Written {
    pub(crate) version: ChunkVersion,
    pub(crate) epoch: Epoch,
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

/// A short question that only the head answers.
const fn of_head(chain: ChainId, deadline: Instant, what: &(dyn Fn() -> String + Sync)) -> Ask<'_> {
    Ask {
        chain,
        level: Level::One,
        target: Target::Head,
        lane: Lane::Control,
        deadline,
        avoid: &[],
        what,
    }
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
    let needed = match ask.target {
        Target::Head => ask.level.min_in_sync(),
        Target::Reader { .. } => ask.level.min_for_read(),
    };
    let serving = chain.serving().count();
    if serving < needed {
        return Err(Error::new(
            ErrorCode::TooFewReplicas,
            format!(
                "chain {} has {} of {} replicas in sync, {} needs {needed}",
                chain.id,
                serving,
                chain.members.len(),
                ask.level,
            ),
        ));
    }
    let count = match (ask.target, ask.level) {
        (Target::Head, _) | (Target::Reader { .. }, Level::All) => 1,
        (Target::Reader { .. }, Level::Quorum) => chain.quorum_readers().count(),
        (Target::Reader { .. }, Level::One) => serving,
    };
    let able: Vec<Member> = chain
        .serving()
        .take(count)
        .filter_map(|node| table.address(node).map(|address| (node, address)))
        .collect();
    match ask.target {
        Target::Head => Ok((chain.epoch, able)),
        Target::Reader { turn } => {
            let count = able.len().max(1);
            let mut order: Vec<_> = (0..able.len()).map(|i| able[(i + turn) % count]).collect();
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
            seen: Mutex::default(),
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
        (session, cut): (SessionId, CutEpoch),
        (level, sync): (Level, bool),
        mutation: &Mutation,
        payload: Bytes,
        deadline: Instant,
    ) -> Result<Written> {
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
                uncut_since: None,
                cut,
                mutation: mutation.clone(),
            })
        };
        let answer = self.drive(&ask, build, &[payload]).await?;
        match answer.response {
            StorageResponse::Mutated { version } => {
                self.seen.lock().note(chunk, version);
                let epoch = answer.epoch;
                Ok(Written { version, epoch })
            }
            _ => Err(unexpected("a mutation")),
        }
    }

    /// Blocks of a chunk as the head has them, once they are safe at QUORUM: the base of a half-written one.
    pub(crate) async fn read_latest(
        &self,
        chain: ChainId,
        chunk: ChunkId,
        (first, blocks): (BlockIndex, u32),
        (session, write_level): (SessionId, Level),
        deadline: Instant,
    ) -> Result<Found> {
        let request = ReadRequest {
            chain,
            chunk,
            first,
            blocks,
            level: Level::Quorum,
            not_before: ChunkVersion::NONE,
            session,
        };
        // The level tells how many members the write after it needs.
        self.read_from(Target::Head, write_level, request, &[], deadline).await
    }

    /// Blocks of a chunk as one member has them.
    pub(crate) async fn read(
        &self,
        chain: ChainId,
        chunk: ChunkId,
        (first, blocks): (BlockIndex, u32),
        (session, level): (SessionId, Level),
        avoid: &[StorageId],
        deadline: Instant,
    ) -> Result<Found> {
        let turn = (chunk.inode.0 as usize).wrapping_add(chunk.index.0 as usize);
        let mut request = ReadRequest {
            chain,
            chunk,
            first,
            blocks,
            level,
            not_before: ChunkVersion::NONE,
            session,
        };
        let mut target = Target::Reader { turn };
        if level == Level::One {
            let seen = self.seen.lock();
            match seen.of(chunk) {
                Some(version) => request.not_before = version,
                // It may have been forgotten; the head has the newest.
                None if seen.has_forgotten() => target = Target::Head,
                None => {}
            }
        }
        match self.read_from(target, level, request, avoid, deadline).await {
            // If even the head has less, the newest went with an earlier head.
            Err(error) if error.code == ErrorCode::Behind => {
                let answer = self.read_from(Target::Head, level, request, &[], deadline).await;
                if let Err(error) = &answer
                    && error.code == ErrorCode::Behind
                {
                    self.seen.lock().forget(chunk);
                    tracing::warn!(
                        inode = chunk.inode.0,
                        chunk = chunk.index.0,
                        "what was read or written at ONE went with the replica that had it: {error}"
                    );
                }
                answer
            }
            answer => answer,
        }
    }

    async fn read_from(
        &self,
        target: Target,
        level: Level,
        read: ReadRequest,
        avoid: &[StorageId],
        deadline: Instant,
    ) -> Result<Found> {
        let chunk = read.chunk;
        let what = || format!("read of inode {} chunk {}", chunk.inode, chunk.index);
        let ask = Ask {
            chain: read.chain,
            level,
            target,
            lane: Lane::Bulk,
            deadline,
            avoid,
            what: &what,
        };
        let answer = self.drive(&ask, |epoch| read.in_epoch(epoch), &[]).await?;
        match answer.response {
            StorageResponse::Read { runs, version } => {
                self.seen.lock().note(chunk, version);
                Ok(Found {
                    node: answer.node,
                    version,
                    runs,
                    payload: answer.payload,
                })
            }
            _ => Err(unexpected("a read")),
        }
    }

    /// Everything this chain acknowledged becomes durable on as many replicas as the level asks for. `since` and `written`: what
    /// of it the caller means; see [`StorageRequest::Sync`].
    pub(crate) async fn sync(
        &self,
        chain: ChainId,
        level: Level,
        (since, written): (Epoch, Level),
        (session, inode): (SessionId, InodeId),
        deadline: Instant,
    ) -> Result<()> {
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
        let build = |epoch| StorageRequest::Sync {
            chain,
            epoch,
            level,
            since,
            written,
            session,
        };
        match self.drive(&ask, build, &[]).await?.response {
            StorageResponse::Synced => Ok(()),
            _ => Err(unexpected("a sync")),
        }
    }

    /// Removes every chunk of an inode at or after `from` on this chain; the epoch of the request that was answered.
    pub(crate) async fn remove_range(
        &self,
        chain: ChainId,
        level: Level,
        inode: InodeId,
        from: ChunkIndex,
        (session, cut): (SessionId, CutEpoch),
        deadline: Instant,
    ) -> Result<Epoch> {
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
            cut,
            session,
        };
        let answer = self.drive(&ask, build, &[]).await?;
        match answer.response {
            StorageResponse::RangeRemoved { .. } => Ok(answer.epoch),
            _ => Err(unexpected("a removal")),
        }
    }

    /// Where the inode's data at or after chunk `from` ends on this chain, if there is any.
    pub(crate) async fn file_end(
        &self,
        chain: ChainId,
        inode: InodeId,
        from: ChunkIndex,
        deadline: Instant,
    ) -> Result<Option<(ChunkIndex, u32)>> {
        let what = || format!("the end of inode {inode}");
        let ask = of_head(chain, deadline, &what);
        let build = |epoch| StorageRequest::FileEnd {
            chain,
            epoch,
            inode,
            from,
        };
        match self.drive(&ask, build, &[]).await?.response {
            StorageResponse::FileEnd(end) => Ok(end),
            _ => Err(unexpected("a question for a file's end")),
        }
    }

    /// Which blocks of the inode there are on this chain, from that place on.
    pub(crate) async fn file_runs(
        &self,
        chain: ChainId,
        inode: InodeId,
        from: (ChunkIndex, BlockIndex),
        wanted: RunsWanted,
        deadline: Instant,
    ) -> Result<FileRuns> {
        let what = || format!("the blocks of inode {inode}");
        let ask = of_head(chain, deadline, &what);
        let build = |epoch| StorageRequest::FileRuns {
            chain,
            epoch,
            inode,
            from,
            wanted,
        };
        match self.drive(&ask, build, &[]).await?.response {
            StorageResponse::FileRuns(runs) => Ok(runs),
            _ => Err(unexpected("a question for a file's blocks")),
        }
    }

    /// The newest version of a chunk that this mount has seen.
    pub(crate) fn seen(&self, chunk: ChunkId) -> Option<ChunkVersion> {
        self.seen.lock().of(chunk)
    }

    /// The versions at which this mount has seen chunks of a file.
    pub(crate) fn seen_of(&self, inode: InodeId) -> Vec<(ChunkIndex, ChunkVersion)> {
        self.seen.lock().of_inode(inode)
    }

    /// Whether the head of the chain has an older version of the chunk than this. Then it is forgotten here.
    pub(crate) async fn lost_since(
        &self,
        chain: ChainId,
        chunk: ChunkId,
        version: ChunkVersion,
        session: SessionId,
        deadline: Instant,
    ) -> Result<bool> {
        let request = ReadRequest {
            chain,
            chunk,
            first: BlockIndex(0),
            blocks: 1,
            level: Level::One,
            not_before: version,
            session,
        };
        match self.read_from(Target::Head, Level::One, request, &[], deadline).await {
            Ok(_) => Ok(false),
            Err(error) if error.code == ErrorCode::Behind => {
                self.seen.lock().forget(chunk);
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    async fn drive(
        &self,
        ask: &Ask<'_>,
        build: impl Fn(Epoch) -> StorageRequest,
        payload: &[Bytes],
    ) -> Result<Answered> {
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
                    if matches!(ask.target, Target::Reader { .. }) {
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
                        biased;
                        answer = sent => answer,
                        () = epoch_changed(updates.clone(), ask.chain, epoch) => {
                            tracing::debug!(chain = %ask.chain, %epoch, "{}: sent again in another epoch", (ask.what)());
                            attempt = 0;
                            tried.clear();
                            continue;
                        }
                    };
                    match answer {
                        Ok((node, response, payload)) => {
                            return Ok(Answered {
                                node,
                                epoch,
                                response,
                                payload,
                            });
                        }
                        Err(error) => {
                            tried.extend(order.first().map(|member| member.0));
                            untried = order.len().saturating_sub(1);
                            error
                        }
                    }
                }
            };
            tracing::debug!(chain = %ask.chain, table = %table.version, attempt, %error, "{}: not answered, trying on", (ask.what)());
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
            biased;
            answer = &mut primary => if answer.is_ok() { answer } else { hedge.await },
            answer = &mut hedge => if answer.is_ok() { answer } else { primary.await },
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct ReadRequest {
    chain: ChainId,
    chunk: ChunkId,
    first: BlockIndex,
    blocks: u32,
    level: Level,
    not_before: ChunkVersion,
    session: SessionId,
}

impl ReadRequest {
    const fn in_epoch(self, epoch: Epoch) -> StorageRequest {
        StorageRequest::Read {
            chain: self.chain,
            epoch,
            chunk: self.chunk,
            first: self.first,
            blocks: self.blocks,
            level: self.level,
            not_before: self.not_before,
            session: self.session,
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
