//! Raft behind the [`super::Consensus`] trait: start and recovery, proposals, read barrier, messages, leadership.
//!
//! Proposals that wait together become one log entry (see [`CommandBatch`]); a few entries are under way at a time, so that
//! a lonely proposal leaves at once and a crowd shares one flush and one round of messages. Readers that can not be
//! answered from the leader's lease share one round of confirmation the same way.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use dfs_common::wire::meta::LEADER_CONFIRMED_MS;
use dfs_common::{ClusterId, ErrorCode, MetaId};
use dfs_net::{BootInstant, wall_clock};
use openraft::error::{Fatal, InitializeError, RaftError};
use openraft::impls::EmptyNode;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, VoteRequest};
use openraft::{Config, RaftMetrics, SnapshotPolicy};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::clocks::Clocks;
use super::confirm::{
    Confirmations, ELECTION_TIMEOUT_MAX_MS, ELECTION_TIMEOUT_MIN_MS, HEARTBEAT_EVERY_MS, HEARTBEAT_INTERVAL_MS,
    leader_id,
};
use super::elections::Elections;
use super::hearing::Hearing;
use super::joining::{self, Joining};
use super::listening::{Listening, Told};
use super::log::{Log, LogOptions, LogStore, has_segments};
use super::machine::MachineStore;
use super::network::{
    KIND_APPEND, KIND_HELLO, KIND_LOG_END, KIND_MAY_I_STAND, KIND_RESIGN, KIND_SNAPSHOT_PART, KIND_VOTE, Network,
};
use super::queues::{
    BarrierReply, MAX_WAITING_COMMANDS, MAX_WAITING_READERS, Proposal, confirm_reads, propose_batches, stopped,
};
use super::relief::relieve;
use super::snapshot::Snapshots;
use super::standing::Standing;
use super::types::{Raft, TypeConfig};
use super::{
    Consensus, ConsensusError, ConsensusStatus, Leadership, LogError, MAX_COMMAND_SIZE_BYTES, Seal, SelfReport,
    ServiceReport, StateMachine, Transport,
};
use crate::room::{Room, RoomLeft};

/// Bytes of one part of a snapshot on its way.
const SNAPSHOT_PART_BYTES: u64 = 512 << 10;

/// How long one part of a snapshot may take; the last one includes verifying and importing the whole.
const SNAPSHOT_PART_DEADLINE_MS: u64 = 60_000;

/// Damaged logs kept for people. More than that many rebuilds on one disk want a person, not another try.
const MAX_PUT_ASIDE: u32 = 16;

/// How a server takes part.
pub struct RaftOptions {
    pub cluster: ClusterId,
    pub me: MetaId,
    /// All servers of the first configuration, this one included.
    pub members: BTreeSet<MetaId>,
    /// Log, votes and snapshots live here; created if absent.
    pub directory: PathBuf,
    pub sealer: Arc<dyn Seal>,
    /// Of the disk that the directory is on.
    pub room: Arc<Room>,
    /// What the others' clocks say goes here.
    pub clocks: Arc<Mutex<Clocks>>,
    /// What the service has this server say of itself.
    pub service_report: Arc<Mutex<ServiceReport>>,
    /// Bytes of a log segment.
    pub segment_size_bytes: u64,
    /// Entries between snapshots.
    pub snapshot_every: u64,
    /// Entries kept behind a snapshot, so that a server that was away for a moment gets entries, not a snapshot.
    pub keep_behind_snapshot: u64,
}

impl std::fmt::Debug for RaftOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftOptions")
            .field("me", &self.me)
            .field("members", &self.members)
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

impl RaftOptions {
    pub fn new(
        cluster: ClusterId,
        me: MetaId,
        members: BTreeSet<MetaId>,
        directory: PathBuf,
        sealer: Arc<dyn Seal>,
        room: Arc<Room>,
    ) -> Self {
        Self {
            cluster,
            me,
            members,
            directory,
            sealer,
            room,
            clocks: Arc::default(),
            service_report: Arc::default(),
            segment_size_bytes: 16 << 20,
            snapshot_every: 50_000,
            keep_behind_snapshot: 10_000,
        }
    }
}

