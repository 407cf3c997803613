//! The metadata group as a mount sees it: the real state machine, with what a leader keeps beside it (sessions, wants).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use dfs_common::wire::meta::{
    ChangeAnswer, HOLD_TAKEN_MS, KeepAlive, KeepAliveAnswer, MetaRequest, MetaResponse, RESERVED_INODES,
    SESSION_LEASE_MS,
};
use dfs_common::wire::namespace::{Attributes, NamespaceAnswer, NamespaceChange, NamespaceOp, NamespaceRead, StatFs};
use dfs_common::{Error, ErrorCode, Hold, HoldEpoch, InodeId, Result, SessionId};
use dfs_meta::command::{CommandKind, Outcome};
use dfs_meta::namespace::{Growing, Obstacle};
use tokio::sync::watch;
use tokio::time::Instant;

use super::cluster::Cluster;

/// For clearing what is in the way of a request, as the server's request deadline.
const OBSTACLE_TIME: Duration = Duration::from_secs(4);

#[derive(Debug)]
struct Session {
    until: Instant,
    report: Option<u64>,
    /// Reports taken in, by the time of the second last one.
    last: Option<u64>,
    before_last: Option<u64>,
    opened: u64,
    open: BTreeSet<InodeId>,
}

/// As the leader's `sessions`: leases, and what is open.
#[derive(Debug, Default)]
pub struct Sessions {
    turn: u64,
    live: BTreeMap<SessionId, Session>,
    orphans: BTreeMap<InodeId, u64>,
}

impl Sessions {
    fn opened(&mut self, session: SessionId) {
        self.turn += 1;
        let new = Session {
            until: Instant::now() + Duration::from_millis(SESSION_LEASE_MS),
            report: None,
            last: None,
            before_last: None,
            opened: self.turn,
            open: BTreeSet::new(),
        };
        self.live.insert(session, new);
    }

    /// `None`: there is no such session. Else whether the whole list is needed.
    fn keep_alive(&mut self, message: &KeepAlive) -> Option<bool> {
        self.turn += 1;
        let turn = self.turn;
        let session = self.live.get_mut(&message.session)?;
        session.until = Instant::now() + Duration::from_millis(SESSION_LEASE_MS);
        if session.report == Some(message.report) && !message.all {
            return Some(false);
        }
        if message.all {
            session.open.clear();
        } else if session.report.is_none() || session.report != message.report.checked_sub(1) {
            session.report = None;
            session.before_last = None;
            session.last = None;
            return Some(true);
        }
        for inode in &message.closed {
            session.open.remove(inode);
        }
        session.open.extend(&message.opened);
        session.report = Some(message.report);
        session.before_last = session.last;
        session.last = Some(turn);
        Some(false)
    }

    pub fn next_expiry(&self) -> Option<Instant> {
        self.live.values().map(|session| session.until).min()
    }

    pub fn expire(&mut self, now: Instant) -> Vec<SessionId> {
        let over: Vec<_> = self
            .live
            .iter()
            .filter(|(_, session)| session.until <= now)
            .map(|(&id, _)| id)
            .collect();
        for session in &over {
            self.live.remove(session);
        }
        over
    }

    pub fn purgeable(&mut self, orphans: &[InodeId]) -> Vec<InodeId> {
        let turn = self.turn;
        self.orphans = orphans
            .iter()
            .map(|inode| (*inode, self.orphans.get(inode).copied().unwrap_or(turn)))
            .collect();
        let gone = |inode: &InodeId, unlinked: u64| {
            self.live.values().all(|session| {
                let speaks = session.opened > unlinked || session.before_last.is_some_and(|turn| turn > unlinked);
                speaks && !session.open.contains(inode)
            })
        };
        self.orphans
            .iter()
            .filter(|&(inode, &unlinked)| gone(inode, unlinked))
            .map(|(&inode, _)| inode)
            .collect()
    }
}

/// Holds that somebody wants, and since when.
#[derive(Debug)]
pub struct Wants(watch::Sender<BTreeMap<SessionId, (HoldEpoch, Instant)>>);

impl Default for Wants {
    fn default() -> Self {
        Self(watch::Sender::new(BTreeMap::new()))
    }
}

