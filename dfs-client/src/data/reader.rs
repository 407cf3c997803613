//! Reads: blocks from any serving replica, opened here, with what is dirty laid over them; and read-ahead.
//!
//! Nothing that was read is kept but what was fetched ahead, for at most [`SEGMENT_AGE`], and that is void after any write
//! or truncate of this mount, and as soon as attributes tell of a change by another.
//!
//! Invariant: a read that began after the file was opened anew returns nothing that was fetched before an open that found
//! the file changed. The kernel's page cache is one for all handles, so what any of them reads has to be as new as the
//! newest open promises (close-to-open).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dfs_common::units::{BLOCK_SIZE_BYTES, MAX_IO_SIZE_BYTES};
use dfs_common::wire::storage::BlockRun;
use dfs_common::{BlockIndex, ChainId, ChunkId, ChunkVersion, Error, ErrorCode, Level, Result, SessionId, StorageId};
use dfs_crypto::block::BlockCipher;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::dirty::covers;
use super::state::FileState;
use super::truncate::LIVE_WRITER;
use super::window::{ReadWindow, SEGMENT_SIZE_BYTES};
use crate::mount::{Handle, Mount};

/// How old read-ahead may get: bounds how stale a read can be while another mount writes.
const SEGMENT_AGE: Duration = Duration::from_secs(1);

/// A commit that takes this much less than what others wait for is overdue.
const OVERDUE_MARGIN_MS: u64 = 500;

type Fetched = watch::Receiver<Option<Result<Bytes>>>;

struct Segment {
    data: Fetched,
    at: Instant,
    /// Its part of the mount's budget.
    _room: OwnedSemaphorePermit,
}

/// Read-ahead of one handle.
#[derive(Default)]
pub(crate) struct Ahead {
    window: ReadWindow,
    segments: BTreeMap<u64, Segment>,
    generation: u64,
}

/// What the state of a file was when a read began.
#[derive(Clone, Copy)]
struct Moment {
    generation: u64,
    foreign: u64,
}

impl Ahead {
    pub(crate) fn clear(&mut self) {
        self.segments.clear();
        self.window.reset();
    }
}

/// Who reads, with which key, and at which level.
#[derive(Clone, Copy)]
pub(crate) struct Reading<'a> {
    pub(crate) cipher: &'a BlockCipher,
    pub(crate) level: Level,
    pub(crate) session: SessionId,
}

/// A part of a read within one chunk, at most one I/O.
#[derive(Clone, Copy, Debug)]
struct Part {
    chunk: ChunkId,
    /// In the chunk.
    offset: usize,
    length: usize,
}

impl Mount {
    pub(crate) async fn read(
        self: &Arc<Self>,
        handle: &Handle,
        offset: u64,
        size: u32,
        deadline: Instant,
    ) -> Result<Bytes> {
        let file = &handle.file;
        if !handle.mode.read {
            return Err(Error::new(
                ErrorCode::BadHandle,
                format!("inode {} is not open for reading", file.inode),
            ));
        }
        if size == 0 {
            return Ok(Bytes::new());
        }
        if handle.mode.direct {
            // As a local disk does: whoever reads past the buffer must not see what others can not see yet, and may lose.
            self.drain(file, deadline).await?;
        }
        self.confirm_read(file, deadline).await?;
        let mut length = file.inner.lock().length();
        if offset >= length {
            // Another mount may have made it longer since.
            let fresh = self.fetch_attributes(file.inode, deadline).await?;
            let mut inner = file.inner.lock();
            inner.learn(&fresh);
            length = inner.length();
            if offset >= length {
                return Ok(Bytes::new());
            }
        }
        let size = u64::from(size).min(length - offset);
        if handle.mode.direct {
            return self.fetch(file, offset, size, deadline).await.map(Bytes::from);
        }
        let (pieces, moment) = {
            let inner = file.inner.lock();
            let moment = Moment {
                generation: inner.generation,
                foreign: inner.foreign,
            };
            let overdue_ms = self
                .now_ms()
                .saturating_sub(LIVE_WRITER.as_millis() as u64 - OVERDUE_MARGIN_MS);
            let mut pieces = inner.kept.overdue_pieces(offset, size, overdue_ms);
            pieces.extend(inner.dirty.pieces(offset, size));
            (pieces, moment)
        };
        if covers(&pieces, offset, size) {
            return Ok(overlay(vec![0; size as usize], offset, &pieces));
        }
        let base = self.base(handle, offset, size, length, moment, deadline).await?;
        if pieces.is_empty() {
            return Ok(base);
        }
        Ok(overlay(base.into(), offset, &pieces))
    }

