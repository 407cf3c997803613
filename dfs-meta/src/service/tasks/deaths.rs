//! Hears of the death of storage nodes' processes from their kernels, long before their leases end (see `dfs_net::liveness`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use dfs_common::{Incarnation, StorageId};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::Task;
use crate::service::owner::Ask;
use crate::service::shared::Shared;

#[derive(Debug)]
pub(in crate::service) struct Deaths;

/// One process, where it listens.
type Process = (StorageId, Incarnation, SocketAddr);

impl Task for Deaths {
    const NAME: &'static str = "deaths";

    async fn run(self, shared: Arc<Shared>, shutdown: CancellationToken) {
        shutdown.run_until_cancelled(watch(&shared)).await;
    }
}

async fn watch(shared: &Arc<Shared>) {
    let mut leadership = shared.consensus.leadership();
    let mut routing = shared.routing.clone();
    let mut watched: BTreeMap<Process, AbortHandle> = BTreeMap::new();
    let mut deaths: JoinSet<Process> = JoinSet::new();
    loop {
        let alive: Vec<Process> = if leadership.borrow_and_update().is_self {
            let table = routing.borrow_and_update();
            let alive = table.nodes.values().filter(|info| info.alive);
            alive.map(|info| (info.id, info.incarnation, info.address)).collect()
        } else {
            Vec::new()
        };
        watched.retain(|process, watch| {
            let stays = alive.contains(process);
            if !stays {
                watch.abort();
            }
            stays
        });
        for process in alive {
            watched.entry(process).or_insert_with(|| {
                let storage = Arc::clone(&shared.storage);
                deaths.spawn(async move {
                    storage.death(process.2, process.1).await;
                    process
                })
            });
        }
        tokio::select! {
            changed = leadership.changed() => if changed.is_err() {
                return;
            },
            changed = routing.changed() => if changed.is_err() {
                return;
            },
            // Also those that were given up: a branch that does not match them would not be looked at again.
            Some(death) = deaths.join_next() => if let Ok((node, incarnation, _)) = death {
                debug!(%node, "its kernel says that its process is dead");
                // Who no longer leads has no use for it.
                let _ = shared.ask(|reply| Ask::Died { node, incarnation, reply }).await;
            },
        }
    }
}
