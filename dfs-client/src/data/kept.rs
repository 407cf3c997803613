//! Acknowledged writes that this mount may have to send again. Pure.
//!
//! A chain acknowledges a write when enough replicas have it in memory. Two things can still undo it: all of them lose their
//! power before a sync, or somebody cuts the file at its end before the metadata group knows that it reaches so far (see
//! [`CutEpoch`]). So a write stays here until it is both *synced* and *committed*, with its bytes as long as there is room.
//!
//! Invariant: as long as an entry has its bytes, sending all entries again in their order, the newest bytes on top, makes the
//! file what its writer was told it is.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use dfs_common::planted::{self, Bug};
use dfs_common::units::BLOCK_SIZE_BYTES;
use dfs_common::{BlockIndex, ChainId, ChunkIndex, ChunkVersion, CutEpoch};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::acknowledged::{Entry, Lacks, WrittenRun};
use super::fate::{Touched, touched};
use crate::routing::KeptSpans;

/// Bytes that are kept of one file. Who writes more without a sync is told of a loss instead.
pub(crate) const MAX_KEPT_BYTES: usize = 16 << 20;

#[derive(Debug)]
struct Held {
    entry: Entry,
    /// In the mount's bound.
    room: Option<OwnedSemaphorePermit>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// Oldest first.
    entries: VecDeque<Held>,
    bytes: usize,
    uncommitted_end: u64,
    uncommitted_bytes: usize,
}

impl Kept {
    /// Takes a write in. Returns the chain and number of each unsynced write whose bytes had to go.
    pub(crate) fn push(&mut self, mut entry: Entry, room: &Arc<Semaphore>) -> Vec<(ChainId, u64)> {
        let mut gaps = Vec::new();
        let size = entry.slab.as_ref().map_or(0, |slab| slab.size_bytes);
        let wanted = u32::try_from(size).unwrap_or(u32::MAX);
        let room = Arc::clone(room).try_acquire_many_owned(wanted).ok();
        if room.is_none() {
            entry.slab = None;
            gaps.extend(entry.lacks.sync.then_some((entry.chain, entry.number)));
        } else {
            self.bytes += size;
        }
        if entry.lacks.commit {
            self.uncommitted_end = self.uncommitted_end.max(entry.end);
            self.uncommitted_bytes += size;
        }
        self.entries.push_back(Held { entry, room });
        let mut oldest = 0;
        while self.bytes > MAX_KEPT_BYTES && oldest < self.entries.len() {
            gaps.extend(self.drop_bytes(oldest));
            oldest += 1;
        }
        self.sweep();
        gaps
    }

    /// Drops the bytes of one entry; says of which, if they were unsynced.
    fn drop_bytes(&mut self, at: usize) -> Option<(ChainId, u64)> {
        let held = self.entries.get_mut(at)?;
        let slab = held.entry.slab.take()?;
        self.bytes -= slab.size_bytes;
        held.room = None;
        held.entry.lacks.sync.then_some((held.entry.chain, held.entry.number))
    }

    /// Without bytes nobody can send it again, and without a debt nobody needs to; but what lies on top of an older write stays as long
    /// as that does, since it must not be undone when that is sent again.
    fn sweep(&mut self) {
        let bytes = &mut self.bytes;
        let mut older = BTreeSet::new();
        self.entries.retain(|held| {
            let entry = &held.entry;
            let owes = entry.lacks.commit || (entry.lacks.sync && entry.slab.is_some());
            let stays = owes || entry.chunks().any(|chunk| older.contains(&chunk));
            if stays {
                older.extend(entry.chunks());
            } else {
                *bytes -= entry.slab.as_ref().map_or(0, |slab| slab.size_bytes);
            }
            stays
        });
        let uncommitted = || self.entries.iter().filter(|held| held.entry.lacks.commit);
        self.uncommitted_end = uncommitted().map(|held| held.entry.end).max().unwrap_or(0);
        self.uncommitted_bytes = uncommitted()
            .filter_map(|held| held.entry.slab.as_ref())
            .map(|slab| slab.size_bytes)
            .sum();
    }

