//! What this mount knows of one file that it has open: its attributes, the bytes on their way, and what it still owes.
//!
//! One state per inode, shared by all handles of the mount. The lock is never held over an await; shells take a
//! snapshot, do I/O, and come back with the result. The length that callers see is the greatest of: what metadata
//! says, the end of what is on the chains but not committed (`kept`), and the end of what is dirty.

use std::collections::BTreeSet;
use std::sync::Arc;

use dfs_common::planted::{self, Bug};
use dfs_common::wire::namespace::{Attributes, SetAttributes, SetTime, WriteCommit};
use dfs_common::{
    BlockIndex, ChainId, ChunkIndex, ChunkVersion, CutEpoch, CutsSince, Error, ErrorCode, Hold, InodeId, LastCuts,
    Layout, Level, Result, RoutingTable, SessionId, Timestamp,
};
use dfs_crypto::block::BlockCipher;
use parking_lot::Mutex;
use tokio::sync::{RwLock, Semaphore, watch};

use super::acknowledged::{Entry, Lacks, WrittenRun};
use super::dirty::{DirtyBuffer, Slab};
use super::errseq::LateErrors;
use super::kept::Kept;
use super::reader::Reading;
use super::unsynced::{Owing, Unsynced};
use super::writer::{FLUSH_AGE_MS, Written};
use crate::routing::KeptSpans;

/// A file of which the group knows that it grows is told of after this long.
const GROWTH_AGE_MS: u64 = 1_000;

/// The short block at a file's end as this mount last wrote it: the base of the next append, without a read.
#[derive(Clone, Debug)]
pub(crate) struct Tail {
    pub(crate) chunk: ChunkIndex,
    pub(crate) block: BlockIndex,
    pub(crate) version: ChunkVersion,
    pub(crate) content: Vec<u8>,
}

/// What metadata must still be told of data that is on the chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owed {
    pub(crate) mtime: Timestamp,
    /// Tells a debt from the one that a commit under way already covers.
    pub(crate) number: u64,
    pub(crate) since_ms: u64,
    /// With times that `utimes` set: not to be found in any chunk.
    pub(crate) times: bool,
}

/// A slab that its chain has acknowledged.
#[derive(Clone)]
pub(crate) struct Arrival {
    pub(crate) chain: ChainId,
    pub(crate) slab: Arc<Slab>,
    pub(crate) written: Vec<Written>,
    /// It is durable already.
    pub(crate) sync: bool,
    /// This mount holds the file.
    pub(crate) alone: bool,
    /// When it was first sent, on the mount's clock.
    pub(crate) sent_ms: u64,
}

impl Arrival {
    /// Its runs by the truncation epoch in which they were acknowledged: what a cut did to some
    /// says nothing of the others.
    fn by_cut(self, block_start: impl Fn(ChunkIndex, BlockIndex) -> u64) -> Vec<Self> {
        let cuts: BTreeSet<CutEpoch> = self.written.iter().map(|written| written.cut).collect();
        if cuts.len() <= 1 {
            return vec![self];
        }
        let part = |cut| {
            let (mine, others): (Vec<Written>, Vec<Written>) =
                self.written.iter().cloned().partition(|written| written.cut == cut);
            let mut slab = Slab::clone(&self.slab);
            for WrittenRun {
                chunk, first, blocks, ..
            } in others.into_iter().map(|written| written.run)
            {
                slab.erase(
                    block_start(chunk, first),
                    block_start(chunk, BlockIndex(first.0 + blocks)),
                );
            }
            Self {
                slab: Arc::new(slab),
                written: mine,
                ..self.clone()
            }
        };
        cuts.into_iter().map(part).collect()
    }
}

/// On what occasion metadata is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// An fsync: it may be the first of many.
    Synced,
    /// Anything that leaves the file as it is, growing or not.
    Passing,
    /// Nothing more comes for now.
    Last,
}

