//! Values of the rows that are about the cluster and its sessions.

use dfs_common::{ClusterId, InodeId, Layout, SequenceNumber, Timestamp};
use serde::{Deserialize, Serialize};

/// Version of all keys and values. Another one is not read: the store is rebuilt from the log.
pub const FORMAT_VERSION: u32 = 7;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FormatRow {
    pub version: u32,
    pub cluster: ClusterId,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SessionRow {
    /// For people: host and mount point.
    pub label: String,
    pub opened_at: Timestamp,
    /// Every change below has been answered, and its answer forgotten.
    pub answered_below: SequenceNumber,
}

/// An unlinked file that waits for its chunks to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Orphan {
    pub inode: InodeId,
    pub unlinked_at: Timestamp,
    /// Where its chunks are.
    pub layout: Layout,
    pub length_bytes: u64,
}
