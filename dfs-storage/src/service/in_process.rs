//! Three real storage servers over QUIC in one process, under a metadata service that is played by the test.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_common::config::{ClusterConfig, MetaServer};
use dfs_common::units::{BLOCK_SIZE_BYTES, SEAL_SIZE_BYTES};
use dfs_common::wire::Lane;
use dfs_common::wire::meta::{HeartbeatAnswer, LiveSessions, MetaRequest, MetaResponse};
use dfs_common::wire::storage::{
    BlockCondition, ChunkSummary, MutateRequest, Mutation, StorageRequest, StorageResponse,
};
use dfs_common::{
    BlockIndex, ChainId, ChainInfo, ChainMember, ChunkId, ChunkIndex, ChunkVersion, ClusterId, CutEpoch, Epoch, Error,
    ErrorCode, InodeId, Level, MemberState, NodeInfo, NodeName, RequestId, Rest, Result, RetryClass, Role,
    RoutingTable, SequenceNumber, SessionId, StorageId, codec,
};
use dfs_crypto::certificate::CertificateAuthority;
use dfs_net::{Endpoint, Incoming, Outgoing, Peer, Service};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Ended, StorageOptions, StorageServer};

const CHAIN: ChainId = ChainId(1);

/// Registers who comes, and lets the test say who is what.
struct FakeMeta {
    table: watch::Sender<RoutingTable>,
    states: Mutex<BTreeMap<StorageId, MemberState>>,
    sessions: Mutex<LiveSessions>,
    /// The list that each node said last that it has.
    marks: Mutex<BTreeMap<StorageId, u64>>,
}

impl FakeMeta {
    fn change(&self, change: impl FnOnce(&mut RoutingTable, &mut BTreeMap<StorageId, MemberState>)) {
        let mut states = self.states.lock();
        self.table.send_modify(|table| {
            change(table, &mut states);
            // As the real one orders them: whoever comes back stays behind those who served without it. Were it to become
            // their head, what they had not settled yet and what it begins would be two histories.
            let mut members = table.chain(CHAIN).map_or_else(Vec::new, |chain| chain.members.clone());
            for (&node, &state) in states.iter() {
                match members.iter_mut().find(|member| member.node == node) {
                    Some(member) => member.state = state,
                    None => members.push(ChainMember::new(node, state)),
                }
            }
            members.sort_by_key(|member| match member.state {
                MemberState::Serving => 0,
                MemberState::Syncing => 1,
                _ => 2,
            });
            table.version = table.version.next();
            let before = table.chain(CHAIN);
            let epoch = before.map_or(Epoch(0), |chain| chain.epoch).next();
            let complete: Vec<_> = before.map_or_else(Vec::new, |chain| chain.complete().collect());
            table.chains.insert(
                CHAIN,
                ChainInfo {
                    id: CHAIN,
                    epoch,
                    rest: Rest::default(),
                    settled: members
                        .iter()
                        .filter(|member| member.state == MemberState::Serving)
                        .nth(1)
                        .is_none_or(|second| complete.contains(&second.node)),
                    headed: Epoch(1),
                    revived: Epoch(1),
                    members,
                },
            );
        });
    }

    fn set(&self, node: u32, state: MemberState) {
        self.change(|_, states| {
            states.insert(StorageId(node), state);
        });
    }

    fn state(&self, node: u32) -> Option<MemberState> {
        self.states.lock().get(&StorageId(node)).copied()
    }
}

