//! Three servers in one process over an in-memory router, with a toy state machine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use dfs_common::{ClusterId, ErrorCode, MetaId};
use parking_lot::Mutex;

use super::snapshot::Snapshots;
use super::*;
use crate::room::Room;

const CLUSTER: ClusterId = ClusterId([7; 16]);
const DEADLINE: Duration = Duration::from_secs(5);

/// Not a cipher: binds the bytes to the aad, so that a mix-up is noticed.
pub(super) struct ToySeal;

impl Seal for ToySeal {
    fn seal(&self, aad: &[u8], plain: &[u8]) -> Result<Vec<u8>, MachineError> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(aad).update(plain);
        let mut out = hasher.finalize().as_bytes()[..16].to_vec();
        out.extend(plain.iter().map(|byte| byte ^ 0x5a));
        Ok(out)
    }

    fn open(&self, aad: &[u8], sealed: &[u8]) -> Result<Vec<u8>, MachineError> {
        let (tag, body) = sealed.split_at_checked(16).ok_or("too short")?;
        let plain: Vec<u8> = body.iter().map(|byte| byte ^ 0x5a).collect();
        let mut hasher = blake3::Hasher::new();
        hasher.update(aad).update(&plain);
        if hasher.finalize().as_bytes()[..16] != *tag {
            return Err("it does not open".into());
        }
        Ok(plain)
    }
}

/// Appends commands to a list; the outcome is the place in it.
#[derive(Default)]
struct ToyMachine(Mutex<Toy>);

#[derive(Clone, Default)]
struct Toy {
    commands: Vec<Vec<u8>>,
    position: Option<Vec<u8>>,
}

impl StateMachine for ToyMachine {
    fn apply(&self, commands: &[&[u8]], position: &[u8]) -> Result<Vec<Vec<u8>>, MachineError> {
        let mut toy = self.0.lock();
        toy.position = Some(position.to_vec());
        Ok(commands
            .iter()
            .map(|command| {
                toy.commands.push(command.to_vec());
                (toy.commands.len() as u64).to_le_bytes().to_vec()
            })
            .collect())
    }

    fn position(&self) -> Result<Option<Vec<u8>>, MachineError> {
        Ok(self.0.lock().position.clone())
    }

    fn export(&self, sink: &mut RowSink<'_>) -> Result<Vec<u8>, MachineError> {
        let toy = self.0.lock().clone();
        for (number, command) in toy.commands.iter().enumerate() {
            sink(&(number as u64).to_be_bytes(), command)?;
        }
        Ok(toy.position.unwrap_or_default())
    }

    fn import(&self, rows: &mut RowSource<'_>, position: &[u8]) -> Result<(), MachineError> {
        let mut commands = Vec::new();
        for row in rows {
            commands.push(row?.1);
        }
        *self.0.lock() = Toy {
            commands,
            position: Some(position.to_vec()),
        };
        Ok(())
    }
}

#[derive(Default)]
struct Router {
    servers: Mutex<BTreeMap<MetaId, Arc<RaftConsensus>>>,
    /// Pairs that can not talk, in this direction.
    cut: Mutex<BTreeSet<(MetaId, MetaId)>>,
}

struct Wire {
    from: MetaId,
    router: Arc<Router>,
}

#[async_trait]
impl Transport for Wire {
    async fn send(&self, to: MetaId, kind: u8, body: Vec<u8>, deadline: Duration) -> dfs_common::Result<Vec<u8>> {
        let away = || dfs_common::Error::new(ErrorCode::Unreachable, format!("meta-{to} is away"));
        let router = &self.router;
        let server = router.servers.lock().get(&to).cloned().ok_or_else(away)?;
        if router.cut.lock().contains(&(self.from, to)) {
            return Err(away());
        }
        let answer = tokio::time::timeout(deadline, server.handle(self.from, kind, &body))
            .await
            .map_err(|_| ErrorCode::Timeout)??;
        if router.cut.lock().contains(&(to, self.from)) {
            return Err(away());
        }
        Ok(answer)
    }
}

/// One group at a time: elections count milliseconds, and seven groups on two processors take them from each other.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

struct Cluster {
    _turn: tokio::sync::MutexGuard<'static, ()>,
    directory: tempfile::TempDir,
    router: Arc<Router>,
    machines: BTreeMap<MetaId, Arc<ToyMachine>>,
    snapshot_every: u64,
    keep: u64,
}

