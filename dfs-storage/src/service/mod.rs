//! The storage server: what it opens, the tasks that it runs, and how it stops.
//!
//! A node that starts has neither lease nor role. It takes part from the moment when a routing table names this very
//! start of it (its incarnation), so nothing that an earlier process had in flight is ever taken for granted.

mod aside;
mod budget;
mod capacity;
pub(crate) mod chain;
mod damage;
mod directory;
mod handler;
#[cfg(test)]
mod in_process;
mod lease;
mod membership;
mod mender;
mod network;
pub(crate) mod node;
mod quic;
mod rebuild;
mod scrub;
mod sessions;
mod signs;
mod starts;
mod syncer;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use dfs_common::config::ClusterConfig;
use dfs_common::wire::storage::FoundBy;
use dfs_common::{ClusterId, Error, ErrorCode, Incarnation, NodeName, Result, Role, RoutingTable, StorageId, StoreId};
use dfs_crypto::certificate::Credentials;
use dfs_net::Endpoint;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::disk::{Disk, RealDisk};
use crate::replica::Input;
use crate::store::{ChunkStore, MaintainReport, RecoveryReport, Rot, StoreOptions};

use aside::AsideSlot;
use damage::DamageTable;
use directory::DataDirectory;
pub use lease::Lease;
use network::{Network, Transport};
use node::Node;
use quic::{QuicTransport, StorageService};
use scrub::Scrub;
use sessions::Sessions;
use signs::Meter;
use syncer::Syncer;

/// How often waiting requests are looked through for those that waited too long.
const TICK: Duration = Duration::from_millis(20);

/// Between two steps of upkeep when there is nothing to do, and while there is.
const UPKEEP_IDLE: Duration = Duration::from_millis(500);
const UPKEEP_BUSY: Duration = Duration::from_millis(20);

/// How long a stopping node waits for what is in flight.
const DRAIN: Duration = Duration::from_millis(1_500);

/// A fault is reported with the next heartbeat; then a few more, in case one is lost.
const FAULT_TOLD: Duration = Duration::from_millis(300);

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
    /// Why an earlier process found that its store can not be trusted: it is rebuilt.
    pub condemned: Option<String>,
    /// On a fault [`StorageServer::run_until`] ends, so that the caller starts anew.
    pub ends_on_fault: bool,
    /// The most that the check of what is stored reads in a second.
    pub scrub_bytes_per_s: Option<u64>,
}

/// Why a server has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to.
    Stopped,
    /// It acknowledges nothing any more. `condemned`: its store can not be trusted and is to be rebuilt; otherwise another start is enough.
    Faulty { reason: String, condemned: bool },
    /// Descriptors, memory or the like ran out and did not come back. Its store is as good as before: another start is enough, and
    /// any number of them does no harm.
    Short { reason: String },
}