/// The engine.
pub struct RaftConsensus {
    me: MetaId,
    members: BTreeSet<MetaId>,
    transport: Arc<dyn Transport>,
    raft: Raft,
    log: Log,
    room: Arc<Room>,
    service_report: Arc<Mutex<ServiceReport>>,
    told: Told,
    joining: Arc<Joining>,
    confirmations: Arc<Mutex<Confirmations>>,
    elections: Arc<Mutex<Elections>>,
    leadership: watch::Receiver<Leadership>,
    proposals: mpsc::Sender<Proposal>,
    barriers: mpsc::Sender<BarrierReply>,
    stop: CancellationToken,
}

impl std::fmt::Debug for RaftConsensus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RaftConsensus")
            .field("me", &self.me)
            .finish_non_exhaustive()
    }
}

impl RaftConsensus {
    /// Recovers what is on disk and joins the others.
    ///
    /// # Errors
    /// See [`ConsensusError::wants_empty_state`] and [`ConsensusError::wants_rebuild`] for those that the caller can cure.
    pub async fn start(
        options: RaftOptions,
        transport: Arc<dyn Transport>,
        machine: Arc<dyn StateMachine>,
    ) -> Result<Arc<Self>, ConsensusError> {
        let options = Arc::new(options);
        let recovery = {
            let options = options.clone();
            tokio::task::spawn_blocking(move || recover(&options, machine))
        };
        let (log, covered, machine, joining) = recovery.await.map_err(stopped)??;

        let members: BTreeSet<u64> = options.members.iter().map(|id| id.0).collect();
        let confirmations = Arc::new(Mutex::new(Confirmations::new(options.me.0, members.clone())));
        let elections = Arc::new(Mutex::new(Elections::new(
            options.me.0,
            members.clone(),
            Instant::now(),
        )));
        let hearing = Arc::new(Mutex::new(Hearing::new(options.me.0, &members, Instant::now())));
        let network = Network {
            transport: transport.clone(),
            confirmations: confirmations.clone(),
            log: log.clone(),
            hearing: hearing.clone(),
        };
        let store = LogStore {
            log: log.clone(),
            covered,
        };
        let config = raft_config(&options)?;
        let raft = Raft::new(options.me.0, Arc::new(config), network, store, machine)
            .await
            .map_err(stopped)?;
        let joining = Arc::new(joining);
        // See `elections`.
        raft.runtime_config().elect(false);
        if members.first() == Some(&options.me.0) {
            initialize(&raft, &members).await?;
        }

        let told = Told::default();
        let stop = CancellationToken::new();
        let (leadership_sender, leadership) = watch::channel(Leadership::default());
        let (proposals, proposed) = mpsc::channel(MAX_WAITING_COMMANDS);
        let (barriers, asked) = mpsc::channel(MAX_WAITING_READERS);
        let this = Arc::new(Self {
            me: options.me,
            members: options.members.clone(),
            transport: Arc::clone(&transport),
            raft: raft.clone(),
            log,
            room: Arc::clone(&options.room),
            service_report: Arc::clone(&options.service_report),
            told: Arc::clone(&told),
            joining: joining.clone(),
            confirmations,
            elections: elections.clone(),
            leadership: leadership.clone(),
            proposals,
            barriers,
            stop: stop.clone(),
        });
        tokio::spawn(stop.clone().run_until_cancelled_owned(watch_leadership(
            raft.clone(),
            options.me,
            joining.clone(),
            leadership_sender,
        )));
        let listening = Listening {
            me: options.me,
            members: options.members.clone(),
            transport: transport.clone(),
            hearing,
            clocks: Arc::clone(&options.clocks),
            elections: Arc::clone(&elections),
            room: Arc::clone(&options.room),
            told,
            leadership: leadership.clone(),
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(listening.run()));
        let standing = Standing {
            raft: raft.clone(),
            me: options.me,
            members: options.members.clone(),
            log: this.log.clone(),
            transport,
            joining,
            elections,
            clocks: Arc::clone(&options.clocks),
            leadership: leadership.clone(),
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(standing.run()));
        tokio::spawn(
            stop.clone()
                .run_until_cancelled_owned(beat(raft.clone(), leadership.clone())),
        );
        tokio::spawn(
            stop.clone()
                .run_until_cancelled_owned(propose_batches(raft.clone(), proposed)),
        );
        tokio::spawn(
            stop.clone()
                .run_until_cancelled_owned(relieve(raft.clone(), Arc::clone(&options.room))),
        );
        tokio::spawn(stop.run_until_cancelled_owned(confirm_reads(raft, asked)));
        Ok(this)
    }

