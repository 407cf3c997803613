//! Every configuration in which nobody serves is left again, by what is documented.

use dfs_common::wire::meta::NodeAction;
use dfs_common::{ChainInfo, ChainMember, Epoch, MemberState, RoutingTable, StorageId};

use super::members::MAX_MEMBERS;
use super::moving_tests::{down, up};
use super::table::{STATES, is_legal};
use super::tests::chain;
use super::{ChainEvent, administer, apply, next_chain, way_out};

/// Every chain of three to five members in which nobody serves, with every order in which they may have been complete.
fn every_stopped_chain() -> Vec<ChainInfo> {
    let mut chains = Vec::new();
    for count in 3..=MAX_MEMBERS as u32 {
        for number in 0..(STATES.len() as u32).pow(count) {
            let states: Vec<_> = (0..count)
                .map(|at| STATES[(number / (STATES.len() as u32).pow(at)) as usize % STATES.len()])
                .collect();
            if !is_legal(&states) || states.contains(&MemberState::Serving) {
                continue;
            }
            // Never complete, long ago, last: each of them for each member.
            for complete in 0..3_u32.pow(count) {
                let mut stopped = chain(&(1..).zip(states.iter().copied()).collect::<Vec<_>>());
                for (at, member) in (0..).zip(&mut stopped.members) {
                    member.complete_until = Epoch(u64::from(complete / 3_u32.pow(at) % 3) * 4);
                }
                chains.push(stopped);
            }
        }
    }
    chains
}

fn after(chain: &ChainInfo, events: &[ChainEvent]) -> ChainInfo {
    next_chain(chain, events).unwrap_or_else(|| chain.clone())
}

fn last_servers(chain: &ChainInfo) -> Vec<StorageId> {
    let last = chain
        .members
        .iter()
        .filter(|member| member.state == MemberState::LastServer);
    last.map(|member| member.node).collect()
}

#[test]
fn every_stopped_chain_has_its_way_out() {
    let chains = every_stopped_chain();
    assert!(chains.len() > 1_000, "{}", chains.len());
    for chain in &chains {
        let out = way_out(chain).expect("nobody serves");
        assert_eq!(out.last_servers, last_servers(chain), "{chain:?}");
        assert!(!out.last_servers.is_empty(), "{chain:?} waits for nobody");
        for &node in &out.last_servers {
            for back in [ChainEvent::Up(node), ChainEvent::Restarted(node)] {
                assert_eq!(after(chain, &[back]).head(), Some(node), "{chain:?} {back:?}");
            }
        }
        // They are gone for good, and given up in either order, or at once.
        let mut forwards = chain.clone();
        let mut backwards = chain.clone();
        for (at, (&first, &last)) in out.last_servers.iter().zip(out.last_servers.iter().rev()).enumerate() {
            forwards = after(&forwards, &[ChainEvent::Abandon(first)]);
            backwards = after(&backwards, &[ChainEvent::Abandon(last)]);
            let left = out.last_servers.len() - at - 1;
            assert_eq!(last_servers(&forwards).len(), left.max(1), "{chain:?}: {forwards:?}");
        }
        let events: Vec<_> = out.last_servers.iter().map(|&node| ChainEvent::Abandon(node)).collect();
        let at_once = after(chain, &events);
        for given_up in [forwards, backwards, at_once] {
            let Some(heir) = out.heir else {
                assert_eq!(
                    out.last_servers.len(),
                    chain.members.len(),
                    "{chain:?}: somebody else has a copy"
                );
                continue;
            };
            // In another order another of several equals may inherit, never one that was given up.
            let [last] = last_servers(&given_up)[..] else {
                panic!("{chain:?}: {given_up:?}");
            };
            let rank = |node| {
                let member = chain.members.iter().find(|member| member.node == node);
                member.map(|member| (member.complete_until, member.state == MemberState::Waiting))
            };
            assert!(!out.last_servers.contains(&last), "{chain:?}: {given_up:?}");
            assert_eq!(rank(last), rank(heir.node), "{chain:?}: {given_up:?}");
            assert_eq!(after(&given_up, &[ChainEvent::Up(last)]).head(), Some(last));
        }
    }
}

