//! A cluster in memory, spoken to over the real network crate: one metadata server and three storage nodes that share one
//! copy of the chunks. It keeps the protocol's promises that a client builds on (epochs, conditions, exactly-once, no
//! write below quorum) and can be told to misbehave.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "a module of tests: not every one uses every fault"
)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dfs_client::{Client, ClientOptions};
use dfs_common::chain::{ChainInfo, ChainMember, ChainTable, MemberState, NodeInfo, RoutingTable};
use dfs_common::config::{ClusterConfig, MetaServer};
use dfs_common::conflict::ConflictEntry;
use dfs_common::wire::meta::{ChangeAnswer, KeepAliveAnswer, MetaRequest, MetaResponse};
use dfs_common::wire::namespace::*;
use dfs_common::wire::storage::*;
use dfs_common::*;
use dfs_crypto::certificate::CertificateAuthority;
use dfs_crypto::key::RootKey;
use dfs_net::{Endpoint, Incoming, Outgoing, Service};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

const SEAL: usize = dfs_common::units::SEAL_SIZE_BYTES;
const BLOCK: usize = dfs_common::units::BLOCK_SIZE_BYTES;

#[derive(Clone)]
pub struct Block {
    version: ChunkVersion,
    seal: Vec<u8>,
    data: Vec<u8>,
}

#[derive(Clone, Default)]
pub struct Chunk {
    version: ChunkVersion,
    blocks: BTreeMap<u32, Block>,
}

#[derive(Default)]
pub struct World {
    pub chunks: HashMap<ChunkId, Chunk>,
    pub remembered: HashMap<RequestId, Result<ChunkVersion>>,
    pub inodes: BTreeMap<InodeId, Attributes>,
    pub names: BTreeMap<(InodeId, ValidName), InodeId>,
    pub next_inode: u64,
    pub answers: HashMap<(SessionId, u64), Result<NamespaceChange>>,
    pub sessions: BTreeSet<SessionId>,
    pub next_session: u64,
    pub opened: BTreeMap<SessionId, BTreeSet<InodeId>>,
    pub last_report: BTreeMap<SessionId, u64>,
    pub conflicts: BTreeMap<(InodeId, ConflictId), ConflictEntry>,
    /// Every mutation of chunks fails with this from now on.
    pub refuse: Option<Error>,
    /// That many mutations take effect and are then answered by a timeout.
    pub lose_answers: u32,
    /// Nodes that never answer.
    pub dead: BTreeSet<StorageId>,
    /// Reads of chunks are worked out and not answered as long as this is set.
    pub hold_reads: bool,
    /// The next question for conflicts is answered when the test says so.
    pub next_conflicts: Option<Arc<Gate>>,
    pub counts: Counts,
}

/// Stops a request until a test has done something.
#[derive(Default)]
pub struct Gate {
    pub reached: Notify,
    pub open: Notify,
}

#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Counts {
    pub mutations: u64,
    pub synced_mutations: u64,
    pub syncs: u64,
    pub reads: u64,
    pub commits: u64,
    pub changes: u64,
    pub repeats: u64,
    pub condition_failures: u64,
    pub stale: u64,
}

pub struct Cluster {
    pub world: Arc<Mutex<World>>,
    pub routing: Arc<watch::Sender<RoutingTable>>,
    config: ClusterConfig,
    authority: CertificateAuthority,
    stop: CancellationToken,
    clients: u64,
}

struct Meta {
    world: Arc<Mutex<World>>,
    routing: Arc<watch::Sender<RoutingTable>>,
}

struct Storage {
    me: StorageId,
    world: Arc<Mutex<World>>,
    routing: Arc<watch::Sender<RoutingTable>>,
}

fn loopback() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

