//! Bringing a syncing successor up to date: this member's side.
//!
//! One rule covers writes, truncations and removals. For each chunk the successor is
//! *absent* (unknown, or waiting for its copy): mutations pass it by, and the copy that follows has them;
//! *held* (being copied): mutations wait, so that the copy is of one version;
//! *in sync*: mutations are forwarded and its answer is waited for.
//! When every chunk is in sync it is flushed, and from then on counts like a serving member; only then is the metadata
//! group told. Until then its failure costs a copy, never an acknowledgement.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dfs_common::planted::{self, Bug};
use dfs_common::wire::meta::ResyncProgress;
use dfs_common::{ChainId, ChunkId, ChunkVersion, Epoch, Error, Level, StorageId};

use super::pending::{Downstream, Local};
use super::types::{CopyReport, Effect, Now, StoreView, Ticket};
use super::{Purpose, ReplicaCore};

/// Chunks that are copied at a time: enough to keep link and disks busy, few enough to leave room for clients.
const MAX_COPIES: usize = 4;

/// Chunks named in one drop message.
const MAX_DROPS: usize = 256;

/// Pause after a failed message to the successor, twice as long after each further one while none succeeds: one chunk that
/// nobody has sound is tried as long as the session lasts.
const PAUSE_MS: u64 = 100;
const MAX_PAUSE_MS: u64 = 2_000;

/// How a successor stands to the mutations of one chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Absent,
    Held,
    Counts,
}

#[derive(Clone, Debug)]
enum Phase {
    /// Learning what the successor has.
    Inventory(BTreeMap<ChunkId, ChunkVersion>),
    Copying,
    Flushing,
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Queued,
    /// Chosen, and waits for the store to finish a mutation of it.
    Starting,
    Copying,
    Dropping(Ticket),
}

#[derive(Clone, Debug)]
pub(super) struct Session {
    to: StorageId,
    phase: Phase,
    work: BTreeMap<ChunkId, Work>,
    queue: VecDeque<ChunkId>,
    copies: usize,
    pause_until_ms: u64,
    /// Pauses since a message succeeded.
    failures: u32,
    chunks_done: u64,
    bytes_done: u64,
}

impl Session {
    pub(super) fn new(to: StorageId) -> Self {
        Self {
            to,
            phase: Phase::Inventory(BTreeMap::new()),
            work: BTreeMap::new(),
            queue: VecDeque::new(),
            copies: 0,
            pause_until_ms: 0,
            failures: 0,
            chunks_done: 0,
            bytes_done: 0,
        }
    }

    pub(super) const fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done)
    }

    pub(super) const fn wants_syncs(&self) -> bool {
        matches!(self.phase, Phase::Flushing | Phase::Done)
    }

    /// A message to the successor failed. Of several that were under way the first counts.
    fn failed(&mut self, now: Now) {
        if now.ms < self.pause_until_ms {
            return;
        }
        let pause_ms = PAUSE_MS << self.failures.min(16);
        self.failures = self.failures.saturating_add(1);
        self.pause_until_ms = now.ms + pause_ms.min(MAX_PAUSE_MS);
    }

    /// A sync did not reach the successor: what it covered must be flushed before it counts.
    pub(super) fn flush_again(&mut self) {
        if matches!(self.phase, Phase::Flushing) {
            self.phase = Phase::Copying;
        }
    }

    /// Standing of a chunk that is about to change.
    pub(super) fn touch(&mut self, chunk: ChunkId) -> Standing {
        match (&self.phase, self.work.get(&chunk)) {
            (Phase::Inventory(_), _) | (_, Some(Work::Queued)) => Standing::Absent,
            (_, Some(_)) => Standing::Held,
            (_, None) => Standing::Counts,
        }
    }

    /// Whether the chunk must not change in the store now.
    pub(super) fn holds(&self, chunk: ChunkId) -> bool {
        !planted::is(Bug::CopyNotHeld) && self.work.get(&chunk).is_some_and(|&work| work != Work::Queued)
    }

    fn enqueue(&mut self, chunk: ChunkId) {
        self.work.insert(chunk, Work::Queued);
        self.queue.push_back(chunk);
        if matches!(self.phase, Phase::Flushing) {
            self.phase = Phase::Copying;
        }
    }

    pub(super) fn progress(&self, chain: ChainId, epoch: Epoch) -> ResyncProgress {
        let left = self.work.len() as u64;
        // Sizes are known when a chunk is copied; the rest is taken for average.
        let average = self.bytes_done.checked_div(self.chunks_done).unwrap_or(0);
        ResyncProgress {
            chain,
            epoch,
            to: self.to,
            chunks_done: self.chunks_done,
            chunks_total: self.chunks_done + left,
            bytes_done: self.bytes_done,
            bytes_total: self.bytes_done + left * average,
        }
    }
}

fn last_of(found: &BTreeMap<ChunkId, ChunkVersion>) -> Option<ChunkId> {
    found.last_key_value().map(|(&chunk, _)| chunk)
}

