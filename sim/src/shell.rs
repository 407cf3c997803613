//! A storage node's hands in the simulator: carries out what the real replica cores decide, over the real block log, on
//! virtual time. It mirrors `dfs_storage::service` (chain, handler, resync); everything that decides is the cores'.

use std::rc::Rc;

use dfs_common::units::reserve_bytes;
use dfs_common::wire::storage::{FileRuns, RunsWanted, StorageResponse};
use dfs_common::{
    BlockIndex, ChainId, ChunkId, ChunkIndex, ChunkVersion, CutEpoch, Error, ErrorCode, HybridClock, InodeId,
    RequestId, SessionId, StorageId, Timestamp,
};
use dfs_storage::replica::{Answer, Effect, Input, Now, StoreView, WaiterId};
use dfs_storage::store::StoreError;

use crate::copying::Copy;
use crate::event::{Event, Undo};
use crate::messages::{Call, For, Reply, Request, Waiting, read_of};
use crate::network::OTHERS;
use crate::node::Node;
use crate::schedule::{BLOCKS, Kind, NODES};
use crate::world::World;

struct View<'a>(&'a Node);

impl View<'_> {
    fn store(&self) -> Option<&dfs_storage::store::ChunkStore> {
        self.0.store.as_ref()
    }
}

impl StoreView for View<'_> {
    fn version(&self, chunk: ChunkId) -> ChunkVersion {
        self.store().map_or(ChunkVersion::NONE, |store| store.version(chunk))
    }
    fn stamp(&self, chunk: ChunkId) -> HybridClock {
        self.store()
            .map_or_else(HybridClock::default, |store| store.stamp(chunk))
    }
    fn trimmed(&self, chunk: ChunkId) -> ChunkVersion {
        self.store().map_or(ChunkVersion::NONE, |store| store.trimmed(chunk))
    }
    fn cut(&self, chunk: ChunkId) -> CutEpoch {
        self.store().map_or(CutEpoch::NONE, |store| store.cut(chunk))
    }
    fn is_removed(&self, chunk: ChunkId) -> bool {
        self.store().is_some_and(|store| store.is_removed(chunk))
    }
    fn admits(&self, _: SessionId) -> bool {
        true
    }
    fn block_version(&self, chunk: ChunkId, block: BlockIndex) -> ChunkVersion {
        self.store()
            .map_or(ChunkVersion::NONE, |store| store.block_version(chunk, block))
    }
    fn remembered(&self, chunk: ChunkId, id: RequestId) -> Option<ChunkVersion> {
        self.store()?.remembered(chunk, id)
    }
    fn file_end(&self, chain: ChainId, inode: InodeId, from: ChunkIndex) -> Option<(ChunkIndex, u32)> {
        self.store()?.file_end(chain, inode, from)
    }

    fn file_runs(
        &self,
        chain: ChainId,
        inode: InodeId,
        from: (ChunkIndex, BlockIndex),
        wanted: RunsWanted,
    ) -> FileRuns {
        let store = self.store();
        store.map_or_else(FileRuns::default, |store| store.file_runs(chain, inode, from, wanted))
    }
    fn chunks_of(&self, chain: ChainId, inode: InodeId, from: ChunkIndex) -> Vec<ChunkId> {
        self.store()
            .map_or_else(Vec::new, |store| store.chunks_of(chain, inode, from))
    }
    fn list(&self, chain: ChainId) -> Vec<(ChunkId, ChunkVersion)> {
        self.store()
            .map_or_else(Vec::new, |store| store.list(chain, None, usize::MAX))
    }
    fn gone(&self, chain: ChainId, limit: usize) -> Vec<(ChunkId, ChunkVersion)> {
        self.store().map_or_else(Vec::new, |store| store.gone(chain, limit))
    }
    fn has_room(&self, bytes: u64) -> bool {
        let Some(store) = self.store() else { return false };
        let usage = store.usage();
        usage.used_bytes + bytes + reserve_bytes(usage.total_bytes) <= usage.total_bytes
    }
    fn is_full(&self, member: StorageId) -> bool {
        self.0.full.contains(&member)
    }
}

/// A process that has to start anew is up again after about twice this.
const STARTS_ANEW_MS: u64 = 50;

