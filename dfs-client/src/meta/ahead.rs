//! Changes of what this mount holds: answered at once, told to the metadata group in order and in batches.
//!
//! One lock makes working a change out and queueing it one step, so the queue has the order in which callers saw the
//! changes. One task sends the queue, one batch at a time: what gathers during one round trip goes with the next, so no
//! change waits for more than two. Another keeps the right to hold (`holding`): it renews the lease by asking whether somebody wants
//! what is held, and gives all of it up when somebody does.
//!
//! A change that is shown here is not durable before `settled` says so; fsync does. When the mount dies before, the last
//! milliseconds of creations and attributes are lost with it, as its unwritten data are. A rename, an unlink, or anything
//! else that is not worked out here is sent after the queue is empty, so nothing is ever seen out of order.

use std::collections::VecDeque;
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
use super::refusals::{Refusals, Told};
use super::session::{Session, describe, unexpected};

/// Changes that may wait to be told. Whoever makes more waits for room.
const MAX_QUEUED: usize = 512;

/// A change that nobody waits for goes out after this, together with those that came since: one round of consensus costs
/// about the same for one as for many.
const GATHER: Duration = Duration::from_millis(5);

/// New inode numbers are asked for when fewer are left.
pub(super) const LOW_NUMBERS: u64 = 512;

/// A change of what is held waits this long for the end of a pause, or for the lease; then it is sent like any other.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// Pause after the leader did not answer.
pub(super) const PAUSE: Duration = Duration::from_millis(100);

/// For one attempt to tell; it is repeated until it is answered or the session is over.
pub(super) const TELL_DEADLINE: Duration = Duration::from_secs(30);

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
    /// All is about to be given up: nothing more may be left untold.
    yielding: bool,
    refusals: Refusals,
    /// Changes that did not come to pass as they were shown.
    untrue: u64,
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
    pub(super) attention: Notify,
    /// When the last question was sent that the leader answered, in milliseconds of the session's clock; 0: never.
    contact_ms: AtomicU64,
}

