//! Bits that flip anywhere: an error or an older truth, never wrong bytes.

use super::*;
use crate::disk::{Disk, sim::Image};

fn sample(disk: &SimDisk, finish: &[Op]) -> (Vec<Model>, Model) {
    let (store, _) = open(disk, 24);
    let mut model = Model::new();
    let mut states = vec![model.clone()];
    let mut ops: Vec<Op> = (0..24_u32)
        .map(|n| Op::Write {
            chunk: (n % 5) as u8,
            first: n % 3,
            blocks: 2 + n % 2,
            last: 500,
        })
        .collect();
    ops.insert(9, Op::Truncate { chunk: 1, blocks: 2 });
    ops.insert(12, Op::Remove { chunk: 2 });
    ops.insert(
        15,
        Op::Install {
            chunk: 6,
            runs: vec![(0, 2), (1, 3)],
        },
    );
    ops.insert(18, Op::Sync);
    ops.extend_from_slice(finish);
    for (n, op) in (0_u64..).zip(&ops) {
        step(&store, &mut model, op, n).unwrap();
        states.push(model.clone());
    }
    (states, model)
}

/// Every block that can be read is what it says it is, at a version that it once had.
fn only_truth(store: &ChunkStore, states: &[Model]) -> bool {
    let mut whole = true;
    for which in 0..12 {
        let id = chunk(which);
        let mut found = Chunk {
            version: store.version(id),
            ..Chunk::default()
        };
        for block in 0..20 {
            match store.read(id, BlockIndex(block), 1) {
                Ok(read) => found.blocks.extend(blocks_of(id, &read)),
                Err(StoreError::Corrupt { .. }) => {
                    whole = false;
                    found.blocks.clear();
                    break;
                }
                Err(error) => panic!("{error}"),
            }
        }
        let once = states.iter().any(|state| {
            state.get(&which).map_or_else(
                || found.version.is_none() && found.blocks.is_empty(),
                |chunk| chunk.version == found.version && (chunk.blocks == found.blocks || found.blocks.is_empty()),
            )
        });
        assert!(once, "chunk {which} at {} never was like that", found.version);
    }
    whole
}

fn flip_everywhere(finish: &[Op], stride: usize) -> (usize, usize, usize) {
    let disk = SimDisk::new();
    let (states, last) = sample(&disk, finish);
    let (mut silent, mut reported, mut refused) = (0, 0, 0);
    for (name, size) in disk.files() {
        let header = (0..size.min(600)).step_by(stride.min(13));
        for offset in header.chain((600..size).step_by(stride)) {
            let damaged = disk.image(Image::Kill);
            damaged.rot(&name, offset, 1 << (offset % 8));
            let Ok((store, report)) = ChunkStore::open(Arc::new(damaged), options(24)) else {
                refused += 1;
                continue;
            };
            let whole = only_truth(&store, &states);
            if report.needs_resync() || !whole {
                reported += 1;
            } else if contents(&store) != last {
                silent += 1;
            }
        }
    }
    (silent, reported, refused)
}

#[test]
fn with_a_checkpoint_every_flip_is_harmless_or_noticed() {
    let (silent, reported, refused) = flip_everywhere(&[Op::Checkpoint], 331);
    assert_eq!(silent, 0);
    assert!(reported > 50 && refused > 0, "{reported} {refused}");
}

#[test]
fn without_one_only_the_unsynced_end_can_go_silently() {
    let disk = SimDisk::new();
    let (states, _) = sample(&disk, &[]);
    for (name, size) in disk.files() {
        for offset in (0..size).step_by(331) {
            let damaged = disk.image(Image::Kill);
            damaged.rot(&name, offset, 0x10);
            let Ok((store, report)) = ChunkStore::open(Arc::new(damaged), options(24)) else {
                continue;
            };
            // The sample syncs after its 18th operation.
            if only_truth(&store, &states) && !report.needs_resync() {
                let found = contents(&store);
                assert!(
                    states[18..].contains(&found),
                    "{name} at {offset}: lost what was synced, and said nothing"
                );
            }
        }
    }
}

#[test]
fn a_rotten_checkpoint_is_rebuilt_and_a_rotten_block_is_named() {
    let disk = SimDisk::new();
    let (_, model) = sample(&disk, &[Op::Checkpoint]);
    disk.rot("checkpoint", 200, 4);
    let (store, report) = open(&disk, 24);
    assert!(!report.from_checkpoint && !report.needs_resync());
    assert_eq!(contents(&store), model);

    // A byte of the first record's ciphertext in the first segment.
    let disk = SimDisk::new();
    let (store, _) = open(&disk, 24);
    let mut model = Model::new();
    step(
        &store,
        &mut model,
        &Op::Write {
            chunk: 0,
            first: 0,
            blocks: 3,
            last: 4096,
        },
        0,
    )
    .unwrap();
    step(
        &store,
        &mut model,
        &Op::Write {
            chunk: 3,
            first: 0,
            blocks: 1,
            last: 4096,
        },
        1,
    )
    .unwrap();
    store.sync().unwrap();
    step(
        &store,
        &mut model,
        &Op::Write {
            chunk: 3,
            first: 1,
            blocks: 1,
            last: 4096,
        },
        2,
    )
    .unwrap();
    drop(store);
    disk.rot("segment-00000000", 4096 + 128 + 12 + 84 + 5000, 1);
    let (store, report) = open(&disk, 24);
    assert_eq!(report.rot.len(), 1);
    assert_eq!(report.rot[0].chunk, Some(chunk(0)));
    assert!(store.read(chunk(0), BlockIndex(0), 1).is_ok());
    assert!(matches!(
        store.read(chunk(0), BlockIndex(0), 3),
        Err(StoreError::Corrupt {
            block: BlockIndex(1),
            ..
        })
    ));
    assert_eq!(store.summarize(chunk(0), true).unwrap().rotten, Some(BlockIndex(1)));
    assert!(store.list(chain(0), None, 10).contains(&(chunk(0), ChunkVersion::NONE)));
    assert!(store.read(chunk(3), BlockIndex(0), 2).is_ok());
}

#[test]
fn a_lost_segment_is_noticed() {
    let disk = SimDisk::new();
    sample(&disk, &[Op::Checkpoint]);
    disk.remove("segment-00000000").unwrap();
    let (_, report) = open(&disk, 24);
    assert!(report.needs_resync());
}
