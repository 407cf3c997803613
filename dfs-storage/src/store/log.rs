//! The log: places in segments, writes into them, one order for all, one sync for all who wait.
//!
//! A place (segment, offset, LSN) is reserved under a short lock; bytes are written outside it, several at a time. Records are
//! *published* to the index strictly in LSN order, and [`Log::append`] returns only when its own is: so all that was
//! answered is a prefix of the log without holes, and a crash can only ever cut off its end. What was synced is a
//! prefix of that. Any write or sync that the medium failed poisons the log for good: after one, nobody knows what is on it. What
//! has only run out is waited for (see `trouble`).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use dfs_common::planted::{self, Bug};
use dfs_common::wire::storage::Origin;
use dfs_common::{
    BlockIndex, ChainId, ChunkId, ChunkVersion, ClusterId, DiskCall, Meaning, Scarce, StorageId, StoreId,
};
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

use super::error::StoreError;
use super::format::{
    DATA_START, Kind, Lsn, RECORD_ALIGN_BYTES, RecordHeader, SegmentHeader, SegmentState, Sequence, record_length_bytes,
};
use super::index::{Effect, Extent, Index, Publication, Sealed, Segment, SegmentFile};
use super::quiet::Quiet;
use super::recovery::write_synced;
use super::trouble::{Fault, Shortage};
use super::types::StoreOptions;
use crate::disk::{Disk, DiskFile, meaning};

/// Segments that only removing, truncating and compaction may begin, so that a full store can always be emptied.
pub(super) const RESERVE_SEGMENTS: u32 = 2;

/// File whose presence says that an earlier run saw an I/O error.
pub(super) const POISON_FILE: &str = "poisoned";

/// What may use the last segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Urgency {
    /// Adds data: answered `NoSpace` while there is still the reserve.
    Data,
    /// Frees space, or is needed to.
    Essential,
}

/// A record to be appended; `blocks`, `first` and `last_length_bytes` as in [`RecordHeader`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Draft {
    pub(super) kind: Kind,
    pub(super) chain: ChainId,
    pub(super) chunk: ChunkId,
    pub(super) version: ChunkVersion,
    pub(super) origin: Origin,
    pub(super) first: BlockIndex,
    pub(super) blocks: u32,
    pub(super) last_length_bytes: u32,
    pub(super) urgency: Urgency,
}

struct Pending {
    done: Option<Publication>,
}

/// A segment that holds bytes which no sync has covered yet.
struct Dirty {
    file: Arc<SegmentFile>,
    /// Last record in it, once nothing more is appended.
    last: Option<Lsn>,
}

/// A segment ready to be begun.
pub(super) struct FreeSegment {
    pub(super) slot: u32,
    pub(super) file: Arc<dyn DiskFile>,
}

/// Blocks that came in for a chunk's new copy.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) chain: ChainId,
    pub(super) extents: BTreeMap<u32, Extent>,
}

pub(super) struct State {
    active: Arc<SegmentFile>,
    offset: u32,
    /// First LSN in the active segment, or of the oldest pending record's segment: where a replay must begin.
    next: Lsn,
    pub(super) published: Lsn,
    pub(super) durable: Lsn,
    pending: VecDeque<Pending>,
    /// Segment of each pending record, oldest first.
    pending_sequences: VecDeque<Sequence>,
    pending_chunks: HashMap<ChunkId, (u32, Option<ChunkVersion>)>,
    /// Nobody else may reserve for this chunk: its whole state is being written.
    frozen: Option<ChunkId>,
    dirty: Vec<Dirty>,
    syncing: bool,
    pub(super) free: VecDeque<FreeSegment>,
    /// Emptied segments that a reader may still hold.
    pub(super) retiring: Vec<Arc<SegmentFile>>,
    /// Segment files that exist.
    pub(super) slots: u32,
    /// As many as the capacity allows.
    pub(super) max_slots: u32,
    pub(super) next_slot: u32,
    next_sequence: Sequence,
    pub(super) fault: Option<Fault>,
    /// The disk itself was full when a segment was to be made.
    pub(super) disk_full: bool,
    pub(super) since_checkpoint_bytes: u64,
    /// Last record that the checkpoint on disk is sure to know of.
    pub(super) checkpointed: Lsn,
    pub(super) since_maintain_bytes: u64,
    /// Since the store was opened.
    pub(super) appended_bytes: u64,
    /// What was appended since the last sync began, about: what is being written at that moment may be on either side.
    pub(super) unsynced_bytes: u64,
    pub(super) staged: HashMap<ChunkId, Staged>,
}

