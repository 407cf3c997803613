//! A store that can not be trusted any more is emptied and filled again by the peers, without anybody's help.
//!
//! After a failed write or sync nobody knows what is on the medium, and what is read back may come from memory. The only way to a sound
//! store is an empty one. It is emptied only when it is sure that nothing is lost by it: in each of its chains another member
//! serves, and this one does not count. Until then it says what is the matter, and touches nothing.

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

/// Chains whose only complete copy may be here.
fn needed_for(table: &RoutingTable, node: StorageId) -> Vec<u32> {
    let needs = |chain: &&dfs_common::ChainInfo| match chain.state_of(node) {
        None => false,
        Some(MemberState::Offline | MemberState::Waiting) => chain.serving().all(|other| other == node),
        Some(_) => true,
    };
    table
        .chains
        .values()
        .filter(needs)
        .map(|chain| chain.id.get())
        .collect()
}

/// Waits until the store may be emptied. `false`: the server is to stop.
pub(super) async fn wait_until_others_have_it(
    network: &Network,
    me: Me,
    reason: &str,
    shutdown: &CancellationToken,
) -> bool {
    let mut said = None;
    loop {
        match ask(network, me, reason).await {
            Ok(Some(table)) => {
                let needed = needed_for(&table, me.node);
                if needed.is_empty() {
                    return true;
                }
                if said.as_ref() != Some(&needed) {
                    tracing::warn!(
                        chains = ?needed,
                        "the store is to be emptied and rebuilt, but these chains have no other complete copy yet: waits"
                    );
                    said = Some(needed);
                }
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "nobody says yet whether the store may be emptied"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return false,
            () = tokio::time::sleep(ASK) => {}
        }
    }
}

/// Tells the metadata group what is wrong, and hears how the chains stand.
async fn ask(network: &Network, me: Me, reason: &str) -> Result<Option<RoutingTable>> {
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
        MetaResponse::Heartbeat(answer) => Ok(answer.routing),
        MetaResponse::Failed(error) => Err(error),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use dfs_common::{ChainId, ChainInfo, ChainMember, Epoch};

    use super::*;

    #[test]
    fn a_store_is_only_emptied_beside_a_complete_copy() {
        use MemberState::{LastServer, Offline, Serving, Syncing, Waiting};
        let needed = |states: [MemberState; 3]| {
            let members = (1..)
                .zip(states)
                .map(|(node, state)| ChainMember::new(StorageId(node), state));
            let chain = ChainInfo {
                id: ChainId(7),
                epoch: Epoch(3),
                settled: true,
                rest: dfs_common::Rest::default(),
                headed: Epoch(1),
                revived: Epoch(1),
                members: members.collect(),
            };
            let table = RoutingTable {
                chains: [(ChainId(7), chain)].into(),
                ..RoutingTable::default()
            };
            !needed_for(&table, StorageId(1)).is_empty()
        };
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
        assert!(needed_for(&RoutingTable::default(), StorageId(1)).is_empty());
    }
}