    /// Everything on the chain up to this write is durable.
    pub(crate) fn synced(&mut self, chain: ChainId, up_to: u64) {
        let mut any = false;
        for held in &mut self.entries {
            let entry = &mut held.entry;
            if entry.chain == chain && entry.number <= up_to && entry.lacks.sync {
                entry.lacks.sync = false;
                any = true;
            }
        }
        if any {
            self.sweep();
        }
    }

    /// Numbers of what was acknowledged in an epoch and is not known to precede later cuts.
    pub(crate) fn may_follow_cuts(&self, cut: CutEpoch) -> BTreeSet<u64> {
        let entries = self.entries().filter(|entry| entry.cut == cut && !entry.precedes_cuts);
        entries.map(|entry| entry.number).collect()
    }

    /// The group's epoch was still that in which these writes were acknowledged.
    pub(crate) fn preceded_cuts(&mut self, numbers: &BTreeSet<u64>) {
        for held in &mut self.entries {
            held.entry.precedes_cuts |= numbers.contains(&held.entry.number);
        }
    }

    /// The group knows of every length up to this write and this end that was told in this epoch.
    pub(crate) fn committed(&mut self, (up_to, end): (u64, u64), cut: CutEpoch) {
        let mut any = false;
        for held in &mut self.entries {
            let entry = &mut held.entry;
            let told = (entry.number <= up_to && entry.end <= end) || planted::is(Bug::DebtDropped);
            if told && entry.cut == cut && entry.lacks.commit {
                entry.lacks.commit = false;
                any = true;
            }
        }
        if any {
            self.sweep();
        }
    }

    /// Whatever its epoch, no length up to this write is to be told any more: the mount itself has set another, or nobody can be
    /// told.
    pub(crate) fn forget_lengths(&mut self, up_to: u64) {
        for held in &mut self.entries {
            if held.entry.number <= up_to {
                held.entry.lacks.commit = false;
            }
        }
        self.sweep();
    }

    /// This mount has cut the file to `length`, after all that is here was acknowledged: what lies beyond is not to be sent again.
    /// What was acknowledged in epoch `from` has outlived the cut, which raised it to `to`; of older writes nobody knows, since somebody
    /// else has cut the file in between.
    pub(crate) fn cut_to(&mut self, length: u64, (from, to): (CutEpoch, CutEpoch)) {
        let numbers: Vec<u64> = self.entries.iter().map(|held| held.entry.number).collect();
        for held in &mut self.entries {
            if held.entry.cut == from {
                held.entry.cut = to;
            }
        }
        self.truncated(&numbers, length);
    }

    /// These writes have lost what they had beyond `length`, and rightly so: the file was truncated after them.
    pub(crate) fn truncated(&mut self, numbers: &[u64], length: u64) {
        self.edit(|entry| {
            if numbers.contains(&entry.number) {
                entry.truncate(length);
            }
        });
    }

    /// A block was found at this version, with these bytes. Where somebody else wrote to it after
    /// this mount, and nothing can have been lost in between, what differs of this mount's bytes
    /// was written over. Of each entry only so many bytes of the block count, in their order, as no
    /// cut has touched since it was acknowledged.
    pub(crate) fn found(
        &mut self,
        (chunk, block, start): (ChunkIndex, BlockIndex, u64),
        found: ChunkVersion,
        (bytes, uncut): (&[u8], &[u64]),
        spans: &KeptSpans,
    ) {
        let touches = |run: &WrittenRun| run.chunk == chunk && run.has(block);
        let here = self.select(|entry| entry.runs.iter().any(touches));
        let is_under = |ours: &Touched| ours.is_under(found, spans);
        if touched(&here, |_, _| BLOCK_SIZE_BYTES, spans)
            .get(&(chunk, block))
            .is_some_and(is_under)
        {
            self.overlay_each((chunk, block, start), bytes, |at| uncut.get(at).copied().unwrap_or(0));
        }
    }

    /// Others have written these bytes over the first ones of a block. To be sent again with the
    /// rest, so that the block becomes what it was as a whole: half of it would be nothing that
    /// anybody ever wrote.
    pub(crate) fn overlay(&mut self, place: (ChunkIndex, BlockIndex, u64), bytes: &[u8]) {
        self.overlay_each(place, bytes, |_| u64::MAX);
    }

