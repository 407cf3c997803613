//! Mutations of one chunk that are staged but not committed, in version order.
//!
//! Invariant: versions rise, each entry's `before` is its neighbour's `version`, and applied ones come first. So the
//! chunk's latest state is the store's with the unapplied entries laid over it, and commits leave at the front.

use std::collections::VecDeque;

use bytes::Bytes;
use dfs_common::planted::{self, Bug};
use dfs_common::wire::storage::{MutateRequest, Mutation};
use dfs_common::{BlockIndex, ChunkId, ChunkVersion, CutEpoch, Error, HybridClock, Level, RequestId};

use super::read::Need;
use super::types::{ReadAsk, StoreView, Ticket, WaiterId};

/// Who is told when an entry commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiter {
    Client(WaiterId),
    Predecessor(WaiterId),
    /// A range removal in progress.
    Range(u64),
}

/// How far the store has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Local {
    Staged,
    Applying(Ticket),
    Syncing(Ticket),
    Done,
}

/// How far the members after this one have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Downstream {
    /// Nobody after this member counts for it.
    NotNeeded,
    /// Waits for the copy of its chunk to a syncing successor.
    Held,
    /// Goes to the successor as soon as it is in the own store: whoever reads it further down must find it here when the others go.
    Due,
    Sent {
        ticket: Ticket,
        attempt: u32,
    },
    /// The successor has it; whether those after it do is not known yet.
    Near,
    Acknowledged,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) request: MutateRequest,
    pub(super) payload: Bytes,
    pub(super) before: ChunkVersion,
    pub(super) version: ChunkVersion,
    pub(super) stamp: HybridClock,
    /// Counts at QUORUM only once it is stable (`rest`).
    pub(super) everywhere: bool,
    pub(super) local: Local,
    pub(super) downstream: Downstream,
    pub(super) waiters: Vec<Waiter>,
    /// The predecessor was answered before it was stable, so it has to be told.
    pub(super) answered_early: bool,
    /// Why it does not get on (a full disk here or further down).
    pub(super) blocked: Option<Error>,
}

impl Entry {
    pub(super) fn is_applied(&self) -> bool {
        !matches!(self.local, Local::Staged | Local::Applying(_))
    }

    /// Stable: this member and all that count after it have it.
    pub(super) fn is_done(&self) -> bool {
        self.local == Local::Done
            && (matches!(self.downstream, Downstream::NotNeeded | Downstream::Acknowledged)
                || planted::is(Bug::EarlyAck))
    }

    /// Whether, at the head, as many members have it as `level` asks for. That there are so many in the chain is checked apart.
    pub(super) fn has(&self, level: Level) -> bool {
        match level {
            Level::One => self.local == Local::Done,
            Level::Quorum if planted::is(Bug::QuorumOffByOne) => self.local == Local::Done,
            Level::Quorum if self.everywhere => self.is_done(),
            Level::Quorum => {
                self.local == Local::Done
                    && !matches!(
                        self.downstream,
                        Downstream::Sent { .. } | Downstream::Held | Downstream::Due
                    )
            }
            Level::All => self.is_done(),
        }
    }

    /// Whether it changes any of these blocks.
    fn touches(&self, first: BlockIndex, blocks: u32) -> bool {
        let (from, to) = (u64::from(first.0), u64::from(first.0) + u64::from(blocks));
        match &self.request.mutation {
            Mutation::Write {
                first: start,
                blocks: count,
                ..
            } => u64::from(start.0) < to && from < u64::from(start.0) + u64::from(*count),
            Mutation::Truncate { blocks } => u64::from(*blocks) < to,
            Mutation::Remove => true,
        }
    }

    /// The version that this entry leaves `block` at, if it changes it.
    fn block_version(&self, block: BlockIndex) -> Option<ChunkVersion> {
        self.touches(block, 1).then_some(match &self.request.mutation {
            Mutation::Write { .. } => self.version,
            Mutation::Truncate { .. } | Mutation::Remove => ChunkVersion::NONE,
        })
    }
}

