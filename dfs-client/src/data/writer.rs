//! Write-behind: from the dirty buffer to the chains; `commit` tells metadata then.
//!
//! Every slab travels in a task of its own, so that a killed process leaves nothing half done. Data is on the chains
//! before metadata hears of it. An error of a late write is kept for the next fsync and close of every handle, its bytes
//! are dropped (as the kernel's page cache does), and the log names inode, offset and cause.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dfs_common::planted::{self, Bug};
use dfs_common::units::{BLOCK_SIZE_BYTES, SEAL_SIZE_BYTES};
use dfs_common::wire::storage::{BlockCondition, Mutation};
use dfs_common::{BlockIndex, ChainId, ChunkId, ChunkIndex, ChunkVersion, CutEpoch, Error, ErrorCode, InodeId, Result};
use tokio::sync::SemaphorePermit;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::acknowledged::{Base, WrittenRun};
use super::blocks::{PlannedRun, plan};
use super::dirty::{Slab, SlabIndex};
use super::kept::MAX_KEPT_BYTES;
use super::state::{Arrival, FileState, Tail};
use crate::chunks::Written as Placed;
use crate::mount::{Handle, Mount};

/// A slab waits this long for more to be written to it before it goes out. With the round of the
/// clock after that, others see a write within half a second.
pub(crate) const FLUSH_AGE_MS: u64 = 300;

/// So much that others may take for garbage, should this mount stand still, is committed before its age.
const COMMIT_BYTES: usize = MAX_KEPT_BYTES / 2;

/// Kept free at the end of a write's time for its error to be told.
const REASON_RESERVE: Duration = Duration::from_millis(250);

/// A run that its chain has acknowledged.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    pub(crate) run: WrittenRun,
    /// The truncation epoch in which it was sent.
    pub(crate) cut: CutEpoch,
    /// Of the mount's acknowledgements.
    pub(crate) number: u64,
}

/// Room for a write in the budgets of its file and of the mount; given back when it is dropped, as by a killed writer.
#[derive(Default)]
struct Room<'a> {
    permits: Vec<SemaphorePermit<'a>>,
}

impl Room<'_> {
    /// This much stays taken until its slab has arrived.
    fn keep(&mut self, size: usize) {
        for permits in &mut self.permits {
            if let Some(kept) = permits.split(size) {
                kept.forget();
            }
        }
    }
}

impl Mount {
    /// Puts a write in the buffer; waits while too much is dirty.
    pub(crate) async fn write(
        self: &Arc<Self>,
        handle: &Handle,
        offset: u64,
        data: &Bytes,
        deadline: Instant,
    ) -> Result<u32> {
        let file = &handle.file;
        if !handle.mode.write {
            return Err(Error::new(
                ErrorCode::BadHandle,
                format!("inode {} is not open for writing", file.inode),
            ));
        }
        if data.is_empty() {
            return Ok(0);
        }
        // Once for each late error: there may be room again. fsync and close say it too.
        if let Some(error) = file.inner.lock().errors.peek(&mut handle.seen_by_writes.lock())
            && error.code == ErrorCode::NoSpace
        {
            return Err(error);
        }
        // Its handle may be closed meanwhile, if the process is killed; the state must not be forgotten before it is done.
        let _user = self.using(file);
        let mut room = self.reserve(file, data.len(), deadline).await?;
        loop {
            let shared = timeout(deadline, file.gate.read(), || {
                format!("write to inode {}: a truncate of it does not end", file.inode)
            })
            .await?;
            // Others may have appended, or truncated the file, since this mount last heard of it.
            if handle.mode.append && !self.knows_end(file) {
                self.refresh(file, deadline).await?;
            }
            if let Some(grown) = self.put(file, handle.mode.append, offset, data)? {
                // What the buffer grew by is given back when it has arrived.
                room.keep(grown);
                return Ok(data.len() as u32);
            }
            drop(shared);
            self.clear_gap(file, offset, deadline).await?;
        }
    }

