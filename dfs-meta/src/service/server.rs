//! Start and stop of a metadata server.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dfs_common::config::ClusterConfig;
use dfs_common::wire::meta::MetaDamage;
use dfs_common::{ClusterId, Error, ErrorCode, InodeId, MetaId, NodeName, Role};
use dfs_crypto::{Credentials, MetaKey, NameHasher, RecordSealer};
use dfs_net::Endpoint;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use super::clock::Clock;
use super::data_directory::DataDirectory;
use super::error::StartError;
use super::observed::Observed;
use super::replaced::Replaced;
use super::wire::{BetweenServers, Requests, ToStorage};
use super::{Parts, assemble};
use crate::consensus::clocks::Clocks;
use crate::consensus::{
    Consensus, MachineError, RaftConsensus, RaftOptions, Seal, ServiceReport, StateMachine, reset_for_rebuild,
};
use crate::namespace::NameHash;
use crate::room::Room;
use crate::state::State;
use crate::store::{SledStore, ValueSealer, WriteBack};

/// Applied state: commits end in memory, sled gets them a moment later.
type MetaStore = WriteBack<SledStore>;

/// What a metadata server is started with.
#[derive(Clone, Debug)]
pub struct MetaOptions {
    /// Members of the group.
    pub config: ClusterConfig,
    /// Directory with this server's certificate, key and `meta.key`.
    pub credentials: PathBuf,
    /// Data directory.
    pub data: PathBuf,
    /// Local address to bind.
    pub listen: SocketAddr,
    /// Commands between two snapshots, if not as many as usual.
    pub snapshot_every: Option<u64>,
}

/// File in the credentials' directory with the key that seals metadata at rest.
const META_KEY_FILE: &str = "meta.key";

/// Times that an engine which finds its state or log wanting is given another, emptier start.
const START_ATTEMPTS: usize = 3;

/// A snapshot is the whole state: more often would be writing little else.
const MIN_SNAPSHOT_EVERY: u64 = 100;

/// sled's own threads let go of its files a moment after it is dropped.
const SLED_RELEASE: Duration = Duration::from_millis(300);

/// How often a server looks whether its engine stopped.
const WATCH_EVERY: Duration = Duration::from_millis(500);

/// How often a server measures its disk.
const LOOK_AT_ROOM_EVERY: Duration = Duration::from_millis(250);

/// Time for requests and tasks to end at shutdown.
const STOP_WAIT: Duration = Duration::from_secs(3);

/// A running metadata server.
#[derive(Debug)]
pub struct MetaServer {
    me: MetaId,
    endpoint: Endpoint,
    engine: Arc<RaftConsensus>,
    state: Arc<State<MetaStore>>,
    room: Arc<Room>,
    tasks: TaskTracker,
    stop: CancellationToken,
    // Last, so that nobody else gets the directory before everything in it is closed.
    _data: DataDirectory,
}

impl MetaServer {
    /// Opens the data directory, joins the group and serves.
    ///
    /// # Errors
    /// One line that names what is wrong with the directory, the credentials or the port.
    pub async fn start(options: MetaOptions) -> dfs_common::Result<Self> {
        Ok(start(options).await?)
    }

    /// Where it listens.
    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.endpoint.local_address()
    }

    /// Whether this server leads and knows all that was acknowledged.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.engine.leadership().borrow().is_self
    }

    /// Serves until `shutdown`, then closes everything in order.
    ///
    /// # Errors
    /// When the server had to stop by itself, because its disk or its state failed.
    pub async fn run_until(self, shutdown: CancellationToken) -> dfs_common::Result<()> {
        let failed = async {
            loop {
                tokio::time::sleep(WATCH_EVERY).await;
                if let Some(why) = self.engine.status().stopped {
                    return why;
                }
            }
        };
        let failure = tokio::select! {
            () = shutdown.cancelled() => None,
            why = failed => Some(why),
        };
        if let Some(why) = &failure {
            error!(why, "the metadata server stops");
        }
        self.close().await;
        failure.map_or(Ok(()), |why| {
            Err(Error::new(
                ErrorCode::Poisoned,
                format!("meta-{} stopped by itself: {why}", self.me),
            ))
        })
    }

    async fn close(&self) {
        self.room.close();
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(STOP_WAIT, self.tasks.wait()).await.is_err() {
            warn!("requests were still under way at shutdown");
        }
        self.engine.shutdown().await;
        self.endpoint.close().await;
        let state = Arc::clone(&self.state);
        // Not needed for durability, which is the log's; it makes the next start quick.
        match tokio::task::spawn_blocking(move || {
            state.store().drain()?;
            state.store().below().flush()
        })
        .await
        {
            Ok(Ok(())) => {}
            Ok(Err(e)) => warn!(error = %e, "the applied state was not written out; it is rebuilt at the next start"),
            Err(e) => warn!(error = %e, "writing out the applied state was cut off"),
        }
        info!(me = %self.me, "the metadata server is closed");
    }
}

