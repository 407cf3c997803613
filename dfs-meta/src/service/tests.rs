//! The service over an engine that orders commands at once, so that everything but consensus and network is real.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use dfs_common::wire::meta::{
    ChangeRequest, Heartbeat, HeartbeatAnswer, KeepAlive, LiveSessions, MetaRequest, MetaResponse, NODE_LEASE_MS, Signs,
};
use dfs_common::wire::namespace::{
    Caller, NamespaceAnswer, NamespaceChange, NamespaceOp, NamespaceRead, WrappedKey, WriteCommit,
};
use dfs_common::wire::storage::{StorageRequest, StorageResponse};
use dfs_common::{
    ChainId, ChunkIndex, ClusterId, Epoch, ErrorCode, Incarnation, InodeId, MetaId, NodeName, Role, RoutingTable,
    RoutingVersion, SequenceNumber, SessionId, StorageId, StoreId, ValidName,
};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::clock::Clock;
use super::observed::Observed;
use super::replaced::Replaced;
use super::shared::{Shared, StorageCaller};
use super::{Parts, assemble, dispatch};
use crate::consensus::{Consensus, ConsensusError, ConsensusStatus, Leadership, StateMachine};
use crate::namespace::NameHash;
use crate::state::State;
use crate::store::MemoryStore;

struct Hash;

impl NameHash for Hash {
    fn hash(&self, parent: InodeId, name: &[u8]) -> [u8; 16] {
        let mut hash = [0; 16];
        let digest = blake3::hash(&[&parent.0.to_le_bytes()[..], name].concat());
        hash.copy_from_slice(&digest.as_bytes()[..16]);
        hash
    }
}

/// Orders commands by a lock.
struct Alone {
    machine: Arc<dyn StateMachine>,
    index: Mutex<u64>,
    leadership: watch::Sender<Leadership>,
    confirmed: AtomicBool,
}

#[async_trait]
impl Consensus for Alone {
    async fn propose(&self, command: Vec<u8>, _: Duration) -> Result<Vec<u8>, ConsensusError> {
        let leadership = *self.leadership.borrow();
        if !leadership.is_self {
            return Err(ConsensusError::NotLeader {
                leader: leadership.leader,
            });
        }
        let mut index = self.index.lock();
        *index += 1;
        let mut outcomes = self
            .machine
            .apply(&[&command], &index.to_le_bytes())
            .map_err(ConsensusError::Machine)?;
        Ok(outcomes.remove(0))
    }
    async fn read_barrier(&self) -> Result<(), ConsensusError> {
        Ok(())
    }
    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }
    fn confirmed_within(&self, _: Duration) -> bool {
        self.confirmed.load(Ordering::Relaxed)
    }
    async fn handle(&self, _: MetaId, _: u8, body: &[u8]) -> Result<Vec<u8>, dfs_common::Error> {
        Ok(body.to_vec())
    }
    fn status(&self) -> ConsensusStatus {
        ConsensusStatus {
            leadership: *self.leadership.borrow(),
            ..ConsensusStatus::default()
        }
    }
    async fn shutdown(&self) {}
}

/// Remembers what it was asked to remove, and knows where files end; says `StaleEpoch` to the first request of each chain.
#[derive(Default)]
struct Chains {
    removed: Mutex<BTreeMap<(u32, u64), usize>>,
    /// By inode: what the one chain that has data says.
    ends: Mutex<BTreeMap<InodeId, (ChunkIndex, u32)>>,
    asked: Mutex<BTreeSet<(ChainId, InodeId)>>,
    /// Serves nobody.
    away: Mutex<Option<ChainId>>,
}

impl Chains {
    fn file_end(&self, chain: ChainId, inode: InodeId) -> StorageResponse {
        if *self.away.lock() == Some(chain) {
            return StorageResponse::Failed(ErrorCode::LeaseLost.into());
        }
        if self.asked.lock().insert((chain, inode)) {
            return StorageResponse::Failed(ErrorCode::StaleEpoch.into());
        }
        let end = self.ends.lock().get(&inode).copied();
        StorageResponse::FileEnd(end.filter(|_| chain == ChainId(2)))
    }
}

