//! The store against a naive model, on a simulated disk.

mod crash;
mod faults;
mod golden;
mod oracle;
mod rot;
mod segments;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use dfs_common::units::{BLOCK_SIZE_BYTES, SEAL_SIZE_BYTES};
use dfs_common::wire::storage::{BlockRun, ChunkMemory, Mutation, Origin, Remembered, RunsWanted};
use dfs_common::{
    BlockIndex, ChainId, ChunkId, ChunkIndex, ChunkVersion, ClusterId, CutEpoch, Epoch, HybridClock, InodeId, Level,
    RequestId, SequenceNumber, SessionId, StorageId, StoreId, Timestamp,
};

use super::{ChunkRead, ChunkStore, REMEMBERED_REQUESTS, RecoveryReport, StoreError, StoreOptions};
use crate::disk::SimDisk;

const SEGMENT: u32 = 64 << 10;

fn options(segments: u64) -> StoreOptions {
    StoreOptions {
        segment_size_bytes: SEGMENT,
        checkpoint_interval_bytes: 200 << 10,
        patience: std::time::Duration::from_millis(10),
        at_rest_after: std::time::Duration::ZERO,
        ..StoreOptions::new(ClusterId([7; 16]), StorageId(3), segments * u64::from(SEGMENT))
    }
}

fn open(disk: &SimDisk, segments: u64) -> (ChunkStore, RecoveryReport) {
    ChunkStore::open(Arc::new(disk.clone()), options(segments)).unwrap()
}

fn chunk(n: u8) -> ChunkId {
    ChunkId::new(InodeId(100 + u64::from(n) / 3), ChunkIndex(u32::from(n) % 3))
}

/// A chunk lives in one chain.
fn chain(n: u8) -> ChainId {
    ChainId(1 + u32::from(n % 2))
}

fn version(counter: u64) -> ChunkVersion {
    ChunkVersion {
        epoch: Epoch(1 + counter / 50),
        counter,
    }
}

fn request(n: u64) -> RequestId {
    RequestId {
        session: SessionId(9),
        channel: 1,
        sequence: SequenceNumber(n),
    }
}

fn level(n: u64) -> Level {
    [Level::One, Level::Quorum, Level::All][n as usize % 3]
}

/// Not in order: the newest counts, and what brings none leaves it alone.
fn cut(n: u64) -> CutEpoch {
    CutEpoch(if n.is_multiple_of(3) { 0 } else { n * 37 % 101 })
}

fn origin(n: u64) -> Origin {
    Origin {
        id: request(n),
        level: level(n),
        cut: cut(n),
        stamp: HybridClock {
            wall: Timestamp::from_nanos(1_000 + n.cast_signed()),
            logical: n as u32 % 7,
        },
    }
}

fn remembered(n: u64, version: ChunkVersion) -> Remembered {
    Remembered {
        id: request(n),
        version,
        level: level(n),
    }
}

/// Seal and ciphertext that name what they are.
fn block_bytes(chunk: ChunkId, version: ChunkVersion, block: u32, length: usize) -> (Vec<u8>, Vec<u8>) {
    let mut out = blake3::Hasher::new()
        .update(format!("{chunk} {version} {block}").as_bytes())
        .finalize_xof();
    let (mut seal, mut data) = (vec![0; SEAL_SIZE_BYTES], vec![0; length]);
    out.fill(&mut seal);
    out.fill(&mut data);
    (seal, data)
}

fn payload(chunk: ChunkId, run: &BlockRun) -> Bytes {
    let (mut seals, mut data) = (Vec::new(), Vec::new());
    for at in 0..run.blocks {
        let length = if at + 1 == run.blocks {
            run.last_length_bytes as usize
        } else {
            BLOCK_SIZE_BYTES
        };
        let (seal, bytes) = block_bytes(chunk, run.version, run.first.0 + at, length);
        seals.extend(seal);
        data.extend(bytes);
    }
    seals.extend(data);
    seals.into()
}