    /// The same with so many of them at most for the entry at a place.
    fn overlay_each(
        &mut self,
        (chunk, block, start): (ChunkIndex, BlockIndex, u64),
        bytes: &[u8],
        at_most: impl Fn(usize) -> u64,
    ) {
        let touches = |run: &WrittenRun| run.chunk == chunk && run.has(block);
        let mut places = 0..;
        self.edit(|entry| {
            let at_most = places.next().map_or(0, &at_most).min(bytes.len() as u64);
            let bytes = &bytes[..at_most as usize];
            let Some(slab) = entry.slab.as_mut().filter(|_| entry.runs.iter().any(touches)) else {
                return;
            };
            let mut ours = Vec::new();
            slab.pieces(start, bytes.len() as u64, &mut ours);
            for (at, ours) in ours {
                let there = &bytes[(at - start) as usize..][..ours.len()];
                if there != ours {
                    Arc::make_mut(slab).write(at, there);
                }
            }
        });
    }

    fn edit(&mut self, mut change: impl FnMut(&mut Entry)) {
        for held in &mut self.entries {
            self.bytes -= held.entry.size_bytes();
            change(&mut held.entry);
            self.bytes += held.entry.size_bytes();
        }
        self.sweep();
    }

    /// Where the last write ends whose length the group does not know; 0: there is none.
    pub(crate) const fn uncommitted_end(&self) -> u64 {
        self.uncommitted_end
    }

    /// Bytes that wait here for a commit.
    pub(crate) const fn uncommitted_bytes(&self) -> usize {
        self.uncommitted_bytes
    }

    /// The greatest number; slabs that travel together arrive in any order.
    pub(crate) fn newest(&self) -> u64 {
        self.entries.iter().map(|held| held.entry.number).max().unwrap_or(0)
    }

    /// Where a write ends now; `None`: it is not here any more.
    pub(crate) fn end_of(&self, number: u64) -> Option<u64> {
        let mut entries = self.entries();
        entries.find(|entry| entry.number == number).map(|entry| entry.end)
    }

    /// All writes on a chain, oldest first.
    pub(crate) fn on(&self, chain: ChainId) -> Vec<Entry> {
        self.select(|entry| entry.chain == chain)
    }

    /// Whether a write to this chunk lies on top of one that is here.
    pub(crate) fn touches(&self, chunk: ChunkIndex) -> bool {
        let mut chunks = self.entries.iter().flat_map(|held| held.entry.chunks());
        chunks.any(|touched| touched == chunk)
    }

    /// Uncommitted writes that were acknowledged in another truncation epoch than this.
    pub(crate) fn uncommitted_before(&self, cut: CutEpoch) -> Vec<Entry> {
        self.select(|entry| entry.lacks.commit && entry.cut != cut)
    }

    /// Pieces of a range that were sent before that time and are not committed yet, and whatever was written after them, oldest first.
    /// Another mount may have cut them without this one's knowing.
    pub(crate) fn overdue_pieces(&self, offset: u64, length: u64, before_ms: u64) -> Vec<(u64, Vec<u8>)> {
        let is_overdue = |entry: &&Entry| entry.lacks.commit && entry.since_ms < before_ms;
        let mut out = Vec::new();
        for entry in self.entries().skip_while(|entry| !is_overdue(entry)) {
            if let Some(slab) = &entry.slab {
                slab.pieces(offset, length, &mut out);
            }
        }
        out
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().map(|held| &held.entry)
    }

    fn select(&self, wanted: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        let entries = self.entries.iter().map(|held| &held.entry);
        entries.filter(|entry| wanted(entry)).cloned().collect()
    }

    /// These writes were found on their chain, or sent again, in this epoch.
    pub(crate) fn confirmed(&mut self, numbers: &[u64], cut: CutEpoch) {
        for held in &mut self.entries {
            if numbers.contains(&held.entry.number) {
                held.entry.cut = cut;
            }
        }
    }

