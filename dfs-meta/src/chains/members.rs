//! Who belongs to a chain at all: members join and leave, one at a time, and never so that data lies on fewer nodes than it should.
//!
//! A change is meant for one configuration (its epoch) and says nothing in another. Who leaves while it serves has given up serving in
//! that configuration before (see `service::leader::moves`), so no read of it can be older than what the others acknowledge.

use std::collections::BTreeSet;

use dfs_common::level::REPLICATION_TARGET;
use dfs_common::{ChainInfo, ChainMember, MemberState, StorageId};

use super::next::ChainEvent;

/// Bounds a chain while members change.
pub(super) const MAX_MEMBERS: usize = REPLICATION_TARGET + 2;

/// Applies the joins and leaves among `events`; whether the configuration is another one then.
pub(super) fn change(
    chain: &ChainInfo,
    members: &mut Vec<ChainMember>,
    events: &[ChainEvent],
    complete: &BTreeSet<StorageId>,
) -> bool {
    let mut changed = false;
    for event in events {
        match *event {
            ChainEvent::Leave { node, epoch } if epoch == chain.epoch && may_leave(members, node, complete) => {
                members.retain(|member| member.node != node);
                changed = true;
            }
            ChainEvent::Join { node, epoch }
                if epoch == chain.epoch
                    && members.len() < MAX_MEMBERS
                    && members.iter().all(|member| member.node != node) =>
            {
                members.push(ChainMember::new(node, MemberState::Waiting));
                changed = true;
            }
            ChainEvent::Renew { epoch } if epoch == chain.epoch => changed = true,
            _ => {}
        }
    }
    changed
}

/// Makes the head the tail if that is among `events` and all members serve.
pub(super) fn rotate(chain: &ChainInfo, members: &mut [ChainMember], events: &[ChainEvent]) -> bool {
    let asked = events.contains(&ChainEvent::Rotate { epoch: chain.epoch });
    let everybody = members.iter().all(|member| member.state == MemberState::Serving);
    let may = asked && everybody && chain.settled && chain.members == members;
    if may {
        members.rotate_left(1);
    }
    may
}

/// A member may leave when enough others serve, and the first of them has all that was acknowledged at QUORUM.
pub(super) fn may_leave(members: &[ChainMember], node: StorageId, complete: &BTreeSet<StorageId>) -> bool {
    let others = members
        .iter()
        .filter(|member| member.node != node && member.state == MemberState::Serving);
    members.iter().any(|member| member.node == node)
        && others.clone().count() >= REPLICATION_TARGET
        && others.clone().next().is_some_and(|head| complete.contains(&head.node))
}

/// This node's copy is given up for good, though it is complete. While there is another complete one, nothing else changes. Of the
/// others, the one that was complete last has the right to bring the chain back with what it has. (Not the one that stands first: a
/// member that has begun to sync stands before one that left after it.)
///
/// What was given up counts as never complete and stands behind those who may yet inherit, so that whoever is given up next has another heir.
pub(super) fn abandon(members: &mut Vec<ChainMember>, node: StorageId) {
    let at = members
        .iter()
        .position(|member| member.node == node && member.state == MemberState::LastServer);
    let Some(at) = at else {
        return;
    };
    let given_up = ChainMember::new(node, MemberState::Offline);
    members[at] = given_up;
    let holds = |member: &ChainMember| matches!(member.state, MemberState::Serving | MemberState::LastServer);
    if members.iter().any(holds) {
        members.remove(at);
        members.push(given_up);
        return;
    }
    // Of equals one that is there, then the first, which was nearer to the head.
    let others = members.iter_mut().filter(|member| member.node != node);
    let heir = others
        .rev()
        .max_by_key(|member| (member.complete_until, member.state == MemberState::Waiting));
    if let Some(heir) = heir {
        heir.state = MemberState::LastServer;
    }
}
