//! The whole table of a chain of three, layouts, and the fold into the routing table.

#![allow(
    clippy::disallowed_methods,
    reason = "a test reads the document that it compares with"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use dfs_common::{
    ChainId, ChainInfo, ChainMember, Epoch, Incarnation, MemberState, Rest, RoutingTable, RoutingVersion, StorageId,
    StoreId,
};
use proptest::prelude::*;

use super::settle_all;
use super::table::{every_chain, every_event, is_legal};
use super::{ChainEvent, apply, next_chain, plan_chains, refused, table_markdown};
use crate::command::ClusterEvent;

fn states(chain: &ChainInfo) -> Vec<MemberState> {
    chain.members.iter().map(|member| member.state).collect()
}

fn in_state(chain: &ChainInfo, state: MemberState) -> BTreeSet<StorageId> {
    chain
        .members
        .iter()
        .filter(|member| member.state == state)
        .map(|member| member.node)
        .collect()
}

/// What must hold between any configuration and the next, whatever happened.
fn check(before: &ChainInfo, events: &[ChainEvent]) {
    let Some(after) = next_chain(before, events) else {
        for event in events {
            let back = |node| {
                events
                    .iter()
                    .any(|event| matches!(event, ChainEvent::Up(up) | ChainEvent::Restarted(up) | ChainEvent::Lost(up) if up == node))
            };
            if let ChainEvent::Down(node) = event
                && !back(node)
            {
                let state = before.state_of(*node);
                assert!(
                    !matches!(
                        state,
                        Some(MemberState::Serving | MemberState::Syncing | MemberState::Waiting)
                    ),
                    "{before:?} {events:?}: a member that went away stays"
                );
            }
        }
        return;
    };
    let place = || format!("{before:?}\n{events:?}\n{after:?}");
    let settled_now = events
        .iter()
        .any(|event| matches!(event, ChainEvent::Settled { epoch } if *epoch == before.epoch));
    let rest = events.iter().fold(before.rest, |rest, event| match *event {
        ChainEvent::Rest { epoch, rest: said } if epoch == before.epoch => rest.max(said),
        _ => rest,
    });
    if after.members == before.members && after.epoch == before.epoch {
        assert!(
            after.settled == (before.settled || settled_now) && after.rest == rest,
            "{}",
            place()
        );
        return;
    }
    assert_eq!(after.epoch, before.epoch.next(), "{}", place());
    assert_eq!(after.id, before.id);
    assert!(is_legal(&states(&after)), "{}", place());
    let nodes = |chain: &ChainInfo| chain.members.iter().map(|member| member.node).collect::<BTreeSet<_>>();
    assert_eq!(nodes(before), nodes(&after), "{}", place());

    let resynced: BTreeSet<StorageId> = events
        .iter()
        .filter_map(|event| match event {
            ChainEvent::Resynced { node, epoch } if *epoch == before.epoch => Some(*node),
            _ => None,
        })
        .collect();
    let mut in_sync = in_state(before, MemberState::Serving);
    in_sync.extend(in_state(before, MemberState::Syncing).intersection(&resynced));
    in_sync.extend(in_state(before, MemberState::LastServer));
    for node in in_state(&after, MemberState::Serving) {
        assert!(in_sync.contains(&node), "served out of nothing: {}", place());
    }
    for node in in_state(&after, MemberState::LastServer) {
        assert!(in_sync.contains(&node), "a last server out of nothing: {}", place());
    }
    // Only who has every write that was acknowledged at QUORUM carries the chain on or may bring it back.
    let was = ChainInfo {
        settled: before.settled || settled_now,
        rest,
        ..before.clone()
    };
    let mut complete: BTreeSet<StorageId> = was.complete().collect();
    if before.serving().count() == 1 {
        complete.extend(in_state(before, MemberState::Syncing).intersection(&resynced));
    }
    complete.extend(in_state(before, MemberState::LastServer));
    for node in after.complete().chain(in_state(&after, MemberState::LastServer)) {
        assert!(complete.contains(&node), "{node} is not complete: {}", place());
    }
    // A copy that is gone serves nobody, and the last one stays where it was.
    let lost = |node: &StorageId| events.contains(&ChainEvent::Lost(*node));
    for node in in_state(&after, MemberState::Serving) {
        assert!(!lost(&node), "served from an empty disk: {}", place());
    }
    // Who kept serving stands before who came back, in the old order.
    let kept: Vec<StorageId> = after
        .serving()
        .filter(|node| before.serving().any(|old| old == *node))
        .collect();
    let old: Vec<StorageId> = before.serving().filter(|node| kept.contains(node)).collect();
    assert_eq!(kept, old, "{}", place());
    assert!(after.serving().take(kept.len()).eq(kept.iter().copied()), "{}", place());
}

