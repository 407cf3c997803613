//! Checkpoints and compaction, a bounded step at a time.
//!
//! A segment is emptied by copying its live blocks to the log's end (`Data`) and then saying, in one `State` record a chunk, where the whole
//! chunk now is. That record also replaces every older record of its chunk, so nothing in the emptied segment counts any
//! more, not even for a rebuild without checkpoint. Only after a sync of all that does the segment's header say
//! `Free`, and only when no reader holds it any more. A crash at any point leaves the old blocks, or both, never none.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dfs_common::wire::storage::BlockRun;
use dfs_common::{ChainId, ChunkId, ChunkVersion, DiskCall, Meaning, Scarce};

use super::checkpoint::{self, CHECKPOINT_FILE, Chunks, SegmentEntry};
use super::error::StoreError;
use super::format::{DATA_START, Kind, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentHeaderRead, Sequence};
use super::index::{Effect, Extent, Sealed, SegmentFile};
use super::log::{Draft, FreeSegment, Log, RESERVE_SEGMENTS, State, Urgency, segment_name};
use super::read::read_extent;
use super::recovery::free_header;
use super::scan::scan;
use super::types::MaintainReport;
use crate::disk::{DiskFile, meaning};

/// A segment is worth emptying when less of it than this lives.
const COMPACT_BELOW_PERCENT: u64 = 50;

/// Dead bytes up to this part of all are left alone: they cost nothing but space, and that is not short.
const DEAD_SLACK_FRACTION: u64 = 50;

/// The log is quiet while less than this part of a segment is written since the last look.
const QUIET_FRACTION: u64 = 16;

/// A store at rest has no more dead bytes than live ones, but for so many segments.
const DEAD_SEGMENTS_AT_REST: u64 = 2;

/// Free segments that a store at rest keeps: these beside the reserve, and one for so many in use.
const READY_SEGMENTS: u32 = 2;
const READY_FRACTION: u32 = 8;

/// Segment files that are removed in one step.
const GIVEN_BACK_AT_ONCE: u32 = 8;

/// A segment is zeroed in pieces of this size.
const ZERO_PIECE_BYTES: usize = 1 << 20;

/// The same when space runs out: then any gain counts.
const COMPACT_BELOW_PERCENT_WHEN_FULL: u64 = 95;

/// Space is short when no more segments than this, beside the reserve, can be begun.
const SHORT_SEGMENTS: u32 = 1;

struct Victim {
    file: Arc<SegmentFile>,
    sealed: Sealed,
    live_bytes: u64,
    /// Space is short: writers may wait for this.
    urgent: bool,
}

/// How background work yields to everybody else; see [`Log::maintain`].
pub(super) type Pace<'a> = &'a dyn Fn(Duration) -> Option<Duration>;

/// How soon a pause ends when it must.
const PAUSE_SLICE: Duration = Duration::from_millis(20);

impl State {
    /// Segments that a store at rest does not need.
    fn surplus(&self) -> u32 {
        let free = self.free.len() as u32;
        let kept = RESERVE_SEGMENTS + READY_SEGMENTS + self.slots.saturating_sub(free) / READY_FRACTION;
        // What a full disk has to say of later is unknown.
        if self.disk_full { 0 } else { free.saturating_sub(kept) }
    }
}

/// An extent and where its blocks were copied to.
struct Moved {
    from: Extent,
    to: Extent,
}

impl Moved {
    /// Where (a part of) the old extent is now.
    fn redirect(&self, extent: &Extent) -> Option<Extent> {
        let same = extent.offset == self.from.offset
            && extent.version == self.from.version
            && extent.first >= self.from.first
            && extent.end() <= self.from.end();
        same.then(|| self.to.cut(extent.first.0, extent.end())).flatten()
    }
}