/// The group knows that this file grows without a word as long as this mount holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Growth {
    pub(crate) hold: Hold,
    /// The newest debt when it began: no other growth of this file has the same.
    pub(crate) since: u64,
    /// Whether it knows for certain.
    pub(crate) settled: bool,
    /// Newest debt that fsync took as paid: if the hold is lost, the group finds it in the chunks.
    pub(crate) promised: u64,
    /// Newest write of which the same is true.
    pub(crate) promised_write: u64,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) attributes: Attributes,
    pub(crate) dirty: DirtyBuffer,
    /// A drain wants everything up to this write out now.
    pub(crate) drain_to: u64,
    pub(crate) owed: Option<Owed>,
    pub(crate) debts: u64,
    pub(crate) growth: Option<Growth>,
    /// An fsync has told metadata of this file before: the next ones may make it a growing one.
    pub(crate) synced_before: bool,
    /// Goes with what is owed; see [`Inner::defer`].
    pub(crate) deferred_atime: Option<Timestamp>,
    /// The mtime that the last write gave the file, unless `utimes` gave it another since.
    pub(crate) last_write: Timestamp,
    /// When that write was, for the ctime.
    pub(crate) last_write_at: Timestamp,
    pub(crate) unsynced: Unsynced,
    /// Acknowledged writes that are not both synced and committed.
    pub(crate) kept: Kept,
    /// A write of this mount failed, and what of it lies beyond the end nobody knows.
    pub(crate) unclean_end: bool,
    /// A write from this end to that offset may go: nothing lies between.
    pub(crate) cleared_gap: Option<(u64, u64)>,
    /// A write of this mount left blocks out between the end and itself. Told with every commit,
    /// and true until the file is empty.
    pub(crate) made_sparse: bool,
    pub(crate) errors: LateErrors,
    pub(crate) tail: Option<Tail>,
    /// Newest `change` up to which every change was this mount's own, if that is known.
    pub(crate) own_change: Option<u64>,
    pub(crate) opens: u32,
    /// Raised by every local write and truncate, and by every foreign change: what was read ahead before is void.
    pub(crate) generation: u64,
    /// Writes that were lost and sent again.
    pub(crate) rewrites: u64,
    /// Changes that may have been another mount's, as this one came to know of them.
    pub(crate) foreign: u64,
    /// The same, and reads that found what no change has told of.
    pub(crate) unvouched: u64,
    /// Up to which of these everything is known to be durable.
    pub(crate) foreign_durable: u64,
}

pub(crate) struct FileState {
    pub(crate) inode: InodeId,
    pub(crate) layout: Layout,
    pub(crate) read_level: Level,
    pub(crate) write_level: Level,
    pub(crate) cipher: Arc<BlockCipher>,
    /// The session it was opened in; its handles end with it.
    pub(crate) session: SessionId,
    pub(crate) inner: Mutex<Inner>,
    /// Ticks when a slab is done.
    pub(crate) progress: watch::Sender<u64>,
    /// Writers share it, truncate has it alone: not a lock on state, but the order of two kinds of system calls.
    pub(crate) gate: RwLock<()>,
    /// One commit at a time.
    pub(crate) commit_turn: tokio::sync::Mutex<()>,
    pub(crate) in_flight: Semaphore,
    pub(crate) dirty_room: Semaphore,
}

impl Inner {
    pub(crate) fn new(attributes: Attributes, layout: &Layout, own_change: Option<u64>) -> Self {
        Self {
            dirty: DirtyBuffer::new(layout.chunk_size_bytes),
            drain_to: 0,
            owed: None,
            debts: 0,
            growth: None,
            synced_before: false,
            deferred_atime: None,
            last_write: attributes.mtime,
            last_write_at: attributes.ctime,
            unsynced: Unsynced::default(),
            kept: Kept::default(),
            unclean_end: false,
            cleared_gap: None,
            made_sparse: false,
            foreign_durable: 0,
            errors: LateErrors::default(),
            tail: None,
            own_change,
            opens: 0,
            generation: 0,
            rewrites: 0,
            foreign: 0,
            unvouched: 0,
            attributes,
        }
    }

    pub(crate) fn length(&self) -> u64 {
        self.stable_length().max(self.dirty.end())
    }

    /// Length without what is dirty: no block at or after it was ever acknowledged, as far as this mount knows.
    pub(crate) fn stable_length(&self) -> u64 {
        self.attributes.length_bytes.max(self.kept.uncommitted_end())
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.dirty.is_empty() && self.owed.is_none() && self.kept.uncommitted_end() == 0
    }

    /// What the cuts that this mount knows of did to bytes that were written in this epoch. `None`: that is forgotten.
    pub(crate) fn cuts_since(&self, known: CutEpoch) -> Option<CutsSince> {
        let file = self.attributes.file.as_ref();
        file.map_or_else(|| LastCuts::default().since(known), |file| file.cuts.since(known))
    }

    /// Whether no cut since removed any byte of this write, for certain.
    pub(crate) fn outlived_cuts(&self, entry: &Entry) -> bool {
        let since = self.cuts_since(entry.cut);
        since.is_some_and(|since| entry.end <= since.left_bytes)
    }

