//! Sending acknowledged writes again that a chain lost, or that somebody cut.
//!
//! A write is acknowledged when enough replicas have it in memory; only fsync waits for their disks. If they all lose their power in
//! between, the chain comes back without it and refuses the sync that vouches for it. And what lies beyond the end of a file is
//! cut when another mount takes it for garbage. This mount still has the bytes of what is not synced or not committed, up to a
//! bound, so it sends them again. NFS clients keep unstable writes for the same reason (RFC 1813, section 3.3.21).
//!
//! Invariants: all kept writes of a chain are merged first, the newest bytes on top, so their order is kept. What somebody else
//! wrote after them is never written over: a block is sent again on the condition of the version that was found, and only if that
//! is no newer than this mount's own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dfs_common::planted::{self, Bug};
use dfs_common::units::BLOCK_SIZE_BYTES;
use dfs_common::wire::storage::BlockCondition;
use dfs_common::{BlockIndex, ChainId, ChunkId, ChunkIndex, ChunkVersion, CutEpoch, Error, ErrorCode, Result};
use tokio::sync::SemaphorePermit;
use tokio::time::Instant;

use super::acknowledged::{Entry, WrittenRun};
use super::blocks::{PlannedRun, plan};
use super::fate::{Fate, FoundBlock, Touched, fate, merged, touched, uncovered};
use super::fsync::VOUCHES_FOR_NOTHING;
use super::state::FileState;
use super::writer::timeout;
use crate::mount::Mount;
use crate::routing::KeptSpans;

/// Kept writes of one chain that are to be there.
struct Replay<'a> {
    file: &'a FileState,
    chain: ChainId,
    touched: BTreeMap<(ChunkIndex, BlockIndex), Touched>,
    spans: KeptSpans,
    /// The file's bytes before this have outlived all cuts since they were acknowledged.
    uncut_to: u64,
    /// The epoch in which they are sent.
    cut: CutEpoch,
    deadline: Instant,
}

impl Mount {
    /// After `refusal`, of a sync: makes what this file has unsynced on the chain durable after all; or the refusal, if not all of it
    /// is still here.
    pub(super) async fn write_again(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        chain: ChainId,
        refusal: Error,
        deadline: Instant,
    ) -> Result<()> {
        tracing::warn!(
            inode = file.inode.0,
            "{refusal}: what is missing of it is written again"
        );
        loop {
            let alone = self.alone_with_chunks(file, deadline).await?;
            // What this pass reads and writes is answered in this epoch or a later one, so the sync after it vouches for that.
            let epoch = self.chunks.routing().current().chain(chain).map(|info| info.epoch);
            self.refresh(file, deadline).await?;
            let (owing, entries, cut) = {
                let inner = file.inner.lock();
                let Some(owing) = inner.unsynced.on(chain) else {
                    // Somebody else who waited for the same has done it.
                    return Ok(());
                };
                (owing, inner.kept.on(chain), inner.cut())
            };
            // Nobody knows what the cut will leave. It may be this mount's own.
            if cut.is_cutting() {
                drop(alone);
                let _turn = self.turn(file, "fsync", deadline).await?;
                self.outwait_cut(file, deadline).await?;
                continue;
            }
            if owing.is_told() {
                // Somebody else who waited for the same has told of the loss.
                let (level, whose) = (file.write_level, (file.session, file.inode));
                return self
                    .chunks
                    .sync(chain, level, VOUCHES_FOR_NOTHING, whose, deadline)
                    .await;
            }
            let gaps = file.inner.lock().unsynced.has_gaps(chain);
            let (Some(epoch), false) = (epoch, gaps) else {
                return Err(refusal);
            };
            match self.replay(file, chain, entries, cut, deadline).await {
                // Cut once more meanwhile.
                Err(error) if error.code == ErrorCode::StaleCut && Instant::now() < deadline => continue,
                outcome => outcome?,
            }
            if planted::is(Bug::ReplayUnsynced) {
                return Ok(());
            }
            let (level, whose) = (file.write_level, (file.session, file.inode));
            match self.chunks.sync(chain, level, (epoch, level), whose, deadline).await {
                // Lost once more meanwhile, or the epoch was an old one.
                Err(error) if error.code == ErrorCode::UnsyncedLost && Instant::now() < deadline => {}
                outcome => return outcome,
            }
        }
    }

