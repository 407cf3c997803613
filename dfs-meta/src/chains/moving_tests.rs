//! Members that come and go: one chain, and whole tables until nothing is left to move.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use dfs_common::wire::meta::NodeAction;
use dfs_common::{ChainMember, Epoch, ErrorCode, Incarnation, MemberState, RoutingTable, StorageId, StoreId};
use proptest::prelude::*;

use super::settle_all;
use super::tests::{after, chain};
use super::{ChainEvent, Move, administer, apply, next_chain, plan_moves};
use crate::command::ClusterEvent;

const NOBODY: BTreeSet<StorageId> = BTreeSet::new();

pub(super) fn up(node: u32) -> ClusterEvent {
    ClusterEvent::NodeUp {
        node: StorageId(node),
        incarnation: Incarnation(1),
        store: StoreId([node as u8; 16]),
        address: SocketAddr::from(([127, 0, 0, 1], 1000 + node as u16)),
    }
}

pub(super) fn down(node: u32) -> ClusterEvent {
    ClusterEvent::NodeDown {
        node: StorageId(node),
        incarnation: Incarnation(1),
    }
}

#[test]
fn members_join_and_leave_in_the_configuration_that_was_meant() {
    use MemberState::{LastServer, Offline, Serving, Syncing, Waiting};
    let join = |node, epoch| ChainEvent::Join {
        node: StorageId(node),
        epoch: Epoch(epoch),
    };
    let leave = |node, epoch| ChainEvent::Leave {
        node: StorageId(node),
        epoch: Epoch(epoch),
    };
    let three = chain(&[(1, Serving), (2, Serving), (3, Serving)]);
    assert_eq!(
        after(&three, &[join(4, 10)]),
        [(1, Serving), (2, Serving), (3, Serving), (4, Syncing)]
    );
    for nothing in [join(4, 9), join(2, 10), leave(1, 10), leave(4, 10)] {
        assert_eq!(next_chain(&three, &[nothing]), None, "{nothing:?}");
    }
    let renewed = next_chain(&three, &[ChainEvent::Renew { epoch: Epoch(10) }]).expect("a new configuration");
    assert_eq!(renewed.epoch, Epoch(11));
    assert_eq!(
        after(&three, &[ChainEvent::Renew { epoch: Epoch(10) }]),
        [(1, Serving), (2, Serving), (3, Serving)]
    );
    let four = chain(&[(1, Serving), (2, Serving), (3, Serving), (4, Serving)]);
    for node in 1..=4 {
        let left = after(&four, &[leave(node, 10)]);
        assert_eq!(left.len(), 3);
        assert!(
            left.iter().all(|member| member.0 != node && member.1 == Serving),
            "{left:?}"
        );
    }
    assert_eq!(
        after(&four, &[leave(1, 10), leave(2, 10)]).len(),
        3,
        "of two only one goes"
    );
    assert_eq!(
        after(&four, &[ChainEvent::Down(StorageId(2)), leave(1, 10)]),
        [(1, Serving), (3, Serving), (4, Serving), (2, Offline)],
        "one has just died, so nobody else goes"
    );
    let spare = chain(&[(1, Serving), (2, Serving), (4, Syncing), (3, Offline)]);
    assert_eq!(next_chain(&spare, &[leave(3, 10)]), None, "two are too few");
    // The last complete copy is given up.
    let dark = chain(&[(3, LastServer), (2, Waiting), (1, Offline)]);
    assert_eq!(
        after(
            &dark,
            &[ChainEvent::Abandon(StorageId(3)), ChainEvent::Up(StorageId(2))]
        ),
        [(2, Serving), (3, Offline), (1, Offline)]
    );
    assert_eq!(next_chain(&three, &[ChainEvent::Abandon(StorageId(3))]), None);
    // Of two, one is given up: the other is still waited for.
    let two = chain(&[(1, LastServer), (3, LastServer), (2, Offline)]);
    assert_eq!(
        after(&two, &[ChainEvent::Abandon(StorageId(3))]),
        [(1, LastServer), (2, Offline), (3, Offline)]
    );
}