/// Where recovery left off.
pub(super) struct Start {
    /// Goes on in this segment at this offset, if the log's end is clean.
    pub(super) active: Option<(Arc<SegmentFile>, u32)>,
    pub(super) next: Lsn,
    pub(super) last: Lsn,
    pub(super) checkpointed: Lsn,
    pub(super) free: VecDeque<FreeSegment>,
    pub(super) slots: u32,
    pub(super) next_slot: u32,
    pub(super) next_sequence: Sequence,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub(super) cluster: ClusterId,
    pub(super) node: StorageId,
    pub(super) store: StoreId,
    pub(super) segment_size_bytes: u32,
}

pub(super) struct Log {
    disk: Arc<dyn Disk>,
    pub(super) geometry: Geometry,
    state: Mutex<State>,
    pub(super) changed: Condvar,
    pub(super) shortage: Mutex<Shortage>,
    /// For what has run out to come back.
    pub(super) patience: Duration,
    pub(super) index: RwLock<Index>,
    /// Held (shared) from a staged block's append until it is counted, and (alone) while a segment is given up.
    pub(super) staging: RwLock<()>,
    /// One step of maintenance at a time.
    pub(super) maintenance: Mutex<Quiet>,
    pub(super) at_rest_after: Duration,
    pub(super) checkpoint_interval_bytes: u64,
}

struct Place {
    file: Arc<SegmentFile>,
    offset: u32,
    lsn: Lsn,
    durable: Lsn,
    before: Option<ChunkVersion>,
}

pub(super) fn segment_name(slot: u32) -> String {
    format!("segment-{slot:08}")
}

pub(super) fn segment_slot(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("segment-")?;
    (digits.len() == 8).then(|| digits.parse().ok()).flatten()
}

