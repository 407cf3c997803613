//! The metadata group: the real state machine and the real lease table over a log that is ordered, delayed, and changes
//! its leader. (Consensus itself is a library's; its durable log has crash tests of its own in dfs-meta.)

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dfs_common::wire::meta::Heartbeat;
use dfs_common::{ChainId, Epoch, InodeId, MemberState, RoutingTable, StorageId, Timestamp};
use dfs_meta::chains::complete_reports;
use dfs_meta::command::{ClusterEvent, Command, CommandKind, Outcome};
use dfs_meta::namespace::NameHash;
use dfs_meta::service::{Leases, Moment};
use dfs_meta::state::State;
use dfs_meta::store::{MemoryStore, Rows as _, keys};

use crate::event::Event;
use crate::network::GROUP;
use crate::schedule::{Kind, NODES};
use crate::world::{CLUSTER, World};

const SERVERS: usize = 3;

/// Commands between two snapshots of a server.
const SNAPSHOT_EVERY: usize = 12;

/// After that the leader proposes the changes of nodes that it sees then, and the earlier ones may be decided all the same.
const PROPOSE_DEADLINE_MS: u64 = 2_000;

/// In so many of a thousand proposals the log stands still for a while.
const STALLS_PER_MILLE: u64 = 3;

#[derive(Clone, Copy, Debug)]
struct Hash;

impl NameHash for Hash {
    fn hash(&self, parent: InodeId, name: &[u8]) -> [u8; 16] {
        let mut hasher = blake3::Hasher::new_keyed(&[9; 32]);
        hasher.update(&parent.0.to_le_bytes());
        hasher.update(name);
        let mut short = [0; 16];
        short.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        short
    }
}

type Rows = Vec<(Vec<u8>, Vec<u8>)>;

struct Server {
    state: State<MemoryStore>,
    applied: usize,
    up: bool,
    generation: u64,
    snapshot: Option<(Rows, usize)>,
}

fn empty() -> State<MemoryStore> {
    match State::open(MemoryStore::default(), Hash, CLUSTER) {
        Ok(state) => state,
        Err(error) => panic!("an empty state does not open: {error}"),
    }
}

impl Server {
    fn new() -> Self {
        Self {
            state: empty(),
            applied: 0,
            up: true,
            generation: 0,
            snapshot: None,
        }
    }

    fn apply_one(&mut self, log: &[Command]) -> Outcome {
        let position = (self.applied as u64).to_le_bytes();
        let outcome = match self.state.apply(&log[self.applied..=self.applied], &position) {
            Ok(mut outcomes) => outcomes.remove(0),
            Err(error) => panic!("the state machine failed: {error}"),
        };
        self.applied += 1;
        if self.applied.is_multiple_of(SNAPSHOT_EVERY) {
            self.snapshot = Some((self.rows(), self.applied));
        }
        outcome
    }

    fn rows(&self) -> Rows {
        let mut rows = Vec::new();
        let exported = self.state.export::<dfs_meta::store::StoreError>(&mut |key, value| {
            rows.push((key.to_vec(), value.to_vec()));
            Ok(())
        });
        if let Err(error) = exported {
            panic!("no snapshot: {error}");
        }
        rows
    }

    /// From the last snapshot and the log after it, as after a crash.
    fn restart(&mut self, log: &[Command]) {
        self.state = empty();
        self.applied = 0;
        if let Some((rows, applied)) = &self.snapshot {
            let rows = rows.iter().cloned().map(Ok::<_, dfs_meta::store::StoreError>);
            if let Err(error) = self.state.import(rows, &(*applied as u64 - 1).to_le_bytes()) {
                panic!("a snapshot is not taken: {error}");
            }
            self.applied = *applied;
        }
        while self.applied < log.len() {
            self.apply_one(log);
        }
    }
}

/// Who waits for a command.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Asker {
    Nobody,
    Namer { namer: usize, attempt: u64 },
}