impl World {
    /// The one place where cores are driven.
    pub(crate) fn feed(&mut self, at: usize, chain: ChainId, input: Input) {
        let now_ms = self.now;
        let Some(mut member) = self.nodes[at].chains.remove(&chain) else {
            return;
        };
        let node = &self.nodes[at];
        let ms = node.clock_ms(now_ms);
        let now = Now {
            ms,
            wall: Timestamp::from_nanos(i64::try_from(ms).unwrap_or(i64::MAX).saturating_mul(1_000_000)),
            lease: node.lease.is_good_at(ms) && node.fault.is_none(),
            faulty: node.fault.is_some(),
        };
        let effects = member.core.step(now, input, &View(node));
        self.nodes[at].chains.insert(chain, member);
        let incarnation = self.nodes[at].incarnation;
        // Answers and messages first, as the real shell has it; store work after them.
        let (store_work, first): (Vec<_>, Vec<_>) = effects.into_iter().partition(|effect| {
            matches!(
                effect,
                Effect::Apply { .. }
                    | Effect::Sync { .. }
                    | Effect::Install { .. }
                    | Effect::Drop { .. }
                    | Effect::Forget { .. }
            )
        });
        for effect in first {
            self.carry(at, chain, effect);
        }
        for effect in store_work {
            let node = &self.nodes[at];
            let slow = if node.slow.1 > now_ms { node.slow.0 } else { 0 };
            let after = match &effect {
                Effect::Apply { after_ms, .. } if self.calm => *after_ms,
                Effect::Apply { after_ms, .. } => *after_ms + self.random.below(self.schedule.character.apply_ms + 1),
                Effect::Sync { .. } => 1 + self.random.below(5),
                _ => 0,
            } + slow
                + self.random.below(2);
            self.after(
                after,
                Event::Carry {
                    node: at,
                    incarnation,
                    chain,
                    effect: Box::new(effect),
                },
            );
        }
    }

