//! The thread that owns the log's files for writing.
//!
//! It takes everything that waits, writes it with one `pwrite`, syncs once, and then answers all. After the first I/O error
//! it answers everything with that error: a second fsync could return success over lost data. What has only run out is waited for.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use dfs_common::{ClusterId, DiskCall};

use super::record::{
    RecordHeader, RecordKind, SEGMENT_HEADER_BYTES, SEGMENT_VERSION, SegmentHeader, aad, encode_record, record_bytes,
};
use super::replay::Location;
use super::sync_directory;
use super::table::Shared;
use crate::consensus::Seal;
use crate::consensus::error::LogError;
use crate::consensus::patience::patiently;
use crate::consensus::small::SmallFile;
use crate::consensus::types::{Entry, LogId, Vote};
use crate::room::Room;

/// Told when what it waits for is durable, or why it is not.
pub(crate) type Done = Box<dyn FnOnce(Result<(), LogError>) + Send>;

pub(crate) enum Op {
    Append { entries: Vec<Entry>, done: Done },
    Truncate { since: LogId, done: Done },
    Purge { upto: LogId, done: Done },
    Vote { vote: Vote, done: Done },
    Stop,
}

/// How long the committed hint may wait for an append to travel with. It also marks the last batch as synced, so that
/// rot in it is no longer taken for a torn write.
const IDLE: Duration = Duration::from_millis(500);

/// A write and sync that takes this long is worth a line in the log of the server.
const SLOW: Duration = Duration::from_millis(200);

/// Operations taken into one batch; bounds the buffer together with the size of an entry.
const MAX_BATCH_OPS: usize = 256;

/// A segment being written.
#[derive(Debug)]
pub(crate) struct Current {
    pub(crate) file: Arc<File>,
    pub(crate) path: PathBuf,
    pub(crate) sequence: u64,
    pub(crate) length: u64,
    /// Where the next record goes.
    pub(crate) end: u64,
}

pub(crate) struct Writer {
    pub(crate) directory: PathBuf,
    pub(crate) cluster: ClusterId,
    pub(crate) sealer: Arc<dyn Seal>,
    pub(crate) segment_size_bytes: u64,
    pub(crate) shared: Arc<Shared>,
    pub(crate) room: Arc<Room>,
    pub(crate) current: Current,
    pub(crate) next_index: u64,
    /// Entries below this index were synced by an earlier write.
    pub(crate) synced_next: u64,
    pub(crate) vote: SmallFile<Vote>,
    pub(crate) purged: SmallFile<LogId>,
    pub(crate) committed_written: Option<LogId>,
    /// Asks for a spare segment to be made beside us; the answer is its path and length.
    pub(crate) spares: Option<Spares>,
}

pub(crate) struct Spares {
    pub(crate) want: SyncSender<()>,
    pub(crate) ready: Receiver<(PathBuf, u64)>,
}

/// Makes a zero-filled file, synced. Writing zeros (not only reserving) is what makes a later fdatasync cheap.
pub(crate) fn zero_file(room: &Room, path: &Path, length: u64) -> Result<File, LogError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true);
    let create = || room.patiently(DiskCall::Name, || options.open(path));
    let file = patiently(DiskCall::Name, create).map_err(LogError::io("creating", path))?;
    let zeros = vec![0_u8; 1 << 20];
    let mut at = 0;
    while at < length {
        let some = (length - at).min(zeros.len() as u64) as usize;
        let fill = || {
            room.patiently(DiskCall::Write, || {
                room.check(some as u64)?;
                file.write_all_at(&zeros[..some], at)
            })
        };
        patiently(DiskCall::Write, fill).map_err(LogError::io("zero-filling", path))?;
        at += some as u64;
    }
    file.sync_all().map_err(LogError::io("syncing", path))?;
    Ok(file)
}

pub(crate) fn segment_path(directory: &Path, sequence: u64) -> PathBuf {
    directory.join(format!("log-{sequence:016x}.seg"))
}

/// Gives `spare` (zero-filled) its header and its place among the segments, durably.
pub(crate) fn create_segment(
    room: &Room,
    directory: &Path,
    header: SegmentHeader,
    spare: &Path,
    length: u64,
) -> Result<Current, LogError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let file = patiently(DiskCall::Name, || options.open(spare)).map_err(LogError::io("opening", spare))?;
    patiently(DiskCall::Write, || file.write_all_at(&header.encode(), 0)).map_err(LogError::io("writing", spare))?;
    file.sync_data().map_err(LogError::io("syncing", spare))?;
    let path = segment_path(directory, header.sequence);
    let rename = || room.patiently(DiskCall::Name, || std::fs::rename(spare, &path));
    patiently(DiskCall::Name, rename).map_err(LogError::io("naming", &path))?;
    sync_directory(directory)?;
    Ok(Current {
        file: Arc::new(file),
        path,
        sequence: header.sequence,
        length,
        end: SEGMENT_HEADER_BYTES as u64,
    })
}