    /// By how much the buffer grew; `None`: what lies between the end and the write has to be looked at first.
    fn put(self: &Arc<Self>, file: &Arc<FileState>, append: bool, offset: u64, data: &[u8]) -> Result<Option<usize>> {
        let mut inner = file.inner.lock();
        let length = inner.length();
        let at = if append { length } else { offset };
        let end = at.saturating_add(data.len() as u64);
        if end > file.layout.max_length_bytes() {
            return Err(too_big(file, end));
        }
        if at > length && inner.cleared_gap != Some((length, at)) {
            drop(inner);
            if !self.knows_end(file) {
                return Ok(None);
            }
            inner = file.inner.lock();
        }
        inner.cleared_gap = None;
        inner.made_sparse |= at / BLOCK_SIZE_BYTES as u64 > length.div_ceil(BLOCK_SIZE_BYTES as u64);
        let now_ms = self.now_ms();
        let grown = inner.dirty.write(at, data, now_ms);
        inner.note_write(self.session.file_clock.now());
        inner.generation += 1;
        let up_to = inner.drain_to;
        let ready = inner.dirty.ready(now_ms, u64::MAX, up_to);
        let taken: Vec<_> = ready
            .into_iter()
            .filter_map(|index| inner.dirty.take(index).map(|slab| (index, slab)))
            .collect();
        drop(inner);
        for (index, slab) in taken {
            self.start(file, index, slab, false);
        }
        Ok(Some(grown))
    }