    /// The file's bytes before this have outlived all cuts since these writes were acknowledged.
    pub(crate) fn uncut_to<'a>(&self, entries: impl Iterator<Item = &'a Entry>) -> u64 {
        let were_cut = entries.filter(|entry| !self.outlived_cuts(entry));
        let left = were_cut.map(|entry| self.cuts_since(entry.cut).map_or(0, |since| since.left_bytes));
        left.min().unwrap_or(u64::MAX)
    }

    /// What a block was found to hold that this mount then wrote anew; see [`Kept::found`].
    pub(crate) fn found(
        &mut self,
        layout: &Layout,
        (chain, chunk, block): (ChainId, ChunkIndex, BlockIndex),
        version: ChunkVersion,
        bytes: &[u8],
        spans: &KeptSpans,
    ) {
        if !self.kept.touches(chunk) {
            return;
        }
        let start = layout.block_start(chunk, block);
        // Each for itself: one that was cut may be forgotten before another is looked at.
        let of_chain = |entry: &&Entry| entry.chain == chain;
        let uncut = |entry| {
            self.uncut_to(Some(entry).filter(of_chain).into_iter())
                .saturating_sub(start)
        };
        let uncut: Vec<u64> = self.kept.entries().map(uncut).collect();
        self.kept.found((chunk, block, start), version, (bytes, &uncut), spans);
    }

    /// Whether something is uncommitted that a cut may have removed.
    pub(crate) fn may_be_cut(&self) -> bool {
        let cut = self.cut();
        self.kept.entries().any(|entry| entry.lacks.commit && entry.cut != cut)
    }

    /// Writes that no cut can have touched are as good as written in the present epoch.
    pub(crate) fn confirm_untouched(&mut self) {
        let cut = self.cut();
        let before = self.kept.uncommitted_before(cut);
        let numbers: Vec<u64> = before
            .iter()
            .filter(|entry| self.outlived_cuts(entry))
            .map(|entry| entry.number)
            .collect();
        self.kept.confirmed(&numbers, cut);
    }

    /// The truncation epoch that this mount knows.
    pub(crate) fn cut(&self) -> CutEpoch {
        cut_of(&self.attributes)
    }

    /// A slab has arrived: these runs, with the sync flag or without.
    pub(crate) fn arrived(&mut self, arrival: Arrival, room: &Arc<Semaphore>) {
        let written_ms = arrival.slab.since_ms;
        for part in arrival.by_cut(|chunk, block| {
            let file = self.attributes.file.as_ref();
            file.map_or(0, |file| file.layout.block_start(chunk, block))
        }) {
            self.part_arrived(part, room);
        }
        self.owe(written_ms);
    }

    /// Runs that were acknowledged in one truncation epoch.
    fn part_arrived(&mut self, part: Arrival, room: &Arc<Semaphore>) {
        let Arrival {
            chain,
            slab,
            written,
            sync,
            alone,
            sent_ms,
        } = part;
        let cut = written.first().map_or_else(|| self.cut(), |written| written.cut);
        let number = written.iter().map(|written| written.number).max().unwrap_or(0);
        let end = slab.end();
        // A chunk that was not there says nothing of a truncation that this mount has not heard of.
        let uncertain = written.iter().any(|written| written.run.version.counter == 1);
        let lacks = Lacks {
            sync: !sync && self.unsynced.contains(chain),
            commit: end > self.attributes.length_bytes || cut != self.cut() || (uncertain && !alone),
        };

        if lacks.sync || lacks.commit || written.iter().any(|written| self.kept.touches(written.run.chunk)) {
            let entry = Entry {
                chain,
                number,
                slab: Some(slab),
                runs: written.into_iter().map(|written| written.run).collect(),
                cut,
                precedes_cuts: false,
                end,
                since_ms: sent_ms,
                lacks,
            };
            for (chain, number) in self.kept.push(entry, room) {
                self.unsynced.gap(chain, number);
            }
        }
    }

    /// A sync that began when `owing` was all on the chain has ended, or has found it lost.
    pub(crate) fn chain_synced(&mut self, chain: ChainId, owing: &Owing) {
        self.unsynced.synced(chain, owing);
        self.kept.synced(chain, owing.number());
    }

    /// The session in which the file was opened before has expired. What its writes lack is this state's now, as an error where
    /// nobody can bring it to an end any more.
    pub(crate) fn inherit(&mut self, earlier: &mut Self, session: SessionId) {
        for (chain, number) in earlier.kept.drop_unsynced() {
            earlier.unsynced.gap(chain, number);
        }
        self.unsynced = std::mem::take(&mut earlier.unsynced);
        // Handles of the earlier session are told as well, if they ask.
        if let Some(error) = earlier.errors.untold() {
            self.errors.record(error);
        }
        if !earlier.is_settled() {
            self.errors.record(Error::new(
                ErrorCode::SessionExpired,
                format!(
                    "inode {}: session {session} expired before everything that was written in it was committed",
                    self.attributes.inode
                ),
            ));
        }
    }

    /// Whether nothing at all is left to be told.
    pub(crate) fn is_quiet(&self) -> bool {
        self.is_settled() && self.growth.is_none()
    }

    /// What the group is to know of the file's growth after this word. `holds`: as what this mount holds it.
    pub(crate) fn growth_after(&mut self, word: Word, holds: Option<Hold>) -> Option<Growth> {
        let hold = holds?;
        let known = self.growth.filter(|growth| growth.hold == hold);
        match word {
            Word::Last => None,
            Word::Passing => known,
            // The first fsync of a file is mostly the last one as well.
            Word::Synced if !std::mem::replace(&mut self.synced_before, true) => known,
            Word::Synced => known.or(Some(Growth {
                hold,
                since: self.debts,
                settled: false,
                promised: 0,
                promised_write: 0,
            })),
        }
    }

    /// The word that a file grows no more, where there is nothing else to say. With number 0, which is no debt's.
    pub(crate) fn last_word(&self, word: Word) -> Option<(WriteCommit, u64)> {
        let bare = WriteCommit {
            extend_to_bytes: None,
            mtime: None,
            clear_suid: false,
            growing: false,
            cut: self.cut(),
            sparse: false,
        };
        (word == Word::Last && self.growth.is_some()).then_some((bare, 0))
    }

    /// A word that ended this growth did not come through, or may not have: it has to be said anew, either way.
    pub(crate) fn growth_uncertain(&mut self, was: Growth) {
        self.growth.get_or_insert(Growth {
            since: 0,
            settled: false,
            ..was
        });
    }

    /// The group knows for certain of this growth.
    pub(crate) fn growth_settled(&mut self, known: Option<Growth>) {
        if let (Some(growth), Some(known)) = (&mut self.growth, known)
            && growth.since == known.since
        {
            growth.settled = true;
        }
    }

    /// Whether [`Inner::promise`] would do.
    pub(crate) fn may_promise(&self, hold: Option<Hold>) -> bool {
        self.growth
            .is_some_and(|growth| growth.settled && Some(growth.hold) == hold)
            && self.owed.is_none_or(|owed| !owed.times)
    }

    /// Takes what is owed as told, if the group would find it by itself: `hold` is how this mount holds the file, now that
    /// the data is on the chains.
    pub(crate) fn promise(&mut self, hold: Option<Hold>) -> bool {
        let may = self.may_promise(hold);
        if may && let Some(growth) = &mut self.growth {
            growth.promised = self.debts;
            growth.promised_write = self.kept.newest();
        }
        may
    }

    /// The hold is over, and the group has found the length out by itself; `fresh` is what it says. It may have looked before the
    /// last promise: a machine that stands still believes in its lease for too long. So everything owed is told again, unless
    /// somebody has cut the file since; then what was promised was cut as well, for all that anybody can know.
    pub(crate) fn growth_lost(&mut self, fresh: &Attributes) {
        let cut_since = cut_of(fresh) != self.cut();
        let growth = self.growth.take();
        self.attributes = fresh.clone();
        self.own_change = None;
        self.tail = None;
        self.note_foreign();
        let Some(growth) = growth.filter(|_| cut_since) else {
            return;
        };
        self.kept.forget_lengths(growth.promised_write);
        if self
            .owed
            .is_some_and(|owed| owed.number <= growth.promised && !owed.times)
        {
            self.owed = None;
        }
    }

    /// Takes in attributes from metadata; late answers do not turn the clock back. A change that this mount has not been told
    /// of as its own may be another mount's.
    pub(crate) fn learn(&mut self, attributes: &Attributes) {
        if attributes.change > self.attributes.change {
            self.note_foreign();
        }
        self.take_in(attributes);
    }

    fn take_in(&mut self, attributes: &Attributes) {
        if attributes.change >= self.attributes.change {
            self.attributes = attributes.clone();
        }
    }

    /// Another mount may have written: what was read before is void.
    pub(crate) fn note_foreign(&mut self) {
        self.generation += u64::from(!planted::is(Bug::StaleAheadKept));
        self.foreign += 1;
        self.unvouched += 1;
    }

    /// The same after a change by this mount: if it was the only one since, the kernel's cache is still right.
    pub(crate) fn learn_own(&mut self, attributes: &Attributes) {
        self.own_change = self
            .own_change
            .filter(|&own| attributes.change <= own + 1)
            .map(|own| own.max(attributes.change));
        if attributes.change > self.attributes.change + 1 {
            self.note_foreign();
        }
        self.take_in(attributes);
    }

    /// What a sync of all chains of the file covers that begins now, of what others wrote; `None`: it is durable already.
    pub(crate) fn foreign_unsynced(&self) -> Option<u64> {
        (self.foreign_durable < self.unvouched).then_some(self.unvouched)
    }

    /// Metadata's attributes with what only this mount knows yet laid over them.
    pub(crate) fn view(&self, attributes: &Attributes) -> Attributes {
        // A late answer does not turn the clock back.
        let newest = if attributes.change < self.attributes.change {
            &self.attributes
        } else {
            attributes
        };
        let mut view = newest.clone();
        if let Some(file) = view.file.as_mut().filter(|_| self.made_sparse) {
            file.sparse = true;
        }
        if !self.is_settled() {
            view.length_bytes = view.length_bytes.max(self.length());
            view.mtime = self.last_write;
            view.ctime = view.ctime.max(self.last_write_at);
            view.atime = self.deferred_atime.unwrap_or(view.atime);
        }
        view
    }

    pub(crate) fn note_write(&mut self, now: Timestamp) {
        self.last_write = now;
        self.last_write_at = now;
    }

    /// Takes times into the debt of the writes before them: others see a file's times when its writer has flushed, in any
    /// case. `tar` and `cp -p` set them so; it saves a command. `false`: it must be told now.
    pub(crate) fn defer(&mut self, set: &SetAttributes, now: Timestamp, now_ms: u64) -> bool {
        let fixed = |time: Option<SetTime>| time.is_none_or(|time| matches!(time, SetTime::To(_)));
        let only_times = fixed(set.atime)
            && fixed(set.mtime)
            && set.ctime.is_none()
            && set.mode.is_none()
            && set.uid.is_none()
            && set.gid.is_none();
        // After the last close nobody would pay it.
        if self.is_settled() || self.opens == 0 || !only_times {
            return false;
        }
        if let Some(SetTime::To(mtime)) = set.mtime {
            self.set_mtime(mtime);
        }
        if let Some(SetTime::To(atime)) = set.atime {
            self.deferred_atime = Some(atime);
        }
        self.last_write_at = self.last_write_at.max(now);
        self.owe(now_ms);
        if let Some(owed) = &mut self.owed {
            owed.times = true;
        }
        true
    }

    /// A command set length and time: what else was owed stays.
    pub(crate) fn length_told(&mut self) {
        if self.deferred_atime.is_none() && self.kept.uncommitted_end() == 0 {
            self.owed = None;
        } else if let Some(owed) = &mut self.owed {
            owed.mtime = self.attributes.mtime;
            self.last_write = self.attributes.mtime;
        }
    }

    /// `utimes` gave the file this mtime, and writes before it must not take it back, wherever they are on their way.
    pub(crate) fn set_mtime(&mut self, mtime: Timestamp) {
        self.last_write = mtime;
        if let Some(owed) = &mut self.owed {
            owed.mtime = mtime;
        }
    }

    /// The group is to be told of something done then.
    pub(crate) fn owe(&mut self, since_ms: u64) {
        self.debts += 1;
        let before = self.owed;
        self.owed = Some(Owed {
            mtime: self.last_write,
            number: self.debts,
            since_ms: before.map_or(since_ms, |owed| owed.since_ms),
            times: before.is_some_and(|owed| owed.times),
        });
    }

    /// Whether the group is to be told now though nobody asks, so that others see a log grow.
    pub(crate) fn is_commit_due(&self, now_ms: u64) -> bool {
        let age_ms = match self.growth {
            // Who looks at the file gets its present length anyway.
            Some(_) => GROWTH_AGE_MS,
            None => FLUSH_AGE_MS,
        };
        self.owed
            .is_some_and(|owed| now_ms.saturating_sub(owed.since_ms) >= age_ms)
    }

    /// The command's part that pays the debt.
    pub(crate) fn commit(&self, growing: bool) -> Option<(WriteCommit, u64)> {
        let end = self.kept.uncommitted_end();
        let (mtime, number) = match self.owed {
            Some(owed) => (owed.mtime, owed.number),
            None if end > 0 => (self.last_write, self.debts),
            None => return None,
        };
        let commit = WriteCommit {
            // Also where it is below the length that is known here: somebody may have truncated the file.
            extend_to_bytes: Some(end).filter(|&end| end > 0 && !planted::is(Bug::LengthUntold)),
            mtime: Some(mtime),
            clear_suid: false,
            growing,
            cut: self.cut(),
            sparse: self.made_sparse,
        };
        Some((commit, number))
    }

    /// A commit that began then has paid what was owed by then.
    pub(crate) fn paid(&mut self, number: u64, began_ms: u64) {
        match &mut self.owed {
            Some(owed) if owed.number == number => self.owed = None,
            Some(owed) => owed.since_ms = owed.since_ms.max(began_ms),
            None => {}
        }
    }
}

