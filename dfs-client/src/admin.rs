//! For the admin tools: status, routing, comparison of replicas, and where a file's chunks are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dfs_common::chain::ChainInfo;
use dfs_common::config::ClusterConfig;
use dfs_common::conflict::ConflictEntry;
use dfs_common::wire::Lane;
use dfs_common::wire::meta::{ClusterStatus, MetaDamage, MetaRequest, MetaResponse, NodeAction};
use dfs_common::wire::namespace::{Attributes, NamespaceAnswer, NamespaceRead};
use dfs_common::wire::storage::{ChunkSummary, NodeStatus, ScrubReport, StorageRequest, StorageResponse};
use dfs_common::{
    ChainId, ChunkId, ChunkIndex, ClusterId, Error, ErrorCode, InodeId, MetaId, MetaPlace, Result, RoutingTable,
    RoutingVersion, StorageId, ValidName,
};
use dfs_crypto::certificate::Credentials;
use dfs_net::Endpoint;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::client::local_address;
use crate::conflicts;
use crate::meta::{Leader, LeaderSearch};
use crate::network::Network;

/// Between two attempts to reach a node.
const RETRY: Duration = Duration::from_millis(100);

/// Chunks asked for at a time.
const PAGE: u32 = 512;

/// Chunks of one file that `locate` lists at most; a sparse file can have billions.
const MAX_PLACES: u64 = 1 << 20;

/// A connection for tools; holds no session but while it walks a path.
#[derive(Clone)]
pub struct AdminClient {
    network: Network,
    leader: Arc<Leader>,
    servers: Vec<(MetaId, SocketAddr)>,
    cluster: ClusterId,
    deadline: Duration,
    /// Nodes that did not answer until a deadline.
    silent: Arc<Mutex<BTreeSet<StorageId>>>,
}

impl std::fmt::Debug for AdminClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminClient").finish_non_exhaustive()
    }
}

/// One chunk as each compared replica has it.
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

impl AdminClient {
    /// Binds a socket; servers are contacted when they are asked something.
    pub async fn connect(config: ClusterConfig, credentials: Credentials, deadline: Duration) -> Result<Self> {
        let cluster = config.cluster_id()?;
        let listen = local_address(config.meta_addresses().map(|(_, address)| address));
        let endpoint = Endpoint::bind(&credentials, listen).await.map_err(Error::from)?;
        let network = Network::new(endpoint);
        let leader = Arc::new(Leader::new(network.clone(), LeaderSearch::new(config.meta_addresses())));
        Ok(Self {
            network,
            leader,
            servers: config.meta_addresses().collect(),
            cluster,
            deadline,
            silent: Arc::default(),
        })
    }

    pub async fn status(&self) -> Result<ClusterStatus> {
        crate::client::status(&self.leader, Instant::now() + self.deadline).await
    }

    /// Has something done about a storage node.
    ///
    /// # Errors
    /// Why it is refused, and what to do instead.
    pub async fn administer(&self, node: StorageId, action: NodeAction) -> Result<()> {
        let request = MetaRequest::Administer { node, action };
        let what = || format!("administration of storage-{node}");
        let deadline = Instant::now() + self.deadline;
        match self.leader.ask(&request, deadline, Duration::ZERO, &what).await? {
            MetaResponse::Administered => Ok(()),
            _ => Err(mismatch("metadata server")),
        }
    }

    /// Has nothing copied to members that are out of sync, or everything again.
    pub async fn pause_resyncs(&self, paused: bool) -> Result<()> {
        let request = MetaRequest::PauseResyncs(paused);
        let what = || "a pause of resyncs".to_owned();
        let deadline = Instant::now() + self.deadline;
        match self.leader.ask(&request, deadline, Duration::ZERO, &what).await? {
            MetaResponse::Administered => Ok(()),
            _ => Err(mismatch("metadata server")),
        }
    }

    /// Tells the group where a metadata server is, and with a higher issue that another machine
    /// takes its place. The latter is answered when nobody listens to the machine before any more.
    ///
    /// # Errors
    /// Why it is refused, and what to do instead.
    pub async fn move_meta(&self, server: MetaId, place: MetaPlace) -> Result<()> {
        let request = MetaRequest::MoveMeta { server, place };
        let what = || format!("moving meta-{server}");
        let deadline = Instant::now() + self.deadline;
        match self.leader.ask(&request, deadline, self.deadline, &what).await? {
            MetaResponse::Administered => Ok(()),
            _ => Err(mismatch("metadata server")),
        }
    }