fn table(nodes: u32) -> RoutingTable {
    let mut routing = RoutingTable::default();
    apply(&mut routing, &[up(1), up(2), up(3)]);
    let more: Vec<_> = (4..=nodes).map(up).collect();
    apply(&mut routing, &more);
    routing
}

fn load(routing: &RoutingTable) -> BTreeMap<u32, usize> {
    let mut load: BTreeMap<u32, usize> = routing.nodes.keys().map(|node| (node.0, 0)).collect();
    for member in routing.chains.values().flat_map(|chain| &chain.members) {
        *load.entry(member.node.0).or_default() += 1;
    }
    load
}

/// One round: what is planned happens, and whoever syncs is in sync then.
fn step(routing: &mut RoutingTable, away: &BTreeSet<StorageId>) -> bool {
    let settled = settle_all(routing);
    let moves = plan_moves(routing, away, &NOBODY);
    let mut arriving: BTreeMap<StorageId, usize> = BTreeMap::new();
    let mut events: Vec<ClusterEvent> = moves
        .iter()
        .map(|planned| match *planned {
            Move::Join { chain, epoch, node } => {
                *arriving.entry(node).or_default() += 1;
                ClusterEvent::Join { chain, epoch, node }
            }
            Move::Leave { chain, epoch, node } => ClusterEvent::Leave { chain, epoch, node },
            Move::Rotate { chain, epoch } => ClusterEvent::Rotate { chain, epoch },
        })
        .collect();
    assert!(arriving.values().all(|&count| count <= 2), "{moves:?}");
    events.extend(routing.chains.values().flat_map(|chain| {
        let syncing = chain
            .members
            .iter()
            .filter(|member| member.state == MemberState::Syncing);
        syncing.map(|member| ClusterEvent::Resynced {
            chain: chain.id,
            epoch: chain.epoch,
            node: member.node,
        })
    }));
    // Joins and leaves of the same batch as a resync are for the epoch before it, which is this one.
    apply(routing, &events) || settled
}

/// Until nothing moves; in between every chain has at least `least` that serve.
fn settle(routing: &mut RoutingTable, away: &BTreeSet<StorageId>, least: usize) {
    for _ in 0..500 {
        for chain in routing.chains.values() {
            assert!(chain.serving().count() >= least, "{chain:?}");
            assert!(chain.members.len() <= 5);
        }
        if !step(routing, away) {
            return;
        }
    }
    panic!("it never ends: {:?}", plan_moves(routing, away, &NOBODY));
}

#[test]
fn chains_move_to_new_nodes_until_all_have_about_as_many() {
    for nodes in 4..=9 {
        let mut routing = table(nodes);
        settle(&mut routing, &NOBODY, 3);
        let load = load(&routing);
        let (most, least) = (load.values().max().unwrap(), load.values().min().unwrap());
        assert!(most - least <= 1, "{load:?}");
        assert_eq!(load.values().sum::<usize>(), 18);
    }
}

#[test]
fn a_node_that_drains_ends_in_no_chain_and_can_be_removed() {
    let mut routing = table(4);
    settle(&mut routing, &NOBODY, 3);
    assert!(administer(&mut routing, StorageId(1), NodeAction::Drain).unwrap());
    let refusal = administer(&mut routing, StorageId(1), NodeAction::Remove).unwrap_err();
    assert!(
        refusal.code == ErrorCode::Busy && refusal.detail.contains("still in chain"),
        "{refusal}"
    );
    settle(&mut routing, &NOBODY, 3);
    assert_eq!(load(&routing)[&1], 0);
    let refusal = administer(&mut routing, StorageId(2), NodeAction::Drain).unwrap_err();
    assert!(refusal.detail.contains("add one first"), "{refusal}");
    let refusal = administer(&mut routing, StorageId(1), NodeAction::Remove).unwrap_err();
    assert!(refusal.detail.contains("stop it first"), "{refusal}");
    apply(&mut routing, &[down(1)]);
    assert!(administer(&mut routing, StorageId(1), NodeAction::Remove).unwrap());
    assert!(!routing.nodes.contains_key(&StorageId(1)));
    assert!(!step(&mut routing, &NOBODY));
}