fn run(first: u32, blocks: u32, last_length_bytes: u32, version: ChunkVersion) -> BlockRun {
    BlockRun {
        first: BlockIndex(first),
        blocks,
        last_length_bytes,
        version,
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Chunk {
    version: ChunkVersion,
    /// Version and length of each block.
    blocks: BTreeMap<u32, (ChunkVersion, u32)>,
    memory: ChunkMemory,
    removed: bool,
}

type Model = BTreeMap<u8, Chunk>;

#[derive(Clone, Debug)]
enum Op {
    Write {
        chunk: u8,
        first: u32,
        blocks: u32,
        last: u32,
    },
    Truncate {
        chunk: u8,
        blocks: u32,
    },
    Remove {
        chunk: u8,
    },
    Install {
        chunk: u8,
        runs: Vec<(u32, u32)>,
    },
    AbandonInstall {
        chunk: u8,
    },
    Drop {
        chunk: u8,
    },
    Sync,
    Maintain,
    Checkpoint,
    Reopen,
}

/// Carries out one operation on both; `n` makes versions and ids.
fn step(store: &ChunkStore, model: &mut Model, op: &Op, n: u64) -> Result<(), StoreError> {
    let v = version(n + 1);
    let mut mutate = |which: u8, mutation: &Mutation, payload: Bytes| {
        store.apply(chain(which), chunk(which), v, origin(n), mutation, &payload)?;
        let entry = model.entry(which).or_default();
        let before = std::mem::replace(&mut entry.version, v);
        if before.epoch != v.epoch && !before.is_none() {
            entry.memory.earlier.push(before);
        }
        if !matches!(mutation, Mutation::Write { .. }) {
            entry.memory.trimmed = v;
        }
        entry.memory.cut = entry.memory.cut.max(cut(n));
        entry.memory.stamp = origin(n).stamp;
        if entry.memory.requests.len() == REMEMBERED_REQUESTS {
            entry.memory.requests.remove(0);
        }
        entry.memory.requests.push(remembered(n, v));
        match *mutation {
            Mutation::Write {
                first,
                blocks,
                last_length_bytes,
                ..
            } => {
                entry.removed = false;
                for at in 0..blocks {
                    let length = if at + 1 == blocks {
                        last_length_bytes
                    } else {
                        BLOCK_SIZE_BYTES as u32
                    };
                    entry.blocks.insert(first.0 + at, (v, length));
                }
            }
            Mutation::Truncate { blocks } => entry.blocks.retain(|&block, _| block < blocks),
            Mutation::Remove => {
                entry.removed = true;
                entry.blocks.clear();
            }
        }
        Ok(())
    };
    match op {
        Op::Write {
            chunk: which,
            first,
            blocks,
            last,
        } => {
            let mutation = Mutation::Write {
                first: BlockIndex(*first),
                blocks: *blocks,
                last_length_bytes: *last,
                conditions: Vec::new(),
            };
            mutate(
                *which,
                &mutation,
                payload(chunk(*which), &run(*first, *blocks, *last, v)),
            )
        }
        Op::Truncate { chunk, blocks } => mutate(*chunk, &Mutation::Truncate { blocks: *blocks }, Bytes::new()),
        Op::Remove { chunk } => mutate(*chunk, &Mutation::Remove, Bytes::new()),
        Op::Install { chunk: which, runs } => {
            store.install_begin(chain(*which), chunk(*which))?;
            let mut entry = Chunk {
                version: v,
                ..Chunk::default()
            };
            let mut at = 0;
            for (number, &(skip, blocks)) in (1_u64..).zip(runs) {
                let run = run(at + skip, blocks, 77, version(number));
                at = run.first.0 + blocks;
                for block in run.first.0..at {
                    let length = if block + 1 == at { 77 } else { BLOCK_SIZE_BYTES as u32 };
                    entry.blocks.insert(block, (run.version, length));
                }
                store.install_part(chunk(*which), &[run], &payload(chunk(*which), &run))?;
            }
            entry.removed = entry.blocks.is_empty();
            entry.memory = ChunkMemory {
                earlier: vec![version(1), version(51)],
                trimmed: version(n / 2),
                cut: CutEpoch(n),
                stamp: origin(n + 1).stamp,
                requests: vec![remembered(1, version(1)), remembered(n, v)],
            };
            store.install_finish(chain(*which), chunk(*which), v, &entry.memory)?;
            model.insert(*which, entry);
            Ok(())
        }
        Op::AbandonInstall { chunk: which } => {
            store.install_begin(chain(*which), chunk(*which))?;
            let run = run(0, 2, 5, version(1));
            store.install_part(chunk(*which), &[run], &payload(chunk(*which), &run))
        }
        Op::Drop { chunk: which } => {
            store.drop_chunk(chain(*which), chunk(*which))?;
            model.remove(which);
            Ok(())
        }
        Op::Sync => store.sync(),
        Op::Maintain => store.maintain(&|_| Some(std::time::Duration::ZERO)).map(drop),
        Op::Checkpoint => store.close(),
        Op::Reopen => Ok(()),
    }
}

/// Blocks of a read, verified to be what their versions say.
fn blocks_of(id: ChunkId, read: &ChunkRead) -> BTreeMap<u32, (ChunkVersion, u32)> {
    let mut out = BTreeMap::new();
    let mut rest = read.payload.clone();
    for run in &read.runs {
        assert!(
            rest.split_to(run.payload_size_bytes()) == payload(id, run),
            "chunk {id}: foreign bytes in {run:?}"
        );
        for at in 0..run.blocks {
            let length = if at + 1 == run.blocks {
                run.last_length_bytes
            } else {
                BLOCK_SIZE_BYTES as u32
            };
            assert_eq!(out.insert(run.first.0 + at, (run.version, length)), None);
        }
    }
    assert!(rest.is_empty());
    out
}

/// What the store holds, as a model.
fn contents(store: &ChunkStore) -> Model {
    let mut out = Model::new();
    for which in 0..12 {
        let id = chunk(which);
        let listed = store
            .list(chain(which), None, 100)
            .into_iter()
            .find(|(listed, _)| *listed == id);
        let Some((_, listed)) = listed else {
            assert_eq!(store.version(id), ChunkVersion::NONE);
            continue;
        };
        assert_eq!(listed, store.version(id));
        let read = store.read(id, BlockIndex(0), 1000).unwrap();
        assert_eq!(read.version, listed);
        assert!(store.chunks_of(chain(which), id.inode, id.index).contains(&id));
        assert_eq!(store.cut(id), store.memory(id).cut);
        let entry = Chunk {
            version: listed,
            blocks: blocks_of(id, &read),
            memory: store.memory(id),
            removed: store.is_removed(id),
        };
        out.insert(which, entry);
    }
    check_file_ends(store, &out);
    out
}

/// Where each inode's data ends on each chain, from each chunk on, is where its last block ends.
/// And its blocks are its runs.
fn check_file_ends(store: &ChunkStore, contents: &Model) {
    for which in 0..12 {
        let (id, chain_id) = (chunk(which), chain(which));
        let of_inode = contents.iter().filter(|&(&other, _)| {
            (chunk(other).inode, chain(other)) == (id.inode, chain_id) && chunk(other).index >= id.index
        });
        let mut blocks: Vec<_> = of_inode
            .clone()
            .flat_map(|(&other, entry)| entry.blocks.keys().map(move |&block| (chunk(other).index, block)))
            .collect();
        blocks.sort_unstable();
        for from in [0, 3] {
            let place = (id.index, BlockIndex(from));
            let found = store.file_runs(chain_id, id.inode, place, RunsWanted::First);
            let counted = store.file_runs(chain_id, id.inode, place, RunsWanted::Count);
            let each = found
                .runs
                .iter()
                .flat_map(|run| (0..run.blocks).map(|more| (run.chunk, run.first.0 + more)));
            let expected = blocks.iter().copied().filter(|&block| block >= (id.index, from));
            assert_eq!(
                each.collect::<Vec<_>>(),
                expected.clone().collect::<Vec<_>>(),
                "{id} from {from}"
            );
            let count = expected.count() as u64;
            assert_eq!(
                (found.blocks, counted.blocks, found.more),
                (count, count, false),
                "{id}"
            );
        }
        let ends = of_inode.filter_map(|(&other, entry)| {
            let (block, (_, length)) = entry.blocks.last_key_value()?;
            Some((chunk(other).index, block * BLOCK_SIZE_BYTES as u32 + length))
        });
        assert_eq!(store.file_end(chain_id, id.inode, id.index), ends.max(), "{id}");
    }
}
