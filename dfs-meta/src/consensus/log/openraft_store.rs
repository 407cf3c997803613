//! The log as openraft wants it.

use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::time::Duration;

use openraft::storage::{LogFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{ErrorSubject, ErrorVerb, OptionalSend, StorageIOError};

use tokio::sync::watch;

use super::Log;
use crate::consensus::error::LogError;
use crate::consensus::types::{Entry, LogId, StorageError, TypeConfig, Vote};

/// Bytes of entries in one append message; leaves room for one more record of the largest size under the header limit.
const MAX_APPEND_BYTES: usize = 384 << 10;

/// How long a purge waits for the snapshot that covers it; longer than any install is expected to take.
const COVER_DEADLINE: Duration = Duration::from_mins(1);

/// A log and the guard of its purge.
#[derive(Clone)]
pub(in crate::consensus) struct LogStore {
    pub(in crate::consensus) log: Log,
    /// Entries below this index stand in a snapshot that was read back and verified.
    pub(in crate::consensus) covered: watch::Receiver<u64>,
}

fn failed(subject: ErrorSubject<u64>, verb: ErrorVerb, error: &LogError) -> StorageError {
    StorageIOError::new(subject, verb, openraft::AnyError::error(error)).into()
}

async fn blocking<R: Send + 'static>(
    work: impl FnOnce() -> Result<R, LogError> + Send + 'static,
) -> Result<R, LogError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(LogError::Poisoned(format!("a log task ended early: {error}"))))
}

impl LogStore {
    async fn read(&self, from: u64, to: u64) -> Result<Vec<Entry>, StorageError> {
        if let Some(entries) = self.log.read_cached(from, to) {
            return Ok(entries);
        }
        let log = self.log.clone();
        blocking(move || log.read(from, to))
            .await
            .map_err(|error| failed(ErrorSubject::Logs, ErrorVerb::Read, &error))
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        let from = match range.start_bound() {
            Bound::Included(&at) => at,
            Bound::Excluded(&at) => at + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(&at) => at + 1,
            Bound::Excluded(&at) => at,
            Bound::Unbounded => u64::MAX,
        };
        let end = self.log.state().1.map_or(0, |id| id.index + 1);
        self.read(from, to.min(end)).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        let count = self.log.count_within(start, end, MAX_APPEND_BYTES);
        self.read(start, start + count).await
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let (last_purged_log_id, last_log_id) = self.log.state();
        Ok(LogState {
            last_purged_log_id,
            last_log_id,
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let (log, vote) = (self.log.clone(), *vote);
        blocking(move || log.save_vote(vote))
            .await
            .map_err(|error| failed(ErrorSubject::Vote, ErrorVerb::Write, &error))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        // As one that was only cast: openraft would take a leader's own vote for a leadership that goes on, and give out places
        // in the log again that entries may hold which others have and this disk does not. A server that starts has to be
        // elected, in a new term.
        Ok(self.log.vote().map(|vote| Vote {
            committed: false,
            ..vote
        }))
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.log.set_committed(committed);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(self.log.committed())
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        // openraft does nothing else until the callback comes: it would send entries to the others only after they are on
        // this disk. So it is told at once, and those who speak for this server wait for the disk themselves: see
        // `Log::durable` and `Log::last_durable`.
        self.log
            .append(entries.into_iter().collect(), Box::new(drop))
            .map_err(|error| failed(ErrorSubject::Logs, ErrorVerb::Write, &error))?;
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        let log = self.log.clone();
        blocking(move || log.truncate(log_id))
            .await
            .map_err(|error| failed(ErrorSubject::Log(log_id), ErrorVerb::Delete, &error))
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        // openraft asks for the purge while the state machine still installs the snapshot that allows it.
        let covered = self.covered.wait_for(|&next| next > log_id.index);
        if !matches!(tokio::time::timeout(COVER_DEADLINE, covered).await, Ok(Ok(_))) {
            tracing::error!(%log_id, "refusing to purge entries that no verified snapshot holds");
            let source = openraft::AnyError::error("no verified snapshot holds these entries");
            return Err(StorageIOError::new(ErrorSubject::Log(log_id), ErrorVerb::Delete, source).into());
        }
        let log = self.log.clone();
        blocking(move || log.purge(log_id))
            .await
            .map_err(|error| failed(ErrorSubject::Log(log_id), ErrorVerb::Delete, &error))
    }
}