#[test]
fn the_whole_table_keeps_the_rules() {
    let mut transitions = 0;
    for chain in every_chain() {
        let events = every_event(&chain);
        for first in &events {
            check(&chain, first);
            transitions += 1;
            for second in &events {
                let batch: Vec<ChainEvent> = first.iter().chain(second).copied().collect();
                check(&chain, &batch);
                if let Some(next) = next_chain(&chain, first) {
                    check(&next, second);
                }
            }
        }
        let stale: Vec<ChainEvent> = chain
            .members
            .iter()
            .map(|member| ChainEvent::Resynced {
                node: member.node,
                epoch: Epoch(chain.epoch.0 - 1),
            })
            .collect();
        assert_eq!(
            next_chain(&chain, &stale),
            None,
            "a resync of another epoch says nothing"
        );
    }
    assert!(transitions > 200, "{transitions}");
}

pub(super) fn chain(members: &[(u32, MemberState)]) -> ChainInfo {
    ChainInfo {
        id: ChainId(1),
        epoch: Epoch(10),
        settled: true,
        rest: Rest::default(),
        headed: Epoch(1),
        revived: Epoch(1),
        members: members
            .iter()
            .map(|&(node, state)| ChainMember::new(StorageId(node), state))
            .collect(),
    }
}

pub(super) fn after(before: &ChainInfo, events: &[ChainEvent]) -> Vec<(u32, MemberState)> {
    let next = next_chain(before, events).unwrap_or_else(|| before.clone());
    next.members
        .iter()
        .map(|member| (member.node.0, member.state))
        .collect()
}

