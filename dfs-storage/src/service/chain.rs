//! One chain on this node: the pure core behind a mutex, and the hands that carry out what it decides.
//!
//! A step is synchronous and short, so the mutex is never held across an await nor across I/O. Store writes that are quick
//! (they end in the page cache) run where they arise; syncs go to the sync thread; messages are tasks of their own.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dfs_common::units::reserve_bytes;
use dfs_common::wire::Lane;
use dfs_common::wire::meta::ResyncProgress;
use dfs_common::wire::storage::{DamageOutcome, FileRuns, RunsWanted, StorageRequest, StorageResponse};
use dfs_common::{
    BlockIndex, ChainId, ChunkId, ChunkIndex, ChunkVersion, CutEpoch, Epoch, Error, ErrorCode, HybridClock, InodeId,
    RequestId, Rest, Result, SessionId, StorageId,
};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::damage::wall_clock;
use super::node::Node;
use crate::replica::{Answer, Effect, Input, Now, ReplicaCore, StoreView, WaiterId};
use crate::resync;

/// Between two lines of one chain about chunks that can not be copied.
const COMPLAIN_EVERY_MS: u64 = 10_000;

/// For a forwarded mutation to be on every member after this one. Longer than any hiccup, shorter than a client's patience.
const FORWARD_DEADLINE: Duration = Duration::from_secs(3);

/// For a sync of every member after this one: a slow disk may take seconds.
const SYNC_DEADLINE: Duration = Duration::from_secs(15);

/// Store writes up to this size run on the async worker: they take some ten microseconds.
const INLINE_WRITE_BYTES: usize = 64 << 10;

/// What a member has under way when it is to leave gets this long to end.
const RETIRE_WITHIN_MS: u64 = 500;

struct Inner {
    core: ReplicaCore,
    waiters: HashMap<WaiterId, oneshot::Sender<Result<Answer>>>,
}

pub(crate) struct Chain {
    id: ChainId,
    inner: Mutex<Inner>,
    /// The core's, to look at without the mutex.
    epoch: AtomicU64,
    /// The last epoch in which this node, as head, brought the second member up to date.
    settled: AtomicU64,
    /// The last that this node, as head, said of the chain's rest, and in which epoch.
    rest: Mutex<(Epoch, Rest)>,
    /// The epoch in which this node serves no more, since it is about to leave the chain; 0: none.
    retired: AtomicU64,
    retired_ms: AtomicU64,
    /// When it was last said that a chunk could not be copied; 0: never.
    complained_ms: AtomicU64,
    next_waiter: AtomicU64,
}

impl std::fmt::Debug for Chain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chain")
            .field("id", &self.id)
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

/// Takes its waiter back when the request is given up.
struct Waiting<'a> {
    chain: &'a Chain,
    waiter: WaiterId,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.chain.inner.lock().waiters.remove(&self.waiter);
    }
}

impl Chain {
    pub(crate) fn new(id: ChainId, node: dfs_common::StorageId) -> Self {
        Self {
            id,
            inner: Mutex::new(Inner {
                core: ReplicaCore::new(id, node),
                waiters: HashMap::new(),
            }),
            epoch: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            rest: Mutex::default(),
            retired: AtomicU64::new(0),
            retired_ms: AtomicU64::new(0),
            complained_ms: AtomicU64::new(0),
            next_waiter: AtomicU64::new(1),
        }
    }

    pub(crate) const fn id(&self) -> ChainId {
        self.id
    }

    /// Whether one more line about a chunk that can not be copied is due: some are tried as long as the chain lives.
    fn may_complain(&self, now_ms: u64) -> bool {
        let last_ms = self.complained_ms.load(Ordering::Relaxed);
        let due = last_ms == 0 || now_ms.saturating_sub(last_ms) >= COMPLAIN_EVERY_MS;
        if due {
            self.complained_ms.store(now_ms.max(1), Ordering::Relaxed);
        }
        due
    }

