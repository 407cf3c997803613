//! Settling: making sure that the second member has what the head brought along from earlier epochs.
//!
//! A write at QUORUM is on the first two members. When one of them goes, another moves up, and may lack what the head has pending.
//! Until it has that, durably, only the head is complete. So the head of a chain that is not settled waits for what it had
//! pending when the epoch began to be on its successor, has the successor's store synced, and reports it. Durably, because what was
//! synced at QUORUM was synced on two members, of which one may have gone.

use std::collections::BTreeSet;

use dfs_common::planted::{self, Bug};
use dfs_common::{ChunkId, ChunkVersion, Error, Level};

use super::sync::RETRY_MS;
use super::types::Effect;
use super::{Purpose, ReplicaCore, Role, Successor};

#[derive(Clone, Debug)]
pub(super) struct Settling {
    /// What the successor may lack.
    left: BTreeSet<(ChunkId, ChunkVersion)>,
    flushing: bool,
}

impl ReplicaCore {
    /// At the beginning of an epoch, once what is pending has been sent on.
    pub(super) fn start_settling(&mut self) {
        let unsettled = self.config.as_ref().is_some_and(|config| !config.settled);
        let successor = matches!(
            self.role,
            Role::Serving {
                predecessor: None,
                successor: Successor::Serving(_),
            }
        );
        if !unsettled || !successor {
            return;
        }
        self.settling = Some(Settling {
            left: self
                .queues
                .iter()
                .filter(|_| !planted::is(Bug::SettledUnheard))
                .flat_map(|(&chunk, queue)| queue.entries.iter().map(move |entry| (chunk, entry.version)))
                .collect(),
            flushing: false,
        });
        self.advance_settling();
    }

    pub(super) fn advance_settling(&mut self) {
        let Some(settling) = self.settling.as_mut().filter(|settling| !settling.flushing) else {
            return;
        };
        let queues = &self.queues;
        settling.left.retain(|&(chunk, version)| {
            queues
                .get(&chunk)
                .and_then(|queue| queue.entries.iter().find(|entry| entry.version == version))
                .is_some_and(|entry| !entry.has(Level::Quorum))
        });
        if settling.left.is_empty() {
            settling.flushing = true;
            if planted::is(Bug::SettledUnflushed) {
                return self.second_flushed(&Ok(()));
            }
            self.flush_second(0);
        }
    }

    fn flush_second(&mut self, after_ms: u64) {
        let (Some(to), epoch) = (self.successor(), self.epoch()) else {
            return;
        };
        let ticket = self.ticket(Purpose::FlushSecond);
        self.effects.push(Effect::ForwardSync {
            ticket,
            to,
            epoch,
            level: Level::Quorum,
            forget: Vec::new(),
            after_ms,
        });
    }

    pub(super) fn second_flushed(&mut self, result: &Result<(), Error>) {
        if self.settling.is_none() {
            return;
        }
        if result.is_err() {
            return self.flush_second(RETRY_MS);
        }
        self.settling = None;
        let epoch = self.epoch();
        self.effects.push(Effect::ReportSettled { epoch });
    }
}
