//! Messages between metadata servers.

use std::time::Duration;

use async_trait::async_trait;
use dfs_common::MetaId;

/// Carries an opaque message to another server's [`super::Consensus::handle`] and its answer back. Must not hang beyond
/// the deadline; dropping the future cancels.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    async fn send(&self, to: MetaId, kind: u8, body: Vec<u8>, deadline: Duration) -> dfs_common::Result<Vec<u8>>;
}