/// Store and directory of a node, before it has a network.
struct Opened {
    directory: DataDirectory,
    store: ChunkStore,
    report: RecoveryReport,
    incarnation: Incarnation,
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

/// The data directory, held, and this start's number.
struct Held {
    directory: DataDirectory,
    incarnation: Incarnation,
}

/// What became of opening the store.
enum Opening {
    Done(Box<Opened>),
    /// It can not be trusted.
    Condemned(Held, String),
}

fn open_disk(at: &Path) -> Result<RealDisk> {
    RealDisk::open(at).map_err(|e| {
        Error::new(
            ErrorCode::Internal,
            format!("{} can not be opened: {e}; check its owner and mode", at.display()),
        )
    })
}

fn open_store(options: &StorageOptions, cluster: ClusterId, name: NodeName, id: StorageId) -> Result<Opening> {
    let directory = DataDirectory::open(&options.data, cluster, name)?;
    let incarnation = starts::begin(&options.data)?;
    let held = Held { directory, incarnation };
    if let Some(reason) = &options.condemned {
        return Ok(Opening::Condemned(held, reason.clone()));
    }
    let disk = open_disk(&held.directory.chunks())?;
    if let Some(reason) = ChunkStore::poisoned(&disk)? {
        return Ok(Opening::Condemned(held, reason));
    }
    open_held(options, held, cluster, id).map(|opened| Opening::Done(Box::new(opened)))
}

/// Copies that others must have before a condemned store is given up: where it is only set aside, and where one is aside already, so
/// that it is emptied.
const COPIES_TO_SET_ASIDE: usize = 1;
const COPIES_TO_EMPTY: usize = 2;

/// Sets the store aside, or empties it if one is aside already, and makes a new one.
fn renew(options: &StorageOptions, held: Held, cluster: ClusterId, id: StorageId, reason: &str) -> Result<Opened> {
    let at = held.directory.chunks();
    let disk = open_disk(&at)?;
    if held.directory.aside()?.is_none() {
        held.directory.set_aside(ChunkStore::id_of(&disk))?;
    } else {
        ChunkStore::wipe(&disk).map_err(|e| Error::from(e).context(at.display()))?;
    }
    let mut opened = open_held(options, held, cluster, id)?;
    opened.report.rot.push(Rot {
        file: "chunks".into(),
        offset: 0,
        length_bytes: 0,
        chunk: None,
        detail: format!("{reason}: emptied, to be filled by the peers"),
    });
    Ok(opened)
}

/// Opens a condemned store as it is: an administrator trusts it. Its checksums say what of it is sound.
fn reopen(options: &StorageOptions, held: Held, cluster: ClusterId, id: StorageId, reason: &str) -> Result<Opened> {
    let at = held.directory.chunks();
    tracing::warn!(reason, "an administrator trusts the store: it is opened again");
    let disk = open_disk(&at)?;
    let absolve = || {
        // What is read shall come from the medium, not from pages that may never have reached it.
        disk.forget_cached()?;
        disk.remove_if_there(ChunkStore::FAULT_MARK)?;
        disk.sync_directory()
    };
    absolve().map_err(|e| {
        Error::new(
            ErrorCode::Internal,
            format!("{} can not be opened again: {e}", at.display()),
        )
    })?;
    open_held(options, held, cluster, id).inspect_err(|_| {
        // It stays condemned.
        let _ = disk.leave(ChunkStore::FAULT_MARK, reason.as_bytes());
    })
}

fn open_held(options: &StorageOptions, held: Held, cluster: ClusterId, id: StorageId) -> Result<Opened> {
    let Held { directory, incarnation } = held;
    let at = directory.chunks();
    let disk = open_disk(&at)?;
    let capacity = match options.capacity_bytes {
        Some(capacity) => capacity,
        None => directory.capacity_bytes()?,
    };
    let options = StoreOptions {
        new_store: draw_store_id()?,
        ..StoreOptions::new(cluster, id, capacity)
    };
    let (store, report) =
        ChunkStore::open(Arc::new(disk), options).map_err(|e| Error::from(e).context(at.display()))?;
    for rot in &report.rot {
        tracing::error!(
            file = rot.file,
            offset = rot.offset,
            bytes = rot.length_bytes,
            detail = rot.detail,
            "damage on disk"
        );
    }
    Ok(Opened {
        directory,
        store,
        report,
        incarnation,
    })
}

fn draw_store_id() -> Result<StoreId> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|e| {
        Error::new(
            ErrorCode::Internal,
            format!("no randomness from the operating system: {e}"),
        )
    })?;
    Ok(StoreId(id))
}

