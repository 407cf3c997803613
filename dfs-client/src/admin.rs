//! For `dfs status`, `dfs chain verify` and `dfs where`.
use dfs_common::chain::ChainInfo;
use dfs_common::config::ClusterConfig;
use dfs_common::wire::meta::ClusterStatus;
use dfs_common::wire::namespace::Attributes;
use dfs_common::wire::storage::{ChunkSummary, NodeStatus};
use dfs_common::{
    ChainId, ChunkId, ChunkIndex, ChunkVersion, Error, ErrorCode, Result, RoutingTable, RoutingVersion, StorageId,
};
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct AdminClient {}

/// One chunk as each serving replica has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkComparison {
    pub chunk: ChunkId,
    /// `None`: the replica does not have it.
    pub replicas: Vec<(StorageId, Option<ChunkSummary>)>,
    pub equal: bool,
}

/// Outcome of comparing the replicas of one chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainReport {
    pub chain: ChainInfo,
    pub compared: Vec<StorageId>,
    pub chunks: u64,
    pub differing: Vec<ChunkComparison>,
    /// Members that could not be asked, and why.
    pub unreachable: Vec<(StorageId, Error)>,
}

/// Where one chunk of a file lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkPlace {
    pub index: ChunkIndex,
    pub chain: ChainInfo,
}

#[allow(clippy::unused_async, unused_variables)]
impl AdminClient {
    pub async fn connect(config: ClusterConfig, deadline: Duration) -> Result<Self> {
        Ok(Self {})
    }
    pub async fn status(&self) -> Result<ClusterStatus> {
        soon()
    }
    /// The routing table; waits up to `wait` for one newer than `known`, `None` if there is none.
    pub async fn routing(&self, known: RoutingVersion, wait: Duration) -> Result<Option<RoutingTable>> {
        soon()
    }
    pub async fn node_status(&self, node: StorageId) -> Result<NodeStatus> {
        soon()
    }
    pub async fn list_chunks(
        &self,
        node: StorageId,
        chain: ChainId,
        after: Option<ChunkId>,
        limit: u32,
        deep: bool,
    ) -> Result<(Vec<ChunkSummary>, bool)> {
        soon()
    }
    /// Compares every chunk of a chain over its serving members.
    pub async fn verify_chain(&self, chain: ChainId, deep: bool) -> Result<ChainReport> {
        soon()
    }
    /// Walks a path from the root of the file system; components separated by `/`.
    pub async fn resolve(&self, path: &[u8]) -> Result<Attributes> {
        soon()
    }
    /// Chunks of a file and the chains they live on.
    pub async fn locate(&self, attributes: &Attributes) -> Result<Vec<ChunkPlace>> {
        soon()
    }
    pub async fn close(&self) {}
}

fn soon<T>() -> Result<T> {
    Err(Error::new(ErrorCode::NotSupported, "not wired yet"))
}
