//! What only the leader knows, and forgets with its term: leases, opens, usage, resync progress. Pure: time comes in as an
//! argument, and what must become of it goes out as commands to propose.

mod fence;
mod leases;
mod moves;
mod sessions;
mod suspects;
mod trust;
mod usage;

pub(super) use fence::{Fence, Revision};
pub use leases::Leases;
pub(super) use moves::Moves;
pub(super) use sessions::Sessions;
pub(super) use trust::Trusted;
pub(super) use usage::stat_fs;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use dfs_common::wire::meta::{DamageCount, ResyncProgress, StorageStatus};
use dfs_common::{MetaId, RoutingTable, SessionId, StorageId};

use super::clock::Moment;

/// Soft state of one term.
#[derive(Debug)]
pub(super) struct Leader {
    pub(super) term: u64,
    pub(super) leases: Leases,
    pub(super) moves: Moves,
    pub(super) sessions: Sessions,
    pub(super) fence: Fence,
    pub(super) trusted: Trusted,
}

/// The leader's part of `dfs status`.
#[derive(Debug, Default)]
pub(super) struct SoftStatus {
    pub(super) storage: BTreeMap<StorageId, StorageStatus>,
    pub(super) resyncs: Vec<ResyncProgress>,
    pub(super) sessions: u64,
    /// By how many nanoseconds clients' clocks are ahead, of those that are off.
    pub(super) wrong_clocks: BTreeMap<SessionId, i64>,
    pub(super) configured: Configured,
}

/// Where the configurations of those who run say that the metadata servers are.
#[derive(Clone, Debug, Default)]
pub(super) struct Configured {
    pub(super) nodes: BTreeMap<StorageId, BTreeMap<MetaId, SocketAddr>>,
    pub(super) sessions: BTreeMap<SessionId, BTreeMap<MetaId, SocketAddr>>,
}

impl Leader {
    pub(super) fn tick(&mut self, now: Moment, routing: &RoutingTable) {
        self.leases.tick(now, routing);
        self.sessions.tick(now);
    }

    pub(super) fn status(&self, now: Moment, routing: &RoutingTable) -> SoftStatus {
        let mut status = SoftStatus {
            storage: routing
                .nodes
                .values()
                .map(|info| {
                    let status = StorageStatus {
                        address: info.address,
                        alive: info.alive,
                        total_bytes: 0,
                        used_bytes: 0,
                        fault: None,
                        aside: self.leases.aside(info.id).map(str::to_owned),
                        short: None,
                        damage: DamageCount::default(),
                        replaced: self.leases.refused(now, routing, info.id),
                    };
                    (info.id, status)
                })
                .collect(),
            resyncs: Vec::new(),
            sessions: self.sessions.len() as u64,
            wrong_clocks: self.sessions.wrong_clocks(),
            configured: Configured {
                nodes: BTreeMap::new(),
                sessions: self.sessions.configured(),
            },
        };
        for (node, report) in self.leases.reports() {
            if let Some(row) = status.storage.get_mut(&node) {
                row.total_bytes = report.total_bytes;
                row.used_bytes = report.used_bytes;
                row.fault.clone_from(&report.fault);
                row.damage = report.damage;
                row.short = report.short;
                status.configured.nodes.insert(node, report.configured.clone());
            }
            // Progress of an epoch that is over is no progress.
            let current = |resync: &&ResyncProgress| {
                routing
                    .chain(resync.chain)
                    .is_some_and(|chain| chain.epoch == resync.epoch)
                    && routing.nodes.get(&node).is_some_and(|info| info.alive)
            };
            status.resyncs.extend(report.resyncs.iter().filter(current).cloned());
        }
        status
    }
}
