//! Recovery of the log from the bytes of its segments, in order. Pure.
//!
//! Every record is checked and takes effect as when it was written. Bad bytes are judged by the rule in
//! [`super::record`]: the torn end of the last batch is dropped (nobody was told that it is durable), anything else is rot.

use std::collections::VecDeque;

use super::record::{ALIGNMENT_BYTES, Found, RecordKind, SEGMENT_HEADER_BYTES, SegmentHeader, decode_record};
use crate::consensus::types::LogId;

/// Where an entry stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) sequence: u64,
    pub(crate) offset: u64,
    pub(crate) record_bytes: usize,
}

/// What recovery knows so far.
#[derive(Debug)]
pub(crate) struct Replay {
    /// Entries up to here are purged: they may be missing.
    purged_next: u64,
    pub(crate) entries: VecDeque<(LogId, Location)>,
    pub(crate) next_index: Option<u64>,
    pub(crate) committed: Option<LogId>,
    previous: Option<(u64, u64)>,
}

/// Bytes that are not what was written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Damage {
    pub(crate) offset: u64,
    pub(crate) detail: String,
}

fn damage(offset: usize, detail: impl Into<String>) -> Damage {
    Damage {
        offset: offset as u64,
        detail: detail.into(),
    }
}

impl Replay {
    pub(crate) fn new(purged_next: u64) -> Self {
        Self {
            purged_next,
            entries: VecDeque::new(),
            next_index: None,
            committed: None,
            previous: None,
        }
    }

    /// Takes the next segment. Returns where its records end; behind that, a last segment may hold torn bytes.
    pub(crate) fn segment(&mut self, header: &SegmentHeader, bytes: &[u8], is_last: bool) -> Result<u64, Damage> {
        self.join(header)?;
        let mut at = SEGMENT_HEADER_BYTES;
        let end = loop {
            match decode_record(bytes.get(at..).unwrap_or(&[])) {
                Found::Record(record, _) => {
                    let location = Location {
                        sequence: header.sequence,
                        offset: at as u64,
                        record_bytes: record.record_bytes(),
                    };
                    self.take(record.kind, record.log_id(), location)
                        .map_err(|detail| damage(at, detail))?;
                    at += record.record_bytes();
                }
                Found::Bad(what) if !is_last => return Err(damage(at, what)),
                Found::Nothing | Found::Bad(_) => break at,
            }
        };
        if is_last && let Some(later) = later_record_that_relies_on(bytes, end) {
            return Err(damage(
                end,
                format!("no sound record, but the later one at {later} was written when this was on disk"),
            ));
        }
        self.previous = Some((header.sequence, end as u64));
        Ok(end as u64)
    }

    fn join(&mut self, header: &SegmentHeader) -> Result<(), Damage> {
        if let Some((sequence, end)) = self.previous {
            if header.sequence != sequence + 1 {
                return Err(damage(
                    32,
                    format!("segment {} does not follow {sequence}", header.sequence),
                ));
            }
            if header.previous_end != 0 && header.previous_end != end {
                return Err(damage(
                    48,
                    format!(
                        "the segment before it should end at {}, but ends at {end}",
                        header.previous_end
                    ),
                ));
            }
        }
        if self.next_index == Some(header.next_index) {
            return Ok(());
        }
        // A first segment, or the restart behind an installed snapshot: what is missing must be purged.
        if header.next_index > self.purged_next {
            return Err(damage(
                40,
                format!("entries {} up to {} are missing", self.purged_next, header.next_index),
            ));
        }
        self.entries.clear();
        self.next_index = Some(header.next_index);
        Ok(())
    }

    fn take(&mut self, kind: RecordKind, id: LogId, location: Location) -> Result<(), String> {
        let next = self.next_index.unwrap_or(0);
        match kind {
            RecordKind::Entry => {
                if id.index != next {
                    return Err(format!("entry {} where {next} belongs", id.index));
                }
                self.entries.push_back((id, location));
                self.next_index = Some(next + 1);
            }
            RecordKind::Truncate => {
                if id.index > next {
                    return Err(format!("truncation to {} of a log that ends at {next}", id.index));
                }
                while self.entries.back().is_some_and(|(last, _)| last.index >= id.index) {
                    self.entries.pop_back();
                }
                self.next_index = Some(id.index);
            }
            RecordKind::Committed => self.committed = self.committed.max(Some(id)),
        }
        Ok(())
    }

    /// Forgets what is purged.
    pub(crate) fn finish(&mut self) {
        while self
            .entries
            .front()
            .is_some_and(|(first, _)| first.index < self.purged_next)
        {
            self.entries.pop_front();
        }
    }
}

fn later_record_that_relies_on(bytes: &[u8], end: usize) -> Option<usize> {
    (end..bytes.len())
        .step_by(ALIGNMENT_BYTES)
        .find(|&at| matches!(decode_record(&bytes[at..]), Found::Record(record, _) if record.synced > end as u64))
}