pub const CHUNK_SIZE: u32 = 64 << 10;

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Cluster {
    pub async fn start() -> Self {
        let cluster = ClusterId([7; 16]);
        let authority = CertificateAuthority::generate(cluster).unwrap();
        let stop = CancellationToken::new();
        let world = Arc::new(Mutex::new(World {
            next_inode: 2,
            next_session: 1,
            ..World::default()
        }));
        let mut table = RoutingTable {
            version: RoutingVersion(1),
            default_table: Some(ChainTableId(1)),
            ..RoutingTable::default()
        };
        let routing = Arc::new(watch::Sender::new(RoutingTable::default()));
        for n in 1..=3 {
            let me = StorageId(n);
            let endpoint = Endpoint::bind(&authority.issue(me.into()).unwrap(), loopback())
                .await
                .unwrap();
            let info = NodeInfo {
                id: me,
                address: endpoint.local_address(),
                incarnation: Incarnation(1),
                store: StoreId::default(),
                alive: true,
                duty: dfs_common::Duty::Active,
            };
            table.nodes.insert(me, info);
            let service = Arc::new(Storage {
                me,
                world: Arc::clone(&world),
                routing: Arc::clone(&routing),
            });
            let stop = stop.clone();
            tokio::spawn(async move { endpoint.serve(service, stop).await });
        }
        for chain in 1..=3_u32 {
            let members = (0..3)
                .map(|i| ChainMember::new(StorageId((chain + i) % 3 + 1), MemberState::Serving))
                .collect();
            let info = ChainInfo {
                id: ChainId(chain),
                epoch: Epoch(1),
                settled: true,
                rest: dfs_common::Rest::default(),
                headed: Epoch(1),
                revived: Epoch(1),
                members,
            };
            table.chains.insert(ChainId(chain), info);
        }
        let chains = table.chains.keys().copied().collect();
        let id = ChainTableId(1);
        table.tables.insert(id, ChainTable { id, chains });
        routing.send_replace(table);
        let credentials = authority.issue(MetaId(1).into()).unwrap();
        let endpoint = Endpoint::bind(&credentials, loopback()).await.unwrap();
        let address = endpoint.local_address();
        let service = Arc::new(Meta {
            world: Arc::clone(&world),
            routing: Arc::clone(&routing),
        });
        let served = stop.clone();
        tokio::spawn(async move { endpoint.serve(service, served).await });
        let config = ClusterConfig {
            cluster: cluster.to_string(),
            credentials: "unused".into(),
            node: None,
            meta: vec![MetaServer { id: 1, address }],
        };
        tokio::time::sleep(Duration::from_millis(20)).await;
        Self {
            world,
            routing,
            config,
            authority,
            stop,
            clients: 0,
        }
    }

    pub fn options(&mut self, root: &Arc<std::path::PathBuf>) -> ClientOptions {
        self.clients += 1;
        let credentials = self.authority.issue(NodeName::new(Role::Client, self.clients)).unwrap();
        let root = load_root(root);
        ClientOptions::new(self.config.clone(), credentials, root, format!("test-{}", self.clients))
    }

    pub async fn client(&mut self, root: &Arc<std::path::PathBuf>) -> Client {
        let mut options = self.options(root);
        options.deadline = Duration::from_secs(10);
        Client::connect(options).await.unwrap()
    }

    /// A new configuration of every chain: members rotate, the epoch rises.
    pub fn bump_epochs(&self) {
        self.routing.send_modify(|table| {
            table.version = table.version.next();
            for chain in table.chains.values_mut() {
                chain.epoch = chain.epoch.next();
                chain.members.rotate_left(1);
            }
        });
    }

    /// Leaves this many members of every chain in sync.
    pub fn keep_serving(&self, keep: usize) {
        self.routing.send_modify(|table| {
            table.version = table.version.next();
            for chain in table.chains.values_mut() {
                chain.epoch = chain.epoch.next();
                for (at, member) in chain.members.iter_mut().enumerate() {
                    member.state = if at < keep {
                        MemberState::Serving
                    } else {
                        MemberState::Offline
                    };
                }
            }
        });
    }

    pub fn counts(&self) -> Counts {
        self.world.lock().counts
    }
}