impl Running {
    fn start(
        opened: Opened,
        id: StorageId,
        advertised: SocketAddr,
        transport: Arc<dyn Transport>,
        (config, scrub_bytes_per_s): (&ClusterConfig, Option<u64>),
    ) -> Result<Self> {
        let syncs = Arc::<Meter>::default();
        let (syncer, sync_thread) = Syncer::start(opened.store.clone(), Arc::clone(&syncs))?;
        let node = Arc::new(Node {
            id,
            incarnation: opened.incarnation,
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
            sessions: Sessions::default(),
            syncs,
            writes: Meter::default(),
            neighbours: Mutex::default(),
            budget: Mutex::default(),
            beat_now: Notify::new(),
            damage: DamageTable::default(),
            scrub: Scrub::new(scrub_bytes_per_s),
            aside: AsideSlot::new(opened.directory.aside()?),
            trusted: CancellationToken::new(),
            failed: CancellationToken::new(),
            stopping: CancellationToken::new(),
            configuring: Mutex::new(()),
        });
        node.note_recovery(&opened.report);
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(membership::heartbeats(Arc::clone(&node)));
        tasks.spawn(membership::routing(Arc::clone(&node)));
        tasks.spawn(membership::neighbours(Arc::clone(&node)));
        tasks.spawn(ticks(Arc::clone(&node)));
        tasks.spawn(upkeep(Arc::clone(&node)));
        tasks.spawn(mender::run(Arc::clone(&node)));
        tasks.spawn(scrub::run(Arc::clone(&node)));
        tasks.spawn(aside::run(Arc::clone(&node), opened.directory.path().to_path_buf()));
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
        node.budget.lock().judge(node.lease.now_ms());
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
            let owed = Cell::new(Duration::ZERO);
            store.maintain(&|took| {
                // Parts that cost little need no pause of their own.
                let work = owed.get() + took;
                let pauses = work > UPKEEP_BUSY / UPKEEP_SHARE;
                owed.set(if pauses { Duration::ZERO } else { work });
                let pause = if pauses { upkeep_pause(work) } else { Duration::ZERO };
                (!stopping.is_cancelled()).then_some(pause)
            })
        };
        let start = std::time::Instant::now();
        let stepped = tokio::task::spawn_blocking(step).await;
        if let Ok(Ok(MaintainReport {
            rotten: Some(chunk), ..
        })) = stepped
        {
            let what = "its data can not be moved: it does not match its checksum";
            node.note_damage(chunk, FoundBy::Compaction, &Error::new(ErrorCode::Corrupt, what));
        }
        let pause = match stepped {
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
    ends_on_fault: bool,
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
    /// A store that can not be trusted is rebuilt, which may have to wait for the others; `shutdown` ends that wait.
    ///
    /// One clear line: data directory in use or of another cluster, node or format; port in use; wrong credentials.
    pub async fn start(options: StorageOptions, shutdown: &CancellationToken) -> Result<Self> {
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
        let opening = tokio::task::spawn_blocking(move || open_store(&for_store, cluster, name, id))
            .await
            .map_err(|e| Error::new(ErrorCode::Internal, format!("opening the store: {e}")))??;
        let incarnation = match &opening {
            Opening::Done(opened) => opened.incarnation,
            Opening::Condemned(held, _) => held.incarnation,
        };
        let endpoint = Endpoint::bind_as(&credentials, options.listen, incarnation)
            .await
            .map_err(Error::from)?;
        let address = endpoint.local_address();
        let advertised = options.advertise.unwrap_or(address);
        let transport: Arc<dyn Transport> = Arc::new(QuicTransport::new(endpoint.clone()));
        let opened = match opening {
            Opening::Done(opened) => *opened,
            Opening::Condemned(held, reason) => {
                tracing::error!(reason, "the store can not be trusted: it is rebuilt from the peers");
                let copies = match held.directory.aside()? {
                    None => COPIES_TO_SET_ASIDE,
                    Some(_) => COPIES_TO_EMPTY,
                };
                let network = Network::new(Arc::clone(&transport), options.config.meta_addresses().collect());
                let me = rebuild::Me {
                    node: id,
                    incarnation,
                    store: ChunkStore::id_of(&open_disk(&held.directory.chunks())?),
                    address: advertised,
                };
                let verdict = rebuild::wait_for_verdict(&network, me, copies, &reason, shutdown).await;
                let open = match verdict {
                    rebuild::Verdict::BeginAnew => renew,
                    rebuild::Verdict::Reopen => reopen,
                    rebuild::Verdict::Stop => {
                        return Err(Error::new(
                            ErrorCode::Poisoned,
                            format!("stopped before it could be rebuilt: {reason}"),
                        ));
                    }
                };
                let options = options.clone();
                tokio::task::spawn_blocking(move || open(&options, held, cluster, id, &reason))
                    .await
                    .map_err(|e| Error::new(ErrorCode::Internal, format!("making the store anew: {e}")))??
            }
        };
        // Only now: a start that fails says one line.
        tracing::info!(
            chunks = opened.report.chunks,
            records = opened.report.records,
            torn_bytes = opened.report.torn_tail_bytes,
            damaged = opened.report.rot.len(),
            "store opened"
        );
        let data = opened.directory.path().to_path_buf();
        let mut running = Running::start(
            opened,
            id,
            advertised,
            transport,
            (&options.config, options.scrub_bytes_per_s),
        )?;
        if options.capacity_bytes.is_none() {
            running.tasks.spawn(capacity::run(Arc::clone(&running.node), data));
        }
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
            ends_on_fault: options.ends_on_fault,
        })
    }

    /// Where it listens.
    #[must_use]
    pub const fn local_address(&self) -> SocketAddr {
        self.address
    }

    fn faulty(&self) -> Ended {
        let store = &self.running.node.store;
        let condemned = store.condemned();
        if condemned.is_none()
            && let Some(reason) = store.fault()
        {
            return Ended::Short { reason };
        }
        let reason = condemned.clone().or_else(|| self.running.node.current_fault());
        Ended::Faulty {
            reason: reason.unwrap_or_default(),
            condemned: condemned.is_some(),
        }
    }

    /// Serves until `shutdown`, then drains and closes the store; or until a fault, if the options say so.
    ///
    /// # Errors
    /// When the store can not be closed cleanly.
    pub async fn run_until(self, shutdown: CancellationToken) -> Result<Ended> {
        let node = &self.running.node;
        let failed = async {
            node.failed.cancelled().await;
            if !self.ends_on_fault && !matches!(self.faulty(), Ended::Short { .. }) {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = failed => {
                // The metadata group hears of it first, so that the chains go on at once.
                tokio::time::sleep(FAULT_TOLD).await;
                let ended = self.faulty();
                if matches!(ended, Ended::Short { .. }) {
                    // It may be a while before there is more. What this process has of it goes back.
                    self.running.node.stopping.cancel();
                    self.closing.cancel();
                    let _ = tokio::time::timeout(CLOSE_WAIT, self.endpoint.close()).await;
                }
                return Ok(ended);
            }
            // However often it has started anew: the next start is told to open the store.
            () = node.trusted.cancelled() => return Ok(self.faulty()),
        }
        self.running.node.stopping.cancel();
        let stopped = self.running.stop().await;
        self.closing.cancel();
        self.endpoint.close().await;
        let _ = self.serving.await;
        stopped.map(|()| Ended::Stopped)
    }
}

/// For connections to end when the server does, though something has run out.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

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