impl ReplicaCore {
    pub(super) fn fetch_inventory(&mut self, after: Option<ChunkId>, after_ms: u64) {
        let Some(to) = self.session.as_ref().map(|session| session.to) else {
            return;
        };
        let epoch = self.epoch();
        let ticket = self.ticket(Purpose::FetchInventory);
        self.effects.push(Effect::FetchInventory {
            ticket,
            to,
            epoch,
            after,
            after_ms,
        });
    }

    pub(super) fn inventory_fetched(
        &mut self,
        now: Now,
        result: Result<(Vec<(ChunkId, ChunkVersion)>, bool), Error>,
        store: &dyn StoreView,
    ) {
        let Some(session) = self.session.as_mut() else {
            return;
        };
        let Phase::Inventory(found) = &mut session.phase else {
            return;
        };
        let last = last_of(found);
        match result {
            Err(_) => return self.fetch_inventory(last, PAUSE_MS),
            Ok((chunks, end)) => {
                // An answer that does not advance ends the listing, whatever it says: no endless loop.
                let advanced = chunks.last().is_some_and(|&(chunk, _)| Some(chunk) > last);
                found.extend(chunks);
                let last = last_of(found);
                if !end && advanced {
                    return self.fetch_inventory(last, 0);
                }
            }
        }
        if !self.orphans.is_empty() {
            // What is compared must not change by itself afterwards: a mutation of an earlier role is still on its way into the store.
            let last = last_of(found);
            return self.fetch_inventory(last, PAUSE_MS);
        }
        let theirs = std::mem::take(found);
        session.phase = Phase::Copying;
        let mut ours = BTreeSet::new();
        for (chunk, version) in store.list(self.chain) {
            ours.insert(chunk);
            if planted::is(Bug::ResyncSkipsChunk) && chunk.inode.0 % 3 == 0 {
                continue;
            }
            if theirs.get(&chunk) == Some(&version) && !self.queues.contains_key(&chunk) {
                continue;
            }
            session.enqueue(chunk);
        }
        // What only they have, and what is staged here but not in the store yet.
        for &chunk in theirs.keys().filter(|chunk| !ours.contains(chunk)) {
            session.enqueue(chunk);
        }
        for &chunk in self.queues.keys().filter(|chunk| !ours.contains(chunk)) {
            if !theirs.contains_key(&chunk) {
                session.enqueue(chunk);
            }
        }
        self.schedule_session(now, store);
    }

    /// Starts what can be started.
    pub(super) fn schedule_session(&mut self, now: Now, store: &dyn StoreView) {
        let mut drops = Vec::new();
        loop {
            let Some(session) = self.session.as_mut() else {
                return;
            };
            if !matches!(session.phase, Phase::Copying) || now.ms < session.pause_until_ms {
                break;
            }
            if session.copies >= MAX_COPIES || drops.len() >= MAX_DROPS {
                break;
            }
            if !session.queue.is_empty() && !store.may_copy() {
                // The next tick asks again.
                break;
            }
            let Some(chunk) = session.queue.pop_front() else {
                break;
            };
            if session.work.get(&chunk) != Some(&Work::Queued) {
                continue;
            }
            if store.version(chunk).is_none() && !self.queues.contains_key(&chunk) {
                drops.push(chunk);
                continue;
            }
            session.copies += 1;
            session.work.insert(chunk, Work::Starting);
            self.copy_if_ready(chunk);
        }
        let epoch = self.epoch();
        if !drops.is_empty()
            && let Some(to) = self.session.as_ref().map(|session| session.to)
        {
            let ticket = self.ticket(Purpose::DropAtSuccessor);
            if let Some(session) = self.session.as_mut() {
                for &chunk in &drops {
                    session.work.insert(chunk, Work::Dropping(ticket));
                }
            }
            self.effects.push(Effect::DropChunks {
                ticket,
                to,
                epoch,
                chunks: drops,
                after_ms: 0,
            });
        }
        let Some(session) = self.session.as_mut() else {
            return;
        };
        if matches!(session.phase, Phase::Copying) && session.work.is_empty() && now.ms >= session.pause_until_ms {
            session.phase = Phase::Flushing;
            let to = session.to;
            let ticket = self.ticket(Purpose::FlushSuccessor);
            self.effects.push(Effect::ForwardSync {
                ticket,
                to,
                epoch,
                level: Level::All,
                forget: Vec::new(),
                after_ms: 0,
            });
        }
    }

    /// Whether a mutation of the chunk waits, for the end of its copy say.
    pub fn is_waited_for(&self, chunk: ChunkId) -> bool {
        let queue = self.queues.get(&chunk);
        queue.is_some_and(|queue| queue.entries.iter().any(|entry| entry.local == Local::Staged))
    }

    /// Starts the copy of a chosen chunk once the store is not changing it.
    pub(super) fn copy_if_ready(&mut self, chunk: ChunkId) {
        let Some(session) = self.session.as_mut() else {
            return;
        };
        if session.work.get(&chunk) != Some(&Work::Starting)
            || self.queues.get(&chunk).is_some_and(super::ChunkQueue::is_applying)
        {
            return;
        }
        session.work.insert(chunk, Work::Copying);
        let to = session.to;
        let epoch = self.epoch();
        let ticket = self.ticket(Purpose::Copy(chunk));
        self.effects.push(Effect::CopyChunk {
            ticket,
            to,
            epoch,
            chunk,
            after_ms: 0,
        });
    }

