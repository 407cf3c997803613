//! This mount's session with the metadata group.
//!
//! One task keeps it alive and is the only one that opens a new session when the old one has expired; everybody else asks
//! that task and waits. A change keeps its sequence number over all attempts. When a session expired under a change of
//! which an attempt went unanswered, the change is not sent again in the new one: whether it took effect is unknown.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dfs_common::planted::{self, Bug};
use dfs_common::wire::meta::{ChangeRequest, KEEP_ALIVE_MS, KeepAlive, MetaRequest, MetaResponse, Shown};
use dfs_common::wire::namespace::{
    Attributes, Caller, FileKind, NamespaceAnswer, NamespaceChange, NamespaceOp, NamespaceRead,
};
use dfs_common::{Error, ErrorCode, Hold, InodeId, Result, SequenceNumber, SessionId};
use dfs_net::wall_clock;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ahead::{self, Ahead};
use super::directories::{Directories, Sent};
use super::holding::{self, Untold};
use super::leader::Leader;
use super::opens::OpenSet;
use super::refusals::Told;
use super::sequence::SequenceWindow;
use crate::clock::FileClock;
use crate::routing::RoutingCache;

/// A mount stops this long before the end of its session's lease: clocks do not run alike.
const LEASE_MARGIN_MS: u64 = 2_000;

/// One session's life.
struct Life {
    id: SessionId,
    lease_ms: u64,
    /// When the last keep-alive was sent that was answered, or the question that opened it.
    heard_ms: AtomicU64,
    window: Mutex<SequenceWindow>,
    room: Notify,
}

/// The session and who keeps it.
pub(crate) struct Session {
    pub(super) leader: Arc<Leader>,
    pub(super) routing: Arc<RoutingCache>,
    pub(super) ahead: Ahead,
    pub(crate) file_clock: FileClock,
    label: String,
    life: watch::Sender<Arc<Life>>,
    expired: Notify,
    opens: Mutex<OpenSet>,
    /// A report is under way: an open that happens now is not in it.
    reporting: watch::Sender<bool>,
    directories: Mutex<Directories>,
    /// Ticks when a keep-alive is answered.
    heard: watch::Sender<u64>,
}

/// Answers a sequence number when the caller is done with it, or was killed.
pub(super) struct Turn {
    life: Arc<Life>,
    number: SequenceNumber,
}

impl Turn {
    pub(super) fn session(&self) -> SessionId {
        self.life.id
    }

    pub(super) const fn number(&self) -> SequenceNumber {
        self.number
    }

    pub(super) fn answered_below(&self) -> SequenceNumber {
        self.life.window.lock().answered_below()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.life.window.lock().finish(self.number);
        self.life.room.notify_waiters();
    }
}

/// A change on its way: whatever becomes of it, what is known of its directories follows.
struct Telling<'a> {
    session: &'a Session,
    op: &'a NamespaceOp,
    sent: Sent,
    done: bool,
}

impl Telling<'_> {
    fn answered(mut self, change: &NamespaceChange, parents: Vec<Attributes>) {
        self.done = true;
        let mut directories = self.session.directories.lock();
        directories.answered(self.sent, self.op, Some((change, parents)));
    }
}

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.session.directories.lock().answered(self.sent, self.op, None);
        }
    }
}

impl Session {
    pub(crate) async fn open(
        leader: Arc<Leader>,
        routing: Arc<RoutingCache>,
        label: String,
        deadline: Instant,
    ) -> Result<Arc<Self>> {
        let file_clock = FileClock::default();
        let life = open_session(&leader, &label, &file_clock, deadline).await?;
        Ok(Arc::new(Self {
            leader,
            routing,
            ahead: Ahead::new(),
            file_clock,
            label,
            life: watch::Sender::new(life),
            expired: Notify::new(),
            opens: Mutex::new(OpenSet::new()),
            reporting: watch::Sender::new(false),
            directories: Mutex::new(Directories::new()),
            heard: watch::Sender::new(0),
        }))
    }

    pub(crate) fn id(&self) -> SessionId {
        self.life.borrow().id
    }