    pub(crate) fn carry(&mut self, at: usize, chain: ChainId, effect: Effect) {
        let incarnation = self.nodes[at].incarnation;
        let from_call = |what| Call::Node {
            node: at,
            incarnation,
            chain,
            what,
        };
        match effect {
            Effect::Answer { waiter, answer } => self.core_answered(at, chain, waiter, answer),
            Effect::Forward {
                ticket,
                to,
                request,
                payload,
                after_ms,
            } => {
                self.call(
                    at,
                    to,
                    Request::Forward(request, payload),
                    from_call(For::Forward(ticket)),
                    after_ms,
                );
            }
            Effect::ForwardSync {
                ticket,
                to,
                epoch,
                level,
                forget,
                after_ms,
            } => {
                self.call(
                    at,
                    to,
                    Request::ForwardSync {
                        chain,
                        epoch,
                        level,
                        forget,
                    },
                    from_call(For::Told(ticket)),
                    after_ms,
                );
            }
            Effect::TellStable {
                ticket,
                to,
                epoch,
                chunks,
            } => {
                self.call(
                    at,
                    to,
                    Request::Stable { chain, epoch, chunks },
                    from_call(For::Told(ticket)),
                    0,
                );
            }
            Effect::ReportSettled { epoch } => {
                if let Some(member) = self.nodes[at].chains.get_mut(&chain) {
                    member.settled = epoch;
                }
            }
            Effect::ReportRest { epoch, rest } => {
                if let Some(member) = self.nodes[at].chains.get_mut(&chain) {
                    member.rest = member.rest.max((epoch, rest));
                }
            }
            Effect::FetchInventory {
                ticket,
                to,
                epoch,
                after,
                after_ms,
            } => {
                self.call(
                    at,
                    to,
                    Request::Inventory { chain, epoch, after },
                    from_call(For::Inventory(ticket)),
                    after_ms,
                );
            }
            Effect::DropChunks {
                ticket,
                to,
                epoch,
                chunks,
                after_ms,
            } => {
                self.call(
                    at,
                    to,
                    Request::Drop { chain, epoch, chunks },
                    from_call(For::Dropped(ticket)),
                    after_ms,
                );
            }
            Effect::CopyChunk {
                ticket,
                to,
                epoch,
                chunk,
                after_ms,
            } => {
                let copy = self.id();
                self.copies.insert(
                    copy,
                    Copy {
                        node: at,
                        incarnation,
                        chain,
                        ticket,
                        to,
                        epoch,
                        chunk,
                        version: ChunkVersion::NONE,
                        first: 0,
                        begun: false,
                        finished: false,
                        ready: None,
                        size_bytes: 0,
                    },
                );
                let delay = after_ms + self.random.below(3);
                self.after(
                    delay,
                    Event::CopyOn {
                        node: at,
                        incarnation,
                        copy,
                    },
                );
            }
            Effect::ReportResyncDone { to, epoch } => {
                self.after(
                    1,
                    Event::Resynced {
                        node: at,
                        incarnation,
                        chain,
                        to,
                        epoch,
                    },
                );
            }
            Effect::List { waiter, after, limit } => self.list(at, chain, waiter, after, limit),
            Effect::Fault(reason) => self.set_fault(at, &format!("chain {chain}: {reason}")),
            Effect::Apply {
                ticket,
                chunk,
                version,
                origin,
                mutation,
                payload,
                ..
            } => {
                self.watch_apply(at, chunk, version, origin.id, &mutation, &payload);
                let Some(store) = &self.nodes[at].store else { return };
                let before = store.version(chunk);
                let result = store
                    .apply(chain, chunk, version, origin, &mutation, &payload)
                    .map_err(Error::from);
                if result.is_ok() {
                    let value = payload.get(..8).and_then(|bytes| bytes.try_into().ok());
                    let value = value.map_or(0, u64::from_le_bytes);
                    let content = self.watch.content_after(chunk, before, &mutation, value);
                    if let Some(Err(detail)) = content.map(|content| self.watch.content_is(chunk, version, content)) {
                        self.fail("I5", format!("storage-{}: {detail}", at + 1));
                    }
                    self.watch_cut(at, chunk, (before, version), origin);
                }
                self.note(at, "apply", chunk.inode.0, version.epoch.0 << 32 | version.counter);
                self.feed(at, chain, Input::Applied { ticket, result });
            }
            Effect::Sync { ticket } => {
                let Some(store) = &self.nodes[at].store else { return };
                let result = store.sync().map_err(Error::from);
                self.note(at, "sync", u64::from(result.is_ok()), 0);
                self.feed(at, chain, Input::Synced { ticket, result });
            }
            Effect::Install {
                ticket,
                chunk,
                version,
                part,
                payload,
            } => {
                let Some(store) = &self.nodes[at].store else { return };
                let install = || {
                    if part.begin {
                        store.install_begin(chain, chunk)?;
                    }
                    if !part.runs.is_empty() {
                        store.install_part(chunk, &part.runs, &payload)?;
                    }
                    if part.done {
                        store.install_finish(chain, chunk, version, &part.memory)?;
                    }
                    Ok::<(), StoreError>(())
                };
                let result = install().map_err(Error::from);
                self.note(at, "install", chunk.inode.0, version.counter);
                if part.done && result.is_ok() {
                    self.nodes[at].rotten.remove(&chunk);
                }
                self.feed(at, chain, Input::InstallDone { ticket, result });
            }
            Effect::Drop { ticket, chunks } => {
                let Some(store) = &self.nodes[at].store else { return };
                let result = chunks
                    .iter()
                    .try_for_each(|&chunk| store.drop_chunk(chain, chunk))
                    .map_err(Error::from);
                self.note(at, "drop", chunks.len() as u64, 0);
                self.feed(at, chain, Input::InstallDone { ticket, result });
            }
            Effect::Forget { ticket, chunks } => {
                let Some(store) = &self.nodes[at].store else { return };
                let result = store.forget_gone(chain, &chunks).map_err(Error::from);
                self.note(at, "forget", chunks.len() as u64, 0);
                if !chunks.is_empty() {
                    self.fired(Kind::Forgotten);
                    self.forgotten.extend(chunks.iter().map(|&(chunk, _)| chunk));
                }
                self.feed(at, chain, Input::Forgotten { ticket, result });
            }
        }
    }