fn load_root(path: &Arc<std::path::PathBuf>) -> RootKey {
    if path.exists() {
        return RootKey::load(path).unwrap();
    }
    let key = RootKey::generate().unwrap();
    key.save(path).unwrap();
    key
}

fn answer<T: serde::Serialize>(value: &T, payload: Vec<Bytes>) -> Result<Outgoing> {
    Ok(Outgoing {
        header: codec::encode(value)?,
        payload,
    })
}

impl Service for Meta {
    async fn call(&self, request: Incoming) -> Result<Outgoing> {
        let request: MetaRequest = codec::decode(&request.header)?;
        if matches!(request, MetaRequest::Conflicts { .. }) {
            let gate = self.world.lock().next_conflicts.take();
            if let Some(gate) = gate {
                gate.reached.notify_one();
                gate.open.notified().await;
            }
        }
        let response = match request {
            MetaRequest::Routing { known, wait_ms } => {
                let mut updates = self.routing.subscribe();
                let wait = Duration::from_millis(u64::from(wait_ms));
                let newer = tokio::time::timeout(wait, updates.wait_for(|table| table.version > known));
                let table = newer.await.ok().and_then(|found| found.ok().map(|table| table.clone()));
                MetaResponse::Routing(table)
            }
            other => self.world.lock().meta(other, &self.routing.borrow().clone()),
        };
        answer(&response, Vec::new())
    }
}

impl Service for Storage {
    async fn call(&self, request: Incoming) -> Result<Outgoing> {
        let header: StorageRequest = codec::decode(&request.header)?;
        if self.world.lock().dead.contains(&self.me) {
            tokio::time::sleep(Duration::from_mins(1)).await;
        }
        let (chain, epoch) = match &header {
            StorageRequest::Mutate(mutate) => (mutate.chain, mutate.epoch),
            StorageRequest::Read { chain, epoch, .. }
            | StorageRequest::Sync { chain, epoch, .. }
            | StorageRequest::RemoveRange { chain, epoch, .. }
            | StorageRequest::FileEnd { chain, epoch, .. }
            | StorageRequest::FileRuns { chain, epoch, .. } => (*chain, *epoch),
            _ => return Err(Error::from(ErrorCode::NotSupported)),
        };
        let info = self.routing.borrow().chain(chain).cloned();
        let is_read = matches!(header, StorageRequest::Read { .. });
        let refused = match &info {
            None => Some(ErrorCode::NotInChain),
            Some(info) if info.epoch != epoch => Some(ErrorCode::StaleEpoch),
            Some(info) if is_read && !info.serving().any(|node| node == self.me) => Some(ErrorCode::NotInChain),
            Some(info) if !is_read && info.head() != Some(self.me) => Some(ErrorCode::NotInChain),
            Some(info) if !is_read && info.serving().count() < 2 => Some(ErrorCode::TooFewReplicas),
            Some(_) => None,
        };
        let outcome = {
            let mut world = self.world.lock();
            if let Some(code) = refused {
                world.counts.stale += 1;
                return answer(&StorageResponse::Failed(code.into()), Vec::new());
            }
            world.storage(header, &request.payload)
        };
        while is_read && self.world.lock().hold_reads {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        match outcome {
            Ok((response, payload)) => answer(&response, payload),
            Err(error) if error.code == ErrorCode::Timeout => Err(error),
            Err(error) => answer(&StorageResponse::Failed(error), Vec::new()),
        }
    }
}

impl World {
    /// The blocks as they are now become the other version of a conflict.
    pub fn keep_aside(&mut self, conflict: &Conflict) {
        let chunk = conflict.divergence.chunk;
        let source = &self.chunks[&chunk];
        let mut kept = Chunk {
            version: source.version,
            ..Chunk::default()
        };
        for &(first, count) in &conflict.divergence.blocks {
            for (&index, block) in source.blocks.range(first.0..first.0 + count) {
                kept.blocks.insert(index, block.clone());
            }
        }
        self.chunks
            .insert(ChunkId::new(conflict.id.keeper(), chunk.index), kept);
    }