    pub(crate) fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Acquire))
    }

    /// What the metadata group has yet to show of this chain: in this epoch its second member is complete.
    pub(crate) fn settled_in(&self) -> Epoch {
        Epoch(self.settled.load(Ordering::Acquire))
    }

    /// Likewise, whether it rests.
    pub(crate) fn rest_in(&self, epoch: Epoch) -> Rest {
        let (said_in, rest) = *self.rest.lock();
        if said_in == epoch { rest } else { Rest::default() }
    }

    /// Serves no client in this epoch any more. For good: what the metadata group does next relies on it.
    pub(crate) fn retire(&self, epoch: Epoch, now_ms: u64) {
        if self.retired.swap(epoch.0, Ordering::AcqRel) != epoch.0 {
            self.retired_ms.store(now_ms, Ordering::Release);
        }
    }

    /// The present epoch if this node serves no more in it and what was under way has ended, or had time to.
    pub(crate) fn retired(&self, now_ms: u64) -> Option<Epoch> {
        let epoch = self.epoch();
        let retired = epoch.0 != 0 && self.retired.load(Ordering::Acquire) == epoch.0;
        let over =
            || self.is_idle() || now_ms >= self.retired_ms.load(Ordering::Acquire).saturating_add(RETIRE_WITHIN_MS);
        (retired && over()).then_some(epoch)
    }

    pub(crate) fn progress(&self) -> Option<ResyncProgress> {
        self.inner.lock().core.progress()
    }

    pub(crate) fn wants_tick(&self) -> bool {
        self.inner.lock().core.wants_tick()
    }

    pub(crate) fn is_waited_for(&self, chunk: ChunkId) -> bool {
        self.inner.lock().core.is_waited_for(chunk)
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.inner.lock().core.is_idle()
    }

    /// Puts a request to the core and waits for its answer.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        node: &Arc<Node>,
        deadline: Duration,
        input: impl FnOnce(WaiterId) -> Input,
    ) -> Result<Answer> {
        let waiter = WaiterId(self.next_waiter.fetch_add(1, Ordering::Relaxed));
        let (answer, answered) = oneshot::channel();
        self.inner.lock().waiters.insert(waiter, answer);
        let _waiting = Waiting { chain: self, waiter };
        self.drive(node, input(waiter));
        match tokio::time::timeout(deadline, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Error::new(
                ErrorCode::Overloaded,
                format!("chain {}: the request made room for its own retry", self.id),
            )),
            Err(_) => Err(Error::new(
                ErrorCode::Timeout,
                format!("chain {}: no answer within {} ms", self.id, deadline.as_millis()),
            )),
        }
    }

    /// Feeds one event to the core and carries out all that follows from it here.
    pub(crate) fn drive(self: &Arc<Self>, node: &Arc<Node>, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let mut answers = Vec::new();
            let mut local = Vec::new();
            {
                let mut inner = self.inner.lock();
                let ms = node.lease.now_ms();
                let now = Now {
                    ms,
                    wall: wall_clock(),
                    lease: node.has_lease(ms) && self.retired.load(Ordering::Acquire) != inner.core.epoch().0,
                    faulty: node.failed.is_cancelled(),
                };
                let effects = inner.core.step(now, input, &View(node));
                self.epoch.store(inner.core.epoch().0, Ordering::Release);
                for effect in effects {
                    match effect {
                        Effect::Answer { waiter, answer } => {
                            if let Some(sender) = inner.waiters.remove(&waiter) {
                                answers.push((sender, answer));
                            }
                        }
                        effect => local.push(effect),
                    }
                }
            }
            for (sender, answer) in answers {
                // Who has given up does not listen.
                let _ = sender.send(answer);
            }
            // Messages first: the neighbour works while this node does.
            let (store_work, messages): (Vec<_>, Vec<_>) = local.into_iter().partition(is_store_work);
            for effect in messages {
                self.dispatch(node, effect);
            }
            for effect in store_work {
                inputs.extend(self.carry_out(node, effect));
            }
        }
    }

    /// Work in the store; what follows from it at once is returned.
    fn carry_out(self: &Arc<Self>, node: &Arc<Node>, effect: Effect) -> Option<Input> {
        match effect {
            Effect::Apply { after_ms, .. } if after_ms > 0 => {
                let (chain, node) = (Arc::clone(self), Arc::clone(node));
                node.runtime.clone().spawn(async move {
                    tokio::time::sleep(Duration::from_millis(after_ms)).await;
                    if let Some(input) = chain.apply(&node, effect) {
                        chain.drive(&node, input);
                    }
                });
                None
            }
            Effect::Apply { .. } => self.apply(node, effect),
            Effect::Sync { ticket } => {
                let (chain, shared) = (Arc::clone(self), Arc::clone(node));
                node.syncer
                    .sync(move |result| chain.drive(&shared, Input::Synced { ticket, result }));
                None
            }
            Effect::Install {
                ticket,
                chunk,
                version,
                part,
                payload,
            } => {
                let result = blocking(payload.len(), || {
                    if part.begin {
                        node.store.install_begin(self.id, chunk)?;
                    }
                    if !part.runs.is_empty() {
                        node.store.install_part(chunk, &part.runs, &payload)?;
                    }
                    if part.done {
                        node.store.install_finish(self.id, chunk, version, &part.memory)?;
                    }
                    Ok(())
                });
                if part.done && result.is_ok() {
                    node.damage.settled(chunk, DamageOutcome::Replaced);
                }
                Some(Input::InstallDone { ticket, result })
            }
            Effect::Drop { ticket, chunks } => {
                let result = blocking(usize::MAX, || {
                    chunks
                        .iter()
                        .try_for_each(|&chunk| node.store.drop_chunk(self.id, chunk))
                });
                Some(Input::InstallDone { ticket, result })
            }
            Effect::Forget { ticket, chunks } => {
                let result = blocking(usize::MAX, || node.store.forget_gone(self.id, &chunks));
                Some(Input::Forgotten { ticket, result })
            }
            _ => None,
        }
    }

    fn apply(&self, node: &Node, effect: Effect) -> Option<Input> {
        let Effect::Apply {
            ticket,
            chunk,
            version,
            origin,
            mutation,
            payload,
            ..
        } = effect
        else {
            return None;
        };
        let result = blocking(payload.len(), || {
            node.writes
                .measure(|| node.store.apply(self.id, chunk, version, origin, &mutation, &payload))
        });
        Some(Input::Applied { ticket, result })
    }

    /// Messages and what else takes its time.
    fn dispatch(self: &Arc<Self>, node: &Arc<Node>, effect: Effect) {
        let (chain, node) = (Arc::clone(self), Arc::clone(node));
        node.runtime.clone().spawn(async move {
            let id = chain.id;
            let input = match effect {
                Effect::Forward {
                    ticket,
                    to,
                    request,
                    payload,
                    after_ms,
                } => {
                    pause(after_ms).await;
                    let request = StorageRequest::Forward(request);
                    let result = node
                        .network
                        .storage(&node.routing(), to, Lane::Bulk, &request, &[payload], FORWARD_DEADLINE)
                        .await;
                    Input::Forwarded {
                        ticket,
                        result: answered(result, |response| match response {
                            StorageResponse::Forwarded { stable } => Some(*stable),
                            _ => None,
                        }),
                    }
                }
                Effect::ForwardSync {
                    ticket,
                    to,
                    epoch,
                    level,
                    forget,
                    after_ms,
                } => {
                    pause(after_ms).await;
                    let request = StorageRequest::ForwardSync {
                        chain: id,
                        epoch,
                        level,
                        forget,
                    };
                    let result = node
                        .network
                        .storage(&node.routing(), to, Lane::Bulk, &request, &[], SYNC_DEADLINE)
                        .await;
                    Input::ForwardDone {
                        ticket,
                        result: expect(result, |response| matches!(response, StorageResponse::Synced)),
                    }
                }
                Effect::TellStable {
                    ticket,
                    to,
                    epoch,
                    chunks,
                } => {
                    let request = StorageRequest::Stable {
                        chain: id,
                        epoch,
                        chunks,
                    };
                    let result = node
                        .network
                        .storage(&node.routing(), to, Lane::Bulk, &request, &[], FORWARD_DEADLINE)
                        .await;
                    Input::ForwardDone {
                        ticket,
                        result: expect(result, |response| matches!(response, StorageResponse::StableNoted)),
                    }
                }
                Effect::ReportSettled { epoch } => {
                    chain.settled.store(epoch.0, Ordering::Release);
                    node.beat_now.notify_one();
                    return;
                }
                Effect::ReportRest { epoch, rest } => {
                    let mut said = chain.rest.lock();
                    *said = (*said).max((epoch, rest));
                    drop(said);
                    node.beat_now.notify_one();
                    return;
                }
                Effect::FetchInventory {
                    ticket,
                    to,
                    epoch,
                    after,
                    after_ms,
                } => {
                    pause(after_ms).await;
                    let result = resync::fetch_inventory(&node, id, epoch, to, after).await;
                    Input::InventoryFetched { ticket, result }
                }
                Effect::CopyChunk {
                    ticket,
                    to,
                    epoch,
                    chunk,
                    after_ms,
                } => {
                    pause(after_ms).await;
                    let result = resync::copy_chunk(&node, &chain, id, epoch, to, chunk).await;
                    if let Err(error) = &result
                        && chain.may_complain(node.lease.now_ms())
                    {
                        tracing::info!(chain = %id, %chunk, to = %to, %error, "a chunk is not copied yet");
                    }
                    Input::Copied { ticket, result }
                }
                Effect::DropChunks {
                    ticket,
                    to,
                    epoch,
                    chunks,
                    after_ms,
                } => {
                    pause(after_ms).await;
                    let result = resync::drop_chunks(&node, id, epoch, to, chunks).await;
                    Input::ChunksDropped { ticket, result }
                }
                Effect::ReportResyncDone { to, epoch } => {
                    tracing::info!(chain = %id, to = %to, %epoch, "every chunk is in sync");
                    resync::report_done(&node, &chain, id, to, epoch).await;
                    return;
                }
                Effect::List { waiter, after, limit } => {
                    let answer = resync::list(&node, id, after, limit);
                    let sender = chain.inner.lock().waiters.remove(&waiter);
                    if let Some(sender) = sender {
                        let _ = sender.send(Ok(Answer::Response(answer)));
                    }
                    return;
                }
                Effect::Fault(reason) => {
                    node.set_fault(&format!("chain {id}: {reason}"));
                    return;
                }
                Effect::Apply { .. }
                | Effect::Sync { .. }
                | Effect::Install { .. }
                | Effect::Drop { .. }
                | Effect::Forget { .. }
                | Effect::Answer { .. } => return,
            };
            chain.drive(&node, input);
        });
    }
}