async fn start(options: MetaOptions) -> Result<MetaServer, StartError> {
    let credentials = Credentials::load(&options.credentials).map_err(|e| StartError::Credentials(e.into()))?;
    let me = identify(&options, &credentials)?;
    let cluster = credentials.cluster();
    let members: BTreeMap<MetaId, SocketAddr> = options.config.meta_addresses().collect();
    if !members.contains_key(&me) {
        return Err(StartError::Config(Error::new(
            ErrorCode::InvalidArgument,
            format!("meta-{me} is not among the metadata servers of the configuration: add it under [[meta]]"),
        )));
    }
    let key = MetaKey::load(&options.credentials.join(META_KEY_FILE)).map_err(|e| StartError::Credentials(e.into()))?;
    let data = DataDirectory::open(&options.data, cluster, NodeName::from(me))?;
    let endpoint = Endpoint::bind(&credentials, options.listen)
        .await
        .map_err(|e| StartError::Network(e.into()))?;

    let room = Arc::new(Room::open(&options.data));
    let clocks: Arc<Mutex<Clocks>> = Arc::default();
    let clock = Arc::new(Clock::new(Arc::clone(&clocks)));
    let base = Base {
        cluster,
        me,
        members,
        key,
        clock,
        clocks,
        room: Arc::clone(&room),
        endpoint,
        snapshot_every: options.snapshot_every,
        damage: Mutex::default(),
    };
    let engine = base.open_engine(&data).await?;
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let shared = assemble(
        Parts {
            cluster,
            me,
            clock: Arc::clone(&base.clock),
            consensus: Arc::clone(&engine.consensus) as Arc<dyn Consensus>,
            state: Arc::clone(&engine.state) as Arc<_>,
            routing: engine.machine.routing(),
            storage: Arc::new(ToStorage {
                endpoint: base.endpoint.clone(),
            }),
            damage: base.damage.lock().clone(),
        },
        &tasks,
        &stop,
    );
    let (serving, service, until) = (base.endpoint.clone(), Arc::new(Requests { shared }), stop.clone());
    tasks.spawn(async move { serving.serve(service, until).await });
    tasks.spawn(stop.clone().run_until_cancelled_owned(watch_room(Arc::clone(&room))));
    info!(%me, address = %base.endpoint.local_address(), "the metadata server is up");
    Ok(MetaServer {
        me,
        endpoint: base.endpoint,
        engine: engine.consensus,
        state: engine.state,
        room,
        tasks,
        stop,
        _data: data,
    })
}

/// Keeps what is known of the disk's room fresh.
async fn watch_room(room: Arc<Room>) {
    loop {
        tokio::time::sleep(LOOK_AT_ROOM_EVERY).await;
        let room = Arc::clone(&room);
        let _ = tokio::task::spawn_blocking(move || room.look()).await;
    }
}

/// Who the credentials say this is, if that fits the configuration.
fn identify(options: &MetaOptions, credentials: &Credentials) -> Result<MetaId, StartError> {
    let name = credentials.name();
    if name.role != Role::Meta {
        return Err(StartError::Credentials(Error::new(
            ErrorCode::Unauthorized,
            format!("they are those of {name}, not of a metadata server; give the directory made for meta-N"),
        )));
    }
    let cluster = options.config.cluster_id().map_err(StartError::Config)?;
    if credentials.cluster() != cluster {
        return Err(StartError::Credentials(Error::new(
            ErrorCode::Incompatible,
            format!(
                "they are of cluster {}, the configuration is of {cluster}; give those of that cluster",
                credentials.cluster()
            ),
        )));
    }
    if let Some(node) = &options.config.node {
        let wanted = node.node_name().map_err(StartError::Config)?;
        if wanted != name {
            return Err(StartError::Credentials(Error::new(
                ErrorCode::Unauthorized,
                format!("they are those of {name}, the configuration is for {wanted}; give those of {wanted}"),
            )));
        }
    }
    Ok(MetaId(name.number))
}

/// What opening the engine takes.
struct Base {
    cluster: ClusterId,
    me: MetaId,
    members: BTreeMap<MetaId, SocketAddr>,
    key: MetaKey,
    clock: Arc<Clock>,
    clocks: Arc<Mutex<Clocks>>,
    room: Arc<Room>,
    endpoint: Endpoint,
    snapshot_every: Option<u64>,
    damage: Mutex<Vec<MetaDamage>>,
}

struct Engine {
    state: Arc<State<MetaStore>>,
    machine: Arc<Observed<MetaStore>>,
    consensus: Arc<RaftConsensus>,
}

