//! What a mount is told when it starts: the cluster, who it is, and the bounds it keeps.

use std::net::SocketAddr;
use std::time::Duration;

use dfs_common::Level;
use dfs_common::config::ClusterConfig;
use dfs_crypto::certificate::Credentials;
use dfs_crypto::key::RootKey;

/// Longest that one public call waits before it fails with a reason: long enough for a failover and a resync's start,
/// short enough that nobody takes a dead cluster for a slow one.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);

/// Plaintext of chunk requests in flight per mount: covers bandwidth x delay of a fast LAN a few times over.
pub const DEFAULT_IN_FLIGHT_BYTES: usize = 32 << 20;

/// Of these, by one file's writer, so that one copy does not starve everybody else.
pub const DEFAULT_FILE_IN_FLIGHT_BYTES: usize = 16 << 20;

/// Written but not yet acknowledged bytes per mount; writers wait beyond it.
pub const DEFAULT_DIRTY_BYTES: usize = 128 << 20;

/// The same for one file.
pub const DEFAULT_FILE_DIRTY_BYTES: usize = 32 << 20;

/// Bytes read ahead and kept per mount.
pub const DEFAULT_READ_AHEAD_BYTES: usize = 64 << 20;

/// Bytes of acknowledged writes that a mount keeps for all its files.
pub const DEFAULT_KEPT_BYTES: usize = 128 << 20;

/// Everything [`crate::Client::connect`] needs. Defaults suit a laptop and a small cluster.
#[derive(Debug)]
pub struct ClientOptions {
    pub config: ClusterConfig,
    pub credentials: Credentials,
    pub root_key: RootKey,
    /// For people: host and mount point, shown by `dfs status`.
    pub label: String,
    /// Local address; `None` picks an ephemeral port, on loopback when every metadata server is there.
    pub listen: Option<SocketAddr>,
    pub deadline: Duration,
    pub in_flight_bytes: usize,
    pub file_in_flight_bytes: usize,
    pub dirty_bytes: usize,
    pub file_dirty_bytes: usize,
    pub read_ahead_bytes: usize,
    /// Acknowledged writes that it keeps until they are synced and committed; see `data::kept`.
    pub kept_bytes: usize,
    /// Overrides every file's policy for this mount.
    pub read_level: Option<Level>,
    pub write_level: Option<Level>,
    /// Whether it makes two files of one whose policy keeps both versions, when a conflict is found: a mount that may write does.
    pub keeps_both: bool,
}

impl ClientOptions {
    pub fn new(config: ClusterConfig, credentials: Credentials, root_key: RootKey, label: impl Into<String>) -> Self {
        Self {
            config,
            credentials,
            root_key,
            label: label.into(),
            listen: None,
            deadline: DEFAULT_DEADLINE,
            in_flight_bytes: DEFAULT_IN_FLIGHT_BYTES,
            file_in_flight_bytes: DEFAULT_FILE_IN_FLIGHT_BYTES,
            dirty_bytes: DEFAULT_DIRTY_BYTES,
            file_dirty_bytes: DEFAULT_FILE_DIRTY_BYTES,
            read_ahead_bytes: DEFAULT_READ_AHEAD_BYTES,
            kept_bytes: DEFAULT_KEPT_BYTES,
            read_level: None,
            write_level: None,
            keeps_both: false,
        }
    }
}

/// How a file is opened. The caller has already checked permissions (the kernel does for a mount).
#[allow(clippy::struct_excessive_bools, reason = "the flags of open(2), each for itself")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct OpenMode {
    pub read: bool,
    pub write: bool,
    pub append: bool,
    pub truncate: bool,
    /// Reads return what the chains have, after what this mount has written: no buffer and no read-ahead in between.
    pub direct: bool,
}