impl Log {
    /// `pace` says how long to pause after a part of the work that took so long; `None` ends the step. While space is short
    /// there are no pauses.
    pub(super) fn maintain(&self, pace: Pace<'_>) -> Result<MaintainReport, StoreError> {
        let mut quiet = self.maintenance.lock();
        let mut report = MaintainReport::default();
        let (due, appended, slots) = {
            let mut state = self.lock();
            state.check()?;
            // Perhaps somebody made room on the disk.
            state.disk_full = false;
            let due = state.since_checkpoint_bytes >= self.checkpoint_interval_bytes;
            (due, state.appended_bytes, state.slots)
        };
        let bound = u64::from(self.geometry.segment_size_bytes) / QUIET_FRACTION;
        let at_rest = quiet.look(appended, bound) >= self.at_rest_after;
        let empties = at_rest && *quiet.victims.get_or_insert(slots) > 0;
        report.reclaimed_bytes += self.retire()?;
        if due {
            self.write_checkpoint()?;
            report.checkpointed = true;
        } else if let Some(victim) = self.victim(empties)? {
            let sequence = victim.file.sequence;
            report.moved_bytes = victim.live_bytes;
            quiet.victims = quiet.victims.map(|left| left.saturating_sub(1));
            if self.compact(victim, pace, &mut report.rotten)? {
                report.compacted = Some(sequence.0);
            }
            report.reclaimed_bytes += self.retire()?;
        } else if !at_rest || !self.give_back()? {
            self.prepare_segment(pace)?;
        }
        quiet.appended_bytes += self.lock().appended_bytes - appended;
        let next = self.victim(empties)?;
        report.more = next.is_some();
        report.urgent = next.is_some_and(|victim| victim.urgent);
        Ok(report)
    }

    /// One segment ahead of need, so that fewer writers wait for the making of one. If the log is quiet enough, also zeroed: a sync
    /// into written blocks is a third faster than one that must also commit extents. Under a heavy stream the zeros would
    /// cost more than they gain.
    fn prepare_segment(&self, pace: Pace<'_>) -> Result<(), StoreError> {
        let mut state = self.lock();
        let quiet = self.is_quiet(&state);
        let written = std::mem::take(&mut state.since_maintain_bytes);
        let wanted = state.free.len() as u32 <= RESERVE_SEGMENTS && state.slots < state.max_slots;
        if written == 0 || !wanted {
            return Ok(());
        }
        let slot = state.next_slot;
        state.next_slot += 1;
        state.slots += 1;
        drop(state);
        let size = u64::from(self.geometry.segment_size_bytes);
        match self.disk().create(&segment_name(slot), size) {
            Ok(file) => {
                if quiet {
                    self.zero(&*file, pace)?;
                }
                self.lock().free.push_front(FreeSegment { slot, file });
                Ok(())
            }
            Err(error) => match meaning(DiskCall::Name, &error) {
                Meaning::NotNow(scarce) => {
                    if scarce != Scarce::Space {
                        self.note_shortage(scarce, "making a log segment", &error);
                    }
                    let mut state = self.lock();
                    state.slots -= 1;
                    state.disk_full |= scarce == Scarce::Space;
                    Ok(())
                }
                Meaning::Broken => Err(self.poison("making a log segment", &error)),
            },
        }
    }

    /// Removes segment files that a store at rest does not need, so that the disk has their room.
    /// `true`: something was done.
    ///
    /// What their headers say of how far the log was synced stands in a checkpoint before. A file
    /// that is there again after a crash is free as it was.
    fn give_back(&self) -> Result<bool, StoreError> {
        let (surplus, is_covered) = {
            let state = self.lock();
            (state.surplus(), state.checkpointed >= state.published)
        };
        if surplus == 0 || !(is_covered || self.write_checkpoint()?) {
            return Ok(false);
        }
        for _ in 0..surplus.min(GIVEN_BACK_AT_ONCE) {
            let segment = {
                let mut state = self.lock();
                // Writers may have taken some.
                if state.surplus() == 0 {
                    break;
                }
                state.free.pop_back()
            };
            let Some(segment) = segment else { break };
            let doing = "removing a log segment";
            match self.disk().remove(&segment_name(segment.slot)) {
                Ok(()) => self.lock().slots -= 1,
                Err(error) => {
                    let Meaning::NotNow(scarce) = meaning(DiskCall::Name, &error) else {
                        return Err(self.poison(doing, &error));
                    };
                    self.note_shortage(scarce, doing, &error);
                    self.lock().free.push_back(segment);
                    break;
                }
            }
        }
        Ok(true)
    }