pub(crate) struct Group {
    servers: Vec<Server>,
    /// What the log comes to, command by command, whoever has applied how much of it: for those who watch.
    witness: State<MemoryStore>,
    pub(crate) log: Vec<Command>,
    pub(crate) leader: Option<usize>,
    pub(crate) term: u64,
    leases: Leases,
    deaf_until_ms: u64,
    proposals: BTreeMap<u64, (Command, Asker)>,
    /// Changes of nodes, and until when the leader waits for them.
    cluster_in_flight: Option<(u64, u64)>,
    /// Ends of resyncs, and chains that are settled, for the next proposal.
    reports: Vec<ClusterEvent>,
    /// Proposals are decided in their order.
    last_commit_ms: u64,
    next_proposal: u64,
}

impl Group {
    pub(crate) fn new(now: u64) -> Self {
        Self {
            servers: (0..SERVERS).map(|_| Server::new()).collect(),
            witness: empty(),
            log: Vec::new(),
            leader: Some(0),
            term: 1,
            leases: Leases::new(Moment::from_ms(now), &RoutingTable::default()),
            deaf_until_ms: 0,
            proposals: BTreeMap::new(),
            cluster_in_flight: None,
            reports: Vec::new(),
            last_commit_ms: 0,
            next_proposal: 0,
        }
    }

    /// As the leader knows it.
    pub(crate) fn routing(&self) -> Option<Arc<RoutingTable>> {
        self.leader.map(|leader| self.servers[leader].state.routing())
    }

    /// As it was decided, whoever leads.
    pub(crate) fn decided(&self) -> Arc<RoutingTable> {
        self.witness.routing()
    }

    pub(crate) fn apply(&mut self, server: usize, generation: u64) {
        let server = &mut self.servers[server];
        if server.up && server.generation == generation && server.applied < self.log.len() {
            server.apply_one(&self.log);
        }
    }

    /// Rows of every server, all brought up to date; the last one as it is after a restart from its snapshot.
    pub(crate) fn settle(&mut self) -> Vec<Rows> {
        let log = &self.log;
        if let Some(last) = self.servers.last_mut() {
            last.restart(log);
        }
        self.servers
            .iter_mut()
            .map(|server| {
                while server.applied < log.len() {
                    server.apply_one(log);
                }
                // As they are stored: a snapshot is what is under test.
                server
                    .state
                    .store()
                    .scan(&[], &keys::END, usize::MAX)
                    .unwrap_or_default()
            })
            .collect()
    }

    pub(crate) fn leader_state(&self) -> Option<&State<MemoryStore>> {
        self.leader.map(|leader| &self.servers[leader].state)
    }

    /// What is under way comes so much later, and what is proposed from now on comes after it.
    pub(crate) const fn stood_still(&mut self, ms: u64) {
        self.last_commit_ms += ms;
    }

    pub(crate) fn everybody_up(&mut self) {
        self.deaf_until_ms = 0;
    }
}

impl World {
    pub(crate) fn propose(&mut self, kind: CommandKind, asker: Asker) -> u64 {
        self.group.next_proposal += 1;
        let proposal = self.group.next_proposal;
        let command = Command {
            time: Timestamp::from_nanos(self.now as i64 * 1_000_000),
            kind,
        };
        self.group.proposals.insert(proposal, (command, asker));
        let term = self.group.term;
        let mut at = self.now + 2 + self.random.below(12);
        if self.random.below(1_000) < STALLS_PER_MILLE {
            at += self.random.below(3 * PROPOSE_DEADLINE_MS);
            self.fired(Kind::SlowConsensus);
        }
        at = at.max(self.group.last_commit_ms + 1);
        self.group.last_commit_ms = at;
        self.at(at, Event::Commit { term, proposal });
        proposal
    }

