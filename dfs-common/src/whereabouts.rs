//! Where a metadata server is: what the configuration says, and what the group says since it moved.

use std::net::SocketAddr;

/// One server's addresses.
///
/// The configured one is right where the group's own addresses mean nothing (another network), the
/// group's where the configuration is old. So the group is heard only about a server that does not
/// answer, and who fails at one address tries the other next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whereabouts {
    address: SocketAddr,
    other: Option<SocketAddr>,
}

impl Whereabouts {
    #[must_use]
    pub const fn new(configured: SocketAddr) -> Self {
        Self {
            address: configured,
            other: None,
        }
    }

    /// Where to ask next.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The server has not answered, and the group says that it is there. `true`: there is an
    /// address to try that was not tried last.
    pub fn learn(&mut self, address: SocketAddr) -> bool {
        if address == self.address {
            return false;
        }
        self.other = Some(std::mem::replace(&mut self.address, address));
        true
    }

    /// The group says that it is there: to be tried when it fails where it was found before.
    pub fn hear(&mut self, address: SocketAddr) {
        if address != self.address {
            self.other = Some(address);
        }
    }

    /// The server did not answer at [`Self::address`].
    pub const fn failed(&mut self) {
        if let Some(other) = self.other {
            self.other = Some(self.address);
            self.address = other;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_addresses_are_tried_in_turn() {
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let mut server = Whereabouts::new(at(1));
        server.failed();
        assert_eq!(server.address(), at(1), "it has no other");
        assert!(!server.learn(at(1)));
        assert!(server.learn(at(2)));
        assert_eq!(server.address(), at(2));
        server.failed();
        assert_eq!(server.address(), at(1));
        server.failed();
        assert_eq!(server.address(), at(2));
        assert!(server.learn(at(3)), "it moved again");
        server.failed();
        assert_eq!(server.address(), at(2));
        server.hear(at(4));
        assert_eq!(server.address(), at(2), "it answers here");
        server.failed();
        assert_eq!(server.address(), at(4));
    }
}