pub(super) fn cut_of(attributes: &Attributes) -> CutEpoch {
    attributes.file.as_ref().map_or(CutEpoch::NONE, |file| file.cut)
}

impl FileState {
    pub(crate) fn chain_of(&self, table: &RoutingTable, index: ChunkIndex) -> Result<ChainId> {
        table
            .tables
            .get(&self.layout.table)
            .and_then(|chains| self.layout.chain_of(chains, index))
            .ok_or_else(|| {
                Error::new(
                    ErrorCode::TooFewReplicas,
                    format!(
                        "inode {}: chain table {} is not in the routing table (version {})",
                        self.inode, self.layout.table, table.version
                    ),
                )
            })
    }

    pub(crate) fn reading(&self) -> Reading<'_> {
        Reading {
            cipher: &self.cipher,
            level: self.read_level,
            session: self.session,
        }
    }

    pub(crate) fn tick(&self) {
        self.progress.send_modify(|count| *count += 1);
    }
}

#[cfg(test)]
mod tests {
    use dfs_common::wire::namespace::FileKind;
    use dfs_common::{ChainTableId, Policy};

    use super::*;

    fn inner() -> Inner {
        let zero = Timestamp::default();
        let attributes = Attributes {
            inode: InodeId(9),
            kind: FileKind::Regular,
            mode: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            length_bytes: 100,
            atime: zero,
            mtime: zero,
            ctime: zero,
            crtime: zero,
            change: 5,
            file: None,
            policy: Policy::default(),
        };
        Inner::new(attributes, &Layout::new(ChainTableId(1), 0), Some(5))
    }