impl Log {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        geometry: Geometry,
        max_slots: u32,
        mut index: Index,
        start: Start,
        options: &StoreOptions,
    ) -> Result<Self, StoreError> {
        let mut free = start.free;
        let (mut slots, mut next_slot) = (start.slots, start.next_slot);
        let mut disk_full = false;
        // The reserve is real: made now, so that a disk that others fill can not take it away.
        let wanted = RESERVE_SEGMENTS as usize + usize::from(start.active.is_none());
        while free.len() < wanted && slots < max_slots {
            let made = disk.create(&segment_name(next_slot), u64::from(geometry.segment_size_bytes));
            let file = match made {
                Ok(file) => file,
                // A node that has data serves it, with whatever reserve the disk has left.
                Err(error)
                    if matches!(meaning(DiskCall::Name, &error), Meaning::NotNow(_))
                        && (start.active.is_some() || !free.is_empty()) =>
                {
                    disk_full = true;
                    break;
                }
                Err(error) => return Err(StoreError::io("making the first log segments", error)),
            };
            free.push_back(FreeSegment { slot: next_slot, file });
            slots += 1;
            next_slot += 1;
        }
        let mut next_sequence = start.next_sequence;
        let (active, offset) = if let Some(active) = start.active {
            active
        } else {
            let segment = free.pop_front().ok_or(StoreError::NoSpace {
                used_bytes: index.live_bytes(),
                total_bytes: u64::from(max_slots) * u64::from(geometry.segment_size_bytes),
            })?;
            let header = SegmentHeader {
                cluster: geometry.cluster,
                node: geometry.node,
                slot: segment.slot,
                state: SegmentState::Used,
                sequence: next_sequence,
                first: start.next,
                previous: start.last,
                durable: start.last,
            };
            // Synced: from here on it says where the log before it ends.
            write_synced(&*segment.file, &header.encode(), "beginning a log segment")?;
            let file = Arc::new(SegmentFile {
                slot: segment.slot,
                sequence: next_sequence,
                file: segment.file,
            });
            next_sequence.0 += 1;
            index.segments.insert(file.sequence, Segment::new(Arc::clone(&file)));
            (file, DATA_START)
        };
        active
            .file
            .keep_open(true)
            .map_err(|error| StoreError::io("opening the log's last segment", error))?;
        Ok(Self {
            disk,
            geometry,
            state: Mutex::new(State {
                dirty: vec![Dirty {
                    file: Arc::clone(&active),
                    last: None,
                }],
                active,
                offset,
                next: start.next,
                published: start.last,
                durable: start.last,
                pending: VecDeque::new(),
                pending_sequences: VecDeque::new(),
                pending_chunks: HashMap::new(),
                frozen: None,
                syncing: false,
                free,
                retiring: Vec::new(),
                slots,
                max_slots,
                next_slot,
                next_sequence,
                fault: None,
                disk_full,
                since_checkpoint_bytes: 0,
                checkpointed: start.checkpointed,
                since_maintain_bytes: 0,
                appended_bytes: 0,
                unsynced_bytes: 0,
                staged: HashMap::new(),
            }),
            changed: Condvar::new(),
            shortage: Mutex::default(),
            patience: options.patience,
            index: RwLock::new(index),
            staging: RwLock::new(()),
            maintenance: Mutex::default(),
            at_rest_after: options.at_rest_after,
            checkpoint_interval_bytes: options.checkpoint_interval_bytes,
        })
    }

    pub(super) fn disk(&self) -> &dyn Disk {
        &*self.disk
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub(super) fn fault(&self) -> Option<Fault> {
        if planted::is(Bug::PoisonIgnored) {
            return None;
        }
        self.lock().fault.clone()
    }

    pub(super) fn largest_record_bytes(&self) -> usize {
        (self.geometry.segment_size_bytes - DATA_START) as usize
    }

    /// Appends one record whose effect follows from its place alone.
    pub(super) fn append(
        &self,
        draft: &Draft,
        meta: &[u8],
        payload: &[u8],
        effect: impl FnOnce(&Arc<SegmentFile>, u32) -> Effect,
    ) -> Result<(), StoreError> {
        let mut state = self.lock();
        self.wait_for(&mut state, |state| state.frozen != Some(draft.chunk))?;
        let length = record_length_bytes(meta.len(), payload.len());
        let place = self.reserve(&mut state, draft, length)?;
        drop(state);
        let effect = effect(&place.file, place.offset);
        self.write(draft, &place, meta, payload, effect)
    }

    /// Appends a record that depends on the chunk as it is at that point of the log: `build` sees it with nothing of
    /// that chunk pending, and gives the record's meta and effect, or `None` to append nothing.
    pub(super) fn append_state(
        &self,
        mut draft: Draft,
        build: impl FnOnce(&mut Draft, &mut State, &Index) -> Option<(Vec<u8>, Effect)>,
    ) -> Result<bool, StoreError> {
        let chunk = draft.chunk;
        let mut state = self.lock();
        self.wait_for(&mut state, |state| state.frozen.is_none())?;
        state.frozen = Some(chunk);
        let ready = self.wait_for(&mut state, |state| !state.pending_chunks.contains_key(&chunk));
        let place = ready.and_then(|()| {
            let built = build(&mut draft, &mut state, &self.index.read());
            built
                .map(|(meta, effect)| {
                    let place = self.reserve(&mut state, &draft, record_length_bytes(meta.len(), 0))?;
                    Ok((place, meta, effect))
                })
                .transpose()
        });
        state.frozen = None;
        self.changed.notify_all();
        drop(state);
        match place? {
            None => Ok(false),
            Some((place, meta, effect)) => self.write(&draft, &place, &meta, &[], effect).map(|()| true),
        }
    }

    fn wait_for(&self, state: &mut MutexGuard<'_, State>, ready: impl Fn(&State) -> bool) -> Result<(), StoreError> {
        loop {
            state.check()?;
            if ready(state) {
                return Ok(());
            }
            self.changed.wait(state);
        }
    }

    fn reserve(&self, state: &mut State, draft: &Draft, length: usize) -> Result<Place, StoreError> {
        state.check()?;
        if length > self.largest_record_bytes() {
            return Err(StoreError::Invalid {
                chunk: draft.chunk,
                reason: format!("a record of {length} bytes does not fit a log segment"),
            });
        }
        if state.offset as usize + length > self.geometry.segment_size_bytes as usize {
            self.next_segment(state, draft.urgency)?;
        }
        let lsn = state.next;
        let before = state.pending_chunks.get(&draft.chunk).map_or_else(
            || self.index.read().get(draft.chunk).map(|entry| entry.version),
            |&(_, version)| version,
        );
        let after = match draft.kind {
            // Data records do not move the chunk's version.
            Kind::Data => before,
            Kind::Drop => None,
            Kind::Write | Kind::Truncate | Kind::Remove | Kind::State => Some(draft.version),
        };
        let entry = state.pending_chunks.entry(draft.chunk).or_default();
        *entry = (entry.0 + 1, after);
        state.pending.push_back(Pending { done: None });
        let place = Place {
            file: Arc::clone(&state.active),
            offset: state.offset,
            lsn,
            durable: state.durable,
            before,
        };
        state.pending_sequences.push_back(state.active.sequence);
        state.next.0 += 1;
        state.offset += length as u32;
        state.since_checkpoint_bytes += length as u64;
        state.since_maintain_bytes += length as u64;
        state.appended_bytes += length as u64;
        state.unsynced_bytes += length as u64;
        Ok(place)
    }

    fn no_space(&self, state: &State) -> StoreError {
        StoreError::NoSpace {
            used_bytes: self.index.read().live_bytes(),
            total_bytes: state.total_bytes(&self.geometry),
        }
    }

    fn next_segment(&self, state: &mut State, urgency: Urgency) -> Result<(), StoreError> {
        let keep = if urgency == Urgency::Data { RESERVE_SEGMENTS } else { 0 };
        if state.available() <= keep {
            return Err(self.no_space(state));
        }
        // A new one is made while the reserve is all that is left on the free list.
        let must_make = state.free.len() as u32 <= keep;
        if must_make {
            let segment = self.make_segment(state)?;
            state.free.push_front(segment);
        }
        let Some(segment) = state.free.pop_front() else {
            return Err(self.no_space(state));
        };
        let previous = Lsn(state.next.0 - 1);
        let header = SegmentHeader {
            cluster: self.geometry.cluster,
            node: self.geometry.node,
            slot: segment.slot,
            state: SegmentState::Used,
            sequence: state.next_sequence,
            first: state.next,
            previous,
            durable: state.durable,
        };
        let doing = "beginning a log segment";
        let opened = segment.file.keep_open(true).map_err(|error| (DiskCall::Name, error));
        let began = opened.and_then(|()| {
            let written = segment.file.write_at(0, &[&header.encode()]);
            written.map_err(|error| (DiskCall::Write, error))
        });
        if let Err((call, error)) = began {
            let _ = segment.file.keep_open(false);
            // It is free as before, whatever of the header is there.
            state.free.push_front(FreeSegment {
                slot: segment.slot,
                file: segment.file,
            });
            return Err(self.refused(state, call, doing, error));
        }
        let file = Arc::new(SegmentFile {
            slot: segment.slot,
            sequence: state.next_sequence,
            file: segment.file,
        });
        state.next_sequence.0 += 1;
        {
            let mut index = self.index.write();
            if let Some(old) = index.segments.get_mut(&state.active.sequence) {
                old.sealed = Some(Sealed {
                    end: state.offset,
                    last: previous,
                });
            }
            index.segments.insert(file.sequence, Segment::new(Arc::clone(&file)));
        }
        if let Some(dirty) = state.dirty.iter_mut().find(|dirty| dirty.last.is_none()) {
            dirty.last = Some(previous);
        }
        state.dirty.push(Dirty {
            file: Arc::clone(&file),
            last: None,
        });
        let _ = state.active.file.keep_open(false);
        state.active = file;
        state.offset = DATA_START;
        Ok(())
    }

    /// Makes one more segment file.
    pub(super) fn make_segment(&self, state: &mut State) -> Result<FreeSegment, StoreError> {
        if state.slots >= state.max_slots {
            return Err(self.no_space(state));
        }
        let slot = state.next_slot;
        match self
            .disk
            .create(&segment_name(slot), u64::from(self.geometry.segment_size_bytes))
        {
            Ok(file) => {
                state.slots += 1;
                state.next_slot += 1;
                state.disk_full = false;
                Ok(FreeSegment { slot, file })
            }
            Err(error) if meaning(DiskCall::Name, &error) == Meaning::NotNow(Scarce::Space) => {
                state.disk_full = true;
                Err(self.no_space(state))
            }
            Err(error) => Err(self.refused(state, DiskCall::Name, "making a log segment", error)),
        }
    }

    /// A call failed that need not succeed: nothing was promised yet.
    fn refused(&self, state: &mut State, call: DiskCall, doing: &str, error: io::Error) -> StoreError {
        match meaning(call, &error) {
            Meaning::NotNow(scarce) => {
                self.note_shortage(scarce, doing, &error);
                StoreError::NotNow {
                    doing: doing.to_owned(),
                    scarce,
                    source: error,
                }
            }
            Meaning::Broken => {
                let fault = self.poison_locked(state, doing, &error);
                self.mark_poisoned(&fault);
                fault.error()
            }
        }
    }

    fn write(
        &self,
        draft: &Draft,
        place: &Place,
        meta: &[u8],
        payload: &[u8],
        effect: Effect,
    ) -> Result<(), StoreError> {
        let header = RecordHeader {
            kind: draft.kind,
            chain: draft.chain,
            chunk: draft.chunk,
            lsn: place.lsn,
            durable: place.durable,
            version: draft.version,
            before: place.before,
            id: draft.origin.id,
            level: draft.origin.level,
            cut: draft.origin.cut,
            stamp: draft.origin.stamp,
            first: draft.first,
            blocks: draft.blocks,
            last_length_bytes: draft.last_length_bytes,
            meta_length_bytes: meta.len() as u32,
            payload_length_bytes: payload.len() as u32,
        };
        let head = header.encode(place.file.sequence, place.offset, meta);
        let padding = [0; RECORD_ALIGN_BYTES];
        let used = head.len() + meta.len() + payload.len();
        let parts = [&head[..], meta, payload, &padding[..header.length_bytes() - used]];
        // Its place is given out, and what comes behind it is published after it.
        self.persist("writing to the log", || {
            place.file.file.write_at(u64::from(place.offset), &parts)
        })?;
        let publication = Publication {
            chain: draft.chain,
            chunk: draft.chunk,
            lsn: place.lsn,
            sequence: place.file.sequence,
            version: draft.version,
            origin: draft.origin,
            effect,
        };
        self.complete(place.lsn, publication)
    }

    /// Publishes what is complete from the front, and waits until `lsn` is.
    fn complete(&self, lsn: Lsn, publication: Publication) -> Result<(), StoreError> {
        let mut state = self.lock();
        let at = (lsn.0 + state.pending.len() as u64 - state.next.0) as usize;
        if let Some(pending) = state.pending.get_mut(at) {
            pending.done = Some(publication);
        }
        if at == 0 {
            let mut index = self.index.write();
            while let Some(publication) = state.pending.front_mut().and_then(|pending| pending.done.take()) {
                state.pending.pop_front();
                state.pending_sequences.pop_front();
                state.published = publication.lsn;
                if let Some(count) = state.pending_chunks.get_mut(&publication.chunk) {
                    count.0 -= 1;
                    if count.0 == 0 {
                        state.pending_chunks.remove(&publication.chunk);
                    }
                }
                index.publish(publication);
            }
            drop(index);
            self.changed.notify_all();
        }
        while state.published < lsn {
            state.check()?;
            self.changed.wait(&mut state);
        }
        Ok(())
    }

    /// Makes all that is published durable. One runs at a time; who comes during it waits for the next.
    pub(super) fn sync(&self) -> Result<Lsn, StoreError> {
        let mut state = self.lock();
        let target = state.published;
        loop {
            state.check()?;
            if state.durable >= target {
                return Ok(state.durable);
            }
            if !state.syncing {
                break;
            }
            self.changed.wait(&mut state);
        }
        state.syncing = true;
        let upto = state.published;
        state.unsynced_bytes = 0;
        let files: Vec<_> = state.dirty.iter().map(|dirty| Arc::clone(&dirty.file)).collect();
        drop(state);
        // Oldest first, so that what a crash in between leaves is a prefix as far as the disk allows.
        let result = files.iter().try_for_each(|file| {
            if planted::is(Bug::SkipFsync) {
                return Ok(());
            }
            match file.file.sync_data() {
                Err(error) if !planted::is(Bug::FsyncRetried) => Err(self.poison("syncing the log", &error)),
                _ => Ok(()),
            }
        });
        let mut state = self.lock();
        state.syncing = false;
        match result {
            Ok(()) => {
                state.durable = upto;
                state.dirty.retain(|dirty| dirty.last.is_none_or(|last| last > upto));
                self.changed.notify_all();
                Ok(upto)
            }
            Err(error) => {
                self.changed.notify_all();
                Err(error)
            }
        }
    }
}