    fn settle(&mut self, inode: InodeId, id: ConflictId, how: Settlement, by: String) -> MetaResponse {
        let Some(entry) = self.conflicts.get_mut(&(inode, id)) else {
            return MetaResponse::Failed(ErrorCode::NotFound.into());
        };
        if entry.conflict.state.is_settled() {
            return MetaResponse::Failed(Error::new(ErrorCode::InvalidArgument, "it is settled already"));
        }
        let at = Timestamp::default();
        entry.conflict.state = ConflictState::Settled { at, how, by };
        self.chunks.retain(|chunk, _| chunk.inode != id.keeper());
        MetaResponse::Administered
    }

    fn storage(&mut self, request: StorageRequest, payload: &[u8]) -> Result<(StorageResponse, Vec<Bytes>)> {
        match request {
            StorageRequest::Mutate(mutate) => {
                self.counts.mutations += 1;
                self.counts.synced_mutations += u64::from(mutate.sync);
                if let Some(error) = &self.refuse {
                    return Err(error.clone());
                }
                let outcome = if let Some(known) = self.remembered.get(&mutate.id) {
                    self.counts.repeats += 1;
                    known.clone()
                } else {
                    let outcome = self.mutate(&mutate, payload);
                    self.remembered.insert(mutate.id, outcome.clone());
                    outcome
                };
                if self.lose_answers > 0 {
                    self.lose_answers -= 1;
                    return Err(ErrorCode::Timeout.into());
                }
                let version = outcome?;
                Ok((StorageResponse::Mutated { version }, Vec::new()))
            }
            StorageRequest::Read {
                chunk, first, blocks, ..
            } => {
                self.counts.reads += 1;
                let mut runs: Vec<BlockRun> = Vec::new();
                let mut parts = Vec::new();
                let empty = Chunk::default();
                let chunk = self.chunks.get(&chunk).unwrap_or(&empty);
                for (&index, block) in chunk.blocks.range(first.0..first.0 + blocks) {
                    runs.push(BlockRun {
                        first: BlockIndex(index),
                        blocks: 1,
                        last_length_bytes: block.data.len() as u32,
                        version: block.version,
                    });
                    parts.push(Bytes::from(block.seal.clone()));
                    parts.push(Bytes::from(block.data.clone()));
                }
                let version = chunk.version;
                Ok((StorageResponse::Read { version, runs }, parts))
            }
            StorageRequest::Sync { .. } => {
                self.counts.syncs += 1;
                Ok((StorageResponse::Synced, Vec::new()))
            }
            // All chains share one copy, so each answers for all.
            StorageRequest::FileEnd { inode, from, .. } => {
                let ends = self.chunks.iter().filter_map(|(id, chunk)| {
                    let (&last, block) = chunk.blocks.last_key_value()?;
                    let end = last * BLOCK as u32 + block.data.len() as u32;
                    (id.inode == inode && id.index >= from).then_some((id.index, end))
                });
                Ok((StorageResponse::FileEnd(ends.max()), Vec::new()))
            }
            StorageRequest::FileRuns {
                inode, from, wanted, ..
            } => {
                let mut all: Vec<_> = self.chunks.iter().filter(|(id, _)| id.inode == inode).collect();
                all.sort_by_key(|(id, _)| id.index);
                let blocks = all.iter().flat_map(|(id, chunk)| {
                    let blocks = chunk.blocks.keys().map(|&block| (id.index, BlockIndex(block)));
                    blocks.filter(|place| *place >= from)
                });
                let mut found = FileRuns::default();
                for (chunk, first) in blocks {
                    let run = FileRun {
                        chunk,
                        first,
                        blocks: 1,
                    };
                    if !found.add(wanted, run) {
                        break;
                    }
                }
                Ok((StorageResponse::FileRuns(found), Vec::new()))
            }
            StorageRequest::RemoveRange { inodes, from, .. } => {
                let before = self.chunks.len();
                self.chunks
                    .retain(|chunk, _| !inodes.contains(&chunk.inode) || chunk.index < from);
                let chunks = (before - self.chunks.len()) as u64;
                Ok((StorageResponse::RangeRemoved { chunks }, Vec::new()))
            }
            _ => Err(ErrorCode::NotSupported.into()),
        }
    }