    /// A write that ends there arrives.
    fn arrive(inner: &mut Inner, end: u64) {
        let arrival = arrival(inner, end);
        inner.arrived(arrival, &Arc::new(Semaphore::new(1 << 20)));
    }

    fn arrival(inner: &mut Inner, end: u64) -> Arrival {
        let number = inner.kept.newest() + 1;
        let mut slab = Slab::default();
        slab.write(end - 10, &[1; 10]);
        let version = ChunkVersion {
            epoch: dfs_common::Epoch(1),
            counter: 2,
        };
        inner
            .unsynced
            .acknowledged(ChainId(1), number, (version.epoch, Level::Quorum));
        let written = Written {
            run: WrittenRun {
                chunk: ChunkIndex(0),
                first: BlockIndex((end / 4096) as u32),
                blocks: 1,
                version,
                bases: Vec::new(),
            },
            cut: CutEpoch::NONE,
            number,
        };
        Arrival {
            chain: ChainId(1),
            slab: Arc::new(slab),
            written: vec![written],
            sync: false,
            alone: false,
            sent_ms: 0,
        }
    }

    /// As a commit that went well leaves it.
    fn committed(inner: &mut Inner) -> WriteCommit {
        let (commit, number) = inner.commit(false).expect("something is owed");
        let newest = inner.kept.newest();
        inner.kept.committed((newest, u64::MAX), inner.cut());
        inner.paid(number, 0);
        commit
    }

