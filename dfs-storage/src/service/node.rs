//! What all parts of a storage server share.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use dfs_common::{ChainId, ChunkId, Error, ErrorCode, Incarnation, MemberState, RoutingTable, StorageId};
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::chain::Chain;
use super::lease::Lease;
use super::network::Network;
use super::syncer::Syncer;
use crate::replica::Input;
use crate::store::ChunkStore;

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: StorageId,
    pub(crate) incarnation: Incarnation,
    pub(crate) advertised: SocketAddr,
    pub(crate) store: ChunkStore,
    pub(crate) network: Network,
    pub(crate) syncer: Syncer,
    pub(crate) runtime: Handle,
    pub(crate) lease: Lease,
    pub(crate) chains: RwLock<BTreeMap<ChainId, Arc<Chain>>>,
    pub(crate) table: watch::Sender<Arc<RoutingTable>>,
    /// Somebody met an epoch that this node has not heard of.
    pub(crate) refresh: Notify,
    pub(crate) fault: Mutex<Option<String>>,
    /// Nodes that should get no more data, as the metadata group last said.
    pub(crate) full: RwLock<BTreeSet<StorageId>>,
    /// Chunks found damaged; the next resync brings them whole.
    pub(crate) rotten: Mutex<BTreeSet<ChunkId>>,
    pub(crate) stopping: CancellationToken,
    /// Taken while a table is put into effect, so that tables are in order.
    pub(crate) configuring: Mutex<()>,
}

impl Node {
    pub(crate) fn routing(&self) -> Arc<RoutingTable> {
        self.table.borrow().clone()
    }

    pub(crate) fn has_lease(&self, now_ms: u64) -> bool {
        self.lease.is_good_at(now_ms) && self.fault.lock().is_none()
    }

    pub(crate) fn chain(&self, id: ChainId) -> Option<Arc<Chain>> {
        self.chains.read().get(&id).cloned()
    }

    /// Stops acknowledging for good. The metadata group hears of it with the next heartbeat.
    pub(crate) fn set_fault(&self, reason: &str) {
        let mut fault = self.fault.lock();
        if fault.is_none() {
            tracing::error!(
                reason,
                "this node acknowledges nothing any more: look at its disk, then restart it to rebuild from its peers"
            );
            *fault = Some(reason.to_owned());
        }
    }

    /// What is wrong here, if something is.
    pub(crate) fn current_fault(&self) -> Option<String> {
        if let Some(reason) = self.store.fault() {
            self.set_fault(&reason);
        }
        self.fault.lock().clone()
    }

    pub(crate) fn note_damage(&self, chunk: ChunkId, error: &Error) {
        if error.code == ErrorCode::Corrupt {
            tracing::error!(%chunk, %error, "damaged on this disk");
            self.rotten.lock().insert(chunk);
        }
    }

    /// Puts a routing table into effect.
    ///
    /// Roles only come from a table that knows this start of this process: an older one may name it as a serving
    /// member that still remembers what it had in flight.
    pub(crate) fn learn(self: &Arc<Self>, table: RoutingTable) {
        let _in_order = self.configuring.lock();
        if table.version <= self.table.borrow().version {
            return;
        }
        let known = table
            .nodes
            .get(&self.id)
            .is_some_and(|info| info.incarnation == self.incarnation);
        let table = Arc::new(table);
        // Addresses first: what a new configuration sends at once needs them.
        self.table.send_replace(Arc::clone(&table));
        if !known {
            return;
        }
        for (&id, config) in &table.chains {
            let member = config.state_of(self.id);
            let chain = match self.chain(id) {
                Some(chain) => chain,
                None if member.is_none() => continue,
                None => Arc::clone(
                    self.chains
                        .write()
                        .entry(id)
                        .or_insert_with(|| Arc::new(Chain::new(id, self.id))),
                ),
            };
            if chain.epoch() < config.epoch {
                let state = member.map_or_else(|| "not a member".to_owned(), |state: MemberState| state.to_string());
                tracing::info!(chain = %id, epoch = %config.epoch, state, "new configuration");
                chain.drive(self, Input::Configure(config.clone()));
            }
        }
        // Who waits for an epoch looks again.
        self.table.send_modify(|_| {});
    }
}
