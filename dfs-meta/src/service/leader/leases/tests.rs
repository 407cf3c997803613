//! Who has a lease, and when it is over.

use dfs_common::wire::meta::{HEARTBEAT_MS, Signs, Unheard};

use super::*;

struct World {
    now: Moment,
    routing: RoutingTable,
    leases: Leases,
}

impl World {
    /// Three nodes in the table, their first heartbeats taken in.
    fn running() -> Self {
        let mut world = Self {
            now: Moment::from_ms(0),
            routing: RoutingTable::default(),
            leases: Leases::new(Moment::from_ms(0), &RoutingTable::default()),
        };
        for node in 1..=3 {
            assert!(!world.beat(node, 1), "not in the table yet");
        }
        world.fold();
        assert_eq!(world.routing.chains.len(), 6);
        world
    }

    fn beat(&mut self, node: u32, incarnation: u64) -> bool {
        let heartbeat = heartbeat(node, incarnation, self.routing.version);
        self.leases.heartbeat(self.now, &heartbeat, true, &self.routing)
    }

    fn fold(&mut self) -> Vec<ClusterEvent> {
        let events = self.leases.events(self.now, &self.routing);
        chains::apply(&mut self.routing, &events);
        events
    }

    fn pass(&mut self, ms: u64) {
        for _ in 0..ms / 25 {
            self.now = self.now.after_ms(25);
            self.leases.tick(self.now, &self.routing);
        }
    }
}

fn heartbeat(node: u32, incarnation: u64, routing: RoutingVersion) -> Heartbeat {
    Heartbeat {
        configured: std::collections::BTreeMap::new(),
        sessions: 0,
        node: StorageId(node),
        incarnation: Incarnation(incarnation),
        store: StoreId([node as u8; 16]),
        address: SocketAddr::from(([127, 0, 0, 1], 7000 + node as u16)),
        routing,
        total_bytes: 100,
        used_bytes: 10,
        fault: None,
        resyncs: Vec::new(),
        retired: Vec::new(),
        signs: Signs::default(),
        settled: Vec::new(),
        rests: Vec::new(),
    }
}

fn down(node: u32, incarnation: u64) -> ClusterEvent {
    ClusterEvent::NodeDown {
        node: StorageId(node),
        incarnation: Incarnation(incarnation),
    }
}

#[test]
fn a_node_whose_end_is_being_decided_gets_no_lease_by_a_heartbeat_that_comes_meanwhile() {
    let mut world = World::running();
    assert!(world.beat(1, 1) && world.beat(2, 1) && world.beat(3, 1));
    for _ in 0..NODE_LEASE_MS / HEARTBEAT_MS {
        world.pass(HEARTBEAT_MS);
        assert!(world.beat(1, 1) && world.beat(2, 1));
    }
    let proposed = world.leases.events(world.now, &world.routing);
    assert_eq!(proposed, [down(3, 1)]);
    assert!(!world.beat(3, 1), "its chains may be going on without it by now");
    // A proposal that got lost is made again, though the node is back.
    assert_eq!(world.leases.events(world.now, &world.routing), [down(3, 1)]);
    chains::apply(&mut world.routing, &proposed);
    assert!(!world.beat(3, 1));
    assert_eq!(world.fold().len(), 1, "it is there again");
    assert!(world.beat(3, 1));
}

fn returns(events: &[ClusterEvent], id: u32) -> bool {
    let mut events = events.iter();
    events.any(|event| matches!(event, ClusterEvent::NodeUp { node, .. } if *node == StorageId(id)))
}

#[test]
fn no_chain_is_brought_back_before_who_served_in_it_has_heard_that_it_stopped() {
    // It gets the new table; it says nothing more; it says that it is well, but never gets the table.
    for (told, silent) in [(true, false), (false, true), (false, false)] {
        let mut world = World::running();
        assert!(world.beat(1, 1) && world.beat(2, 1) && world.beat(3, 1));
        let old = world.routing.version;
        world.leases.died(world.now, StorageId(1), Incarnation(1));
        world.leases.died(world.now, StorageId(2), Incarnation(1));
        assert_eq!(world.fold(), [down(1, 1), down(2, 1)]);
        let waits = |chain: &ChainInfo| chain.state_of(StorageId(3)) == Some(MemberState::Waiting);
        assert!(world.routing.chains.values().any(waits));
        world.beat(1, 2);
        assert_eq!(world.fold(), [], "storage-3 answers reads at ONE");
        let late = heartbeat(3, 1, old);
        assert!(!world.leases.heartbeat(world.now, &late, true, &world.routing));
        assert_eq!(world.fold(), []);
        if told {
            assert!(world.beat(3, 1));
            assert!(returns(&world.fold(), 1));
            continue;
        }
        while world.now < Moment::from_ms(NODE_LEASE_MS) {
            assert_eq!(world.fold(), []);
            world.beat(1, 2);
            if !silent {
                assert!(!world.leases.heartbeat(world.now, &late, true, &world.routing));
            }
            world.pass(HEARTBEAT_MS);
        }
        let events = world.fold();
        assert!(returns(&events, 1), "{events:?}");
        assert_eq!(events.contains(&down(3, 1)), silent, "{events:?}");
    }
}