impl Base {
    /// Opens state and log. The state is a cache of log and snapshots: whatever is wrong with it is cured by deleting it.
    async fn open_engine(&self, data: &DataDirectory) -> Result<Engine, StartError> {
        let mut attempt = 1;
        loop {
            let state = Arc::new(self.open_state(data).await?);
            let service_report = Arc::new(Mutex::new(ServiceReport {
                configured: self.members.clone(),
                ..ServiceReport::default()
            }));
            let machine = Arc::new(Observed::new(
                Arc::clone(&state),
                Arc::clone(&self.clock),
                self.members.clone(),
                Replaced::open(data.replaced(), self.endpoint.clone(), Arc::clone(&service_report))?,
            ));
            let transport = Arc::new(BetweenServers::new(
                self.endpoint.clone(),
                &self.members,
                machine.routing(),
            ));
            let mut options = RaftOptions::new(
                self.cluster,
                self.me,
                self.members.keys().copied().collect(),
                data.consensus(),
                Arc::new(Sealed(self.sealer()?)),
                Arc::clone(&self.room),
            );
            options.clocks = Arc::clone(&self.clocks);
            options.service_report = service_report;
            if let Some(every) = self.snapshot_every {
                options.snapshot_every = every.max(MIN_SNAPSHOT_EVERY);
                options.keep_behind_snapshot = options.keep_behind_snapshot.min(options.snapshot_every);
            }
            let failure =
                match RaftConsensus::start(options, transport, Arc::clone(&machine) as Arc<dyn StateMachine>).await {
                    Ok(consensus) => {
                        self.note_snapshots(&data.consensus());
                        return Ok(Engine {
                            state,
                            machine,
                            consensus,
                        });
                    }
                    Err(e) => e,
                };
            let curable = failure.wants_empty_state() || failure.wants_rebuild();
            if !curable || attempt == START_ATTEMPTS {
                return Err(StartError::Consensus(failure));
            }
            attempt += 1;
            if failure.wants_rebuild() {
                warn!(error = %failure, "the log is put aside; this server fetches everything from the others");
                self.note(format!("{failure}: put aside, and fetched from the others"));
                reset_for_rebuild(&data.consensus()).map_err(StartError::Consensus)?;
            } else {
                warn!(error = %failure, "the applied state is deleted and rebuilt");
            }
            drop((state, machine));
            tokio::time::sleep(SLED_RELEASE).await;
            data.drop_state()?;
        }
    }

    fn note(&self, what: String) {
        let at = self.clock.command_time();
        self.damage.lock().push(MetaDamage { at, what });
    }

    /// Snapshots that were found damaged, by this start or an earlier one, lie beside the others.
    fn note_snapshots(&self, consensus: &Path) {
        let entries = std::fs::read_dir(consensus.join("snapshots"))
            .into_iter()
            .flatten()
            .flatten();
        for path in entries.map(|entry| entry.path()) {
            if path.extension().is_some_and(|extension| extension == "damaged") {
                self.note(format!(
                    "{} is what was a snapshot: put aside, not used",
                    path.display()
                ));
            }
        }
    }

    async fn open_state(&self, data: &DataDirectory) -> Result<State<MetaStore>, StartError> {
        match self.try_state(data).await {
            Ok(state) => Ok(state),
            Err(e) => {
                warn!(error = %e, "the applied state does not open; it is deleted and rebuilt from log and snapshots");
                self.note(format!("{e}: deleted, and rebuilt from log and snapshots"));
                tokio::time::sleep(SLED_RELEASE).await;
                data.drop_state()?;
                self.try_state(data).await
            }
        }
    }

    async fn try_state(&self, data: &DataDirectory) -> Result<State<MetaStore>, StartError> {
        let (directory, cluster) = (data.state(), self.cluster);
        let (sealer, hasher) = (Sealed(self.sealer()?), Names(self.key.name_hasher()));
        let room = Arc::clone(&self.room);
        let opening = move || {
            State::open(
                WriteBack::new(SledStore::open(&directory, sealer)?, room)?,
                hasher,
                cluster,
            )
        };
        match tokio::task::spawn_blocking(opening).await {
            Ok(opened) => opened.map_err(|e| StartError::State(e.into())),
            Err(e) => Err(StartError::State(Error::new(
                ErrorCode::Internal,
                format!("opening it was cut off: {e}"),
            ))),
        }
    }

    fn sealer(&self) -> Result<RecordSealer, StartError> {
        self.key.sealer().map_err(|e| StartError::Credentials(e.into()))
    }
}

/// One sealer for rows, log records and snapshots; what each binds keeps them apart.
struct Sealed(RecordSealer);

impl ValueSealer for Sealed {
    fn seal(&self, associated: &[u8], plain: &[u8]) -> dfs_common::Result<Vec<u8>> {
        Ok(self.0.seal(associated, plain)?)
    }

    fn open(&self, associated: &[u8], sealed: &[u8]) -> dfs_common::Result<Vec<u8>> {
        Ok(self.0.open(associated, sealed)?)
    }
}

impl Seal for Sealed {
    fn seal(&self, aad: &[u8], plain: &[u8]) -> Result<Vec<u8>, MachineError> {
        Ok(self.0.seal(aad, plain)?)
    }

    fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, MachineError> {
        Ok(self.0.open(aad, sealed)?)
    }
}

struct Names(NameHasher);

impl NameHash for Names {
    fn hash(&self, parent: InodeId, name: &[u8]) -> [u8; 16] {
        self.0.hash(parent, name)
    }
}
