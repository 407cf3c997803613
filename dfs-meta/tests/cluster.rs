//! Three metadata servers in one process, over real QUIC on loopback, with directories of their own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test"
)]

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use dfs_common::config::{ClusterConfig, MetaServer as MetaAddress};
use dfs_common::wire::Lane;
use dfs_common::wire::meta::{
    ChangeAnswer, ChangeRequest, ClusterStatus, HEARTBEAT_MS, Heartbeat, KeepAlive, MetaRequest, MetaResponse,
    NODE_LEASE_MS, Signs,
};
use dfs_common::wire::namespace::{Caller, NamespaceAnswer, NamespaceChange, NamespaceOp, NamespaceRead, WrappedKey};
use dfs_common::{
    ClusterId, ErrorCode, Incarnation, InodeId, MetaId, NodeName, Role, RoutingTable, RoutingVersion, SequenceNumber,
    SessionId, StorageId, StoreId, ValidName,
};
use dfs_crypto::{CertificateAuthority, RootKey};
use dfs_meta::service::{MetaOptions, MetaServer};
use dfs_net::Endpoint;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const CALL: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(15);

struct Running {
    stop: CancellationToken,
    ended: JoinHandle<dfs_common::Result<()>>,
}

struct Cluster {
    directory: tempfile::TempDir,
    authority: CertificateAuthority,
    config: ClusterConfig,
    servers: BTreeMap<u64, Running>,
}

impl Cluster {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let cluster = ClusterId([9; 16]);
        let authority = CertificateAuthority::generate(cluster).unwrap();
        let root = RootKey::generate().unwrap();
        let sockets: Vec<UdpSocket> = (0..3).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let meta = (1..)
            .zip(&sockets)
            .map(|(id, socket)| MetaAddress {
                id,
                address: socket.local_addr().unwrap(),
            })
            .collect();
        drop(sockets);
        let config = ClusterConfig {
            cluster: cluster.to_string(),
            credentials: PathBuf::new(),
            node: None,
            meta,
        };
        for id in 1..=3 {
            let own = directory.path().join(format!("meta-{id}.credentials"));
            let name = NodeName::new(Role::Meta, id);
            authority.issue(name).unwrap().save(&own).unwrap();
            root.meta_key().save(&own.join("meta.key")).unwrap();
        }
        let mut cluster = Self {
            directory,
            authority,
            config,
            servers: BTreeMap::new(),
        };
        for id in 1..=3 {
            cluster.start_server(id).await;
        }
        cluster
    }

    fn options(&self, id: u64) -> MetaOptions {
        MetaOptions {
            config: self.config.clone(),
            credentials: self.directory.path().join(format!("meta-{id}.credentials")),
            data: self.directory.path().join(format!("meta-{id}")),
            listen: self.config.meta[id as usize - 1].address,
            snapshot_every: None,
        }
    }

    async fn start_server(&mut self, id: u64) {
        let server = MetaServer::start(self.options(id)).await.unwrap();
        let stop = CancellationToken::new();
        let ended = tokio::spawn(server.run_until(stop.clone()));
        self.servers.insert(id, Running { stop, ended });
    }

    async fn stop_server(&mut self, id: u64) {
        let running = self.servers.remove(&id).unwrap();
        running.stop.cancel();
        tokio::time::timeout(PATIENCE, running.ended)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }

    async fn user(&self, name: NodeName) -> User {
        let credentials = self.authority.issue(name).unwrap();
        User {
            endpoint: Endpoint::bind(&credentials, SocketAddr::from(([127, 0, 0, 1], 0)))
                .await
                .unwrap(),
            servers: self.config.meta_addresses().collect(),
            last: AtomicU32::new(0),
        }
    }
}

/// Anybody who asks the group.
struct User {
    endpoint: Endpoint,
    servers: Vec<(MetaId, SocketAddr)>,
    last: AtomicU32,
}

