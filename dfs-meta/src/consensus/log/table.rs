//! What of the log is in memory: where each entry stands, the newest ones themselves, and which segments there are.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::super::types::{Entry, LogId};
use super::replay::Location;
use super::writer::Current;

/// Bytes of recent entries kept in memory for replication and apply. Covers seconds of heavy load.
const CACHE_BYTES: usize = 32 << 20;

pub(super) struct Slot {
    pub(super) id: LogId,
    /// `None` until it is on disk.
    pub(super) location: Option<Location>,
    pub(super) cached: Option<Entry>,
    /// About what its record takes.
    pub(super) size_bytes: usize,
}

/// Bytes of a record beside its commands, and of an entry without any.
const RECORD_OVERHEAD_BYTES: usize = 256;

pub(super) fn size_of(entry: &Entry) -> usize {
    let commands = match &entry.payload {
        openraft::EntryPayload::Normal(batch) => batch.0.iter().map(|command| command.len() + 16).sum(),
        openraft::EntryPayload::Blank | openraft::EntryPayload::Membership(_) => 0,
    };
    RECORD_OVERHEAD_BYTES + commands
}

/// A segment for reading and for deciding when it can go.
pub(super) struct Segment {
    pub(super) file: Arc<File>,
    pub(super) path: PathBuf,
    /// Index of the first entry that may stand in it, as its header says.
    pub(super) begins_at: u64,
}

#[derive(Default)]
pub(super) struct Table {
    pub(super) purged: Option<LogId>,
    pub(super) slots: VecDeque<Slot>,
    pub(super) next_index: u64,
    pub(super) committed: Option<LogId>,
    pub(super) segments: BTreeMap<u64, Segment>,
    /// Entries below this index are not cached.
    pub(super) cached_from: u64,
    pub(super) cached_bytes: usize,
    pub(super) poisoned: Option<String>,
    /// Since when the disk owes something and has taken nothing.
    pub(super) owes_since: Option<Instant>,
}

impl Table {
    pub(super) fn note_progress(&mut self) {
        let owes = self.slots.back().is_some_and(|slot| slot.location.is_none());
        self.owes_since = owes.then(Instant::now);
    }

    pub(super) fn first_index(&self) -> u64 {
        self.slots.front().map_or(self.next_index, |slot| slot.id.index)
    }

    pub(super) fn slot(&self, index: u64) -> Option<&Slot> {
        self.slots
            .get(usize::try_from(index.checked_sub(self.first_index())?).ok()?)
    }

    pub(super) fn slot_mut(&mut self, index: u64) -> Option<&mut Slot> {
        let at = index.checked_sub(self.first_index())?;
        self.slots.get_mut(usize::try_from(at).ok()?)
    }

    /// Lets go of the oldest cached entries, but of none that is not on disk.
    pub(super) fn evict(&mut self) {
        while self.cached_bytes > CACHE_BYTES {
            let index = self.cached_from.max(self.first_index());
            let Some(slot) = self.slot_mut(index) else { return };
            let Some(location) = slot.location else { return };
            if slot.cached.take().is_some() {
                self.cached_bytes = self.cached_bytes.saturating_sub(location.record_bytes);
            }
            self.cached_from = index + 1;
        }
    }

    pub(super) fn forget(&mut self, slot: &Slot) {
        if slot.cached.is_some()
            && let Some(location) = slot.location
        {
            self.cached_bytes = self.cached_bytes.saturating_sub(location.record_bytes);
        }
    }
}

/// What readers and the writer share; the lock is held for memory operations only.
pub(crate) struct Shared {
    pub(super) table: Mutex<Table>,
    /// Counts what was synced, or failed: those who wait for the disk look again.
    pub(super) synced: watch::Sender<u64>,
}

impl Shared {
    pub(super) fn new(table: Table) -> Self {
        Self {
            table: Mutex::new(table),
            synced: watch::Sender::new(0),
        }
    }

    pub(super) fn poisoned(&self) -> Option<String> {
        self.table.lock().poisoned.clone()
    }

    pub(super) fn poison(&self, reason: String) {
        self.table.lock().poisoned.get_or_insert(reason);
        self.tell();
    }

    pub(super) fn tell(&self) {
        self.synced.send_modify(|count| *count += 1);
    }

    pub(super) fn committed(&self) -> Option<LogId> {
        self.table.lock().committed
    }

    pub(super) fn add_segment(&self, current: &Current, begins_at: u64) {
        let segment = Segment {
            file: current.file.clone(),
            path: current.path.clone(),
            begins_at,
        };
        self.table.lock().segments.insert(current.sequence, segment);
    }

    pub(super) fn written(&self, written: &[(LogId, Location)]) {
        let mut index = self.table.lock();
        for (id, location) in written {
            let counted = match index.slot_mut(id.index) {
                // A truncation may have been asked for since.
                Some(slot) if slot.id == *id => {
                    slot.location = Some(*location);
                    slot.cached.is_some()
                }
                _ => false,
            };
            if counted {
                index.cached_bytes += location.record_bytes;
            }
        }
        index.evict();
        index.note_progress();
        drop(index);
        self.tell();
    }

    /// Forgets entries up to `upto` and returns the files that hold nothing else.
    pub(super) fn purge(&self, upto: LogId, current: u64) -> Vec<PathBuf> {
        let mut index = self.table.lock();
        while index.slots.front().is_some_and(|slot| slot.id.index <= upto.index) {
            if let Some(slot) = index.slots.pop_front() {
                index.forget(&slot);
            }
        }
        index.next_index = index.next_index.max(upto.index + 1);
        index.purged = index.purged.max(Some(upto));
        let first = index
            .slots
            .front()
            .and_then(|slot| slot.location)
            .map_or(current, |location| location.sequence);
        // Replay must be able to begin with what is kept: a segment may start behind a truncation that it holds itself,
        // and then those before it are still needed.
        let keep = index
            .segments
            .range(..=first)
            .rev()
            .find(|(_, segment)| segment.begins_at <= upto.index + 1)
            .map_or(0, |(&sequence, _)| sequence);
        let kept = index.segments.split_off(&keep);
        std::mem::replace(&mut index.segments, kept)
            .into_values()
            .map(|segment| segment.path)
            .collect()
    }
}
