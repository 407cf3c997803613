//! What is known to be damaged on this node's disk, and what became of it.
//!
//! A chunk enters when a check of it fails, whoever asked for it, and leaves when it is sound again. Until then the mender works at it
//! (see `mender`), and a resync that this node receives brings it whole. What happened stays readable for a while.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dfs_common::wire::storage::{Damage, DamageOutcome, FoundBy};
use dfs_common::{ChainId, ChunkId, Timestamp};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Damage that is remembered; beyond that the oldest that is settled is forgotten.
const MAX_REMEMBERED: usize = 1_024;

/// Damaged chunks that are worked at. A disk with more than that needs to be replaced; what does not fit is found again later.
const MAX_OPEN: usize = 65_536;

/// Pauses between two attempts to mend one chunk.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_mins(1);

#[derive(Clone, Copy, Debug)]
struct Open {
    due: Instant,
    pause: Duration,
    /// It was said that no copy is left.
    lost: bool,
}

#[derive(Debug, Default)]
struct Table {
    open: BTreeMap<ChunkId, Open>,
    remembered: VecDeque<Damage>,
    found: u64,
    mended: u64,
}

/// How much damage there was and is, in chunks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) found: u64,
    pub(crate) mended: u64,
    pub(crate) open: u64,
    pub(crate) lost: u64,
}

#[derive(Debug, Default)]
pub(crate) struct DamageTable {
    table: Mutex<Table>,
    /// Something is to be mended.
    pub(crate) noted: Notify,
}

