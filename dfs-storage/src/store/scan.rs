//! Reading a segment back: its records in order, and where it is damaged. Pure: bytes in, findings out.

use super::format::{
    DATA_START, Kind, Lsn, RECORD_ALIGN_BYTES, RECORD_HEADER_BYTES, Reader, RecordHeader, Sequence, first_rotten,
};
use super::index::Entry;

#[derive(Clone, Debug)]
pub(super) struct ScannedRecord {
    pub(super) offset: u32,
    pub(super) header: RecordHeader,
    /// Seals and ciphertexts match their checksums (and a `State`'s body decodes).
    pub(super) sound: bool,
    pub(super) state: Option<Entry>,
}

/// What a segment holds. `damage` counts as standing before the record of the index that it names.
#[derive(Clone, Debug, Default)]
pub(super) struct Scan {
    pub(super) records: Vec<ScannedRecord>,
    /// (index of the record after it, offset, length).
    pub(super) damage: Vec<(usize, u32, u32)>,
    /// Where the last record ends.
    pub(super) end: u32,
}

impl Scan {
    /// Highest LSN that any of these records says was durable.
    pub(super) fn durable(&self) -> Lsn {
        self.records
            .iter()
            .map(|record| record.header.durable)
            .max()
            .unwrap_or_default()
    }
}

/// Scans a segment's bytes up to `limit`. `after`: last LSN of the segment before.
///
/// Where no record starts, every later place a record could start at is tried: what a crash or rot made unreadable
/// must not hide what comes after it.
pub(super) fn scan(bytes: &[u8], sequence: Sequence, first: Lsn) -> Scan {
    let mut out = Scan {
        end: DATA_START,
        ..Scan::default()
    };
    let mut expected = first;
    let mut at = DATA_START as usize;
    let mut hole: Option<usize> = None;
    while at + RECORD_HEADER_BYTES <= bytes.len() {
        let found = RecordHeader::decode(&bytes[at..], sequence, at as u32)
            // Each record takes a place, so a jump in LSN larger than the hole's places is no record of ours.
            .filter(|(header, _)| match hole {
                None => header.lsn == expected,
                Some(from) => {
                    let places = ((at - from) / RECORD_ALIGN_BYTES) as u64;
                    header.lsn > expected && header.lsn.0 <= expected.0 + places || header.lsn == expected && places > 0
                }
            });
        let Some((header, meta)) = found else {
            hole.get_or_insert(at);
            at += RECORD_ALIGN_BYTES;
            continue;
        };
        if let Some(from) = hole.take() {
            out.damage.push((out.records.len(), from as u32, (at - from) as u32));
        }
        let payload_at = at + RECORD_HEADER_BYTES + meta.len();
        let payload = &bytes[payload_at..payload_at + header.payload_length_bytes as usize];
        let state = (header.kind == Kind::State)
            .then(|| Entry::decode(&mut Reader(meta)))
            .flatten();
        let sound = match header.kind {
            Kind::Write | Kind::Data => {
                first_rotten(header.chunk, header.version, header.first, header.blocks, payload, meta).is_none()
            }
            Kind::State => state.is_some(),
            Kind::Truncate | Kind::Remove | Kind::Drop => true,
        };
        out.records.push(ScannedRecord {
            offset: at as u32,
            header,
            sound,
            state,
        });
        expected = Lsn(header.lsn.0 + 1);
        at += header.length_bytes();
        out.end = at as u32;
    }
    out
}