impl Cluster {
    pub async fn meta(self: &Arc<Self>, request: MetaRequest) -> Result<MetaResponse> {
        match request {
            MetaRequest::OpenSession { label } => match self.submit(CommandKind::OpenSession { label }) {
                Outcome::SessionOpened(session) => {
                    self.inner().sessions.opened(session);
                    self.poke();
                    Ok(MetaResponse::SessionOpened {
                        session,
                        lease_ms: SESSION_LEASE_MS as u32,
                        time: dfs_net::wall_clock(),
                    })
                }
                other => panic!("{other:?}"),
            },
            MetaRequest::CloseSession { session } => {
                self.submit(CommandKind::EndSessions {
                    sessions: vec![session],
                });
                self.inner().sessions.live.remove(&session);
                Ok(MetaResponse::SessionClosed)
            }
            MetaRequest::KeepAlive(message) => {
                let known = self.inner().sessions.keep_alive(&message);
                let send_all = known.ok_or_else(|| {
                    Error::new(
                        ErrorCode::SessionExpired,
                        format!("session {} has ended", message.session),
                    )
                })?;
                let table = self.state.routing();
                let newer = table.version > message.routing;
                Ok(MetaResponse::KeepAlive(KeepAliveAnswer {
                    send_all,
                    routing: newer.then(|| table.as_ref().clone()),
                    time: dfs_net::wall_clock(),
                }))
            }
            MetaRequest::Change(change) => {
                let session = change.session;
                let op = change.op.clone();
                let directories: Vec<_> = change
                    .op
                    .parents()
                    .map(|inode| NamespaceRead::GetAttributes { inode })
                    .collect();
                let Outcome::Change(outcome) = self.propose(CommandKind::Change(change)).await? else {
                    panic!("the outcome of another command");
                };
                self.log(|| format!("   {session} {}: {}", asked(&op), told(&outcome)));
                if self.state.counts().orphans > 0 {
                    self.poke();
                }
                let answers = self
                    .state
                    .read(session, &directories, StatFs::default())
                    .unwrap_or_default();
                let parents = answers.into_iter().filter_map(|answer| match answer {
                    Ok(NamespaceAnswer::Attributes(attributes)) => Some(attributes),
                    _ => None,
                });
                Ok(MetaResponse::Change(ChangeAnswer {
                    outcome,
                    parents: parents.collect(),
                }))
            }
            MetaRequest::Changes(changes) => match self.propose(CommandKind::Changes(changes)).await? {
                Outcome::Changes(answers) => Ok(MetaResponse::Changes(answers)),
                other => panic!("{other:?}"),
            },
            MetaRequest::Reserve { session, known } => {
                let count = RESERVED_INODES;
                match self.submit(CommandKind::Reserve { session, known, count }) {
                    Outcome::Reserved(reserved) => reserved.map(MetaResponse::Reserved),
                    other => panic!("{other:?}"),
                }
            }
            MetaRequest::Release(hold) => match self.submit(CommandKind::Release(hold)) {
                Outcome::Released(epoch) => Ok(MetaResponse::Released(epoch)),
                other => panic!("{other:?}"),
            },
            MetaRequest::Wanted { hold, wait_ms } => {
                let wait = Duration::from_millis(u64::from(wait_ms)).min(Duration::from_millis(500));
                Ok(MetaResponse::Wanted(self.wanted(hold, wait).await))
            }
            MetaRequest::Read { session, reads } => {
                let until = Instant::now() + OBSTACLE_TIME;
                loop {
                    match self.state.read(session, &reads, StatFs::default()) {
                        Ok(answers) => return Ok(MetaResponse::Read(answers)),
                        Err(obstacle) => self.clear(obstacle, until).await?,
                    }
                }
            }
            MetaRequest::Routing { known, wait_ms } => {
                let mut updates = self.routing.subscribe();
                let wait = Duration::from_millis(u64::from(wait_ms));
                let newer = tokio::time::timeout(wait, updates.wait_for(|table| table.version > known)).await;
                let table = newer
                    .ok()
                    .and_then(|found| found.ok().map(|table| table.as_ref().clone()));
                Ok(MetaResponse::Routing(table))
            }
            other => panic!("no mount asks for {other:?}"),
        }
    }

    async fn propose(&self, kind: CommandKind) -> Result<Outcome> {
        let until = Instant::now() + OBSTACLE_TIME;
        loop {
            match self.submit(kind.clone()) {
                Outcome::Obstructed(obstacle) => self.clear(obstacle, until).await?,
                outcome => return Ok(outcome),
            }
        }
    }