    /// Every conflict that is remembered, open or settled, by file, with the files' paths.
    pub async fn conflicts(&self) -> Result<Vec<ConflictEntry>> {
        conflicts::every(&self.leader, true, self.deadline).await
    }

    /// The routing table; waits up to `wait` for one newer than `known`, `None` if there is none.
    pub async fn routing(&self, known: RoutingVersion, wait: Duration) -> Result<Option<RoutingTable>> {
        let request = MetaRequest::Routing {
            known,
            wait_ms: wait.as_millis() as u32,
        };
        let what = || "routing".to_owned();
        let deadline = Instant::now() + self.deadline + wait;
        match self.leader.ask(&request, deadline, wait, &what).await? {
            MetaResponse::Routing(table) => Ok(table),
            _ => Err(mismatch("metadata server")),
        }
    }

    pub(crate) async fn table(&self) -> Result<RoutingTable> {
        self.routing(RoutingVersion(0), Duration::ZERO).await?.ok_or_else(|| {
            Error::new(
                ErrorCode::TooFewReplicas,
                "the cluster has no routing yet; has any storage node joined?",
            )
        })
    }

    pub(crate) const fn cluster(&self) -> ClusterId {
        self.cluster
    }

    async fn storage(
        &self,
        table: &RoutingTable,
        node: StorageId,
        request: &StorageRequest,
    ) -> Result<StorageResponse> {
        let (response, _) = self.storage_data(table, node, request).await?;
        Ok(response)
    }

    /// A node that the table shows as alive is tried until the deadline: what an administrator asks may be asked twice, and one
    /// handshake that was lost, or late on a busy machine, is no verdict. Once that was in vain it is asked once each time, so
    /// that a long comparison does not wait for it at every chunk.
    pub(crate) async fn storage_data(
        &self,
        table: &RoutingTable,
        node: StorageId,
        request: &StorageRequest,
    ) -> Result<(StorageResponse, Bytes)> {
        let info = table
            .nodes
            .get(&node)
            .ok_or_else(|| Error::new(ErrorCode::NotFound, format!("storage-{node} is not in the cluster")))?;
        let deadline = Instant::now() + self.deadline;
        loop {
            let remaining = deadline.saturating_duration_since(Instant::now());
            let answer = self
                .network
                .storage((node, info.address), Lane::Control, request, &[], remaining)
                .await;
            match answer {
                Err(error) if error.code == ErrorCode::Unreachable => {
                    let again = info.alive && Instant::now() + RETRY < deadline && !self.silent.lock().contains(&node);
                    if !again {
                        self.silent.lock().insert(node);
                        // It names the node already.
                        return Err(error);
                    }
                    tokio::time::sleep(RETRY).await;
                }
                answer => {
                    self.silent.lock().remove(&node);
                    return answer.map_err(|error| error.context(format_args!("storage-{node}")));
                }
            }
        }
    }

    pub async fn node_status(&self, node: StorageId) -> Result<NodeStatus> {
        let table = self.table().await?;
        match self.storage(&table, node, &StorageRequest::NodeStatus).await? {
            StorageResponse::NodeStatus(status) => Ok(status),
            _ => Err(mismatch("storage node")),
        }
    }

    /// What each metadata server found damaged when it started; an error where it does not answer.
    pub async fn meta_damage(&self) -> Vec<(MetaId, Result<Vec<MetaDamage>>)> {
        let mut found = Vec::with_capacity(self.servers.len());
        let table = self.table().await.unwrap_or_default();
        for &(id, configured) in &self.servers {
            let server = (id, table.meta.get(&id).copied().unwrap_or(configured));
            let answer = self.network.meta(server, &MetaRequest::Damage, self.deadline).await;
            let damage = answer.and_then(|answer| match answer {
                MetaResponse::Damage(damage) => Ok(damage),
                _ => Err(mismatch("metadata server")),
            });
            found.push((server.0, damage));
        }
        found
    }