    pub const fn me(&self) -> MetaId {
        self.me
    }

    /// Answered from the lease, without asking anybody.
    fn may_read_now(&self) -> bool {
        let now = *self.leadership.borrow();
        now.is_self && self.confirmed(now.term, Duration::from_millis(LEADER_CONFIRMED_MS))
    }

    fn confirmed(&self, term: u64, within: Duration) -> bool {
        self.confirmations.lock().confirmed(term, within, BootInstant::now())
    }

    fn report(&self) -> SelfReport {
        SelfReport {
            room: self.room.told(),
            service: self.service_report.lock().clone(),
        }
    }

    async fn handle_append(&self, request: AppendEntriesRequest<TypeConfig>) -> dfs_common::Result<Vec<u8>> {
        let (vote, committed) = (request.vote, request.leader_commit.map(|id| id.index));
        let last = request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id);
        let answer = self.raft.append_entries(request).await;
        if matches!(&answer, Ok(answer) if !matches!(answer, AppendEntriesResponse::HigherVote(_))) {
            let (term, leader) = leader_id(&vote);
            self.elections.lock().heard(leader, term, Instant::now());
        }
        // The engine answers when the entries are in memory.
        if let Some(last) = last
            && matches!(&answer, Ok(answer) if answer.is_success())
        {
            self.log
                .durable(last)
                .await
                .map_err(|error| dfs_common::Error::new(ErrorCode::Poisoned, error.to_string()))?;
        }
        if matches!(&answer, Ok(answer) if answer.is_success()) && self.joining.is_active() {
            let applied = self.raft.data_metrics().borrow().last_applied.map(|id| id.index);
            if self.joining.heard(&vote, committed, applied, Instant::now()) {
                end_joining(&self.joining).await;
            }
        }
        dfs_common::codec::encode(&answer)
    }

    async fn handle_vote(&self, request: VoteRequest<u64>) -> dfs_common::Result<Vec<u8>> {
        let (_, standing) = leader_id(&request.vote);
        let group = (self.me, &self.members);
        let history = self
            .joining
            .may_vote_for(MetaId(standing), request.last_log_id, group, &self.transport);
        if !history.await {
            return Err(dfs_common::Error::new(
                ErrorCode::Unreachable,
                format!(
                    "{} has no history yet and votes only for a log that no other server's exceeds",
                    self.me
                ),
            ));
        }
        if self.elections.lock().may_have_vouched(Instant::now()) {
            return Err(dfs_common::Error::new(
                ErrorCode::Unreachable,
                format!(
                    "{} has just started and may have vouched for a leader before: it does not vote yet",
                    self.me
                ),
            ));
        }
        let candidate = leader_id(&request.vote);
        let within = Duration::from_millis(LEADER_CONFIRMED_MS);
        if !self
            .confirmations
            .lock()
            .let_vote_pass(candidate, within, BootInstant::now())
        {
            return Err(dfs_common::Error::new(
                ErrorCode::Unreachable,
                format!("{} leads and a quorum follows it", self.me),
            ));
        }
        let answer = self.raft.vote(request).await;
        match &answer {
            Ok(answer) if answer.vote_granted => self.elections.lock().voted(Instant::now()),
            Ok(answer) if leader_id(&answer.vote) < candidate => self.confirmations.lock().vote_refused(candidate),
            _ => {}
        }
        dfs_common::codec::encode(&answer)
    }
}

