//! Telling the predecessor what has become stable.
//!
//! A forward at ONE or QUORUM is answered as soon as this member has the mutation. The predecessor keeps it until every
//! member after it has it too, since it is the one that brings it on when this member goes. That knowledge is in no hurry,
//! so it travels up in batches; lost, it is told again.

use std::collections::BTreeMap;

use dfs_common::wire::storage::StorageResponse;
use dfs_common::{ChunkId, ChunkVersion, Epoch, Error, StorageId};

use super::pending::Downstream;
use super::types::{Answer, Effect, Now, StoreView, Ticket, WaiterId};
use super::{Purpose, ReplicaCore, Role};

/// Mutations after which it is told at once. Well below [`super::MAX_PENDING_PER_CHUNK`], at which the predecessor takes no more.
const TELL_AFTER: usize = 16;

/// Chunks named in one message: 40 bytes each.
const MAX_TOLD: usize = 1024;

/// What the predecessor has yet to hear. Bounded by what it has pending.
#[derive(Clone, Debug, Default)]
pub(super) struct Untold {
    chunks: BTreeMap<ChunkId, ChunkVersion>,
    mutations: usize,
    /// The message under way and what it says.
    telling: Option<(Ticket, Vec<(ChunkId, ChunkVersion)>)>,
}

impl Untold {
    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl ReplicaCore {
    pub(super) fn became_stable(&mut self, chunk: ChunkId, version: ChunkVersion) {
        self.untold.chunks.insert(chunk, version);
        self.untold.mutations += 1;
        if self.untold.mutations >= TELL_AFTER {
            self.tell_stable();
        }
    }

    pub(super) fn tell_stable(&mut self) {
        let (Role::Serving {
            predecessor: Some(to), ..
        }
        | Role::Syncing { predecessor: Some(to) }) = self.role
        else {
            return self.untold.clear();
        };
        if self.untold.telling.is_some() || self.untold.chunks.is_empty() {
            return;
        }
        let epoch = self.epoch();
        let ticket = self.ticket(Purpose::TellStable);
        let mut chunks = Vec::new();
        while chunks.len() < MAX_TOLD
            && let Some(told) = self.untold.chunks.pop_first()
        {
            chunks.push(told);
        }
        self.untold.mutations = 0;
        self.untold.telling = Some((ticket, chunks.clone()));
        self.effects.push(Effect::TellStable {
            ticket,
            to,
            epoch,
            chunks,
        });
    }

    pub(super) fn told_stable(&mut self, ticket: Ticket, result: &Result<(), Error>) {
        if self
            .untold
            .telling
            .as_ref()
            .is_none_or(|(under_way, _)| *under_way != ticket)
        {
            return;
        }
        let Some((_, chunks)) = self.untold.telling.take() else {
            return;
        };
        if result.is_err() {
            // With the next tick, unless it has been overtaken.
            for (chunk, version) in chunks {
                let newest = self.untold.chunks.entry(chunk).or_insert(version);
                *newest = version.max(*newest);
            }
        }
    }

    /// What the successor says of itself and of those after it.
    pub(super) fn stable_below(
        &mut self,
        now: Now,
        from: StorageId,
        epoch: Epoch,
        waiter: WaiterId,
        chunks: Vec<(ChunkId, ChunkVersion)>,
        store: &dyn StoreView,
    ) {
        if let Err(error) = self.admit_successor(from, epoch) {
            return self.refuse(waiter, error);
        }
        for (chunk, version) in chunks {
            if let Some(queue) = self.queues.get_mut(&chunk) {
                for entry in queue.entries.iter_mut().take_while(|entry| entry.version <= version) {
                    match entry.downstream {
                        Downstream::Sent { ticket, .. } => {
                            self.under_way.remove(&ticket);
                            entry.downstream = Downstream::Acknowledged;
                        }
                        Downstream::Near | Downstream::Due => entry.downstream = Downstream::Acknowledged,
                        Downstream::NotNeeded | Downstream::Held | Downstream::Acknowledged => {}
                    }
                }
            }
            self.commit(now, chunk, store);
        }
        self.answer(waiter, Ok(Answer::Response(StorageResponse::StableNoted)));
    }
}