    async fn reserve<'a>(
        self: &'a Arc<Self>,
        file: &'a Arc<FileState>,
        size: usize,
        deadline: Instant,
    ) -> Result<Room<'a>> {
        let mut held = Room::default();
        for (room, whole_mount) in [(&file.dirty_room, false), (&self.dirty_room, true)] {
            let permits = if let Ok(permits) = room.try_acquire_many(size as u32) {
                permits
            } else {
                // Nothing would leave by itself before its age: push everything out.
                if whole_mount {
                    self.unsettled().iter().for_each(|other| self.kick(other, 0));
                } else {
                    self.kick(file, 0);
                }
                timeout(deadline, room.acquire_many(size as u32), || {
                    format!(
                        "write to inode {}: too much is dirty and the chains do not take it",
                        file.inode
                    )
                })
                .await?
                .map_err(|_| Error::new(ErrorCode::Cancelled, "the mount is closing"))?
            };
            held.permits.push(permits);
        }
        Ok(held)
    }

    fn give_back(&self, file: &FileState, size: usize) {
        file.dirty_room.add_permits(size);
        self.dirty_room.add_permits(size);
    }

    /// Starts every slab that is complete, wanted by a drain, or older than this.
    pub(crate) fn kick(self: &Arc<Self>, file: &Arc<FileState>, age_ms: u64) {
        let taken: Vec<_> = {
            let mut inner = file.inner.lock();
            let up_to = inner.drain_to;
            let ready = inner.dirty.ready(self.now_ms(), age_ms, up_to);
            ready
                .into_iter()
                .filter_map(|index| inner.dirty.take(index).map(|slab| (index, slab)))
                .collect()
        };
        for (index, slab) in taken {
            self.start(file, index, slab, false);
        }
    }

    pub(super) fn start(self: &Arc<Self>, file: &Arc<FileState>, index: SlabIndex, slab: Arc<Slab>, sync: bool) {
        let (mount, file) = (Arc::clone(self), Arc::clone(file));
        tokio::spawn(async move { mount.carry(&file, index, slab, sync).await });
    }

    /// Brings a taken slab to its chain, and then what was written to it meanwhile if somebody waits for that.
    pub(super) async fn carry(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        index: SlabIndex,
        slab: Arc<Slab>,
        mut sync: bool,
    ) {
        let mut next = Some(slab);
        while let Some(slab) = next {
            // Before that of whoever waits for it, who so hears why and not only that it took too long.
            let deadline = self.deadline() - (self.bounds.deadline / 10).min(REASON_RESERVE);
            let sent_ms = self.now_ms();
            let outcome = self.bring_past_garbage(file, &slab, sync, deadline).await;
            let now_ms = self.now_ms();
            let alone = self.session.may_grow(file.inode).is_some();
            next = {
                let chain = file.chain_of(&self.chunks.routing().current(), file.layout.chunk_of(slab.offset()));
                let mut inner = file.inner.lock();
                inner.dirty.done(index);
                inner.generation += 1;
                let waiting = inner.kept.uncommitted_bytes();
                match outcome.and_then(|written| Ok((written, chain?))) {
                    Ok((written, chain)) => {
                        let arrival = Arrival {
                            chain,
                            slab: Arc::clone(&slab),
                            written,
                            sync,
                            alone,
                            sent_ms,
                        };
                        inner.arrived(arrival, &self.kept_room);
                        let much = waiting < COMMIT_BYTES && inner.kept.uncommitted_bytes() >= COMMIT_BYTES;
                        let due = inner.is_commit_due(now_ms) && file.commit_turn.try_lock().is_ok();
                        if due || (much && !alone) {
                            self.commit_soon(file);
                        }
                    }
                    Err(error) => {
                        let offset = slab.offset();
                        let error = error.context(format!(
                            "inode {}: {} written bytes from offset {offset} are lost",
                            file.inode, slab.size_bytes
                        ));
                        tracing::error!(inode = file.inode.0, offset, "{error}");
                        inner.tail = None;
                        // It may have arrived all the same.
                        inner.unclean_end = true;
                        inner.errors.record(error);
                    }
                }
                let up_to = inner.drain_to;
                let again = inner.dirty.ready(now_ms, FLUSH_AGE_MS, up_to).contains(&index);
                if again { inner.dirty.take(index) } else { None }
            };
            sync = false;
            self.give_back(file, slab.size_bytes);
            file.tick();
        }
    }

    /// What others left beyond the end of the file must not become a part of it with the rest of a
    /// block, and while a cut is under way nobody knows what it will leave.
    async fn bring_past_garbage(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        slab: &Slab,
        sync: bool,
        deadline: Instant,
    ) -> Result<Vec<Written>> {
        loop {
            match self.bring(file, slab, sync, deadline).await {
                Err(error) if error.code == ErrorCode::StaleCut && Instant::now() < deadline => {
                    let _turn = self.turn(file, "write", deadline).await?;
                    if file.inner.lock().cut().is_cutting() {
                        self.outwait_cut(file, deadline).await?;
                    } else {
                        self.clear_end(file, deadline).await?;
                    }
                }
                outcome => return outcome,
            }
        }
    }

    async fn bring(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        slab: &Slab,
        sync: bool,
        deadline: Instant,
    ) -> Result<Vec<Written>> {
        let permits = slab.size_bytes as u32;
        let no_room = || format!("write to inode {}: the requests before it do not end", file.inode);
        let _file_room = timeout(deadline, file.in_flight.acquire_many(permits), no_room).await?;
        let _room = timeout(deadline, self.in_flight.acquire_many(permits), no_room).await?;
        self.session.leased(deadline).await?;
        self.check_session(file)?;
        let mut runs = plan(&file.layout, &slab.extents);
        if runs.len() == 1 {
            return match runs.pop() {
                Some(run) => self
                    .write_run(file, run, sync, deadline)
                    .await
                    .map(|written| vec![written]),
                None => Ok(Vec::new()),
            };
        }
        let mut tasks = JoinSet::new();
        for run in runs {
            let (mount, file) = (Arc::clone(self), Arc::clone(file));
            tasks.spawn(async move { mount.write_run(&file, run, sync, deadline).await });
        }
        join_all(tasks).await
    }

    /// One run of blocks: base of half-written blocks, seal, send; anew when another writer was there, or the file was cut.
    async fn write_run(&self, file: &FileState, mut run: PlannedRun, sync: bool, deadline: Instant) -> Result<Written> {
        let table = self.chunks.routing().current();
        let chain = file.chain_of(&table, run.chunk)?;
        let mut guess = true;
        let mut attempt = 0;
        loop {
            let (conditions, bases) = self.merge_bases(file, chain, &mut run, guess, deadline).await?;
            let cut = file.inner.lock().cut();
            if cut.is_cutting() {
                return Err(Error::new(
                    ErrorCode::StaleCut,
                    format!("inode {}: another mount truncates it", file.inode),
                ));
            }
            if !sync {
                self.note_start(file, chain);
            }
            let sent = self
                .send_run(file, chain, &run, (conditions.clone(), cut), sync, deadline)
                .await;
            let sent = sent.or_else(|error| match error.code {
                ErrorCode::StaleCut if planted::is(Bug::StaleCutIgnored) => Ok(Placed::default()),
                _ => Err(error),
            });
            match sent {
                Ok(written) => {
                    let number = if sync {
                        self.next_number()
                    } else {
                        self.note_acknowledged(file, chain, written.epoch)
                    };
                    note_tail(file, &run, written.version);
                    // Only now: the chunk has seen no cut that this mount does not know of.
                    let spans = self.chunks.routing().kept_spans(chain, file.write_level);
                    let mut inner = file.inner.lock();
                    for (condition, base) in conditions.iter().zip(&bases) {
                        inner.found(
                            &file.layout,
                            (chain, run.chunk, condition.block),
                            condition.version,
                            base,
                            &spans,
                        );
                    }
                    drop(inner);
                    let bases = conditions.iter().zip(&bases).map(|(condition, base)| Base {
                        block: condition.block,
                        version: condition.version,
                        length_bytes: base.len(),
                    });
                    return Ok(Written {
                        run: WrittenRun {
                            chunk: run.chunk,
                            first: run.first,
                            blocks: run.blocks(),
                            version: written.version,
                            bases: bases.collect(),
                        },
                        cut,
                        number,
                    });
                }
                // Another mount wrote one of the blocks since its base was read: read again, merge, write anew.
                Err(error) if error.code == ErrorCode::ConditionFailed && Instant::now() < deadline => {}
                // Another mount has cut the file.
                Err(error) if error.code == ErrorCode::StaleCut && Instant::now() < deadline => {
                    self.refresh(file, deadline).await?;
                }
                Err(error) => return Err(error),
            }
            guess = false;
            attempt += 1;
            tokio::time::sleep(crate::retry::pause(attempt) / 8).await;
        }
    }

    /// Fills in what the writer did not give of half-written blocks; the conditions under which that is right, and what was filled in.
    async fn merge_bases(
        &self,
        file: &FileState,
        chain: ChainId,
        run: &mut PlannedRun,
        guess: bool,
        deadline: Instant,
    ) -> Result<(Vec<BlockCondition>, Vec<Vec<u8>>)> {
        let chunk = ChunkId::new(file.inode, run.chunk);
        let mut conditions = Vec::with_capacity(run.partial.len());
        let mut bases = Vec::with_capacity(run.partial.len());
        let partial: Vec<BlockIndex> = run.partial.keys().copied().collect();
        for block in partial {
            let (version, base) = self.base_of(file, chain, chunk, block, guess, deadline).await?;
            self.check_within(file, (run.chunk, block), base.len(), deadline)
                .await?;
            run.merge(block, &base);
            conditions.push(BlockCondition { block, version });
            bases.push(base);
        }
        Ok((conditions, bases))
    }

    /// Whether the file reaches as far as a block that was found; else it has what somebody left beyond the end.
    async fn check_within(
        &self,
        file: &FileState,
        (index, block): (ChunkIndex, BlockIndex),
        length: usize,
        deadline: Instant,
    ) -> Result<()> {
        let end = file.layout.block_start(index, block) + length as u64;
        if length == 0 || end <= file.inner.lock().stable_length() {
            return Ok(());
        }
        self.refresh(file, deadline).await?;
        if end <= file.inner.lock().stable_length() {
            return Ok(());
        }
        Err(Error::new(
            ErrorCode::StaleCut,
            format!(
                "inode {} chunk {index} block {block}: another mount has written beyond the end of the file and not said so yet",
                file.inode
            ),
        ))
    }

    /// Seals a run and brings it to its chain, if its blocks are at the versions that `conditions` name.
    pub(super) async fn send_run(
        &self,
        file: &FileState,
        chain: ChainId,
        run: &PlannedRun,
        (conditions, cut): (Vec<BlockCondition>, CutEpoch),
        sync: bool,
        deadline: Instant,
    ) -> Result<Placed> {
        let mutation = Mutation::Write {
            first: run.first,
            blocks: run.blocks(),
            last_length_bytes: run.last_length_bytes(),
            conditions: if planted::is(Bug::ConditionDropped) {
                Vec::new()
            } else {
                conditions
            },
        };
        let mut sealed = Vec::with_capacity(run.data.len() + run.blocks() as usize * SEAL_SIZE_BYTES);
        file.cipher
            .seal(run.chunk, run.first, &run.data, &self.nonces, &mut sealed)
            .map_err(Error::from)?;
        let chunk = ChunkId::new(file.inode, run.chunk);
        let how = (file.write_level, sync);
        self.chunks
            .mutate(
                chain,
                chunk,
                (file.session, cut),
                how,
                &mutation,
                Bytes::from(sealed),
                deadline,
            )
            .await
    }

    /// What a half-written block holds now, and its version. `guess`: what this mount knows will do, since the condition
    /// finds out if it is wrong.
    async fn base_of(
        &self,
        file: &FileState,
        chain: ChainId,
        chunk: ChunkId,
        block: BlockIndex,
        guess: bool,
        deadline: Instant,
    ) -> Result<(ChunkVersion, Vec<u8>)> {
        if guess {
            let inner = file.inner.lock();
            let start = file.layout.block_start(chunk.index, block);
            // Beyond the end it is of no use: the file was truncated since.
            if let Some(tail) = &inner.tail
                && tail.chunk == chunk.index
                && tail.block == block
                && start + tail.content.len() as u64 <= inner.stable_length()
            {
                return Ok((tail.version, tail.content.clone()));
            }
            if start >= inner.stable_length() {
                return Ok((ChunkVersion::NONE, Vec::new()));
            }
        }
        self.read_block(file, chain, chunk, block, deadline).await
    }

    /// Waits until every write made before this call is on the chains or was given up.
    pub(crate) async fn drain(self: &Arc<Self>, file: &Arc<FileState>, deadline: Instant) -> Result<()> {
        let target = {
            let mut inner = file.inner.lock();
            let target = inner.dirty.last_write();
            inner.drain_to = inner.drain_to.max(target);
            target
        };
        self.kick(file, FLUSH_AGE_MS);
        self.arrived(file, target, deadline).await
    }

    pub(super) async fn arrived(&self, file: &FileState, target: u64, deadline: Instant) -> Result<()> {
        let mut progress = file.progress.subscribe();
        loop {
            if file
                .inner
                .lock()
                .dirty
                .oldest_write()
                .is_none_or(|oldest| oldest > target)
            {
                return Ok(());
            }
            let waited = timeout(deadline, progress.changed(), || {
                format!(
                    "inode {}: its last writes are still on their way to the chains",
                    file.inode
                )
            })
            .await?;
            if waited.is_err() {
                return Err(Error::new(ErrorCode::Cancelled, "the mount is closing"));
            }
        }
    }
}