    #[test]
    fn the_view_is_the_longest_of_what_is_known() {
        let mut inner = inner();
        assert_eq!(inner.length(), 100);
        inner.dirty.write(200, &[1; 50], 0);
        inner.note_write(Timestamp::from_nanos(77));
        let fresh = inner.attributes.clone();
        assert_eq!(inner.view(&fresh).length_bytes, 250);
        assert_eq!(inner.view(&fresh).mtime.nanos, 77);
        assert_eq!(inner.stable_length(), 100);
        arrive(&mut inner, 180);
        assert_eq!(inner.stable_length(), 180);
    }

    #[test]
    fn a_debt_made_during_a_commit_stays() {
        let mut inner = inner();
        arrive(&mut inner, 150);
        let (commit, number) = inner.commit(false).unwrap();
        assert_eq!(commit.extend_to_bytes, Some(150));
        let newest = inner.kept.newest();
        arrive(&mut inner, 180);
        inner.kept.committed((newest, u64::MAX), CutEpoch::NONE);
        inner.paid(number, 0);
        assert_eq!(committed(&mut inner).extend_to_bytes, Some(180));
        assert!(inner.commit(false).is_none());
    }

    /// A log that never rests is told once an age, not with every round trip.
    #[test]
    fn a_debt_made_during_a_commit_is_no_older_than_that() {
        let mut inner = inner();
        arrive(&mut inner, 150);
        let (_, number) = inner.commit(false).unwrap();
        let newest = inner.kept.newest();
        arrive(&mut inner, 180);
        let began_ms = 1_000;
        assert!(inner.is_commit_due(began_ms));
        inner.kept.committed((newest, u64::MAX), CutEpoch::NONE);
        inner.paid(number, began_ms);
        assert!(!inner.is_commit_due(began_ms + FLUSH_AGE_MS - 1));
        assert!(inner.is_commit_due(began_ms + FLUSH_AGE_MS));
    }

