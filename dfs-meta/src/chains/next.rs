//! The next configuration of one chain.

use std::collections::BTreeSet;

use dfs_common::{ChainInfo, ChainMember, Epoch, MemberState, StorageId};

/// What can happen to a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChainEvent {
    /// The node has a lease again, in the same process as before.
    Up(StorageId),
    /// Its lease ended, or it reported a fault.
    Down(StorageId),
    /// A new process of it is there: it forgot what was in flight.
    Restarted(StorageId),
    /// The member has all that its predecessor has; only true in the epoch in which the copying was done.
    Resynced { node: StorageId, epoch: Epoch },
}

/// Folds a batch of events into the chain; `None` when nothing changes.
///
/// The order within a batch is fixed, because the events are concurrent: first the resyncs (they report what already
/// was so in the chain's epoch), then everybody who went away, together, then those who are there at the end.
#[must_use]
pub fn next_chain(chain: &ChainInfo, events: &[ChainEvent]) -> Option<ChainInfo> {
    let mut members = chain.members.clone();
    let mut changed = resync(chain, &mut members, events);

    let mut down = BTreeSet::new();
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
            ChainEvent::Resynced { .. } => {}
        }
    }
    changed |= take_down(&mut members, &down);
    for &node in &up {
        bring_up(&mut members, node);
    }
    settle(&mut members);

    changed |= members != chain.members;
    changed.then(|| ChainInfo {
        id: chain.id,
        epoch: chain.epoch.next(),
        members,
    })
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
        let done = members
            .iter_mut()
            .find(|member| member.node == node && member.state == MemberState::Syncing && epoch == chain.epoch);
        if let Some(member) = done {
            member.state = MemberState::Serving;
            changed = true;
        }
    }
    changed
}

/// Everybody who went away in this batch. Returns whether a member that took part in writes was among them: then the
/// epoch has to rise even if it is back in the same state at the end of the batch.
fn take_down(members: &mut [ChainMember], down: &BTreeSet<StorageId>) -> bool {
    let survivor = members
        .iter()
        .any(|member| member.state == MemberState::Serving && !down.contains(&member.node));
    let mut took_part = false;
    for member in members.iter_mut().filter(|member| down.contains(&member.node)) {
        member.state = match member.state {
            MemberState::Serving => {
                took_part = true;
                if survivor {
                    MemberState::Offline
                } else {
                    MemberState::LastServer
                }
            }
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

fn bring_up(members: &mut [ChainMember], node: StorageId) {
    let serving = any(members, MemberState::Serving);
    let Some(at) = members.iter().position(|member| member.node == node) else {
        return;
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
        }
        MemberState::LastServer | MemberState::Offline => members[at].state = MemberState::Waiting,
        MemberState::Serving | MemberState::Syncing | MemberState::Waiting => {}
    }
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
