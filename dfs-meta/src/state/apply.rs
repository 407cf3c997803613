//! Applying a batch of commands: the one writer of all rows.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use dfs_common::planted::{self, Bug};
use dfs_common::wire::meta::{ChangeRequest, MAX_CHANGES_IN_FLIGHT, Reservation, Shown};
use dfs_common::wire::namespace::NamespaceChange;
use dfs_common::{
    Error, ErrorCode, Hold, HoldEpoch, InodeId, RetryClass, RoutingTable, SequenceNumber, SessionId, Timestamp,
};

use super::rows::SessionRow;
use super::{State, session_expired};
use crate::chains;
use crate::command::{Command, CommandKind, Outcome};
use crate::namespace::{self, Context, Counters, HoldRow, NameHash, Obstacle, OpError};
use crate::store::{self, Batch, Overlay, Rows, Store, StoreError, keys};

/// The answer to one change, as it is remembered.
type Answer = Result<NamespaceChange, Error>;

/// How far a mount's clock may be from the leader's when it says when a change was.
const CLOCK_TRUST: Duration = Duration::from_mins(1);

/// What became of a change.
enum Done {
    Answered(Answer),
    Obstructed(Obstacle),
}

impl<S: Store> State<S> {
    /// Applies commands in order and commits one batch with `position`. The outcomes are those of the commands, in order;
    /// a command that can not be done has an outcome that says so.
    ///
    /// # Errors
    /// Trouble with the store only. Nothing of the batch is visible then.
    pub fn apply(&self, commands: &[Command], position: &[u8]) -> Result<Vec<Outcome>, StoreError> {
        let _applying = self.applying.lock();
        let (routing, before) = {
            let cache = self.cache.read();
            (Arc::clone(&cache.routing), cache.counters)
        };
        let mut applier = Applier {
            rows: Overlay::new(&self.store),
            hasher: self.hasher.as_ref(),
            counters: before,
            routing: Cow::Borrowed(routing.as_ref()),
        };
        let outcomes = commands
            .iter()
            .map(|command| applier.apply(command))
            .collect::<Result<Vec<_>, _>>()?;

        let counters = applier.counters;
        let changed_routing = match applier.routing {
            Cow::Borrowed(_) => None,
            Cow::Owned(table) => Some(Arc::new(table)),
        };
        let mut batch = applier.rows.into_batch();
        if counters != before {
            batch.put(keys::COUNTERS.to_vec(), store::encode(&counters)?);
        }
        if let Some(table) = &changed_routing {
            batch.put(keys::ROUTING.to_vec(), store::encode(table.as_ref())?);
        }
        batch.put(keys::POSITION.to_vec(), position.to_vec());
        self.commit(batch, counters, changed_routing)?;
        Ok(outcomes)
    }

    fn commit(&self, batch: Batch, counters: Counters, routing: Option<Arc<RoutingTable>>) -> Result<(), StoreError> {
        let mut cache = self.cache.write();
        if let Some(shadow) = &mut cache.shadow {
            shadow.before(&self.store, &batch)?;
        }
        self.store.commit(batch)?;
        cache.counters = counters;
        if let Some(routing) = routing {
            cache.routing = routing;
        }
        Ok(())
    }
}

/// A batch in the making.
struct Applier<'a, S: Store> {
    rows: Overlay<'a, S>,
    hasher: &'a dyn NameHash,
    counters: Counters,
    routing: Cow<'a, RoutingTable>,
}

