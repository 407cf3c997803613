//! Forgetting the tombstones of removed files, so that a store does not grow with everything that
//! was ever removed.
//!
//! A tombstone keeps late writes out, and tells a member that was away that the chunk is gone.
//! Nobody needs it any more when every member of the chain has the removal on its disk: the file is
//! gone for good, so nobody writes to it, and no member can come back with the chunk. The head
//! makes sure of that in rounds. In each it lists tombstones that stand everywhere and has all
//! stores synced, as for a rest. The sync of the next round names them, and whoever it reaches
//! drops them; the head does so last.
//!
//! Invariant: a tombstone is dropped in the epoch in which it was found to be durable on all
//! members, all of whom serve. A change of the configuration begins anew. What a lost message
//! leaves at a member is harmless: the chain has nothing there that it could hide.

use std::collections::BTreeSet;

use dfs_common::{ChunkId, ChunkVersion, Epoch, Error, Level, MemberState, StorageId};

use super::sync::Asker;
use super::types::{Effect, Now, StoreView, WaiterId};
use super::{Purpose, ReplicaCore, Role, Successor};

/// Between two rounds. Long after whatever was sent before the removal.
pub(super) const EVERY_MS: u64 = 10_000;

/// After a round that left some.
const AGAIN_MS: u64 = 1_000;

/// Tombstones in one round: 40 bytes each in a message.
const MAX_FORGOTTEN: usize = 4_096;

pub(super) type Tombstones = Vec<(ChunkId, ChunkVersion)>;

/// Who asks for a sync, in which epoch, of what, and what is dropped before.
pub(super) type HeadsSync = (StorageId, Epoch, WaiterId, Level, Tombstones);

#[derive(Clone, Debug)]
pub(super) struct Forgetting {
    next_ms: u64,
    every_ms: u64,
    /// On every member's disk, in this epoch.
    durable: Tombstones,
    /// The sync under way, and what will be durable after it.
    round: Option<(u64, Tombstones)>,
}

impl Forgetting {
    pub(super) const fn new(every_ms: u64) -> Self {
        Self {
            next_ms: 0,
            every_ms,
            durable: Vec::new(),
            round: None,
        }
    }

    pub(super) fn begin_anew(&mut self, now: Now) {
        *self = Self::new(self.every_ms);
        self.next_ms = now.ms.saturating_add(self.every_ms);
    }
}

impl ReplicaCore {
    /// Whether this is the head of a chain whose members all serve.
    fn has_everybody(&self) -> bool {
        let head = matches!(
            self.role,
            Role::Serving {
                predecessor: None,
                successor: Successor::Serving(_) | Successor::Nobody,
            }
        );
        let everybody =
            |config: &dfs_common::ChainInfo| config.members.iter().all(|member| member.state == MemberState::Serving);
        head && self.config.as_ref().is_some_and(everybody)
    }

    /// Whether a tick might begin a round.
    pub(super) fn forgets(&self) -> bool {
        self.forgetting.round.is_none() && self.has_everybody()
    }

    pub(super) fn forget_tombstones(&mut self, now: Now, store: &dyn StoreView) {
        if now.ms < self.forgetting.next_ms || !self.forgets() {
            return;
        }
        let durable = std::mem::take(&mut self.forgetting.durable);
        let known: BTreeSet<_> = durable.iter().copied().collect();
        let mut found = store.gone(self.chain, known.len() + MAX_FORGOTTEN);
        found.retain(|tombstone| !known.contains(tombstone) && !self.queues.contains_key(&tombstone.0));
        found.truncate(MAX_FORGOTTEN);
        if durable.is_empty() && found.is_empty() {
            self.forgetting.next_ms = now.ms.saturating_add(self.forgetting.every_ms);
            return;
        }
        let job = self.add_forgetting_sync(Asker::Forget, durable);
        if !self.syncs.contains_key(&job) {
            // Too many are under way.
            self.forgetting.next_ms = now.ms.saturating_add(self.forgetting.every_ms);
            return;
        }
        self.forgetting.round = Some((job, found));
    }

    /// Every member has synced its store, and all but this head have dropped what the sync named.
    pub(super) fn round_ended(&mut self, now: Now, job: u64, dropped: Tombstones) {
        let Some((_, found)) = self.forgetting.round.take_if(|(round, _)| *round == job) else {
            return;
        };
        let every_ms = self.forgetting.every_ms;
        let pause_ms = if found.len() < MAX_FORGOTTEN {
            every_ms
        } else {
            every_ms.min(AGAIN_MS)
        };
        self.forgetting.next_ms = now.ms.saturating_add(pause_ms);
        self.forgetting.durable = found;
        if !dropped.is_empty() {
            let ticket = self.ticket(Purpose::Forget(None));
            self.effects.push(Effect::Forget {
                ticket,
                chunks: dropped,
            });
        }
    }

    /// The tombstones are dropped, or the store has failed, which it says by itself.
    pub(super) fn forgotten(&mut self, sync: Option<HeadsSync>, result: &Result<(), Error>) {
        let Some((from, epoch, waiter, level, chunks)) = sync else {
            return;
        };
        let admitted = self.admit_predecessor(from, epoch);
        match result.clone().and(admitted) {
            Ok(()) => {
                self.add_predecessors_sync(waiter, level, chunks);
            }
            Err(error) => self.refuse(waiter, error),
        }
    }

    /// At a member, before it syncs: what is written to such a chunk after the answer finds no
    /// tombstone here.
    pub(super) fn forget_for_head(&mut self, from: StorageId, waiter: WaiterId, level: Level, chunks: Tombstones) {
        let ticket = self.ticket(Purpose::Forget(Some((
            from,
            self.epoch(),
            waiter,
            level,
            chunks.clone(),
        ))));
        self.effects.push(Effect::Forget { ticket, chunks });
    }
}