    /// Where another mount has cut the file, this mount's own writes are made sure of before they are read.
    async fn confirm_read(self: &Arc<Self>, file: &Arc<FileState>, deadline: Instant) -> Result<()> {
        let is_sure = {
            let inner = file.inner.lock();
            inner.kept.uncommitted_before(inner.cut()).is_empty()
        };
        if is_sure {
            return Ok(());
        }
        let _turn = self.turn(file, "read", deadline).await?;
        self.confirm_kept(file, deadline).await
    }

    /// What the chains have, by way of read-ahead when the handle reads in order.
    async fn base(
        self: &Arc<Self>,
        handle: &Handle,
        offset: u64,
        size: u64,
        length: u64,
        moment: Moment,
        deadline: Instant,
    ) -> Result<Bytes> {
        let file = &handle.file;
        let wanted = self.look_ahead(handle, offset, size, length, moment.generation);
        let Some(wanted) = wanted else {
            return self.fetch(file, offset, size, deadline).await.map(Bytes::from);
        };
        let mut out = Vec::new();
        let mut at = offset;
        let end = offset + size;
        for (index, segment) in wanted {
            let start = index * SEGMENT_SIZE_BYTES;
            let upto = (start + SEGMENT_SIZE_BYTES).min(end);
            let part = match segment {
                Some(data) => ahead(data, deadline).await,
                None => None,
            };
            // It may have been fetched before another mount's close that this one has heard of while it was waited for.
            let part = part.filter(|_| file.inner.lock().foreign == moment.foreign);
            let range = (at - start) as usize..(upto - start) as usize;
            match part.filter(|bytes| bytes.len() >= range.end) {
                Some(bytes) if at == offset && upto == end => return Ok(bytes.slice(range)),
                Some(bytes) => out.extend_from_slice(&bytes[range]),
                None => out.extend(self.fetch(file, at, upto - at, deadline).await?),
            }
            at = upto;
        }
        Ok(Bytes::from(out))
    }

    /// Starts what is to be read ahead; the segments that this read needs, `None` where there was no room. `None`: the
    /// handle does not read in order.
    fn look_ahead(
        self: &Arc<Self>,
        handle: &Handle,
        offset: u64,
        size: u64,
        length: u64,
        generation: u64,
    ) -> Option<Vec<(u64, Option<Fetched>)>> {
        let mut ahead = handle.ahead.lock();
        // A read that began before it rose finds newer segments, which will do.
        if ahead.generation < generation {
            ahead.segments.clear();
            ahead.generation = generation;
        }
        let range = ahead.window.on_read(offset, size, length);
        let Some(range) = range else {
            ahead.segments.clear();
            return None;
        };
        let passed = ahead.window.passed();
        let now = Instant::now();
        ahead
            .segments
            .retain(|&index, segment| index >= passed && now.duration_since(segment.at) < SEGMENT_AGE);
        let demanded = (offset + size).div_ceil(SEGMENT_SIZE_BYTES);
        for index in range {
            if ahead.segments.contains_key(&index) {
                continue;
            }
            let Ok(room) = Arc::clone(&self.ahead_room).try_acquire_many_owned(SEGMENT_SIZE_BYTES as u32) else {
                break;
            };
            let start = index * SEGMENT_SIZE_BYTES;
            let size = SEGMENT_SIZE_BYTES.min(length.saturating_sub(start));
            if size == 0 {
                break;
            }
            let (sender, data) = watch::channel(None);
            let (mount, file) = (Arc::clone(self), Arc::clone(&handle.file));
            tokio::spawn(async move {
                let deadline = mount.deadline();
                let gone = sender.closed();
                tokio::select! {
                    biased;
                    fetched = mount.fetch(&file, start, size, deadline) => {
                        sender.send_replace(Some(fetched.map(Bytes::from)));
                    }
                    // Nobody wants it any more.
                    () = gone => {}
                }
            });
            ahead.segments.insert(
                index,
                Segment {
                    data,
                    at: now,
                    _room: room,
                },
            );
        }
        let needed = offset / SEGMENT_SIZE_BYTES..demanded;
        Some(
            needed
                .map(|index| (index, ahead.segments.get(&index).map(|segment| segment.data.clone())))
                .collect(),
        )
    }