impl Service for FakeMeta {
    async fn call(&self, request: Incoming) -> Result<Outgoing> {
        let response = match codec::decode(&request.header)? {
            MetaRequest::Heartbeat(beat) => {
                let known = self
                    .table
                    .borrow()
                    .nodes
                    .get(&beat.node)
                    .is_some_and(|info| info.incarnation == beat.incarnation);
                if !known {
                    self.change(|table, states| {
                        let info = NodeInfo {
                            id: beat.node,
                            address: beat.address,
                            incarnation: beat.incarnation,
                            store: beat.store,
                            alive: true,
                            duty: dfs_common::Duty::Active,
                        };
                        // The first time it is a founder, later it has to be brought up to date.
                        let state = if table.nodes.insert(beat.node, info).is_none() {
                            MemberState::Serving
                        } else {
                            MemberState::Syncing
                        };
                        states.insert(beat.node, state);
                    });
                }
                let chain = self.table.borrow().chain(CHAIN).cloned();
                if chain.is_some_and(|chain| !chain.settled && beat.settled.contains(&(CHAIN, chain.epoch))) {
                    self.table.send_modify(|table| {
                        table.version = table.version.next();
                        if let Some(chain) = table.chains.get_mut(&CHAIN) {
                            chain.settled = true;
                        }
                    });
                }
                let sessions = self.sessions.lock().clone();
                self.marks.lock().insert(beat.node, beat.sessions);
                MetaResponse::Heartbeat(HeartbeatAnswer {
                    sessions: (sessions.mark() != beat.sessions).then_some(sessions),
                    lease: true,
                    stand_aside: false,
                    routing: None,
                    retire: Vec::new(),
                    full: BTreeSet::new(),
                })
            }
            MetaRequest::Routing { known, wait_ms } => {
                let mut table = self.table.subscribe();
                let wait = Duration::from_millis(u64::from(wait_ms));
                let newer = tokio::time::timeout(wait, table.wait_for(|table| table.version > known)).await;
                MetaResponse::Routing(newer.ok().and_then(|table| table.ok().map(|table| table.clone())))
            }
            MetaRequest::ResyncDone { chain, epoch, node } => {
                let current = self.table.borrow().chain(chain).map(|chain| chain.epoch);
                if current == Some(epoch) {
                    self.set(node.0, MemberState::Serving);
                }
                MetaResponse::ResyncDone
            }
            other => return Err(Error::new(ErrorCode::NotSupported, format!("{other:?}"))),
        };
        Ok(Outgoing {
            header: codec::encode(&response)?,
            payload: Vec::new(),
        })
    }
}

struct Cluster {
    directory: tempfile::TempDir,
    config: ClusterConfig,
    meta: Arc<FakeMeta>,
    client: Endpoint,
    peers: Mutex<BTreeMap<StorageId, Peer>>,
    servers: BTreeMap<u32, (CancellationToken, tokio::task::JoinHandle<Result<Ended>>)>,
    nodes: BTreeMap<u32, std::sync::Weak<super::node::Node>>,
    meta_endpoint: Endpoint,
}

fn localhost() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

fn credentials(ca: &CertificateAuthority, at: &Path, role: Role, number: u64) -> PathBuf {
    let name = NodeName::new(role, number);
    let path = at.join(name.to_string());
    ca.issue(name).unwrap().save(&path).unwrap();
    path
}