const fn is_store_work(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Apply { .. }
            | Effect::Sync { .. }
            | Effect::Install { .. }
            | Effect::Drop { .. }
            | Effect::Forget { .. }
    )
}

async fn pause(after_ms: u64) {
    if after_ms > 0 {
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
    }
}

/// Runs store work where it is if it is small, else with the async worker's other tasks moved away.
pub(crate) fn blocking<T>(
    size_bytes: usize,
    work: impl FnOnce() -> std::result::Result<T, crate::store::StoreError>,
) -> Result<T> {
    let movable = size_bytes > INLINE_WRITE_BYTES
        && tokio::runtime::Handle::try_current()
            .is_ok_and(|handle| handle.runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread);
    if movable {
        tokio::task::block_in_place(work).map_err(Error::from)
    } else {
        work().map_err(Error::from)
    }
}

/// Success if it is the response that belongs to the request.
pub(crate) fn expect(
    result: Result<(StorageResponse, Bytes)>,
    right: impl FnOnce(&StorageResponse) -> bool,
) -> Result<()> {
    answered(result, |response| right(response).then_some(()))
}

/// What the response says, if it is the one that belongs to the request.
fn answered<T>(
    result: Result<(StorageResponse, Bytes)>,
    take: impl FnOnce(&StorageResponse) -> Option<T>,
) -> Result<T> {
    match result? {
        (StorageResponse::Failed(error), _) => Err(error),
        (response, _) => take(&response)
            .ok_or_else(|| Error::new(ErrorCode::BadMessage, format!("a neighbour answered with {response:?}"))),
    }
}

