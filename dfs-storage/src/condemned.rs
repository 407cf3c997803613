//! Whether a store that can not be trusted any more may be emptied. Pure.
//!
//! Invariant: of every chain that the store is in, others have complete copies, and this node does
//! not count any more. So nodes that condemn themselves one after the other stop at the last copy.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use dfs_common::planted::{self, Bug};
use dfs_common::{ChainId, ChainInfo, MemberState, RoutingTable, StorageId};

/// Chains that have fewer than `copies` complete copies besides this node's, by a table from a
/// leader that a quorum follows. The store may be emptied when there are none.
#[must_use]
pub fn chains_that_need(table: &RoutingTable, node: StorageId, copies: usize) -> Vec<ChainId> {
    if planted::is(Bug::EmptiesTheLastCopy) {
        return Vec::new();
    }
    let needs = |chain: &&ChainInfo| match chain.state_of(node) {
        None => false,
        Some(MemberState::Offline | MemberState::Waiting) => {
            chain.complete().filter(|&other| other != node).count() < copies
        }
        Some(_) => true,
    };
    table.chains.values().filter(needs).map(|chain| chain.id).collect()
}

#[cfg(test)]
mod tests {
    use dfs_common::{ChainInfo, ChainMember, Epoch};

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
            !chains_that_need(&table, StorageId(1), copies).is_empty()
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
        assert!(chains_that_need(&RoutingTable::default(), StorageId(1), 1).is_empty());
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