#[test]
fn a_drain_that_is_taken_back_ends_balanced() {
    let mut routing = table(4);
    settle(&mut routing, &NOBODY, 3);
    administer(&mut routing, StorageId(1), NodeAction::Drain).unwrap();
    step(&mut routing, &NOBODY);
    step(&mut routing, &NOBODY);
    assert!(administer(&mut routing, StorageId(1), NodeAction::Undrain).unwrap());
    assert!(!administer(&mut routing, StorageId(1), NodeAction::Undrain).unwrap());
    settle(&mut routing, &NOBODY, 3);
    let load = load(&routing);
    assert!(
        load.values().max().unwrap() - load.values().min().unwrap() <= 1,
        "{load:?}"
    );
}

#[test]
fn a_spare_takes_the_place_of_who_stays_away_unless_that_is_for_maintenance() {
    let mut routing = table(5);
    settle(&mut routing, &NOBODY, 3);
    apply(&mut routing, &[down(2)]);
    let before = routing.clone();
    settle(&mut routing, &NOBODY, 2);
    assert_eq!(load(&routing)[&2], load(&before)[&2], "it may be back soon");
    administer(&mut routing, StorageId(2), NodeAction::BeginMaintenance).unwrap();
    let away = BTreeSet::from([StorageId(2)]);
    settle(&mut routing, &away, 2);
    assert_eq!(load(&routing)[&2], load(&before)[&2], "it was announced");
    administer(&mut routing, StorageId(2), NodeAction::EndMaintenance).unwrap();
    settle(&mut routing, &away, 2);
    assert_eq!(load(&routing)[&2], 0);
    for chain in routing.chains.values() {
        assert_eq!((chain.serving().count(), chain.members.len()), (3, 3));
    }
}

#[test]
fn what_only_one_node_has_is_not_drained_nor_removed_but_may_be_given_up() {
    let mut routing = table(4);
    for node in [1, 2] {
        apply(&mut routing, &[down(node)]);
        settle_all(&mut routing);
    }
    let refusal = administer(&mut routing, StorageId(3), NodeAction::Drain).unwrap_err();
    assert!(refusal.detail.contains("only complete copy"), "{refusal}");
    let refusal = administer(&mut routing, StorageId(3), NodeAction::AcceptDataLoss).unwrap_err();
    assert!(refusal.detail.contains("nothing to give up"), "{refusal}");
    apply(&mut routing, &[down(3)]);
    let refusal = administer(&mut routing, StorageId(3), NodeAction::Remove).unwrap_err();
    assert!(refusal.detail.contains("accept-data-loss"), "{refusal}");
    apply(&mut routing, &[up(2)]);
    assert!(routing.chains.values().all(|chain| chain.serving().count() == 0));
    assert!(administer(&mut routing, StorageId(3), NodeAction::AcceptDataLoss).unwrap());
    for chain in routing.chains.values() {
        assert_eq!(chain.head(), Some(StorageId(2)), "the one that left last");
    }
    assert!(
        administer(&mut routing, StorageId(9), NodeAction::Drain)
            .unwrap_err()
            .code
            == ErrorCode::NotFound
    );
}