impl Cluster {
    async fn new(snapshot_every: u64, keep: u64) -> Self {
        let mut this = Self {
            _turn: TURN.lock().await,
            directory: tempfile::tempdir().unwrap(),
            router: Arc::default(),
            machines: BTreeMap::new(),
            snapshot_every,
            keep,
        };
        for id in 1..=3 {
            this.start(MetaId(id), true).await.unwrap();
        }
        this
    }

    fn path(&self, id: MetaId) -> PathBuf {
        self.directory.path().join(format!("meta-{id}"))
    }

    async fn start(&mut self, id: MetaId, empty_state: bool) -> Result<Arc<RaftConsensus>, ConsensusError> {
        if empty_state {
            self.machines.insert(id, Arc::default());
        }
        let mut options = RaftOptions::new(
            CLUSTER,
            id,
            (1..=3).map(MetaId).collect(),
            self.path(id),
            Arc::new(ToySeal),
            Arc::new(Room::open(self.directory.path())),
        );
        options.segment_size_bytes = 64 << 10;
        options.snapshot_every = self.snapshot_every;
        options.keep_behind_snapshot = self.keep;
        let wire = Arc::new(Wire {
            from: id,
            router: self.router.clone(),
        });
        let server = RaftConsensus::start(options, wire, self.machines[&id].clone()).await?;
        self.router.servers.lock().insert(id, server.clone());
        Ok(server)
    }

    async fn stop(&self, id: MetaId) {
        let server = self.router.servers.lock().remove(&id);
        if let Some(server) = server {
            server.shutdown().await;
        }
    }

    fn server(&self, id: MetaId) -> Arc<RaftConsensus> {
        self.router.servers.lock()[&id].clone()
    }

    fn live(&self) -> Vec<Arc<RaftConsensus>> {
        self.router.servers.lock().values().cloned().collect()
    }

    async fn leader(&self) -> Arc<RaftConsensus> {
        self.leader_among(&[1, 2, 3]).await
    }

    async fn leader_among(&self, ids: &[u64]) -> Arc<RaftConsensus> {
        eventually("a leader", || {
            self.router
                .servers
                .lock()
                .iter()
                .find(|(id, server)| ids.contains(&id.0) && server.leadership().borrow().is_self)
                .map(|(_, server)| server.clone())
        })
        .await
    }

    async fn propose(&self, text: &str) -> Vec<u8> {
        let started = Instant::now();
        loop {
            let leader = self.leader().await;
            match leader.propose(text.as_bytes().to_vec(), Duration::from_secs(1)).await {
                Ok(outcome) => return outcome,
                Err(error) => assert!(started.elapsed() < DEADLINE, "{error}"),
            }
        }
    }

    fn commands(&self, id: u64) -> Vec<Vec<u8>> {
        self.machines[&MetaId(id)].0.lock().commands.clone()
    }

