//! A store that can not be trusted any more is set aside and filled anew by the peers, without anybody's help.
//!
//! After a failed write or sync nobody knows what is on the medium, and what is read back may come from memory. The only way to a sound
//! store is an empty one. It is begun only when in each of this node's chains another member is complete, and this one does not
//! count, by a table from a leader that a quorum follows. Until then the node says what is the matter, and touches nothing: nodes that
//! condemn themselves one after the other stop at the last copy. An administrator who knows better has the store opened again.

use std::net::SocketAddr;
use std::time::Duration;

use dfs_common::wire::meta::{Heartbeat, MetaRequest, MetaResponse, Signs};
use dfs_common::{Incarnation, Result, RoutingTable, RoutingVersion, StorageId, StoreId};
use tokio_util::sync::CancellationToken;

use super::network::Network;
use crate::condemned::chains_that_need;

/// Between two questions whether the others have everything.
const ASK: Duration = Duration::from_millis(200);

const ASK_DEADLINE: Duration = Duration::from_millis(500);

/// As whom the node speaks while its store is closed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Me {
    pub(super) node: StorageId,
    pub(super) incarnation: Incarnation,
    pub(super) store: StoreId,
    pub(super) address: SocketAddr,
}

/// What to do with the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Others have all that it has: a new one may be begun.
    BeginAnew,
    /// An administrator trusts it.
    Reopen,
    /// Nothing: the server is to stop.
    Stop,
}

/// Waits until `copies` others have all that the store has in each of its chains, or somebody trusts it.
pub(super) async fn wait_for_verdict(
    network: &Network,
    me: Me,
    copies: usize,
    reason: &str,
    shutdown: &CancellationToken,
) -> Verdict {
    let mut said = None;
    loop {
        match ask(network, me, reason).await {
            Ok(Heard::Trusted) => return Verdict::Reopen,
            Ok(Heard::Table(table)) => {
                let needed = chains_that_need(&table, me.node, copies);
                if needed.is_empty() {
                    return Verdict::BeginAnew;
                }
                if said.as_ref() != Some(&needed) {
                    tracing::warn!(
                        chains = ?needed,
                        copies,
                        "the store is to be filled anew, but these chains have too few other complete copies yet: waits"
                    );
                    said = Some(needed);
                }
            }
            Ok(Heard::Nothing) => {}
            Err(error) => tracing::debug!(%error, "nobody says yet whether the store may be filled anew"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return Verdict::Stop,
            () = tokio::time::sleep(ASK) => {}
        }
    }
}

/// What the leader says to a node without a store.
enum Heard {
    Table(RoutingTable),
    Trusted,
    Nothing,
}

/// Tells the metadata group what is wrong, and hears how the chains stand.
async fn ask(network: &Network, me: Me, reason: &str) -> Result<Heard> {
    let heartbeat = MetaRequest::Heartbeat(Heartbeat {
        sessions: 0,
        configured: network.configured(),
        node: me.node,
        incarnation: me.incarnation,
        store: me.store,
        address: me.address,
        routing: RoutingVersion(0),
        total_bytes: 0,
        used_bytes: 0,
        fault: Some(format!("{reason}: waits to be rebuilt")),
        resyncs: Vec::new(),
        settled: Vec::new(),
        rests: Vec::new(),
        retired: Vec::new(),
        signs: Signs::default(),
    });
    match network.meta(&heartbeat, ASK_DEADLINE).await? {
        MetaResponse::Heartbeat(answer) => Ok(answer.routing.map_or(Heard::Nothing, Heard::Table)),
        MetaResponse::ReopenStore { store } if store == me.store => Ok(Heard::Trusted),
        MetaResponse::Failed(error) => Err(error),
        _ => Ok(Heard::Nothing),
    }
}