/// The queue of one chunk.
#[derive(Clone, Debug, Default)]
pub(super) struct ChunkQueue {
    pub(super) entries: VecDeque<Entry>,
}

impl ChunkQueue {
    /// The latest version, staged ones included.
    pub(super) fn latest(&self, chunk: ChunkId, store: &dyn StoreView) -> ChunkVersion {
        self.entries
            .back()
            .map_or_else(|| store.version(chunk), |entry| entry.version)
    }

    /// When that was given out.
    pub(super) fn stamp(&self, chunk: ChunkId, store: &dyn StoreView) -> HybridClock {
        self.entries
            .back()
            .map_or_else(|| store.stamp(chunk), |entry| entry.stamp)
    }

    /// The latest version of a block, staged ones included.
    pub(super) fn block_version(&self, chunk: ChunkId, block: BlockIndex, store: &dyn StoreView) -> ChunkVersion {
        self.entries
            .iter()
            .rev()
            .find_map(|entry| entry.block_version(block))
            .unwrap_or_else(|| store.block_version(chunk, block))
    }

    /// The last truncation or removal, staged ones included.
    pub(super) fn trimmed(&self, chunk: ChunkId, store: &dyn StoreView) -> ChunkVersion {
        let cuts = |entry: &&Entry| matches!(entry.request.mutation, Mutation::Truncate { .. } | Mutation::Remove);
        let staged = self.entries.iter().rev().find(cuts);
        staged.map_or_else(|| store.trimmed(chunk), |entry| entry.version)
    }

    /// The newest truncation epoch, staged mutations included.
    pub(super) fn cut(&self, chunk: ChunkId, store: &dyn StoreView) -> CutEpoch {
        let staged = self.entries.iter().map(|entry| entry.request.cut);
        staged.fold(store.cut(chunk), CutEpoch::max)
    }

    /// Whether the chunk is a tombstone once what is staged is in the store.
    pub(super) fn is_removed(&self, chunk: ChunkId, store: &dyn StoreView) -> bool {
        let decides = |entry: &Entry| match entry.request.mutation {
            Mutation::Write { .. } => Some(false),
            Mutation::Remove => Some(true),
            Mutation::Truncate { .. } => None,
        };
        let staged = self.entries.iter().rev().find_map(decides);
        staged.unwrap_or_else(|| store.is_removed(chunk))
    }

    pub(super) fn by_request(&mut self, id: RequestId) -> Option<&mut Entry> {
        if id.is_system() {
            return None;
        }
        self.entries.iter_mut().find(|entry| entry.request.id == id)
    }

    pub(super) fn by_version(&mut self, version: ChunkVersion) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.version == version)
    }

    /// The newest version, at most `up_to`, that changes these blocks and does not meet the need.
    pub(super) fn unmet(&self, read: &ReadAsk, need: Need, up_to: ChunkVersion) -> Option<ChunkVersion> {
        self.entries
            .iter()
            .rev()
            .find(|entry| entry.version <= up_to && entry.touches(read.first, read.blocks) && !need.is_met(entry))
            .map(|entry| entry.version)
    }

    /// The newest version that changes these blocks, is not in the store yet and concerns the need.
    pub(super) fn unapplied(&self, read: &ReadAsk, need: Need) -> Option<ChunkVersion> {
        self.entries
            .iter()
            .rev()
            .take_while(|entry| !entry.is_applied())
            .find(|entry| entry.touches(read.first, read.blocks) && !need.is_met(entry))
            .map(|entry| entry.version)
    }

    /// Why this chunk takes nothing at present, if so.
    pub(super) fn blocked(&self) -> Option<Error> {
        self.entries.iter().find_map(|entry| entry.blocked.clone())
    }

    pub(super) fn is_applying(&self) -> bool {
        self.entries
            .iter()
            .any(|entry| matches!(entry.local, Local::Applying(_)))
    }
}