struct View<'a>(&'a Node);

impl StoreView for View<'_> {
    fn version(&self, chunk: ChunkId) -> ChunkVersion {
        self.0.store.version(chunk)
    }

    fn stamp(&self, chunk: ChunkId) -> HybridClock {
        self.0.store.stamp(chunk)
    }

    fn trimmed(&self, chunk: ChunkId) -> ChunkVersion {
        self.0.store.trimmed(chunk)
    }

    fn cut(&self, chunk: ChunkId) -> CutEpoch {
        self.0.store.cut(chunk)
    }

    fn is_removed(&self, chunk: ChunkId) -> bool {
        self.0.store.is_removed(chunk)
    }

    fn admits(&self, session: SessionId) -> bool {
        self.0.sessions.admits(session)
    }

    fn block_version(&self, chunk: ChunkId, block: BlockIndex) -> ChunkVersion {
        self.0.store.block_version(chunk, block)
    }

    fn remembered(&self, chunk: ChunkId, id: RequestId) -> Option<ChunkVersion> {
        self.0.store.remembered(chunk, id)
    }

    fn file_end(&self, chain: ChainId, inode: InodeId, from: ChunkIndex) -> Option<(ChunkIndex, u32)> {
        self.0.store.file_end(chain, inode, from)
    }

    fn file_runs(
        &self,
        chain: ChainId,
        inode: InodeId,
        from: (ChunkIndex, BlockIndex),
        wanted: RunsWanted,
    ) -> FileRuns {
        self.0.store.file_runs(chain, inode, from, wanted)
    }

    fn chunks_of(&self, chain: ChainId, inode: InodeId, from: ChunkIndex) -> Vec<ChunkId> {
        self.0.store.chunks_of(chain, inode, from)
    }

    fn list(&self, chain: ChainId) -> Vec<(ChunkId, ChunkVersion)> {
        self.0.store.list(chain, None, usize::MAX)
    }

    fn gone(&self, chain: ChainId, limit: usize) -> Vec<(ChunkId, ChunkVersion)> {
        self.0.store.gone(chain, limit)
    }

    fn has_room(&self, bytes: u64) -> bool {
        let usage = self.0.store.usage();
        let reserve = reserve_bytes(usage.total_bytes);
        usage.used_bytes.saturating_add(bytes).saturating_add(reserve) <= usage.total_bytes
    }

    fn may_copy(&self) -> bool {
        self.0.budget.lock().may_copy(self.0.lease.now_ms())
    }

    fn is_full(&self, member: StorageId) -> bool {
        self.0.full.read().contains(&member)
    }
}