#[test]
fn stories() {
    use MemberState::{LastServer, Offline, Serving, Syncing, Waiting};
    let [a, b, c] = [StorageId(1), StorageId(2), StorageId(3)];
    let all = chain(&[(1, Serving), (2, Serving), (3, Serving)]);

    let together = [ChainEvent::Down(a), ChainEvent::Down(b), ChainEvent::Down(c)];
    assert_eq!(
        after(&all, &together),
        [(1, LastServer), (2, LastServer), (3, Offline)],
        "the third may lack what the first two have acknowledged"
    );
    assert_eq!(
        after(&all, &[ChainEvent::Down(a), ChainEvent::Down(b)]),
        [(1, LastServer), (2, LastServer), (3, Waiting)]
    );
    assert_eq!(
        after(&all, &[ChainEvent::Down(b), ChainEvent::Down(c)]),
        [(1, Serving), (2, Offline), (3, Offline)]
    );
    let unsettled = next_chain(&all, &[ChainEvent::Down(a)]).expect("a death is a new configuration");
    assert!(!unsettled.settled && unsettled.complete().eq([b]));
    assert_eq!(
        after(&unsettled, &[ChainEvent::Down(b)]),
        [(2, LastServer), (3, Waiting), (1, Offline)]
    );
    let settled = next_chain(&unsettled, &[ChainEvent::Settled { epoch: unsettled.epoch }]).expect("it is news");
    assert_eq!((settled.epoch, settled.settled), (unsettled.epoch, true));
    assert_eq!(
        after(&settled, &[ChainEvent::Down(b)]),
        [(3, Serving), (2, Offline), (1, Offline)]
    );
    assert_eq!(
        next_chain(&unsettled, &[ChainEvent::Settled { epoch: Epoch(10) }]),
        None,
        "a report of another epoch says nothing"
    );
    let rests = |number| ChainEvent::Rest {
        epoch: all.epoch,
        rest: Rest(number),
    };
    let at_rest = next_chain(&all, &[rests(1)]).expect("it is news");
    assert!(at_rest.epoch == all.epoch && at_rest.complete().eq([a, b, c]) && at_rest.quorum_readers().eq([a, b]));
    assert_eq!(
        after(&at_rest, &[ChainEvent::Down(a), ChainEvent::Down(b)]),
        [(3, Serving), (1, Offline), (2, Offline)],
        "whoever stays has everything"
    );
    assert_eq!(
        after(&at_rest, &together),
        [(1, LastServer), (2, LastServer), (3, LastServer)],
        "any of them may bring it back"
    );
    let head_gone = next_chain(&at_rest, &[ChainEvent::Down(a)]).expect("a death is a new configuration");
    assert!(
        head_gone.settled && head_gone.rest == Rest(0),
        "the next two are complete at once"
    );
    let awake = next_chain(&at_rest, &[rests(2)]).expect("it is news");
    assert_eq!(
        next_chain(&awake, &[rests(1)]),
        None,
        "what was said before and is decided late"
    );
    assert_eq!(
        after(&at_rest, &[rests(2), ChainEvent::Down(a), ChainEvent::Down(b)]),
        [(1, LastServer), (2, LastServer), (3, Waiting)],
        "it was woken before they went"
    );
    let tail_gone = next_chain(&all, &[ChainEvent::Down(c)]).expect("a death is a new configuration");
    assert!(tail_gone.settled, "the first two are the same");
    assert_eq!(
        after(
            &all,
            &[
                ChainEvent::Restarted(a),
                ChainEvent::Restarted(b),
                ChainEvent::Restarted(c)
            ]
        ),
        [(1, Serving), (2, Syncing), (3, Waiting)],
        "a cluster that restarts as a whole comes back by itself"
    );
    assert_eq!(
        after(&all, &[ChainEvent::Restarted(a)]),
        [(2, Serving), (3, Serving), (1, Syncing)]
    );
    let alone = chain(&[(2, Serving), (1, Offline), (3, Offline)]);
    let again = next_chain(&alone, &[ChainEvent::Restarted(b)]).expect("a restart is a new configuration");
    assert_eq!(again.epoch, Epoch(11));
    assert_eq!(
        after(&alone, &[ChainEvent::Restarted(b)]),
        [(2, Serving), (1, Offline), (3, Offline)]
    );

    let dark = chain(&[(1, LastServer), (2, LastServer), (3, Offline)]);
    assert_eq!(
        after(&dark, &[ChainEvent::Up(c)]),
        [(1, LastServer), (2, LastServer), (3, Waiting)]
    );
    assert_eq!(
        after(&dark, &[ChainEvent::Up(b)]),
        [(2, Serving), (1, Offline), (3, Offline)],
        "once one decides alone, the other's copy is stale"
    );
    assert_eq!(
        after(&dark, &[ChainEvent::Up(b), ChainEvent::Up(a)]),
        [(1, Serving), (2, Syncing), (3, Offline)],
        "of both, the one nearer to the head has seen more"
    );
    let revived = next_chain(&dark, &[ChainEvent::Up(b)]).expect("it is back");
    assert_eq!((revived.headed, revived.revived), (Epoch(11), Epoch(11)));
    let head_gone = next_chain(&all, &[ChainEvent::Down(a)]).expect("a death is a new configuration");
    assert_eq!((head_gone.headed, head_gone.revived), (Epoch(11), Epoch(1)));
    assert_eq!((tail_gone.headed, tail_gone.revived), (Epoch(1), Epoch(1)));
    let alone_again = next_chain(
        &chain(&[(2, Serving), (1, Offline), (3, Offline)]),
        &[ChainEvent::Restarted(b)],
    )
    .expect("a restart is a new configuration");
    assert_eq!(alone_again.revived, Epoch(11), "what it had not synced may be gone");
    let copying = chain(&[(1, Serving), (2, Syncing), (3, Waiting)]);
    assert_eq!(
        after(
            &copying,
            &[ChainEvent::Resynced {
                node: b,
                epoch: Epoch(10)
            }]
        ),
        [(1, Serving), (2, Serving), (3, Syncing)]
    );
    assert_eq!(
        after(&copying, &[ChainEvent::Down(a)]),
        [(1, LastServer), (2, Waiting), (3, Waiting)]
    );
    assert_eq!(
        after(&copying, &[ChainEvent::Down(b)]),
        [(1, Serving), (3, Syncing), (2, Offline)]
    );
    assert_eq!(
        after(
            &copying,
            &[
                ChainEvent::Down(a),
                ChainEvent::Resynced {
                    node: b,
                    epoch: Epoch(10)
                }
            ]
        ),
        [(2, Serving), (3, Syncing), (1, Offline)],
        "the copy was complete before its source went"
    );
}

