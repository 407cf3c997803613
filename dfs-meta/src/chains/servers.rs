//! Where metadata servers are: part of what everybody learns with the routing table, so that a
//! server can be moved, or replaced by another machine, while clients and storage nodes run.

use dfs_common::{Error, ErrorCode, MetaId, MetaPlace, NodeName, Result, RoutingTable};

/// Carries it out; whether the table changed (then its version has risen). The issue that is
/// required of a server never falls, so a request that comes late takes nothing back.
///
/// # Errors
/// See [`check_place`].
pub fn move_meta(routing: &mut RoutingTable, server: MetaId, place: MetaPlace) -> Result<bool> {
    check_place(routing, server, place)?;
    let before = routing.moved.get(&server).copied();
    if before.is_some_and(|before| before.issue > place.issue) {
        return Err(Error::new(
            ErrorCode::Busy,
            format!(
                "another machine has taken the place of {} meanwhile; see: dfs status",
                NodeName::from(server)
            ),
        ));
    }
    if before == Some(place) {
        return Ok(false);
    }
    routing.moved.insert(server, place);
    routing.version = routing.version.next();
    Ok(true)
}

/// # Errors
/// `InvalidArgument` for an address that nobody can reach, or that is another server's as far as
/// the table knows.
pub fn check_place(routing: &RoutingTable, server: MetaId, place: MetaPlace) -> Result<()> {
    let name = NodeName::from(server);
    let address = place.address;
    let refused = |why: String| Err(Error::new(ErrorCode::InvalidArgument, why));
    if address.port() == 0 || address.ip().is_unspecified() || address.ip().is_multicast() {
        return refused(format!(
            "{address} is no address where others can reach {name}: give its own IP address and port"
        ));
    }
    let configured = routing.meta.iter().filter(|(id, _)| !routing.moved.contains_key(id));
    let moved = routing.moved.iter().map(|(id, place)| (id, &place.address));
    let other = configured
        .chain(moved)
        .find(|&(&id, &at)| id != server && at == address)
        .map(|(&id, _)| NodeName::from(id));
    let node = routing.nodes.values().find(|node| node.address == address);
    match other.or(node.map(|node| NodeName::from(node.id))) {
        Some(owner) => refused(format!("{address} is the address of {owner}; {name} needs its own")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use dfs_common::{CertificateIssue, RoutingVersion};

    use super::*;

    fn place(address: &str, issue: u32) -> MetaPlace {
        MetaPlace {
            address: address.parse().unwrap(),
            issue: CertificateIssue(issue),
        }
    }

    #[test]
    fn a_server_moves_and_no_late_word_moves_it_back_to_a_replaced_machine() {
        let mut table = RoutingTable::default();
        let server = MetaId(2);
        assert_eq!(move_meta(&mut table, server, place("10.0.0.2:7", 0)), Ok(true));
        assert_eq!(table.version, RoutingVersion(1));
        assert_eq!(move_meta(&mut table, server, place("10.0.0.2:7", 0)), Ok(false));
        assert_eq!(move_meta(&mut table, server, place("10.0.0.9:7", 1)), Ok(true));
        let late = move_meta(&mut table, server, place("10.0.0.2:7", 0)).unwrap_err();
        assert_eq!(late.code, ErrorCode::Busy);
        assert_eq!(table.moved[&server], place("10.0.0.9:7", 1));
    }

    #[test]
    fn an_address_is_reachable_and_nobody_elses() {
        let mut table = RoutingTable::default();
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        table.meta = [(MetaId(1), at("10.0.0.1:7")), (MetaId(2), at("10.0.0.2:7"))].into();
        for wrong in ["0.0.0.0:7", "10.0.0.3:0", "[::]:7", "10.0.0.1:7"] {
            let refused = move_meta(&mut table, MetaId(2), place(wrong, 0)).unwrap_err();
            assert_eq!(refused.code, ErrorCode::InvalidArgument, "{wrong}");
        }
        assert_eq!(move_meta(&mut table, MetaId(1), place("10.0.0.3:7", 0)), Ok(true));
        assert_eq!(
            move_meta(&mut table, MetaId(2), place("10.0.0.1:7", 0)),
            Ok(true),
            "meta-1 left it"
        );
        assert!(move_meta(&mut table, MetaId(3), place("10.0.0.3:7", 0)).is_err());
    }
}
