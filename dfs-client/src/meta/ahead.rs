//! Changes of what this mount holds: answered at once, told to the metadata group in order and in batches.
//!
//! One lock makes working a change out and queueing it one step, so the queue has the order in which callers saw the
//! changes. One task sends the queue, one batch at a time: what gathers during one round trip goes with the next, so no
//! change waits for more than two. Another keeps the right to hold: it renews the lease by asking whether somebody wants
//! what is held, and gives all of it up when somebody does.
//!
//! A change that is shown here is not durable before `settled` says so; fsync does. When the mount dies before, the last
//! milliseconds of creations and attributes are lost with it, as its unwritten data are. A rename, an unlink, or anything
//! else that is not worked out here is sent after the queue is empty, so nothing is ever seen out of order.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dfs_common::wire::meta::{
    ChangeRequest, HOLD_LEASE_MS, MAX_CHANGES_TOGETHER, MetaRequest, MetaResponse, Reservation,
};
use dfs_common::wire::namespace::{Attributes, Caller, NamespaceAnswer, NamespaceChange, NamespaceOp, NamespaceRead};
use dfs_common::{Error, ErrorCode, Hold, HoldEpoch, InodeId, Result, SessionId, ValidName};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::held::{self, Foreseen, Held, Outcome, Setting};
use super::session::{Session, describe, unexpected};
use crate::mount::wall_clock;

/// Changes that may wait to be told. Whoever makes more waits for room.
const MAX_QUEUED: usize = 512;

/// A change that nobody waits for goes out after this, together with those that came since: one round of consensus costs
/// about the same for one as for many.
const GATHER: Duration = Duration::from_millis(5);

/// New inode numbers are asked for when fewer are left.
const LOW_NUMBERS: u64 = 512;

/// How long one question for wants waits at the leader. Well below the lease that its answer renews.
const WANTED_WAIT: Duration = Duration::from_millis(400);

/// After somebody wanted what this mount held it does not hold anything for so long; twice as long each time.
const REST_MIN: Duration = Duration::from_secs(1);
const REST_MAX: Duration = Duration::from_secs(30);

/// Without a want for this long the next one is the first again.
const QUIET: Duration = Duration::from_mins(1);

/// Pause after the leader did not answer.
const PAUSE: Duration = Duration::from_millis(100);

/// For one attempt to tell; it is repeated until it is answered or the session is over.
const TELL_DEADLINE: Duration = Duration::from_secs(30);

/// Inodes whose late failure is remembered until somebody asks.
const MAX_FAILURES: usize = 1_024;

/// One change that its caller has seen and the group has not.
#[derive(Debug)]
struct Entry {
    caller: Caller,
    op: NamespaceOp,
    foreseen: Foreseen,
    session: SessionId,
    hold: HoldEpoch,
}

#[derive(Debug, Default)]
struct Inner {
    held: Held,
    queue: VecDeque<Entry>,
    /// Changes ever queued.
    queued: u64,
    /// All is being given up, or numbers are on their way: changes of what is held wait.
    paused: bool,
    failures: HashMap<InodeId, Error>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Ahead {
    inner: Mutex<Inner>,
    work: Notify,
    /// Somebody waits for what is queued up to this number.
    wanted_to: AtomicU64,
    urgent: Notify,
    /// Changes ever answered, good or bad.
    told: watch::Sender<u64>,
    /// Ticks when changes that wait for the end of a pause, or for the lease, may try again.
    resumed: watch::Sender<u64>,
    /// Low numbers, or too much held.
    attention: Notify,
    /// When the last question was sent that the leader answered, in milliseconds of the session's clock; 0: never.
    contact_ms: AtomicU64,
}

/// A creation on its way that may bring a hold.
pub(super) struct Sending<'a> {
    ahead: &'a Ahead,
    pub(super) epoch: HoldEpoch,
    done: bool,
}