impl Segment {
    pub(super) const fn new(file: Arc<SegmentFile>) -> Self {
        Self {
            file,
            live_bytes: 0,
            sealed: None,
            staged: 0,
            rotten: false,
        }
    }
}

impl State {
    pub(super) fn check(&self) -> Result<(), StoreError> {
        match &self.fault {
            None => Ok(()),
            Some(_) if planted::is(Bug::PoisonIgnored) => Ok(()),
            Some(fault) => Err(fault.error()),
        }
    }

    /// Segments that can still be begun.
    pub(super) fn available(&self) -> u32 {
        let unmade = if self.disk_full {
            0
        } else {
            self.max_slots.saturating_sub(self.slots)
        };
        self.free.len() as u32 + unmade
    }

    pub(super) fn total_bytes(&self, geometry: &Geometry) -> u64 {
        let slots = if self.disk_full { self.slots } else { self.max_slots };
        u64::from(slots.saturating_sub(RESERVE_SEGMENTS)) * u64::from(geometry.segment_size_bytes - DATA_START)
    }

    /// Where a replay must begin so that it meets every record that is not published yet.
    pub(super) fn replay_from(&self) -> Sequence {
        self.pending_sequences.front().copied().unwrap_or(self.active.sequence)
    }

    pub(super) fn active_sequence(&self) -> Sequence {
        self.active.sequence
    }
}
