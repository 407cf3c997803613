//! The transition table, printed from the function itself, so that the document can not drift.

use std::fmt::Write;

use dfs_common::{ChainId, ChainInfo, ChainMember, Epoch, MemberState, StorageId};

use super::next::{ChainEvent, next_chain};

pub(super) const STATES: [MemberState; 5] = [
    MemberState::Serving,
    MemberState::Syncing,
    MemberState::Waiting,
    MemberState::LastServer,
    MemberState::Offline,
];

/// Every configuration of three members that keeps the rules, members in their fixed order.
pub(super) fn every_chain() -> Vec<ChainInfo> {
    let mut chains = Vec::new();
    for a in STATES {
        for b in STATES {
            for c in STATES {
                let states = [a, b, c];
                if is_legal(&states) {
                    let members = (1..)
                        .zip(states)
                        .map(|(node, state)| ChainMember {
                            node: StorageId(node),
                            state,
                        })
                        .collect();
                    chains.push(ChainInfo {
                        id: ChainId(1),
                        epoch: Epoch(10),
                        members,
                    });
                }
            }
        }
    }
    chains
}

pub(super) fn is_legal(states: &[MemberState]) -> bool {
    let count = |state| states.iter().filter(|&&other| other == state).count();
    let rank = |state| match state {
        MemberState::Serving => 0,
        MemberState::Syncing => 1,
        _ => 2,
    };
    let serving = count(MemberState::Serving);
    states.is_sorted_by_key(|&state| rank(state))
        && count(MemberState::Syncing) <= 1
        && (serving > 0) != (count(MemberState::LastServer) > 0)
        && (serving > 0 || count(MemberState::Syncing) == 0)
        && (serving == 0 || count(MemberState::Waiting) == 0 || count(MemberState::Syncing) == 1)
}

/// Every single event, and every group of members that goes down together.
pub(super) fn every_event(chain: &ChainInfo) -> Vec<Vec<ChainEvent>> {
    let nodes: Vec<StorageId> = chain.members.iter().map(|member| member.node).collect();
    let mut events = Vec::new();
    for &node in &nodes {
        events.push(vec![ChainEvent::Up(node)]);
        events.push(vec![ChainEvent::Restarted(node)]);
        events.push(vec![ChainEvent::Resynced {
            node,
            epoch: chain.epoch,
        }]);
    }
    for group in 1..(1_u32 << nodes.len()) {
        events.push(
            nodes
                .iter()
                .enumerate()
                .filter(|(at, _)| group & (1 << at) != 0)
                .map(|(_, &node)| ChainEvent::Down(node))
                .collect(),
        );
    }
    events
}

/// All transitions of a chain of three as a markdown table; what is not listed changes nothing.
#[must_use]
pub fn table_markdown() -> String {
    let mut text = String::from(
        "# Chains: states and transitions\n\n\
         Printed from `next_chain` in dfs-meta by its own test; do not edit. Members are 1, 2, 3; within a cell they\n\
         stand in chain order (head first). Events that are not listed change nothing. Every transition raises the\n\
         chain's epoch by one.\n\n\
         | state | meaning |\n|---|---|\n\
         | serving | in sync: has every acknowledged write, serves reads |\n\
         | syncing | back: takes new writes at the end while its predecessor sends what differs |\n\
         | waiting | back: waits for the one slot to sync, or for a last server |\n\
         | last-server | away: was in sync when the last serving member went, may bring the chain back |\n\
         | offline | away: others went on without it |\n\n\
         | before | event | after |\n|---|---|---|\n",
    );
    for chain in every_chain() {
        for events in every_event(&chain) {
            if let Some(next) = next_chain(&chain, &events) {
                let _ = writeln!(text, "| {} | {} | {} |", show(&chain), name(&events), show(&next));
            }
        }
    }
    text
}

fn show(chain: &ChainInfo) -> String {
    let members: Vec<String> = chain
        .members
        .iter()
        .map(|member| format!("{} {}", member.node, member.state))
        .collect();
    members.join(", ")
}

fn name(events: &[ChainEvent]) -> String {
    let names: Vec<String> = events
        .iter()
        .map(|event| match event {
            ChainEvent::Up(node) => format!("{node} up"),
            ChainEvent::Down(node) => format!("{node} down"),
            ChainEvent::Restarted(node) => format!("{node} restarted"),
            ChainEvent::Resynced { node, .. } => format!("{node} resynced"),
        })
        .collect();
    names.join(", ")
}