impl Writer {
    pub(crate) fn run(mut self, ops: &Receiver<Op>) {
        loop {
            let first = match ops.recv_timeout(IDLE) {
                Ok(op) => op,
                Err(RecvTimeoutError::Timeout) => {
                    // A failure is remembered by `guard` and told to the next who asks.
                    let _ = self.guard(Self::write_hint);
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => Op::Stop,
            };
            let mut batch = vec![first];
            while batch.len() < MAX_BATCH_OPS
                && let Ok(op) = ops.try_recv()
            {
                batch.push(op);
            }
            if self.batch(batch) {
                let _ = self.guard(Self::write_hint);
                return;
            }
        }
    }

    /// Runs `work` unless something failed before; remembers its failure for good.
    fn guard<R>(&mut self, work: impl FnOnce(&mut Self) -> Result<R, LogError>) -> Result<R, LogError> {
        if let Some(reason) = self.shared.poisoned() {
            return Err(LogError::Poisoned(reason));
        }
        work(self).inspect_err(|error| {
            tracing::error!(%error, "the metadata log stops");
            self.shared.poison(error.to_string());
        })
    }

    /// Does the operations in order, with as few syncs as their kinds allow. Returns whether to stop.
    fn batch(&mut self, batch: Vec<Op>) -> bool {
        let mut waiting: Vec<Done> = Vec::new();
        let mut buffer = Buffer::default();
        let mut stop = false;
        for op in batch {
            match op {
                Op::Append { entries, done } => {
                    if let Err(error) = self.guard(|this| this.gather(&entries, &mut buffer)) {
                        done(Err(error));
                    } else {
                        waiting.push(done);
                    }
                }
                Op::Truncate { since, done } => {
                    let result = self.guard(|this| {
                        this.room(record_bytes(0), &mut buffer)?;
                        let header = RecordHeader::new(RecordKind::Truncate, &since, this.current.end);
                        encode_record(header, &[], &mut buffer.bytes);
                        this.next_index = since.index;
                        this.synced_next = this.synced_next.min(since.index);
                        Ok(())
                    });
                    match result {
                        Ok(()) => waiting.push(done),
                        Err(error) => done(Err(error)),
                    }
                }
                Op::Purge { upto, done } => {
                    self.flush(&mut buffer, &mut waiting);
                    let result = self.guard(|this| this.purge(upto));
                    done(result);
                }
                Op::Vote { vote, done } => {
                    self.flush(&mut buffer, &mut waiting);
                    let result = self.guard(|this| this.vote.set(&vote));
                    done(result);
                }
                Op::Stop => stop = true,
            }
        }
        self.flush(&mut buffer, &mut waiting);
        stop
    }

    fn gather(&mut self, entries: &[Entry], buffer: &mut Buffer) -> Result<(), LogError> {
        for entry in entries {
            let plain = dfs_common::codec::encode(&entry.payload).map_err(|_| LogError::TooBig(usize::MAX))?;
            let body = self
                .sealer
                .seal(&aad(self.cluster, &entry.log_id), &plain)
                .map_err(|source| LogError::Seal {
                    path: self.current.path.clone(),
                    offset: self.current.end + buffer.bytes.len() as u64,
                    source,
                })?;
            if body.len() > super::record::MAX_BODY_BYTES {
                return Err(LogError::TooBig(body.len()));
            }
            if entry.log_id.index != self.next_index {
                return Err(LogError::NotHere {
                    index: entry.log_id.index,
                    first: 0,
                    next: self.next_index,
                });
            }
            let size = record_bytes(body.len());
            self.room(size, buffer)?;
            let location = Location {
                sequence: self.current.sequence,
                offset: self.current.end + buffer.bytes.len() as u64,
                record_bytes: size,
            };
            let header = RecordHeader::new(RecordKind::Entry, &entry.log_id, self.current.end);
            encode_record(header, &body, &mut buffer.bytes);
            buffer.written.push((entry.log_id, location));
            self.next_index += 1;
        }
        Ok(())
    }

    /// Makes sure that a record of `size` fits behind the buffer; starts a new segment if not.
    fn room(&mut self, size: usize, buffer: &mut Buffer) -> Result<(), LogError> {
        if self.current.end + (buffer.bytes.len() + size) as u64 <= self.current.length {
            return Ok(());
        }
        self.write(buffer)?;
        let end = self.current.end;
        self.roll(end, self.next_index, size)
    }

    fn roll(&mut self, previous_end: u64, next_index: u64, at_least: usize) -> Result<(), LogError> {
        let header = SegmentHeader {
            version: SEGMENT_VERSION,
            cluster: self.cluster,
            sequence: self.current.sequence + 1,
            next_index,
            previous_end,
        };
        let need = (SEGMENT_HEADER_BYTES + at_least) as u64;
        let spare = self.spares.as_ref().and_then(|spares| spares.ready.try_recv().ok());
        let (spare, length) = match spare {
            Some((path, length)) if length >= need => (path, length),
            _ => {
                let path = self.directory.join("direct.spare");
                let length = self.segment_size_bytes.max(need);
                zero_file(&self.room, &path, length)?;
                (path, length)
            }
        };
        self.current = create_segment(&self.room, &self.directory, header, &spare, length)?;
        self.shared.add_segment(&self.current, next_index);
        if let Some(spares) = &self.spares {
            // Full means that one is being made already.
            let _ = spares.want.try_send(());
        }
        Ok(())
    }

    /// Writes and syncs the buffer.
    fn write(&mut self, buffer: &mut Buffer) -> Result<(), LogError> {
        if buffer.bytes.is_empty() {
            return Ok(());
        }
        let current = &mut self.current;
        let begun = Instant::now();
        let room = &self.room;
        let write = || {
            room.patiently(DiskCall::Write, || {
                current.file.write_all_at(&buffer.bytes, current.end)
            })
        };
        patiently(DiskCall::Write, write).map_err(LogError::io("writing", &current.path))?;
        current
            .file
            .sync_data()
            .map_err(LogError::io("syncing", &current.path))?;
        let took = begun.elapsed();
        if took >= SLOW {
            tracing::warn!(
                took_ms = took.as_millis() as u64,
                "the disk was slow to take the log: changes waited for it"
            );
        }
        current.end += buffer.bytes.len() as u64;
        self.room.note_logged(buffer.bytes.len() as u64);
        self.synced_next = self.next_index;
        self.shared.written(&buffer.written);
        buffer.bytes.clear();
        buffer.written.clear();
        Ok(())
    }

    fn flush(&mut self, buffer: &mut Buffer, waiting: &mut Vec<Done>) {
        if waiting.is_empty() {
            return;
        }
        let result = self.guard(|this| {
            this.add_hint(buffer)?;
            this.write(buffer)
        });
        for done in waiting.drain(..) {
            done(match &result {
                Ok(()) => Ok(()),
                Err(error) => Err(LogError::Poisoned(error.to_string())),
            });
        }
    }

    fn add_hint(&mut self, buffer: &mut Buffer) -> Result<(), LogError> {
        let committed = self.shared.committed();
        // In a later write than the entry itself: ahead of it, a crash would leave a hint for an entry that is gone, and
        // together with it, the hint would not tell rot from a torn write.
        if committed > self.committed_written
            && let Some(id) = committed
            && id.index < self.synced_next
        {
            self.room(record_bytes(0), buffer)?;
            let header = RecordHeader::new(RecordKind::Committed, &id, self.current.end);
            encode_record(header, &[], &mut buffer.bytes);
            self.committed_written = committed;
        }
        Ok(())
    }

    fn write_hint(&mut self) -> Result<(), LogError> {
        let mut buffer = Buffer::default();
        self.add_hint(&mut buffer)?;
        self.write(&mut buffer)
    }

    /// Makes the mark durable first; files that a crash leaves behind are removed by the next purge or start.
    fn purge(&mut self, upto: LogId) -> Result<(), LogError> {
        if self.purged.get() < Some(&upto) {
            self.purged.set(&upto)?;
        }
        if upto.index >= self.next_index {
            self.next_index = upto.index + 1;
            self.synced_next = self.next_index;
            self.roll(self.current.end, self.next_index, 0)?;
        }
        for path in self.shared.purge(upto, self.current.sequence) {
            patiently(DiskCall::Name, || std::fs::remove_file(&path)).map_err(LogError::io("removing", &path))?;
        }
        Ok(())
    }
}

#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    written: Vec<(LogId, Location)>,
}
