//! The next configuration of one chain.

use std::collections::BTreeSet;

use dfs_common::chain::COMPLETE_MEMBERS;
use dfs_common::planted::{self, Bug};
use dfs_common::{ChainInfo, ChainMember, Epoch, MemberState, Rest, StorageId};

use super::members;

/// What can happen to a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChainEvent {
    /// The node has a lease again, in the same process as before.
    Up(StorageId),
    /// Its lease ended, or it reported a fault.
    Down(StorageId),
    /// A new process of it is there: it forgot what was in flight.
    Restarted(StorageId),
    /// It is there, but with another disk: its copy is gone.
    Lost(StorageId),
    /// The member has all that its predecessor has; only true in the epoch in which the copying was done.
    Resynced { node: StorageId, epoch: Epoch },
    /// The second serving member has what it may have lacked when this epoch began.
    Settled { epoch: Epoch },
    /// Every serving member has everything, or: from now on not every one need have it.
    Rest { epoch: Epoch, rest: Rest },
    /// A node that is there becomes a member.
    Join { node: StorageId, epoch: Epoch },
    /// A member goes for good, if enough others serve.
    Leave { node: StorageId, epoch: Epoch },
    /// The same members in a new configuration: one of them serves no more in this one.
    Renew { epoch: Epoch },
    /// The head has given up serving in this one, with nothing under way, and becomes the tail.
    Rotate { epoch: Epoch },
    /// The chain waits no longer for this node, though nobody else has all that was acknowledged.
    Abandon(StorageId),
}

/// Folds a batch of events into the chain; `None` when nothing changes.
///
/// The order within a batch is fixed, because the events are concurrent: first what was settled and the resyncs (they report
/// what already was so in the chain's epoch), then everybody who went away, together, then those who are there at the end.
///
/// That a chain is settled, or rests, is no other configuration: its epoch stays.
#[must_use]
pub fn next_chain(chain: &ChainInfo, events: &[ChainEvent]) -> Option<ChainInfo> {
    let mut told = chain.clone();
    for event in events {
        match *event {
            ChainEvent::Settled { epoch } if epoch == chain.epoch => told.settled = true,
            ChainEvent::Rest { epoch, rest } if epoch == chain.epoch => told.rest = told.rest.max(rest),
            _ => {}
        }
    }
    let reconfigured = reconfigure(&told, events);
    reconfigured.or_else(|| (told != *chain).then_some(told))
}

/// The next configuration of a chain whose `settled` and `rest` are up to date.
fn reconfigure(chain: &ChainInfo, events: &[ChainEvent]) -> Option<ChainInfo> {
    let mut members = chain.members.clone();
    let mut complete: BTreeSet<StorageId> = chain.complete().collect();
    let alone = chain.serving().count() == 1;
    let mut changed = resync(chain, &mut members, events);
    if alone {
        // A lone member acknowledges nothing at QUORUM, so whoever has all that it has is complete too.
        complete.extend(serving(&members));
    }

    let mut down = BTreeSet::new();
    let mut lost = Vec::new();
    let mut abandoned = Vec::new();
    let mut up = Vec::new();
    for &event in events {
        match event {
            ChainEvent::Down(node) => {
                down.insert(node);
                up.retain(|&other| other != node);
            }
            ChainEvent::Restarted(node) => {
                down.insert(node);
                if !up.contains(&node) {
                    up.push(node);
                }
            }
            ChainEvent::Up(node) => {
                if !up.contains(&node) {
                    up.push(node);
                }
            }
            ChainEvent::Lost(node) => {
                down.insert(node);
                lost.push(node);
                if !up.contains(&node) {
                    up.push(node);
                }
            }
            ChainEvent::Abandon(node) => abandoned.push(node),
            ChainEvent::Resynced { .. }
            | ChainEvent::Join { .. }
            | ChainEvent::Leave { .. }
            | ChainEvent::Renew { .. }
            | ChainEvent::Rotate { .. }
            | ChainEvent::Rest { .. }
            | ChainEvent::Settled { .. } => {}
        }
    }
    changed |= take_down(&mut members, &down, &complete);
    for &node in &lost {
        if !give_up(&mut members, node) {
            up.retain(|&other| other != node);
        }
    }
    for &node in &abandoned {
        members::abandon(&mut members, node);
    }
    // In the chain's order: of several last servers the one that was nearest the head has seen most.
    up.sort_by_key(|node| members.iter().position(|member| member.node == *node));
    let mut revived = false;
    for &node in &up {
        revived |= bring_up(&mut members, node);
    }
    if members::rotate(chain, &mut members, events) {
        // Nothing was under way, so nobody lacks anything.
        complete.extend(serving(&members));
        changed = true;
    }
    changed |= members::change(chain, &mut members, events, &complete);
    settle(&mut members);

    changed |= members != chain.members;
    // The first is complete, or a last server that is back and alone, so nobody lacks what it has.
    let settled = serving(&members)
        .take(COMPLETE_MEMBERS)
        .skip(1)
        .all(|node| complete.contains(&node));
    let epoch = if planted::is(Bug::EpochNotRaised) {
        chain.epoch
    } else {
        chain.epoch.next()
    };
    for member in &mut members {
        if lost.contains(&member.node) && member.state != MemberState::LastServer {
            member.complete_until = Epoch(0);
        } else if complete.contains(&member.node) {
            member.complete_until = chain.epoch;
        }
    }
    let same_head = !revived && chain.head() == serving(&members).next();
    changed.then_some(ChainInfo {
        id: chain.id,
        epoch,
        settled,
        rest: Rest::default(),
        headed: if same_head { chain.headed } else { epoch },
        revived: if revived { epoch } else { chain.revived },
        members,
    })
}