proptest! {
    /// Whatever administrators and fate do, a chain that has somebody to serve never loses the last complete copy, and peace brings balance.
    #[test]
    fn any_order_of_words_and_deaths_ends_well(steps in proptest::collection::vec((0_u8..6, 1_u32..7), 1..40)) {
        let mut routing = table(6);
        let mut incarnations: BTreeMap<u32, u64> = (1..=6).map(|node| (node, 1)).collect();
        for (kind, node) in steps {
            let id = StorageId(node);
            let incarnation = incarnations.get_mut(&node).unwrap();
            let alive = routing.nodes[&id].alive;
            match kind {
                0 => { let _ = administer(&mut routing, id, NodeAction::Drain); }
                1 => { let _ = administer(&mut routing, id, NodeAction::Undrain); }
                2 if alive => {
                    let event = ClusterEvent::NodeDown { node: id, incarnation: Incarnation(*incarnation) };
                    apply(&mut routing, &[event]);
                }
                3 if !alive => {
                    *incarnation += 1;
                    let event = ClusterEvent::NodeUp {
                        node: id,
                        incarnation: Incarnation(*incarnation),
                        store: StoreId([node as u8; 16]),
                        address: SocketAddr::from(([127, 0, 0, 1], 1000 + node as u16)),
                    };
                    apply(&mut routing, &[event]);
                }
                _ => { step(&mut routing, &NOBODY); }
            }
            for chain in routing.chains.values() {
                let holds = |member: &&ChainMember| {
                    matches!(member.state, MemberState::Serving | MemberState::LastServer)
                };
                prop_assert!(chain.members.iter().any(|member| holds(&member)), "{chain:?}");
                prop_assert!(chain.members.len() >= 3, "{chain:?}");
            }
        }
        for node in 1..=6 {
            let id = StorageId(node);
            let _ = administer(&mut routing, id, NodeAction::Undrain);
            if !routing.nodes[&id].alive {
                let event = ClusterEvent::NodeUp {
                    node: id,
                    incarnation: Incarnation(incarnations[&node] + 1),
                    store: StoreId([node as u8; 16]),
                    address: SocketAddr::from(([127, 0, 0, 1], 1000 + node as u16)),
                };
                apply(&mut routing, &[event]);
            }
        }
        settle(&mut routing, &NOBODY, 1);
        let load = load(&routing);
        prop_assert!(load.values().max().unwrap() - load.values().min().unwrap() <= 1, "{load:?}");
        for chain in routing.chains.values() {
            prop_assert_eq!((chain.serving().count(), chain.members.len()), (3, 3));
        }
    }
}

#[test]
fn who_alone_is_complete_does_not_leave() {
    use MemberState::Serving;
    let mut before = chain(&[(1, Serving), (2, Serving), (3, Serving), (4, Serving)]);
    let leave = |node| ChainEvent::Leave {
        node: StorageId(node),
        epoch: Epoch(10),
    };
    before.settled = false;
    assert_eq!(
        next_chain(&before, &[leave(1)]),
        None,
        "the others may lack what was acknowledged"
    );
    assert_eq!(after(&before, &[leave(2)]), [(1, Serving), (3, Serving), (4, Serving)]);
    before.settled = true;
    let next = next_chain(&before, &[leave(1)]).expect("the second has it all");
    assert!(!next.settled && next.head() == Some(StorageId(2)) && next.headed == next.epoch);
}

#[test]
fn who_was_complete_last_inherits_not_who_stands_first() {
    use MemberState::{LastServer, Offline, Serving, Waiting};
    let mut now = chain(&[(1, Serving), (2, Serving), (3, Serving)]);
    let mut happen = |event| {
        now = next_chain(&now, &[event]).expect("a new configuration");
        let epoch = now.epoch;
        now = next_chain(&now, &[ChainEvent::Settled { epoch }]).unwrap_or_else(|| now.clone());
        now.clone()
    };
    // 3 goes, and misses what 1 and 2 acknowledge; it comes back, but is not brought up to date before 1 goes too.
    happen(ChainEvent::Down(StorageId(3)));
    happen(ChainEvent::Down(StorageId(2)));
    happen(ChainEvent::Up(StorageId(3)));
    let dark = happen(ChainEvent::Down(StorageId(1)));
    assert_eq!(after(&dark, &[]), [(1, LastServer), (3, Waiting), (2, Offline)]);
    assert_eq!(
        after(&dark, &[ChainEvent::Abandon(StorageId(1))]),
        [(1, Offline), (3, Waiting), (2, LastServer)],
        "3 stands before 2, and lacks what 2 has"
    );
    // With its disk replaced, 2 has nothing any more.
    let replaced = next_chain(&dark, &[ChainEvent::Lost(StorageId(2))]).expect("it is another one");
    let given_up = after(
        &replaced,
        &[ChainEvent::Abandon(StorageId(1)), ChainEvent::Up(StorageId(3))],
    );
    assert_eq!(given_up[0], (3, Serving), "{given_up:?}");
}