    /// Makes sure that what is not committed outlived every cut since it was acknowledged, so that its length can be told in the
    /// present epoch. What did not is sent again; what can not be is an error of the file. While a cut is under way nobody knows what
    /// it will leave, and nobody can tell a length. To be called with the commit's turn.
    pub(super) async fn confirm_kept(self: &Arc<Self>, file: &Arc<FileState>, deadline: Instant) -> Result<()> {
        let is_done = || {
            let mut inner = file.inner.lock();
            inner.confirm_untouched();
            inner.cut().is_cutting() || inner.kept.uncommitted_before(inner.cut()).is_empty()
        };
        if is_done() {
            return Ok(());
        }
        let _alone = self.alone_with_chunks(file, deadline).await?;
        while !is_done() {
            let (by_chain, cut) = {
                let inner = file.inner.lock();
                let cut = inner.cut();
                let chains = inner.kept.uncommitted_before(cut).into_iter().map(|entry| entry.chain);
                let chains: BTreeSet<ChainId> = chains.collect();
                // With what lies on top of them.
                let all = chains.into_iter().map(|chain| (chain, inner.kept.on(chain)));
                (all.collect::<Vec<_>>(), cut)
            };
            for (chain, entries) in by_chain {
                let numbers: Vec<u64> = entries.iter().map(|entry| entry.number).collect();
                match self.replay(file, chain, entries, cut, deadline).await {
                    Ok(()) => file.inner.lock().kept.confirmed(&numbers, cut),
                    Err(error) if error.code == ErrorCode::StaleCut && Instant::now() < deadline => {
                        self.refresh(file, deadline).await?;
                    }
                    Err(error) if error.code == ErrorCode::UnsyncedLost => {
                        tracing::error!(inode = file.inode.0, "{error}");
                        let mut inner = file.inner.lock();
                        inner.kept.lost(&numbers);
                        inner.tail = None;
                        inner.generation += 1;
                        inner.errors.record(error);
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Nothing of this mount is on its way to the file's chunks while this is held.
    async fn alone_with_chunks<'a>(&self, file: &'a FileState, deadline: Instant) -> Result<SemaphorePermit<'a>> {
        let all = u32::try_from(self.bounds.file_in_flight_bytes).unwrap_or(u32::MAX);
        timeout(deadline, file.in_flight.acquire_many(all), || {
            format!(
                "inode {}: the requests on their way to its chunks do not end",
                file.inode
            )
        })
        .await?
        .map_err(|_| Error::new(ErrorCode::Cancelled, "the mount is closing"))
    }

    async fn replay(
        &self,
        file: &FileState,
        chain: ChainId,
        entries: Vec<Entry>,
        cut: CutEpoch,
        deadline: Instant,
    ) -> Result<()> {
        let entries = self.drop_truncated(file, chain, entries, deadline).await?;
        let entries = entries.as_slice();
        let uncut_to = file.inner.lock().uncut_to(entries.iter());
        let uncut = |chunk, block| uncut_bytes(file, uncut_to, chunk, block);
        let spans = self.chunks.routing().kept_spans(chain, file.write_level);
        let replay = Replay {
            file,
            chain,
            touched: touched(entries, uncut, &spans),
            spans,
            uncut_to,
            cut,
            deadline,
        };
        let Some(slabs) = merged(entries, file.inner.lock().dirty.slab_size_bytes) else {
            return self.look_for(&replay, entries).await;
        };
        for slab in slabs.values() {
            for mut run in plan(&file.layout, &slab.extents) {
                while !self.replay_run(&replay, &mut run).await? {
                    if Instant::now() >= deadline {
                        return Err(Error::new(
                            ErrorCode::Timeout,
                            format!(
                                "inode {}: others write to the blocks that are written again",
                                file.inode
                            ),
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// Leaves out what the file was truncated of since it was acknowledged, but for bytes that are still there: they were written
    /// after the truncation to a chunk that did not exist, and so knew nothing of it.
    async fn drop_truncated(
        &self,
        file: &FileState,
        chain: ChainId,
        entries: Vec<Entry>,
        deadline: Instant,
    ) -> Result<Vec<Entry>> {
        let (mut gone, mut uncut) = (Vec::new(), Vec::new());
        let cut = file.inner.lock().cut();
        // Newest first: what covered an older write may be gone itself.
        let mut newer: Vec<Entry> = Vec::with_capacity(entries.len());
        for entry in entries.iter().rev() {
            let may_be_cut = !cut.is_cutting() && !file.inner.lock().outlived_cuts(entry);
            if may_be_cut && self.ends_as_written(file, chain, entry, deadline).await? {
                uncut.push(entry.number);
                newer.push(entry.clone());
                continue;
            }
            let since = file.inner.lock().cuts_since(entry.cut);
            // Of cuts that are forgotten nobody knows.
            let length = since.map_or(Some(0), |since| since.truncated_to);
            let mut left = entry.clone();
            if let Some(length) = length.filter(|&length| entry.end > length)
                && !self.outlived((file, chain), (entry, &newer), length, deadline).await?
            {
                // This mount itself may have truncated the file since the list was made.
                let is_known = file
                    .inner
                    .lock()
                    .kept
                    .end_of(entry.number)
                    .is_none_or(|end| end <= length);
                let why = match since {
                    _ if is_known => "",
                    None => "the file was cut too often since to tell why",
                    // Whether it was there or not, the truncation came after it.
                    Some(_) if entry.precedes_cuts => "",
                    Some(_) if self.has_lost(file, chain, (entry, length), deadline).await? => {
                        "they were lost before or after the file was truncated"
                    }
                    Some(_) => "",
                };
                if !why.is_empty() {
                    return Err(Error::new(
                        ErrorCode::UnsyncedLost,
                        format!(
                            "inode {}: written bytes up to {} are not there any more, and {why}",
                            file.inode, entry.end
                        ),
                    ));
                }
                gone.push((entry.number, length));
                left.truncate(length);
            }
            newer.push(left);
        }
        if gone.is_empty() && uncut.is_empty() {
            return Ok(entries);
        }
        let mut inner = file.inner.lock();
        inner.kept.confirmed(&uncut, cut);
        for (number, length) in gone {
            inner.kept.truncated(&[number], length);
        }
        let numbers: BTreeSet<u64> = entries.iter().map(|entry| entry.number).collect();
        let left = inner.kept.on(chain).into_iter();
        Ok(left.filter(|entry| numbers.contains(&entry.number)).collect())
    }

    /// Whether what a write has from `length` on is on the chain, but for what newer ones wrote over it.
    async fn outlived(
        &self,
        (file, chain): (&FileState, ChainId),
        (entry, newer): (&Entry, &[Entry]),
        length: u64,
        deadline: Instant,
    ) -> Result<bool> {
        if self.is_there_beyond(file, chain, entry, length, deadline).await? {
            return Ok(true);
        }
        let Some(bytes) = uncovered(entry, newer, length) else {
            return self.ends_as_written(file, chain, entry, deadline).await;
        };
        for run in plan(&file.layout, &bytes.extents) {
            let chunk = ChunkId::new(file.inode, run.chunk);
            let range = (run.first, run.blocks());
            let found = self.read_blocks(file, chain, chunk, range, deadline).await?;
            // Zeros that were written are no hole.
            let is_in = |(at, (_, base)): (u32, &(ChunkVersion, Vec<u8>))| {
                let block = BlockIndex(run.first.0 + at);
                run.is_in(block, base) && run.reaches(block, base)
            };
            if !(0..).zip(&found).all(is_in) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether a block behind `length` is as this write left it: then no truncation has met it, whatever others wrote to its other blocks.
    async fn is_there_beyond(
        &self,
        file: &FileState,
        chain: ChainId,
        entry: &Entry,
        length: u64,
        deadline: Instant,
    ) -> Result<bool> {
        for run in &entry.runs {
            let chunk = ChunkId::new(file.inode, run.chunk);
            let range = (run.first, run.blocks);
            let block = |at: u32| BlockIndex(run.first.0 + at);
            let start = |at: u32| file.layout.block_start(run.chunk, block(at));
            if start(run.blocks) <= length {
                continue;
            }
            let found = self.read_blocks(file, chain, chunk, range, deadline).await?;
            let mut behind = (0..).zip(&found).filter(|&(at, _)| start(at) >= length);
            if behind.any(|(at, (version, _))| *version == run.version && entry.is_held_by(run, block(at))) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether the chain may have lost what a write has from `length` on, so that no truncation removed it. A truncation leaves its mark on
    /// every chunk that is there, newer than what was written before. So a chunk that is older than the write has seen none since:
    /// it was not there, or lost the write and was not there again, and nobody can tell which of the two came first. Nor can anybody if
    /// the chain came back without what it had in memory, and the chunk was written or cut after that.
    async fn has_lost(
        &self,
        file: &FileState,
        chain: ChainId,
        (entry, length): (&Entry, u64),
        deadline: Instant,
    ) -> Result<bool> {
        for run in &entry.runs {
            let end = BlockIndex(run.first.0 + run.blocks);
            if file.layout.block_start(run.chunk, end) <= length {
                continue;
            }
            let chunk = ChunkId::new(file.inode, run.chunk);
            let whose = (file.session, file.write_level);
            let found = self
                .chunks
                .read_latest(chain, chunk, (run.first, 1), whose, deadline)
                .await?;
            let revived = self.chunks.routing().current().chain(chain).map(|info| info.revived);
            let is_hidden = |revived| revived > run.version.epoch && found.version.epoch >= revived;
            if found.version < run.version || revived.is_none_or(is_hidden) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// `false`: somebody else wrote one of the blocks meanwhile.
    async fn replay_run(&self, replay: &Replay<'_>, run: &mut PlannedRun) -> Result<bool> {
        let &Replay {
            file,
            chain,
            ref touched,
            ref spans,
            uncut_to,
            cut,
            deadline,
        } = replay;
        let chunk = ChunkId::new(file.inode, run.chunk);
        let range = (run.first, run.blocks());
        let found = self.read_blocks(file, chain, chunk, range, deadline).await?;
        let mut missing = Vec::new();
        for (at, (version, base)) in (0_u32..).zip(found) {
            let block = BlockIndex(run.first.0 + at);
            let ours = touched.get(&(run.chunk, block)).copied().unwrap_or_default();
            let found = FoundBlock {
                version,
                length_bytes: base.len(),
                is_whole: run.is_in(block, &base),
                uncut_bytes: uncut_bytes(file, uncut_to, run.chunk, block),
            };
            match fate(found, ours, spans) {
                Fate::There => {}
                Fate::Cut => {
                    let start = file.layout.block_start(run.chunk, block);
                    file.inner.lock().kept.overlay((run.chunk, block, start), &base);
                    run.leave(block, base.len());
                    run.merge(block, &base);
                    missing.push(BlockCondition { block, version });
                }
                Fate::Lost => {
                    run.merge(block, &base);
                    missing.push(BlockCondition { block, version });
                }
                Fate::Mixed => {
                    return Err(Error::new(
                        ErrorCode::UnsyncedLost,
                        format!(
                            "inode {} chunk {} block {block}: written bytes were lost before they were synced or committed, and \
                             others have written to the block since",
                            file.inode, run.chunk
                        ),
                    ));
                }
            }
        }
        for conditions in missing.chunk_by(|a, b| b.block.0 == a.block.0 + 1) {
            let part = run.part(conditions.iter().map(|condition| condition.block));
            let sent = self.send_run(file, chain, &part, (conditions.to_vec(), cut), true, deadline);
            match sent.await {
                Ok(written) => {
                    let rewritten = WrittenRun {
                        chunk: run.chunk,
                        first: part.first,
                        blocks: part.blocks(),
                        version: written.version,
                        // What they held is in it.
                        bases: Vec::new(),
                    };
                    let mut inner = file.inner.lock();
                    inner.kept.rewritten(&rewritten);
                    // What was read ahead meanwhile lacks it, and so does what the kernel has; other mounts hear of it as of any
                    // write.
                    inner.generation += 1;
                    inner.own_change = None;
                    inner.rewrites += 1;
                    inner.owe(self.now_ms());
                }
                Err(error) if error.code == ErrorCode::ConditionFailed => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Whether every block is as the writes left it, some of whose bytes are not here any more, or
    /// was written on top of them. A block that a cut may have touched has to be just as one of
    /// them left it: there is nothing to compare it with.
    async fn look_for(&self, replay: &Replay<'_>, entries: &[Entry]) -> Result<()> {
        let file = replay.file;
        for entry in entries {
            for run in &entry.runs {
                let chunk = ChunkId::new(file.inode, run.chunk);
                let range = (run.first, run.blocks);
                let found = self
                    .read_blocks(file, replay.chain, chunk, range, replay.deadline)
                    .await?;
                for (at, (version, _)) in (0..).zip(found) {
                    let block = BlockIndex(run.first.0 + at);
                    let ours = replay.touched.get(&(run.chunk, block)).copied().unwrap_or_default();
                    let is_there = if uncut_bytes(file, replay.uncut_to, run.chunk, block) < BLOCK_SIZE_BYTES {
                        entry.written_as(run.chunk, block) == Some(version)
                    } else {
                        ours.is_newest(version) || ours.is_under(version, &replay.spans)
                    };
                    if !is_there {
                        return Err(Error::new(
                            ErrorCode::UnsyncedLost,
                            format!(
                                "inode {} chunk {} block {block}: others have cut it or written to it before this mount told the \
                                 length or synced, and what it wrote is too much to be kept",
                                file.inode, run.chunk
                            ),
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether the last block of a write is just as the write left it. Then no cut has met the
    /// write: a cut removes everything from some offset on, so it would have met that block.
    async fn ends_as_written(
        &self,
        file: &FileState,
        chain: ChainId,
        entry: &Entry,
        deadline: Instant,
    ) -> Result<bool> {
        let Some((index, block)) = entry.last_block() else {
            return Ok(true);
        };
        let chunk = ChunkId::new(file.inode, index);
        let found = self.read_blocks(file, chain, chunk, (block, 1), deadline).await?;
        let version = found.first().map(|(version, _)| *version);
        Ok(version == entry.written_as(index, block))
    }
}

/// How many bytes of a block lie before this offset.
fn uncut_bytes(file: &FileState, uncut_to: u64, chunk: ChunkIndex, block: BlockIndex) -> usize {
    let uncut = uncut_to.saturating_sub(file.layout.block_start(chunk, block));
    uncut.min(BLOCK_SIZE_BYTES as u64) as usize
}