#[test]
fn the_last_complete_copy_is_waited_for() {
    use MemberState::{LastServer, Offline, Serving, Syncing, Waiting};
    let [a, b, c] = [StorageId(1), StorageId(2), StorageId(3)];
    let all = chain(&[(1, Serving), (2, Serving), (3, Serving)]);
    assert_eq!(
        after(&all, &[ChainEvent::Lost(b)]),
        [(1, Serving), (3, Serving), (2, Syncing)],
        "an ordinary replaced disk"
    );
    let alone = chain(&[(3, Serving), (2, Offline), (1, Offline)]);
    assert_eq!(
        after(&alone, &[ChainEvent::Lost(c)]),
        [(3, LastServer), (2, Offline), (1, Offline)]
    );
    let dark = chain(&[(3, LastServer), (2, Waiting), (1, Offline)]);
    assert_eq!(next_chain(&dark, &[ChainEvent::Lost(c)]), None);
    assert_eq!(
        after(&dark, &[ChainEvent::Up(c)]),
        [(3, Serving), (2, Syncing), (1, Offline)],
        "the old disk is back"
    );
    let two = chain(&[(1, LastServer), (2, LastServer), (3, Offline)]);
    assert_eq!(
        after(&two, &[ChainEvent::Lost(a)]),
        [(1, Waiting), (2, LastServer), (3, Offline)]
    );
    assert_eq!(
        after(&two, &[ChainEvent::Lost(a), ChainEvent::Up(b)]),
        [(2, Serving), (1, Syncing), (3, Offline)]
    );
    let every = [ChainEvent::Lost(a), ChainEvent::Lost(b), ChainEvent::Lost(c)];
    let after_all = after(&all, &every);
    assert_eq!(
        after_all.iter().filter(|member| member.1 == LastServer).count(),
        1,
        "one is waited for whatever happens: {after_all:?}"
    );
}

proptest! {
    #[test]
    fn long_histories_keep_the_rules(steps in proptest::collection::vec((0_u8..6, 1_u32..6), 1..60)) {
        let mut now = chain(&(1..=5).map(|node| (node, MemberState::Serving)).collect::<Vec<_>>());
        for (kind, node) in steps {
            let node = StorageId(node);
            let event = match kind {
                0 => ChainEvent::Up(node),
                1 => ChainEvent::Down(node),
                2 => ChainEvent::Restarted(node),
                4 => ChainEvent::Lost(node),
                5 => ChainEvent::Settled { epoch: now.epoch },
                _ => ChainEvent::Resynced { node, epoch: now.epoch },
            };
            check(&now, &[event]);
            if let Some(next) = next_chain(&now, &[event]) {
                now = next;
            }
        }
    }
}

#[test]
fn the_document_is_what_the_function_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/CHAINS.md");
    let text = table_markdown();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs")).unwrap();
        std::fs::write(path, &text).unwrap();
    }
    let document = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        document == text,
        "docs/CHAINS.md is out of date: run this test with UPDATE_DOCS=1"
    );
}