/// A creation on its way that may bring a hold.
pub(super) struct Sending<'a> {
    ahead: &'a Ahead,
    pub(super) epoch: HoldEpoch,
    generation: u64,
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
        self.ahead
            .inner
            .lock()
            .held
            .answered((self.epoch, self.generation), created);
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
    /// When this ticks it may be tried again; a pause, unlike a full queue, is not waited for to its end.
    Wait(watch::Receiver<u64>, bool),
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

    pub(super) fn renew(&self, sent_ms: u64) {
        self.contact_ms.fetch_max(sent_ms.max(1), Ordering::AcqRel);
        self.resumed.send_modify(|count| *count += 1);
    }

    fn attempt(&self, session: &Session, caller: Caller, op: &NamespaceOp, within: Option<Hold>) -> Attempt {
        // Before anything is looked at, so that no tick is missed.
        let resumed = self.resumed.subscribe();
        let leased = self.is_leased(session.now_ms());
        let mut inner = self.inner.lock();
        let epoch = inner.held.epoch();
        let other = |within: Hold| (Some(within.epoch), within.session) != (epoch, session.id());
        if epoch.is_none() || within.is_some_and(other) || !inner.held.is_about(op) {
            return Attempt::NotHere;
        }
        if inner.paused || !leased {
            return Attempt::Wait(resumed, true);
        }
        if inner.queue.len() >= MAX_QUEUED {
            return Attempt::Wait(self.told.subscribe(), false);
        }
        let setting = Setting {
            session: session.id(),
            now: session.file_clock.now(),
            table: session.routing.current().default_table,
        };
        match inner.held.change(setting, caller, op) {
            Outcome::NotHere => Attempt::NotHere,
            Outcome::Refused(code) => Attempt::Done(Err(code.into())),
            Outcome::NoNumbers => {
                self.attention.notify_one();
                Attempt::Wait(resumed, true)
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
                        foreseen: *foreseen,
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

    /// Makes a change here, if it is about what is held (and by that hold). `None`: it must be sent.
    pub(super) async fn change(
        &self,
        session: &Session,
        caller: Caller,
        op: &NamespaceOp,
        within: Option<Hold>,
        deadline: Instant,
    ) -> Option<Result<NamespaceChange>> {
        let patience = Instant::now() + PAUSE_MAX;
        loop {
            match self.attempt(session, caller, op, within) {
                Attempt::Done(outcome) => return Some(outcome),
                Attempt::NotHere => return None,
                Attempt::Wait(mut moved, is_pause) => {
                    let until = if is_pause { deadline.min(patience) } else { deadline };
                    if tokio::time::timeout_at(until, moved.changed()).await.is_err() {
                        if is_pause {
                            return None;
                        }
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

    /// The hold under which this file may be written without a word to the group: nobody can have taken it, and nobody has
    /// asked for it.
    pub(super) fn may_grow(&self, session: &Session, inode: InodeId) -> Option<Hold> {
        if !self.is_leased(session.now_ms()) {
            return None;
        }
        let inner = self.inner.lock();
        if inner.paused || inner.yielding {
            return None;
        }
        inner.held.attributes(inode)?;
        let epoch = inner.held.epoch()?;
        let session = session.id();
        Some(Hold { session, epoch })
    }

    /// From now on nothing is left untold.
    pub(super) fn start_yielding(&self) {
        self.inner.lock().yielding = true;
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
        let generation = inner.held.sending();
        Some(Sending {
            ahead: self,
            epoch,
            generation,
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

    /// Where a handle of this inode starts that is opened now; for [`Ahead::refused`].
    pub(super) fn open(&self, inode: InodeId) -> Told {
        self.inner.lock().refusals.open(inode)
    }

    /// Tells a handle what was refused of its inode's changes after they were shown.
    pub(super) fn refused(&self, inode: InodeId, handle: &mut Told) -> Result<()> {
        self.inner.lock().refusals.check(inode, handle)
    }

    /// What was refused and nobody was told of.
    pub(super) fn untold(&self) -> Option<Error> {
        self.inner.lock().refusals.untold()
    }

    /// The same since the last sync of the whole mount.
    pub(super) fn untold_since_sync(&self) -> Option<Error> {
        self.inner.lock().refusals.untold_since_sync()
    }

    /// How many changes did not come to pass as they were shown.
    pub(super) fn untrue(&self) -> u64 {
        self.inner.lock().untrue
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

    /// What is held belongs to an epoch that is over.
    pub(super) fn clear(&self) {
        self.inner.lock().held.clear();
    }

    /// A change that was sent removed this inode.
    pub(super) fn gone(&self, inode: InodeId) {
        self.inner.lock().held.gone(inode);
    }

    pub(super) fn begin(&self, session: &Session, hold: Hold, reservation: Reservation, sent_ms: u64) -> Result<()> {
        {
            let mut inner = self.inner.lock();
            if session.id() != hold.session {
                return Err(Error::new(ErrorCode::SessionExpired, "the session is over"));
            }
            inner.held.begin(reservation);
            inner.yielding = false;
        }
        self.renew(sent_ms);
        self.resume();
        Ok(())
    }

    /// The epoch, whether there is too much in it, and how many numbers are left.
    pub(super) fn state(&self) -> (Option<HoldEpoch>, bool, u64) {
        let held = &self.inner.lock().held;
        (held.epoch(), held.is_full(), held.numbers_left())
    }

    /// More numbers in the same epoch; `false` if it is over.
    pub(super) fn more(&self, epoch: HoldEpoch, reservation: Reservation) -> bool {
        let mut inner = self.inner.lock();
        let same = inner.held.epoch() == Some(epoch) && reservation.epoch == epoch;
        if same {
            inner.held.begin(reservation);
        }
        same
    }

    pub(super) fn known_end(&self) -> InodeId {
        self.inner.lock().held.known_end()
    }

    pub(super) fn pause(&self) {
        self.inner.lock().paused = true;
    }

    pub(super) fn resume(&self) {
        self.inner.lock().paused = false;
        self.resumed.send_modify(|count| *count += 1);
    }

    fn fail(&self, entry: &Entry, error: &Error) {
        let error = held::lost(error, &describe(&entry.op));
        tracing::error!("{error}");
        let mut inner = self.inner.lock();
        let inode = held::failure(&entry.op, entry.foreseen.shown);
        inner.refusals.record(entry.op.parents().chain(inode), &error);
        inner.untrue += 1;
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
                    let mut inner = self.inner.lock();
                    inner.held.clear();
                    inner.untrue += 1;
                    drop(inner);
                    self.attention.notify_one();
                }
                Err(error) => self.fail(entry, &error),
            }
        }
        self.told.send_modify(|told| *told += count);
    }
}

/// Sends what is queued, until told to stop. What is queued then is given up, each with a line: who ends a mount in order has
/// waited for it before.
pub(super) async fn tell(session: &Session, stop: &CancellationToken) {
    let ahead = &session.ahead;
    loop {
        if ahead.inner.lock().queue.is_empty() {
            tokio::select! {
                biased;
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
        let answers = tokio::select! {
            biased;
            answers = send(session, &entries) => answers,
            // The mount is closing and nobody waits for them any more.
            () = stop.cancelled() => {
                let over = Error::new(ErrorCode::Cancelled, "the mount is closing");
                entries.iter().map(|_| Err(over.clone())).collect()
            }
        };
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
        let deadline = Instant::now() + TELL_DEADLINE;
        match session.leader.ask(&request, deadline, Duration::ZERO, &what).await {
            Ok(MetaResponse::Changes(answers)) if answers.len() == entries.len() => return answers,
            Ok(_) => return all(unexpected("changes")),
            Err(error) if session.id() != id || is_final(error.code) => return all(error),
            // Nobody leads, or a server is in trouble. What was shown must come to pass.
            Err(error) => {
                tracing::debug!(%error, "changes are told again");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Whether no server would ever take the same message.
const fn is_final(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::SessionExpired | ErrorCode::BadMessage | ErrorCode::Unauthorized | ErrorCode::Incompatible
    )
}