    #[test]
    fn a_length_is_told_whatever_this_mount_believes_the_length_to_be() {
        let mut inner = inner();
        // The chunk was not there, so nobody can know whether the file still reaches so far.
        inner.attributes.length_bytes = 1 << 20;
        arrive(&mut inner, 100);
        assert_eq!(
            inner.commit(false).unwrap().0.extend_to_bytes,
            None,
            "it is known to lie within"
        );
        committed(&mut inner);
        let mut arrival = arrival(&mut inner, 200);
        arrival.written[0].run.version.counter = 1;
        inner.arrived(arrival, &Arc::new(Semaphore::new(1 << 20)));
        assert_eq!(inner.commit(false).unwrap().0.extend_to_bytes, Some(200));
        let mut held = self::arrival(&mut inner, 300);
        held.written[0].run.version.counter = 1;
        held.alone = true;
        inner.arrived(held, &Arc::new(Semaphore::new(1 << 20)));
        assert_eq!(
            inner.commit(false).unwrap().0.extend_to_bytes,
            Some(200),
            "nobody else writes"
        );
    }

    #[test]
    fn a_time_that_was_set_stands_until_the_next_write() {
        let at = Timestamp::from_nanos;
        let mut inner = inner();
        inner.dirty.write(200, &[1; 50], 0);
        inner.note_write(at(77));
        arrive(&mut inner, 150);
        inner.set_mtime(at(5_000));
        assert_eq!(inner.commit(false).unwrap().0.mtime, Some(at(5_000)));
        let fresh = inner.attributes.clone();
        assert_eq!(
            (inner.view(&fresh).mtime, inner.view(&fresh).ctime),
            (at(5_000), at(77))
        );
        // The rest of what was written before arrives.
        arrive(&mut inner, 250);
        assert_eq!(inner.commit(false).unwrap().0.mtime, Some(at(5_000)));
        inner.note_write(at(99));
        arrive(&mut inner, 260);
        assert_eq!(inner.commit(false).unwrap().0.mtime, Some(at(99)));
    }

    #[test]
    fn only_times_are_deferred_and_only_with_a_debt() {
        let at = Timestamp::from_nanos;
        let set = |mode, uid, mtime| SetAttributes {
            mode,
            uid,
            mtime,
            ..SetAttributes::default()
        };
        let times = SetAttributes {
            atime: Some(SetTime::To(at(4))),
            ..set(None, None, Some(SetTime::To(at(5))))
        };
        let mut inner = inner();
        inner.opens = 1;
        assert!(!inner.defer(&times, at(9), 0), "nothing is owed");
        arrive(&mut inner, 150);
        // What the file has already too: somebody else may change it before this is told.
        assert!(!inner.defer(&set(Some(0o644), None, None), at(9), 0));
        assert!(!inner.defer(&set(None, Some(0), None), at(9), 0));
        assert!(!inner.defer(&set(None, None, Some(SetTime::Now)), at(9), 0));
        assert!(inner.defer(&times, at(9), 0));
        let (commit, _) = inner.commit(false).unwrap();
        assert_eq!((commit.extend_to_bytes, commit.mtime), (Some(150), Some(at(5))));
        let view = inner.view(&inner.attributes.clone());
        assert_eq!((view.atime, view.mtime, view.ctime), (at(4), at(5), at(9)));
        // A truncation tells the length and its own time; the rest stays owed.
        inner.attributes.mtime = at(20);
        inner.length_told();
        assert_eq!(inner.commit(false).unwrap().0.mtime, Some(at(20)));
        assert_eq!(inner.view(&inner.attributes.clone()).mtime, at(20));
        inner.opens = 0;
        assert!(!inner.defer(&times, at(9), 0), "nobody would pay it");
    }

    fn hold(epoch: u64) -> Hold {
        Hold {
            session: SessionId(4),
            epoch: dfs_common::HoldEpoch(epoch),
        }
    }

    /// A file that the group knows to grow, as two fsyncs leave it.
    fn growing() -> Inner {
        let mut inner = inner();
        for _ in 0..2 {
            arrive(&mut inner, 150);
            let next = inner.growth_after(Word::Synced, Some(hold(1)));
            let (commit, number) = inner.commit(next.is_some()).unwrap();
            assert_eq!(commit.growing, next.is_some());
            let newest = inner.kept.newest();
            inner.kept.committed((newest, u64::MAX), CutEpoch::NONE);
            inner.paid(number, 0);
            inner.growth = next;
        }
        assert!(
            !inner.may_promise(Some(hold(1))),
            "not before the group knows for certain"
        );
        let known = inner.growth;
        inner.growth_settled(known);
        inner
    }

