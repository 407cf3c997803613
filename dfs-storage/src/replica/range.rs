//! Removing every chunk of some inodes from a point on: the head makes one removal a chunk of it.
//!
//! A range has no request id. What makes it safe to repeat is its truncation epoch: a chunk that has seen a later one was written,
//! or cut, after the cut that the range belongs to, and stays. A tombstone of an earlier epoch is removed once more, so that it
//! refuses what was sent before this cut.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use dfs_common::planted::{self, Bug};
use dfs_common::wire::storage::{MutateRequest, Mutation, RunsWanted, StorageResponse};
use dfs_common::{
    BlockIndex, ChunkId, ChunkIndex, CutEpoch, Epoch, Error, ErrorCode, InodeId, Level, RequestId, SessionId,
};

use super::pending::Waiter;
use super::types::{Answer, Now, StoreView, WaiterId};
use super::{MAX_PENDING_PER_CHUNK, ReplicaCore};

/// Removals of one range that are under way at a time: keeps the chain busy without filling it.
const MAX_REMOVALS: usize = 128;

/// Ranges under way on one chain.
const MAX_RANGES: usize = 64;

#[derive(Clone, Debug)]
pub(super) struct RangeJob {
    waiter: WaiterId,
    cut: CutEpoch,
    left: VecDeque<ChunkId>,
    under_way: usize,
    removed: u64,
}

impl ReplicaCore {
    pub(super) fn remove_range(
        &mut self,
        now: Now,
        epoch: Epoch,
        waiter: WaiterId,
        (inodes, from, cut): (&[InodeId], ChunkIndex, CutEpoch),
        session: SessionId,
        store: &dyn StoreView,
    ) {
        let admitted = self
            .admit_at_head(now, epoch)
            .and_then(|()| Self::check_session(session, store));
        if let Err(error) = admitted {
            return self.refuse(waiter, error);
        }
        if self.ranges.len() >= MAX_RANGES {
            let error = Error::new(
                ErrorCode::Overloaded,
                format!("chain {} removes {MAX_RANGES} ranges already", self.chain),
            );
            return self.refuse(waiter, error);
        }
        let mut chunks = BTreeSet::new();
        for &inode in inodes {
            chunks.extend(store.chunks_of(self.chain, inode, from));
            // Staged ones may not be in the store yet.
            let staged = ChunkId::new(inode, from)..=ChunkId::new(inode, ChunkIndex(u32::MAX));
            chunks.extend(self.queues.range(staged).map(|(&chunk, _)| chunk));
        }
        let job = self.id();
        self.ranges.insert(
            job,
            RangeJob {
                waiter,
                cut,
                left: chunks.into_iter().collect(),
                under_way: 0,
                removed: 0,
            },
        );
        self.advance_range(now, job, store);
    }

    fn advance_range(&mut self, now: Now, job: u64, store: &dyn StoreView) {
        loop {
            let Some(range) = self.ranges.get_mut(&job) else {
                return;
            };
            if range.left.is_empty() && range.under_way == 0 {
                let (waiter, chunks) = (range.waiter, range.removed);
                self.ranges.remove(&job);
                // Checked again: who was removed meanwhile may have told nobody.
                let removed = Answer::Response(StorageResponse::RangeRemoved { chunks });
                let answer = self.check_lease(now).map(|()| removed);
                self.answer(waiter, answer);
                return;
            }
            if range.under_way >= MAX_REMOVALS {
                return;
            }
            let Some(chunk) = range.left.pop_front() else {
                return;
            };
            let cut = range.cut;
            if !self.is_removed_by(cut, chunk, store) {
                continue;
            }
            if self
                .queues
                .get(&chunk)
                .is_some_and(|queue| queue.entries.len() >= MAX_PENDING_PER_CHUNK)
            {
                let error = Error::new(
                    ErrorCode::Overloaded,
                    format!("chunk {chunk} is being written: try again"),
                );
                if let Some(range) = self.ranges.remove(&job) {
                    self.refuse(range.waiter, error);
                }
                return;
            }
            if let Some(range) = self.ranges.get_mut(&job) {
                range.under_way += 1;
            }
            let request = MutateRequest {
                chain: self.chain,
                epoch: self.epoch(),
                chunk,
                id: RequestId::SYSTEM,
                level: Level::One,
                sync: false,
                uncut_since: None,
                cut,
                mutation: Mutation::Remove,
            };
            self.stage_at_head(now, request, Bytes::new(), Waiter::Range(job), store);
        }
    }

    /// Whether a range of this epoch has anything to do to the chunk. Looked at when its turn comes, so a write of a later epoch
    /// that came in meanwhile stays.
    fn is_removed_by(&self, cut: CutEpoch, chunk: ChunkId, store: &dyn StoreView) -> bool {
        let queue = self.queues.get(&chunk);
        let seen = queue.map_or_else(|| store.cut(chunk), |queue| queue.cut(chunk, store));
        let removed = queue.map_or_else(|| store.is_removed(chunk), |queue| queue.is_removed(chunk, store));
        seen < cut || (!removed && (seen == cut || planted::is(Bug::LateRangeTakesAll)))
    }

    pub(super) fn range_committed(&mut self, now: Now, job: u64, store: &dyn StoreView) {
        if let Some(range) = self.ranges.get_mut(&job) {
            range.under_way -= 1;
            range.removed += 1;
        }
        self.advance_range(now, job, store);
    }

    /// Where an inode's data ends. What is not on the second member yet may still be lost with this one, and a length that
    /// counts it would show zeros in its place; so nothing is said before it is.
    pub(super) fn file_end(
        &mut self,
        now: Now,
        epoch: Epoch,
        waiter: WaiterId,
        inode: InodeId,
        from: ChunkIndex,
        store: &dyn StoreView,
    ) {
        let chunks = ChunkId::new(inode, from)..=ChunkId::new(inode, ChunkIndex(u32::MAX));
        let on_its_way = self
            .queues
            .range(chunks)
            .flat_map(|(_, queue)| &queue.entries)
            .any(|entry| entry.blocked.is_none() && !entry.has(Level::Quorum));
        let end = self.admit_at_head(now, epoch).and_then(|()| {
            if on_its_way {
                return Err(Error::new(
                    ErrorCode::Overloaded,
                    format!(
                        "writes of inode {inode} are on their way down chain {}: try again",
                        self.chain
                    ),
                ));
            }
            Ok(store.file_end(self.chain, inode, from))
        });
        self.answer(waiter, end.map(|end| Answer::Response(StorageResponse::FileEnd(end))));
    }

    /// Which blocks an inode has, as the head has them.
    pub(super) fn file_runs(
        &mut self,
        now: Now,
        epoch: Epoch,
        waiter: WaiterId,
        (inode, from, wanted): (InodeId, (ChunkIndex, BlockIndex), RunsWanted),
        store: &dyn StoreView,
    ) {
        let admitted = self.admit_at_head(now, epoch);
        let runs = admitted.map(|()| store.file_runs(self.chain, inode, from, wanted));
        self.answer(
            waiter,
            runs.map(|runs| Answer::Response(StorageResponse::FileRuns(runs))),
        );
    }

    pub(super) fn refuse_ranges(&mut self, error: &Error) {
        for range in std::mem::take(&mut self.ranges).into_values() {
            self.refuse(range.waiter, error.clone());
        }
    }
}
