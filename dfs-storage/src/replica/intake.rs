//! A syncing member's side of the copy.
//!
//! Messages that were given up by their sender may still arrive. A chunk that was brought in sync in this epoch is
//! therefore never dropped, nor replaced by an older copy, in the same epoch. What was admitted may also take the store its time: until it
//! has ended, nothing else is done to the chunk.

use std::collections::BTreeMap;

use bytes::Bytes;
use dfs_common::planted::{self, Bug};
use dfs_common::wire::storage::{InstallPart, StorageResponse};
use dfs_common::{ChunkId, ChunkVersion, Epoch, Error, ErrorCode, StorageId};

use super::types::{Answer, Effect, WaiterId};
use super::{Purpose, ReplicaCore};

/// Most chunks in one answer; keeps it within a message's header.
const MAX_INVENTORY: u32 = 8_192;

#[derive(Clone, Debug, Default)]
pub(super) struct Intake {
    /// Chunks in sync since this epoch began, with their version then or later.
    settled: BTreeMap<ChunkId, ChunkVersion>,
    installing: BTreeMap<ChunkId, ChunkVersion>,
    /// Parts of copies that the store has yet to carry out, and drops.
    copying: Counts,
    dropping: Counts,
    active: bool,
}

/// How many of something are under way for each chunk.
type Counts = BTreeMap<ChunkId, u32>;

fn begin(counts: &mut Counts, chunk: ChunkId) {
    *counts.entry(chunk).or_default() += 1;
}

fn end(counts: &mut Counts, chunk: ChunkId) {
    if let Some(count) = counts.get_mut(&chunk) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&chunk);
        }
    }
}

impl Intake {
    pub(super) fn clear(&mut self) {
        self.settled.clear();
        self.installing.clear();
        self.copying.clear();
        self.dropping.clear();
        self.active = false;
    }

    pub(super) fn is_installing(&self, chunk: ChunkId) -> bool {
        self.installing.contains_key(&chunk) || self.copying.contains_key(&chunk) || self.dropping.contains_key(&chunk)
    }

    pub(super) fn is_settled(&self, chunk: ChunkId) -> bool {
        self.settled.contains_key(&chunk)
    }

    /// A mutation was applied; only a syncing member keeps count.
    pub(super) fn settle(&mut self, chunk: ChunkId, version: ChunkVersion) {
        if self.active {
            self.settled.insert(chunk, version);
        }
    }
}

impl ReplicaCore {
    pub(super) fn inventory(
        &mut self,
        from: StorageId,
        epoch: Epoch,
        waiter: WaiterId,
        after: Option<ChunkId>,
        limit: u32,
    ) {
        if let Err(error) = self.admit_resync(from, epoch) {
            return self.refuse(waiter, error);
        }
        self.intake.active = true;
        self.effects.push(Effect::List {
            waiter,
            after,
            limit: limit.min(MAX_INVENTORY),
        });
    }

    pub(super) fn install(
        &mut self,
        from: StorageId,
        epoch: Epoch,
        waiter: WaiterId,
        chunk: ChunkId,
        version: ChunkVersion,
        part: InstallPart,
        payload: Bytes,
    ) {
        if let Err(error) = self.admit_resync(from, epoch).and_then(|()| {
            let busy =
                self.intake.dropping.contains_key(&chunk) || (part.begin && self.intake.copying.contains_key(&chunk));
            if busy || self.queues.contains_key(&chunk) {
                return Err(Error::new(
                    ErrorCode::OutOfOrder,
                    format!("chunk {chunk} is being written here: try again"),
                ));
            }
            if self
                .intake
                .settled
                .get(&chunk)
                .is_some_and(|&settled| settled > version && !planted::is(Bug::OlderCopyAccepted))
            {
                return Err(Error::new(
                    ErrorCode::OutOfOrder,
                    format!("chunk {chunk} is newer than {version} here already"),
                ));
            }
            if !part.begin && self.intake.installing.get(&chunk) != Some(&version) {
                return Err(Error::new(
                    ErrorCode::OutOfOrder,
                    format!("chunk {chunk}: a part of a copy of {version} that was not begun"),
                ));
            }
            Ok(())
        }) {
            return self.refuse(waiter, error);
        }
        self.intake.active = true;
        self.intake.installing.insert(chunk, version);
        begin(&mut self.intake.copying, chunk);
        let ticket = self.ticket(Purpose::Install(waiter, chunk, version, part.done));
        self.effects.push(Effect::Install {
            ticket,
            chunk,
            version,
            part,
            payload,
        });
    }

    pub(super) fn install_done(
        &mut self,
        waiter: WaiterId,
        chunk: ChunkId,
        version: ChunkVersion,
        done: bool,
        result: Result<(), Error>,
    ) {
        end(&mut self.intake.copying, chunk);
        match result {
            Ok(()) => {
                if done {
                    self.intake.installing.remove(&chunk);
                    self.intake.settled.insert(chunk, version);
                }
                self.answer(waiter, Ok(Answer::Response(StorageResponse::Installed)));
            }
            Err(error) => {
                self.intake.installing.remove(&chunk);
                if error.code == ErrorCode::Poisoned {
                    self.fail(error.detail.clone());
                }
                self.refuse(waiter, error);
            }
        }
    }

    pub(super) fn drop_chunks(&mut self, from: StorageId, epoch: Epoch, waiter: WaiterId, chunks: Vec<ChunkId>) {
        let copied = chunks.iter().find(|chunk| self.intake.copying.contains_key(chunk));
        if let Err(error) = self.admit_resync(from, epoch).and_then(|()| match copied {
            Some(chunk) => Err(Error::new(
                ErrorCode::OutOfOrder,
                format!("chunk {chunk} is being written here: try again"),
            )),
            None => Ok(()),
        }) {
            return self.refuse(waiter, error);
        }
        let chunks: Vec<_> = chunks
            .into_iter()
            .filter(|&chunk| !self.intake.is_settled(chunk) && !self.queues.contains_key(&chunk))
            .collect();
        for &chunk in &chunks {
            begin(&mut self.intake.dropping, chunk);
        }
        let ticket = self.ticket(Purpose::DropForPredecessor(waiter, chunks.clone()));
        self.effects.push(Effect::Drop { ticket, chunks });
    }

    pub(super) fn chunks_dropped(&mut self, waiter: WaiterId, chunks: &[ChunkId], result: Result<(), Error>) {
        for &chunk in chunks {
            end(&mut self.intake.dropping, chunk);
        }
        self.answer(waiter, result.map(|()| Answer::Response(StorageResponse::Dropped)));
    }
}
