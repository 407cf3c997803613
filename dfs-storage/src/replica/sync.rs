//! Making durable what the chain has acknowledged, on as many members as the level asks for.
//!
//! What was acknowledged at some level before a sync of that level arrived is in the store of every member that the level
//! counts, so each one syncs its store at once and asks the next at the same time. Two kinds of mutations have to be waited for first:
//! those of a lower level, and those that an earlier head acknowledged and this one has yet to bring to its successor.

use std::collections::BTreeSet;

use dfs_common::planted::{self, Bug};
use dfs_common::wire::storage::StorageResponse;
use dfs_common::{ChunkId, ChunkVersion, Epoch, Error, ErrorCode, Level, SessionId, StorageId};

use super::forget::Tombstones;
use super::types::{Answer, Effect, Now, StoreView, WaiterId};
use super::{Purpose, ReplicaCore, Role, Successor};

pub(super) const RETRY_MS: u64 = 20;

/// Syncs under way on one chain. Each is one small message; a client has few.
const MAX_SYNCS: usize = 4096;

/// Whom a sync is for.
#[derive(Clone, Debug)]
pub(super) enum Asker {
    /// Whose answer needs the lease, and as many members as this level wants.
    Client(WaiterId, StorageResponse, Level),
    Predecessor(WaiterId),
    /// This head, which lets the chain rest (`rest`).
    Rest,
    /// This head, which forgets tombstones (`forget`).
    Forget,
}

#[derive(Clone, Debug)]
pub(super) struct SyncJob {
    asker: Asker,
    /// How many members it reaches.
    level: Level,
    /// What must be where the level wants it before the stores are synced.
    first: BTreeSet<(ChunkId, ChunkVersion)>,
    /// What the members that it reaches drop before.
    forget: Tombstones,
    local: bool,
    downstream: bool,
}

impl ReplicaCore {
    pub(super) fn client_sync(
        &mut self,
        now: Now,
        epoch: Epoch,
        waiter: WaiterId,
        (level, since): (Level, (Epoch, Level)),
        session: SessionId,
        store: &dyn StoreView,
    ) {
        let admitted = self
            .admit_at_head(now, epoch)
            .and_then(|()| Self::check_session(session, store))
            .and_then(|()| self.check_kept(since))
            .and_then(|()| self.check_level(level));
        match admitted {
            Ok(()) => self.start_sync(waiter, StorageResponse::Synced, level),
            Err(error) => self.refuse(waiter, error),
        }
    }

    /// Whether this chain still answers for what was acknowledged since then, or the replicas that had it only in memory
    /// have all gone since. A new configuration refuses a sync that is under way, so asking once is enough.
    fn check_kept(&self, (since, written): (Epoch, Level)) -> Result<(), Error> {
        let answers_since = self
            .config
            .as_ref()
            .map_or(Epoch(0), |config| config.answers_since(written));
        if since >= answers_since || planted::is(Bug::VouchIgnored) {
            return Ok(());
        }
        Err(Error::new(
            ErrorCode::UnsyncedLost,
            format!(
                "chain {} lost every replica that had what was acknowledged at {written} in epoch {since} before it was synced, and goes on \
                 without it since epoch {answers_since}: write it again",
                self.chain
            ),
        ))
    }

    pub(super) fn forwarded_sync(
        &mut self,
        from: StorageId,
        epoch: Epoch,
        waiter: WaiterId,
        level: Level,
        forget: Tombstones,
    ) {
        match self.admit_predecessor(from, epoch) {
            Ok(()) if !forget.is_empty() => self.forget_for_head(from, waiter, level, forget),
            Ok(()) => {
                self.add_sync(Asker::Predecessor(waiter), level, BTreeSet::new());
            }
            Err(error) => self.refuse(waiter, error),
        }
    }

    /// At the head, for a client.
    pub(super) fn start_sync(&mut self, waiter: WaiterId, response: StorageResponse, level: Level) {
        let asker = Asker::Client(waiter, response, level);
        let level = self.reach(level);
        let epoch = self.epoch();
        let first = if level == Level::One {
            BTreeSet::new()
        } else {
            self.queues
                .iter()
                .flat_map(|(&chunk, queue)| queue.entries.iter().map(move |entry| (chunk, entry)))
                .filter(|(_, entry)| !entry.has(level) && (entry.request.level < level || entry.version.epoch < epoch))
                .map(|(chunk, entry)| (chunk, entry.version))
                .collect()
        };
        self.add_sync(asker, level, first);
    }

    pub(super) fn add_sync(&mut self, asker: Asker, level: Level, first: BTreeSet<(ChunkId, ChunkVersion)>) -> u64 {
        self.add_sync_that_drops(asker, level, first, Vec::new())
    }

    pub(super) fn add_predecessors_sync(&mut self, waiter: WaiterId, level: Level, forget: Tombstones) -> u64 {
        self.add_sync_that_drops(Asker::Predecessor(waiter), level, BTreeSet::new(), forget)
    }

    /// Of all stores; those behind this one drop these tombstones before.
    pub(super) fn add_forgetting_sync(&mut self, asker: Asker, forget: Tombstones) -> u64 {
        self.add_sync_that_drops(asker, Level::All, BTreeSet::new(), forget)
    }

