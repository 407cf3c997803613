//! What all parts of a storage server share.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use dfs_common::wire::storage::{DamageOutcome, FoundBy};
use dfs_common::{ChainId, ChunkId, Error, ErrorCode, Incarnation, MemberState, Rest, RoutingTable, StorageId};
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::aside::AsideSlot;
use super::budget::Budget;
use super::chain::Chain;
use super::damage::DamageTable;
use super::lease::Lease;
use super::network::Network;
use super::scrub::Scrub;
use super::sessions::Sessions;
use super::signs::{Meter, Neighbours};
use super::syncer::Syncer;
use crate::replica::Input;
use crate::store::{ChunkStore, RecoveryReport};

/// Chunks deleted at a time: a new table waits for no more than this.
const FORGET_STEP: usize = 64;

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
    /// Cancelled with the first fault.
    pub(crate) failed: CancellationToken,
    /// Nodes that should get no more data, as the metadata group last said.
    pub(crate) full: RwLock<BTreeSet<StorageId>>,
    pub(crate) sessions: Sessions,
    /// How quick the disk is.
    pub(crate) syncs: Arc<Meter>,
    pub(crate) writes: Meter,
    pub(crate) neighbours: Mutex<Neighbours>,
    /// How fast it copies to others.
    pub(crate) budget: Mutex<Budget>,
    /// The next heartbeat can not wait for its time.
    pub(crate) beat_now: Notify,
    /// What is damaged on this disk.
    pub(crate) damage: DamageTable,
    pub(crate) scrub: Scrub,
    /// The store that was condemned before this one.
    pub(crate) aside: AsideSlot,
    /// An administrator says that the store is to be opened again, though it has a fault.
    pub(crate) trusted: CancellationToken,
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
            self.beat_now.notify_one();
            self.failed.cancel();
        }
    }

    /// What is wrong here, if something is.
    pub(crate) fn current_fault(&self) -> Option<String> {
        if let Some(reason) = self.store.fault() {
            self.set_fault(&reason);
        }
        self.fault.lock().clone()
    }

    /// Whoever finds that stored bytes are not what was written says so here; then they are mended.
    pub(crate) fn note_damage(&self, chunk: ChunkId, found_by: FoundBy, error: &Error) {
        if error.code == ErrorCode::Corrupt
            && self
                .damage
                .note(self.store.chain_of(chunk), chunk, found_by, error.detail.clone())
        {
            tracing::error!(%chunk, %error, "damaged on this disk");
        }
    }

    /// What opening the store found.
    pub(crate) fn note_recovery(&self, report: &RecoveryReport) {
        for what in &report.rebuilt {
            tracing::error!(what, "damaged on this disk");
            self.damage
                .note_structure(FoundBy::Start, what.clone(), DamageOutcome::Rebuilt);
        }
        for rot in &report.rot {
            match rot.chunk {
                Some(chunk) => {
                    let chain = self.store.chain_of(chunk);
                    self.damage.note(chain, chunk, FoundBy::Start, rot.to_string());
                }
                None => self
                    .damage
                    .note_structure(FoundBy::Start, rot.to_string(), DamageOutcome::Open),
            }
        }
    }

    /// Whether this start of it is in sync in every chain it belongs to: it has all that the others have.
    pub(crate) fn serves_everywhere(&self) -> bool {
        let table = self.routing();
        table
            .nodes
            .get(&self.id)
            .is_some_and(|info| info.incarnation == self.incarnation && info.alive)
            && table
                .chains
                .values()
                .filter_map(|chain| chain.state_of(self.id))
                .all(|state| state == MemberState::Serving)
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
        let listed = table.nodes.get(&self.id).map(|info| info.incarnation);
        let known = listed == Some(self.incarnation);
        if listed > Some(self.incarnation) {
            tracing::error!(
                "the metadata group knows a later start of storage-{}, so this process gets no part: stop whoever uses its name elsewhere; or \
                 if its disk is new, set the clock, which is behind, and start it again",
                self.id
            );
        }
        self.budget.lock().pause(table.resyncs_paused);
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
            } else if chain.epoch() == config.epoch && (config.settled || config.rest > Rest::default()) {
                chain.drive(self, Input::Configure(config.clone()));
            }
        }
        // Who waits for an epoch looks again.
        self.table.send_modify(|_| {});
        for (&id, config) in &table.chains {
            if config.state_of(self.id).is_none() && !self.store.list(id, None, 1).is_empty() {
                let node = Arc::clone(self);
                self.runtime.spawn_blocking(move || node.forget(id));
            }
        }
    }

    /// Deletes what is left of a chain that this node is not in any more. In steps, each while no table can make it a member again; and
    /// only by a table that knows this start of the process: an older one may be from before it joined.
    fn forget(&self, id: ChainId) {
        let mut forgotten = 0;
        loop {
            let _in_order = self.configuring.lock();
            let table = self.routing();
            let knows_us = table
                .nodes
                .get(&self.id)
                .is_some_and(|info| info.incarnation == self.incarnation);
            let left = table.chain(id).is_some_and(|config| config.state_of(self.id).is_none());
            let chunks = self.store.list(id, None, FORGET_STEP);
            if !knows_us || !left || chunks.is_empty() || self.stopping.is_cancelled() {
                break;
            }
            for (chunk, _) in chunks {
                if let Err(error) = self.store.drop_chunk(id, chunk) {
                    tracing::warn!(chain = %id, %chunk, %error, "what is left of a chain can not be deleted; tried again later");
                    return;
                }
                forgotten += 1;
            }
        }
        if forgotten > 0 {
            tracing::info!(chain = %id, chunks = forgotten, "left the chain; its chunks here are deleted");
        }
    }
}