    pub(super) fn copied(
        &mut self,
        now: Now,
        chunk: ChunkId,
        result: &Result<CopyReport, Error>,
        store: &dyn StoreView,
    ) {
        let Some(session) = self.session.as_mut() else {
            return;
        };
        session.copies = session.copies.saturating_sub(1);
        if let Ok(report) = result {
            session.failures = 0;
            session.work.remove(&chunk);
            session.chunks_done += 1;
            session.bytes_done += report.size_bytes;
            self.release(now, chunk, Some(report.version), store);
        } else {
            session.failed(now);
            session.enqueue(chunk);
            self.release(now, chunk, None, store);
        }
        self.schedule_session(now, store);
    }

    pub(super) fn dropped(&mut self, now: Now, ticket: Ticket, result: &Result<(), Error>, store: &dyn StoreView) {
        let Some(session) = self.session.as_mut() else {
            return;
        };
        let chunks: Vec<_> = session
            .work
            .iter()
            .filter(|&(_, &work)| work == Work::Dropping(ticket))
            .map(|(&chunk, _)| chunk)
            .collect();
        match result {
            Ok(()) => session.failures = 0,
            Err(_) => session.failed(now),
        }
        for &chunk in &chunks {
            if result.is_ok() {
                session.work.remove(&chunk);
                session.chunks_done += 1;
            } else {
                session.enqueue(chunk);
            }
        }
        for chunk in chunks {
            let copied = result.is_ok().then_some(ChunkVersion::NONE);
            self.release(now, chunk, copied, store);
        }
        self.schedule_session(now, store);
    }

    /// A copy ended: at `copied` the successor is in sync and gets what came since; else it is passed by again.
    fn release(&mut self, now: Now, chunk: ChunkId, copied: Option<ChunkVersion>, store: &dyn StoreView) {
        let mut send = Vec::new();
        if let Some(queue) = self.queues.get_mut(&chunk) {
            for entry in &mut queue.entries {
                match copied {
                    Some(version) if entry.version > version => send.push(entry.version),
                    _ if entry.downstream == Downstream::Held => entry.downstream = Downstream::NotNeeded,
                    _ => {}
                }
            }
        }
        for version in send {
            self.send(chunk, version, 0);
        }
        self.pump(chunk);
        self.commit(now, chunk, store);
    }

    /// The successor failed a mutation of a chunk that was in sync: without it, and copy anew.
    pub(super) fn demote(&mut self, now: Now, chunk: ChunkId, store: &dyn StoreView) {
        if let Some(queue) = self.queues.get_mut(&chunk) {
            for entry in &mut queue.entries {
                match entry.downstream {
                    Downstream::Sent { ticket, .. } => {
                        self.under_way.remove(&ticket);
                        entry.downstream = Downstream::NotNeeded;
                    }
                    Downstream::Due => entry.downstream = Downstream::NotNeeded,
                    _ => {}
                }
            }
        }
        if let Some(session) = self.session.as_mut() {
            session.pause_until_ms = now.ms + PAUSE_MS;
            if !session.work.contains_key(&chunk) {
                session.enqueue(chunk);
            }
        }
        self.commit(now, chunk, store);
    }

    pub(super) fn flushed(&mut self, now: Now, result: &Result<(), Error>, store: &dyn StoreView) {
        let epoch = self.epoch();
        let Some(session) = self.session.as_mut() else {
            return;
        };
        if !matches!(session.phase, Phase::Flushing) {
            return self.schedule_session(now, store);
        }
        if result.is_err() {
            session.phase = Phase::Copying;
            session.failed(now);
            return;
        }
        session.phase = Phase::Done;
        let to = session.to;
        self.effects.push(Effect::ReportResyncDone { to, epoch });
    }
}

#[cfg(test)]
mod tests {
    use dfs_common::Timestamp;

    use super::*;

    #[test]
    fn what_fails_again_and_again_is_tried_seldom_and_success_ends_that() {
        let mut session = Session::new(StorageId(2));
        let at = |ms| Now {
            ms,
            wall: Timestamp::from_nanos(0),
            lease: true,
            faulty: false,
        };
        let mut now_ms = 1_000;
        let mut pauses = Vec::new();
        for _ in 0..40 {
            session.failed(at(now_ms));
            // Another that was under way.
            session.failed(at(now_ms + 1));
            pauses.push(session.pause_until_ms - now_ms);
            now_ms = session.pause_until_ms;
        }
        assert_eq!(pauses[..6], [100, 200, 400, 800, 1_600, 2_000]);
        assert_eq!(pauses.last(), Some(&MAX_PAUSE_MS));
        session.failures = 0;
        session.failed(at(now_ms));
        assert_eq!(session.pause_until_ms - now_ms, PAUSE_MS);
    }
}