    /// Bytes of a range as the chains have them, zeros in holes.
    async fn fetch(
        self: &Arc<Self>,
        file: &Arc<FileState>,
        offset: u64,
        size: u64,
        deadline: Instant,
    ) -> Result<Vec<u8>> {
        let mut parts = Vec::new();
        for span in file.layout.spans(offset, size) {
            let mut at = span.offset_bytes as usize;
            let end = at + span.length_bytes as usize;
            while at < end {
                // Cut where blocks start, so that no part reaches over an I/O's size after rounding.
                let stop = ((at / BLOCK_SIZE_BYTES) * BLOCK_SIZE_BYTES + MAX_IO_SIZE_BYTES).min(end);
                parts.push(Part {
                    chunk: ChunkId::new(file.inode, span.index),
                    offset: at,
                    length: stop - at,
                });
                at = stop;
            }
        }
        if let [part] = parts.as_slice() {
            return self.fetch_part(file, *part, deadline).await;
        }
        let mut tasks = JoinSet::new();
        for (position, part) in parts.iter().copied().enumerate() {
            let (mount, file) = (Arc::clone(self), Arc::clone(file));
            tasks.spawn(async move { (position, mount.fetch_part(&file, part, deadline).await) });
        }
        let mut fetched: Vec<Vec<u8>> = vec![Vec::new(); parts.len()];
        while let Some(done) = tasks.join_next().await {
            let (position, bytes) =
                done.map_err(|error| Error::new(ErrorCode::Internal, format!("a read's task died: {error}")))?;
            fetched[position] = bytes?;
        }
        Ok(fetched.concat())
    }

    async fn fetch_part(&self, file: &FileState, part: Part, deadline: Instant) -> Result<Vec<u8>> {
        let _room = super::writer::timeout(deadline, self.in_flight.acquire_many(part.length as u32), || {
            format!("read of inode {}: the requests before it do not end", file.inode)
        })
        .await?;
        let first = part.offset / BLOCK_SIZE_BYTES;
        let blocks = (part.offset + part.length).div_ceil(BLOCK_SIZE_BYTES) - first;
        let table = self.chunks.routing().current();
        let chain = file.chain_of(&table, part.chunk.index)?;
        let seen = self.chunks.seen(part.chunk);
        let (runs, mut plain) = self
            .open_blocks(
                file.reading(),
                chain,
                part.chunk,
                (BlockIndex(first as u32), blocks as u32),
                deadline,
            )
            .await?;
        let is_news = |run: &BlockRun| seen.is_none_or(|seen| run.version > seen);
        if runs.iter().any(is_news) && self.session.may_grow(file.inode).is_none() {
            // An fsync covers what its caller may have read, though nobody has said that it is there.
            file.inner.lock().unvouched += 1;
        }
        let from = part.offset - first * BLOCK_SIZE_BYTES;
        plain.truncate(from + part.length);
        if from > 0 {
            plain.drain(..from);
        }
        Ok(plain)
    }

    /// One block with its version, without padding: the base of a half-written one.
    pub(crate) async fn read_block(
        &self,
        file: &FileState,
        chain: ChainId,
        chunk: ChunkId,
        block: BlockIndex,
        deadline: Instant,
    ) -> Result<(ChunkVersion, Vec<u8>)> {
        let mut found = self.read_blocks(file, chain, chunk, (block, 1), deadline).await?;
        Ok(found.pop().unwrap_or((ChunkVersion::NONE, Vec::new())))
    }