fn plan(count: u32) -> Vec<Vec<u32>> {
    let nodes: Vec<StorageId> = (1..=count).map(StorageId).collect();
    plan_chains(&nodes, 3)
        .into_iter()
        .map(|chain| chain.into_iter().map(|node| node.0).collect())
        .collect()
}

#[test]
fn layouts_are_golden() {
    assert_eq!(plan(2), Vec::<Vec<u32>>::new());
    let three: BTreeSet<Vec<u32>> = plan(3).into_iter().collect();
    assert_eq!(three.len(), 6, "all permutations");
    assert_eq!(plan(3), GOLDEN_3);
    assert_eq!(plan(5), GOLDEN_5);
}

const GOLDEN_3: [[u32; 3]; 6] = [[1, 2, 3], [2, 3, 1], [3, 1, 2], [1, 3, 2], [2, 1, 3], [3, 2, 1]];
const GOLDEN_5: [[u32; 3]; 10] = [
    [1, 5, 3],
    [2, 1, 4],
    [3, 2, 5],
    [4, 3, 1],
    [5, 4, 2],
    [1, 2, 4],
    [2, 3, 5],
    [3, 4, 1],
    [4, 5, 2],
    [5, 1, 3],
];

#[test]
fn layouts_are_balanced_and_spread_the_load_of_a_dead_node() {
    for count in 3..40 {
        let chains = plan(count);
        assert!(chains.len() >= 2 * count as usize);
        for position in 0..3 {
            let mut heads = BTreeMap::<u32, usize>::new();
            for chain in &chains {
                assert_eq!(chain.iter().collect::<BTreeSet<_>>().len(), 3);
                *heads.entry(chain[position]).or_default() += 1;
            }
            let each = chains.len() / count as usize;
            assert!(
                heads.len() == count as usize && heads.values().all(|&n| n == each),
                "{count} {heads:?}"
            );
        }
        for dead in 1..=count {
            let helpers: BTreeSet<u32> = chains
                .iter()
                .filter(|chain| chain.contains(&dead))
                .flatten()
                .copied()
                .filter(|&node| node != dead)
                .collect();
            assert!(
                helpers.len() >= (count as usize - 1).min(8),
                "{count}: {dead} is shared by {helpers:?}"
            );
        }
    }
}

fn up(node: u32, incarnation: u64) -> ClusterEvent {
    with_store(node, incarnation, node as u8)
}

fn with_store(node: u32, incarnation: u64, store: u8) -> ClusterEvent {
    ClusterEvent::NodeUp {
        node: StorageId(node),
        incarnation: Incarnation(incarnation),
        store: StoreId([store; 16]),
        address: SocketAddr::from(([127, 0, 0, 1], 1000 + node as u16)),
    }
}

fn down(node: u32, incarnation: u64) -> ClusterEvent {
    ClusterEvent::NodeDown {
        node: StorageId(node),
        incarnation: Incarnation(incarnation),
    }
}

#[test]
fn the_first_table_appears_with_the_third_node_and_stays() {
    let mut routing = RoutingTable::default();
    assert!(apply(&mut routing, &[up(1, 11), up(2, 12)]));
    assert_eq!((routing.version, routing.default_table), (RoutingVersion(1), None));
    assert!(apply(&mut routing, &[up(3, 13)]));
    assert_eq!(routing.chains.len(), 6);
    assert!(routing.chains.values().all(|chain| chain.serving().count() == 3));
    let before = routing.clone();
    assert!(!apply(&mut routing, &[up(3, 13), up(1, 11)]), "nothing new");
    assert_eq!(routing, before);
    assert!(apply(&mut routing, &[up(4, 14)]));
    assert_eq!((&routing.chains, &routing.tables), (&before.chains, &before.tables));
}

