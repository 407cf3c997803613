//! Messages between processes. One enum a service; a request's variant and its response's variant share a name.
//!
//! A message is a bincode header (these types) and a payload of raw bytes (ciphertext and seals), so that bulk data is
//! never copied through the codec. Adding a variant at the end keeps old peers working; changing one needs a new
//! [`PROTOCOL_VERSION`].

pub mod meta;
pub mod namespace;
pub mod storage;

use serde::{Deserialize, Serialize};

use crate::id::ClusterId;

/// Version of every message in this module. Peers with another version are refused in the handshake.
pub const PROTOCOL_VERSION: u32 = 13;

/// ALPN of a connection: protocol name with its version, so that TLS itself refuses others.
pub const ALPN: &[u8] = b"dfs/13";

/// First message on every connection, both ways.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub protocol: u32,
    pub cluster: ClusterId,
}

/// Kind of traffic. Lanes are separate connections, so that a heartbeat never waits behind a megabyte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Lane {
    /// Small and urgent: metadata, consensus, heartbeats, chain control.
    Control,
    /// Reads and writes of file data, resync.
    Bulk,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_protocol_has_its_version_in_its_name() {
        assert_eq!(ALPN, format!("dfs/{PROTOCOL_VERSION}").as_bytes());
    }
}