pub(crate) fn wall_clock() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_nanos(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

impl Table {
    fn remember(&mut self, damage: Damage) {
        if self.remembered.len() >= MAX_REMEMBERED {
            let settled = self
                .remembered
                .iter()
                .position(|damage| damage.outcome != DamageOutcome::Open)
                .unwrap_or(0);
            self.remembered.remove(settled);
        }
        self.remembered.push_back(damage);
    }

    fn settle(&mut self, chunk: ChunkId, outcome: DamageOutcome) {
        for damage in &mut self.remembered {
            let pending = matches!(damage.outcome, DamageOutcome::Open | DamageOutcome::Lost);
            if damage.chunk == Some(chunk) && pending {
                damage.outcome = outcome;
            }
        }
    }
}

impl DamageTable {
    /// A chunk of which something could not be read. `true` if that is news.
    pub(crate) fn note(&self, chain: Option<ChainId>, chunk: ChunkId, found_by: FoundBy, what: String) -> bool {
        let mut table = self.table.lock();
        if table.open.contains_key(&chunk) || table.open.len() >= MAX_OPEN {
            return false;
        }
        table.open.insert(
            chunk,
            Open {
                due: Instant::now(),
                pause: FIRST_RETRY,
                lost: false,
            },
        );
        table.found += 1;
        table.remember(Damage {
            at: wall_clock(),
            chain,
            chunk: Some(chunk),
            found_by,
            what,
            outcome: DamageOutcome::Open,
        });
        drop(table);
        self.noted.notify_one();
        true
    }

    /// A damaged structure that is no chunk, with what was done about it.
    pub(crate) fn note_structure(&self, found_by: FoundBy, what: String, outcome: DamageOutcome) {
        let mut table = self.table.lock();
        table.found += 1;
        table.mended += u64::from(outcome == DamageOutcome::Rebuilt);
        table.remember(Damage {
            at: wall_clock(),
            chain: None,
            chunk: None,
            found_by,
            what,
            outcome,
        });
    }

    pub(crate) fn has_open_structures(&self) -> bool {
        let table = self.table.lock();
        let mut open = table.remembered.iter();
        open.any(|damage| damage.chunk.is_none() && damage.outcome == DamageOutcome::Open)
    }

    /// Everything about structures that was open is done.
    pub(crate) fn structures_rebuilt(&self) {
        let mut table = self.table.lock();
        let mut done = 0;
        for damage in &mut table.remembered {
            if damage.chunk.is_none() && damage.outcome == DamageOutcome::Open {
                damage.outcome = DamageOutcome::Rebuilt;
                done += 1;
            }
        }
        table.mended += done;
    }

    pub(crate) fn is_damaged(&self, chunk: ChunkId) -> bool {
        self.table.lock().open.contains_key(&chunk)
    }

    /// The chunk is sound again.
    pub(crate) fn settled(&self, chunk: ChunkId, outcome: DamageOutcome) -> bool {
        let mut table = self.table.lock();
        let known = table.open.remove(&chunk).is_some();
        if known {
            table.mended += 1;
            table.settle(chunk, outcome);
        }
        known
    }

    /// No member has a sound copy. `true` if that was not known. It is tried again, but seldom.
    pub(crate) fn lost(&self, chunk: ChunkId) -> bool {
        let mut table = self.table.lock();
        let Some(open) = table.open.get_mut(&chunk) else {
            return false;
        };
        let news = !open.lost;
        open.lost = true;
        open.pause = LAST_RETRY;
        open.due = Instant::now() + LAST_RETRY;
        table.settle(chunk, DamageOutcome::Lost);
        news
    }

    /// It could not be mended now.
    pub(crate) fn postpone(&self, chunk: ChunkId) {
        if let Some(open) = self.table.lock().open.get_mut(&chunk) {
            open.due = Instant::now() + open.pause;
            open.pause = (open.pause * 2).min(LAST_RETRY);
        }
    }

    /// Everything open is tried now, and what was lost may have been written or removed since: somebody asks how it stands.
    pub(crate) fn hurry(&self) {
        for open in self.table.lock().open.values_mut() {
            open.due = Instant::now();
            open.lost = false;
        }
        self.noted.notify_one();
    }

    /// What is to be mended now.
    pub(crate) fn due(&self) -> Vec<ChunkId> {
        let now = Instant::now();
        let table = self.table.lock();
        let due = table.open.iter().filter(|(_, open)| open.due <= now);
        due.map(|(&chunk, _)| chunk).collect()
    }

    pub(crate) fn counts(&self) -> Counts {
        let table = self.table.lock();
        Counts {
            found: table.found,
            mended: table.mended,
            open: table.open.len() as u64,
            lost: table.open.values().filter(|open| open.lost).count() as u64,
        }
    }

    pub(crate) fn remembered(&self) -> Vec<Damage> {
        self.table.lock().remembered.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use dfs_common::{ChunkIndex, InodeId, StorageId};

    use super::*;

    fn chunk(index: u32) -> ChunkId {
        ChunkId::new(InodeId(1), ChunkIndex(index))
    }

    #[tokio::test]
    async fn a_chunk_is_noted_once_and_its_end_is_remembered() {
        let table = DamageTable::default();
        assert!(table.note(None, chunk(1), FoundBy::Read, "block 3".into()));
        assert!(!table.note(None, chunk(1), FoundBy::Scrub, "block 3".into()));
        assert_eq!(table.due(), [chunk(1)]);
        table.postpone(chunk(1));
        assert!(table.due().is_empty());
        assert!(table.lost(chunk(1)) && !table.lost(chunk(1)));
        assert_eq!(table.remembered()[0].outcome, DamageOutcome::Lost);
        assert_eq!((table.counts().open, table.counts().lost), (1, 1));
        assert!(table.due().is_empty());
        table.hurry();
        assert_eq!(table.due(), [chunk(1)]);
        assert_eq!((table.counts().open, table.counts().lost), (1, 0));
        let mended = DamageOutcome::Mended { from: StorageId(2) };
        assert!(table.settled(chunk(1), mended) && !table.settled(chunk(1), mended));
        assert_eq!(table.remembered()[0].outcome, mended);
        assert_eq!(
            (table.counts().found, table.counts().mended, table.counts().open),
            (1, 1, 0)
        );
    }

    #[tokio::test]
    async fn memory_is_bounded_and_what_is_open_is_kept() {
        let table = DamageTable::default();
        table.note(None, chunk(0), FoundBy::Read, String::new());
        for index in 1..=MAX_REMEMBERED as u32 {
            table.note(None, chunk(index), FoundBy::Read, String::new());
            table.settled(chunk(index), DamageOutcome::Replaced);
        }
        let remembered = table.remembered();
        assert_eq!(remembered.len(), MAX_REMEMBERED);
        assert_eq!(remembered[0].chunk, Some(chunk(0)));
    }
}