    /// This mount has written blocks of what is here anew, as this run, durably.
    pub(crate) fn rewritten(&mut self, run: &WrittenRun) {
        for held in &mut self.entries {
            let entry = &mut held.entry;
            if entry.runs.iter().any(|before| before.overlaps(run)) {
                entry.runs.push(run.clone());
            }
        }
    }

    /// These writes are lost, and their writer is told.
    pub(crate) fn lost(&mut self, numbers: &[u64]) {
        for held in &mut self.entries {
            if numbers.contains(&held.entry.number) {
                held.entry.lacks = Lacks {
                    sync: false,
                    commit: false,
                };
            }
        }
        self.sweep();
    }

    /// Drops the bytes of all that only lacks a sync: who has closed a file no longer waits for it.
    pub(crate) fn drop_unsynced(&mut self) -> Vec<(ChainId, u64)> {
        let gaps = (0..self.entries.len())
            .filter(|&at| !self.entries[at].entry.lacks.commit)
            .collect::<Vec<_>>();
        let gaps = gaps.into_iter().filter_map(|at| self.drop_bytes(at)).collect();
        self.sweep();
        gaps
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use dfs_common::Epoch;

    use super::super::acknowledged::Base;
    use super::super::dirty::Slab;
    use super::super::fate::{merged, uncovered};
    use super::*;

    const CHAIN: ChainId = ChainId(3);
    const BOTH: Lacks = Lacks {
        sync: true,
        commit: true,
    };
    const SYNC: Lacks = Lacks {
        sync: true,
        commit: false,
    };

    fn version(counter: u64) -> ChunkVersion {
        let epoch = Epoch(1);
        ChunkVersion { epoch, counter }
    }

    fn entry(number: u64, at: u64, bytes: &[u8], lacks: Lacks) -> Entry {
        let mut slab = Slab::default();
        slab.write(at, bytes);
        Entry {
            chain: CHAIN,
            number,
            end: at + bytes.len() as u64,
            slab: Some(Arc::new(slab)),
            runs: vec![WrittenRun {
                chunk: ChunkIndex(0),
                first: BlockIndex((at / 4096) as u32),
                blocks: 1,
                version: version(number),
                bases: Vec::new(),
            }],
            cut: CutEpoch(2),
            precedes_cuts: false,
            since_ms: number,
            lacks,
        }
    }

    fn room() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(2 * MAX_KEPT_BYTES))
    }

    #[test]
    fn a_write_stays_until_it_is_synced_and_committed() {
        let (mut kept, room) = (Kept::default(), room());
        assert!(kept.push(entry(1, 0, b"one", BOTH), &room).is_empty());
        assert!(kept.push(entry(2, 100, b"two", SYNC), &room).is_empty());
        assert_eq!((kept.uncommitted_end(), kept.uncommitted_bytes()), (3, 3));
        kept.synced(CHAIN, 1);
        assert_eq!(kept.uncommitted_before(CutEpoch(4)).len(), 1);
        kept.committed((1, u64::MAX), CutEpoch(4));
        assert_eq!(kept.uncommitted_end(), 3, "it was not told in its epoch");
        kept.confirmed(&[1], CutEpoch(4));
        kept.committed((1, u64::MAX), CutEpoch(4));
        assert_eq!((kept.uncommitted_end(), kept.newest()), (0, 2));
        kept.synced(ChainId(9), 2);
        assert_eq!(kept.on(CHAIN).len(), 1, "another chain");
        kept.synced(CHAIN, 2);
        assert_eq!((kept.newest(), kept.bytes), (0, 0));
        assert_eq!(room.available_permits(), 2 * MAX_KEPT_BYTES);
    }

    #[test]
    fn what_lies_on_top_of_an_older_write_stays_with_it() {
        let (mut kept, room) = (Kept::default(), room());
        kept.push(entry(1, 0, b"old", BOTH), &room);
        kept.push(entry(2, 0, b"new", SYNC), &room);
        kept.synced(CHAIN, 2);
        assert_eq!(kept.on(CHAIN).len(), 2, "sending the first again would undo the second");
        kept.committed((2, u64::MAX), CutEpoch(2));
        assert!(kept.on(CHAIN).is_empty());
    }

    #[test]
    fn a_commit_covers_what_arrived_out_of_order() {
        let (mut kept, room) = (Kept::default(), room());
        kept.push(entry(2, 1 << 20, b"late", BOTH), &room);
        kept.push(entry(1, 0, b"early", BOTH), &room);
        kept.committed((kept.newest(), u64::MAX), CutEpoch(2));
        assert_eq!(kept.uncommitted_end(), 0);
    }

    #[test]
    fn newer_bytes_lie_on_top_of_older_ones() {
        let entries = [entry(1, 0, b"aaaaaa", SYNC), entry(2, 2, b"bb", SYNC)];
        let slabs = merged(&entries, 1 << 20).unwrap();
        assert_eq!(slabs[&0].extents, BTreeMap::from([(0, b"aabbaa".to_vec())]));
        assert_eq!(
            touched(&entries, |_, _| BLOCK_SIZE_BYTES, &KeptSpans::default())[&(ChunkIndex(0), BlockIndex(0))].newest,
            version(2)
        );
    }

    #[test]
    fn beyond_the_bound_the_oldest_bytes_go_and_the_chain_has_a_gap() {
        let (mut kept, room) = (Kept::default(), room());
        let half = vec![1; MAX_KEPT_BYTES / 2];
        assert!(kept.push(entry(1, 0, &half, BOTH), &room).is_empty());
        assert!(kept.push(entry(2, 0, &half, SYNC), &room).is_empty());
        assert_eq!(kept.push(entry(3, 0, b"x", SYNC), &room), [(CHAIN, 1)]);
        assert_eq!(
            kept.uncommitted_before(CutEpoch(4)).len(),
            1,
            "its length is still to be told"
        );
        assert!(merged(&kept.on(CHAIN), 1 << 20).is_none());
        let _others = room.try_acquire_many(room.available_permits() as u32).unwrap();
        assert_eq!(
            kept.push(entry(4, 0, b"y", SYNC), &room),
            [(CHAIN, 4)],
            "the mount keeps enough already"
        );
        assert_eq!(kept.drop_unsynced(), [(CHAIN, 2), (CHAIN, 3)]);
        assert_eq!(kept.bytes, 0);
    }

    #[test]
    fn what_this_mount_cut_is_not_sent_again() {
        let (mut kept, room) = (Kept::default(), room());
        kept.push(entry(1, 0, b"abcdef", BOTH), &room);
        kept.push(entry(2, 100, b"gone", BOTH), &room);
        kept.cut_to(4, (CutEpoch(2), CutEpoch(5)));
        let left = kept.on(CHAIN);
        assert_eq!((left[0].cut, left[0].end), (CutEpoch(5), 4));
        // It lies on top of the other, so its version still counts; it owes nothing.
        let owes = left[1].lacks.sync || left[1].lacks.commit;
        assert_eq!((left.len(), left[1].end, owes), (2, 4, false));
        assert_eq!(
            merged(&left, 1 << 20).unwrap()[&0].extents,
            BTreeMap::from([(0, b"abcd".to_vec())])
        );
        assert_eq!(kept.bytes, 4);
    }

    #[test]
    fn a_commit_that_is_overdue_does_not_hide_the_mounts_own_bytes() {
        let (mut kept, room) = (Kept::default(), room());
        kept.push(entry(1, 0, b"aaaa", BOTH), &room);
        kept.push(entry(2, 2, b"bb", BOTH), &room);
        kept.push(entry(3, 3, b"c", SYNC), &room);
        assert!(kept.overdue_pieces(0, 4, 1).is_empty());
        let pieces = kept.overdue_pieces(1, 3, 2);
        // Newer ones, too, or they would be hidden.
        assert_eq!(pieces, [(1, b"aaa".to_vec()), (2, b"bb".to_vec()), (3, b"c".to_vec())]);
    }

    #[test]
    fn what_others_wrote_over_a_kept_write_is_kept_in_its_place() {
        let (mut kept, room) = (Kept::default(), room());
        kept.push(entry(1, 0, b"abcdef", SYNC), &room);
        kept.push(entry(3, 8, b"yz", SYNC), &room);
        let block = (ChunkIndex(0), BlockIndex(0), 0);
        kept.found(block, version(2), (b"aXXdef", &[6; 3]), &KeptSpans::default());
        let content = |kept: &Kept| merged(&kept.on(CHAIN), 1 << 20).unwrap()[&0].extents.clone();
        assert_eq!(content(&kept)[&0], b"abcdef", "the mount itself wrote after that");
        kept.found(block, version(4), (b"aXXdef", &[6; 3]), &KeptSpans::default());
        assert_eq!(
            content(&kept),
            BTreeMap::from([(0, b"aXXdef".to_vec()), (8, b"yz".to_vec())])
        );
        kept.overlay(block, b"ZZ");
        assert_eq!(content(&kept)[&0], b"ZZXdef");
        assert_eq!(kept.bytes, 8);
    }

    #[test]
    fn somebody_elses_write_between_two_of_this_mounts_is_known_until_all_of_the_block_is_written() {
        let entry = |number, base: Option<ChunkVersion>| {
            let mut entry = entry(number, 0, b"abc", BOTH);
            let base = base.map(|version| Base {
                block: BlockIndex(0),
                version,
                length_bytes: 100,
            });
            entry.runs[0].bases.extend(base);
            entry
        };
        let ours = |uncut, bases: &[(u64, Option<ChunkVersion>)]| {
            let entries: Vec<Entry> = bases.iter().map(|&(number, base)| entry(number, base)).collect();
            touched(&entries, |_, _| uncut, &KeptSpans::default())[&(ChunkIndex(0), BlockIndex(0))]
        };
        let between = |bases: &[(u64, Option<ChunkVersion>)]| ours(0, bases).between;
        assert_eq!(
            between(&[(2, Some(version(1)))]),
            None,
            "nothing of this mount was there before"
        );
        assert_eq!(between(&[(2, None), (3, Some(version(2)))]), None);
        assert_eq!(
            between(&[(2, None), (3, Some(ChunkVersion::NONE))]),
            None,
            "its own was lost"
        );
        assert_eq!(between(&[(2, None), (4, Some(version(3)))]), Some(version(3)));
        assert_eq!(between(&[(2, None), (4, Some(version(3))), (5, None)]), None);
        // What it found there was all that a cut had left.
        let cut = ours(100, &[(2, None), (4, Some(version(3)))]);
        assert!(cut.lost && cut.between.is_none(), "{cut:?}");
    }

    #[test]
    fn a_block_that_the_mount_cut_itself_counts_once() {
        let (mut kept, room) = (Kept::default(), room());
        kept.push(entry(1, 0, b"abcdef", SYNC), &room);
        kept.push(entry(2, 8, b"yz", SYNC), &room);
        kept.rewritten(&WrittenRun {
            chunk: ChunkIndex(0),
            first: BlockIndex(0),
            blocks: 1,
            version: version(3),
            bases: vec![Base {
                block: BlockIndex(0),
                version: version(2),
                length_bytes: 9,
            }],
        });
        let all = touched(&kept.on(CHAIN), |_, _| BLOCK_SIZE_BYTES, &KeptSpans::default());
        let ours = all[&(ChunkIndex(0), BlockIndex(0))];
        assert!(ours.is_newest(version(3)), "{ours:?}");
    }

    #[test]
    fn what_newer_writes_leave_of_an_older_one() {
        let entries = [
            entry(1, 10, b"abcdefgh", BOTH),
            entry(2, 12, b"xx", BOTH),
            entry(3, 17, b"yyyy", BOTH),
        ];
        let left = |from| uncovered(&entries[0], &entries[1..], from).unwrap().extents;
        let pieces = |pieces: &[(u64, &[u8])]| -> BTreeMap<u64, Vec<u8>> {
            pieces.iter().map(|&(at, bytes)| (at, bytes.to_vec())).collect()
        };
        assert_eq!(left(0), pieces(&[(10, b"ab"), (14, b"efg")]));
        assert_eq!(left(15), pieces(&[(15, b"fg")]));
        assert_eq!(left(17), pieces(&[]));
    }
}