impl<S: Store> Applier<'_, S> {
    fn apply(&mut self, command: &Command) -> Result<Outcome, StoreError> {
        let outcome = match &command.kind {
            CommandKind::OpenSession { label } => Outcome::SessionOpened(self.open_session(label, command.time)?),
            CommandKind::EndSessions { sessions } => {
                sessions.iter().try_for_each(|&session| self.end_session(session))?;
                Outcome::Done
            }
            CommandKind::Change(request) => match self.change(request, command.time)? {
                Done::Answered(answer) => Outcome::Change(answer),
                Done::Obstructed(obstacle) => Outcome::Obstructed(obstacle),
            },
            CommandKind::Changes(requests) => self.changes(requests, command.time)?,
            CommandKind::Reserve { session, known, count } => {
                Outcome::Reserved(self.reserve(*session, *known, *count)?)
            }
            CommandKind::Release(hold) => Outcome::Released(self.release(*hold)?),
            CommandKind::FoundLength(found) => {
                namespace::found_length(&mut self.rows, found, command.time)?;
                Outcome::Done
            }
            CommandKind::Purged { inodes } => {
                inodes.iter().try_for_each(|&inode| self.purged(inode, command.time))?;
                Outcome::Done
            }
            CommandKind::Diverged(divergence) => Outcome::Verdict(namespace::diverged(
                &mut self.rows,
                &mut self.counters,
                divergence,
                command.time,
            )?),
            CommandKind::Reconciled {
                chunk,
                node,
                conflict,
                end_bytes,
            } => {
                let end = (*chunk, *end_bytes);
                let done = namespace::reconciled(&mut self.rows, end, *conflict, *node, command.time);
                self.administered(done)?
            }
            CommandKind::SettleConflict {
                inode,
                conflict,
                how,
                by,
            } => {
                let which = (*inode, *conflict);
                let done = namespace::settle(&mut self.rows, &mut self.counters, which, *how, by, command.time);
                self.administered(done)?
            }
            CommandKind::Administer { node, action } => {
                let mut table = self.routing.clone().into_owned();
                let done = chains::administer(&mut table, *node, *action);
                if done == Ok(true) {
                    self.routing = Cow::Owned(table);
                }
                Outcome::Administered(done.map(drop))
            }
            CommandKind::PauseResyncs(paused) => {
                if self.routing.resyncs_paused != *paused {
                    let table = self.routing.to_mut();
                    table.resyncs_paused = *paused;
                    table.version = table.version.next();
                }
                Outcome::Administered(Ok(()))
            }
            CommandKind::MoveMeta { server, place } => {
                let mut table = self.routing.clone().into_owned();
                let done = chains::move_meta(&mut table, *server, *place);
                if done == Ok(true) {
                    self.routing = Cow::Owned(table);
                }
                Outcome::Administered(done.map(drop))
            }
            CommandKind::Cluster(events) => {
                let mut table = self.routing.clone().into_owned();
                if chains::apply(&mut table, events) {
                    self.routing = Cow::Owned(table);
                }
                Outcome::Done
            }
        };
        self.rows.keep();
        Ok(outcome)
    }

    fn administered(&mut self, done: Result<(), OpError>) -> Result<Outcome, StoreError> {
        match done {
            Ok(()) => Ok(Outcome::Administered(Ok(()))),
            Err(OpError::Store(error)) => Err(error),
            Err(OpError::Obstructed(obstacle)) => {
                self.rows.discard();
                Ok(Outcome::Obstructed(obstacle))
            }
            Err(OpError::Answer(error)) => {
                self.rows.discard();
                Ok(Outcome::Administered(Err(error)))
            }
        }
    }

    fn open_session(&mut self, label: &str, now: Timestamp) -> Result<SessionId, StoreError> {
        let session = self.counters.next_session;
        let row = SessionRow {
            label: label.to_owned(),
            opened_at: now,
            answered_below: SequenceNumber(0),
        };
        self.rows.put(keys::session(session), store::encode(&row)?);
        self.counters.next_session = session.next();
        self.counters.sessions += 1;
        Ok(session)
    }

    fn end_session(&mut self, session: SessionId) -> Result<(), StoreError> {
        if self.rows.get(&keys::session(session))?.is_none() {
            return Ok(());
        }
        self.rows.delete(keys::session(session));
        self.rows.delete(keys::hold(session));
        let (from, to) = keys::answers(session);
        // Never more than the bound, which `change` keeps.
        for (key, _) in self.rows.scan(&from, &to, usize::MAX)? {
            self.rows.delete(key);
        }
        self.counters.sessions -= 1;
        Ok(())
    }

    fn purged(&mut self, inode: InodeId, now: Timestamp) -> Result<(), StoreError> {
        if self.rows.get(&keys::orphan(inode))?.is_none() {
            return Ok(());
        }
        namespace::forget_conflicts(&mut self.rows, &mut self.counters, inode, now)?;
        namespace::forget_orphan(&mut self.rows, inode)?;
        self.counters.orphans -= 1;
        Ok(())
    }

    /// Those that were answered before an obstacle stopped the rest are answered the same when the command comes again.
    fn changes(&mut self, requests: &[ChangeRequest], time: Timestamp) -> Result<Outcome, StoreError> {
        let mut answers = Vec::with_capacity(requests.len());
        for request in requests {
            match self.change(request, time)? {
                Done::Answered(answer) => answers.push(answer),
                Done::Obstructed(obstacle) => return Ok(Outcome::Obstructed(obstacle)),
            }
            self.rows.keep();
        }
        Ok(Outcome::Changes(answers))
    }

    fn reserve(
        &mut self,
        session: SessionId,
        known: InodeId,
        count: u64,
    ) -> Result<Result<Reservation, Error>, StoreError> {
        if self.rows.get(&keys::session(session))?.is_none() {
            return Ok(Err(session_expired(session)));
        }
        let key = keys::hold(session);
        let row = store::get::<HoldRow, _>(&self.rows, &key)?;
        if let Some(row) = row.filter(|row| row.end != known) {
            let HoldRow { epoch, first, end } = row;
            return Ok(Ok(Reservation { first, end, epoch }));
        }
        let epoch = row.map_or(HoldEpoch(1), |row| row.epoch);
        let first = self.counters.next_inode;
        let end = InodeId(first.0.saturating_add(count));
        self.counters.next_inode = end;
        self.rows.put(key, store::encode(&HoldRow { epoch, first, end })?);
        Ok(Ok(Reservation { first, end, epoch }))
    }

    /// Says which epoch the session is in now; 0 for one that holds nothing.
    fn release(&mut self, hold: Hold) -> Result<HoldEpoch, StoreError> {
        let key = keys::hold(hold.session);
        let Some(mut row) = store::get::<HoldRow, _>(&self.rows, &key)? else {
            return Ok(HoldEpoch(0));
        };
        if row.epoch == hold.epoch {
            row.epoch = row.epoch.next();
            self.rows.put(key, store::encode(&row)?);
        }
        Ok(row.epoch)
    }

    /// A change of what the session held when it showed it, and holds no more. (A new name does no harm: it is there or not.)
    fn is_fenced(&self, request: &ChangeRequest) -> Result<bool, StoreError> {
        match (request.shown, request.hold) {
            (Some(Shown { inode: None, .. }), Some(epoch)) => {
                let session = request.session;
                Ok(!namespace::is_valid(&self.rows, Hold { session, epoch })?)
            }
            _ => Ok(false),
        }
    }

    /// A change, exactly once: the answer is written with the rows, and a retry gets it back.
    fn change(&mut self, request: &ChangeRequest, time: Timestamp) -> Result<Done, StoreError> {
        let session_key = keys::session(request.session);
        let Some(mut session) = store::get::<SessionRow, _>(&self.rows, &session_key)? else {
            return Ok(Done::Answered(Err(session_expired(request.session))));
        };
        let answer_key = keys::answer(request.session, request.sequence);
        if let Some(answer) = store::get::<Answer, _>(&self.rows, &answer_key)? {
            return Ok(Done::Answered(answer));
        }
        if let Err(refused) = check_sequence(&session, request) {
            return Ok(Done::Answered(Err(refused)));
        }
        if request.answered_below > session.answered_below {
            // Remembered answers lie within the bound above `answered_below`, so there is nothing to search for.
            let bound = SequenceNumber(session.answered_below.0.saturating_add(MAX_CHANGES_IN_FLIGHT));
            for sequence in session.answered_below.0..request.answered_below.min(bound).0 {
                self.rows
                    .delete(keys::answer(request.session, SequenceNumber(sequence)));
            }
            session.answered_below = request.answered_below;
            self.rows.put(session_key, store::encode(&session)?);
        }
        // What the session said stays, whatever becomes of the operation.
        self.rows.keep();

        let before = self.counters;
        if self.is_fenced(request)? {
            let answer = Err(Error::new(
                ErrorCode::HoldLost,
                "what this mount held was taken before it told of this change; others may have changed it since",
            ));
            self.rows.put(answer_key, store::encode(&answer)?);
            return Ok(Done::Answered(answer));
        }
        let context = Context {
            time: request.shown.map_or(time, |shown| shown.time.near(time, CLOCK_TRUST)),
            hold: request.hold,
            inode: request.shown.and_then(|shown| shown.inode),
            caller: request.caller,
            session: request.session,
            routing: &self.routing,
        };
        let done = namespace::change(&mut self.rows, &mut self.counters, self.hasher, context, &request.op);
        let answer = match done {
            Ok(change) => Ok(change),
            Err(OpError::Store(error)) => return Err(error),
            Err(OpError::Obstructed(obstacle)) => {
                self.rows.discard();
                self.counters = before;
                return Ok(Done::Obstructed(obstacle));
            }
            Err(OpError::Answer(error)) => {
                self.rows.discard();
                self.counters = before;
                Err(error)
            }
        };
        // An answer that asks for another try is none.
        let settled = answer
            .as_ref()
            .map_or_else(|error| error.retry_class() == RetryClass::Fatal, |_| true);
        if settled && !planted::is(Bug::NameDedupeForgets) {
            self.rows.put(answer_key, store::encode(&answer)?);
        }
        Ok(Done::Answered(answer))
    }
}

/// Whether a sequence number that has no remembered answer may be applied.
fn check_sequence(session: &SessionRow, request: &ChangeRequest) -> Result<(), Error> {
    let (sequence, below) = (request.sequence, request.answered_below);
    if below > sequence {
        return Err(Error::new(
            ErrorCode::BadMessage,
            format!("change {sequence} says that all below {below} are answered, itself among them"),
        ));
    }
    // A late copy of what was done and forgotten: doing it again would be doing it twice.
    if sequence < session.answered_below {
        return Err(Error::new(
            ErrorCode::BadMessage,
            format!(
                "change {sequence} was answered before; the session said so of all below {}",
                session.answered_below
            ),
        ));
    }
    if sequence.0 - below.max(session.answered_below).0 >= MAX_CHANGES_IN_FLIGHT {
        return Err(Error::new(
            ErrorCode::Overloaded,
            format!("change {sequence} is too far ahead of {below}: at most {MAX_CHANGES_IN_FLIGHT} may be unanswered"),
        ));
    }
    Ok(())
}
