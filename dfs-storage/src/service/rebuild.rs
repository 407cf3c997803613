//! A store that can not be trusted any more is set aside and filled anew by the peers, without anybody's help.
//!
//! After a failed write or sync nobody knows what is on the medium, and what is read back may come from memory. The only way to a sound
//! store is an empty one. It is begun only when in each of this node's chains another member is complete, and this one does not
//! count, by a table from a leader that a quorum follows. Until then the node says what is the matter, and touches nothing: nodes that
//! condemn themselves one after the other stop at the last copy. An administrator who knows better has the store opened again.

use std::net::SocketAddr;
use std::time::Duration;

use dfs_common::wire::meta::{Heartbeat, MetaRequest, MetaResponse, Signs};
use dfs_common::{Incarnation, MemberState, Result, RoutingTable, RoutingVersion, StorageId, StoreId};
use tokio_util::sync::CancellationToken;

use super::network::Network;

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

/// Chains that have fewer than `copies` complete copies besides this node's.
fn needed_for(table: &RoutingTable, node: StorageId, copies: usize) -> Vec<u32> {
    let needs = |chain: &&dfs_common::ChainInfo| match chain.state_of(node) {
        None => false,
        Some(MemberState::Offline | MemberState::Waiting) => {
            chain.complete().filter(|&other| other != node).count() < copies
        }
        Some(_) => true,
    };
    table
        .chains
        .values()
        .filter(needs)
        .map(|chain| chain.id.get())
        .collect()
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
                let needed = needed_for(&table, me.node, copies);
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

#[cfg(test)]
mod tests {
    use dfs_common::{ChainId, ChainInfo, ChainMember, Epoch};

    use super::*;

    #[test]
    fn a_store_is_only_given_up_beside_complete_copies() {
        use MemberState::{LastServer, Offline, Serving, Syncing, Waiting};
        let needed_beside = |copies: usize, settled: bool, states: [MemberState; 3]| {
            let members = (1..)
                .zip(states)
                .map(|(node, state)| ChainMember::new(StorageId(node), state));
            let chain = ChainInfo {
                id: ChainId(7),
                epoch: Epoch(3),
                settled,
                rest: dfs_common::Rest::default(),
                headed: Epoch(1),
                revived: Epoch(1),
                members: members.collect(),
            };
            let table = RoutingTable {
                chains: [(ChainId(7), chain)].into(),
                ..RoutingTable::default()
            };
            !needed_for(&table, StorageId(1), copies).is_empty()
        };
        let needed = |states| needed_beside(1, true, states);
        assert!(!needed([Offline, Serving, Serving]));
        assert!(!needed([Waiting, Serving, Offline]));
        assert!(
            needed([Serving, Serving, Serving]),
            "the others do not know yet that it is out"
        );
        assert!(needed([Syncing, Serving, Offline]));
        assert!(needed([LastServer, LastServer, Offline]));
        assert!(needed([Offline, LastServer, Offline]));
        assert!(needed([Offline, Waiting, Offline]));
        assert!(needed_for(&RoutingTable::default(), StorageId(1), 1).is_empty());
        // While an earlier one is set aside.
        assert!(!needed_beside(2, true, [Offline, Serving, Serving]));
        assert!(needed_beside(2, true, [Offline, Serving, Syncing]));
        assert!(
            needed_beside(2, false, [Offline, Serving, Serving]),
            "the second may lack what was acknowledged"
        );
        assert!(!needed_beside(1, false, [Offline, Serving, Serving]));
    }
}
