//! Write-behind: from the dirty buffer to the chains; `commit` tells metadata then.
//!
//! Every slab travels in a task of its own, so that a killed process leaves nothing half done. Data is on the chains
//! before metadata hears of it. An error of a late write is kept for the next fsync and close of every handle, its bytes
//! are dropped (as the kernel's page cache does), and the log names inode, offset and cause.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dfs_common::units::SEAL_SIZE_BYTES;
use dfs_common::wire::storage::{BlockCondition, Mutation};
use dfs_common::{BlockIndex, ChainId, ChunkId, ChunkVersion, Error, ErrorCode, InodeId, Result};
use tokio::sync::SemaphorePermit;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::blocks::{PlannedRun, plan};
use super::dirty::{Slab, SlabIndex};
use super::state::{FileState, Tail, Word};
use super::unsynced::Owing;
use crate::chunks::Written;
use crate::mount::{Handle, Mount, wall_clock};

/// A slab that nobody adds to waits this long for more before it goes out.
pub(crate) const FLUSH_AGE_MS: u64 = 500;

/// Kept free at the end of a write's time for its error to be told.
const REASON_RESERVE: Duration = Duration::from_millis(250);

/// Slabs that an fsync sends with the sync flag; with more, one Sync per chain is cheaper.
const MAX_SYNCED_SLABS: usize = 4;

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
        let mut room = self.reserve(file, data.len(), deadline).await?;
        let _shared = timeout(deadline, file.gate.read(), || {
            format!("write to inode {}: a truncate of it does not end", file.inode)
        })
        .await?;
        // What the buffer grew by is given back when it has arrived.
        let grown = self.put(file, handle.mode.append, offset, data)?;
        room.keep(grown);
        Ok(data.len() as u32)
    }

    fn put(self: &Arc<Self>, file: &Arc<FileState>, append: bool, offset: u64, data: &[u8]) -> Result<usize> {
        let mut inner = file.inner.lock();
        let at = if append { inner.length() } else { offset };
        let end = at.saturating_add(data.len() as u64);
        if end > file.layout.max_length_bytes() {
            return Err(too_big(file, end));
        }
        let now_ms = self.now_ms();
        let grown = inner.dirty.write(at, data, now_ms);
        inner.note_write(wall_clock());
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
        Ok(grown)
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

    fn start(self: &Arc<Self>, file: &Arc<FileState>, index: SlabIndex, slab: Arc<Slab>, sync: bool) {
        let (mount, file) = (Arc::clone(self), Arc::clone(file));
        tokio::spawn(async move { mount.carry(&file, index, slab, sync).await });
    }

    /// Brings a taken slab to its chain, and then what was written to it meanwhile if somebody waits for that.
    async fn carry(self: &Arc<Self>, file: &Arc<FileState>, index: SlabIndex, slab: Arc<Slab>, mut sync: bool) {
        let mut next = Some(slab);
        while let Some(slab) = next {
            // Before that of whoever waits for it, who so hears why and not only that it took too long.
            let deadline = self.deadline() - (self.bounds.deadline / 10).min(REASON_RESERVE);
            let outcome = self.bring(file, &slab, sync, deadline).await;
            let now_ms = self.now_ms();
            next = {
                let chain = file.chain_of(&self.chunks.routing().current(), file.layout.chunk_of(slab.offset()));
                let mut inner = file.inner.lock();
                inner.dirty.done(index);
                inner.generation += 1;
                match outcome {
                    Ok(()) => {
                        if !sync && let Ok(chain) = chain {
                            inner.unsynced.keep(chain, Arc::clone(&slab), &self.kept_room);
                        }
                        let end = slab
                            .extents
                            .last_key_value()
                            .map_or(0, |(at, bytes)| at + bytes.len() as u64);
                        inner.owe(end, now_ms);
                    }
                    Err(error) => {
                        let offset = slab.offset();
                        let error = error.context(format!(
                            "inode {}: {} written bytes from offset {offset} are lost",
                            file.inode, slab.size_bytes
                        ));
                        tracing::warn!(inode = file.inode.0, offset, "{error}");
                        inner.tail = None;
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

    async fn bring(self: &Arc<Self>, file: &Arc<FileState>, slab: &Slab, sync: bool, deadline: Instant) -> Result<()> {
        let permits = slab.size_bytes as u32;
        let no_room = || format!("write to inode {}: the requests before it do not end", file.inode);
        let _file_room = timeout(deadline, file.in_flight.acquire_many(permits), no_room).await?;
        let _room = timeout(deadline, self.in_flight.acquire_many(permits), no_room).await?;
        self.check_session(file)?;
        let mut runs = plan(&file.layout, &slab.extents);
        if runs.len() == 1 {
            return match runs.pop() {
                Some(run) => self.write_run(file, run, sync, deadline).await,
                None => Ok(()),
            };
        }
        let mut tasks = JoinSet::new();
        for run in runs {
            let (mount, file) = (Arc::clone(self), Arc::clone(file));
            tasks.spawn(async move { mount.write_run(&file, run, sync, deadline).await });
        }
        join_all(tasks).await
    }

    /// One run of blocks: base of half-written blocks, seal, send; anew when another writer was there.
    async fn write_run(&self, file: &FileState, mut run: PlannedRun, sync: bool, deadline: Instant) -> Result<()> {
        let table = self.chunks.routing().current();
        let chain = file.chain_of(&table, run.chunk)?;
        let chunk = ChunkId::new(file.inode, run.chunk);
        let mut guess = true;
        let mut attempt = 0;
        loop {
            let mut conditions = Vec::with_capacity(run.partial.len());
            let partial: Vec<BlockIndex> = run.partial.keys().copied().collect();
            for block in partial {
                let (version, base) = self.base_of(file, chain, chunk, block, guess, deadline).await?;
                run.merge(block, &base);
                conditions.push(BlockCondition { block, version });
            }
            if !sync {
                file.inner.lock().unsynced.starts(chain);
            }
            let sent = self.send_run(file, chain, &run, conditions, sync, deadline).await;
            match sent {
                Ok(written) => {
                    if !sync {
                        let level = file.write_level;
                        file.inner.lock().unsynced.acknowledged(chain, written.epoch, level);
                    }
                    note_tail(file, &run, written.version);
                    return Ok(());
                }
                // Another mount wrote one of the blocks since its base was read: read again, merge, write anew.
                Err(error) if error.code == ErrorCode::ConditionFailed && Instant::now() < deadline => {
                    guess = false;
                    attempt += 1;
                    tokio::time::sleep(crate::retry::pause(attempt) / 8).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Seals a run and brings it to its chain, if its blocks are at the versions that `conditions` name.
    pub(super) async fn send_run(
        &self,
        file: &FileState,
        chain: ChainId,
        run: &PlannedRun,
        conditions: Vec<BlockCondition>,
        sync: bool,
        deadline: Instant,
    ) -> Result<Written> {
        let mutation = Mutation::Write {
            first: run.first,
            blocks: run.blocks(),
            last_length_bytes: run.last_length_bytes(),
            conditions,
        };
        let mut sealed = Vec::with_capacity(run.data.len() + run.blocks() as usize * SEAL_SIZE_BYTES);
        file.cipher
            .seal(run.chunk, run.first, &run.data, &self.nonces, &mut sealed)
            .map_err(Error::from)?;
        let chunk = ChunkId::new(file.inode, run.chunk);
        let how = (file.write_level, sync);
        let whose = (file.session, file.inner.lock().cut());
        self.chunks
            .mutate(chain, chunk, whose, how, &mutation, Bytes::from(sealed), deadline)
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
            if let Some(tail) = &inner.tail
                && tail.chunk == chunk.index
                && tail.block == block
            {
                return Ok((tail.version, tail.content.clone()));
            }
            let start =
                file.layout.chunk_start(chunk.index) + u64::from(block.0) * dfs_common::units::BLOCK_SIZE_BYTES as u64;
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

    async fn arrived(&self, file: &FileState, target: u64, deadline: Instant) -> Result<()> {
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

    /// Data to every replica, then the chains' disks and the metadata group at the same time. Writes that
    /// need no word to metadata carry the sync flag where that saves a round trip.
    pub(crate) async fn fsync(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        data_only: bool,
        deadline: Instant,
    ) -> Result<()> {
        // Where metadata has to be told as well, that goes on while the disks work; else the write takes the sync along.
        let grows = self.session.may_grow(file.inode);
        let sync = {
            let inner = file.inner.lock();
            let within = inner.length() <= inner.attributes.length_bytes;
            (data_only && within) || inner.may_promise(grows)
        };
        let (target, last) = self.send_all(file, sync);
        match last {
            // The usual small append: carried here, without a task's detour.
            Some((index, slab)) => self.carry(file, index, slab, sync).await,
            None => self.kick(file, FLUSH_AGE_MS),
        }
        self.arrived(file, target, deadline).await?;
        // Only now, since what arrives after a hold was taken is not found.
        let grows = self.session.may_grow(file.inode);
        let (unsynced, promised, longer) = {
            let mut inner = file.inner.lock();
            let promised = inner.promise(grows);
            let longer = inner.stable_length() > inner.attributes.length_bytes;
            (inner.unsynced.all(), promised, longer)
        };
        let told = async {
            let mut growth = None;
            if !promised && (!data_only || longer) {
                let told = self.commit(file, Word::Synced, None, deadline).await?.is_some();
                growth = file.inner.lock().growth.filter(|_| told);
            }
            self.session.settled(deadline).await?;
            file.inner.lock().growth_settled(growth);
            Ok(())
        };
        // The data is on every replica, so metadata may hear of it while their disks work.
        let (synced, told) = tokio::join!(self.sync_chains(file, unsynced, deadline), told);
        self.note_failure(file);
        synced.and(told)
    }

    /// Starts what is dirty. With `sync`, slabs that are alone on a chain without unsynced writes go with the sync flag. If
    /// there is one such slab and nothing else, it is returned to be carried by the caller.
    fn send_all(self: &Arc<Self>, file: &Arc<FileState>, sync: bool) -> (u64, Option<(SlabIndex, Arc<Slab>)>) {
        let table = self.chunks.routing().current();
        let mut inner = file.inner.lock();
        let target = inner.dirty.last_write();
        inner.drain_to = inner.drain_to.max(target);
        let ready = inner.dirty.ready(self.now_ms(), FLUSH_AGE_MS, target);
        if ready.len() > MAX_SYNCED_SLABS {
            return (target, None);
        }
        let taken: Vec<_> = ready
            .into_iter()
            .filter_map(|index| inner.dirty.take(index).map(|slab| (index, slab)))
            .map(|(index, slab)| {
                let offset = slab.offset();
                let chain = file.chain_of(&table, file.layout.chunk_of(offset)).ok();
                (index, slab, chain)
            })
            .collect();
        let mut slabs_of: BTreeMap<Option<ChainId>, usize> = BTreeMap::new();
        for (_, _, chain) in &taken {
            *slabs_of.entry(*chain).or_default() += 1;
        }
        let mut jobs: Vec<_> = taken
            .into_iter()
            .map(|(index, slab, chain)| {
                let alone = slabs_of.get(&chain) == Some(&1) && slab.extents.len() == 1;
                let clean = chain.is_some_and(|chain| !inner.unsynced.contains(chain));
                (index, slab, alone && clean)
            })
            .collect();
        drop(inner);
        if let [(_, _, true)] = jobs.as_slice() {
            return (target, jobs.pop().map(|(index, slab, _)| (index, slab)));
        }
        for (index, slab, fit) in jobs {
            self.start(file, index, slab, fit && sync);
        }
        (target, None)
    }

    async fn sync_chains(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        chains: Vec<(ChainId, Owing)>,
        deadline: Instant,
    ) -> Result<()> {
        let mut tasks = JoinSet::new();
        for (chain, owing) in chains {
            let (mount, file) = (Arc::clone(self), Arc::clone(file));
            tasks.spawn(async move {
                let synced = mount
                    .chunks
                    .sync(
                        chain,
                        file.write_level,
                        owing.since(),
                        (file.session, file.inode),
                        deadline,
                    )
                    .await;
                let synced = match synced {
                    Err(error) if error.code == ErrorCode::UnsyncedLost => {
                        mount.write_again(&file, chain, &owing, error, deadline).await
                    }
                    synced => synced,
                };
                let mut inner = file.inner.lock();
                match synced {
                    Ok(()) => inner.unsynced.synced(chain, &owing),
                    // Told once by every handle, like a write that failed late.
                    Err(error) if error.code == ErrorCode::UnsyncedLost => {
                        tracing::warn!(inode = file.inode.0, "{error}");
                        inner.unsynced.synced(chain, &owing);
                        inner.tail = None;
                        inner.generation += 1;
                        inner.errors.record(error);
                    }
                    Err(error) => return Err(error),
                }
                Ok(())
            });
        }
        join_all(tasks).await
    }
}

/// Remembers a short last block as the base of the next append.
fn note_tail(file: &FileState, run: &PlannedRun, version: ChunkVersion) {
    let last = BlockIndex(run.first.0 + run.blocks().saturating_sub(1));
    let content = run.block(last);
    let short = content.len() < dfs_common::units::BLOCK_SIZE_BYTES;
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
pub(crate) async fn join_all(mut tasks: JoinSet<Result<()>>) -> Result<()> {
    let mut first = Ok(());
    while let Some(done) = tasks.join_next().await {
        let outcome =
            done.unwrap_or_else(|error| Err(Error::new(ErrorCode::Internal, format!("a task died: {error}"))));
        if first.is_ok() {
            first = outcome;
        }
    }
    first
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