/// Log, how far snapshots cover it, state machine, and whether this server is joining.
type Recovered = (Log, watch::Receiver<u64>, MachineStore, Joining);

/// Everything that blocks on disk before Raft can start.
fn recover(options: &RaftOptions, machine: Arc<dyn StateMachine>) -> Result<Recovered, ConsensusError> {
    let log_directory = options.directory.join("log");
    if !log_directory.join("vote").exists() {
        // Before anything that looks like history.
        joining::mark(&options.directory)?;
    } else if !has_segments(&log_directory)? && !joining::mark_path(&options.directory).exists() {
        return Err(ConsensusError::Log(LogError::Rot {
            path: log_directory,
            offset: 0,
            detail: "this server has voted, but its log is missing".into(),
        }));
    }
    let snapshots = Arc::new(Snapshots::open(
        options.directory.join("snapshots"),
        options.cluster,
        options.sealer.clone(),
        Arc::clone(&options.room),
    )?);
    let log = Log::open(&LogOptions {
        directory: log_directory,
        cluster: options.cluster,
        sealer: options.sealer.clone(),
        segment_size_bytes: options.segment_size_bytes,
        room: Arc::clone(&options.room),
    })?;
    let covered = snapshots.covered();
    options.room.note_logged(log.bytes_since(*covered.borrow()));
    match MachineStore::open(machine, snapshots, &log) {
        Ok(machine) => Ok((log, covered, machine, Joining::open(&options.directory))),
        Err(error) => {
            log.close();
            Err(error)
        }
    }
}

fn raft_config(options: &RaftOptions) -> Result<Config, ConsensusError> {
    Config {
        cluster_name: options.cluster.to_string(),
        heartbeat_interval: HEARTBEAT_INTERVAL_MS,
        election_timeout_min: ELECTION_TIMEOUT_MIN_MS,
        election_timeout_max: ELECTION_TIMEOUT_MAX_MS,
        install_snapshot_timeout: SNAPSHOT_PART_DEADLINE_MS,
        snapshot_max_chunk_size: SNAPSHOT_PART_BYTES,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(options.snapshot_every),
        max_in_snapshot_log_to_keep: options.keep_behind_snapshot,
        // A server further behind than the log reaches gets a snapshot; below that, entries are cheaper.
        replication_lag_threshold: options.snapshot_every + options.keep_behind_snapshot,
        max_payload_entries: 256,
        purge_batch_size: 1,
        ..Config::default()
    }
    .validate()
    .map_err(stopped)
}

/// Writes the first configuration, once in a cluster's life.
async fn initialize(raft: &Raft, members: &BTreeSet<u64>) -> Result<(), ConsensusError> {
    if raft.is_initialized().await.map_err(stopped)? {
        return Ok(());
    }
    match raft.initialize(members.clone()).await {
        Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
        Err(error) => Err(stopped(error)),
    }
}

async fn end_joining(joining: &Arc<Joining>) {
    let ending = joining.clone();
    let _ = tokio::task::spawn_blocking(move || ending.end()).await;
}

fn leadership_of(metrics: &RaftMetrics<u64, EmptyNode>, me: MetaId) -> Leadership {
    if metrics.running_state.is_err() {
        return Leadership {
            term: metrics.current_term,
            ..Leadership::default()
        };
    }
    let leads = metrics.current_leader == Some(me.0) && metrics.state == openraft::ServerState::Leader;
    let applied_own = metrics
        .last_applied
        .is_some_and(|id| (id.leader_id.term, id.leader_id.node_id) == (metrics.current_term, me.0));
    Leadership {
        leader: metrics.current_leader.map(MetaId),
        term: metrics.current_term,
        is_self: leads && applied_own,
    }
}