    fn mutate(&mut self, mutate: &MutateRequest, payload: &[u8]) -> Result<ChunkVersion> {
        let chunk = self.chunks.entry(mutate.chunk).or_default();
        let version = chunk.version.successor(mutate.epoch);
        match &mutate.mutation {
            Mutation::Write {
                first,
                blocks,
                last_length_bytes,
                conditions,
            } => {
                for condition in conditions {
                    let found = chunk.blocks.get(&condition.block.0).map(|block| block.version);
                    if found.unwrap_or(ChunkVersion::NONE) != condition.version {
                        self.counts.condition_failures += 1;
                        return Err(ErrorCode::ConditionFailed.into());
                    }
                }
                let count = *blocks as usize;
                let size = (count - 1) * BLOCK + *last_length_bytes as usize;
                assert_eq!(payload.len(), count * SEAL + size, "payload and header disagree");
                let (seals, data) = payload.split_at(count * SEAL);
                for i in 0..count {
                    let block = Block {
                        version,
                        seal: seals[i * SEAL..(i + 1) * SEAL].to_vec(),
                        data: data[i * BLOCK..((i + 1) * BLOCK).min(size)].to_vec(),
                    };
                    chunk.blocks.insert(first.0 + i as u32, block);
                }
            }
            Mutation::Truncate { blocks } => {
                chunk.blocks.split_off(blocks);
            }
            Mutation::Remove => chunk.blocks.clear(),
        }
        chunk.version = version;
        Ok(version)
    }

    fn meta(&mut self, request: MetaRequest, table: &RoutingTable) -> MetaResponse {
        let expired = |session: SessionId| {
            MetaResponse::Failed(Error::new(
                ErrorCode::SessionExpired,
                format!("session {session} expired"),
            ))
        };
        match request {
            MetaRequest::OpenSession { .. } => {
                let session = SessionId(self.next_session);
                self.next_session += 1;
                self.sessions.insert(session);
                MetaResponse::SessionOpened {
                    session,
                    lease_ms: 60_000,
                    time: dfs_net::wall_clock(),
                }
            }
            MetaRequest::CloseSession { session } => {
                self.sessions.remove(&session);
                MetaResponse::SessionClosed
            }
            MetaRequest::KeepAlive(report) => {
                if !self.sessions.contains(&report.session) {
                    return expired(report.session);
                }
                let known = self.opened.entry(report.session).or_default();
                let last = self.last_report.insert(report.session, report.report);
                let in_order = last.is_some_and(|last| last + 1 == report.report);
                if report.all {
                    *known = report.opened.into_iter().collect();
                } else {
                    known.extend(report.opened);
                    report.closed.iter().for_each(|inode| {
                        known.remove(inode);
                    });
                }
                MetaResponse::KeepAlive(KeepAliveAnswer {
                    send_all: !report.all && !in_order,
                    routing: (table.version > report.routing).then(|| table.clone()),
                    time: dfs_net::wall_clock(),
                })
            }
            MetaRequest::Change(change) => {
                if !self.sessions.contains(&change.session) {
                    return expired(change.session);
                }
                self.counts.changes += 1;
                assert!(change.answered_below <= change.sequence);
                let key = (change.session, change.sequence.0);
                let known = self.answers.get(&key).cloned();
                let outcome = known.unwrap_or_else(|| self.change(change.op));
                self.answers.insert(key, outcome.clone());
                MetaResponse::Change(ChangeAnswer {
                    outcome,
                    parents: Vec::new(),
                })
            }
            MetaRequest::Read { session, reads } => {
                if !self.sessions.contains(&session) {
                    return expired(session);
                }
                MetaResponse::Read(reads.into_iter().map(|read| self.read(read)).collect())
            }
            MetaRequest::Conflicts { after, limit, paths } => {
                let later = self
                    .conflicts
                    .iter()
                    .filter(|(key, _)| after.is_none_or(|after| **key > after));
                let found: Vec<_> = later
                    .map(|(_, entry)| ConflictEntry {
                        path: entry.path.clone().filter(|_| paths),
                        ..entry.clone()
                    })
                    .collect();
                let conflicts: Vec<_> = found.iter().take(limit as usize).cloned().collect();
                let end = conflicts.len() == found.len();
                MetaResponse::Conflicts { conflicts, end }
            }
            MetaRequest::SettleConflict {
                inode,
                conflict,
                how,
                by,
            } => self.settle(inode, conflict, how, by),
            _ => MetaResponse::Failed(ErrorCode::NotSupported.into()),
        }
    }