impl Sending<'_> {
    pub(super) fn answered(mut self, op: &NamespaceOp, change: &NamespaceChange) {
        self.done = true;
        let created = match (op, change) {
            (
                NamespaceOp::Create { parent, name, .. }
                | NamespaceOp::Mkdir { parent, name, .. }
                | NamespaceOp::Symlink { parent, name, .. },
                NamespaceChange::Entry {
                    attributes, held: true, ..
                },
            ) => Some((*parent, name, attributes)),
            _ => None,
        };
        self.finish(created);
    }

    fn finish(&self, created: Option<(InodeId, &ValidName, &Attributes)>) {
        self.ahead.inner.lock().held.answered(self.epoch, created);
    }
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.finish(None);
        }
    }
}

/// What became of an attempt to make a change here.
enum Attempt {
    Done(Result<NamespaceChange>),
    /// When this ticks it may be tried again.
    Wait(watch::Receiver<u64>),
    NotHere,
}

impl Ahead {
    pub(super) fn new() -> Self {
        Self {
            inner: Mutex::new(Inner::default()),
            work: Notify::new(),
            wanted_to: AtomicU64::new(0),
            urgent: Notify::new(),
            told: watch::Sender::new(0),
            resumed: watch::Sender::new(0),
            attention: Notify::new(),
            contact_ms: AtomicU64::new(0),
        }
    }

    /// Whether the lease is good: nobody can have taken what is held.
    fn is_leased(&self, now_ms: u64) -> bool {
        let contact = self.contact_ms.load(Ordering::Acquire);
        contact > 0 && now_ms.saturating_sub(contact) < HOLD_LEASE_MS
    }

    fn renew(&self, sent_ms: u64) {
        self.contact_ms.fetch_max(sent_ms.max(1), Ordering::AcqRel);
        self.resumed.send_modify(|count| *count += 1);
    }

    fn attempt(&self, session: &Session, caller: Caller, op: &NamespaceOp) -> Attempt {
        // Before anything is looked at, so that no tick is missed.
        let resumed = self.resumed.subscribe();
        let leased = self.is_leased(session.now_ms());
        let mut inner = self.inner.lock();
        if inner.held.epoch().is_none() {
            return Attempt::NotHere;
        }
        // Without the lease it has to wait for the leader in any case.
        if inner.paused || !leased {
            return Attempt::Wait(resumed);
        }
        if inner.queue.len() >= MAX_QUEUED {
            return Attempt::Wait(self.told.subscribe());
        }
        let setting = Setting {
            session: session.id(),
            now: wall_clock(),
            table: session.routing.current().default_table,
        };
        match inner.held.change(setting, caller, op) {
            Outcome::NotHere => Attempt::NotHere,
            Outcome::Refused(code) => Attempt::Done(Err(code.into())),
            Outcome::NoNumbers => {
                self.attention.notify_one();
                Attempt::Wait(resumed)
            }
            Outcome::Foreseen(foreseen) => {
                let change = foreseen.change.clone();
                if inner.queue.len() + 1 >= MAX_CHANGES_TOGETHER {
                    self.urgent.notify_one();
                }
                if inner.held.numbers_left() == LOW_NUMBERS || inner.held.is_full() {
                    self.attention.notify_one();
                }
                if let Some(hold) = inner.held.epoch() {
                    inner.queued += 1;
                    inner.queue.push_back(Entry {
                        caller,
                        op: op.clone(),
                        foreseen,
                        session: setting.session,
                        hold,
                    });
                }
                drop(inner);
                self.work.notify_one();
                Attempt::Done(Ok(change))
            }
        }
    }

    /// Makes a change here, if it is about what is held. `None`: it must be sent.
    pub(super) async fn change(
        &self,
        session: &Session,
        caller: Caller,
        op: &NamespaceOp,
        deadline: Instant,
    ) -> Option<Result<NamespaceChange>> {
        loop {
            match self.attempt(session, caller, op) {
                Attempt::Done(outcome) => return Some(outcome),
                Attempt::NotHere => return None,
                Attempt::Wait(mut moved) => {
                    if tokio::time::timeout_at(deadline, moved.changed()).await.is_err() {
                        return Some(Err(Error::new(
                            ErrorCode::Timeout,
                            format!(
                                "{}: the changes before it are not taken by the metadata group",
                                describe(op)
                            ),
                        )));
                    }
                }
            }
        }
    }