#[test]
fn a_restart_does_not_bring_a_chain_back_beside_who_served_in_it() {
    let mut world = World::running();
    assert!(world.beat(1, 1) && world.beat(2, 1) && world.beat(3, 1));
    world.leases.died(world.now, StorageId(2), Incarnation(1));
    assert_eq!(world.fold(), [down(2, 1)]);
    assert!(world.beat(1, 1) && world.beat(3, 1));
    // Where it was the head, the other one is not settled.
    world.beat(1, 2);
    assert_eq!(world.fold(), [down(1, 1)]);
    assert_eq!(world.fold(), []);
    world.beat(3, 1);
    assert!(returns(&world.fold(), 1));
}

#[test]
fn a_late_heartbeat_of_an_earlier_process_is_no_restart_to_a_new_leader() {
    let mut world = World::running();
    world.pass(100);
    world.beat(3, 2);
    assert_eq!(world.fold().len(), 1, "storage-3 was restarted");
    assert!(world.beat(1, 1) && world.beat(2, 1) && world.beat(3, 2));
    world.leases = Leases::new(world.now, &world.routing);
    assert!(!world.beat(3, 1));
    assert_eq!(world.fold(), [], "the living process keeps its place");
    assert!(world.beat(1, 1) && world.beat(2, 1) && world.beat(3, 2));
    assert!(!world.beat(3, 1));
    assert_eq!(world.fold(), []);
    // What an earlier leader had said of it changes nothing either.
    let up = ClusterEvent::NodeUp {
        node: StorageId(3),
        incarnation: Incarnation(1),
        store: StoreId([3; 16]),
        address: SocketAddr::from(([127, 0, 0, 1], 7003)),
    };
    assert!(!chains::apply(&mut world.routing, &[up]));
}

#[test]
fn a_silent_node_goes_when_its_lease_ends_and_not_before() {
    let mut world = World::running();
    for _ in 0..20 {
        world.pass(HEARTBEAT_MS);
        assert!(world.beat(1, 1) && world.beat(2, 1));
        if world.now < Moment::from_ms(NODE_LEASE_MS) {
            assert_eq!(world.fold(), []);
        }
    }
    assert_eq!(world.fold(), [down(3, 1)]);
    assert_eq!(world.fold(), [], "said once");
    assert!(!world.beat(3, 1), "no lease before the table shows it again");
    assert_eq!(world.fold().len(), 1);
    assert!(world.beat(3, 1));
}

#[test]
fn a_node_that_hears_nothing_goes_like_a_silent_one() {
    let mut world = World::running();
    let start = world.now;
    // Up to here it heard every answer.
    assert!(world.beat(3, 1));
    let mut gone_after = None;
    for _ in 0..12 {
        world.pass(HEARTBEAT_MS);
        assert!(world.beat(1, 1) && world.beat(2, 1));
        let mut deaf = heartbeat(3, 1, world.routing.version);
        deaf.signs.unanswered_ms = world.now.since(start) as u32;
        let lease = world.leases.heartbeat(world.now, &deaf, true, &world.routing);
        assert_eq!(lease, gone_after.is_none() && world.now.since(start) <= HEARD_WITHIN_MS);
        if world.fold() == [down(3, 1)] {
            gone_after = Some(world.now.since(start));
        }
    }
    assert_eq!(
        gone_after,
        Some(NODE_LEASE_MS),
        "and it does not come back while it is deaf"
    );
    assert!(!world.beat(3, 1));
    assert_eq!(world.fold().len(), 1, "now it hears again");
    assert!(world.beat(3, 1));
}