#[async_trait]
impl StorageCaller for Chains {
    async fn call(
        &self,
        _: StorageId,
        _: SocketAddr,
        request: &StorageRequest,
        _: Duration,
    ) -> dfs_common::Result<StorageResponse> {
        if let StorageRequest::FileEnd { chain, inode, .. } = request {
            return Ok(self.file_end(*chain, *inode));
        }
        let StorageRequest::RemoveRange { chain, inodes, .. } = request else {
            return Err(ErrorCode::BadMessage.into());
        };
        let mut removed = self.removed.lock();
        let mut again = true;
        for inode in inodes {
            let count = removed.entry((chain.0, inode.0)).or_default();
            *count += 1;
            again &= *count == 1;
        }
        Ok(if again {
            StorageResponse::Failed(ErrorCode::StaleEpoch.into())
        } else {
            StorageResponse::RangeRemoved { chunks: 1 }
        })
    }

    async fn death(&self, _: SocketAddr, _: Incarnation) {
        std::future::pending::<()>().await;
    }
}

struct World {
    shared: Arc<Shared>,
    engine: Arc<Alone>,
    chains: Arc<Chains>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    /// Of the list of sessions that each storage node has.
    marks: Mutex<BTreeMap<u32, u64>>,
    /// Storage nodes do not take in what they are told of sessions.
    deaf: Mutex<bool>,
}

const CLIENT: NodeName = NodeName::new(Role::Client, 7);
const LONG: Duration = Duration::from_secs(20);

fn leading(term: u64) -> Leadership {
    Leadership {
        leader: Some(MetaId(1)),
        term,
        is_self: true,
    }
}

impl World {
    fn start() -> Self {
        let cluster = ClusterId([3; 16]);
        let clock = Arc::new(Clock::new(Arc::default()));
        let state = Arc::new(State::open(MemoryStore::default(), Hash, cluster).unwrap());
        let members: BTreeMap<MetaId, SocketAddr> = (1..=3)
            .map(|id| (MetaId(id), SocketAddr::from(([127, 0, 0, 1], 9000 + id as u16))))
            .collect();
        let machine = Arc::new(Observed::new(
            Arc::clone(&state),
            Arc::clone(&clock),
            members,
            Replaced::default(),
        ));
        let routing = machine.routing();
        let engine = Arc::new(Alone {
            machine,
            index: Mutex::new(0),
            leadership: watch::Sender::new(leading(1)),
            confirmed: AtomicBool::new(true),
        });
        let chains = Arc::new(Chains::default());
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let parts = Parts {
            cluster,
            me: MetaId(1),
            clock,
            consensus: Arc::clone(&engine) as Arc<dyn Consensus>,
            state,
            routing,
            storage: Arc::clone(&chains) as Arc<dyn StorageCaller>,
            damage: Vec::new(),
        };
        let shared = assemble(parts, &tasks, &shutdown);
        Self {
            shared,
            engine,
            chains,
            tasks,
            shutdown,
            marks: Mutex::default(),
            deaf: Mutex::default(),
        }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.tasks.close();
        tokio::time::timeout(Duration::from_secs(2), self.tasks.wait())
            .await
            .unwrap();
    }

    async fn call(&self, peer: NodeName, request: MetaRequest) -> MetaResponse {
        dispatch::answer(&self.shared, peer, request, LONG).await
    }

    fn table(&self) -> Arc<RoutingTable> {
        Arc::clone(&self.shared.routing.borrow())
    }

    async fn beat(&self, node: u32, incarnation: u64) -> HeartbeatAnswer {
        let request = MetaRequest::Heartbeat(Heartbeat {
            configured: std::collections::BTreeMap::new(),
            sessions: self.marks.lock().get(&node).copied().unwrap_or(0),
            node: StorageId(node),
            incarnation: Incarnation(incarnation),
            store: StoreId::default(),
            address: SocketAddr::from(([127, 0, 0, 1], 8000 + node as u16)),
            routing: self.table().version,
            total_bytes: 3000,
            used_bytes: 300,
            fault: None,
            resyncs: Vec::new(),
            retired: Vec::new(),
            signs: Signs::default(),
            settled: Vec::new(),
            rests: Vec::new(),
        });
        match self.call(StorageId(node).into(), request).await {
            MetaResponse::Heartbeat(answer) => {
                if let Some(list) = &answer.sessions
                    && !*self.deaf.lock()
                {
                    self.marks.lock().insert(node, list.mark());
                }
                answer
            }
            other => panic!("{other:?}"),
        }
    }