/// Keeps `leadership` up to date, and ends joining for who was elected.
async fn watch_leadership(raft: Raft, me: MetaId, joining: Arc<Joining>, sender: watch::Sender<Leadership>) {
    let mut metrics = raft.metrics();
    let mut reported = false;
    loop {
        let (now, state) = {
            let metrics = metrics.borrow_and_update();
            if let Err(error) = &metrics.running_state
                && !matches!(error, Fatal::Stopped)
                && !reported
            {
                tracing::error!(%error, "consensus stopped on this server");
                reported = true;
            }
            (leadership_of(&metrics, me), metrics.state)
        };
        if joining.is_active() && state == openraft::ServerState::Leader {
            end_joining(&joining).await;
        }
        sender.send_if_modified(|old| {
            let changed = *old != now;
            *old = now;
            changed
        });
        if metrics.changed().await.is_err() {
            sender.send_replace(Leadership::default());
            return;
        }
    }
}

/// Lets followers hear of a leader that has nothing to say.
async fn beat(raft: Raft, leadership: watch::Receiver<Leadership>) {
    let mut ticks = tokio::time::interval(Duration::from_millis(HEARTBEAT_EVERY_MS));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if leadership.borrow().is_self && raft.trigger().heartbeat().await.is_err() {
            return;
        }
    }
}

/// Puts a damaged log and its snapshots aside (renamed, kept for people) and marks this server as one that must catch up
/// before it votes. The vote is kept if it can be read, so that the server does not vote twice in a term.
pub fn reset_for_rebuild(directory: &Path) -> Result<(), ConsensusError> {
    joining::mark(directory)?;
    let log = directory.join("log");
    let vote = std::fs::read(log.join("vote")).ok();
    for name in ["log", "snapshots"] {
        let from = directory.join(name);
        if !from.exists() {
            continue;
        }
        let aside = (1..=MAX_PUT_ASIDE)
            .map(|number| directory.join(format!("{name}.damaged-{number}")))
            .find(|path| !path.exists())
            .ok_or_else(|| stopped(format!("{MAX_PUT_ASIDE} rebuilds are kept; remove some")))?;
        std::fs::rename(&from, &aside).map_err(LogError::io("putting aside", &from))?;
        tracing::warn!(aside = %aside.display(), "put aside; this server is rebuilt from the others");
    }
    if let Some(vote) = vote {
        std::fs::create_dir_all(&log).map_err(LogError::io("creating", &log))?;
        let path = log.join("vote");
        std::fs::write(&path, vote)
            .and_then(|()| std::fs::File::open(&path)?.sync_all())
            .map_err(LogError::io("writing", &path))?;
        super::log::sync_directory(&log)?;
    }
    super::log::sync_directory(directory)?;
    Ok(())
}