    pub(crate) fn set_fault(&mut self, at: usize, reason: &str) {
        if self.nodes[at].fault.is_none() {
            self.nodes[at].fault = Some(reason.to_owned());
            self.note(at, "fault", 0, 0);
            if self.trace.in_words() {
                self.trace.say(format!("             storage-{}: {reason}", at + 1));
            }
            let store = self.nodes[at].store.as_ref();
            let stopped = store.is_some_and(|store| store.fault().is_some() && store.condemned().is_none());
            if stopped {
                // It lacked something, and starts anew by itself, as its service has it.
                let incarnation = self.nodes[at].incarnation;
                let down_ms = STARTS_ANEW_MS;
                let undo = Undo::Replace {
                    node: at,
                    incarnation,
                    down_ms,
                };
                return self.after(STARTS_ANEW_MS, Event::Undo(undo));
            }
            let mut others = (0..NODES).filter(|&other| other != at);
            if self.nodes[at].sync_fails && others.any(|other| self.is_condemned(other)) {
                self.fired(Kind::CondemnedInARow);
            }
            // "two histories" is the core's own assertion.
            if self.schedule.character.victim != Some(at) && !self.nodes[at].sync_fails {
                self.fail("I5", format!("storage-{} gave up: {reason}", at + 1));
            }
        }
    }

    fn core_answered(&mut self, at: usize, chain: ChainId, waiter: WaiterId, answer: Result<Answer, Error>) {
        let Some(member) = self.nodes[at].chains.get_mut(&chain) else {
            return;
        };
        let Some(waiting) = member.waiting.remove(&waiter) else {
            return;
        };
        let incarnation = self.nodes[at].incarnation;
        match waiting {
            Waiting::Answer { call, from, request } => {
                if answer.is_ok() {
                    self.watch_answer(at, &request);
                }
                let result = answer.map(|answer| match answer {
                    Answer::Response(StorageResponse::Mutated { version }) => Reply::Version(version),
                    Answer::Response(StorageResponse::FileEnd(end)) => Reply::FileEnd(end),
                    Answer::Response(StorageResponse::RangeRemoved { chunks }) => Reply::Removed(chunks),
                    Answer::Response(StorageResponse::Forwarded { stable }) => Reply::Forwarded(stable),
                    _ => Reply::Done,
                });
                self.reply(at, call, from, result);
            }
            Waiting::Admitted { call, from, request } => match answer {
                Ok(_) => {
                    let delay = self.random.below(4);
                    // Told apart by the call: where its answer goes is kept with the request.
                    self.nodes[at].chains.entry(chain).and_modify(|member| {
                        member.waiting.insert(
                            waiter,
                            Waiting::Admitted {
                                call,
                                from,
                                request: Rc::clone(&request),
                            },
                        );
                    });
                    self.after(
                        delay,
                        Event::ReadNow {
                            node: at,
                            incarnation,
                            chain,
                            call: waiter.0,
                            request,
                        },
                    );
                }
                Err(error) => self.reply(at, call, from, Err(error)),
            },
            Waiting::Read {
                call,
                from,
                request,
                data,
            } => {
                if answer.is_ok() {
                    self.watch_answer(at, &request);
                }
                self.reply(at, call, from, answer.map(|_| Reply::Data(data)));
            }
        }
    }

    pub(crate) fn read_now(&mut self, at: usize, chain: ChainId, waiter: u64, request: Rc<Request>) {
        let Some(store) = self.nodes[at].store.clone() else {
            return;
        };
        let Some(member) = self.nodes[at].chains.get_mut(&chain) else {
            return;
        };
        let Some(Waiting::Admitted { call, from, .. }) = member.waiting.remove(&WaiterId(waiter)) else {
            return;
        };
        let Request::Read {
            epoch,
            chunk,
            level,
            not_before,
            ..
        } = *request
        else {
            return;
        };
        match store.read(chunk, BlockIndex(0), BLOCKS) {
            Ok(data) => {
                let version = data.version;
                let Some(waiter) = self.waiter(
                    at,
                    chain,
                    Waiting::Read {
                        call,
                        from,
                        request,
                        data,
                    },
                ) else {
                    return;
                };
                self.feed(
                    at,
                    chain,
                    Input::ReadDone {
                        epoch,
                        waiter,
                        read: read_of(chunk, level, not_before),
                        version,
                    },
                );
            }
            Err(error) => {
                let error = Error::from(error);
                if error.code == ErrorCode::Corrupt {
                    self.nodes[at].rotten.insert(chunk);
                }
                self.reply(at, call, from, Err(error));
            }
        }
    }

    /// The chunk's newest counter, wherever it is.
    pub(crate) fn newest(&self, chunk: ChunkId) -> u64 {
        self.nodes
            .iter()
            .filter_map(|node| node.store.as_ref())
            .map(|store| store.version(chunk).counter)
            .max()
            .unwrap_or(0)
    }

    pub(crate) const fn client_place() -> usize {
        OTHERS
    }
}
