//! Bits that flip anywhere: an error or an older truth, never wrong bytes.

use super::*;
use crate::disk::Disk;
use crate::disk::sim::{Image, Mishap};

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
    assert!(reported > 50, "{reported}");
    assert_eq!(refused, 0, "there are two superblocks");
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
    disk.rot("segment-00000000", 4096 + 136 + 12 + 84 + 5000, 1);
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
fn a_segment_header_is_made_anew_from_the_first_record() {
    let disk = SimDisk::new();
    let (_, model) = sample(&disk, &[Op::Checkpoint]);
    for checkpoint in [true, false] {
        if !checkpoint {
            disk.remove("checkpoint").unwrap();
        }
        for (name, _) in disk
            .files()
            .into_iter()
            .filter(|(name, _)| name.starts_with("segment-"))
        {
            disk.rot(&name, 50, 2);
            let (store, report) = open(&disk, 24);
            assert!(!report.needs_resync(), "{name}: {:?}", report.rot);
            assert_eq!(contents(&store), model);
        }
    }
}

#[test]
fn a_store_that_lost_something_takes_a_new_name_and_one_that_did_not_keeps_it() {
    let renamed = |damage: &dyn Fn(&SimDisk)| {
        let disk = SimDisk::new();
        let (store, mut model) = two_chunks(&disk);
        // It says that what stands before it was durable.
        let later = Op::Write {
            chunk: 3,
            first: 4,
            blocks: 1,
            last: 10,
        };
        step(&store, &mut model, &later, 9).unwrap();
        let before = store.id();
        drop(store);
        damage(&disk);
        let mut options = options(24);
        options.new_store = StoreId([77; 16]);
        let (store, report) = ChunkStore::open(Arc::new(disk.clone()), options.clone()).unwrap();
        let is_new = store.id() != before;
        assert_eq!(is_new, store.id() == StoreId([77; 16]));
        assert!(!is_new || report.needs_resync());
        if !is_new && !report.needs_resync() {
            assert_eq!(contents(&store), model, "{report:?}");
        }
        drop(store);
        // It is still so called when it is opened again, and then nothing more is lost.
        options.new_store = StoreId([78; 16]);
        let (store, _) = ChunkStore::open(Arc::new(disk), options).unwrap();
        assert_eq!(store.id() != before, is_new);
        assert_ne!(store.id(), StoreId([78; 16]));
        is_new
    };
    assert!(!renamed(&|_| {}));
    assert!(!renamed(&|disk| disk.rot("superblock", 30, 1)), "there is a copy");
    assert!(
        !renamed(&|disk| disk.rot("segment-00000000", 40, 1)),
        "the header is told from the record"
    );
    assert!(
        !renamed(&|disk| disk.rot("segment-00000000", 4096 + 136 + 6 * 32 + 5000, 1)),
        "a block"
    );
    assert!(
        renamed(&|disk| disk.rot("segment-00000000", 4096 + 50, 1)),
        "a record's header"
    );
}

#[test]
fn a_lost_segment_is_noticed() {
    let disk = SimDisk::new();
    sample(&disk, &[Op::Checkpoint]);
    disk.remove("segment-00000000").unwrap();
    let (_, report) = open(&disk, 24);
    assert!(report.needs_resync());
}

#[test]
fn a_write_that_was_lost_is_noticed_though_its_chunk_was_removed_since() {
    let disk = SimDisk::new();
    let (store, _) = open(&disk, 24);
    let mut model = Model::new();
    let write = |first| Op::Write {
        chunk: 1,
        first,
        blocks: 1,
        last: 500,
    };
    step(&store, &mut model, &write(0), 0).unwrap();
    disk.spoil(Mishap::LostWrite, 0);
    // What follows a sync says that all before it is durable: no torn end.
    for (n, op) in (1..).zip([
        write(1),
        write(2),
        Op::Remove { chunk: 1 },
        Op::Sync,
        write(0),
        Op::Sync,
    ]) {
        step(&store, &mut model, &op, n).unwrap();
    }
    assert_eq!(disk.mishaps(), 1);
    drop(store);
    let (store, report) = open(&disk.image(Image::Kill), 24);
    // It holds nothing any more, but the request of the lost record is to be remembered, and is not.
    assert!(store.memory(chunk(1)).requests.len() < 5);
    assert!(report.rot.iter().any(|rot| rot.chunk == Some(chunk(1))), "{report:?}");
}