impl User {
    /// The leader's answer, whoever that is.
    async fn ask(&self, request: &MetaRequest) -> MetaResponse {
        let start = Instant::now();
        loop {
            let at = self.last.load(Ordering::Relaxed) as usize % self.servers.len();
            let (id, address) = self.servers[at];
            let peer = self.endpoint.peer(id.into(), address);
            let next = match peer.call::<_, MetaResponse>(Lane::Control, request, &[], CALL).await {
                Ok((
                    MetaResponse::NotLeader {
                        leader: Some((leader, _)),
                    },
                    _,
                )) => self.servers.iter().position(|server| server.0 == leader).unwrap(),
                Ok((MetaResponse::NotLeader { leader: None }, _)) | Err(_) => at + 1,
                Ok((answer, _)) => return answer,
            };
            assert!(start.elapsed() < PATIENCE, "no leader answers");
            self.last.store(next as u32, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn open_session(&self) -> SessionId {
        match self.ask(&MetaRequest::OpenSession { label: "test".into() }).await {
            MetaResponse::SessionOpened { session, .. } => session,
            other => panic!("{other:?}"),
        }
    }

    async fn create(&self, session: SessionId, sequence: u64, file: &str) -> InodeId {
        let request = MetaRequest::Change(ChangeRequest {
            session,
            sequence: SequenceNumber(sequence),
            answered_below: SequenceNumber(sequence),
            caller: Caller { uid: 0, gid: 0 },
            op: NamespaceOp::Create {
                parent: InodeId::ROOT,
                name: ValidName::new(file).unwrap(),
                mode: 0o644,
                exclusive: true,
                key: WrappedKey {
                    kek_version: 1,
                    bytes: vec![1; 60],
                },
            },
            hold: None,
            shown: None,
        });
        match self.ask(&request).await {
            MetaResponse::Change(ChangeAnswer {
                outcome: Ok(NamespaceChange::Entry { attributes, .. }),
                ..
            }) => attributes.inode,
            other => panic!("{other:?}"),
        }
    }

    async fn lookup(&self, session: SessionId, file: &str) -> InodeId {
        let request = MetaRequest::Read {
            session,
            reads: vec![NamespaceRead::Lookup {
                parent: InodeId::ROOT,
                name: ValidName::new(file).unwrap(),
            }],
        };
        match self.ask(&request).await {
            MetaResponse::Read(answers) => match &answers[0] {
                Ok(NamespaceAnswer::Attributes(attributes)) => attributes.inode,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    async fn keep_alive(&self, session: SessionId) -> MetaResponse {
        let request = MetaRequest::KeepAlive(KeepAlive {
            configured: std::collections::BTreeMap::new(),
            session,
            routing: RoutingVersion(0),
            all: true,
            opened: Vec::new(),
            closed: Vec::new(),
            report: 1,
            clock: dfs_net::wall_clock(),
        });
        self.ask(&request).await
    }

    async fn status(&self) -> ClusterStatus {
        match self.ask(&MetaRequest::Status).await {
            MetaResponse::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    async fn wait_for(&self, what: &str, condition: impl Fn(&RoutingTable) -> bool) -> RoutingTable {
        let start = Instant::now();
        let mut known = RoutingVersion(0);
        loop {
            let request = MetaRequest::Routing { known, wait_ms: 1_000 };
            if let MetaResponse::Routing(Some(table)) = self.ask(&request).await {
                if condition(&table) {
                    return table;
                }
                known = table.version;
            }
            assert!(start.elapsed() < PATIENCE, "{what}");
        }
    }
}

/// A storage node that only beats.
struct Node {
    alive: Arc<AtomicBool>,
    leased: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

async fn storage(cluster: &Cluster, id: u32) -> Node {
    let user = cluster.user(StorageId(id).into()).await;
    let (alive, leased) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(false)));
    let (go_on, lease) = (Arc::clone(&alive), Arc::clone(&leased));
    let task = tokio::spawn(async move {
        let mut routing = RoutingVersion(0);
        let mut sessions = 0;
        while go_on.load(Ordering::Relaxed) {
            let request = MetaRequest::Heartbeat(Heartbeat {
                configured: std::collections::BTreeMap::new(),
                sessions,
                node: StorageId(id),
                incarnation: Incarnation(7),
                store: StoreId::default(),
                address: user.endpoint.local_address(),
                routing,
                total_bytes: 3000,
                used_bytes: 0,
                fault: None,
                resyncs: Vec::new(),
                retired: Vec::new(),
                signs: Signs::default(),
                settled: Vec::new(),
                rests: Vec::new(),
            });
            if let MetaResponse::Heartbeat(answer) = user.ask(&request).await {
                lease.store(answer.lease, Ordering::Relaxed);
                routing = answer.routing.map_or(routing, |table| table.version);
                sessions = answer.sessions.map_or(sessions, |list| list.mark());
            }
            tokio::time::sleep(Duration::from_millis(HEARTBEAT_MS)).await;
        }
    });
    Node { alive, leased, task }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn three_servers_serve_lose_their_leader_and_come_back_from_disk() {
    let mut cluster = Cluster::start().await;
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(storage(&cluster, id).await);
    }
    let client = cluster.user(NodeName::new(Role::Client, 1)).await;
    let table = client
        .wait_for("chains appear", |table| table.default_table.is_some())
        .await;
    assert_eq!((table.chains.len(), table.meta.len()), (6, 3));

    let session = client.open_session().await;
    let first = client.create(session, 1, "first").await;
    assert_eq!(client.lookup(session, "first").await, first);
    assert!(matches!(client.keep_alive(session).await, MetaResponse::KeepAlive(_)));
    let start = Instant::now();
    while !nodes.iter().all(|node| node.leased.load(Ordering::Relaxed)) {
        assert!(start.elapsed() < PATIENCE, "no leases");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // A server that starts for the first time votes only once it has caught up and heard the leader for a while.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let leader = client.status().await.leader.unwrap().0;
    cluster.stop_server(leader).await;
    let start = Instant::now();
    let second = client.create(session, 2, "second").await;
    println!("another leader after {:?}", start.elapsed());
    assert_eq!(client.lookup(session, "first").await, first);
    assert!(
        matches!(client.keep_alive(session).await, MetaResponse::KeepAlive(_)),
        "the session goes on"
    );
    let status = client.status().await;
    assert!(status.leader.unwrap().0 != leader && !status.meta[&MetaId(leader)].alive);
    tokio::time::sleep(Duration::from_millis(2 * NODE_LEASE_MS)).await;
    let table = client.wait_for("a table", |_| true).await;
    assert!(
        table.nodes.values().all(|node| node.alive),
        "a change of leader removes nobody"
    );
    cluster.start_server(leader).await;

    nodes[2].alive.store(false, Ordering::Relaxed);
    let silent = Instant::now();
    let table = client
        .wait_for("the silent node leaves", |table| {
            table.chains.values().all(|chain| chain.serving().count() == 2)
        })
        .await;
    println!("reconfigured {:?} after the last heartbeat", silent.elapsed());
    // The last heartbeat may have left up to HEARTBEAT_MS and one round trip after the flag was set.
    assert!(silent.elapsed() < Duration::from_millis(NODE_LEASE_MS + HEARTBEAT_MS + 300));
    assert!(!table.nodes[&StorageId(3)].alive);

    for node in nodes {
        node.alive.store(false, Ordering::Relaxed);
        node.task.abort();
    }
    for id in 1..=3 {
        cluster.stop_server(id).await;
    }
    for id in 1..=3 {
        cluster.start_server(id).await;
    }
    let client = cluster.user(NodeName::new(Role::Client, 2)).await;
    let session = client.open_session().await;
    assert_eq!(client.lookup(session, "first").await, first);
    assert_eq!(client.lookup(session, "second").await, second);

    // The applied state is a cache: without it, and with rubbish in its place, a server rebuilds it.
    cluster.stop_server(1).await;
    std::fs::remove_dir_all(cluster.directory.path().join("meta-1/state")).unwrap();
    cluster.stop_server(2).await;
    for entry in std::fs::read_dir(cluster.directory.path().join("meta-2/state")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::write(path, b"rubbish").unwrap();
        }
    }
    cluster.start_server(1).await;
    cluster.start_server(2).await;
    cluster.stop_server(3).await;
    assert_eq!(client.lookup(session, "second").await, second);
    for id in 1..=2 {
        cluster.stop_server(id).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn strangers_and_wrong_starts_are_refused() {
    let cluster = Cluster::start().await;
    let refused = |answer: MetaResponse| match answer {
        MetaResponse::Failed(error) => {
            assert_eq!(error.code, ErrorCode::Unauthorized);
            error.detail
        }
        other => panic!("{other:?}"),
    };
    let node = cluster.user(StorageId(1).into()).await;
    let open = MetaRequest::OpenSession { label: String::new() };
    assert!(refused(node.ask(&open).await).contains("storage-1"));
    let client = cluster.user(NodeName::new(Role::Client, 1)).await;
    let consensus = MetaRequest::Consensus {
        kind: 0,
        body: Vec::new(),
    };
    assert!(refused(client.ask(&consensus).await).contains("client-1"));

    let start = |options: MetaOptions| async {
        let error = MetaServer::start(options).await.expect_err("it must not start");
        assert!(!error.detail.contains('\n'), "{error}");
        println!("{error}");
        error.detail
    };
    assert!(start(cluster.options(1)).await.contains("in use by a running dfs meta"));
    let mut options = cluster.options(1);
    options.data = cluster.directory.path().join("elsewhere");
    assert!(
        start(options.clone())
            .await
            .contains(&options.listen.port().to_string()),
        "port in use"
    );
    let role = cluster.directory.path().join("role");
    cluster
        .authority
        .issue(StorageId(1).into())
        .unwrap()
        .save(&role)
        .unwrap();
    options.credentials = role;
    assert!(start(options.clone()).await.contains("storage-1"));
    let foreign = cluster.directory.path().join("foreign");
    let other = CertificateAuthority::generate(ClusterId([4; 16])).unwrap();
    other.issue(MetaId(1).into()).unwrap().save(&foreign).unwrap();
    options.credentials = foreign;
    assert!(start(options).await.contains("cluster"));
}