    pub(crate) fn commit(&mut self, term: u64, proposal: u64) {
        let Some((command, asker)) = self.group.proposals.remove(&proposal) else {
            return;
        };
        if self
            .group
            .cluster_in_flight
            .is_some_and(|(waited, _)| waited == proposal)
        {
            self.group.cluster_in_flight = None;
        }
        let Some(leader) = self.group.leader.filter(|_| self.group.term == term) else {
            return;
        };
        if self.trace.in_words() && matches!(command.kind, CommandKind::Cluster(_)) {
            self.trace
                .say(format!("{:>8} ms  DECIDED {:?}", self.now, command.kind));
        }
        let before = self.group.servers[leader].state.routing();
        self.decide(command);
        let group = &mut self.group;
        let mut outcome = Outcome::Done;
        while group.servers[leader].applied < group.log.len() {
            outcome = group.servers[leader].apply_one(&group.log);
        }
        let index = self.group.log.len() as u64;
        self.note(GROUP, "commit", index, term);
        for server in (0..SERVERS).filter(|&server| server != leader) {
            let generation = self.group.servers[server].generation;
            let delay = 1 + self.random.below(40);
            self.after(delay, Event::Apply { server, generation });
        }
        let table = self.group.servers[leader].state.routing();
        if table.version != before.version {
            for node in 0..NODES {
                if self.nodes[node].is_up() && !self.lost(GROUP, node) {
                    let delay = self.delay_ms();
                    let incarnation = self.nodes[node].incarnation;
                    self.after(
                        delay,
                        Event::Table {
                            node,
                            incarnation,
                            table: Arc::clone(&table),
                        },
                    );
                }
            }
        }
        if let Asker::Namer { namer, attempt } = asker
            && !self.lost(GROUP, Self::client_place())
        {
            let delay = self.delay_ms();
            self.after(
                delay,
                Event::NameAnswer {
                    namer,
                    attempt,
                    outcome: Box::new(outcome),
                },
            );
        }
    }

    /// A command has its place in the log. Each change of the table is watched, also one that is undone before anybody has heard of it.
    fn decide(&mut self, command: Command) {
        let before = self.group.witness.routing();
        let position = (self.group.log.len() as u64).to_le_bytes();
        if let Err(error) = self.group.witness.apply(std::slice::from_ref(&command), &position) {
            panic!("the state machine failed: {error}");
        }
        self.group.log.push(command);
        let table = self.group.witness.routing();
        if table.version != before.version {
            self.watch_table(&before, &table);
        }
    }

    pub(crate) fn group_tick(&mut self) {
        self.after(25, Event::GroupTick);
        let Some(leader) = self.group.leader else { return };
        if self.group.deaf_until_ms > self.now {
            return;
        }
        let now = Moment::from_ms(self.now);
        let routing = self.group.servers[leader].state.routing();
        self.group.leases.tick(now, &routing);
        if self.group.cluster_in_flight.is_some_and(|(_, until)| until > self.now) {
            return;
        }
        let mut events = self.group.leases.events(now, &routing);
        events.append(&mut self.group.reports);
        if !events.is_empty() {
            let proposal = self.propose(CommandKind::Cluster(events), Asker::Nobody);
            self.group.cluster_in_flight = Some((proposal, self.now + PROPOSE_DEADLINE_MS));
        }
    }

    pub(crate) fn beat_heard(&mut self, node: usize, incarnation: u64, heartbeat: &Heartbeat, sent_ms: u64) {
        let Some(leader) = self.group.leader else { return };
        if self.group.deaf_until_ms > self.now {
            // It waits in the leader's socket.
            let until = self.group.deaf_until_ms;
            let heartbeat = Box::new(heartbeat.clone());
            return self.at(
                until,
                Event::BeatHeard {
                    node,
                    incarnation,
                    heartbeat,
                    sent_ms,
                },
            );
        }
        let routing = self.group.servers[leader].state.routing();
        let now = Moment::from_ms(self.now);
        let lease = self.group.leases.heartbeat(now, heartbeat, true, &routing);
        let full: BTreeSet<StorageId> = self.group.leases.full();
        self.group.reports.extend(complete_reports(&routing, heartbeat));
        let table = (heartbeat.routing < routing.version).then_some(routing);
        if !self.lost(GROUP, node) {
            let delay = self.delay_ms();
            self.after(
                delay,
                Event::BeatAnswered {
                    node,
                    incarnation,
                    lease,
                    full,
                    table,
                    sent_ms,
                },
            );
        }
    }

    /// A node asks for the newest table.
    pub(crate) fn fetch_table(&mut self, node: usize) {
        if self.nodes[node].fetching || self.lost(node, GROUP) {
            return;
        }
        let Some(table) = self.group.routing() else { return };
        if table.version > self.nodes[node].table.version && !self.lost(GROUP, node) {
            self.nodes[node].fetching = true;
            let incarnation = self.nodes[node].incarnation;
            let delay = 2 * self.delay_ms();
            self.after(
                delay,
                Event::Table {
                    node,
                    incarnation,
                    table,
                },
            );
        }
    }