    /// Whether the group may not have ended the session yet: what it has open is still there, and nobody was told otherwise.
    pub(crate) fn is_leased(&self) -> bool {
        let life = self.life.borrow();
        let heard_ms = life.heard_ms.load(Ordering::Acquire);
        self.now_ms().saturating_sub(heard_ms) < life.lease_ms.saturating_sub(LEASE_MARGIN_MS)
    }

    /// Waits until [`Session::is_leased`], for a while; the machine may just have woken.
    pub(crate) async fn leased(&self, deadline: Instant) -> Result<()> {
        let mut heard = self.heard.subscribe();
        while !self.is_leased() && !planted::is(Bug::LeaseUnheeded) {
            self.expired.notify_one();
            if tokio::time::timeout_at(deadline, heard.changed()).await.is_err() {
                return Err(Error::new(
                    ErrorCode::SessionExpired,
                    format!(
                        "the metadata group has not answered this mount for {} s, so session {} may have ended and what it had \
                         open may be gone",
                        self.life.borrow().lease_ms / 1000,
                        self.id()
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Registers an inode as open. To be done before its attributes are read: whoever unlinks it later waits for a report
    /// of this session made after that, and it will have the inode in it.
    pub(crate) async fn hold(&self, inode: InodeId, deadline: Instant) -> Result<()> {
        if !self.opens.lock().open(inode) {
            return Err(Error::new(
                ErrorCode::Overloaded,
                format!(
                    "inode {inode} can not be opened: this mount holds {} open",
                    super::opens::MAX_OPEN_INODES
                ),
            ));
        }
        let mut reporting = self.reporting.subscribe();
        // A report under way was made without it and could overtake the read of the attributes.
        let _ = tokio::time::timeout_at(deadline, reporting.wait_for(|busy| !busy)).await;
        Ok(())
    }

    /// Registers without waiting, for an inode that was just created.
    pub(crate) fn hold_new(&self, inode: InodeId) {
        self.opens.lock().open(inode);
    }

    pub(crate) fn let_go(&self, inode: InodeId) {
        self.opens.lock().close(inode);
    }

    async fn renewed(&self, old: SessionId, deadline: Instant) -> Result<()> {
        let mut life = self.life.subscribe();
        self.expired.notify_one();
        match tokio::time::timeout_at(deadline, life.wait_for(|life| life.id != old)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Error::new(
                ErrorCode::Timeout,
                format!("session {old} expired and no new one could be opened in time"),
            )),
        }
    }

    pub(super) async fn turn(&self, deadline: Instant) -> Result<Turn> {
        loop {
            let life = self.life.borrow().clone();
            let room = life.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if let Some(number) = life.window.lock().begin() {
                return Ok(Turn {
                    life: Arc::clone(&life),
                    number,
                });
            }
            if tokio::time::timeout_at(deadline, room).await.is_err() {
                return Err(Error::new(
                    ErrorCode::Timeout,
                    "too many changes of this mount are unanswered; the metadata group is slow or away",
                ));
            }
        }
    }

    /// Attributes of a directory that a change of this mount has just brought along, and how old they are.
    pub(crate) fn directory(&self, inode: InodeId) -> Option<(Attributes, Duration)> {
        if let Some(attributes) = self.ahead.attributes(self, inode) {
            // Of a file more is known than what metadata says of it.
            return (attributes.kind == FileKind::Directory).then_some((attributes, Duration::ZERO));
        }
        let known = self.directories.lock().get(inode, self.now_ms());
        known.map(|(attributes, age_ms)| (attributes, Duration::from_millis(age_ms)))
    }

    pub(super) fn now_ms(&self) -> u64 {
        self.leader.lease_now_ms()
    }

    fn telling<'a>(&'a self, op: &'a NamespaceOp) -> Telling<'a> {
        let sent = self.directories.lock().sending(self.now_ms());
        Telling {
            session: self,
            op,
            sent,
            done: false,
        }
    }

    /// Sends what was shown before it was told, and keeps the right to show it, until told to stop.
    pub(crate) async fn run_ahead<U: Untold>(self: Arc<Self>, untold: Arc<U>, stop: CancellationToken) {
        tokio::join!(ahead::tell(&self, &stop), holding::keep(&self, &untold, &stop));
    }

    /// The hold under which this file may be written and synced without a word to the group; to be asked again after the data
    /// has arrived.
    pub(crate) fn may_grow(&self, inode: InodeId) -> Option<Hold> {
        self.ahead.may_grow(self, inode)
    }

    /// Whether changes of this inode are made here.
    pub(crate) fn holds(&self, inode: InodeId) -> bool {
        self.ahead.attributes(self, inode).is_some()
    }

    /// Waits until the group knows all that this mount has shown.
    pub(crate) async fn settled(&self, deadline: Instant) -> Result<()> {
        self.ahead.settled(deadline).await
    }

    /// The same, and what was refused of it as far as nobody has been told.
    pub(crate) async fn settled_well(&self, deadline: Instant) -> Result<()> {
        self.ahead.settled(deadline).await?;
        self.ahead.untold().map_or(Ok(()), Err)
    }

    /// What was refused, for a sync of the whole mount, which tells of each once.
    pub(crate) fn untold_since_sync(&self) -> Option<Error> {
        self.ahead.untold_since_sync()
    }

    /// Where a handle of this inode starts that is opened now; for [`Session::refused`].
    pub(crate) fn open_handle(&self, inode: InodeId) -> Told {
        self.ahead.open(inode)
    }

    /// What was refused of the changes of this inode, or in this directory, after they were shown, if this handle has not
    /// been told of it; of those that are answered (see [`Session::settled`]).
    pub(crate) fn refused(&self, inode: InodeId, handle: &mut Told) -> Result<()> {
        self.ahead.refused(inode, handle)
    }

    /// How many changes did not come to pass as they were shown.
    pub(crate) fn untrue(&self) -> u64 {
        self.ahead.untrue()
    }

    /// One change, exactly once. Of what this mount holds it is answered before the group is told; see [`Session::settled`].
    pub(crate) async fn change(&self, caller: Caller, op: NamespaceOp, deadline: Instant) -> Result<NamespaceChange> {
        self.change_within(None, caller, op, deadline).await
    }

    /// The same, but only as long as that hold lasts: `HoldLost` when it is over, and then others may have changed what it was
    /// about.
    pub(crate) async fn change_within(
        &self,
        hold: Option<Hold>,
        caller: Caller,
        op: NamespaceOp,
        deadline: Instant,
    ) -> Result<NamespaceChange> {
        if let Some(outcome) = self.ahead.change(self, caller, &op, hold, deadline).await {
            // Older than what is known now.
            if outcome.is_ok() {
                let mut directories = self.directories.lock();
                let sent = directories.sending(self.now_ms());
                directories.answered(sent, &op, None);
            }
            return outcome;
        }
        self.ahead.leave(&op);
        self.ahead.settled(deadline).await?;
        self.send(hold, caller, op, deadline).await
    }

    async fn send(
        &self,
        within: Option<Hold>,
        caller: Caller,
        op: NamespaceOp,
        deadline: Instant,
    ) -> Result<NamespaceChange> {
        loop {
            let turn = self.turn(deadline).await?;
            let session = turn.life.id;
            if within.is_some_and(|hold| hold.session != session) {
                return Err(Error::new(
                    ErrorCode::HoldLost,
                    format!("{}: the session that held it is over", describe(&op)),
                ));
            }
            let answered_below = turn.answered_below();
            let sending = self.ahead.sending(&op);
            let request = MetaRequest::Change(ChangeRequest {
                session,
                sequence: turn.number,
                answered_below,
                caller,
                op: op.clone(),
                hold: within
                    .map(|hold| hold.epoch)
                    .or(sending.as_ref().map(|sending| sending.epoch)),
                shown: within.map(|_| Shown {
                    time: self.file_clock.now(),
                    inode: None,
                }),
            });
            let what = || describe(&op);
            let told = self.telling(&op);
            let answer = self
                .leader
                .ask_noting_repeats(&request, deadline, Duration::ZERO, &what)
                .await?;
            drop(turn);
            let outcome = match answer.response {
                MetaResponse::Change(answer) => {
                    if let Ok(change) = &answer.outcome {
                        if let NamespaceChange::Removed { inode, .. }
                        | NamespaceChange::Renamed {
                            replaced: Some((inode, _)),
                        } = change
                        {
                            self.ahead.gone(*inode);
                        }
                        if let Some(sending) = sending {
                            sending.answered(&op, change);
                        }
                        told.answered(change, answer.parents);
                    }
                    answer.outcome
                }
                MetaResponse::Failed(error) => Err(error),
                _ => return Err(unexpected("a change")),
            };
            match outcome {
                Err(error) if error.code == ErrorCode::SessionExpired => {
                    self.renewed(session, deadline).await?;
                    if answer.repeated {
                        return Err(error.context(format!("{}: may or may not have taken effect", describe(&op))));
                    }
                }
                other => return other,
            }
        }
    }

    /// Questions answered from one state, in order.
    pub(crate) async fn read(
        &self,
        reads: Vec<NamespaceRead>,
        deadline: Instant,
    ) -> Result<Vec<Result<NamespaceAnswer>>> {
        if let Some(answers) = self.ahead.read(self, &reads) {
            return Ok(answers);
        }
        self.ahead.settled(deadline).await?;
        let count = reads.len();
        loop {
            let session = self.id();
            let request = MetaRequest::Read {
                session,
                reads: reads.clone(),
            };
            let what = || format!("{:?}", reads.first());
            match self.leader.ask(&request, deadline, Duration::ZERO, &what).await {
                Ok(MetaResponse::Read(answers)) if answers.len() == count => {
                    let expired = answers
                        .iter()
                        .any(|answer| matches!(answer, Err(error) if error.code == ErrorCode::SessionExpired));
                    if !expired {
                        return Ok(answers);
                    }
                    self.renewed(session, deadline).await?;
                }
                Ok(_) => return Err(unexpected("a read")),
                Err(error) if error.code == ErrorCode::SessionExpired => self.renewed(session, deadline).await?,
                Err(error) => return Err(error),
            }
        }
    }

    /// One question.
    pub(crate) async fn ask(&self, read: NamespaceRead, deadline: Instant) -> Result<NamespaceAnswer> {
        self.read(vec![read], deadline)
            .await?
            .pop()
            .unwrap_or_else(|| Err(unexpected("a read")))
    }

    /// Keeps the session until told to stop.
    pub(crate) async fn keep_alive(self: Arc<Self>, stop: CancellationToken) {
        let mut ticker = tokio::time::interval(Duration::from_millis(KEEP_ALIVE_MS));
        ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.expired.notified() => {}
                _ = ticker.tick() => {}
            }
            // A whole list follows at once when the leader asks for it, so that a delete need not wait a second more.
            for _ in 0..2 {
                match self.report().await {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(error) if error.code == ErrorCode::SessionExpired => {
                        self.start_anew().await;
                        break;
                    }
                    Err(error) => {
                        tracing::debug!(%error, "a keep-alive was not answered");
                        break;
                    }
                }
            }
        }
    }

    /// `true`: the leader wants the whole list.
    async fn report(&self) -> Result<bool> {
        self.reporting.send_replace(true);
        let life = Arc::clone(&self.life.borrow());
        let sent_ms = self.now_ms();
        let report = self.opens.lock().next_report();
        let asked = wall_clock();
        let request = MetaRequest::KeepAlive(KeepAlive {
            session: life.id,
            routing: self.routing.current().version,
            all: report.all,
            opened: report.opened,
            closed: report.closed,
            report: report.report,
            clock: asked,
            configured: self.leader.configured(),
        });
        let deadline = Instant::now() + Duration::from_millis(2 * KEEP_ALIVE_MS);
        let what = || "keep-alive".to_owned();
        let answer = self.leader.ask(&request, deadline, Duration::ZERO, &what).await;
        self.reporting.send_replace(false);
        match answer {
            Ok(MetaResponse::KeepAlive(answer)) => {
                life.heard_ms.fetch_max(sent_ms, Ordering::AcqRel);
                self.heard.send_modify(|count| *count += 1);
                self.opens.lock().reported(Some(answer.send_all));
                self.file_clock.learn((asked, wall_clock()), answer.time);
                if let Some(table) = answer.routing {
                    self.routing.learn(table);
                }
                Ok(answer.send_all)
            }
            other => {
                self.opens.lock().reported(None);
                other.and_then(|_| Err(unexpected("a keep-alive")))
            }
        }
    }

    async fn start_anew(&self) {
        let old = self.id();
        let deadline = Instant::now() + Duration::from_millis(10 * KEEP_ALIVE_MS);
        match open_session(&self.leader, &self.label, &self.file_clock, deadline).await {
            Ok(life) => {
                tracing::warn!(
                    "session {old} of this mount expired; files that were open must be opened again (session {})",
                    life.id
                );
                self.opens.lock().reported(None);
                self.directories.lock().clear();
                self.ahead.clear();
                self.life.send_replace(life);
                self.heard.send_modify(|count| *count += 1);
            }
            Err(error) => tracing::warn!(%error, "session {old} expired and no new one could be opened"),
        }
    }

    /// Says good-bye; the group would find out by itself after the lease.
    pub(crate) async fn end(&self, deadline: Instant) {
        let request = MetaRequest::CloseSession { session: self.id() };
        let what = || "end of the session".to_owned();
        if let Err(error) = self.leader.ask(&request, deadline, Duration::ZERO, &what).await {
            tracing::debug!(%error, "the session was not closed");
        }
    }
}

async fn open_session(leader: &Leader, label: &str, file_clock: &FileClock, deadline: Instant) -> Result<Arc<Life>> {
    let sent_ms = leader.lease_now_ms();
    let asked = wall_clock();
    let request = MetaRequest::OpenSession {
        label: label.to_owned(),
    };
    let what = || "opening a session".to_owned();
    match leader.ask(&request, deadline, Duration::from_secs(1), &what).await? {
        MetaResponse::SessionOpened {
            session,
            lease_ms,
            time,
        } => {
            file_clock.learn((asked, wall_clock()), time);
            Ok(Arc::new(Life {
                id: session,
                lease_ms: u64::from(lease_ms),
                heard_ms: AtomicU64::new(sent_ms),
                window: Mutex::new(SequenceWindow::new()),
                room: Notify::new(),
            }))
        }
        _ => Err(unexpected("the opening of a session")),
    }
}

pub(crate) fn unexpected(to: &str) -> Error {
    Error::new(
        ErrorCode::BadMessage,
        format!("a metadata server answered {to} with something else; are all programs of one version?"),
    )
}

/// For people: what a change was about.
pub(super) fn describe(op: &NamespaceOp) -> String {
    match op {
        NamespaceOp::Create { parent, name, .. } => format!("create of {name:?} in inode {parent}"),
        NamespaceOp::Mkdir { parent, name, .. } => format!("mkdir of {name:?} in inode {parent}"),
        NamespaceOp::Mknod { parent, name, .. } => format!("mknod of {name:?} in inode {parent}"),
        NamespaceOp::Symlink { parent, name, .. } => format!("symlink {name:?} in inode {parent}"),
        NamespaceOp::Link { inode, parent, name } => format!("link of inode {inode} as {name:?} in inode {parent}"),
        NamespaceOp::Unlink { parent, name } => format!("unlink of {name:?} in inode {parent}"),
        NamespaceOp::Rmdir { parent, name } => format!("rmdir of {name:?} in inode {parent}"),
        NamespaceOp::Rename { parent, name, .. } => format!("rename of {name:?} in inode {parent}"),
        NamespaceOp::SetAttributes { inode, .. } => format!("set attributes of inode {inode}"),
        NamespaceOp::BeginCut { inode, .. } => format!("cut of inode {inode}"),
        NamespaceOp::SetLength {
            inode, length_bytes, ..
        } => format!("set length of inode {inode} to {length_bytes}"),
        NamespaceOp::CommitWrite { inode, .. } => format!("commit of writes to inode {inode}"),
        NamespaceOp::SetXattr { inode, .. } | NamespaceOp::RemoveXattr { inode, .. } => {
            format!("change of an xattr of inode {inode}")
        }
        NamespaceOp::SetPolicy { inode, .. } => format!("change of the policy of inode {inode}"),
    }
}