    /// What checking a node's stored data found; `start` begins a round.
    pub async fn scrub(&self, node: StorageId, start: bool) -> Result<ScrubReport> {
        let table = self.table().await?;
        match self.storage(&table, node, &StorageRequest::Scrub { start }).await? {
            StorageResponse::Scrub(report) => Ok(report),
            _ => Err(mismatch("storage node")),
        }
    }

    /// Chunks of a chain as one node has them, after `after`; `true` when there are no more.
    pub async fn list_chunks(
        &self,
        node: StorageId,
        chain: ChainId,
        after: Option<ChunkId>,
        limit: u32,
        deep: bool,
    ) -> Result<(Vec<ChunkSummary>, bool)> {
        let table = self.table().await?;
        self.page(&table, node, chain, after, limit, deep).await
    }

    async fn page(
        &self,
        table: &RoutingTable,
        node: StorageId,
        chain: ChainId,
        after: Option<ChunkId>,
        limit: u32,
        deep: bool,
    ) -> Result<(Vec<ChunkSummary>, bool)> {
        let request = StorageRequest::ListChunks {
            chain,
            after,
            limit,
            deep,
        };
        match self.storage(table, node, &request).await? {
            StorageResponse::Chunks { chunks, end } => Ok((chunks, end)),
            _ => Err(mismatch("storage node")),
        }
    }

    async fn every_chunk(
        &self,
        table: &RoutingTable,
        node: StorageId,
        chain: ChainId,
        deep: bool,
    ) -> Result<BTreeMap<ChunkId, ChunkSummary>> {
        // Hashing data takes time: small pages keep each within its deadline.
        let limit = if deep { PAGE / 16 } else { PAGE };
        let mut all = BTreeMap::new();
        let mut after = None;
        loop {
            let (chunks, end) = self.page(table, node, chain, after, limit, deep).await?;
            let last = chunks.last().map(|summary| summary.chunk);
            all.extend(chunks.into_iter().map(|summary| (summary.chunk, summary)));
            if end || last.is_none() || last <= after {
                return Ok(all);
            }
            after = last;
        }
    }

    /// Compares every chunk of a chain over its serving members, by version and digest.
    pub async fn verify_chain(&self, chain: ChainId, deep: bool) -> Result<ChainReport> {
        let table = self.table().await?;
        let info = table
            .chain(chain)
            .cloned()
            .ok_or_else(|| Error::new(ErrorCode::NotFound, format!("there is no chain {chain}")))?;
        let mut tasks = tokio::task::JoinSet::new();
        for node in info.serving() {
            let (admin, table) = (self.clone(), table.clone());
            tasks.spawn(async move { (node, admin.every_chunk(&table, node, chain, deep).await) });
        }
        let (mut have, mut unreachable) = (BTreeMap::new(), Vec::new());
        while let Some(Ok((node, outcome))) = tasks.join_next().await {
            match outcome {
                Ok(chunks) => {
                    have.insert(node, chunks);
                }
                Err(error) => unreachable.push((node, error)),
            }
        }
        let (chunks, differing) = compare(&have);
        Ok(ChainReport {
            chain: info,
            compared: have.into_keys().collect(),
            chunks,
            differing,
            unreachable,
        })
    }

    /// Walks a path from the root of the file system; components separated by `/`. Symlinks are not followed.
    pub async fn resolve(&self, path: &[u8]) -> Result<Attributes> {
        let deadline = Instant::now() + self.deadline;
        let what = || "walk of a path".to_owned();
        let open = MetaRequest::OpenSession {
            label: "admin tool".to_owned(),
        };
        let MetaResponse::SessionOpened { session, .. } =
            self.leader.ask(&open, deadline, Duration::ZERO, &what).await?
        else {
            return Err(mismatch("metadata server"));
        };
        let walk = async {
            let mut read = NamespaceRead::GetAttributes { inode: InodeId::ROOT };
            let mut names = path
                .split(|&byte| byte == b'/')
                .filter(|name| !name.is_empty() && *name != b".");
            loop {
                let request = MetaRequest::Read {
                    session,
                    reads: vec![read],
                };
                let MetaResponse::Read(mut answers) =
                    self.leader.ask(&request, deadline, Duration::ZERO, &what).await?
                else {
                    return Err(mismatch("metadata server"));
                };
                let Some(NamespaceAnswer::Attributes(attributes)) = answers.pop().transpose()? else {
                    return Err(mismatch("metadata server"));
                };
                let Some(name) = names.next() else {
                    return Ok(attributes);
                };
                read = NamespaceRead::Lookup {
                    parent: attributes.inode,
                    name: ValidName::new(name)?,
                };
            }
        };
        let outcome = walk.await;
        let close = MetaRequest::CloseSession { session };
        let _ = self.leader.ask(&close, deadline, Duration::ZERO, &what).await;
        outcome
    }