fn serving(members: &[ChainMember]) -> impl Iterator<Item = StorageId> + '_ {
    members
        .iter()
        .filter(|member| member.state == MemberState::Serving)
        .map(|member| member.node)
}

fn any(members: &[ChainMember], state: MemberState) -> bool {
    members.iter().any(|member| member.state == state)
}

fn resync(chain: &ChainInfo, members: &mut [ChainMember], events: &[ChainEvent]) -> bool {
    let mut changed = false;
    for &event in events {
        let ChainEvent::Resynced { node, epoch } = event else {
            continue;
        };
        let done = members.iter_mut().find(|member| {
            member.node == node
                && member.state == MemberState::Syncing
                && (epoch == chain.epoch || planted::is(Bug::StaleResyncAccepted))
        });
        if let Some(member) = done {
            member.state = MemberState::Serving;
            changed = true;
        }
    }
    changed
}

/// Everybody who went away in this batch. Returns whether a member that took part in writes was among them: then the
/// epoch has to rise even if it is back in the same state at the end of the batch.
///
/// If a complete member stays, the chain goes on, and who went is stale. Otherwise the complete ones are its last servers, and a
/// member that is still there but may lack acknowledged writes waits for one of them like a stale copy.
fn take_down(members: &mut [ChainMember], down: &BTreeSet<StorageId>, complete: &BTreeSet<StorageId>) -> bool {
    let goes_on = complete.iter().any(|node| !down.contains(node));
    let mut took_part = false;
    for member in members.iter_mut() {
        let away = down.contains(&member.node);
        member.state = match member.state {
            MemberState::Serving if !away && goes_on => MemberState::Serving,
            MemberState::Serving if !away => MemberState::Waiting,
            MemberState::Serving => {
                took_part = true;
                if !goes_on && complete.contains(&member.node) {
                    MemberState::LastServer
                } else {
                    MemberState::Offline
                }
            }
            state if !away => state,
            MemberState::Syncing => {
                took_part = true;
                MemberState::Offline
            }
            MemberState::Waiting | MemberState::Offline => MemberState::Offline,
            MemberState::LastServer => MemberState::LastServer,
        };
    }
    took_part
}

/// The member's copy is gone with its disk. `false`: it was the last complete one, so the chain keeps waiting for that disk,
/// and the empty one brings nothing back. (Were it taken for the old one, everybody else would be copied from nothing.)
fn give_up(members: &mut [ChainMember], node: StorageId) -> bool {
    let others = members
        .iter()
        .any(|member| member.node != node && matches!(member.state, MemberState::Serving | MemberState::LastServer));
    match members.iter_mut().find(|member| member.node == node) {
        Some(member) if member.state == MemberState::LastServer => {
            if others {
                member.state = MemberState::Offline;
            }
            others
        }
        _ => true,
    }
}

/// Whether it brought the chain back.
fn bring_up(members: &mut [ChainMember], node: StorageId) -> bool {
    let serving = any(members, MemberState::Serving);
    let Some(at) = members.iter().position(|member| member.node == node) else {
        return false;
    };
    match members[at].state {
        MemberState::LastServer if !serving => {
            members[at].state = MemberState::Serving;
            // From now on this one may decide writes alone, so the others that were in sync with it no longer are:
            // were they to keep the right to bring the chain back, those writes could be lost.
            for other in members
                .iter_mut()
                .filter(|other| other.state == MemberState::LastServer)
            {
                other.state = MemberState::Offline;
            }
            return true;
        }
        MemberState::Offline if !serving && planted::is(Bug::StaleServerServes) => {
            members[at].state = MemberState::Serving;
        }
        MemberState::LastServer | MemberState::Offline => members[at].state = MemberState::Waiting,
        MemberState::Serving | MemberState::Syncing | MemberState::Waiting => {}
    }
    false
}

/// One slot for copying, only beside somebody to copy from; then the order of the members.
fn settle(members: &mut [ChainMember]) {
    let serving = any(members, MemberState::Serving);
    for member in members.iter_mut() {
        if member.state == MemberState::Syncing && !serving {
            member.state = MemberState::Waiting;
        }
    }
    members.sort_by_key(|member| rank(member.state));
    if serving && !any(members, MemberState::Syncing) {
        let next = members.iter_mut().find(|member| member.state == MemberState::Waiting);
        if let Some(member) = next {
            member.state = MemberState::Syncing;
        }
    }
    members.sort_by_key(|member| rank(member.state));
}

/// Serving, syncing, rest. (The sort is stable: the order within each is kept, so a head stays head.)
const fn rank(state: MemberState) -> u8 {
    match state {
        MemberState::Serving => 0,
        MemberState::Syncing => 1,
        MemberState::Waiting | MemberState::LastServer | MemberState::Offline => 2,
    }
}
