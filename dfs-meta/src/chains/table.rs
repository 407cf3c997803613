//! The transition table, printed from the function itself, so that the document can not drift.

use std::fmt::Write;

use dfs_common::chain::COMPLETE_MEMBERS;
use dfs_common::{ChainId, ChainInfo, ChainMember, Epoch, MemberState, Rest, StorageId};

use super::next::{ChainEvent, next_chain};
use super::way_out::{Heir, way_out};

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
                        .map(|(node, state)| ChainMember::new(StorageId(node), state))
                        .collect();
                    let chain = ChainInfo {
                        id: ChainId(1),
                        epoch: Epoch(10),
                        settled: true,
                        rest: Rest::default(),
                        headed: Epoch(1),
                        revived: Epoch(1),
                        members,
                    };
                    // Without a second serving member there is nobody to settle.
                    if chain.serving().nth(1).is_some() {
                        chains.push(ChainInfo {
                            settled: false,
                            ..chain.clone()
                        });
                    }
                    // Where everybody is complete anyway, rest says nothing.
                    if chain.serving().nth(COMPLETE_MEMBERS).is_some() {
                        chains.push(ChainInfo {
                            rest: Rest::default().next(),
                            ..chain.clone()
                        });
                    }
                    chains.push(chain);
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
        events.push(vec![ChainEvent::Lost(node)]);
        events.push(vec![ChainEvent::Resynced {
            node,
            epoch: chain.epoch,
        }]);
    }
    events.push(vec![ChainEvent::Settled { epoch: chain.epoch }]);
    if chain.settled && chain.serving().nth(COMPLETE_MEMBERS).is_some() {
        let (epoch, rest) = (chain.epoch, chain.rest.next());
        events.push(vec![ChainEvent::Rest { epoch, rest }]);
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
         stand in chain order (head first). Events that are not listed change nothing. Every transition but *settled*,\n\
         *rests* and *wakes* raises the chain's epoch by one.\n\n\
         A write at QUORUM is acknowledged when the first two serving members have it. Those two are *complete*: only they\n\
         carry the chain on when others go, and only they may bring it back. In an *unsettled* chain the second one may still lack\n\
         what was acknowledged before this epoch; until the head has reported that it has caught up, only the head is complete. While a chain *rests*, every serving member is.\n\n\
         | state | meaning |\n|---|---|\n\
         | serving | in sync: takes part in every write, serves reads |\n\
         | syncing | back: takes new writes at the end while its predecessor sends what differs |\n\
         | waiting | there: waits for the one slot to sync, or, since it may lack acknowledged writes, for a last server |\n\
         | last-server | away: was complete when the last complete member went, may bring the chain back |\n\
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
    text + &ways_out_markdown()
}

/// Every configuration in which nobody serves, and how it comes back.
fn ways_out_markdown() -> String {
    let mut text = String::from(
        "\n## Ways out\n\n\
         While nobody serves, a chain waits for its last servers. The first of them that returns with its disk brings it back, and\n\
         nothing is lost. If one is there, but its disk had a fault and an administrator knows that it is well again:\n\
         `dfs node trust NODE --i-know` ([decision 19](decisions/0019-rot-is-mended-by-version.md)).\n\n\
         If they are gone for good, each is given up: `dfs node accept-data-loss NODE`. While another last server is left, that\n\
         changes nothing else. With the last of them, the member that was complete last takes its place, of equals one that is there: it\n\
         brings the chain back at once with what it has, or when it returns, or is given up in its turn. What was given up counts as never\n\
         complete, so whoever returns gets its turn. The heirs below are those of members that were complete equally long.\n\n\
         | nobody serves | comes back with | if gone for good, give up | and then |\n|---|---|---|---|\n",
    );
    for chain in every_chain() {
        let Some(out) = way_out(&chain) else {
            continue;
        };
        let names = |between: &str| {
            let names: Vec<_> = out.last_servers.iter().map(ToString::to_string).collect();
            names.join(between)
        };
        let then = match out.heir {
            Some(Heir { node, is_there: true }) => format!("{node} serves"),
            Some(Heir { node, is_there: false }) => format!("{node} serves when it returns"),
            None => "whoever came with an empty disk serves".to_owned(),
        };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {then} |",
            show(&chain),
            names(" or "),
            names(", ")
        );
    }
    text
}

fn show(chain: &ChainInfo) -> String {
    let members: Vec<String> = chain
        .members
        .iter()
        .map(|member| format!("{} {}", member.node, member.state))
        .collect();
    let more = match (chain.settled, chain.rest.is_resting()) {
        (false, _) => " (unsettled)",
        (true, true) => " (at rest)",
        (true, false) => "",
    };
    members.join(", ") + more
}

fn name(events: &[ChainEvent]) -> String {
    let names: Vec<String> = events
        .iter()
        .map(|event| match event {
            ChainEvent::Up(node) => format!("{node} up"),
            ChainEvent::Down(node) => format!("{node} down"),
            ChainEvent::Restarted(node) => format!("{node} restarted"),
            ChainEvent::Lost(node) => format!("{node} with another disk"),
            ChainEvent::Resynced { node, .. } => format!("{node} resynced"),
            ChainEvent::Settled { .. } => "settled".to_owned(),
            ChainEvent::Rest { rest, .. } if rest.is_resting() => "rests".to_owned(),
            ChainEvent::Rest { .. } => "wakes".to_owned(),
            ChainEvent::Join { node, .. } => format!("{node} joins"),
            ChainEvent::Leave { node, .. } => format!("{node} leaves"),
            ChainEvent::Renew { .. } => "renewed".to_owned(),
            ChainEvent::Rotate { .. } => "rotated".to_owned(),
            ChainEvent::Abandon(node) => format!("{node} given up"),
        })
        .collect();
    names.join(", ")
}
