//! Checkpoint: the index in one file, so that a start replays only the log's end.
//!
//! Fuzzy: chunks are copied while the log goes on, each with the LSN of its last record, and a replay skips what a chunk
//! already has. Written only after a sync of everything it may contain, replaced by rename, checked by a blake3 hash.
//! It is a cache: a missing or rotten one is rebuilt from the whole log.

use std::collections::BTreeMap;

use dfs_common::{ChainId, ChunkId, ClusterId, StorageId};

use super::format::{FORMAT_VERSION, Lsn, Reader, Sequence, Writer};
use super::index::{Entry, Index, Sealed};

pub(super) const CHECKPOINT_FILE: &str = "checkpoint";

const MAGIC: [u8; 8] = *b"DFSCKPNT";

/// Chunks copied under one hold of the index's lock.
const BATCH_CHUNKS: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) cluster: ClusterId,
    pub(super) node: StorageId,
    /// Every record up to here is in it.
    pub(super) published: Lsn,
    /// Everything up to here was durable before it was written.
    pub(super) durable: Lsn,
    /// First segment that may hold records after `published`.
    pub(super) replay_from: Sequence,
    /// Sequences below this were given out.
    pub(super) next_sequence: Sequence,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentEntry {
    pub(super) slot: u32,
    pub(super) sealed: Sealed,
    pub(super) rotten: bool,
}

/// Segments before `replay_from`.
pub(super) type SegmentTable = BTreeMap<Sequence, SegmentEntry>;

/// Collects chunks a batch at a time.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    body: Writer,
    count: u64,
    last: Option<(ChainId, ChunkId)>,
}

impl Chunks {
    /// Copies the next batch; `false` when there is none.
    pub(super) fn take(&mut self, index: &Index) -> bool {
        let mut taken = 0;
        for (chain, chunk, entry) in index.after(self.last).take(BATCH_CHUNKS) {
            self.body.u32(chain.0);
            self.body.chunk(chunk);
            self.body.version(entry.version);
            self.body.u64(entry.lsn.0);
            self.body.u64(entry.base.0);
            self.body.u32(entry.base_bytes);
            entry.encode(&mut self.body);
            self.last = Some((chain, chunk));
            taken += 1;
        }
        self.count += taken as u64;
        taken == BATCH_CHUNKS
    }
}

/// The file's bytes, in the order in which to write them.
pub(super) fn encode(header: &Header, segments: &SegmentTable, chunks: Chunks) -> [Vec<u8>; 3] {
    let mut head = Writer::default();
    head.bytes(&header.cluster.0);
    head.u32(header.node.0);
    head.u64(header.published.0);
    head.u64(header.durable.0);
    head.u64(header.replay_from.0);
    head.u64(header.next_sequence.0);
    head.u32(segments.len() as u32);
    for (sequence, segment) in segments {
        head.u64(sequence.0);
        head.u32(segment.slot);
        head.u32(segment.sealed.end);
        head.u64(segment.sealed.last.0);
        head.u32(u32::from(segment.rotten));
    }
    head.u64(chunks.count);
    let body = chunks.body.0;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&head.0);
    hasher.update(&body);
    let mut front = Writer::default();
    front.bytes(&MAGIC);
    front.u32(FORMAT_VERSION);
    front.u32(0);
    front.u64((head.0.len() + body.len()) as u64);
    front.bytes(hasher.finalize().as_bytes());
    [front.0, head.0, body]
}

pub(super) struct Checkpoint {
    pub(super) header: Header,
    pub(super) segments: SegmentTable,
    pub(super) chunks: Vec<(ChainId, ChunkId, Entry)>,
}

/// `None` for anything but a whole and unharmed checkpoint.
pub(super) fn decode(bytes: &[u8]) -> Option<Checkpoint> {
    let mut reader = Reader(bytes);
    if reader.array()? != MAGIC || reader.u32()? != FORMAT_VERSION {
        return None;
    }
    reader.u32()?;
    let length = reader.u64()?;
    let hash: [u8; 32] = reader.array()?;
    if reader.0.len() as u64 != length || *blake3::hash(reader.0).as_bytes() != hash {
        return None;
    }
    let header = Header {
        cluster: ClusterId(reader.array()?),
        node: StorageId(reader.u32()?),
        published: Lsn(reader.u64()?),
        durable: Lsn(reader.u64()?),
        replay_from: Sequence(reader.u64()?),
        next_sequence: Sequence(reader.u64()?),
    };
    let mut segments = SegmentTable::new();
    for _ in 0..reader.u32()? {
        let sequence = Sequence(reader.u64()?);
        let segment = SegmentEntry {
            slot: reader.u32()?,
            sealed: Sealed {
                end: reader.u32()?,
                last: Lsn(reader.u64()?),
            },
            rotten: reader.u32()? != 0,
        };
        segments.insert(sequence, segment);
    }
    let mut chunks = Vec::new();
    for _ in 0..reader.u64()? {
        let (chain, chunk) = (ChainId(reader.u32()?), reader.chunk()?);
        let version = reader.version()?;
        let (lsn, base) = (Lsn(reader.u64()?), Sequence(reader.u64()?));
        let base_bytes = reader.u32()?;
        let entry = Entry {
            version,
            lsn,
            base,
            base_bytes,
            ..Entry::decode(&mut reader)?
        };
        chunks.push((chain, chunk, entry));
    }
    reader.0.is_empty().then_some(Checkpoint {
        header,
        segments,
        chunks,
    })
}
