//! The storage server: what it opens, the tasks that it runs, and how it stops.
//!
//! A node that starts has neither lease nor role. It takes part from the moment when a routing table names this very
//! start of it (its incarnation), so nothing that an earlier process had in flight is ever taken for granted.

pub(crate) mod chain;
mod directory;
mod handler;
#[cfg(test)]
mod in_process;
mod lease;
mod membership;
mod network;
pub(crate) mod node;
mod quic;
mod syncer;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use dfs_common::config::ClusterConfig;
use dfs_common::{ClusterId, Error, ErrorCode, Incarnation, NodeName, Result, Role, RoutingTable, StorageId};
use dfs_crypto::certificate::Credentials;
use dfs_net::Endpoint;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::disk::RealDisk;
use crate::replica::Input;
use crate::store::{ChunkStore, RecoveryReport, StoreOptions};

use directory::DataDirectory;
use lease::Lease;
use network::{Network, Transport};
use node::Node;
use quic::{QuicTransport, StorageService};
use syncer::Syncer;

/// How often waiting requests are looked through for those that waited too long.
const TICK: Duration = Duration::from_millis(50);

/// Between two steps of upkeep when there is nothing to do, and while there is.
const UPKEEP_IDLE: Duration = Duration::from_millis(500);
const UPKEEP_BUSY: Duration = Duration::from_millis(20);

/// How long a stopping node waits for what is in flight.
const DRAIN: Duration = Duration::from_millis(1_500);

/// What a storage server needs to start.
#[derive(Clone, Debug)]
pub struct StorageOptions {
    /// The cluster and its metadata servers.
    pub config: ClusterConfig,
    /// Directory with this server's certificate and key.
    pub credentials: PathBuf,
    /// Data directory.
    pub data: PathBuf,
    /// Local address to bind; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Where others reach it, if not at `listen`.
    pub advertise: Option<SocketAddr>,
    /// Bytes it may use; the whole file system's if absent.
    pub capacity_bytes: Option<u64>,
}

/// Store and directory of a node, before it has a network.
struct Opened {
    directory: DataDirectory,
    store: ChunkStore,
    rotten: BTreeSet<dfs_common::ChunkId>,
    report: RecoveryReport,
}

/// A node with its tasks, over any network.
#[derive(Debug)]
struct Running {
    node: Arc<Node>,
    /// Held while the node runs.
    _directory: DataDirectory,
    sync_thread: JoinHandle<()>,
    tasks: tokio::task::JoinSet<()>,
}

fn open_store(options: &StorageOptions, cluster: ClusterId, name: NodeName, id: StorageId) -> Result<Opened> {
    let directory = DataDirectory::open(&options.data, cluster, name)?;
    let at = directory.chunks();
    let disk = RealDisk::open(&at).map_err(|e| {
        Error::new(
            ErrorCode::Internal,
            format!("{} can not be opened: {e}; check its owner and mode", at.display()),
        )
    })?;
    let capacity = match options.capacity_bytes {
        Some(capacity) => capacity,
        None => directory.capacity_bytes()?,
    };
    let (store, report) = ChunkStore::open(Arc::new(disk), StoreOptions::new(cluster, id, capacity))
        .map_err(|e| Error::from(e).context(at.display()))?;
    for rot in &report.rot {
        tracing::error!(
            file = rot.file,
            offset = rot.offset,
            bytes = rot.length_bytes,
            detail = rot.detail,
            "damage on disk"
        );
    }
    let rotten = report.rot.iter().filter_map(|rot| rot.chunk).collect();
    Ok(Opened {
        directory,
        store,
        rotten,
        report,
    })
}

impl Running {
    fn start(
        opened: Opened,
        id: StorageId,
        (incarnation, advertised): (Incarnation, SocketAddr),
        transport: Arc<dyn Transport>,
        config: &ClusterConfig,
    ) -> Result<Self> {
        let (syncer, sync_thread) = Syncer::start(opened.store.clone())?;
        let node = Arc::new(Node {
            id,
            incarnation,
            advertised,
            store: opened.store,
            network: Network::new(transport, config.meta_addresses().collect()),
            syncer,
            runtime: tokio::runtime::Handle::current(),
            lease: Lease::new(),
            chains: RwLock::new(BTreeMap::new()),
            table: watch::Sender::new(Arc::new(RoutingTable::default())),
            refresh: Notify::new(),
            fault: Mutex::new(None),
            full: RwLock::default(),
            rotten: Mutex::new(opened.rotten),
            stopping: CancellationToken::new(),
            configuring: Mutex::new(()),
        });
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(membership::heartbeats(Arc::clone(&node)));
        tasks.spawn(membership::routing(Arc::clone(&node)));
        tasks.spawn(ticks(Arc::clone(&node)));
        tasks.spawn(upkeep(Arc::clone(&node)));
        Ok(Self {
            node,
            _directory: opened.directory,
            sync_thread,
            tasks,
        })
    }

    /// Lets what is in flight end, then closes the store.
    async fn stop(mut self) -> Result<()> {
        let drained = async {
            loop {
                let chains: Vec<_> = self.node.chains.read().values().cloned().collect();
                if chains.iter().all(|chain| chain.is_idle()) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::warn!("stops with mutations in flight; their senders will retry");
        }
        self.node.lease.revoke();
        self.tasks.shutdown().await;
        let store = self.node.store.clone();
        let closed = tokio::task::spawn_blocking(move || store.close()).await;
        drop(self.node);
        if self.sync_thread.is_finished() {
            let _ = self.sync_thread.join();
        }
        closed
            .map_err(|e| Error::new(ErrorCode::Internal, format!("closing the store: {e}")))?
            .map_err(|e| Error::from(e).context("closing the store"))
    }
}

async fn ticks(node: Arc<Node>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let chains: Vec<_> = node.chains.read().values().cloned().collect();
        for chain in chains {
            if chain.wants_tick() {
                chain.drive(&node, Input::Tick);
            }
        }
    }
}