    /// Chunks of a file and the chains they live on.
    pub async fn locate(&self, attributes: &Attributes) -> Result<Vec<ChunkPlace>> {
        let file = attributes.file.as_ref().ok_or_else(|| {
            Error::new(
                ErrorCode::InvalidArgument,
                format!("inode {} is not a regular file: it has no chunks", attributes.inode),
            )
        })?;
        let table = self.table().await?;
        let chunks = attributes
            .length_bytes
            .div_ceil(u64::from(file.layout.chunk_size_bytes))
            .min(MAX_PLACES);
        let chains = table.tables.get(&file.layout.table);
        (0..chunks as u32)
            .map(|index| {
                let index = ChunkIndex(index);
                let chain = chains
                    .and_then(|chains| file.layout.chain_of(chains, index))
                    .and_then(|chain| table.chain(chain))
                    .cloned();
                chain.map(|chain| ChunkPlace { index, chain }).ok_or_else(|| {
                    Error::new(
                        ErrorCode::NotFound,
                        format!("chain table {} is not in the routing table", file.layout.table),
                    )
                })
            })
            .collect()
    }

    pub async fn close(&self) {
        self.network.close().await;
    }
}

/// Every chunk that any replica has, compared over all. Pure.
fn compare(have: &BTreeMap<StorageId, BTreeMap<ChunkId, ChunkSummary>>) -> (u64, Vec<ChunkComparison>) {
    let every: std::collections::BTreeSet<ChunkId> = have.values().flat_map(|chunks| chunks.keys().copied()).collect();
    let count = every.len() as u64;
    let differing = every
        .into_iter()
        .filter_map(|chunk| {
            let replicas: Vec<_> = have
                .iter()
                .map(|(&node, chunks)| (node, chunks.get(&chunk).cloned()))
                .collect();
            let equal = replicas.windows(2).all(|pair| pair[0].1 == pair[1].1)
                && replicas
                    .iter()
                    .all(|(_, summary)| summary.as_ref().is_some_and(|summary| summary.rotten.is_none()));
            (!equal).then_some(ChunkComparison { chunk, replicas, equal })
        })
        .collect();
    (count, differing)
}

fn mismatch(who: &str) -> Error {
    Error::new(
        ErrorCode::BadMessage,
        format!("a {who} answered with something else than was asked; are all programs of one version?"),
    )
}

#[cfg(test)]
mod tests {
    use dfs_common::{ChunkVersion, Epoch};

    use super::*;

    #[test]
    fn missing_different_and_rotten_chunks_are_found() {
        let summary = |index: u32, counter| ChunkSummary {
            chunk: ChunkId::new(InodeId(1), ChunkIndex(index)),
            version: ChunkVersion {
                epoch: Epoch(1),
                counter,
            },
            blocks: 1,
            data_size_bytes: 1,
            digest: [0; 16],
            rotten: None,
        };
        let by_chunk = |list: Vec<ChunkSummary>| list.into_iter().map(|s| (s.chunk, s)).collect::<BTreeMap<_, _>>();
        let mut rotten = summary(3, 1);
        rotten.rotten = Some(dfs_common::BlockIndex(0));
        let have = BTreeMap::from([
            (
                StorageId(1),
                by_chunk(vec![summary(0, 1), summary(1, 1), summary(3, 1)]),
            ),
            (
                StorageId(2),
                by_chunk(vec![summary(0, 1), summary(1, 2), summary(2, 1), rotten]),
            ),
        ]);
        let (count, differing) = compare(&have);
        assert_eq!(count, 4);
        assert_eq!(
            differing.iter().map(|d| d.chunk.index.0).collect::<Vec<_>>(),
            vec![1, 2, 3]
        );
    }
}