    /// The answers, if all lie here.
    pub(super) fn read(&self, session: &Session, reads: &[NamespaceRead]) -> Option<Vec<Result<NamespaceAnswer>>> {
        if !self.is_leased(session.now_ms()) {
            return None;
        }
        let inner = self.inner.lock();
        if inner.paused {
            return None;
        }
        reads.iter().map(|read| inner.held.read(read)).collect()
    }

    pub(super) fn attributes(&self, session: &Session, inode: InodeId) -> Option<Attributes> {
        if !self.is_leased(session.now_ms()) {
            return None;
        }
        let inner = self.inner.lock();
        if inner.paused {
            return None;
        }
        inner.held.attributes(inode).cloned()
    }

    /// To be called before a change is sent that was not made here.
    pub(super) fn leave(&self, op: &NamespaceOp) {
        self.inner.lock().held.leave(op);
    }

    /// The hold to ask for with a creation.
    pub(super) fn sending(&self, op: &NamespaceOp) -> Option<Sending<'_>> {
        let holdable = matches!(
            op,
            NamespaceOp::Create { .. } | NamespaceOp::Mkdir { .. } | NamespaceOp::Symlink { .. }
        );
        let mut inner = self.inner.lock();
        let epoch = inner.held.epoch().filter(|_| holdable && !inner.paused)?;
        inner.held.sending();
        Some(Sending {
            ahead: self,
            epoch,
            done: false,
        })
    }

    /// Waits until every change made here before this call was answered by the group.
    pub(super) async fn settled(&self, deadline: Instant) -> Result<()> {
        let target = self.inner.lock().queued;
        if *self.told.borrow() >= target {
            return Ok(());
        }
        self.wanted_to.fetch_max(target, Ordering::AcqRel);
        self.urgent.notify_one();
        let mut told = self.told.subscribe();
        match tokio::time::timeout_at(deadline, told.wait_for(|told| *told >= target)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Error::new(
                ErrorCode::Timeout,
                "the last changes of this mount are not taken by the metadata group in time",
            )),
        }
    }

    /// What became of the inode's changes after they were shown, if it was bad; told once.
    pub(super) fn take_failure(&self, inode: InodeId) -> Option<Error> {
        let mut inner = self.inner.lock();
        if inner.failures.is_empty() {
            return None;
        }
        inner.failures.remove(&inode)
    }

    /// Waits for company, unless somebody waits for what is queued or there is a batch of it.
    async fn gather(&self) {
        let end = Instant::now() + GATHER;
        loop {
            let urgent = self.urgent.notified();
            let (first, length) = {
                let inner = self.inner.lock();
                (inner.queued - inner.queue.len() as u64, inner.queue.len())
            };
            let is_wanted = self.wanted_to.load(Ordering::Acquire) > first;
            if length >= MAX_CHANGES_TOGETHER || is_wanted {
                return;
            }
            if tokio::time::timeout_at(end, urgent).await.is_err() {
                return;
            }
        }
    }

    fn pause(&self) {
        self.inner.lock().paused = true;
    }

    fn resume(&self) {
        self.inner.lock().paused = false;
        self.resumed.send_modify(|count| *count += 1);
    }

    fn fail(&self, entry: &Entry, error: &Error) {
        let error = held::lost(error, &describe(&entry.op));
        tracing::error!("{error}");
        let mut inner = self.inner.lock();
        if let Some(inode) = held::failure(&entry.op, entry.foreseen.shown)
            && inner.failures.len() < MAX_FAILURES
        {
            inner.failures.insert(inode, error);
        }
        // What was worked out since is built on what did not happen.
        inner.held.clear();
        drop(inner);
        self.attention.notify_one();
    }

    fn answered(&self, entries: &[Entry], answers: Vec<Result<NamespaceChange>>) {
        let count = entries.len() as u64;
        for (entry, answer) in entries.iter().zip(answers) {
            match answer {
                Ok(change) if change == entry.foreseen.change => {}
                Ok(change) => {
                    tracing::warn!(
                        shown = ?entry.foreseen.change,
                        is = ?change,
                        "{}: the metadata group made it otherwise than this mount had shown it",
                        describe(&entry.op)
                    );
                    self.inner.lock().held.clear();
                    self.attention.notify_one();
                }
                Err(error) => self.fail(entry, &error),
            }
        }
        self.told.send_modify(|told| *told += count);
    }
}