/// All but one are gone for good, whichever it is, and whether it is there already or comes with an empty disk.
#[test]
fn any_single_survivor_brings_any_stopped_chain_back() {
    for chain in every_stopped_chain() {
        for survivor in chain.members.iter().map(|member| member.node) {
            for returns in [ChainEvent::Up(survivor), ChainEvent::Lost(survivor)] {
                let mut now = after(&chain, &[returns]);
                let mut words = 0;
                while now.head().is_none() {
                    let gone: Vec<_> = last_servers(&now);
                    // The survivor itself is given up when it is waited for with a disk that it has no more.
                    for node in gone {
                        now = after(&now, &[ChainEvent::Abandon(node), ChainEvent::Up(survivor)]);
                        words += 1;
                    }
                    assert!(
                        words <= 3 * chain.members.len(),
                        "{chain:?}: {survivor} never serves; now {now:?}"
                    );
                }
                assert_eq!(now.head(), Some(survivor), "{chain:?} {returns:?}");
            }
        }
    }
}

fn stopped_table(states: [MemberState; 3]) -> RoutingTable {
    let mut routing = RoutingTable::default();
    apply(&mut routing, &[up(1), up(2), up(3)]);
    for chain in routing.chains.values_mut() {
        chain.members = (1..)
            .zip(states)
            .map(|(node, state)| ChainMember::new(StorageId(node), state))
            .collect();
    }
    for (node, state) in (1..).zip(states) {
        if let Some(info) = routing.nodes.get_mut(&StorageId(node)) {
            info.alive = state == MemberState::Waiting;
        }
    }
    routing
}

#[test]
fn two_last_servers_are_given_up_one_after_the_other() {
    use MemberState::{LastServer, Waiting};
    for [first, second] in [[1, 2], [2, 1]] {
        let mut routing = stopped_table([LastServer, LastServer, Waiting]);
        let refusal = administer(&mut routing, StorageId(3), NodeAction::AcceptDataLoss).unwrap_err();
        assert!(
            refusal.detail.contains("no chain waits for storage-3")
                && refusal
                    .detail
                    .contains("accept-data-loss storage-1, then dfs node accept-data-loss storage-2"),
            "{refusal}"
        );
        let refusal = administer(&mut routing, StorageId(first), NodeAction::Remove).unwrap_err();
        assert!(refusal.detail.contains("accept-data-loss"), "{refusal}");
        let done = administer(&mut routing, StorageId(first), NodeAction::AcceptDataLoss);
        assert_eq!(done.map_err(|refusal| refusal.detail), Ok(true));
        for chain in routing.chains.values() {
            assert_eq!(
                last_servers(chain),
                [StorageId(second)],
                "the other one still may bring it back"
            );
        }
        let done = administer(&mut routing, StorageId(second), NodeAction::AcceptDataLoss);
        assert_eq!(done.map_err(|refusal| refusal.detail), Ok(true));
        for chain in routing.chains.values() {
            assert_eq!(chain.head(), Some(StorageId(3)), "{chain:?}");
        }
    }
}

#[test]
fn a_table_that_is_made_while_everybody_goes_is_not_stopped_for_ever() {
    let mut routing = RoutingTable::default();
    apply(&mut routing, &[up(1), up(2), up(3), down(1), down(2), down(3)]);
    assert!(!routing.chains.is_empty());
    for chain in routing.chains.values() {
        assert!(
            way_out(chain).is_some_and(|out| out.last_servers.len() == 3),
            "{chain:?}"
        );
    }
    apply(&mut routing, &[up(2)]);
    assert!(routing.chains.values().all(|chain| chain.head() == Some(StorageId(2))));
}