    /// Three nodes, all with leases.
    async fn storage(&self) {
        for _ in 0..100 {
            let mut leases = 0;
            for node in 1..=3 {
                leases += u32::from(self.beat(node, 1).await.lease);
            }
            if leases == 3 && self.table().default_table.is_some() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no leases");
    }

    async fn beat_all(&self) {
        for node in 1..=3 {
            self.beat(node, 1).await;
        }
    }

    async fn session(&self) -> SessionId {
        let request = MetaRequest::OpenSession { label: "test".into() };
        match self.call(CLIENT, request).await {
            MetaResponse::SessionOpened { session, .. } => session,
            other => panic!("{other:?}"),
        }
    }

    async fn change(&self, session: SessionId, sequence: u64, op: NamespaceOp) -> NamespaceChange {
        let request = MetaRequest::Change(ChangeRequest {
            session,
            sequence: SequenceNumber(sequence),
            answered_below: SequenceNumber(sequence),
            caller: Caller { uid: 0, gid: 0 },
            op,
            hold: None,
            shown: None,
        });
        match self.call(CLIENT, request).await {
            MetaResponse::Change(answer) => answer.outcome.unwrap(),
            other => panic!("{other:?}"),
        }
    }

    async fn create(&self, session: SessionId, sequence: u64, file: &str) -> InodeId {
        match self.change(session, sequence, create_op(file)).await {
            NamespaceChange::Entry { attributes, .. } => attributes.inode,
            other => panic!("{other:?}"),
        }
    }

    /// Files that a session made, wrote without a word, and left.
    async fn left_growing(&self, count: u64) -> Vec<InodeId> {
        let session = self.session().await;
        let known = InodeId(0);
        let epoch = match self.call(CLIENT, MetaRequest::Reserve { session, known }).await {
            MetaResponse::Reserved(reservation) => reservation.epoch,
            other => panic!("{other:?}"),
        };
        let mut inodes = Vec::new();
        for number in 0..count {
            let mut request = ChangeRequest {
                session,
                sequence: SequenceNumber(2 * number + 1),
                answered_below: SequenceNumber(2 * number + 1),
                caller: Caller { uid: 0, gid: 0 },
                op: create_op(&format!("growing-{number}")),
                hold: Some(epoch),
                shown: None,
            };
            let inode = match self.call(CLIENT, MetaRequest::Change(request.clone())).await {
                MetaResponse::Change(answer) => match answer.outcome.unwrap() {
                    NamespaceChange::Entry { attributes, .. } => attributes.inode,
                    other => panic!("{other:?}"),
                },
                other => panic!("{other:?}"),
            };
            request.sequence = request.sequence.next();
            request.op = NamespaceOp::CommitWrite {
                inode,
                commit: WriteCommit {
                    sparse: false,
                    extend_to_bytes: Some(1_000),
                    mtime: None,
                    clear_suid: false,
                    growing: true,
                    cut: dfs_common::CutEpoch::NONE,
                },
            };
            self.call(CLIENT, MetaRequest::Change(request)).await;
            inodes.push(inode);
        }
        self.call(CLIENT, MetaRequest::CloseSession { session }).await;
        inodes
    }

    async fn length(&self, session: SessionId, inode: InodeId, time: Duration) -> Result<u64, dfs_common::Error> {
        let reads = vec![NamespaceRead::GetAttributes { inode }];
        let request = MetaRequest::Read { session, reads };
        match dispatch::answer(&self.shared, CLIENT, request, time).await {
            MetaResponse::Read(mut answers) => match answers.remove(0)? {
                NamespaceAnswer::Attributes(attributes) => Ok(attributes.length_bytes),
                other => panic!("{other:?}"),
            },
            MetaResponse::Failed(error) => Err(error),
            other => panic!("{other:?}"),
        }
    }

    async fn report(&self, session: SessionId, report: u64, all: bool, opened: &[InodeId], closed: &[InodeId]) -> bool {
        let request = MetaRequest::KeepAlive(KeepAlive {
            configured: std::collections::BTreeMap::new(),
            session,
            routing: self.table().version,
            all,
            opened: opened.to_vec(),
            closed: closed.to_vec(),
            report,
            clock: dfs_net::wall_clock(),
        });
        match self.call(CLIENT, request).await {
            MetaResponse::KeepAlive(answer) => answer.send_all,
            other => panic!("{other:?}"),
        }
    }
}

fn create_op(file: &str) -> NamespaceOp {
    NamespaceOp::Create {
        parent: InodeId::ROOT,
        name: name(file),
        mode: 0o644,
        exclusive: true,
        key: WrappedKey {
            kek_version: 1,
            bytes: vec![7; 60],
        },
    }
}

fn name(text: &str) -> ValidName {
    ValidName::new(text.as_bytes().to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_changes_and_reads() {
    let world = World::start();
    world.storage().await;
    let session = world.session().await;
    let inode = world.create(session, 1, "a").await;
    let reads = vec![
        NamespaceRead::Lookup {
            parent: InodeId::ROOT,
            name: name("a"),
        },
        NamespaceRead::StatFs,
    ];
    let MetaResponse::Read(answers) = world.call(CLIENT, MetaRequest::Read { session, reads }).await else {
        panic!("no answers");
    };
    assert!(matches!(&answers[0], Ok(NamespaceAnswer::Attributes(found)) if found.inode == inode));
    assert!(matches!(&answers[1], Ok(NamespaceAnswer::StatFs(usage)) if usage.free_bytes == 2700));
    let MetaResponse::Status(status) = world.call(CLIENT, MetaRequest::Status).await else {
        panic!("no status");
    };
    assert_eq!((status.sessions, status.storage.len(), status.meta.len()), (1, 3, 3));
    assert!(
        world.report(session, 5, false, &[], &[]).await,
        "the leader wants the whole list first"
    );
    assert!(!world.report(session, 6, true, &[], &[]).await);
    assert!(matches!(
        world.call(CLIENT, MetaRequest::CloseSession { session }).await,
        MetaResponse::SessionClosed
    ));
    let MetaResponse::Failed(error) = world
        .call(
            CLIENT,
            MetaRequest::KeepAlive(KeepAlive {
                configured: std::collections::BTreeMap::new(),
                session,
                routing: RoutingVersion(0),
                all: true,
                opened: vec![],
                closed: vec![],
                report: 7,
                clock: dfs_net::wall_clock(),
            }),
        )
        .await
    else {
        panic!("an ended session was renewed");
    };
    assert_eq!(error.code, ErrorCode::SessionExpired);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_node_leaves_its_chains_and_pollers_hear_of_it() {
    let world = World::start();
    world.storage().await;
    let known = world.table().version;
    let poll = {
        let shared = Arc::clone(&world.shared);
        tokio::spawn(async move {
            let request = MetaRequest::Routing { known, wait_ms: 10_000 };
            dispatch::answer(&shared, CLIENT, request, LONG).await
        })
    };
    let silent_since = Instant::now();
    while world.table().version == known && silent_since.elapsed() < Duration::from_secs(5) {
        assert!(world.beat(1, 1).await.lease && world.beat(2, 1).await.lease);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let took = silent_since.elapsed();
    assert!(took >= Duration::from_millis(NODE_LEASE_MS - 50), "{took:?}");
    assert!(took < Duration::from_millis(NODE_LEASE_MS + 300), "{took:?}");
    let MetaResponse::Routing(Some(table)) = poll.await.unwrap() else {
        panic!("the poller was not told");
    };
    assert!(
        table
            .chains
            .values()
            .all(|chain| chain.epoch == Epoch(2) && chain.serving().count() == 2)
    );
    assert!(!world.beat(3, 1).await.lease, "no lease before it is taken up again");
    world.storage().await;
    let chain = world.table().chains.values().next().unwrap().clone();
    let done = |node| MetaRequest::ResyncDone {
        chain: chain.id,
        epoch: chain.epoch,
        node,
    };
    let (tail, head) = (chain.tail().unwrap(), chain.head().unwrap());
    let refused = world.call(head.into(), done(StorageId(3))).await;
    assert!(matches!(refused, MetaResponse::Failed(error) if error.code == ErrorCode::Unauthorized));
    assert_eq!(
        world.call(tail.into(), done(StorageId(3))).await,
        MetaResponse::ResyncDone
    );
    assert_eq!(
        world.call(tail.into(), done(StorageId(3))).await,
        MetaResponse::ResyncDone,
        "a retry"
    );
    assert_eq!(world.table().chains[&chain.id].tail(), Some(StorageId(3)));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_quorum_grants_nothing_and_a_deposed_one_redirects() {
    let world = World::start();
    world.storage().await;
    world.engine.confirmed.store(false, Ordering::Relaxed);
    assert!(!world.beat(1, 1).await.lease);
    let poll = {
        let (shared, known) = (Arc::clone(&world.shared), world.table().version);
        tokio::spawn(async move {
            let request = MetaRequest::Routing { known, wait_ms: 10_000 };
            dispatch::answer(&shared, CLIENT, request, LONG).await
        })
    };
    tokio::time::sleep(Duration::from_millis(50)).await;
    world.engine.leadership.send_replace(Leadership {
        leader: Some(MetaId(2)),
        term: 2,
        is_self: false,
    });
    let address = world.shared.routing.borrow().meta[&MetaId(2)];
    let elsewhere = MetaResponse::NotLeader {
        leader: Some((MetaId(2), address)),
    };
    assert_eq!(poll.await.unwrap(), elsewhere);
    assert_eq!(world.call(CLIENT, MetaRequest::Status).await, elsewhere);
    let open = MetaRequest::OpenSession { label: String::new() };
    assert_eq!(world.call(CLIENT, open).await, elsewhere);
    let wrong = world.call(StorageId(1).into(), MetaRequest::Status).await;
    assert!(matches!(wrong, MetaResponse::Failed(error) if error.code == ErrorCode::Unauthorized));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unlinked_files_are_purged_after_their_last_close() {
    let world = World::start();
    world.storage().await;
    let session = world.session().await;
    assert!(!world.report(session, 1, true, &[], &[]).await);
    let inode = world.create(session, 1, "a").await;
    assert!(!world.report(session, 2, false, &[inode], &[]).await);
    let unlink = NamespaceOp::Unlink {
        parent: InodeId::ROOT,
        name: name("a"),
    };
    world.change(session, 2, unlink).await;
    for report in 3..8 {
        assert!(!world.report(session, report, false, &[], &[]).await);
        world.beat_all().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(world.chains.removed.lock().is_empty(), "it is open");
    assert!(!world.report(session, 8, false, &[], &[inode]).await);
    let start = Instant::now();
    while world.shared.state.counts().orphans > 0 {
        assert!(start.elapsed() < Duration::from_secs(10), "not purged");
        world.beat_all().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(world.chains.removed.lock().len(), 6, "on every chain");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_bring_the_list_of_sessions_until_it_is_known() {
    let world = World::start();
    world.storage().await;
    let [first, second] = [world.session().await, world.session().await];
    *world.deaf.lock() = true;
    let list = |live: &[SessionId]| LiveSessions {
        next: second.next(),
        live: live.iter().copied().collect(),
    };
    let both = Some(list(&[first, second]));
    assert_eq!(world.beat(1, 1).await.sessions, both);
    assert_eq!(world.beat(1, 1).await.sessions, both, "it has not said that it has it");
    *world.deaf.lock() = false;
    assert_eq!(world.beat(1, 1).await.sessions, both);
    assert_eq!(world.beat(1, 1).await.sessions, None);
    world.call(CLIENT, MetaRequest::CloseSession { session: first }).await;
    assert_eq!(world.beat(1, 1).await.sessions, Some(list(&[second])));
    assert_eq!(world.beat(1, 1).await.sessions, None);
    // Another leader knows no node's mark, but its own list's.
    world.engine.leadership.send_replace(leading(2));
    assert_eq!(world.beat(1, 1).await.sessions, None);
    world.stop().await;
}

/// What a session that was evicted has open goes when no storage node takes anything of it any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_purge_waits_for_storage_nodes_to_know_who_was_evicted() {
    let world = World::start();
    world.storage().await;
    let session = world.session().await;
    let inode = world.create(session, 1, "a").await;
    world.report(session, 1, true, &[inode], &[]).await;
    let unlink = NamespaceOp::Unlink {
        parent: InodeId::ROOT,
        name: name("a"),
    };
    world.change(session, 2, unlink).await;
    world.beat_all().await;
    *world.deaf.lock() = true;
    world.call(CLIENT, MetaRequest::CloseSession { session }).await;
    for _ in 0..20 {
        world.beat_all().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(world.chains.removed.lock().is_empty(), "they would still serve it");
    *world.deaf.lock() = false;
    let start = Instant::now();
    while world.shared.state.counts().orphans > 0 {
        assert!(start.elapsed() < Duration::from_secs(10), "not purged");
        world.beat_all().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_length_is_found_when_storage_nodes_know_that_its_writer_has_ended() {
    let world = World::start();
    world.storage().await;
    *world.deaf.lock() = true;
    let inodes = world.left_growing(1).await;
    world.chains.ends.lock().insert(inodes[0], (ChunkIndex(0), 5_000));
    let session = world.session().await;
    world.beat_all().await;
    let soon = Duration::from_millis(200);
    let error = world.length(session, inodes[0], soon).await.unwrap_err();
    assert_eq!(error.code, ErrorCode::Overloaded);
    assert!(
        error.detail.contains("not every storage node has heard of it yet"),
        "{error}"
    );
    assert!(world.chains.asked.lock().is_empty());
    *world.deaf.lock() = false;
    for _ in 0..2 {
        world.beat_all().await;
    }
    assert_eq!(world.length(session, inodes[0], LONG).await.unwrap(), 5_000);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lengths_that_were_left_unsaid_are_found_on_the_chains() {
    let world = World::start();
    world.storage().await;
    let chunk = u64::from(dfs_common::units::DEFAULT_CHUNK_SIZE_BYTES);
    let inodes = world.left_growing(4).await;
    // Storage nodes hear that their writer has ended, and say so.
    for _ in 0..2 {
        world.beat_all().await;
    }
    {
        let mut ends = world.chains.ends.lock();
        ends.insert(inodes[0], (ChunkIndex(2), 100));
        // Damaged: counted as a whole.
        ends.insert(inodes[1], (ChunkIndex(1), u32::MAX));
        // Shorter than what was told.
        ends.insert(inodes[2], (ChunkIndex(0), 10));
    }
    let session = world.session().await;
    // Listing them waits for nothing.
    let reads = vec![NamespaceRead::ReadDirectory {
        inode: InodeId::ROOT,
        cookie: 0,
        limit: 10,
    }];
    let listed = world.call(CLIENT, MetaRequest::Read { session, reads }).await;
    assert!(
        matches!(&listed, MetaResponse::Read(answers) if matches!(answers[0], Ok(NamespaceAnswer::Directory { .. }))),
        "{listed:?}"
    );
    assert!(world.chains.asked.lock().is_empty());
    for (inode, length) in [(0, 2 * chunk + 100), (1, 2 * chunk), (2, 1_000)] {
        assert_eq!(world.length(session, inodes[inode], LONG).await.unwrap(), length);
    }
    // A chain that serves nobody is named, in time, and nothing is taken for known.
    *world.chains.away.lock() = Some(ChainId(5));
    let start = Instant::now();
    let error = world
        .length(session, inodes[3], Duration::from_millis(600))
        .await
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::Overloaded);
    assert!(error.detail.contains("chain 5"), "{error}");
    assert!(start.elapsed() < Duration::from_millis(700), "{:?}", start.elapsed());
    world.beat_all().await;
    *world.chains.away.lock() = None;
    assert_eq!(world.length(session, inodes[3], LONG).await.unwrap(), 1_000);
    world.stop().await;
}
