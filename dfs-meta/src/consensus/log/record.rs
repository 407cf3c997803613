//! Bytes of the log: a segment's header and its records. Pure; the only place that knows offsets of fields.
//!
//! ```text
//! segment  0 magic "DFSMLOG1" | 8 version u32 | 12 zero u32 | 16 cluster [16] | 32 sequence u64 | 40 next index u64
//!         48 end of the previous segment's records u64 | 56 zero u32 | 60 crc32c u32 of bytes 0..60
//! record   0 magic "DFLR" | 4 crc32c u32 of bytes 8.. | 8 kind u32 | 12 body length u32 | 16 index u64 | 24 term u64
//!         32 node u64 | 40 synced u64 | 48 body | zeros up to a multiple of 8
//! ```
//! Little-endian. `synced` says how much of this segment was on disk for sure when the record was written: a bad record
//! below some later record's `synced` was once good, so it is rot; otherwise it is the torn end of the last batch. The
//! previous segment's end stands in the next header, so that a segment cut short is noticed too.

use dfs_common::ClusterId;

use crate::consensus::types::LogId;

pub(crate) const SEGMENT_MAGIC: [u8; 8] = *b"DFSMLOG1";
pub(crate) const SEGMENT_VERSION: u32 = 1;
pub(crate) const SEGMENT_HEADER_BYTES: usize = 64;
pub(crate) const RECORD_MAGIC: [u8; 4] = *b"DFLR";
pub(crate) const RECORD_HEADER_BYTES: usize = 48;
/// Records start at multiples of this.
pub(crate) const ALIGNMENT_BYTES: usize = 8;
/// Largest body: a sealed entry with the largest batch of commands, with room for its framing.
pub(crate) const MAX_BODY_BYTES: usize = 1 << 20;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut raw = [0; 4];
    if let Some(found) = bytes.get(at..at + 4) {
        raw.copy_from_slice(found);
    }
    u32::from_le_bytes(raw)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut raw = [0; 8];
    if let Some(found) = bytes.get(at..at + 8) {
        raw.copy_from_slice(found);
    }
    u64::from_le_bytes(raw)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) version: u32,
    pub(crate) cluster: ClusterId,
    pub(crate) sequence: u64,
    /// Index of the first entry that may stand in it.
    pub(crate) next_index: u64,
    /// Offset behind the last record of the segment before it; 0 if that is of no interest (first, or all before is purged).
    pub(crate) previous_end: u64,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut out = [0; SEGMENT_HEADER_BYTES];
        out[..8].copy_from_slice(&SEGMENT_MAGIC);
        out[8..12].copy_from_slice(&self.version.to_le_bytes());
        out[16..32].copy_from_slice(&self.cluster.0);
        out[32..40].copy_from_slice(&self.sequence.to_le_bytes());
        out[40..48].copy_from_slice(&self.next_index.to_le_bytes());
        out[48..56].copy_from_slice(&self.previous_end.to_le_bytes());
        let crc = crc32c::crc32c(&out[..60]);
        out[60..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// `Err` says what is wrong. The version is not judged.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        if bytes.len() < SEGMENT_HEADER_BYTES {
            return Err("the file is shorter than a segment header");
        }
        if bytes[..8] != SEGMENT_MAGIC {
            return Err("no segment magic");
        }
        if crc32c::crc32c(&bytes[..60]) != u32_at(bytes, 60) {
            return Err("the segment header's checksum does not match");
        }
        let mut cluster = [0; 16];
        cluster.copy_from_slice(&bytes[16..32]);
        Ok(Self {
            version: u32_at(bytes, 8),
            cluster: ClusterId(cluster),
            sequence: u64_at(bytes, 32),
            next_index: u64_at(bytes, 40),
            previous_end: u64_at(bytes, 48),
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum RecordKind {
    /// An entry; the body is sealed.
    Entry = 1,
    /// Entries from `index` on are gone (they conflicted with the leader's).
    Truncate = 2,
    /// Everything up to this log id is committed. A hint: it may be older than the truth.
    Committed = 3,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) kind: RecordKind,
    pub(crate) body_bytes: usize,
    pub(crate) index: u64,
    pub(crate) term: u64,
    pub(crate) node: u64,
    pub(crate) synced: u64,
}

impl RecordHeader {
    pub(crate) fn new(kind: RecordKind, id: &LogId, synced: u64) -> Self {
        Self {
            kind,
            body_bytes: 0,
            index: id.index,
            term: id.leader_id.term,
            node: id.leader_id.node_id,
            synced,
        }
    }

    pub(crate) fn log_id(&self) -> LogId {
        LogId::new(openraft::CommittedLeaderId::new(self.term, self.node), self.index)
    }

    /// Bytes of the whole record, padding included.
    pub(crate) fn record_bytes(&self) -> usize {
        record_bytes(self.body_bytes)
    }
}

pub(crate) const fn record_bytes(body_bytes: usize) -> usize {
    (RECORD_HEADER_BYTES + body_bytes).next_multiple_of(ALIGNMENT_BYTES)
}

/// What authenticated encryption binds a record's body to: moved or renumbered, it does not open.
pub(crate) fn aad(cluster: ClusterId, id: &LogId) -> Vec<u8> {
    let mut out = Vec::with_capacity(48);
    out.extend_from_slice(b"dfs-log1");
    out.extend_from_slice(&cluster.0);
    out.extend_from_slice(&id.leader_id.term.to_le_bytes());
    out.extend_from_slice(&id.leader_id.node_id.to_le_bytes());
    out.extend_from_slice(&id.index.to_le_bytes());
    out
}

/// Appends a record to `out`, which must be at a multiple of [`ALIGNMENT_BYTES`] of its segment.
pub(crate) fn encode_record(header: RecordHeader, body: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&RECORD_MAGIC);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&(header.kind as u32).to_le_bytes());
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    for field in [header.index, header.term, header.node, header.synced] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    out.extend_from_slice(body);
    let crc = crc32c::crc32c(&out[start + 8..]);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
    out.resize(start + record_bytes(body.len()), 0);
}

