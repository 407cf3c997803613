//! The one owner of the leader's soft state: events come in through one queue, are applied one after the other, and what
//! follows from them goes out as one proposal at a time. No lock, no order to get wrong; the cost is one hop of a channel
//! on heartbeats and keep-alives, which nobody waits for.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use dfs_common::wire::meta::{
    Heartbeat, HeartbeatAnswer, KeepAlive, KeepAliveAnswer, LEADER_CONFIRMED_MS, MetaResponse,
};
use dfs_common::wire::namespace::StatFs;
use dfs_common::{
    ChainId, Epoch, Error, ErrorCode, Incarnation, InodeId, MemberState, Rest, Result, RoutingTable, RoutingVersion,
    SessionId, StorageId,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::leader::{Fence, Leader, Leases, Moves, Revision, Sessions, SoftStatus, Trusted, stat_fs};
use super::shared::{Applied, Shared};
use super::tasks::Task;
use crate::chains::complete_reports;
use crate::command::{ClusterEvent, CommandKind};
use crate::consensus::Leadership;

/// Requests that may wait for the owner. Each is answered in microseconds; more than this means that it is stuck.
pub(super) const QUEUE_MAX: usize = 4096;

/// How often leases are looked at. A dead node's chains are reconfigured within this and one proposal after its lease.
const TICK: Duration = Duration::from_millis(25);

/// A proposal about nodes and chains that takes longer is given up and made anew from what is known then.
const PROPOSE_DEADLINE: Duration = Duration::from_secs(2);

/// Events in one proposal; a node's death is one event, ends of resyncs come a chain at a time.
const BATCH_MAX: usize = 1024;

/// Requests to the owner. Dropping a reply means `NotLeader`.
#[derive(Debug)]
pub(super) enum Ask {
    Heartbeat(Box<Heartbeat>, oneshot::Sender<MetaResponse>),
    /// An administrator trusts the store that this node has condemned.
    Trust(StorageId, oneshot::Sender<Result<()>>),
    /// The kernel of this process says that it is dead.
    Died {
        node: StorageId,
        incarnation: Incarnation,
        reply: oneshot::Sender<()>,
    },
    ResyncDone {
        from: StorageId,
        chain: ChainId,
        epoch: Epoch,
        node: StorageId,
        reply: oneshot::Sender<Result<()>>,
    },
    KeepAlive(KeepAlive, oneshot::Sender<Result<KeepAliveAnswer>>),
    SessionOpened(SessionId, oneshot::Sender<()>),
    SessionsEnded(Vec<SessionId>, oneshot::Sender<()>),
    ExpiredSessions(oneshot::Sender<Vec<SessionId>>),
    /// Which of these unlinked inodes nobody can hold open, nor reach as one who was evicted.
    Purgeable(Vec<InodeId>, oneshot::Sender<Vec<InodeId>>),
    /// Whether every storage node has heard of all sessions that had ended by then; the first answer says by when.
    Fenced(Option<Revision>, oneshot::Sender<(Revision, bool)>),
    Status(oneshot::Sender<SoftStatus>),
}

type Proposal = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Owner {
    pub(super) asks: mpsc::Receiver<Ask>,
    pub(super) usage: watch::Sender<StatFs>,
}

/// What one term of leadership needs besides its soft state.
struct Term {
    leader: Leader,
    /// Which list of sessions the fence has.
    listed: Option<(SessionId, u64)>,
    /// Ends of resyncs that wait for the next proposal.
    resyncs: Vec<(ClusterEvent, oneshot::Sender<Result<()>>)>,
    /// Chains whose second member has caught up, for the next proposal. Bounded by the table: reports are checked against it.
    settled: BTreeSet<(ChainId, Epoch)>,
    /// Likewise, chains that rest or rest no more.
    rests: BTreeMap<(ChainId, Epoch), Rest>,
    proposing: Option<Proposal>,
    /// Whose events are in the proposal under way.
    told: Vec<oneshot::Sender<Result<()>>>,
}

impl Task for Owner {
    const NAME: &'static str = "leader";

    async fn run(mut self, shared: Arc<Shared>, shutdown: CancellationToken) {
        let mut leadership = shared.consensus.leadership();
        let mut routing = shared.routing.clone();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut term: Option<Term> = None;
        loop {
            let mut asked = None;
            let proposal = async {
                match term.as_mut().and_then(|term| term.proposing.as_mut()) {
                    Some(proposal) => proposal.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                result = proposal => {
                    if let Some(term) = &mut term {
                        term.proposed(&result);
                    }
                }
                ask = self.asks.recv() => match ask {
                    Some(ask) => asked = Some(ask),
                    None => return,
                },
                changed = leadership.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                changed = routing.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // What it changes is found below.
                    routing.mark_unchanged();
                }
                _ = tick.tick() => {
                    if let Some(term) = &mut term {
                        let table = Arc::clone(&shared.routing.borrow());
                        term.leader.tick(shared.clock.now(), &table);
                    }
                }
            }
            let now = *leadership.borrow();
            // Before the answer: a request may arrive together with the news that this server leads.
            follow(&mut term, now, &shared).await;
            if let Some(term) = &mut term {
                if let Some(ask) = asked {
                    let table = Arc::clone(&shared.routing.borrow());
                    term.answer(&shared, &table, ask);
                    self.publish_usage(&term.leader, &table);
                }
                term.propose(&shared);
            }
        }
    }
}

impl Owner {
    fn publish_usage(&self, leader: &Leader, routing: &RoutingTable) {
        let known = leader
            .leases
            .reports()
            .filter(|(node, _)| routing.nodes.contains_key(node))
            .map(|(_, report)| (report.total_bytes, report.used_bytes));
        let usage = stat_fs(known);
        self.usage.send_if_modified(|current| {
            let changed = *current != usage;
            *current = usage;
            changed
        });
    }
}

/// Starts soft state with a term and drops it with the term.
async fn follow(term: &mut Option<Term>, leadership: Leadership, shared: &Arc<Shared>) {
    let wanted = leadership.is_self.then_some(leadership.term);
    let present = term.as_ref().map(|term| term.leader.term);
    if wanted == present {
        return;
    }
    *term = None;
    let Some(number) = wanted else {
        info!(term = leadership.term, "this metadata server no longer leads");
        return;
    };
    let sessions = match shared.blocking(Applied::sessions).await {
        Ok(sessions) => sessions,
        Err(e) => {
            // Without them expiry and purge would be wrong; the next tick tries again.
            error!(error = %e, "the sessions can not be read");
            return;
        }
    };
    info!(term = number, sessions = sessions.len(), "this metadata server leads");
    let now = shared.clock.now();
    let table = Arc::clone(&shared.routing.borrow());
    *term = Some(Term {
        leader: Leader {
            term: number,
            leases: Leases::new(now, &table),
            moves: Moves::new(now),
            sessions: Sessions::new(now, sessions.into_iter().map(|info| info.session)),
            fence: Fence::default(),
            trusted: Trusted::default(),
        },
        listed: None,
        resyncs: Vec::new(),
        settled: BTreeSet::new(),
        rests: BTreeMap::new(),
        proposing: None,
        told: Vec::new(),
    });
}

impl Term {
    fn answer(&mut self, shared: &Shared, routing: &RoutingTable, ask: Ask) {
        let now = shared.clock.now();
        // A reply whose asker is gone is nobody's loss.
        match ask {
            Ask::Heartbeat(heartbeat, reply) => self.heartbeat(shared, routing, &heartbeat, reply),
            Ask::Trust(node, reply) => {
                let faulty = self.leader.leases.faulty(now, node);
                let _ = reply.send(self.leader.trusted.note(now, node, faulty));
            }
            Ask::Died {
                node,
                incarnation,
                reply,
            } => {
                self.leader.leases.died(now, node, incarnation);
                let _ = reply.send(());
            }
            Ask::ResyncDone {
                from,
                chain,
                epoch,
                node,
                reply,
            } => match self.check_resync(routing, from, chain, epoch, node) {
                Ok(true) => self
                    .resyncs
                    .push((ClusterEvent::Resynced { chain, epoch, node }, reply)),
                Ok(false) => {
                    let _ = reply.send(Ok(()));
                }
                Err(e) => {
                    let _ = reply.send(Err(e));
                }
            },
            Ask::KeepAlive(message, reply) => {
                let time = shared.clock.command_time();
                let answer = self.leader.sessions.keep_alive(now, &message);
                self.leader.sessions.read_clock(message.session, message.clock, time);
                let _ = reply.send(answer.map(|send_all| KeepAliveAnswer {
                    send_all,
                    routing: newer(routing, message.routing),
                    time,
                }));
            }
            Ask::SessionOpened(session, reply) => {
                self.leader.sessions.opened(now, session);
                let _ = reply.send(());
            }
            Ask::SessionsEnded(sessions, reply) => {
                self.leader.sessions.ended(&sessions);
                let _ = reply.send(());
            }
            Ask::ExpiredSessions(reply) => {
                let expired = if self.leader.leases.stood_still(now) {
                    Vec::new()
                } else {
                    self.leader.sessions.expired(now)
                };
                let _ = reply.send(expired);
            }
            Ask::Purgeable(orphans, reply) => {
                let unused = self.leader.sessions.purgeable(&orphans);
                let serving = self.leader.leases.may_serve(now, routing);
                let ready = match self.list_sessions(shared) {
                    Ok(()) => self.leader.fence.purgeable(&unused, &serving),
                    Err(_) => Vec::new(),
                };
                let _ = reply.send(ready);
            }
            Ask::Fenced(since, reply) => {
                if self.list_sessions(shared).is_err() {
                    return;
                }
                let since = since.unwrap_or_else(|| self.leader.fence.ended());
                let serving = self.leader.leases.may_serve(now, routing);
                let _ = reply.send((since, self.leader.fence.is_known(since, &serving)));
            }
            Ask::Status(reply) => {
                let _ = reply.send(self.leader.status(now, routing));
            }
        }
    }

    fn heartbeat(
        &mut self,
        shared: &Shared,
        routing: &RoutingTable,
        heartbeat: &Heartbeat,
        reply: oneshot::Sender<MetaResponse>,
    ) {
        if let Err(e) = self.list_sessions(shared) {
            // A lease without the list would let nobody in, or somebody who was evicted.
            warn!(error = %e, "the sessions can not be read, so a heartbeat is not answered");
            return;
        }
        let now = shared.clock.now();
        let confirmed = shared
            .consensus
            .confirmed_within(Duration::from_millis(LEADER_CONFIRMED_MS));
        let lease = self.leader.leases.heartbeat(now, heartbeat, confirmed, routing);
        if let Some(store) = self.leader.trusted.heard(now, heartbeat) {
            let _ = reply.send(MetaResponse::ReopenStore { store });
            return;
        }
        self.note_complete(routing, heartbeat);
        self.leader.moves.heard(heartbeat);
        // A node with a fault gives its store up by what the table says of the others: no old table will do.
        let table = newer(routing, heartbeat.routing).filter(|_| confirmed || heartbeat.fault.is_none());
        let _ = reply.send(MetaResponse::Heartbeat(HeartbeatAnswer {
            lease,
            stand_aside: self.leader.leases.aside(heartbeat.node).is_some(),
            routing: table,
            retire: self.leader.moves.retire(heartbeat.node),
            full: self.leader.leases.full(),
            sessions: self.leader.fence.heartbeat(heartbeat),
        }));
    }

    /// Brings the fence up to date with the replicated state.
    fn list_sessions(&mut self, shared: &Shared) -> Result<()> {
        if self.listed != Some(shared.state.sessions_version()) {
            let (version, list) = shared.state.live_sessions()?;
            self.leader.fence.learn(list);
            self.listed = Some(version);
        }
        Ok(())
    }

    /// Takes in what a head says of who is complete in its chains. It says so again with every heartbeat until the table has it.
    fn note_complete(&mut self, routing: &RoutingTable, heartbeat: &Heartbeat) {
        for event in complete_reports(routing, heartbeat) {
            match event {
                ClusterEvent::Settled { chain, epoch } => {
                    self.settled.insert((chain, epoch));
                }
                ClusterEvent::Rest { chain, epoch, rest } => {
                    let latest = self.rests.entry((chain, epoch)).or_default();
                    *latest = rest.max(*latest);
                }
                _ => {}
            }
        }
    }

    /// `Ok(false)`: it is recorded already.
    fn check_resync(
        &self,
        routing: &RoutingTable,
        from: StorageId,
        chain: ChainId,
        epoch: Epoch,
        node: StorageId,
    ) -> Result<bool> {
        let stale = |detail: String| Err(Error::new(ErrorCode::StaleEpoch, detail));
        let Some(info) = routing.chain(chain) else {
            return stale(format!("there is no chain {chain}"));
        };
        if info.epoch != epoch {
            return if info.epoch > epoch && info.state_of(node) == Some(MemberState::Serving) {
                Ok(false)
            } else {
                stale(format!(
                    "chain {chain} is in epoch {}, the resync was in {epoch}",
                    info.epoch
                ))
            };
        }
        if info.tail() != Some(from) {
            return Err(Error::new(
                ErrorCode::Unauthorized,
                format!("storage-{from} is not the last serving member of chain {chain}, who alone copies"),
            ));
        }
        match info.state_of(node) {
            Some(MemberState::Syncing) if self.resyncs.len() < BATCH_MAX => Ok(true),
            Some(MemberState::Syncing) => Err(Error::new(ErrorCode::Overloaded, "too many resyncs end at once")),
            _ => stale(format!("storage-{node} is not syncing in chain {chain}")),
        }
    }

    /// Starts the next proposal when there is something to say and none is under way.
    fn propose(&mut self, shared: &Arc<Shared>) {
        if self.proposing.is_some() {
            return;
        }
        // A leader that nobody answers hears nobody: whom it misses may be well, and what it says now might yet be committed.
        if !shared
            .consensus
            .confirmed_within(Duration::from_millis(LEADER_CONFIRMED_MS))
        {
            return;
        }
        let now = shared.clock.now();
        if self.leader.leases.stood_still(now) {
            return;
        }
        let table = Arc::clone(&shared.routing.borrow());
        let mut events = self.leader.leases.events(now, &table);
        let full = self.leader.leases.full();
        events.extend(self.leader.moves.events(now, &table, &full));
        for (event, reply) in self.resyncs.drain(..) {
            events.push(event);
            self.told.push(reply);
        }
        let settled = std::mem::take(&mut self.settled);
        events.extend(
            settled
                .into_iter()
                .map(|(chain, epoch)| ClusterEvent::Settled { chain, epoch }),
        );
        let rests = std::mem::take(&mut self.rests);
        events.extend(
            rests
                .into_iter()
                .map(|((chain, epoch), rest)| ClusterEvent::Rest { chain, epoch, rest }),
        );
        if events.is_empty() {
            return;
        }
        for event in &events {
            match event {
                ClusterEvent::NodeDown { node, .. } => {
                    let aside = self.leader.leases.aside(*node);
                    let reason = aside.unwrap_or("its process died, its lease ended, or it is faulty");
                    warn!(%node, reason, "storage node is away");
                }
                ClusterEvent::NodeUp { node, address, .. } => info!(%node, %address, "storage node is there"),
                ClusterEvent::Resynced { chain, node, .. } => info!(%node, %chain, "storage node is in sync again"),
                ClusterEvent::Settled { chain, epoch } => {
                    debug!(%chain, %epoch, "the chain's second member has caught up");
                }
                ClusterEvent::Rest { chain, rest, .. } => {
                    debug!(%chain, rests = rest.is_resting(), "the chain rests, or rests no more");
                }
                ClusterEvent::Join { chain, node, .. } => info!(%node, %chain, "storage node joins a chain"),
                ClusterEvent::Leave { chain, node, .. } => info!(%node, %chain, "storage node leaves a chain"),
                ClusterEvent::Rotate { chain, .. } => {
                    info!(%chain, "the chain's head becomes its tail, so that every node heads as many");
                }
                ClusterEvent::Renew { chain, .. } => info!(%chain, "nobody leaves the chain after all"),
            }
        }
        let shared = Arc::clone(shared);
        self.proposing = Some(Box::pin(async move {
            shared.propose(CommandKind::Cluster(events), PROPOSE_DEADLINE).await?;
            Ok(())
        }));
    }

    fn proposed(&mut self, result: &Result<()>) {
        self.proposing = None;
        if let Err(e) = result {
            warn!(error = %e, "a change of nodes or chains was not taken up; it is tried again");
        }
        for reply in self.told.drain(..) {
            let _ = reply.send(result.clone());
        }
    }
}

fn newer(routing: &RoutingTable, known: RoutingVersion) -> Option<RoutingTable> {
    (routing.version > known).then(|| routing.clone())
}