    pub(crate) fn report_resynced(&mut self, node: usize, chain: ChainId, to: StorageId, epoch: Epoch) {
        let current = self.nodes[node]
            .chains
            .get(&chain)
            .is_some_and(|member| member.core.epoch() == epoch);
        if !current {
            return;
        }
        if self.group.leader.is_some() && self.group.deaf_until_ms <= self.now && !self.lost(node, GROUP) {
            let event = ClusterEvent::Resynced { chain, epoch, node: to };
            if !self.group.reports.contains(&event) {
                self.group.reports.push(event);
            }
        }
        let incarnation = self.nodes[node].incarnation;
        self.after(
            200,
            Event::Resynced {
                node,
                incarnation,
                chain,
                to,
                epoch,
            },
        );
    }

    /// The kernel of a dead process told the leader.
    pub(crate) fn died(&mut self, node: usize, incarnation: u64) {
        if self.group.leader.is_some() && !self.lost(node, GROUP) {
            let id = self.nodes[node].id;
            self.group
                .leases
                .died(Moment::from_ms(self.now), id, Self::incarnation_of(node, incarnation));
        }
    }

    /// The leader is gone, or no longer believed; what it had proposed may or may not come to pass.
    pub(crate) fn depose(&mut self, gap_ms: u64) {
        if self.group.leader.take().is_none() {
            return;
        }
        self.group.term += 1;
        self.group.cluster_in_flight = None;
        let undecided: Vec<u64> = self.group.proposals.keys().copied().collect();
        for proposal in undecided {
            // Some reached a majority before: the next leader has them, and nobody was told.
            if self.random.chance(50)
                && let Some((command, _)) = self.group.proposals.remove(&proposal)
            {
                if self.trace.in_words() && matches!(command.kind, CommandKind::Cluster(_)) {
                    self.trace
                        .say(format!("{:>8} ms  DECIDED, untold: {:?}", self.now, command.kind));
                }
                self.decide(command);
            }
        }
        self.group.proposals.clear();
        let term = self.group.term;
        self.note(GROUP, "deposed", term, 0);
        self.after(gap_ms, Event::Elected { term });
    }

    pub(crate) fn elected(&mut self, term: u64) {
        if self.group.term != term || self.group.leader.is_some() {
            return;
        }
        let up: Vec<usize> = (0..SERVERS).filter(|&server| self.group.servers[server].up).collect();
        if up.len() < 2 {
            return self.after(100, Event::Elected { term });
        }
        let leader = up[self.random.below(up.len() as u64) as usize];
        let group = &mut self.group;
        while group.servers[leader].applied < group.log.len() {
            group.servers[leader].apply_one(&group.log);
        }
        let routing = group.servers[leader].state.routing();
        group.leases = Leases::new(Moment::from_ms(self.now), &routing);
        group.leader = Some(leader);
        group.last_commit_ms = self.now;
        group.reports.clear();
        self.note(GROUP, "elected", leader as u64, term);
    }

    pub(crate) fn meta_down(&mut self, server: usize) {
        // Never the majority: then nothing moves, which is all that could be seen.
        if !self
            .group
            .servers
            .iter()
            .enumerate()
            .all(|(other, state)| other == server || state.up)
            || !self.group.servers[server].up
        {
            return;
        }
        self.group.servers[server].up = false;
        self.group.servers[server].generation += 1;
        if self.group.leader == Some(server) {
            let gap = self.random.between(150, 700);
            self.depose(gap);
        }
        let down = self.random.between(50, 1_500);
        self.after(down, Event::MetaUp { server });
    }

    pub(crate) fn meta_up(&mut self, server: usize) {
        let group = &mut self.group;
        let log = std::mem::take(&mut group.log);
        group.servers[server].restart(&log);
        group.log = log;
        group.servers[server].up = true;
        self.note(GROUP, "meta up", server as u64, 0);
    }

    pub(crate) fn leader_deaf(&mut self, ms: u64) {
        self.group.deaf_until_ms = self.now + ms;
    }

    pub(crate) fn is_serving(table: &RoutingTable, chain: ChainId, node: StorageId) -> bool {
        table
            .chain(chain)
            .is_some_and(|chain| chain.state_of(node) == Some(MemberState::Serving))
    }
}