#[test]
fn silence_under_another_leader_is_not_held_against_a_node() {
    let mut world = World::running();
    world.pass(600);
    world.leases = Leases::new(world.now, &world.routing);
    for node in 1..=3 {
        let mut searching = heartbeat(node, 1, world.routing.version);
        searching.signs.unanswered_ms = 2_000;
        let lease = world.leases.heartbeat(world.now, &searching, true, &world.routing);
        assert!(!lease, "not before it is known that it hears this one");
    }
    assert_eq!(world.fold(), []);
    world.pass(HEARTBEAT_MS);
    assert!(world.beat(1, 1) && world.beat(2, 1) && world.beat(3, 1));
    assert_eq!(world.fold(), []);
}

#[test]
fn who_stands_aside_leaves_when_it_serves_no_more() {
    for obeys in [true, false] {
        let mut world = World::running();
        let mut left = None;
        let mut asked = None;
        for _ in 0..20 {
            world.pass(HEARTBEAT_MS);
            let mut lonely = heartbeat(3, 1, world.routing.version);
            lonely.signs.unheard = [1, 2]
                .map(|node| Unheard {
                    node: StorageId(node),
                    process: Incarnation(1),
                    ms: 900,
                })
                .into();
            lonely.signs.stands_aside = obeys && asked.is_some();
            let lease = world.leases.heartbeat(world.now, &lonely, true, &world.routing);
            assert!(world.beat(1, 1) && world.beat(2, 1));
            if world.leases.aside(StorageId(3)).is_some() {
                assert!(!lease);
                asked.get_or_insert(world.now);
            }
            match world.fold()[..] {
                [] => {}
                [ref event] => {
                    assert_eq!(*event, down(3, 1));
                    assert!(left.is_none(), "once");
                    left = Some(world.now.since(asked.unwrap()));
                }
                ref more => panic!("{more:?}"),
            }
        }
        let left = left.unwrap();
        if obeys {
            assert!(left <= HEARTBEAT_MS, "{left}");
        } else {
            assert!(
                (NODE_LEASE_MS - 2 * HEARTBEAT_MS..=NODE_LEASE_MS).contains(&left),
                "{left}"
            );
        }
    }
}

#[test]
fn a_dead_process_goes_at_once_and_its_late_heartbeats_bring_nothing_back() {
    let mut world = World::running();
    world.pass(HEARTBEAT_MS);
    world.leases.died(world.now, StorageId(2), Incarnation(7));
    assert_eq!(world.fold(), [], "that was another process");
    world.leases.died(world.now, StorageId(2), Incarnation(1));
    assert_eq!(world.fold(), [down(2, 1)]);
    assert!(!world.beat(2, 1), "sent before");
    assert_eq!(world.fold(), []);
    // The next process of the node.
    assert!(!world.beat(2, 2));
    assert_eq!(world.fold().len(), 1);
    assert!(world.beat(2, 2));
    // A kernel was misunderstood: who goes on saying that it lives is taken up again.
    world.leases.died(world.now, StorageId(3), Incarnation(1));
    assert_eq!(world.fold(), [down(3, 1)]);
    for _ in 0..=NODE_LEASE_MS / HEARTBEAT_MS {
        world.pass(HEARTBEAT_MS);
        world.beat(1, 1);
        world.beat(2, 2);
        world.beat(3, 1);
    }
    assert_eq!(world.fold().len(), 1);
    assert!(world.beat(3, 1));
}

#[test]
fn a_new_leader_hears_everybody_out_before_it_believes_in_deaths() {
    let old = World::running();
    let mut world = World {
        leases: Leases::new(old.now, &old.routing),
        ..old
    };
    world.leases.died(world.now, StorageId(3), Incarnation(1));
    world.beat(1, 1);
    assert_eq!(world.fold(), [], "2 may be dead as well, and all will be back");
    world.beat(2, 2);
    world.beat(3, 2);
    assert_eq!(
        world.fold(),
        [down(3, 1), down(2, 1)],
        "together; and 1 served beside them"
    );
    world.beat(1, 1);
    let events = world.fold();
    assert!(
        events.len() == 2 && returns(&events, 2) && returns(&events, 3),
        "{events:?}"
    );
}

