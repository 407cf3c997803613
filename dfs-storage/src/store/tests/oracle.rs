//! Random operations: the store and the model agree, through restarts, compaction and lost checkpoints.

use proptest::prelude::*;

use super::*;
use crate::disk::Disk;

pub(super) fn op() -> impl Strategy<Value = Op> {
    let which = 0_u8..8;
    prop_oneof![
        8 => (which.clone(), 0_u32..20, 1_u32..6, 1_u32..=4096)
            .prop_map(|(chunk, first, blocks, last)| Op::Write { chunk, first, blocks, last }),
        2 => (which.clone(), 0_u32..20).prop_map(|(chunk, blocks)| Op::Truncate { chunk, blocks }),
        1 => which.clone().prop_map(|chunk| Op::Remove { chunk }),
        2 => (which.clone(), proptest::collection::vec((0_u32..3, 1_u32..4), 0..4))
            .prop_map(|(chunk, runs)| Op::Install { chunk, runs }),
        1 => which.clone().prop_map(|chunk| Op::AbandonInstall { chunk }),
        1 => which.prop_map(|chunk| Op::Drop { chunk }),
        2 => Just(Op::Sync),
        4 => Just(Op::Maintain),
        1 => Just(Op::Checkpoint),
        1 => Just(Op::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_a_naive_model(ops in proptest::collection::vec(op(), 1..150), lose_checkpoint: bool) {
        let disk = SimDisk::new();
        let (mut store, _) = open(&disk, 24);
        let mut model = Model::new();
        for (n, op) in (0_u64..).zip(&ops) {
            step(&store, &mut model, op, n).unwrap();
            if matches!(op, Op::Reopen) {
                drop(store);
                if lose_checkpoint {
                    let _ = disk.remove("checkpoint");
                }
                let (reopened, report) = open(&disk, 24);
                prop_assert_eq!(&report.rot, &[]);
                prop_assert_eq!(report.torn_tail_bytes, 0);
                store = reopened;
                prop_assert_eq!(&contents(&store), &model);
            }
        }
        prop_assert_eq!(&contents(&store), &model);
        let live = model.values().filter(|chunk| !chunk.removed).count();
        prop_assert_eq!(store.usage().chunks, live as u64);
        let used = store.usage().used_bytes;
        drop(store);
        let _ = disk.remove("checkpoint");
        let (store, report) = open(&disk, 24);
        prop_assert_eq!(&report.rot, &[]);
        prop_assert_eq!(&contents(&store), &model);
        prop_assert_eq!(store.usage().used_bytes, used);
    }
}

#[test]
fn partial_reads_and_block_versions_follow_overwrites() {
    let disk = SimDisk::new();
    let (store, _) = open(&disk, 24);
    let mut model = Model::new();
    step(
        &store,
        &mut model,
        &Op::Write {
            chunk: 0,
            first: 0,
            blocks: 8,
            last: 10,
        },
        0,
    )
    .unwrap();
    step(
        &store,
        &mut model,
        &Op::Write {
            chunk: 0,
            first: 3,
            blocks: 2,
            last: 4096,
        },
        1,
    )
    .unwrap();
    for first in 0..10 {
        for blocks in 1..6 {
            let read = store.read(chunk(0), BlockIndex(first), blocks).unwrap();
            let expected: BTreeMap<_, _> = model[&0]
                .blocks
                .range(first..first + blocks)
                .map(|(&block, &what)| (block, what))
                .collect();
            assert_eq!(blocks_of(chunk(0), &read), expected);
        }
    }
    assert_eq!(store.block_version(chunk(0), BlockIndex(4)), version(2));
    assert_eq!(store.block_version(chunk(0), BlockIndex(5)), version(1));
    assert_eq!(store.block_version(chunk(0), BlockIndex(8)), ChunkVersion::NONE);
    assert_eq!(store.remembered(chunk(0), request(1)), Some(version(2)));
    assert_eq!(store.remembered(chunk(0), request(5)), None);
}

#[test]
fn digests_do_not_depend_on_how_a_chunk_came_to_be() {
    let (a, b) = (open(&SimDisk::new(), 24).0, open(&SimDisk::new(), 24).0);
    let mut model = Model::new();
    step(
        &a,
        &mut model,
        &Op::Write {
            chunk: 0,
            first: 0,
            blocks: 8,
            last: 10,
        },
        0,
    )
    .unwrap();
    step(
        &a,
        &mut model,
        &Op::Write {
            chunk: 0,
            first: 2,
            blocks: 3,
            last: 4096,
        },
        1,
    )
    .unwrap();
    b.install_begin(chain(0), chunk(0)).unwrap();
    for first in 0..8 {
        let part = a.read(chunk(0), BlockIndex(first), 1).unwrap();
        b.install_part(chunk(0), &part.runs, &part.payload).unwrap();
    }
    b.install_finish(chain(0), chunk(0), version(2), &ChunkMemory::default())
        .unwrap();
    for deep in [false, true] {
        assert_eq!(
            a.summarize(chunk(0), deep).unwrap(),
            b.summarize(chunk(0), deep).unwrap()
        );
    }
    assert_ne!(
        a.summarize(chunk(0), false).unwrap().digest,
        a.summarize(chunk(0), true).unwrap().digest
    );
}

#[test]
fn threads_append_read_sync_and_compact_at_once() {
    let disk = SimDisk::new();
    let (store, _) = open(&disk, 40);
    let threads: Vec<_> = (0..6_u8)
        .map(|which| {
            let store = store.clone();
            std::thread::spawn(move || {
                let mut model = Model::new();
                for n in 0..300 {
                    let first = (n * 7 % 13) as u32;
                    step(
                        &store,
                        &mut model,
                        &Op::Write {
                            chunk: which,
                            first,
                            blocks: 3,
                            last: 4000,
                        },
                        n,
                    )
                    .unwrap();
                    let read = store.read(chunk(which), BlockIndex(0), 100).unwrap();
                    assert_eq!(blocks_of(chunk(which), &read), model[&which].blocks);
                    match n % 16 {
                        3 => store.sync().unwrap(),
                        9 => drop(store.maintain(&|_| Some(std::time::Duration::ZERO)).unwrap()),
                        _ => {}
                    }
                }
                (which, model)
            })
        })
        .collect();
    let mut model = Model::new();
    for thread in threads {
        let (which, mut part) = thread.join().unwrap();
        model.insert(which, part.remove(&which).unwrap());
    }
    assert_eq!(contents(&store), model);
    drop(store);
    let (store, report) = open(&disk, 40);
    assert_eq!(report.rot, []);
    assert_eq!(contents(&store), model);
}
