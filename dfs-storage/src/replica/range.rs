//! Removing every chunk of some inodes from a point on: the head makes one removal a chunk of it.

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use dfs_common::wire::storage::{MutateRequest, Mutation, StorageResponse};
use dfs_common::{ChunkId, ChunkIndex, Epoch, Error, ErrorCode, InodeId, Level, RequestId};

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
        inodes: &[InodeId],
        from: ChunkIndex,
        store: &dyn StoreView,
    ) {
        if let Err(error) = self.admit_at_head(now, epoch) {
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
            if self
                .queues
                .get(&chunk)
                .is_some_and(|queue| queue.entries.len() >= MAX_PENDING_PER_CHUNK)
            {
                let waiter = range.waiter;
                self.ranges.remove(&job);
                let error = Error::new(
                    ErrorCode::Overloaded,
                    format!("chunk {chunk} is being written: try again"),
                );
                return self.refuse(waiter, error);
            }
            range.under_way += 1;
            let request = MutateRequest {
                chain: self.chain,
                epoch: self.epoch(),
                chunk,
                id: RequestId::SYSTEM,
                level: Level::One,
                sync: false,
                uncut_since: None,
                cut: dfs_common::CutEpoch::NONE,
                mutation: Mutation::Remove,
            };
            self.stage_at_head(now, request, Bytes::new(), Waiter::Range(job), store);
        }
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

    pub(super) fn refuse_ranges(&mut self, error: &Error) {
        for range in std::mem::take(&mut self.ranges).into_values() {
            self.refuse(range.waiter, error.clone());
        }
    }
}
