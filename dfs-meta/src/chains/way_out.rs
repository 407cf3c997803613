//! How a chain in which nobody serves comes back. Every such configuration has a way out, which a test goes for all of them.
//!
//! It waits for its last servers, of which the first that returns with its disk brings it back. If they are gone for good, an administrator
//! gives them up, one after the other; the member that was complete last takes their place, which brings the chain back if it is there, or
//! when it returns, or is given up in its turn.

use std::fmt;

use dfs_common::{ChainInfo, MemberState, NodeName, StorageId};

use super::next::{ChainEvent, next_chain};

/// Who brings a chain back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WayOut {
    /// Any of these, and nothing is lost. To be given up, all of them, if none will return.
    pub last_servers: Vec<StorageId>,
    /// Who takes their place then, with what it has.
    pub heir: Option<Heir>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heir {
    pub node: StorageId,
    /// It brings the chain back at once; else when it returns.
    pub is_there: bool,
}

/// `None`: somebody serves.
#[must_use]
pub fn way_out(chain: &ChainInfo) -> Option<WayOut> {
    if chain.head().is_some() {
        return None;
    }
    let last_servers = in_state(chain, MemberState::LastServer);
    let mut given_up = chain.clone();
    for &node in &last_servers {
        given_up = next_chain(&given_up, &[ChainEvent::Abandon(node)]).unwrap_or(given_up);
    }
    let heir = in_state(&given_up, MemberState::LastServer)
        .into_iter()
        .find(|node| !last_servers.contains(node));
    Some(WayOut {
        last_servers,
        heir: heir.map(|node| Heir {
            node,
            is_there: chain.state_of(node) == Some(MemberState::Waiting),
        }),
    })
}

fn in_state(chain: &ChainInfo, state: MemberState) -> Vec<StorageId> {
    let members = chain.members.iter().filter(|member| member.state == state);
    members.map(|member| member.node).collect()
}

/// Goes on after "comes back when".
impl fmt::Display for WayOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.last_servers.iter().map(|&node| NodeName::from(node)).collect();
        let joined = |between: &str| {
            let names: Vec<_> = names.iter().map(ToString::to_string).collect();
            names.join(between)
        };
        write!(f, "{} returns with its disk", joined(" or "))?;
        let verbs: Vec<_> = names
            .iter()
            .map(|name| format!("dfs node accept-data-loss {name}"))
            .collect();
        let gone = match names.len() {
            1 => format!("if {} is gone for good", joined("")),
            2 => format!("if both {} are gone for good", joined(" and ")),
            _ => format!("if all of {} are gone for good", joined(", ")),
        };
        let Some(heir) = self.heir else {
            return write!(
                f,
                "; {gone}, nobody has a copy: start one of them with an empty disk, then {}, and of these only those that \
                 the chain still waits for",
                verbs.join(", ")
            );
        };
        let name = NodeName::from(heir.node);
        write!(f, "; {gone}: {}; ", verbs.join(", then "))?;
        if heir.is_there {
            write!(f, "then {name} brings it back with what it has")
        } else {
            write!(f, "then {name} brings it back with what it has when it returns")
        }
    }
}
