//! The metadata server as a process: data directory, consensus, state, requests and background tasks.

mod authorize;
mod clock;
mod data_directory;
mod dispatch;
mod error;
mod holds;
mod leader;
mod observed;
mod obstacles;
mod owner;
mod replaced;
mod server;
mod servers;
mod shared;
mod status;
mod tasks;
#[cfg(test)]
mod tests;
mod wire;

use std::sync::Arc;

use dfs_common::wire::meta::MetaDamage;
use dfs_common::wire::namespace::StatFs;
use dfs_common::{ClusterId, MetaId, RoutingTable};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use clock::Clock;
use owner::Owner;
use shared::{Applied, Shared, StorageCaller};
use tasks::deaths::Deaths;
use tasks::expire::Expire;
use tasks::purge::Purge;

use crate::consensus::Consensus;

pub use clock::Moment;
pub use error::StartError;
pub use leader::Leases;
pub use server::{MetaOptions, MetaServer};

/// What the working parts of a server are made from.
struct Parts {
    cluster: ClusterId,
    me: MetaId,
    clock: Arc<Clock>,
    consensus: Arc<dyn Consensus>,
    state: Arc<dyn Applied>,
    routing: watch::Receiver<Arc<RoutingTable>>,
    storage: Arc<dyn StorageCaller>,
    damage: Vec<MetaDamage>,
}

/// Starts the background tasks and returns what requests need.
fn assemble(parts: Parts, tasks: &TaskTracker, shutdown: &CancellationToken) -> Arc<Shared> {
    let (owner, asks) = mpsc::channel(owner::QUEUE_MAX);
    let (usage, usage_seen) = watch::channel(StatFs::default());
    let shared = Arc::new(Shared {
        cluster: parts.cluster,
        me: parts.me,
        clock: parts.clock,
        consensus: parts.consensus,
        state: parts.state,
        routing: parts.routing,
        usage: usage_seen,
        wants: holds::Wants::new(),
        owner,
        storage: parts.storage,
        damage: parts.damage,
    });
    tasks::spawn(tasks, Owner { asks, usage }, &shared, shutdown);
    tasks::spawn(tasks, Expire, &shared, shutdown);
    tasks::spawn(tasks, Purge, &shared, shutdown);
    tasks::spawn(tasks, Deaths, &shared, shutdown);
    shared
}