/// Sends what is queued, until told to stop and the queue is empty.
pub(super) async fn tell(session: &Session, stop: &CancellationToken) {
    let ahead = &session.ahead;
    loop {
        if ahead.inner.lock().queue.is_empty() {
            tokio::select! {
                () = stop.cancelled() => return,
                () = ahead.work.notified() => {}
            }
            continue;
        }
        ahead.gather().await;
        let entries: Vec<Entry> = {
            let mut inner = ahead.inner.lock();
            let count = inner.queue.len().min(MAX_CHANGES_TOGETHER);
            inner.queue.drain(..count).collect()
        };
        let answers = send(session, &entries).await;
        ahead.answered(&entries, answers);
    }
}

/// One batch, exactly once; an answer for each, whatever happens.
async fn send(session: &Session, entries: &[Entry]) -> Vec<Result<NamespaceChange>> {
    let all = |error: Error| entries.iter().map(|_| Err(error.clone())).collect();
    let mut turns = Vec::with_capacity(entries.len());
    for _ in entries {
        let turn = loop {
            match session.turn(Instant::now() + TELL_DEADLINE).await {
                Ok(turn) => break turn,
                Err(error) => tracing::warn!("{error}"),
            }
        };
        turns.push(turn);
    }
    let Some(first) = turns.first() else {
        return Vec::new();
    };
    let id = first.session();
    if turns.iter().any(|turn| turn.session() != id) || entries.iter().any(|entry| entry.session != id) {
        return all(Error::new(
            ErrorCode::SessionExpired,
            "the session that made it is over",
        ));
    }
    let changes = turns
        .iter()
        .zip(entries)
        .map(|(turn, entry)| ChangeRequest {
            session: id,
            sequence: turn.number(),
            answered_below: first.answered_below(),
            caller: entry.caller,
            op: entry.op.clone(),
            hold: Some(entry.hold),
            shown: Some(entry.foreseen.shown),
        })
        .collect();
    let request = MetaRequest::Changes(changes);
    let what = || format!("{} changes, the first {}", entries.len(), describe(&entries[0].op));
    loop {
        let sent_ms = session.now_ms();
        let deadline = Instant::now() + TELL_DEADLINE;
        match session.leader.ask(&request, deadline, Duration::ZERO, &what).await {
            Ok(MetaResponse::Changes(answers)) if answers.len() == entries.len() => {
                session.ahead.renew(sent_ms);
                return answers;
            }
            Ok(_) => return all(unexpected("changes")),
            // Nobody leads, or the leader waits for somebody. What was shown must come to pass.
            Err(error) if error.code == ErrorCode::Timeout && session.id() == id => {}
            Err(error) => return all(error),
        }
    }
}

/// Keeps the right to hold, until told to stop.
pub(super) async fn keep(session: &Session, stop: &CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = keep_holding(session) => {}
    }
}