    fn change(&mut self, op: NamespaceOp) -> Result<NamespaceChange> {
        match op {
            NamespaceOp::Create {
                parent,
                name,
                mode,
                exclusive,
                key,
            } => {
                if let Some(inode) = self.names.get(&(parent, name.clone())) {
                    if exclusive {
                        return Err(ErrorCode::Exists.into());
                    }
                    let attributes = self.inodes[inode].clone();
                    return Ok(NamespaceChange::Entry {
                        attributes,
                        created: false,
                        held: false,
                    });
                }
                let inode = InodeId(self.next_inode);
                self.next_inode += 1;
                let zero = Timestamp::default();
                let layout = Layout {
                    chunk_size_bytes: CHUNK_SIZE,
                    table: ChainTableId(1),
                    seed: inode.0 as u32,
                };
                let attributes = Attributes {
                    inode,
                    kind: FileKind::Regular,
                    mode,
                    nlink: 1,
                    uid: 0,
                    gid: 0,
                    rdev: 0,
                    length_bytes: 0,
                    atime: zero,
                    mtime: zero,
                    ctime: zero,
                    crtime: zero,
                    change: 1,
                    file: Some(FileAttributes {
                        layout,
                        key,
                        versions: VersionVector::default(),
                        cut: CutEpoch::NONE,
                        cuts: LastCuts::default(),
                        sparse: false,
                    }),
                    policy: Policy::default(),
                };
                self.inodes.insert(inode, attributes.clone());
                self.names.insert((parent, name), inode);
                Ok(NamespaceChange::Entry {
                    attributes,
                    created: true,
                    held: false,
                })
            }
            NamespaceOp::Unlink { parent, name } => {
                let inode = self.names.remove(&(parent, name)).ok_or(ErrorCode::NotFound)?;
                Ok(NamespaceChange::Removed { inode, nlink: 0 })
            }
            // As far as it is used here: to a name that must not be there.
            NamespaceOp::Rename {
                parent,
                name,
                new_parent,
                new_name,
                mode: RenameMode::NoReplace,
            } => {
                if self.names.contains_key(&(new_parent, new_name.clone())) {
                    return Err(ErrorCode::Exists.into());
                }
                let inode = self.names.remove(&(parent, name)).ok_or(ErrorCode::NotFound)?;
                self.names.insert((new_parent, new_name), inode);
                Ok(NamespaceChange::Renamed { replaced: None })
            }
            NamespaceOp::CommitWrite { inode, commit } => {
                self.counts.commits += 1;
                self.edit(inode, |attributes| apply_commit(attributes, commit))
            }
            NamespaceOp::SetAttributes { inode, set, commit } => self.edit(inode, |attributes| {
                if let Some(commit) = commit {
                    apply_commit(attributes, commit);
                }
                attributes.mode = set.mode.unwrap_or(attributes.mode);
                attributes.uid = set.uid.unwrap_or(attributes.uid);
                attributes.gid = set.gid.unwrap_or(attributes.gid);
                if let Some(SetTime::To(time)) = set.mtime {
                    attributes.mtime = time;
                }
            }),
            NamespaceOp::SetLength {
                inode,
                length_bytes,
                mtime,
                cut,
            } => {
                let present = cut_of(self.inodes.get(&inode).ok_or(ErrorCode::StaleInode)?);
                if cut.is_some_and(|cut| cut != present) {
                    return Err(ErrorCode::StaleCut.into());
                }
                self.edit(inode, |attributes| {
                    attributes.length_bytes = length_bytes;
                    attributes.mtime = mtime.unwrap_or(attributes.mtime);
                    if let Some(file) = &mut attributes.file {
                        file.cut = file.cut.end();
                    }
                })
            }
            NamespaceOp::BeginCut {
                inode,
                length_bytes,
                mtime,
                only_in,
            } => {
                let attributes = self.inodes.get(&inode).ok_or(ErrorCode::StaleInode)?;
                let before_bytes = attributes.length_bytes;
                if only_in.is_some_and(|only_in| only_in != cut_of(attributes)) {
                    return Err(ErrorCode::StaleCut.into());
                }
                if length_bytes > before_bytes && length_bytes != u64::MAX {
                    return Err(ErrorCode::StaleCut.into());
                }
                let change = self.edit(inode, |attributes| {
                    if length_bytes < attributes.length_bytes {
                        attributes.length_bytes = length_bytes;
                        attributes.mtime = mtime.unwrap_or(attributes.mtime);
                    }
                    if let Some(file) = &mut attributes.file {
                        file.cut = file.cut.begin();
                        let left_bytes = length_bytes.min(before_bytes);
                        file.cuts.note(file.cut, left_bytes, length_bytes != u64::MAX);
                    }
                })?;
                let NamespaceChange::Entry { attributes, .. } = change else {
                    return Ok(change);
                };
                Ok(NamespaceChange::CutBegun {
                    attributes,
                    before_bytes,
                })
            }
            _ => Err(ErrorCode::NotSupported.into()),
        }
    }