/// Upkeep takes one part in this many of a node's time, unless space is short.
const UPKEEP_SHARE: u32 = 10;

/// The longest pause between two parts of it.
const UPKEEP_PAUSE_MAX: Duration = Duration::from_secs(1);

fn upkeep_pause(took: Duration) -> Duration {
    (took * (UPKEEP_SHARE - 1)).clamp(UPKEEP_BUSY, UPKEEP_PAUSE_MAX)
}

/// Compaction and checkpoints, a small step at a time.
async fn upkeep(node: Arc<Node>) {
    loop {
        let store = node.store.clone();
        let stopping = node.stopping.clone();
        let step = move || {
            store.maintain(&|took| {
                // Parts that cost nothing need no pause of their own.
                let pause = (took > UPKEEP_BUSY / UPKEEP_SHARE).then(|| upkeep_pause(took));
                (!stopping.is_cancelled()).then(|| pause.unwrap_or_default())
            })
        };
        let start = std::time::Instant::now();
        let pause = match tokio::task::spawn_blocking(step).await {
            Ok(Ok(report)) if report.more && report.urgent => UPKEEP_BUSY,
            Ok(Ok(report)) if report.more => upkeep_pause(start.elapsed()),
            Ok(Ok(_)) => UPKEEP_IDLE,
            Ok(Err(error)) => {
                if node.current_fault().is_none() {
                    tracing::warn!(%error, "upkeep of the store does not get on");
                }
                UPKEEP_IDLE * 10
            }
            Err(_) => return,
        };
        tokio::select! {
            () = node.stopping.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// A running storage server.
pub struct StorageServer {
    running: Running,
    address: SocketAddr,
    endpoint: Endpoint,
    closing: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
}

impl std::fmt::Debug for StorageServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StorageServer")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl StorageServer {
    /// Opens the store and the endpoint. The node takes part as soon as the metadata group has taken it up.
    ///
    /// # Errors
    /// One clear line: data directory in use or of another cluster, node or format; port in use; wrong credentials.
    pub async fn start(options: StorageOptions) -> Result<Self> {
        let credentials = Credentials::load(&options.credentials)
            .map_err(|e| Error::new(ErrorCode::Unauthorized, e.to_string()).context(options.credentials.display()))?;
        let cluster = options.config.cluster_id()?;
        if credentials.cluster() != cluster {
            return Err(Error::new(
                ErrorCode::Incompatible,
                format!(
                    "the certificate in {} is of cluster {}, the configuration of {cluster}",
                    options.credentials.display(),
                    credentials.cluster()
                ),
            ));
        }
        let name = credentials.name();
        let id = storage_id(name)?;
        // Recovery reads the log: not on an async worker.
        let for_store = options.clone();
        let opened = tokio::task::spawn_blocking(move || open_store(&for_store, cluster, name, id))
            .await
            .map_err(|e| Error::new(ErrorCode::Internal, format!("opening the store: {e}")))??;
        let endpoint = Endpoint::bind(&credentials, options.listen)
            .await
            .map_err(Error::from)?;
        let address = endpoint.local_address();
        // Only now: a start that fails says one line.
        tracing::info!(
            chunks = opened.report.chunks,
            records = opened.report.records,
            torn_bytes = opened.report.torn_tail_bytes,
            damaged = opened.report.rot.len(),
            "store opened"
        );
        let transport = Arc::new(QuicTransport::new(endpoint.clone()));
        let advertised = options.advertise.unwrap_or(address);
        let running = Running::start(
            opened,
            id,
            (endpoint.incarnation(), advertised),
            transport,
            &options.config,
        )?;
        let service = Arc::new(StorageService {
            node: Arc::clone(&running.node),
        });
        let closing = CancellationToken::new();
        let serving = tokio::spawn({
            let (endpoint, closing) = (endpoint.clone(), closing.clone());
            async move { endpoint.serve(service, closing).await }
        });
        tracing::info!(%name, %address, incarnation = %running.node.incarnation, "storage server started");
        Ok(Self {
            running,
            address,
            endpoint,
            closing,
            serving,
        })
    }

    /// Where it listens.
    #[must_use]
    pub const fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`, then drains and closes the store.
    ///
    /// # Errors
    /// When the store can not be closed cleanly.
    pub async fn run_until(self, shutdown: CancellationToken) -> Result<()> {
        shutdown.cancelled().await;
        self.running.node.stopping.cancel();
        let stopped = self.running.stop().await;
        self.closing.cancel();
        self.endpoint.close().await;
        let _ = self.serving.await;
        stopped
    }
}

/// The number in a storage node's name.
fn storage_id(name: NodeName) -> Result<StorageId> {
    match (name.role, u32::try_from(name.number)) {
        (Role::Storage, Ok(number)) => Ok(StorageId(number)),
        _ => Err(Error::new(
            ErrorCode::Incompatible,
            format!("the certificate is for {name}; a storage server needs one for storage-N"),
        )),
    }
}