    /// Blocks as the head has them, each with its version and without padding; at most one I/O.
    pub(crate) async fn read_blocks(
        &self,
        file: &FileState,
        chain: ChainId,
        chunk: ChunkId,
        range: (BlockIndex, u32),
        deadline: Instant,
    ) -> Result<Vec<(ChunkVersion, Vec<u8>)>> {
        let latest = self
            .chunks
            .read_latest(chain, chunk, range, (file.session, file.write_level), deadline)
            .await
            .and_then(|found| {
                let plain = open(&file.cipher, chunk, range, &found.runs, &found.payload)?;
                Ok((found.runs, plain))
            });
        let (runs, plain) = match latest {
            // Damaged at the head: another's will do, since the condition of the write finds out if it is older.
            Err(error) if matches!(error.code, ErrorCode::Corrupt | ErrorCode::Internal) => {
                self.open_blocks(file.reading(), chain, chunk, range, deadline).await?
            }
            latest => latest?,
        };
        let (first, count) = range;
        let mut found = vec![(ChunkVersion::NONE, Vec::new()); count as usize];
        for run in runs.iter().flat_map(|run| run.each_block()) {
            let at = (run.first.0 - first.0) as usize;
            let content = &plain[at * BLOCK_SIZE_BYTES..][..run.last_length_bytes as usize];
            found[at] = (run.version, content.to_vec());
        }
        Ok(found)
    }

    /// Reads and opens blocks; a replica whose blocks do not open is passed over for another. The key is that of the file they were
    /// sealed for, which need not be the inode they are stored under.
    pub(crate) async fn open_blocks(
        &self,
        reading: Reading<'_>,
        chain: ChainId,
        chunk: ChunkId,
        (first, blocks): (BlockIndex, u32),
        deadline: Instant,
    ) -> Result<(Vec<BlockRun>, Vec<u8>)> {
        let mut avoid: Vec<StorageId> = Vec::new();
        loop {
            let found = self
                .chunks
                .read(
                    chain,
                    chunk,
                    (first, blocks),
                    (reading.session, reading.level),
                    &avoid,
                    deadline,
                )
                .await?;
            let node = found.node;
            match open(reading.cipher, chunk, (first, blocks), &found.runs, &found.payload) {
                Ok(plain) => return Ok((found.runs, plain)),
                Err(error) => {
                    tracing::warn!(inode = chunk.inode.0, chunk = chunk.index.0, "storage-{node}: {error}");
                    if avoid.contains(&node) {
                        return Err(error.context(format!("inode {} chunk {}", chunk.inode, chunk.index)));
                    }
                    avoid.push(node);
                }
            }
        }
    }
}

pub(crate) fn open(
    cipher: &BlockCipher,
    chunk: ChunkId,
    (first, blocks): (BlockIndex, u32),
    runs: &[BlockRun],
    payload: &[u8],
) -> Result<Vec<u8>> {
    let bad = || Error::new(ErrorCode::Corrupt, "the answer to a read does not add up");
    let mut plain = vec![0; blocks as usize * BLOCK_SIZE_BYTES];
    let mut at = 0_usize;
    let mut next = u64::from(first.0);
    let limit = next + u64::from(blocks);
    for run in runs {
        let sane = run.blocks > 0
            && (1..=BLOCK_SIZE_BYTES as u32).contains(&run.last_length_bytes)
            && u64::from(run.first.0) >= next
            && u64::from(run.first.0) + u64::from(run.blocks) <= limit;
        if !sane {
            return Err(bad());
        }
        next = u64::from(run.first.0) + u64::from(run.blocks);
        let sealed = payload.get(at..at + run.payload_size_bytes()).ok_or_else(bad)?;
        at += run.payload_size_bytes();
        let start = (run.first.0 - first.0) as usize * BLOCK_SIZE_BYTES;
        let target = plain.get_mut(start..start + run.data_size_bytes()).ok_or_else(bad)?;
        cipher
            .open(
                chunk.index,
                run.first,
                run.last_length_bytes,
                run.blocks,
                sealed,
                target,
            )
            .map_err(Error::from)?;
    }
    if at == payload.len() { Ok(plain) } else { Err(bad()) }
}

fn overlay(mut base: Vec<u8>, offset: u64, pieces: &[(u64, Vec<u8>)]) -> Bytes {
    for (start, bytes) in pieces {
        let at = (start - offset) as usize;
        base[at..at + bytes.len()].copy_from_slice(bytes);
    }
    Bytes::from(base)
}

/// A segment's bytes when they are there; an error sends the caller to the chain itself.
async fn ahead(mut data: Fetched, deadline: Instant) -> Option<Bytes> {
    let ready = tokio::time::timeout_at(deadline, data.wait_for(Option::is_some))
        .await
        .ok()?
        .ok()?;
    ready.as_ref()?.as_ref().ok().cloned()
}