/// Remembers a short last block as the base of the next append.
fn note_tail(file: &FileState, run: &PlannedRun, version: ChunkVersion) {
    let last = BlockIndex(run.first.0 + run.blocks().saturating_sub(1));
    let content = run.block(last);
    let short = content.len() < BLOCK_SIZE_BYTES;
    let mut inner = file.inner.lock();
    if short {
        inner.tail = Some(Tail {
            chunk: run.chunk,
            block: last,
            version,
            content: content.to_vec(),
        });
    } else if inner.tail.as_ref().is_some_and(|tail| {
        tail.chunk == run.chunk && (run.first.0..run.first.0 + run.blocks()).contains(&tail.block.0)
    }) {
        inner.tail = None;
    }
}

pub(crate) fn too_big(file: &FileState, end: u64) -> Error {
    Error::new(
        ErrorCode::FileTooBig,
        format!(
            "inode {}: byte {end} is beyond the largest file of its layout ({})",
            file.inode,
            file.layout.max_length_bytes()
        ),
    )
}

/// All of them, even after one failed; the first error.
pub(crate) async fn join_all<T: 'static>(mut tasks: JoinSet<Result<T>>) -> Result<Vec<T>> {
    let mut all = Ok(Vec::with_capacity(tasks.len()));
    while let Some(done) = tasks.join_next().await {
        let outcome =
            done.unwrap_or_else(|error| Err(Error::new(ErrorCode::Internal, format!("a task died: {error}"))));
        match (&mut all, outcome) {
            (Ok(all), Ok(outcome)) => all.push(outcome),
            (Ok(_), Err(error)) => all = Err(error),
            (Err(_), _) => {}
        }
    }
    all
}

/// Awaits until the deadline; past it an error and a line in the log that say what was waited for.
pub(crate) async fn timeout<T>(
    deadline: Instant,
    future: impl Future<Output = T>,
    what: impl FnOnce() -> String,
) -> Result<T> {
    tokio::time::timeout_at(deadline, future).await.map_err(|_| {
        let detail = format!("{}; gave up at the deadline", what());
        tracing::warn!("{detail}");
        Error::new(ErrorCode::Timeout, detail)
    })
}

/// Inode of a set of attributes, for messages.
pub(crate) fn unexpected_change(inode: InodeId) -> Error {
    Error::new(
        ErrorCode::BadMessage,
        format!("the change of inode {inode} was answered with something else; are all programs of one version?"),
    )
}