#[test]
fn no_lease_without_quorum_nor_by_an_old_table() {
    let mut world = World::running();
    let late = heartbeat(1, 1, world.routing.version);
    assert!(!world.leases.heartbeat(world.now, &late, false, &world.routing));
    let blind = heartbeat(1, 1, RoutingVersion(0));
    assert!(!world.leases.heartbeat(world.now, &blind, true, &world.routing));
    assert!(world.leases.heartbeat(world.now, &late, true, &world.routing));
}

#[test]
fn a_faulty_node_goes_at_once_and_stays_away_until_restarted() {
    let mut world = World::running();
    let mut faulty = heartbeat(2, 1, world.routing.version);
    faulty.fault = Some("write failed".into());
    assert!(!world.leases.heartbeat(world.now, &faulty, true, &world.routing));
    assert_eq!(world.fold(), [down(2, 1)]);
    assert!(!world.leases.heartbeat(world.now, &faulty, true, &world.routing));
    assert_eq!(world.fold(), []);
    assert!(!world.beat(2, 2));
    assert_eq!(world.fold().len(), 1);
    assert!(world.beat(2, 2));
    assert!(!world.beat(2, 1), "the old process");
    assert_eq!(world.fold(), [], "and it is not taken for a restart");
}

#[test]
fn an_empty_disk_is_not_taken_for_the_last_copy() {
    let mut world = World::running();
    for node in [1, 2] {
        world.leases.died(world.now, StorageId(node), Incarnation(1));
        assert_eq!(world.fold(), [down(node, 1)]);
        chains::settle_all(&mut world.routing);
    }
    let mut empty = heartbeat(3, 2, world.routing.version);
    empty.store = StoreId([93; 16]);
    assert!(!world.leases.heartbeat(world.now, &empty, true, &world.routing));
    assert_eq!(world.fold(), [down(3, 1)], "the process with the old disk is gone");
    assert!(!world.leases.heartbeat(world.now, &empty, true, &world.routing));
    assert_eq!(world.fold(), [], "and this one does not count");
    assert_eq!(world.leases.refused(world.now, &world.routing, StorageId(3)).len(), 6);
    world.beat(1, 2);
    assert_eq!(world.fold().len(), 1, "others are taken in");
    // The old disk.
    assert!(!world.beat(3, 3));
    assert_eq!(world.leases.refused(world.now, &world.routing, StorageId(3)), []);
    assert_eq!(world.fold().len(), 1);
    assert!(world.beat(3, 3));
    for chain in world.routing.chains.values() {
        assert_eq!(chain.head(), Some(StorageId(3)));
    }
}

#[test]
fn a_deaf_leader_blames_nobody() {
    let mut world = World::running();
    world.now = world.now.after_ms(10 * NODE_LEASE_MS);
    world.leases.tick(world.now, &world.routing);
    assert_eq!(world.fold(), []);
    world.pass(NODE_LEASE_MS);
    assert_eq!(world.fold().len(), 3, "but does not wait for ever");
}

#[test]
fn a_leader_that_stood_still_adds_that_time_once_and_not_to_whom_it_has_heard_since() {
    let mut world = World::running();
    assert!(world.beat(1, 1) && world.beat(2, 1) && world.beat(3, 1));
    world.now = world.now.after_ms(600_000);
    assert!(
        world.leases.stood_still(world.now),
        "nothing is to be judged before the tick"
    );
    // One is heard before it, two are not.
    let _ = world.beat(1, 1);
    world.pass(25);
    assert!(!world.leases.stood_still(world.now));
    assert_eq!(world.fold(), []);
    world.pass(NODE_LEASE_MS);
    assert_eq!(
        world.fold(),
        [down(1, 1), down(2, 1), down(3, 1)],
        "nobody is believed in for ten minutes more"
    );
}

#[test]
fn a_new_leader_waits_a_lease_and_judges_restarts_together() {
    let mut world = World::running();
    let start = world.now;
    world.leases = Leases::new(start, &world.routing);
    world.pass(100);
    world.beat(1, 7);
    assert_eq!(world.fold(), [], "others may have restarted too");
    world.beat(2, 8);
    assert_eq!(world.fold(), []);
    world.pass(NODE_LEASE_MS - 125);
    world.beat(1, 7);
    world.beat(2, 8);
    assert_eq!(world.fold(), []);
    world.pass(25);
    let events = world.fold();
    assert_eq!(events.len(), 3, "two restarts and one away: {events:?}");
    for chain in world.routing.chains.values() {
        assert_eq!(chain.serving().count(), 1, "all were in sync, so one may serve");
    }
}