    fn edit(&mut self, inode: InodeId, edit: impl FnOnce(&mut Attributes)) -> Result<NamespaceChange> {
        let attributes = self.inodes.get_mut(&inode).ok_or(ErrorCode::StaleInode)?;
        edit(attributes);
        attributes.change += 1;
        Ok(NamespaceChange::Entry {
            attributes: attributes.clone(),
            created: false,
            held: false,
        })
    }

    fn read(&mut self, read: NamespaceRead) -> Result<NamespaceAnswer> {
        let inode = match read {
            NamespaceRead::GetAttributes { inode } => inode,
            NamespaceRead::Lookup { parent, name } => *self.names.get(&(parent, name)).ok_or(ErrorCode::NotFound)?,
            _ => return Err(ErrorCode::NotSupported.into()),
        };
        let attributes = self.inodes.get(&inode).ok_or(ErrorCode::StaleInode)?;
        Ok(NamespaceAnswer::Attributes(attributes.clone()))
    }
}

fn cut_of(attributes: &Attributes) -> CutEpoch {
    attributes.file.as_ref().map_or(CutEpoch::NONE, |file| file.cut)
}

fn apply_commit(attributes: &mut Attributes, commit: WriteCommit) {
    if let Some(end) = commit.extend_to_bytes {
        attributes.length_bytes = attributes.length_bytes.max(end);
    }
    if let Some(mtime) = commit.mtime {
        attributes.mtime = mtime;
    }
}