    async fn same_everywhere(&self, count: usize) {
        let started = Instant::now();
        loop {
            let all: Vec<_> = (1..=3).map(|id| self.commands(id)).collect();
            if all[0].len() >= count && all[0] == all[1] && all[1] == all[2] {
                return;
            }
            let states: Vec<_> = self.live().iter().map(|server| server.status()).collect();
            let counts: Vec<_> = all.iter().map(Vec::len).collect();
            assert!(
                started.elapsed() < Duration::from_secs(10),
                "{counts:?} of {count}: {states:#?}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn nobody_joins(&self) {
        eventually("joining to end", || {
            self.live().iter().all(|server| !server.status().joining).then_some(())
        })
        .await;
    }

    async fn close(self) {
        for id in 1..=3 {
            self.stop(MetaId(id)).await;
        }
    }
}

async fn eventually<R>(what: &str, mut probe: impl FnMut() -> Option<R>) -> R {
    let started = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(
            started.elapsed() < Duration::from_secs(10),
            "waited too long for {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn elects_orders_and_survives_its_leader() {
    let mut cluster = Cluster::new(50_000, 10_000).await;
    for number in 0..20 {
        cluster.propose(&format!("command {number}")).await;
    }
    cluster.same_everywhere(20).await;
    cluster.nobody_joins().await;
    let leader = cluster.leader().await;
    leader.read_barrier().await.unwrap();
    assert!(leader.confirmed_within(Duration::from_millis(400)));

    let follower = cluster
        .live()
        .into_iter()
        .find(|server| server.me() != leader.me())
        .unwrap();
    let refused = follower.propose(b"x".to_vec(), DEADLINE).await;
    assert!(matches!(refused, Err(ConsensusError::NotLeader { leader: Some(id) }) if id == leader.me()));
    assert!(matches!(
        follower.read_barrier().await,
        Err(ConsensusError::NotLeader { .. })
    ));

    let old = leader.me();
    cluster.stop(old).await;
    let started = Instant::now();
    cluster.propose("after the leader").await;
    let gap = started.elapsed();
    assert!(gap < Duration::from_secs(2), "{gap:?}");

    // It comes back with its disk, then all restart at once with empty states: the log has everything.
    cluster.start(old, false).await.unwrap();
    cluster.same_everywhere(21).await;
    for id in 1..=3 {
        cluster.stop(MetaId(id)).await;
    }
    for id in 1..=3 {
        cluster.start(MetaId(id), true).await.unwrap();
    }
    cluster.propose("after all").await;
    cluster.same_everywhere(22).await;
    assert_eq!(cluster.commands(1)[20], b"after the leader");
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_far_behind_or_lost_its_state_gets_a_snapshot() {
    let mut cluster = Cluster::new(40, 5).await;
    cluster.propose("first").await;
    cluster.same_everywhere(1).await;
    cluster.nobody_joins().await;
    let leader = cluster.leader().await.me();
    let behind = (1..=3).map(MetaId).find(|id| *id != leader).unwrap();
    cluster.stop(behind).await;
    for number in 0..200 {
        cluster.propose(&format!("{number} {}", "x".repeat(5000))).await;
    }
    eventually("a purge", || {
        cluster
            .server(leader)
            .status()
            .purged_index
            .filter(|&index| index > 100)
    })
    .await;
    cluster.start(behind, false).await.unwrap();
    cluster.same_everywhere(201).await;
    assert!(cluster.server(behind).status().snapshot_index.is_some());

    // Its state is lost: snapshot and log bring it back.
    cluster.stop(behind).await;
    cluster.start(behind, true).await.unwrap();
    cluster.same_everywhere(201).await;

    let snapshots = std::fs::read_dir(cluster.path(leader).join("snapshots"))
        .unwrap()
        .count();
    assert!((1..=2).contains(&snapshots), "{snapshots}");
    let segments = std::fs::read_dir(cluster.path(leader).join("log")).unwrap().count();
    assert!(segments < 10, "{segments}");
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_rotted_is_put_aside_and_another_one_made() {
    let cluster = Cluster::new(10_000, 5).await;
    cluster.propose("first").await;
    cluster.same_everywhere(1).await;
    let directory = tempfile::tempdir().unwrap();
    let machine = Arc::clone(&cluster.machines[&MetaId(1)]);
    let snapshots = Snapshots::open(
        directory.path().to_owned(),
        CLUSTER,
        Arc::new(ToySeal),
        Arc::new(Room::open(directory.path())),
    )
    .unwrap();
    assert!(snapshots.sound(&*machine).unwrap().is_none());
    let (meta, path) = snapshots.build(&*machine).unwrap();
    assert_eq!(snapshots.sound(&*machine).unwrap(), Some((meta.clone(), path.clone())));

    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let (another, at) = snapshots.sound(&*machine).unwrap().unwrap();
    assert_ne!(another.snapshot_id, meta.snapshot_id);
    assert_eq!(another.last_log_id, meta.last_log_id);
    assert!(snapshots.verify(&at).is_ok());
    assert!(path.with_extension("damaged").exists());
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_lost_its_disk_is_told_everything_again() {
    let mut cluster = Cluster::new(40, 5).await;
    for number in 0..200 {
        cluster.propose(&format!("{number}")).await;
    }
    cluster.same_everywhere(200).await;
    cluster.nobody_joins().await;
    let leader = cluster.leader().await.me();
    eventually("a purge", || {
        cluster
            .server(leader)
            .status()
            .purged_index
            .filter(|&index| index > 100)
    })
    .await;
    let lost = (1..=3).map(MetaId).find(|id| *id != leader).unwrap();
    cluster.stop(lost).await;
    std::fs::remove_dir_all(cluster.path(lost)).unwrap();
    let server = cluster.start(lost, true).await.unwrap();
    assert!(server.status().joining);
    cluster.same_everywhere(200).await;
    cluster.nobody_joins().await;
    assert_eq!(cluster.leader().await.me(), leader, "the leader kept its place");
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deposed_leader_answers_nothing_and_its_tail_is_cut() {
    let cluster = Cluster::new(50_000, 10_000).await;
    cluster.propose("agreed").await;
    cluster.same_everywhere(1).await;
    cluster.nobody_joins().await;
    let old = cluster.leader().await;
    let others: Vec<u64> = (1..=3).filter(|id| *id != old.me().0).collect();
    {
        let mut cut = cluster.router.cut.lock();
        for &other in &others {
            cut.insert((old.me(), MetaId(other)));
            cut.insert((MetaId(other), old.me()));
        }
    }
    let lost = old.propose(b"lost".to_vec(), Duration::from_millis(300)).await;
    assert!(matches!(lost, Err(ConsensusError::Timeout(_))), "{lost:?}");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!old.confirmed_within(Duration::from_millis(400)));
    assert!(old.read_barrier().await.is_err());

    let new = cluster.leader_among(&others).await;
    new.propose(b"kept".to_vec(), DEADLINE).await.unwrap();
    new.read_barrier().await.unwrap();
    cluster.router.cut.lock().clear();
    cluster.same_everywhere(2).await;
    assert_eq!(cluster.commands(old.me().0), [b"agreed".to_vec(), b"kept".to_vec()]);
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_ahead_of_its_log_is_told() {
    let mut cluster = Cluster::new(50_000, 10_000).await;
    for number in 0..10 {
        cluster.propose(&format!("{number}")).await;
    }
    cluster.same_everywhere(10).await;
    cluster.nobody_joins().await;
    let victim = MetaId(2);
    cluster.stop(victim).await;
    std::fs::remove_dir_all(cluster.path(victim)).unwrap();
    let error = cluster.start(victim, false).await.unwrap_err();
    assert!(error.wants_empty_state(), "{error}");
    cluster.start(victim, true).await.unwrap();
    cluster.same_everywhere(10).await;
    cluster.nobody_joins().await;

    // Rot in the log: refused, put aside, rebuilt from the others.
    cluster.stop(victim).await;
    let segment = std::fs::read_dir(cluster.path(victim).join("log"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|ext| ext == "seg"))
        .unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[64 + 60] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let error = cluster.start(victim, true).await.unwrap_err();
    assert!(error.wants_rebuild(), "{error}");
    reset_for_rebuild(&cluster.path(victim)).unwrap();
    let server = cluster.start(victim, true).await.unwrap();
    assert!(server.status().joining);
    cluster.same_everywhere(10).await;
    cluster.nobody_joins().await;
    cluster.close().await;
}

/// The others have entries by then, but have not caught up with anybody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_cluster_goes_on_whose_first_leader_ends_at_once() {
    // How far the others are then is a matter of milliseconds.
    for _ in 0..10 {
        let mut cluster = Cluster::new(50_000, 10_000).await;
        cluster.propose("before").await;
        let first = cluster.leader().await.me();
        cluster.stop(first).await;
        let joining = cluster.live().iter().filter(|server| server.status().joining).count();
        cluster.start(first, false).await.unwrap();
        cluster.propose("after").await;
        cluster.same_everywhere(2).await;
        cluster.nobody_joins().await;
        cluster.close().await;
        if joining > 0 {
            return;
        }
    }
    panic!("the others had caught up in every one of the clusters");
}

/// Two empty servers look like a new cluster to each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_lost_their_disks_wait_for_the_third_and_keep_its_history() {
    let mut cluster = Cluster::new(50_000, 10_000).await;
    for number in 0..20 {
        cluster.propose(&format!("{number}")).await;
    }
    cluster.same_everywhere(20).await;
    cluster.nobody_joins().await;
    for id in 1..=3 {
        cluster.stop(MetaId(id)).await;
    }
    for id in 1..=2 {
        std::fs::remove_dir_all(cluster.path(MetaId(id))).unwrap();
        cluster.start(MetaId(id), true).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    for server in cluster.live() {
        assert_eq!(server.leadership().borrow().leader, None, "elected without any history");
    }
    cluster.start(MetaId(3), false).await.unwrap();
    cluster.propose("after").await;
    cluster.same_everywhere(21).await;
    assert_eq!(cluster.commands(1)[20], b"after");
    cluster.nobody_joins().await;
    cluster.close().await;
}

/// Its log may have lost entries that others have: places in the log must not be given out twice in one term.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_restarts_has_to_be_elected_again() {
    let mut cluster = Cluster::new(50_000, 10_000).await;
    cluster.propose("before").await;
    cluster.same_everywhere(1).await;
    cluster.nobody_joins().await;
    let (old, term) = {
        let leader = cluster.leader().await;
        (leader.me(), leader.leadership().borrow().term)
    };
    cluster.stop(old).await;
    let again = cluster.start(old, true).await.unwrap();
    // At once, before anybody else could have stood.
    assert!(!again.leadership().borrow().is_self);
    cluster.propose("after").await;
    assert!(cluster.leader().await.leadership().borrow().term > term);
    cluster.same_everywhere(2).await;
    cluster.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_proposals_share_their_flushes() {
    let cluster = Cluster::new(50_000, 10_000).await;
    cluster.propose("warm").await;
    let leader = cluster.leader().await;
    let lonely = Instant::now();
    for _ in 0..100 {
        leader.propose(vec![1; 200], DEADLINE).await.unwrap();
    }
    let lonely = lonely.elapsed() / 100;
    let crowd = Instant::now();
    let tasks: Vec<_> = (0..4000)
        .map(|_| {
            let leader = leader.clone();
            tokio::spawn(async move { leader.propose(vec![2; 200], DEADLINE).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let rate = 4000.0 / crowd.elapsed().as_secs_f64();
    let read = Instant::now();
    for _ in 0..1000 {
        leader.read_barrier().await.unwrap();
    }
    println!(
        "lonely {lonely:?}, crowd {rate:.0}/s, barrier {:?}",
        read.elapsed() / 1000
    );
    cluster.same_everywhere(4101).await;
    cluster.close().await;
}

/// What a candidate with a newer log than anybody asks for; whether it got the vote.
async fn asks_for_vote(of: &RaftConsensus, candidate: MetaId, term: u64) -> bool {
    use openraft::raft::{VoteRequest, VoteResponse};
    let log = openraft::LogId::new(openraft::CommittedLeaderId::new(term, candidate.0), 1_000_000);
    let request = VoteRequest::new(super::types::Vote::new(term + 1, candidate.0), Some(log));
    let body = dfs_common::codec::encode(&request).unwrap();
    match of.handle(candidate, super::network::KIND_VOTE, &body).await {
        Ok(answer) => {
            let answer: Result<VoteResponse<u64>, openraft::error::RaftError<u64>> =
                dfs_common::codec::decode(&answer).unwrap();
            answer.unwrap().vote_granted
        }
        Err(_) => false,
    }
}

/// The leader answers reads alone on the strength of what a follower said before it was restarted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_restarts_gives_no_vote_while_it_may_vouch_for_a_leader() {
    let mut cluster = Cluster::new(50_000, 10_000).await;
    cluster.propose("before").await;
    cluster.same_everywhere(1).await;
    cluster.nobody_joins().await;
    let leader = cluster.leader().await;
    let term = leader.leadership().borrow().term;
    let mut others = (1..=3).map(MetaId).filter(|id| *id != leader.me());
    let (follower, candidate) = (others.next().unwrap(), others.next().unwrap());
    {
        // The candidate no longer hears the leader. The follower does, until it ends.
        let mut cut = cluster.router.cut.lock();
        cut.insert((leader.me(), candidate));
        cut.insert((candidate, leader.me()));
    }
    // What the candidate itself has answered no longer counts.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let reads = || leader.confirmed_within(Duration::from_millis(dfs_common::wire::meta::LEADER_CONFIRMED_MS));
    let cable = [(leader.me(), follower), (follower, leader.me())];
    let mut vouched = Instant::now();
    let mut again = cluster.server(follower);
    // A busy machine may take longer to restart it than the lease lasts.
    for number in 0..20 {
        cluster.router.cut.lock().retain(|pair| !cable.contains(pair));
        cluster.propose(&format!("vouched for {number}")).await;
        vouched = Instant::now();
        cluster.router.cut.lock().extend(cable);
        cluster.stop(follower).await;
        again = cluster.start(follower, false).await.unwrap();
        if reads() {
            break;
        }
    }
    let (mut within, mut beyond) = (0, 0);
    let granted = loop {
        // Read first: if the vote is given and the lease still stands, another leader may write while this one is read.
        let asked = vouched.elapsed();
        let question = dfs_common::codec::encode(&()).unwrap();
        let may_stand = again
            .handle(candidate, super::network::KIND_MAY_I_STAND, &question)
            .await
            .unwrap();
        let (may_stand, _): (Option<u32>, dfs_common::Timestamp) = dfs_common::codec::decode(&may_stand).unwrap();
        let granted = asks_for_vote(&again, candidate, term).await;
        let leads = reads();
        assert!(
            !(granted && leads),
            "{follower} was restarted and voted for {candidate} {} ms after it vouched for {}, which still answers reads",
            asked.as_millis(),
            leader.me()
        );
        assert!(!(may_stand == Some(0) && leads), "it let {candidate} stand at once");
        if leads {
            within += 1;
        } else {
            beyond += 1;
        }
        if granted {
            break vouched.elapsed();
        }
        assert!(vouched.elapsed() < Duration::from_secs(2), "it never votes");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    println!("asked {within} times within the lease, {beyond} after it; granted after {granted:?}");
    assert!(within > 0, "the restart took longer than the lease: nothing was tested");
    cluster.close().await;
}