async fn keep_holding(session: &Session) {
    let ahead = &session.ahead;
    let mut rest = REST_MIN;
    let mut last_want: Option<Instant> = None;
    loop {
        let id = session.id();
        let (sent_ms, reservation) = match reserve(session, id).await {
            Ok(reserved) => reserved,
            Err(error) => {
                tracing::debug!(%error, "nothing can be held now");
                tokio::time::sleep(REST_MIN).await;
                continue;
            }
        };
        ahead.inner.lock().held.begin(reservation);
        ahead.renew(sent_ms);
        ahead.resume();
        let hold = Hold {
            session: id,
            epoch: reservation.epoch,
        };
        let wanted = hold_on(session, hold).await;
        ahead.pause();
        give_up(session, hold).await;
        // What waits is sent now, like anything that is not held.
        ahead.resume();
        if wanted {
            if last_want.is_some_and(|last| last.elapsed() > QUIET) {
                rest = REST_MIN;
            }
            last_want = Some(Instant::now());
            tokio::time::sleep(rest).await;
            rest = (rest * 2).min(REST_MAX);
        }
    }
}

/// Holds until something ends it; `true` when somebody else wanted it.
async fn hold_on(session: &Session, hold: Hold) -> bool {
    let ahead = &session.ahead;
    let what = || "whether anybody wants what this mount holds".to_owned();
    loop {
        if session.id() != hold.session || ahead.inner.lock().held.epoch() != Some(hold.epoch) {
            return false;
        }
        if ahead.inner.lock().held.is_full() {
            return false;
        }
        if ahead.inner.lock().held.numbers_left() <= LOW_NUMBERS && !more_numbers(session, hold).await {
            return false;
        }
        let sent_ms = session.now_ms();
        let request = MetaRequest::Wanted {
            hold,
            wait_ms: WANTED_WAIT.as_millis() as u32,
        };
        let deadline = Instant::now() + 2 * WANTED_WAIT;
        let answer = tokio::select! {
            answer = session.leader.ask(&request, deadline, WANTED_WAIT, &what) => answer,
            () = ahead.attention.notified() => continue,
        };
        match answer {
            Ok(MetaResponse::Wanted(false)) => ahead.renew(sent_ms),
            Ok(MetaResponse::Wanted(true)) => return true,
            Ok(_) | Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Numbers of an old reservation end with the new one, so those that were shown are told first.
async fn more_numbers(session: &Session, hold: Hold) -> bool {
    let ahead = &session.ahead;
    ahead.pause();
    let _ = ahead.settled(Instant::now() + TELL_DEADLINE).await;
    let reserved = reserve(session, hold.session).await;
    let same = match reserved {
        Ok((sent_ms, reservation)) if reservation.epoch == hold.epoch => {
            let mut inner = ahead.inner.lock();
            let same = inner.held.epoch() == Some(hold.epoch);
            if same {
                inner.held.begin(reservation);
                ahead.renew(sent_ms);
            }
            same
        }
        _ => false,
    };
    if same {
        ahead.resume();
    }
    same
}

async fn reserve(session: &Session, id: SessionId) -> Result<(u64, Reservation)> {
    let sent_ms = session.now_ms();
    let request = MetaRequest::Reserve { session: id };
    let what = || "inode numbers for this mount".to_owned();
    let deadline = Instant::now() + TELL_DEADLINE;
    match session.leader.ask(&request, deadline, Duration::ZERO, &what).await? {
        MetaResponse::Reserved(reservation) => Ok((sent_ms, reservation)),
        _ => Err(unexpected("a reservation")),
    }
}

/// Tells what is queued, then ends the epoch. Changes of what is held wait meanwhile.
async fn give_up(session: &Session, hold: Hold) {
    let ahead = &session.ahead;
    // It goes on without: what is queued is told in any case, and taken from this mount by whoever wants it.
    if let Err(error) = ahead.settled(Instant::now() + TELL_DEADLINE).await {
        tracing::warn!("{error}");
    }
    ahead.inner.lock().held.clear();
    if session.id() == hold.session {
        let request = MetaRequest::Release(hold);
        let what = || "giving up what this mount holds".to_owned();
        let deadline = Instant::now() + TELL_DEADLINE;
        if let Err(error) = session.leader.ask(&request, deadline, Duration::ZERO, &what).await {
            tracing::debug!(%error, "what this mount held is not given up yet");
        }
    }
}