impl Cluster {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let cluster = ClusterId([9; 16]);
        let ca = CertificateAuthority::generate(cluster).unwrap();
        let load = |path: PathBuf| dfs_crypto::certificate::Credentials::load(&path).unwrap();
        let at = directory.path();
        let meta_endpoint = Endpoint::bind(&load(credentials(&ca, at, Role::Meta, 1)), localhost())
            .await
            .unwrap();
        let meta = Arc::new(FakeMeta {
            table: watch::Sender::new(RoutingTable::default()),
            states: Mutex::new(BTreeMap::new()),
            sessions: Mutex::default(),
            marks: Mutex::default(),
        });
        tokio::spawn({
            let (endpoint, meta) = (meta_endpoint.clone(), Arc::clone(&meta));
            async move { endpoint.serve(meta, CancellationToken::new()).await }
        });
        let client = Endpoint::client(&load(credentials(&ca, at, Role::Client, 1)))
            .await
            .unwrap();
        for node in 1..=3 {
            credentials(&ca, at, Role::Storage, node);
        }
        let config = ClusterConfig {
            cluster: cluster.to_string(),
            credentials: at.to_path_buf(),
            node: None,
            meta: vec![MetaServer {
                id: 1,
                address: meta_endpoint.local_address(),
            }],
        };
        let mut cluster = Self {
            directory,
            config,
            meta,
            client,
            peers: Mutex::new(BTreeMap::new()),
            servers: BTreeMap::new(),
            nodes: BTreeMap::new(),
            meta_endpoint,
        };
        for node in 1..=3 {
            cluster.start_node(node).await;
            cluster
                .until(|meta| meta.state(node) == Some(MemberState::Serving))
                .await;
        }
        cluster
    }

    async fn start_node(&mut self, node: u32) {
        let at = self.directory.path();
        let server = StorageServer::start(
            StorageOptions {
                config: self.config.clone(),
                credentials: at.join(format!("storage-{node}")),
                data: at.join(format!("data-{node}")),
                listen: localhost(),
                advertise: None,
                capacity_bytes: Some(1 << 30),
                condemned: None,
                ends_on_fault: false,
                scrub_bytes_per_s: None,
            },
            &CancellationToken::new(),
        )
        .await
        .unwrap();
        self.nodes.insert(node, Arc::downgrade(&server.running.node));
        let stop = CancellationToken::new();
        let run = tokio::spawn(server.run_until(stop.clone()));
        self.servers.insert(node, (stop, run));
    }

    /// The tasks of a killed server end as if it had been cut off, without a last word to anybody.
    async fn stop_node(&mut self, node: u32) {
        let (stop, run) = self.servers.remove(&node).unwrap();
        stop.cancel();
        run.await.unwrap().unwrap();
    }

    async fn until(&self, done: impl Fn(&FakeMeta) -> bool) {
        let start = Instant::now();
        while !done(&self.meta) {
            assert!(
                start.elapsed() < Duration::from_secs(20),
                "{:?}",
                self.meta.states.lock()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn chain(&self) -> ChainInfo {
        self.meta.table.borrow().chain(CHAIN).unwrap().clone()
    }

    async fn call(
        &self,
        to: StorageId,
        request: &StorageRequest,
        payload: &[Bytes],
    ) -> Result<(StorageResponse, Bytes)> {
        let address = self.meta.table.borrow().address(to).unwrap();
        let peer = {
            let mut peers = self.peers.lock();
            match peers.get(&to) {
                Some(peer) if peer.address() == address => peer.clone(),
                _ => {
                    let peer = self.client.peer(to.into(), address);
                    peers.insert(to, peer.clone());
                    peer
                }
            }
        };
        peer.call(Lane::Bulk, request, payload, Duration::from_secs(2))
            .await
            .map_err(Error::from)
    }

    /// As a client does it: with the same request until it is answered for good.
    async fn mutate(
        &self,
        sequence: u64,
        chunk: ChunkId,
        mutation: Mutation,
        value: u8,
        sync: bool,
    ) -> Result<ChunkVersion> {
        let payload = match &mutation {
            Mutation::Write { blocks, .. } => {
                Bytes::from(vec![value; *blocks as usize * (SEAL_SIZE_BYTES + BLOCK_SIZE_BYTES)])
            }
            _ => Bytes::new(),
        };
        let start = Instant::now();
        loop {
            let chain = self.chain();
            let request = StorageRequest::Mutate(MutateRequest {
                chain: CHAIN,
                epoch: chain.epoch,
                chunk,
                id: RequestId {
                    session: SessionId(1),
                    channel: 0,
                    sequence: SequenceNumber(sequence),
                },
                level: Level::Quorum,
                sync,
                uncut_since: None,
                cut: dfs_common::CutEpoch::NONE,
                mutation: mutation.clone(),
            });
            match self
                .call(chain.head().unwrap(), &request, std::slice::from_ref(&payload))
                .await
            {
                Ok((StorageResponse::Mutated { version }, _)) => return Ok(version),
                Ok(other) => panic!("{other:?}"),
                Err(error) if error.code == ErrorCode::ConditionFailed => return Err(error),
                Err(error) => assert!(start.elapsed() < Duration::from_secs(15), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// At ONE, once the member has this version.
    async fn read(&self, from: StorageId, chunk: ChunkId, not_before: ChunkVersion) -> (ChunkVersion, Bytes) {
        let start = Instant::now();
        let request = StorageRequest::Read {
            chain: CHAIN,
            epoch: self.chain().epoch,
            chunk,
            first: BlockIndex(0),
            blocks: 8,
            level: Level::One,
            not_before,
            session: dfs_common::SessionId::SYSTEM,
        };
        loop {
            match self.call(from, &request, &[]).await {
                Ok((StorageResponse::Read { version, .. }, payload)) => return (version, payload),
                Err(error) if error.code == ErrorCode::Behind && start.elapsed() < Duration::from_secs(1) => {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Flips one bit of the `nth` block that is full of `value` in a node's log.
    fn rot(&self, node: u32, value: u8, nth: usize) {
        use std::os::unix::fs::FileExt;
        let at = self
            .directory
            .path()
            .join(format!("data-{node}/chunks/segment-00000000"));
        let bytes = std::fs::read(&at).unwrap();
        let mut from = 0;
        for _ in 0..=nth {
            let here = (from..bytes.len() - BLOCK_SIZE_BYTES)
                .find(|&at| bytes[at..at + BLOCK_SIZE_BYTES].iter().all(|&b| b == value));
            from = here.expect("a block of that value") + BLOCK_SIZE_BYTES;
        }
        let file = std::fs::OpenOptions::new().write(true).open(&at).unwrap();
        file.write_all_at(&[value ^ 4], from as u64 - 100).unwrap();
    }

    async fn try_read(&self, from: u32, chunk: ChunkId) -> Result<(StorageResponse, Bytes)> {
        let request = StorageRequest::Read {
            chain: CHAIN,
            epoch: self.chain().epoch,
            chunk,
            first: BlockIndex(0),
            blocks: 8,
            level: Level::One,
            not_before: ChunkVersion::NONE,
            session: dfs_common::SessionId::SYSTEM,
        };
        self.call(StorageId(from), &request, &[]).await
    }

    /// Reads until it works; what must never come is something else than what was written.
    async fn until_mended(&self, node: u32, chunk: ChunkId, value: u8) {
        let start = Instant::now();
        loop {
            match self.try_read(node, chunk).await {
                Ok((_, payload)) => {
                    assert!(payload.iter().all(|&byte| byte == value));
                    return;
                }
                Err(error) => assert_eq!(error.code, ErrorCode::Corrupt, "{error}"),
            }
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "storage-{node} is not mended"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn chunks(&self, of: u32) -> Vec<ChunkSummary> {
        let request = StorageRequest::ListChunks {
            chain: CHAIN,
            after: None,
            limit: 1000,
            deep: true,
        };
        match self.call(StorageId(of), &request, &[]).await.unwrap() {
            (StorageResponse::Chunks { chunks, .. }, _) => chunks,
            other => panic!("{other:?}"),
        }
    }
}

fn write(first: u32, blocks: u32, conditions: Vec<BlockCondition>) -> Mutation {
    Mutation::Write {
        first: BlockIndex(first),
        blocks,
        last_length_bytes: BLOCK_SIZE_BYTES as u32,
        conditions,
    }
}

fn chunk(inode: u64) -> ChunkId {
    ChunkId::new(InodeId(inode), ChunkIndex(0))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_chain_loses_a_member_and_gets_it_back() {
    let mut cluster = Cluster::start().await;

    // Written, read everywhere, exactly once, and on a condition.
    let first = cluster.mutate(1, chunk(1), write(0, 2, vec![]), 1, true).await.unwrap();
    assert_eq!(
        cluster.mutate(1, chunk(1), write(0, 2, vec![]), 1, true).await.unwrap(),
        first
    );
    let condition = |version| {
        vec![BlockCondition {
            block: BlockIndex(1),
            version,
        }]
    };
    let second = cluster
        .mutate(2, chunk(1), write(1, 1, condition(first)), 2, false)
        .await
        .unwrap();
    let error = cluster
        .mutate(3, chunk(1), write(1, 1, condition(first)), 3, false)
        .await
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::ConditionFailed);
    for node in 1..=3 {
        let (version, data) = cluster.read(StorageId(node), chunk(1), second).await;
        assert_eq!(version, second);
        assert_eq!(data.len(), 2 * (SEAL_SIZE_BYTES + BLOCK_SIZE_BYTES));
        assert_eq!((data[0], data[data.len() - 1]), (1, 2));
    }
    let start = Instant::now();
    let rounds: u32 = 200;
    for n in 0..u64::from(rounds) {
        cluster
            .mutate(1_000 + n, chunk(7), write(0, 1, vec![]), 1, false)
            .await
            .unwrap();
    }
    println!("4 KiB through three members: {:?} each", start.elapsed() / rounds);
    let start = Instant::now();
    for n in 0..u64::from(rounds) {
        cluster
            .mutate(2_000 + n, chunk(7), write(0, 1, vec![]), 1, true)
            .await
            .unwrap();
    }
    println!("the same, durable: {:?} each", start.elapsed() / rounds);

    // One goes; the others go on, with all that it had to forget.
    for (inode, node) in [(2, 3), (3, 1)] {
        cluster
            .mutate(10 + inode, chunk(inode), write(0, 8, vec![]), 5, false)
            .await
            .unwrap();
        cluster.stop_node(node).await;
        cluster.meta.set(node, MemberState::Offline);
        cluster
            .mutate(20 + inode, chunk(inode), write(3, 2, vec![]), 6, true)
            .await
            .unwrap();
        cluster
            .mutate(30 + inode, chunk(inode), Mutation::Truncate { blocks: 5 }, 0, false)
            .await
            .unwrap();
        cluster
            .mutate(40 + inode, chunk(1), Mutation::Remove, 0, false)
            .await
            .unwrap();
        for n in 0..40 {
            let id = 100 * inode + n;
            cluster
                .mutate(id, chunk(100 + n), write(0, 8, vec![]), n as u8, false)
                .await
                .unwrap();
        }
        // Back, while writing goes on.
        cluster.start_node(node).await;
        let mut n = 0;
        while cluster.meta.state(node) != Some(MemberState::Serving) || n < 20 {
            let id = 10_000 * inode + n;
            cluster
                .mutate(id, chunk(100 + n % 50), write((n % 7) as u32, 1, vec![]), 9, n % 5 == 0)
                .await
                .unwrap();
            n += 1;
            assert!(n < 20_000, "never in sync");
        }
        let expected = cluster.chunks(2).await;
        assert!(expected.len() > 40);
        for other in [1, 3] {
            assert_eq!(cluster.chunks(other).await, expected, "storage-{other} differs");
        }
    }
    for node in 1..=3 {
        cluster.stop_node(node).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_write_ends_the_pauses_of_a_copy_that_holds_its_chunk() {
    let mut cluster = Cluster::start().await;
    cluster.stop_node(3).await;
    cluster.meta.set(3, MemberState::Offline);
    for n in 0..4_u32 {
        cluster
            .mutate(10 + u64::from(n), chunk(1), write(n * 254, 254, vec![]), 1, true)
            .await
            .unwrap();
    }
    let sender = cluster.nodes[&2].upgrade().unwrap();
    sender.budget.lock().starve();
    cluster.start_node(3).await;
    let start = Instant::now();
    while !sender.budget.lock().is_under_way() {
        assert!(start.elapsed() < Duration::from_secs(20), "no copy is begun");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(sender.budget.lock().is_under_way(), "nobody wants the chunk");
    assert_eq!(cluster.meta.state(3), Some(MemberState::Syncing));
    let start = Instant::now();
    let version = cluster
        .mutate(20, chunk(1), write(1, 1, vec![]), 2, false)
        .await
        .unwrap();
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    cluster.until(|meta| meta.state(3) == Some(MemberState::Serving)).await;
    let (_, data) = cluster.read(StorageId(3), chunk(1), version).await;
    assert_eq!((data[0], data[data.len() - 1]), (1, 1), "the copy has what was there");
    assert!(data.contains(&2), "and what came");
    drop(sender);
    for node in 1..=3 {
        cluster.stop_node(node).await;
    }
}

/// A hole has no version, so a condition on it can not tell whether it was cut meanwhile; the chunk's last cut does.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_write_may_depend_on_nothing_having_been_cut() {
    let cluster = Cluster::start().await;
    cluster.mutate(1, chunk(1), write(0, 1, vec![]), 1, true).await.unwrap();
    let conditional = async |uncut_since, sequence| {
        let request = StorageRequest::Mutate(MutateRequest {
            chain: CHAIN,
            epoch: cluster.chain().epoch,
            chunk: chunk(1),
            id: RequestId {
                session: SessionId(2),
                channel: 0,
                sequence: SequenceNumber(sequence),
            },
            level: Level::Quorum,
            sync: false,
            uncut_since: Some(uncut_since),
            cut: dfs_common::CutEpoch::NONE,
            mutation: write(
                5,
                1,
                vec![BlockCondition {
                    block: BlockIndex(5),
                    version: ChunkVersion::NONE,
                }],
            ),
        });
        let payload = Bytes::from(vec![7; SEAL_SIZE_BYTES + BLOCK_SIZE_BYTES]);
        let head = cluster.chain().head().unwrap();
        cluster.call(head, &request, std::slice::from_ref(&payload)).await
    };
    let cut = cluster
        .mutate(2, chunk(1), Mutation::Truncate { blocks: 1 }, 0, false)
        .await
        .unwrap();
    let refused = conditional(ChunkVersion::NONE, 1).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::ConditionFailed);
    let _ = conditional(cut, 2).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rot_of_any_member_is_mended_from_the_others() {
    let mut cluster = Cluster::start().await;
    for inode in 1..=4 {
        let value = 0x70 + inode as u8;
        cluster
            .mutate(inode, chunk(inode), write(0, 4, vec![]), value, true)
            .await
            .unwrap();
    }
    // Each member alone, with writes going on beside.
    for node in 1..=3 {
        let value = 0x70 + node as u8;
        let of = chunk(u64::from(node));
        cluster.rot(node, value, 1);
        let error = cluster.try_read(node, of).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Corrupt);
        cluster.until_mended(node, of, value).await;
    }
    // All three, in different blocks of one chunk.
    for node in 1..=3 {
        cluster.rot(node, 0x74, node as usize - 1);
    }
    for node in 1..=3 {
        cluster.until_mended(node, chunk(4), 0x74).await;
    }
    // The source of a resync: nobody else is left but the one that comes back and has what the source lacks.
    cluster.stop_node(2).await;
    cluster.meta.set(2, MemberState::Offline);
    cluster
        .mutate(50, chunk(5), write(0, 4, vec![]), 0x75, true)
        .await
        .unwrap();
    cluster.stop_node(3).await;
    cluster.meta.set(3, MemberState::Offline);
    cluster.rot(1, 0x71, 2);
    cluster.rot(1, 0x73, 0);
    cluster.rot(3, 0x73, 1);
    for node in [3, 2] {
        cluster.start_node(node).await;
        cluster
            .until(|meta| meta.state(node) == Some(MemberState::Serving))
            .await;
    }
    for (inode, value) in [(1, 0x71), (2, 0x72), (3, 0x73), (4, 0x74), (5, 0x75)] {
        for node in 1..=3 {
            cluster.until_mended(node, chunk(inode), value).await;
        }
    }
    for node in 1..=3 {
        assert!(cluster.chunks(node).await.iter().all(|chunk| chunk.rotten.is_none()));
        cluster.stop_node(node).await;
    }
}

fn write_at(chain: &ChainInfo, chunk: ChunkId, session: u64, sequence: u64, cut: CutEpoch) -> (StorageRequest, Bytes) {
    let request = StorageRequest::Mutate(MutateRequest {
        chain: CHAIN,
        epoch: chain.epoch,
        chunk,
        id: RequestId {
            session: SessionId(session),
            channel: 0,
            sequence: SequenceNumber(sequence),
        },
        level: Level::All,
        sync: false,
        uncut_since: None,
        cut,
        mutation: write(0, 1, Vec::new()),
    });
    (request, Bytes::from(vec![7; SEAL_SIZE_BYTES + BLOCK_SIZE_BYTES]))
}

fn remove_range(chain: &ChainInfo, chunk: ChunkId, session: SessionId, cut: CutEpoch) -> StorageRequest {
    StorageRequest::RemoveRange {
        chain: CHAIN,
        epoch: chain.epoch,
        inodes: vec![chunk.inode],
        from: ChunkIndex(0),
        cut,
        session,
    }
}

fn read_at(chain: &ChainInfo, chunk: ChunkId, level: Level, session: u64) -> StorageRequest {
    StorageRequest::Read {
        chain: CHAIN,
        epoch: chain.epoch,
        chunk,
        first: BlockIndex(0),
        blocks: 8,
        level,
        not_before: ChunkVersion::NONE,
        session: SessionId(session),
    }
}

impl Cluster {
    /// The answer for good, as a client waits for it: on a busy machine a lease may be over for a moment.
    async fn ask(&self, to: StorageId, request: &StorageRequest, payload: &[Bytes]) -> Result<StorageResponse> {
        let start = Instant::now();
        loop {
            match self.call(to, request, payload).await {
                Ok((StorageResponse::Failed(error), _)) | Err(error)
                    if error.retry_class() != RetryClass::Fatal && start.elapsed() < Duration::from_secs(15) =>
                {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Ok((StorageResponse::Failed(error), _)) | Err(error) => return Err(error),
                Ok((response, _)) => return Ok(response),
            }
        }
    }

    async fn refusal(&self, to: StorageId, request: &StorageRequest, payload: &[Bytes]) -> Option<ErrorCode> {
        self.ask(to, request, payload).await.err().map(|error| error.code)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evicted_session_is_refused() {
    let cluster = Cluster::start().await;
    let chunk = ChunkId::new(InodeId(9), ChunkIndex(0));
    let chain = cluster.chain();
    let head = chain.head().unwrap();
    for session in [1, 2] {
        let (request, payload) = write_at(&chain, chunk, session, 1, CutEpoch::NONE);
        assert_eq!(cluster.refusal(head, &request, &[payload]).await, None);
    }
    let list = LiveSessions {
        next: SessionId(3),
        live: [SessionId(2)].into(),
    };
    *cluster.meta.sessions.lock() = list.clone();
    // Once every node has said that it knows.
    cluster
        .until(|meta| meta.marks.lock().values().filter(|&&mark| mark == list.mark()).count() == 3)
        .await;
    let (again, payload) = write_at(&chain, chunk, 1, 1, CutEpoch::NONE);
    let (late, _) = write_at(&chain, chunk, 1, 2, CutEpoch::NONE);
    let sync = |session| StorageRequest::Sync {
        chain: CHAIN,
        epoch: chain.epoch,
        level: Level::Quorum,
        since: chain.epoch,
        written: Level::Quorum,
        session: SessionId(session),
    };
    let expired = Some(ErrorCode::SessionExpired);
    for request in [again, late] {
        assert_eq!(
            cluster.refusal(head, &request, std::slice::from_ref(&payload)).await,
            expired
        );
    }
    assert_eq!(cluster.refusal(head, &sync(1), &[]).await, expired);
    let remove = remove_range(&chain, chunk, SessionId(1), CutEpoch(1));
    assert_eq!(cluster.refusal(head, &remove, &[]).await, expired);
    for member in chain.serving() {
        let read = read_at(&chain, chunk, Level::One, 1);
        assert_eq!(cluster.refusal(member, &read, &[]).await, expired);
    }
    // Whoever lives, or came after the list was made, is served; and so is a read in nobody's name, but no change.
    for session in [0, 2, 3] {
        let read = read_at(&chain, chunk, Level::One, session);
        assert_eq!(cluster.refusal(head, &read, &[]).await, None);
        let wanted = (session == 0).then_some(ErrorCode::Unauthorized);
        let (request, payload) = write_at(&chain, chunk, session, 5, CutEpoch(1));
        assert_eq!(cluster.refusal(head, &request, &[payload]).await, wanted);
        assert_eq!(cluster.refusal(head, &sync(session), &[]).await, wanted);
        let remove = remove_range(&chain, chunk, SessionId(session), CutEpoch(1));
        assert_eq!(cluster.refusal(head, &remove, &[]).await, wanted);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_removal_takes_nothing_newer_and_a_removed_file_has_no_holes() {
    let cluster = Cluster::start().await;
    let chunk = ChunkId::new(InodeId(9), ChunkIndex(0));
    let chain = cluster.chain();
    let head = chain.head().unwrap();
    let put = async |sequence, cut| {
        let (request, payload) = write_at(&chain, chunk, 1, sequence, cut);
        cluster.refusal(head, &request, &[payload]).await
    };
    let remove = async |cut| {
        cluster
            .refusal(head, &remove_range(&chain, chunk, SessionId(1), cut), &[])
            .await
    };
    let blocks = async |member| match cluster.ask(member, &read_at(&chain, chunk, Level::One, 1), &[]).await {
        Ok(StorageResponse::Read { runs, .. }) => runs.len(),
        other => panic!("{other:?}"),
    };
    assert_eq!(put(1, CutEpoch::NONE).await, None);
    assert_eq!(remove(CutEpoch(1)).await, None);
    assert_eq!(put(2, CutEpoch::NONE).await, Some(ErrorCode::StaleCut));
    assert_eq!(put(3, CutEpoch(2)).await, None);
    // The same request once more, in the same epoch of the chain, as a copy that was long on its way.
    assert_eq!(remove(CutEpoch(1)).await, None);
    for member in chain.serving() {
        assert_eq!(blocks(member).await, 1, "storage-{member}");
    }
    // Only the metadata group says that the file is gone.
    assert_eq!(remove(CutEpoch::GONE).await, Some(ErrorCode::Unauthorized));
    let address = cluster.meta.table.borrow().address(head).unwrap();
    let purge = remove_range(&chain, chunk, SessionId::SYSTEM, CutEpoch::GONE);
    let purged: (StorageResponse, Bytes) = cluster
        .meta_endpoint
        .peer(head.into(), address)
        .call(Lane::Bulk, &purge, &[], Duration::from_secs(2))
        .await
        .unwrap();
    assert!(
        matches!(purged.0, StorageResponse::RangeRemoved { chunks: 1 }),
        "{purged:?}"
    );
    for member in chain.serving() {
        // A member further down has it a moment later.
        let start = Instant::now();
        let read = read_at(&chain, chunk, Level::One, 1);
        while cluster.refusal(member, &read, &[]).await != Some(ErrorCode::StaleInode) {
            assert!(start.elapsed() < Duration::from_secs(2), "storage-{member}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let read = read_at(&chain, chunk, Level::Quorum, 1);
    assert_eq!(cluster.refusal(head, &read, &[]).await, Some(ErrorCode::StaleInode));
    assert_eq!(put(4, CutEpoch(2)).await, Some(ErrorCode::StaleInode));
}