#[test]
fn nodes_go_and_come_back() {
    let mut routing = RoutingTable::default();
    apply(&mut routing, &[up(1, 11), up(2, 12), up(3, 13)]);
    let before = routing.clone();
    assert!(!apply(&mut routing, &[down(2, 99)]), "an older process");
    assert_eq!(routing, before);
    assert!(apply(&mut routing, &[down(2, 12)]));
    assert_eq!(routing.version, before.version.next());
    assert!(!routing.nodes[&StorageId(2)].alive);
    for chain in routing.chains.values() {
        assert_eq!(chain.epoch, Epoch(2));
        assert_eq!(chain.state_of(StorageId(2)), Some(MemberState::Offline));
        assert_eq!(chain.serving().count(), 2);
    }
    assert!(apply(&mut routing, &[up(2, 22)]));
    let done: Vec<ClusterEvent> = routing
        .chains
        .values()
        .map(|chain| ClusterEvent::Resynced {
            chain: chain.id,
            epoch: chain.epoch,
            node: StorageId(2),
        })
        .collect();
    assert!(apply(&mut routing, &done));
    assert!(routing.chains.values().all(|chain| chain.tail() == Some(StorageId(2))));
    assert!(!apply(&mut routing, &done), "a retry says nothing new");
}

#[test]
fn a_cluster_that_stops_as_a_whole_comes_back() {
    let mut routing = RoutingTable::default();
    apply(&mut routing, &[up(1, 11), up(2, 12), up(3, 13)]);
    apply(&mut routing, &[down(1, 11), down(2, 12), down(3, 13)]);
    assert!(routing.chains.values().all(|chain| chain.serving().count() == 0));
    apply(&mut routing, &[up(3, 33)]);
    let back = routing
        .chains
        .values()
        .filter(|chain| chain.head() == Some(StorageId(3)));
    assert_eq!(
        back.count(),
        4,
        "the chains in which it was one of the first two of three"
    );
    apply(&mut routing, &[down(3, 33)]);
    apply(&mut routing, &[up(3, 34)]);
    apply(&mut routing, &[up(1, 31), up(2, 32)]);
    for chain in routing.chains.values() {
        assert_eq!(chain.writers().count(), 2, "one at a time");
    }
}

#[test]
fn a_node_with_another_disk_is_rebuilt_unless_the_old_one_is_needed() {
    let mut routing = RoutingTable::default();
    apply(&mut routing, &[up(1, 11), up(2, 12), up(3, 13)]);
    // An ordinary one.
    apply(&mut routing, &[with_store(2, 22, 92)]);
    assert!(routing.nodes[&StorageId(2)].store == StoreId([92; 16]));
    for chain in routing.chains.values() {
        assert_eq!(chain.state_of(StorageId(2)), Some(MemberState::Syncing));
    }
    settle_all(&mut routing);
    // All at once: one is waited for.
    let mut all = routing.clone();
    apply(
        &mut all,
        &[with_store(1, 31, 91), with_store(3, 33, 93), with_store(2, 32, 82)],
    );
    let waited_for: BTreeSet<_> = all
        .chains
        .values()
        .flat_map(|chain| in_state(chain, MemberState::LastServer))
        .collect();
    assert_eq!(waited_for, BTreeSet::from([StorageId(3)]));
    assert!(!all.nodes[&StorageId(3)].alive && all.nodes[&StorageId(3)].store == StoreId([3; 16]));
    // One after the other; the last one, with an empty disk, is not taken in.
    apply(&mut routing, &[down(2, 22)]);
    settle_all(&mut routing);
    apply(&mut routing, &[down(1, 11)]);
    assert_eq!(refused(&routing, StorageId(3), StoreId([93; 16])).len(), 6);
    assert!(apply(&mut routing, &[with_store(3, 33, 93)]), "its old process is gone");
    assert!(!routing.nodes[&StorageId(3)].alive);
    apply(&mut routing, &[up(1, 41), with_store(2, 42, 92)]);
    assert!(!apply(&mut routing, &[with_store(3, 34, 93)]), "said once");
    for chain in routing.chains.values() {
        assert_eq!(chain.state_of(StorageId(3)), Some(MemberState::LastServer));
        assert_eq!(chain.serving().count(), 0);
    }
    // The old disk is back.
    assert!(refused(&routing, StorageId(3), StoreId([3; 16])).is_empty());
    apply(&mut routing, &[up(3, 35)]);
    assert!(routing.chains.values().all(|chain| chain.head() == Some(StorageId(3))));
}