    #[test]
    fn fsync_promises_only_what_the_group_would_find() {
        let mut inner = growing();
        arrive(&mut inner, 200);
        assert!(!inner.promise(None) && !inner.promise(Some(hold(2))));
        assert!(inner.promise(Some(hold(1))));
        assert_eq!(
            inner.commit(true).unwrap().0.extend_to_bytes,
            Some(200),
            "it is still to be told"
        );
        // Times that were set are in no chunk.
        inner.opens = 1;
        let times = SetAttributes {
            mtime: Some(SetTime::To(Timestamp::from_nanos(5))),
            ..SetAttributes::default()
        };
        assert!(inner.defer(&times, Timestamp::from_nanos(9), 0));
        assert!(!inner.promise(Some(hold(1))));
    }

    #[test]
    fn the_last_word_ends_promises_before_it_is_said() {
        let mut inner = growing();
        let was = inner.growth.unwrap();
        assert_eq!(inner.growth_after(Word::Last, Some(hold(1))), None);
        assert!(!inner.is_quiet());
        let (commit, number) = inner.last_word(Word::Last).unwrap();
        assert!(commit.is_bare() && number == 0);
        // As `commit` does it: nobody may promise while that word is on its way.
        inner.growth = None;
        arrive(&mut inner, 300);
        assert!(!inner.promise(Some(hold(1))));
        // It did not come through, or did: what was known of the growth is not known any more.
        inner.growth_uncertain(was);
        inner.growth_settled(Some(was));
        assert!(!inner.promise(Some(hold(1))));
        let next = inner.growth_after(Word::Synced, Some(hold(1)));
        assert_eq!(next, inner.growth, "it is said anew");
        inner.growth_settled(next);
        assert!(inner.promise(Some(hold(1))));
    }

    #[test]
    fn after_a_hold_is_lost_everything_is_told_again_unless_the_file_was_cut() {
        let mut fresh = inner().attributes;
        fresh.length_bytes = 4;
        fresh.change = 3;
        // The group looked for the end before the promise was made, by a mount that stood still.
        let mut lost = growing();
        arrive(&mut lost, 200);
        assert!(lost.promise(Some(hold(1))));
        lost.growth_lost(&fresh);
        assert_eq!((lost.length(), lost.is_quiet()), (200, false));
        assert_eq!(lost.commit(false).unwrap().0.extend_to_bytes, Some(200));
        // All was promised, and others have cut it since.
        fresh.file = Some(dfs_common::wire::namespace::FileAttributes {
            layout: Layout::new(ChainTableId(1), 0),
            key: dfs_common::wire::namespace::WrappedKey {
                kek_version: 1,
                bytes: Vec::new(),
            },
            versions: dfs_common::VersionVector::default(),
            cut: CutEpoch(2),
            cuts: LastCuts::default(),
            sparse: false,
        });
        let mut lost = growing();
        arrive(&mut lost, 200);
        assert!(lost.promise(Some(hold(1))));
        lost.growth_lost(&fresh);
        assert_eq!((lost.length(), lost.is_quiet()), (4, true));
        // A write that no fsync covered came after it.
        let mut lost = growing();
        arrive(&mut lost, 9_000);
        assert!(lost.promise(Some(hold(1))));
        arrive(&mut lost, 150);
        lost.growth_lost(&fresh);
        assert_eq!(lost.commit(false).unwrap().0.extend_to_bytes, Some(150));
    }

    #[test]
    fn foreign_changes_void_the_kernels_cache_and_late_answers_are_ignored() {
        let mut inner = inner();
        let mut fresh = inner.attributes.clone();
        fresh.change = 6;
        inner.learn_own(&fresh);
        assert_eq!(inner.own_change, Some(6));
        fresh.change = 8;
        fresh.length_bytes = 300;
        inner.learn_own(&fresh);
        assert_eq!(inner.own_change, None);
        fresh.change = 7;
        fresh.length_bytes = 1;
        inner.learn(&fresh);
        assert_eq!(inner.attributes.length_bytes, 300);
    }

    #[test]
    fn foreign_changes_void_what_was_read_ahead_however_they_are_learned_of() {
        let mut inner = inner();
        let mut fresh = inner.attributes.clone();
        let mut change_to = |change, own| {
            let before = (inner.generation, inner.foreign);
            fresh.change = change;
            if own {
                inner.learn_own(&fresh);
            } else {
                inner.learn(&fresh);
            }
            let voids = inner.generation > before.0;
            assert_eq!(voids, inner.foreign > before.1);
            voids
        };
        assert!(!change_to(5, false), "known already");
        assert!(!change_to(6, true), "this mount's own");
        assert!(change_to(7, false));
        assert!(!change_to(8, true));
        assert!(change_to(10, true), "9 was somebody else's");
        assert!(!change_to(9, false), "a late answer");
    }
}
