//! Making durable what the chain has acknowledged.
//!
//! What was acknowledged before a sync arrived is in the store of every serving member, so each one syncs its store at
//! once and asks the next at the same time; nothing pending has to be waited for.

use dfs_common::wire::storage::StorageResponse;
use dfs_common::{Epoch, Error, Level, StorageId};

use super::types::{Answer, Effect, Now, WaiterId};
use super::{Purpose, ReplicaCore, Role, Successor};

const RETRY_MS: u64 = 20;

#[derive(Clone, Debug)]
pub(super) struct SyncJob {
    waiters: Vec<WaiterId>,
    response: StorageResponse,
    /// For a client, whose answer needs lease and level.
    for_client: bool,
    local: bool,
    downstream: bool,
}

impl ReplicaCore {
    pub(super) fn client_sync(&mut self, now: Now, epoch: Epoch, waiter: WaiterId) {
        let admitted = self
            .admit_at_head(now, epoch)
            .and_then(|()| self.check_level(Level::default()));
        match admitted {
            Ok(()) => self.start_sync(vec![waiter], StorageResponse::Synced, true),
            Err(error) => self.refuse(waiter, error),
        }
    }

    pub(super) fn forwarded_sync(&mut self, from: StorageId, epoch: Epoch, waiter: WaiterId) {
        match self.admit_predecessor(from, epoch) {
            Ok(()) => {
                self.start_sync(vec![waiter], StorageResponse::Synced, false);
            }
            Err(error) => self.refuse(waiter, error),
        }
    }

    pub(super) fn start_sync(&mut self, waiters: Vec<WaiterId>, response: StorageResponse, for_client: bool) {
        let job = self.id();
        // A syncing successor is flushed before it is declared complete; from then on it must not miss a sync.
        let forward = match self.role {
            Role::Serving {
                successor: Successor::Serving(_),
                ..
            } => true,
            Role::Serving {
                successor: Successor::Syncing(_),
                ..
            } => self.session.as_ref().is_some_and(super::session::Session::wants_syncs),
            _ => false,
        };
        self.syncs.insert(
            job,
            SyncJob {
                waiters,
                response,
                for_client,
                local: false,
                downstream: !forward,
            },
        );
        if forward {
            self.forward_job(job, 0);
        }
        let ticket = self.ticket(Purpose::SyncJob(job));
        self.effects.push(Effect::Sync { ticket });
    }

    fn forward_job(&mut self, job: u64, after_ms: u64) {
        let (Some(to), epoch) = (self.successor(), self.epoch()) else {
            return;
        };
        let ticket = self.ticket(Purpose::ForwardSyncJob(job));
        self.effects.push(Effect::ForwardSync {
            ticket,
            to,
            epoch,
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
                if self.syncs.contains_key(&job) {
                    self.forward_job(job, RETRY_MS);
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
        let allowed = if sync.for_client {
            self.check_lease(now).and_then(|()| self.check_level(Level::default()))
        } else {
            Ok(())
        };
        for waiter in sync.waiters {
            let answer = allowed.clone().map(|()| Answer::Response(sync.response.clone()));
            self.answer(waiter, answer);
        }
    }

    pub(super) fn refuse_syncs(&mut self, error: &Error) {
        for sync in std::mem::take(&mut self.syncs).into_values() {
            for waiter in sync.waiters {
                self.refuse(waiter, error.clone());
            }
        }
    }
}
