//! Stores that an administrator trusts although their nodes have condemned them. Pure.
//!
//! The word goes to the node as the answer to a heartbeat in which it reports its fault, again and again until it reports none, or for a
//! minute. It is soft state: a word that a change of leader swallows is said again.

use std::collections::BTreeMap;

use dfs_common::wire::meta::Heartbeat;
use dfs_common::{Error, ErrorCode, NodeName, Result, StorageId, StoreId};

use super::super::clock::Moment;

/// How long a node is told. It hears of it within two heartbeats, and starts anew within seconds.
const TOLD_FOR_MS: u64 = 60_000;

/// At most one entry a node that reported a fault.
#[derive(Debug, Default)]
pub(in crate::service) struct Trusted {
    until: BTreeMap<StorageId, (StoreId, Moment)>,
}

impl Trusted {
    /// `faulty`: the store of which the node reports a fault, if it is heard and does.
    pub(in crate::service) fn note(&mut self, now: Moment, node: StorageId, faulty: Option<StoreId>) -> Result<()> {
        let name = NodeName::from(node);
        let Some(store) = faulty else {
            return Err(Error::new(
                ErrorCode::Busy,
                format!(
                    "{name} does not report a fault of its store, so there is nothing to trust; if it is down, start it first"
                ),
            ));
        };
        self.until.insert(node, (store, now.after_ms(TOLD_FOR_MS)));
        Ok(())
    }

    /// The store that the sender of this heartbeat is to open again.
    pub(in crate::service) fn heard(&mut self, now: Moment, heartbeat: &Heartbeat) -> Option<StoreId> {
        let &(store, until) = self.until.get(&heartbeat.node)?;
        let over = heartbeat.fault.is_none() || heartbeat.store != store || now >= until;
        if over {
            self.until.remove(&heartbeat.node);
            return None;
        }
        Some(store)
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use dfs_common::wire::meta::Signs;
    use dfs_common::{Incarnation, RoutingVersion};

    use super::*;

    fn heartbeat(store: u8, fault: Option<&str>) -> Heartbeat {
        Heartbeat {
            configured: std::collections::BTreeMap::new(),
            sessions: 0,
            node: StorageId(1),
            incarnation: Incarnation(1),
            store: StoreId([store; 16]),
            address: SocketAddr::from(([127, 0, 0, 1], 7001)),
            routing: RoutingVersion(0),
            total_bytes: 0,
            used_bytes: 0,
            fault: fault.map(str::to_owned),
            resyncs: Vec::new(),
            settled: Vec::new(),
            rests: Vec::new(),
            retired: Vec::new(),
            signs: Signs::default(),
        }
    }

    #[test]
    fn a_node_is_told_until_its_fault_is_gone_and_never_of_another_store() {
        let at = Moment::from_ms;
        let store = StoreId([7; 16]);
        let mut trusted = Trusted::default();
        assert_eq!(
            trusted.note(at(0), StorageId(1), None).unwrap_err().code,
            ErrorCode::Busy
        );
        assert_eq!(trusted.heard(at(0), &heartbeat(7, Some("EIO"))), None);
        trusted.note(at(0), StorageId(1), Some(store)).unwrap();
        for ms in [1, 200, TOLD_FOR_MS - 1] {
            assert_eq!(trusted.heard(at(ms), &heartbeat(7, Some("EIO"))), Some(store));
        }
        assert_eq!(trusted.heard(at(300), &heartbeat(7, None)), None, "it is open again");
        assert_eq!(
            trusted.heard(at(301), &heartbeat(7, Some("EIO"))),
            None,
            "that is another fault"
        );
        trusted.note(at(0), StorageId(1), Some(store)).unwrap();
        assert_eq!(trusted.heard(at(1), &heartbeat(8, Some("EIO"))), None);
        trusted.note(at(0), StorageId(1), Some(store)).unwrap();
        assert_eq!(trusted.heard(at(TOLD_FOR_MS), &heartbeat(7, Some("EIO"))), None);
    }
}
