//! Who may ask for what: decided by the role and number in the peer's certificate, before anything else.

use dfs_common::wire::meta::MetaRequest;
use dfs_common::{Error, ErrorCode, NodeName, Role};

/// # Errors
/// `Unauthorized`, naming who asked for what and who may.
pub(super) fn authorize(peer: NodeName, request: &MetaRequest) -> Result<(), Error> {
    let (what, allowed, who) = match request {
        MetaRequest::OpenSession { .. }
        | MetaRequest::CloseSession { .. }
        | MetaRequest::KeepAlive(_)
        | MetaRequest::Change(_)
        | MetaRequest::Changes(_)
        | MetaRequest::Reserve { .. }
        | MetaRequest::Release(_)
        | MetaRequest::Wanted { .. }
        | MetaRequest::Read { .. }
        | MetaRequest::Status => {
            let what = match request {
                MetaRequest::OpenSession { .. } => "open a session",
                MetaRequest::CloseSession { .. } => "close a session",
                MetaRequest::KeepAlive(_) => "renew a session",
                MetaRequest::Change(_) | MetaRequest::Changes(_) => "change the namespace",
                MetaRequest::Reserve { .. } | MetaRequest::Release(_) | MetaRequest::Wanted { .. } => "hold inodes",
                MetaRequest::Read { .. } => "read the namespace",
                _ => "read the cluster's status",
            };
            (
                what,
                matches!(peer.role, Role::Client | Role::Admin),
                "clients and admins",
            )
        }
        MetaRequest::Routing { .. } => (
            "read the routing table",
            peer.role != Role::Meta,
            "clients, admins and storage nodes",
        ),
        MetaRequest::Heartbeat(heartbeat) => (
            "send that heartbeat",
            peer == NodeName::from(heartbeat.node),
            "the storage node it is about",
        ),
        MetaRequest::Damage => (
            "ask for damage",
            matches!(peer.role, Role::Client | Role::Admin),
            "clients and admins",
        ),
        MetaRequest::Conflicts { .. } | MetaRequest::SettleConflict { .. } => (
            "list and settle conflicts",
            matches!(peer.role, Role::Client | Role::Admin),
            "clients and admins",
        ),
        MetaRequest::Diverged(_) | MetaRequest::Reconciled { .. } => (
            "say what a storage node brought back",
            peer.role == Role::Storage,
            "storage nodes",
        ),
        // Whether it is the one that copies is judged against the chain.
        MetaRequest::ResyncDone { .. } => ("end a resync", peer.role == Role::Storage, "storage nodes"),
        MetaRequest::Administer { .. } | MetaRequest::PauseResyncs(_) | MetaRequest::MoveMeta { .. } => {
            ("administer nodes", peer.role == Role::Admin, "administrators")
        }
        MetaRequest::Consensus { .. } => ("take part in consensus", peer.role == Role::Meta, "metadata servers"),
    };
    if allowed {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::Unauthorized,
        format!("{peer} may not {what}: only {who} may; check which credentials it was started with"),
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::SocketAddr;

    use dfs_common::wire::meta::{Heartbeat, Signs};
    use dfs_common::{ChainId, Epoch, Incarnation, RoutingVersion, StorageId, StoreId};

    use super::*;

    #[test]
    fn roles_get_what_is_theirs() {
        let names = [Role::Meta, Role::Storage, Role::Client, Role::Admin].map(|role| NodeName::new(role, 2));
        let heartbeat = |node| {
            MetaRequest::Heartbeat(Heartbeat {
                sessions: 0,
                node: StorageId(node),
                incarnation: Incarnation(1),
                store: StoreId::default(),
                address: SocketAddr::from(([127, 0, 0, 1], 1)),
                routing: RoutingVersion(0),
                total_bytes: 0,
                used_bytes: 0,
                fault: None,
                resyncs: Vec::new(),
                retired: Vec::new(),
                signs: Signs::default(),
                settled: Vec::new(),
                rests: Vec::new(),
                configured: BTreeMap::new(),
            })
        };
        let table: [(MetaRequest, [bool; 4]); 7] = [
            (MetaRequest::Status, [false, false, true, true]),
            (
                MetaRequest::OpenSession { label: String::new() },
                [false, false, true, true],
            ),
            (
                MetaRequest::Routing {
                    known: RoutingVersion(0),
                    wait_ms: 0,
                },
                [false, true, true, true],
            ),
            (heartbeat(2), [false, true, false, false]),
            (heartbeat(3), [false; 4]),
            (
                MetaRequest::ResyncDone {
                    chain: ChainId(1),
                    epoch: Epoch(1),
                    node: StorageId(1),
                },
                [false, true, false, false],
            ),
            (
                MetaRequest::Consensus {
                    kind: 0,
                    body: Vec::new(),
                },
                [true, false, false, false],
            ),
        ];
        for (request, allowed) in table {
            for (name, allowed) in names.into_iter().zip(allowed) {
                let result = authorize(name, &request);
                assert_eq!(result.is_ok(), allowed, "{name} {request:?}");
                if let Err(e) = result {
                    assert!(e.code == ErrorCode::Unauthorized && e.detail.contains(&name.to_string()));
                }
            }
        }
    }
}