    fn is_quiet(&self, state: &State) -> bool {
        state.since_maintain_bytes < u64::from(self.geometry.segment_size_bytes) / QUIET_FRACTION
    }

    /// Writes zeros over a new segment, piece by piece with a sync each: all at once, everybody's next sync waits for all of it. It
    /// ends when writers come to need the segment, or the disk. What is left then is as good, only slower once.
    fn zero(&self, file: &dyn DiskFile, pace: Pace<'_>) -> Result<(), StoreError> {
        let zeros = vec![0; ZERO_PIECE_BYTES];
        let size = self.geometry.segment_size_bytes as usize;
        for offset in (0..size).step_by(ZERO_PIECE_BYTES) {
            let start = Instant::now();
            let piece = &zeros[..ZERO_PIECE_BYTES.min(size - offset)];
            if let Err(error) = file.write_at(offset as u64, &[piece]) {
                if meaning(DiskCall::Write, &error) == Meaning::Broken {
                    return Err(self.poison("zeroing a log segment", &error));
                }
                // Its space was promised all the same.
                self.lock().disk_full |= meaning(DiskCall::Write, &error) == Meaning::NotNow(Scarce::Space);
                break;
            }
            file.sync_data()
                .map_err(|error| self.poison("zeroing a log segment", &error))?;
            let goes_on = self.pause(start.elapsed(), pace) && !self.is_short();
            let state = self.lock();
            if !goes_on || !self.is_quiet(&state) || state.check().is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Pauses as `pace` says after a part that took `took`, unless writers come to need the space. `false`: the step ends.
    fn pause(&self, took: Duration, pace: Pace<'_>) -> bool {
        let mut left = Duration::ZERO;
        if !self.is_short() {
            match pace(took) {
                Some(pause) => left = pause,
                None => return false,
            }
        }
        while !left.is_zero() && !self.is_short() {
            let slice = left.min(PAUSE_SLICE);
            std::thread::sleep(slice);
            left -= slice;
        }
        true
    }

    fn is_short(&self) -> bool {
        self.lock().available() <= RESERVE_SEGMENTS + SHORT_SEGMENTS
    }

    /// The segment with least alive in it, if it is worth the work.
    fn victim(&self, at_rest: bool) -> Result<Option<Victim>, StoreError> {
        let short = self.is_short();
        let state = self.lock();
        let (durable, active) = (state.durable, state.active_sequence());
        let percent = if short {
            COMPACT_BELOW_PERCENT_WHEN_FULL
        } else {
            COMPACT_BELOW_PERCENT
        };
        let in_use = u64::from(state.slots).saturating_sub(state.free.len() as u64)
            * u64::from(self.geometry.segment_size_bytes - DATA_START);
        let mut slack = state.total_bytes(&self.geometry) / DEAD_SLACK_FRACTION;
        drop(state);
        let live = self.index.read().live_bytes();
        if at_rest {
            let segments = DEAD_SEGMENTS_AT_REST * u64::from(self.geometry.segment_size_bytes);
            slack = slack.min(live.max(segments));
        }
        if !short && in_use.saturating_sub(live) <= slack {
            return Ok(None);
        }
        let limit = u64::from(self.geometry.segment_size_bytes - DATA_START) * percent / 100;
        let index = self.index.read();
        let best = index
            .segments
            .iter()
            .filter(|(sequence, segment)| {
                **sequence != active && segment.staged == 0 && !segment.rotten && segment.live_bytes < limit
            })
            .filter_map(|(_, segment)| {
                segment.sealed.map(|sealed| Victim {
                    file: Arc::clone(&segment.file),
                    sealed,
                    live_bytes: segment.live_bytes,
                    urgent: short,
                })
            })
            .min_by_key(|victim| victim.live_bytes);
        drop(index);
        if best.as_ref().is_some_and(|victim| victim.sealed.last > durable) {
            self.sync()?;
        }
        Ok(best)
    }

    fn mark_rotten(&self, sequence: Sequence) {
        if let Some(segment) = self.index.write().segments.get_mut(&sequence) {
            segment.rotten = true;
        }
    }

    /// Chunks that have records in a segment; `None` if it is damaged.
    fn chunks_in(victim: &Victim) -> Result<Option<BTreeMap<ChunkId, ChainId>>, StoreError> {
        let mut bytes = vec![0; victim.sealed.end as usize];
        victim
            .file
            .file
            .read_at(0, &mut bytes)
            .map_err(|error| StoreError::io(format!("reading {}", segment_name(victim.file.slot)), error))?;
        let SegmentHeaderRead::Header(header) = SegmentHeader::decode(&bytes[..SEGMENT_HEADER_BYTES]) else {
            return Ok(None);
        };
        let scanned = scan(&bytes, victim.file.sequence, header.first);
        let whole = scanned.end == victim.sealed.end && scanned.damage.is_empty();
        Ok(whole.then(|| {
            scanned
                .records
                .iter()
                .map(|record| (record.header.chunk, record.header.chain))
                .collect()
        }))
    }

    /// Empties a segment; `false` if it must be left as it is.
    fn compact(&self, victim: Victim, pace: Pace<'_>, rotten: &mut Option<ChunkId>) -> Result<bool, StoreError> {
        let sequence = victim.file.sequence;
        let Some(chunks) = Self::chunks_in(&victim)? else {
            tracing::warn!(
                segment = victim.file.slot,
                "damage found while compacting: the segment is left as it is"
            );
            self.mark_rotten(sequence);
            return Ok(false);
        };
        for (chunk, chain) in chunks {
            let start = Instant::now();
            match self.move_chunk(&victim, chain, chunk) {
                Ok(()) => {}
                Err(StoreError::Corrupt { chunk, block }) => {
                    tracing::warn!(%chunk, %block, segment = victim.file.slot, "rot found while compacting");
                    self.mark_rotten(sequence);
                    *rotten = Some(chunk);
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
            if !self.pause(start.elapsed(), pace) {
                return Ok(false);
            }
        }
        drop(victim);
        self.sync()?;
        let _staging = self.staging.write();
        let mut state = self.lock();
        let mut index = self.index.write();
        let empty = index
            .segments
            .get(&sequence)
            .is_some_and(|segment| segment.live_bytes == 0 && segment.staged == 0);
        if let Some(segment) = empty.then(|| index.segments.remove(&sequence)).flatten() {
            state.retiring.push(segment.file);
        }
        Ok(empty)
    }

    /// After this nothing in the segment counts for the chunk.
    fn move_chunk(&self, victim: &Victim, chain: ChainId, chunk: ChunkId) -> Result<(), StoreError> {
        let file = &victim.file;
        let sequence = file.sequence;
        let here: Vec<Extent> = self.index.read().get(chunk).map_or_else(Vec::new, |entry| {
            let of_segment = |extent: &&Extent| extent.sequence == sequence;
            entry.extents.iter().filter(of_segment).copied().collect()
        });
        let mut moved = Vec::with_capacity(here.len());
        for from in here {
            let run = BlockRun {
                first: from.first,
                blocks: u32::from(from.blocks),
                last_length_bytes: u32::from(from.last_length_bytes),
                version: from.version,
            };
            let mut payload = vec![0; run.payload_size_bytes()];
            read_extent(chunk, &from, file, &mut payload)?;
            let to = self.append_data(chain, chunk, &run, &payload, Urgency::Essential)?;
            moved.push(Moved { from, to });
        }
        let mut lost = None;
        self.append_state(Draft::state(chain, chunk, ChunkVersion::NONE), |draft, state, index| {
            let Some(entry) = index.get(chunk) else {
                // Older records of a forgotten chunk must stay forgotten, and so must what the checkpoint has of it.
                let older =
                    index.segments.range(..sequence).next().is_some() || state.checkpointed < victim.sealed.last;
                draft.kind = Kind::Drop;
                return older.then(|| (Vec::new(), Effect::Drop));
            };
            if entry.base > sequence && entry.extents.iter().all(|extent| extent.sequence != sequence) {
                return None;
            }
            draft.version = entry.version;
            draft.chain = index.chain_of(chunk).unwrap_or(chain);
            let mut entry = entry.clone();
            for extent in entry.extents.iter_mut().filter(|extent| extent.sequence == sequence) {
                match moved.iter().find_map(|moved| moved.redirect(extent)) {
                    Some(to) => *extent = to,
                    None => lost = Some(extent.first),
                }
            }
            if lost.is_some() {
                return None;
            }
            Some((entry.seal_state(), Effect::State(entry)))
        })?;
        match lost {
            None => Ok(()),
            Some(block) => Err(StoreError::Corrupt { chunk, block }),
        }
    }

    /// Gives emptied segments that nobody reads any more back for use.
    fn retire(&self) -> Result<u64, StoreError> {
        let (ready, durable) = {
            let mut state = self.lock();
            let (ready, held): (Vec<_>, Vec<_>) = std::mem::take(&mut state.retiring)
                .into_iter()
                .partition(|file| Arc::strong_count(file) == 1);
            state.retiring = held;
            (ready, state.durable)
        };
        let mut given_back = 0;
        for file in ready {
            let header = free_header(&self.geometry, file.slot, file.sequence, durable).encode();
            let doing = "giving back a log segment";
            let opened = file.file.keep_open(true).map_err(|error| (DiskCall::Name, error));
            let written = opened.and_then(|()| {
                let written = file.file.write_at(0, &[&header]);
                written.map_err(|error| (DiskCall::Write, error))
            });
            let _ = file.file.keep_open(false);
            if let Err((call, error)) = written {
                let Meaning::NotNow(scarce) = meaning(call, &error) else {
                    return Err(self.poison(doing, &error));
                };
                self.note_shortage(scarce, doing, &error);
                self.lock().retiring.push(file);
                continue;
            }
            // What was written keeps it open.
            file.file.sync_data().map_err(|error| self.poison(doing, &error))?;
            let segment = FreeSegment {
                slot: file.slot,
                file: Arc::clone(&file.file),
            };
            self.lock().free.push_front(segment);
            given_back += u64::from(self.geometry.segment_size_bytes);
        }
        Ok(given_back)
    }

    /// Whether the checkpoint on disk could be used. None yet is as good.
    pub(super) fn checkpoint_is_sound(&self) -> Result<bool, StoreError> {
        let _one = self.maintenance.lock();
        match self.disk().read_file(CHECKPOINT_FILE) {
            Ok(bytes) => Ok(checkpoint::decode(&bytes).is_some()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(StoreError::io("reading the checkpoint", error)),
        }
    }

    /// Checkpoint now.
    pub(super) fn checkpoint(&self) -> Result<(), StoreError> {
        let _one = self.maintenance.lock();
        self.write_checkpoint().map(drop)
    }

    /// `false`: there is no room for it.
    fn write_checkpoint(&self) -> Result<bool, StoreError> {
        let (published, replay_from, appended) = {
            let state = self.lock();
            state.check()?;
            (state.published, state.replay_from(), state.since_checkpoint_bytes)
        };
        let mut chunks = Chunks::default();
        while chunks.take(&self.index.read()) {}
        // What was copied may be newer than `published`: it must not be in a checkpoint before it is durable.
        let durable = self.sync()?;
        let next_sequence = Sequence(self.lock().active_sequence().0 + 1);
        let segments = self
            .index
            .read()
            .segments
            .range(..replay_from)
            .filter_map(|(&sequence, segment)| {
                let entry = SegmentEntry {
                    slot: segment.file.slot,
                    sealed: segment.sealed?,
                    rotten: segment.rotten,
                };
                Some((sequence, entry))
            })
            .collect();
        let header = checkpoint::Header {
            cluster: self.geometry.cluster,
            node: self.geometry.node,
            published,
            durable,
            replay_from,
            next_sequence,
        };
        let [front, head, body] = checkpoint::encode(&header, &segments, chunks);
        match self.disk().replace(CHECKPOINT_FILE, &[&front, &head, &body]) {
            Ok(()) => {
                let mut state = self.lock();
                state.checkpointed = published;
                state.since_checkpoint_bytes = state.since_checkpoint_bytes.saturating_sub(appended);
                Ok(true)
            }
            // A cache that does not fit: the log alone is enough.
            Err(error) if meaning(DiskCall::Name, &error) != Meaning::Broken => {
                tracing::warn!(%error, "no checkpoint could be made: the next start reads more of the log");
                self.lock().since_checkpoint_bytes = 0;
                Ok(false)
            }
            Err(error) => Err(self.poison("writing the checkpoint", &error)),
        }
    }
}