    async fn clear(&self, obstacle: Obstacle, until: Instant) -> Result<()> {
        match obstacle {
            Obstacle::Held(hold) => self.end_hold(hold, until).await,
            Obstacle::Growing(growing) => self.find_length(growing, until).await,
        }
    }

    async fn end_hold(&self, hold: Hold, until: Instant) -> Result<()> {
        let mut since = Instant::now();
        self.wants.0.send_if_modified(|wants| match wants.get(&hold.session) {
            Some(&(epoch, noted)) if epoch >= hold.epoch => {
                since = noted;
                false
            }
            _ => {
                wants.insert(hold.session, (hold.epoch, since));
                true
            }
        });
        loop {
            if !self.state.is_held(hold).unwrap() {
                break;
            }
            if since.elapsed() >= Duration::from_millis(HOLD_TAKEN_MS) {
                self.log(|| format!("a hold is taken: {hold:?}"));
                self.submit(CommandKind::Release(hold));
                break;
            }
            if Instant::now() >= until {
                return Err(Error::new(ErrorCode::Overloaded, "it is held and not given up yet"));
            }
            tokio::time::sleep(Duration::from_millis(8)).await;
        }
        self.wants.0.send_if_modified(|wants| {
            let over = wants.get(&hold.session).is_some_and(|want| want.0 <= hold.epoch);
            if over {
                wants.remove(&hold.session);
            }
            over
        });
        Ok(())
    }

    async fn wanted(&self, hold: Hold, wait: Duration) -> bool {
        let mut wants = self.wants.0.subscribe();
        let wanted = wants.wait_for(|wants| wants.get(&hold.session).is_some_and(|want| want.0 >= hold.epoch));
        let wanted = tokio::time::timeout(wait, wanted).await.is_ok();
        wanted || !self.state.is_held(hold).unwrap()
    }

    /// The heads of all chains say how long a file became whose writer went without a word.
    async fn find_length(&self, growing: Growing, until: Instant) -> Result<()> {
        let from = growing.layout.chunk_of(growing.length_bytes);
        let well = |cluster: &Self| {
            let table = cluster.state.routing();
            let inner = cluster.inner();
            table.chains.values().all(|chain| {
                let mut able = chain.serving().take(2);
                chain.head().is_some() && !able.any(|node| inner.down.contains_key(&node))
            })
        };
        while !well(self) {
            if Instant::now() >= until {
                return Err(Error::new(
                    ErrorCode::Overloaded,
                    "a chain does not say how long the file is",
                ));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut length_bytes = growing.length_bytes;
        for data in self.inner().chains.values() {
            if let Some((chunk, end)) = data.file_end(growing.inode, from) {
                length_bytes = length_bytes.max(growing.layout.chunk_start(chunk) + u64::from(end));
            }
        }
        self.log(|| format!("inode {} is found to be {length_bytes} long", growing.inode));
        self.submit(CommandKind::FoundLength(Growing {
            length_bytes,
            ..growing
        }));
        Ok(())
    }
}

/// A change without what differs from run to run: times and keys.
fn asked(op: &NamespaceOp) -> String {
    match op {
        NamespaceOp::BeginCut {
            inode, length_bytes, ..
        } => format!("BeginCut of {inode} to {length_bytes}"),
        NamespaceOp::SetLength {
            inode,
            length_bytes,
            cut,
            ..
        } => format!("SetLength of {inode} to {length_bytes}, cut {cut:?}"),
        NamespaceOp::CommitWrite { inode, commit } => format!(
            "CommitWrite to {inode}: to {:?}, growing {}, cut {}",
            commit.extend_to_bytes, commit.growing, commit.cut
        ),
        other => {
            let all = format!("{other:?}");
            all.split(' ').next().unwrap_or_default().to_owned()
        }
    }
}

/// What of an outcome explains a program that fails.
fn told(outcome: &Result<NamespaceChange>) -> String {
    let of = |attributes: &Attributes| {
        let cut = attributes.file.as_ref().map(|file| file.cut.0);
        format!(
            "length {}, change {}, cut {cut:?}",
            attributes.length_bytes, attributes.change
        )
    };
    match outcome {
        Ok(NamespaceChange::Entry { attributes, .. } | NamespaceChange::CutBegun { attributes, .. }) => of(attributes),
        Ok(other) => format!("{other:?}"),
        Err(error) => error.to_string(),
    }
}
