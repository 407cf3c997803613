//! The one TOML file: what a process needs to know to find and join its cluster. Types only; reading the file and the
//! paths in it (relative to the file's own directory) is the caller's.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::id::{ClusterId, MetaId, NodeName};

/// `cluster.toml` (a client or admin tool) and `node.toml` (a server: the same, with `[node]`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterConfig {
    /// 32 hex digits.
    pub cluster: String,
    /// Directory with `ca.pem`, `cert.pem`, `key.pem`, and `root.key` (clients) or `meta.key` (metadata servers).
    pub credentials: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeSection>,
    /// Every metadata server.
    pub meta: Vec<MetaServer>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetaServer {
    pub id: u64,
    /// Host and port where the others reach it.
    pub address: SocketAddr,
}

/// What a server needs besides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSection {
    /// `meta-1`, `storage-2`.
    pub name: String,
    /// Local address to bind.
    pub listen: SocketAddr,
    /// Where others reach it, if that is not `listen` (which may be 0.0.0.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advertise: Option<SocketAddr>,
    /// Its data directory.
    pub data: PathBuf,
    /// Storage only: bytes it may use; the whole file system's if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_bytes: Option<u64>,
    /// Storage only: the most that the check of what is stored reads in a second; about a round in two weeks if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scrub_mib_per_s: Option<u64>,
    /// Metadata only: commands in the log between two snapshots; 50,000 if absent. Fewer make starts quicker and cost writing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_every: Option<u64>,
}

impl ClusterConfig {
    /// # Errors
    /// `InvalidArgument` when the id is malformed.
    pub fn cluster_id(&self) -> crate::Result<ClusterId> {
        self.cluster.parse()
    }

    /// The metadata servers by id.
    pub fn meta_addresses(&self) -> impl Iterator<Item = (MetaId, SocketAddr)> + '_ {
        self.meta.iter().map(|server| (MetaId(server.id), server.address))
    }
}

impl NodeSection {
    /// # Errors
    /// `InvalidArgument` when the name is not like `meta-1`.
    pub fn node_name(&self) -> crate::Result<NodeName> {
        self.name.parse()
    }

    #[must_use]
    pub fn advertised(&self) -> SocketAddr {
        self.advertise.unwrap_or(self.listen)
    }
}