#[async_trait]
impl Consensus for RaftConsensus {
    async fn propose(&self, command: Vec<u8>, deadline: Duration) -> Result<Vec<u8>, ConsensusError> {
        if command.len() > MAX_COMMAND_SIZE_BYTES {
            return Err(ConsensusError::TooBig(command.len()));
        }
        let (reply, answer) = oneshot::channel();
        let proposal = Proposal {
            command: command.into(),
            reply,
        };
        self.proposals.try_send(proposal).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ConsensusError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => stopped("it was shut down"),
        })?;
        match tokio::time::timeout(deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(stopped("it was shut down")),
            Err(_) => Err(ConsensusError::Timeout(deadline.as_millis() as u64)),
        }
    }

    async fn read_barrier(&self) -> Result<(), ConsensusError> {
        if self.may_read_now() {
            return Ok(());
        }
        let (reply, answer) = oneshot::channel();
        self.barriers.try_send(reply).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ConsensusError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => stopped("it was shut down"),
        })?;
        answer.await.unwrap_or_else(|_| Err(stopped("it was shut down")))
    }

    fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    fn confirmed_within(&self, within: Duration) -> bool {
        let now = *self.leadership.borrow();
        now.is_self && self.confirmed(now.term, within)
    }

    async fn handle(&self, from: MetaId, kind: u8, body: &[u8]) -> Result<Vec<u8>, dfs_common::Error> {
        match kind {
            KIND_APPEND => self.handle_append(dfs_common::codec::decode(body)?).await,
            KIND_VOTE => self.handle_vote(dfs_common::codec::decode(body)?).await,
            KIND_SNAPSHOT_PART => {
                let request: InstallSnapshotRequest<TypeConfig> = dfs_common::codec::decode(body)?;
                let bytes = request.data.len() as u64;
                let room = self.room.check(bytes).or_else(|_| {
                    // It may give up what is kept for this.
                    self.room.look();
                    self.room.check(bytes)
                });
                room.map_err(|error| {
                    dfs_common::Error::new(ErrorCode::NoSpace, format!("this server's disk: {error}"))
                })?;
                let (term, leader) = leader_id(&request.vote);
                let answer = self.raft.install_snapshot(request).await;
                if answer.is_ok() {
                    self.elections.lock().heard(leader, term, Instant::now());
                }
                dfs_common::codec::encode(&answer)
            }
            KIND_MAY_I_STAND => {
                let leads = self.confirmed_within(Duration::from_millis(LEADER_CONFIRMED_MS));
                let answer = self.elections.lock().may_stand_in_ms(Instant::now());
                dfs_common::codec::encode(&(answer.filter(|_| !leads), wall_clock()))
            }
            // Whatever this server has acknowledged, or sent as a leader, is in it.
            KIND_LOG_END => dfs_common::codec::encode(&self.log.state().1),
            KIND_HELLO => dfs_common::codec::encode(&(wall_clock(), self.report())),
            KIND_RESIGN => {
                let term: u64 = dfs_common::codec::decode(body)?;
                self.elections.lock().resigned(from.0, term, Instant::now());
                Ok(Vec::new())
            }
            _ => Err(dfs_common::Error::new(
                ErrorCode::BadMessage,
                format!("meta-{from} sent a consensus message of unknown kind {kind}"),
            )),
        }
    }

    fn lacks_room(&self) -> bool {
        self.room.left() != RoomLeft::Ample
    }

    fn status(&self) -> ConsensusStatus {
        let receiver = self.raft.metrics();
        let metrics = receiver.borrow();
        let now = BootInstant::now();
        let sent = self.confirmations.lock().sent().clone();
        ConsensusStatus {
            leadership: *self.leadership.borrow(),
            last_log_index: metrics.last_log_index,
            last_applied_index: metrics.last_applied.map(|id| id.index),
            snapshot_index: metrics.snapshot.map(|id| id.index),
            purged_index: metrics.purged.map(|id| id.index),
            matched: metrics
                .replication
                .iter()
                .flatten()
                .map(|(&id, matched)| (MetaId(id), matched.map(|id| id.index)))
                .collect(),
            answered_ms_ago: sent
                .into_iter()
                .map(|(id, at)| (MetaId(id), now.saturating_duration_since(at).as_millis() as u64))
                .collect(),
            joining: self.joining.is_active(),
            told: {
                let others = self.told.lock();
                let others = others.iter().map(|(&id, (report, _))| (id, report.clone()));
                others.chain([(self.me, self.report())]).collect()
            },
            stopped: metrics.running_state.as_ref().err().map(ToString::to_string),
        }
    }

    async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "consensus did not stop cleanly");
        }
        self.stop.cancel();
        let log = self.log.clone();
        let _ = tokio::task::spawn_blocking(move || log.close()).await;
    }
}