    fn add_sync_that_drops(
        &mut self,
        asker: Asker,
        level: Level,
        first: BTreeSet<(ChunkId, ChunkVersion)>,
        forget: Tombstones,
    ) -> u64 {
        let job = self.id();
        if self.syncs.len() >= MAX_SYNCS {
            let error = Error::new(
                ErrorCode::Overloaded,
                format!("chain {} has {MAX_SYNCS} syncs under way", self.chain),
            );
            self.refuse_sync(&asker, &error);
            return job;
        }
        let waits = !first.is_empty();
        self.syncs.insert(
            job,
            SyncJob {
                asker,
                level,
                first,
                forget,
                local: false,
                downstream: false,
            },
        );
        if !waits {
            self.sync_stores(job);
        }
        job
    }

    /// A mutation of the chunk got on: starts the syncs that waited for it.
    pub(super) fn advance_syncs(&mut self, chunk: ChunkId) {
        let queue = self.queues.get(&chunk);
        let mut ready = Vec::new();
        for (&job, sync) in self.syncs.iter_mut().filter(|(_, sync)| !sync.first.is_empty()) {
            let level = sync.level;
            sync.first.retain(|&(waited, version)| {
                waited != chunk
                    || queue
                        .and_then(|queue| queue.entries.iter().find(|entry| entry.version == version))
                        .is_some_and(|entry| !entry.has(level))
            });
            if sync.first.is_empty() {
                ready.push(job);
            }
        }
        for job in ready {
            self.sync_stores(job);
        }
    }

    fn sync_stores(&mut self, job: u64) {
        let Some(level) = self.syncs.get(&job).map(|sync| sync.level) else {
            return;
        };
        let forward = match self.role {
            Role::Serving {
                successor: Successor::Serving(_),
                ..
            } => level == Level::All || (level == Level::Quorum && self.is_head() && !planted::is(Bug::SyncAlone)),
            // A syncing successor is flushed before it is declared complete; from then on it must not miss a sync.
            Role::Serving {
                successor: Successor::Syncing(_),
                ..
            } => self.session.as_ref().is_some_and(super::session::Session::wants_syncs),
            _ => false,
        };
        if forward {
            self.forward_job(job, level, 0);
        } else if let Some(sync) = self.syncs.get_mut(&job) {
            sync.downstream = true;
        }
        let ticket = self.ticket(Purpose::SyncJob(job));
        self.effects.push(Effect::Sync { ticket });
    }

    fn forward_job(&mut self, job: u64, level: Level, after_ms: u64) {
        let (Some(to), epoch) = (self.successor(), self.epoch()) else {
            return;
        };
        let forget = self.syncs.get(&job).map(|sync| sync.forget.clone()).unwrap_or_default();
        let ticket = self.ticket(Purpose::ForwardSyncJob(job));
        self.effects.push(Effect::ForwardSync {
            ticket,
            to,
            epoch,
            level,
            forget,
            after_ms,
        });
    }

    pub(super) fn job_synced(&mut self, now: Now, job: u64, result: Result<(), Error>) {
        match result {
            Ok(()) => {
                if let Some(sync) = self.syncs.get_mut(&job) {
                    sync.local = true;
                }
                self.finish_job(now, job);
            }
            Err(error) => self.fail(error.detail),
        }
    }

    pub(super) fn job_forwarded(&mut self, now: Now, job: u64, result: &Result<(), Error>) {
        if result.is_err() {
            let Some(session) = self.session.as_mut().filter(|session| !session.is_done()) else {
                if let Some(level) = self.syncs.get(&job).map(|sync| sync.level) {
                    self.forward_job(job, level, RETRY_MS);
                }
                return;
            };
            session.flush_again();
        }
        if let Some(sync) = self.syncs.get_mut(&job) {
            sync.downstream = true;
        }
        self.finish_job(now, job);
    }

    fn finish_job(&mut self, now: Now, job: u64) {
        if !self.syncs.get(&job).is_some_and(|sync| sync.local && sync.downstream) {
            return;
        }
        let Some(sync) = self.syncs.remove(&job) else {
            return;
        };
        match sync.asker {
            Asker::Client(waiter, response, level) => {
                let allowed = self.check_lease(now).and_then(|()| self.check_level(level));
                self.answer(waiter, allowed.map(|()| Answer::Response(response)));
            }
            Asker::Predecessor(waiter) => {
                self.answer(waiter, Ok(Answer::Response(StorageResponse::Synced)));
            }
            Asker::Rest => self.all_flushed(job),
            Asker::Forget => self.round_ended(now, job, sync.forget),
        }
    }

    fn refuse_sync(&mut self, asker: &Asker, error: &Error) {
        match *asker {
            Asker::Client(waiter, ..) | Asker::Predecessor(waiter) => self.refuse(waiter, error.clone()),
            Asker::Rest | Asker::Forget => {}
        }
    }

    pub(super) fn refuse_syncs(&mut self, error: &Error) {
        for sync in std::mem::take(&mut self.syncs).into_values() {
            self.refuse_sync(&sync.asker, error);
        }
    }
}