/// What stands at the start of `bytes` (which reach to the end of the segment).
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found<'a> {
    Record(RecordHeader, &'a [u8]),
    /// Only zeros where a record would begin.
    Nothing,
    Bad(&'static str),
}

pub(crate) fn decode_record(bytes: &[u8]) -> Found<'_> {
    let head = bytes.get(..RECORD_HEADER_BYTES).unwrap_or(bytes);
    if head.iter().all(|&byte| byte == 0) {
        return Found::Nothing;
    }
    if head.len() < RECORD_HEADER_BYTES {
        return Found::Bad("a record header is cut off");
    }
    if head[..4] != RECORD_MAGIC {
        return Found::Bad("no record magic");
    }
    let body_bytes = u32_at(head, 12) as usize;
    if body_bytes > MAX_BODY_BYTES {
        return Found::Bad("a record's length is over the limit");
    }
    let end = RECORD_HEADER_BYTES + body_bytes;
    let (Some(checked), Some(body)) = (bytes.get(8..end), bytes.get(RECORD_HEADER_BYTES..end)) else {
        return Found::Bad("a record is cut off");
    };
    if crc32c::crc32c(checked) != u32_at(head, 4) {
        return Found::Bad("a record's checksum does not match");
    }
    let kind = match u32_at(head, 8) {
        1 => RecordKind::Entry,
        2 => RecordKind::Truncate,
        3 => RecordKind::Committed,
        _ => return Found::Bad("a record of unknown kind"),
    };
    let header = RecordHeader {
        kind,
        body_bytes,
        index: u64_at(head, 16),
        term: u64_at(head, 24),
        node: u64_at(head, 32),
        synced: u64_at(head, 40),
    };
    Found::Record(header, body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        use std::fmt::Write;
        bytes.iter().fold(String::new(), |mut out, byte| {
            let _ = write!(out, "{byte:02x}");
            out
        })
    }

    #[test]
    fn golden_segment_header() {
        let header = SegmentHeader {
            version: 1,
            cluster: ClusterId([0xc1; 16]),
            sequence: 7,
            next_index: 1000,
            previous_end: 0x1234,
        };
        assert_eq!(
            hex(&header.encode()),
            "4446534d4c4f47310100000000000000c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1c1\
             0700000000000000e803000000000000341200000000000000000000c2de18b1"
        );
        assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn golden_record() {
        let header = RecordHeader {
            kind: RecordKind::Entry,
            body_bytes: 5,
            index: 42,
            term: 3,
            node: 2,
            synced: 64,
        };
        let mut out = Vec::new();
        encode_record(header, b"hello", &mut out);
        assert_eq!(
            hex(&out),
            "44464c52404ab93c01000000050000002a000000000000000300000000000000\
             0200000000000000400000000000000068656c6c6f000000"
        );
        assert_eq!(decode_record(&out), Found::Record(header, b"hello"));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let header = RecordHeader::new(RecordKind::Entry, &LogId::default(), 64);
        let mut out = Vec::new();
        encode_record(header, b"some body", &mut out);
        for bit in 0..(RECORD_HEADER_BYTES + 9) * 8 {
            let mut bad = out.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(decode_record(&bad), Found::Bad(_)), "bit {bit}");
        }
    }
}