/// All that a removal followed may be gone. Where the store knows that it lost something, the chunk is copied anew; its data may be read meanwhile.
#[test]
fn a_removal_of_what_was_lost_is_in_doubt_where_something_was_lost() {
    for spoiled in [false, true] {
        let disk = SimDisk::new();
        let (store, _) = open(&disk, 24);
        let mut model = Model::new();
        let write = |chunk| Op::Write {
            chunk,
            first: 0,
            blocks: 1,
            last: 500,
        };
        step(&store, &mut model, &write(0), 0).unwrap();
        if spoiled {
            disk.spoil(Mishap::LostWrite, 0);
        }
        let after = [write(1), Op::Remove { chunk: 1 }, Op::Sync, write(1), Op::Sync];
        for (n, op) in (1..).zip(after) {
            step(&store, &mut model, &op, n).unwrap();
        }
        assert_eq!(disk.mishaps(), u64::from(spoiled));
        let version = store.version(chunk(1));
        drop(store);
        let (store, report) = open(&disk.image(Image::Kill), 24);
        assert_eq!(report.needs_resync(), spoiled);
        assert!(store.bad_blocks(chunk(1)).unwrap().is_empty() && store.state(chunk(1)).is_some());
        let listed = store.list(chain(1), None, 10);
        let shown = if spoiled { ChunkVersion::NONE } else { version };
        assert!(listed.contains(&(chunk(1), shown)), "{listed:?}");
    }
}

#[test]
fn either_superblock_is_made_from_the_other() {
    let disk = SimDisk::new();
    let (_, model) = sample(&disk, &[Op::Checkpoint]);
    for name in ["superblock", "superblock.copy"] {
        for offset in [0, 9, 13, 20] {
            disk.rot(name, offset, 1);
            let (store, report) = open(&disk, 24);
            assert_eq!(report.rebuilt.len(), 1, "{:?}", report.rebuilt);
            assert!(report.rebuilt[0].contains(name) && !report.needs_resync());
            assert_eq!(contents(&store), model);
        }
    }
    let (store, report) = open(&disk, 24);
    assert!(report.rebuilt.is_empty());
    disk.rot("checkpoint", 100, 1);
    disk.rot("superblock", 30, 1);
    assert_eq!(store.check_files().unwrap().len(), 2);
    assert!(store.check_files().unwrap().is_empty());
}

/// One chunk of six blocks in three writes, with another that shares the log.
fn two_chunks(disk: &SimDisk) -> (ChunkStore, Model) {
    let (store, _) = open(disk, 24);
    let mut model = Model::new();
    let writes = [(0, 0, 6), (3, 0, 2), (0, 2, 2), (0, 5, 1)];
    for (n, (chunk, first, blocks)) in (0_u64..).zip(writes) {
        let op = Op::Write {
            chunk,
            first,
            blocks,
            last: 4096,
        };
        step(&store, &mut model, &op, n).unwrap();
    }
    store.sync().unwrap();
    (store, model)
}

#[test]
fn rotten_blocks_are_mended_from_another_store_and_stay_so() {
    let (disk, other) = (SimDisk::new(), SimDisk::new());
    let (store, model) = two_chunks(&disk);
    let (whole, _) = two_chunks(&other);
    // A byte of block 1, and one of block 4, of the first record.
    let data = 4096 + 136 + 6 * (4 + 28);
    disk.rot("segment-00000000", data + 5000, 1);
    disk.rot("segment-00000000", data + 4 * 4096 + 7, 1);
    let bad = store.bad_blocks(chunk(0)).unwrap();
    assert_eq!(
        bad.iter().map(|run| (run.first.0, run.blocks)).collect::<Vec<_>>(),
        [(1, 1), (4, 1)]
    );
    for run in &bad {
        let copy = whole.read(chunk(0), run.first, run.blocks).unwrap();
        assert_eq!(store.mend(chunk(0), &copy.runs, &copy.payload).unwrap(), 1);
    }
    assert!(store.bad_blocks(chunk(0)).unwrap().is_empty());
    assert_eq!(contents(&store), model);
    store.sync().unwrap();
    drop(store);
    let (store, report) = open(&disk, 24);
    assert_eq!(contents(&store), model);
    assert!(
        report.rot.iter().all(|rot| rot.chunk == Some(chunk(0))),
        "{:?}",
        report.rot
    );
}

#[test]
fn a_copy_takes_no_place_that_changed_meanwhile() {
    let (disk, other) = (SimDisk::new(), SimDisk::new());
    let (store, mut model) = two_chunks(&disk);
    let (whole, _) = two_chunks(&other);
    let copy = whole.read(chunk(0), BlockIndex(0), 6).unwrap();
    let ops = [
        Op::Write {
            chunk: 0,
            first: 1,
            blocks: 1,
            last: 4096,
        },
        Op::Truncate { chunk: 0, blocks: 4 },
    ];
    for (n, op) in (10_u64..).zip(&ops) {
        step(&store, &mut model, op, n).unwrap();
    }
    // Blocks 0, 2 and 3 are what they were.
    assert_eq!(store.mend(chunk(0), &copy.runs, &copy.payload).unwrap(), 3);
    assert_eq!(contents(&store), model);
    step(&store, &mut model, &Op::Remove { chunk: 0 }, 20).unwrap();
    assert_eq!(store.mend(chunk(0), &copy.runs, &copy.payload).unwrap(), 0);
    assert_eq!(contents(&store), model);
    assert_eq!(store.mend(chunk(9), &copy.runs, &copy.payload).unwrap(), 0);
    let short = copy.payload.slice(..copy.payload.len() - 1);
    assert!(store.mend(chunk(0), &copy.runs, &short).is_err());
}
