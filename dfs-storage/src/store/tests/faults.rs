//! Disks that are full or fail.

use dfs_common::errno::{EIO, ENOMEM};
use dfs_common::{DiskCall, Meaning, Scarce};

use super::*;
use crate::disk::meaning;
use crate::disk::sim::{Image, Mishap, Operation};

fn fill(store: &ChunkStore, model: &mut Model) -> u64 {
    for n in 0.. {
        let op = Op::Write {
            chunk: (n % 8) as u8,
            first: (n / 8 * 4) as u32,
            blocks: 4,
            last: 4096,
        };
        match step(store, model, &op, n) {
            Ok(()) => {}
            Err(StoreError::NoSpace { .. }) => return n,
            Err(error) => panic!("{error}"),
        }
    }
    0
}

#[test]
fn a_full_store_refuses_cleanly_and_can_always_be_emptied() {
    let disk = SimDisk::new();
    let (store, _) = open(&disk, 12);
    let mut model = Model::new();
    let n = fill(&store, &mut model);
    assert!(n > 20, "{n}");
    assert_eq!(contents(&store), model);
    let usage = store.usage();
    assert!(usage.used_bytes * 100 > usage.total_bytes * 75, "{usage:?}");
    assert!(store.fault().is_none());
    for chunk in 0..6 {
        step(&store, &mut model, &Op::Remove { chunk }, n + u64::from(chunk)).unwrap();
    }
    assert!(store.usage().used_bytes < usage.used_bytes / 2);
    // Without waiting for the background: the write makes its own room.
    for round in 0..200 {
        let op = Op::Write {
            chunk: 0,
            first: 0,
            blocks: 5,
            last: 4096,
        };
        step(&store, &mut model, &op, n + 10 + round).unwrap();
    }
    assert_eq!(contents(&store), model);
    drop(store);
    let (store, report) = open(&disk, 12);
    assert_eq!(report.rot, []);
    assert_eq!(contents(&store), model);
}

#[test]
fn a_capacity_that_changes_is_kept_from_then_on() {
    let disk = SimDisk::new();
    let (store, _) = open(&disk, 12);
    let mut model = Model::new();
    let n = fill(&store, &mut model);
    let (full, files) = (store.usage(), store.file_bytes());
    store.set_capacity(24 * u64::from(SEGMENT));
    assert!(store.usage().total_bytes > full.total_bytes * 3 / 2);
    let op = |round| Op::Write {
        chunk: 6,
        first: 400 + 4 * round as u32,
        blocks: 4,
        last: 4096,
    };
    for round in 0..20 {
        step(&store, &mut model, &op(round), n + 1 + round).unwrap();
    }
    assert!(store.file_bytes() > files);
    // Less than it has: it takes nothing more, and loses nothing.
    store.set_capacity(0);
    assert!(store.usage().total_bytes < store.usage().used_bytes);
    let mut more = 20..200;
    assert!(more.any(|round| matches!(
        step(&store, &mut model, &op(round), n + 1 + round),
        Err(StoreError::NoSpace { .. })
    )));
    assert_eq!(contents(&store), model);
    for chunk in 0..8 {
        step(&store, &mut model, &Op::Remove { chunk }, n + 300 + u64::from(chunk)).unwrap();
    }
    store.set_capacity(12 * u64::from(SEGMENT));
    step(&store, &mut model, &op(0), n + 400).unwrap();
    assert_eq!(contents(&store), model);
}

#[test]
fn a_disk_that_others_filled_is_no_fault() {
    let disk = SimDisk::new();
    let (store, _) = open(&disk, 100);
    disk.limit(6 * u64::from(SEGMENT));
    let mut model = Model::new();
    let n = fill(&store, &mut model);
    assert!(store.fault().is_none());
    assert!(store.usage().total_bytes < 6 * u64::from(SEGMENT));
    step(&store, &mut model, &Op::Remove { chunk: 0 }, n).unwrap();
    store.sync().unwrap();
    disk.limit(100 * u64::from(SEGMENT));
    store.maintain(&|_| Some(std::time::Duration::ZERO)).unwrap();
    step(
        &store,
        &mut model,
        &Op::Write {
            chunk: 0,
            first: 0,
            blocks: 5,
            last: 4096,
        },
        n + 1,
    )
    .unwrap();
    assert_eq!(contents(&store), model);
}

#[test]
fn a_failed_write_or_sync_poisons_for_good() {
    for operation in [Operation::Write, Operation::Sync] {
        let disk = SimDisk::new();
        let (store, _) = open(&disk, 24);
        let mut model = Model::new();
        let write = Op::Write {
            chunk: 0,
            first: 0,
            blocks: 2,
            last: 4096,
        };
        step(&store, &mut model, &write, 0).unwrap();
        disk.fail(operation, 0, EIO);
        let mut scratch = model.clone();
        let failed = step(&store, &mut scratch, &write, 1).and_then(|()| store.sync());
        assert!(matches!(failed, Err(StoreError::Poisoned { .. })), "{failed:?}");
        disk.heal();
        assert!(store.fault().is_some());
        let again = step(&store, &mut scratch, &write, 2);
        assert!(matches!(again, Err(StoreError::Poisoned { .. })));
        assert!(matches!(store.sync(), Err(StoreError::Poisoned { .. })));
        assert!(matches!(
            store.maintain(&|_| Some(std::time::Duration::ZERO)),
            Err(StoreError::Poisoned { .. })
        ));
        assert!(store.read(chunk(0), BlockIndex(0), 2).is_ok());
        drop(store);
        let reopened = ChunkStore::open(Arc::new(disk.image(Image::Kill)), options(24));
        assert!(matches!(reopened, Err(StoreError::Poisoned { .. })));
    }
}

/// The disk fails altogether: the marker can not be made durable, and is there all the same.
#[test]
fn a_poisoned_store_stays_so_when_its_marker_can_not_be_synced() {
    let disk = SimDisk::new();
    let (store, _) = open(&disk, 24);
    let mut model = Model::new();
    let write = Op::Write {
        chunk: 0,
        first: 0,
        blocks: 2,
        last: 4096,
    };
    step(&store, &mut model, &write, 0).unwrap();
    // The sync fails, and so does the next thing that needs the medium.
    disk.spoil(Mishap::FailsOnce(Operation::Sync, EIO), 0);
    disk.fail(Operation::Replace, 0, EIO);
    assert!(matches!(store.sync(), Err(StoreError::Poisoned { .. })));
    drop(store);
    disk.heal();
    let reopened = ChunkStore::open(Arc::new(disk.image(Image::Kill)), options(24));
    assert!(
        matches!(reopened, Err(StoreError::Poisoned { .. })),
        "pages may lie while the machine runs"
    );
    // Emptied, it is a new store.
    ChunkStore::wipe(&disk).unwrap();
    let (store, report) = open(&disk, 24);
    assert_eq!((report.chunks, store.usage().chunks), (0, 0));
}

#[test]
fn a_failed_read_is_an_error_and_no_more() {
    let disk = SimDisk::new();
    let (store, _) = open(&disk, 24);
    let mut model = Model::new();
    let write = Op::Write {
        chunk: 0,
        first: 0,
        blocks: 2,
        last: 4096,
    };
    step(&store, &mut model, &write, 0).unwrap();
    disk.fail(Operation::Read, 0, EIO);
    assert!(matches!(
        store.read(chunk(0), BlockIndex(0), 2),
        Err(StoreError::Io { .. })
    ));
    disk.heal();
    step(&store, &mut model, &write, 1).unwrap();
    assert_eq!(contents(&store), model);
}

#[test]
fn foreign_and_newer_stores_are_refused_with_a_reason() {
    let disk = SimDisk::new();
    drop(open(&disk, 24));
    let refusal = |disk: &SimDisk, options: StoreOptions| {
        ChunkStore::open(Arc::new(disk.clone()), options)
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    };
    let foreign = StoreOptions {
        cluster: ClusterId([8; 16]),
        ..options(24)
    };
    assert!(refusal(&disk, foreign).contains("belongs to node 3 of cluster"));
    let other = StoreOptions {
        node: StorageId(4),
        ..options(24)
    };
    assert!(refusal(&disk, other).contains("not to node 4"));
    assert!(refusal(&disk, options(3)).contains("too small"));
    disk.rot("superblock", 8, 8);
    disk.rot("superblock.copy", 8, 8);
    assert!(refusal(&disk, options(24)).contains("newer program"));
    disk.rot("superblock", 8, 15);
    disk.rot("superblock.copy", 8, 15);
    assert!(refusal(&disk, options(24)).contains("one node at a time"));
}

#[test]
fn mistakes_of_a_caller_change_nothing() {
    let (store, _) = open(&SimDisk::new(), 24);
    let mut model = Model::new();
    step(
        &store,
        &mut model,
        &Op::Write {
            chunk: 0,
            first: 0,
            blocks: 2,
            last: 4096,
        },
        0,
    )
    .unwrap();
    let write = |blocks, last_length_bytes| Mutation::Write {
        first: BlockIndex(0),
        blocks,
        last_length_bytes,
        conditions: Vec::new(),
    };
    let apply = |chain, mutation: &Mutation, payload: &'static [u8]| {
        store.apply(
            chain,
            chunk(0),
            version(9),
            origin(9),
            mutation,
            &Bytes::from_static(payload),
        )
    };
    assert!(matches!(
        apply(chain(0), &write(1, 5), b"short"),
        Err(StoreError::Invalid { .. })
    ));
    assert!(matches!(
        apply(chain(0), &write(0, 5), b""),
        Err(StoreError::Invalid { .. })
    ));
    assert!(matches!(
        apply(chain(0), &write(1, 0), b""),
        Err(StoreError::Invalid { .. })
    ));
    assert!(matches!(
        apply(chain(0), &write(1, 5000), b""),
        Err(StoreError::Invalid { .. })
    ));
    assert!(matches!(
        apply(ChainId(77), &Mutation::Remove, b""),
        Err(StoreError::WrongChain { .. })
    ));
    let finish = store.install_finish(chain(0), chunk(0), version(9), &ChunkMemory::default());
    assert!(matches!(finish, Err(StoreError::Invalid { .. })));
    assert_eq!(contents(&store), model);
}

/// The kind of call that an operation of the simulated disk stands for.
fn call(operation: Operation) -> DiskCall {
    match operation {
        Operation::Create | Operation::Replace => DiskCall::Name,
        Operation::Read => DiskCall::Read,
        Operation::Write => DiskCall::Write,
        Operation::Sync => DiskCall::Sync,
    }
}

/// Every error number of Linux at every kind of call: only what the medium says condemns a store, and whatever was synced before is
/// there afterwards.
#[test]
fn only_the_medium_condemns_a_store() {
    let write = |chunk: u8, first: u32| Op::Write {
        chunk,
        first,
        blocks: 4,
        last: 4096,
    };
    let operations = [
        Operation::Create,
        Operation::Replace,
        Operation::Read,
        Operation::Write,
        Operation::Sync,
    ];
    for errno in 1..=133 {
        for operation in operations {
            let what = format!("{operation:?} {errno}");
            let disk = SimDisk::new();
            let (store, _) = open(&disk, 24);
            let mut synced = Model::new();
            step(&store, &mut synced, &write(0, 0), 0).unwrap();
            store.sync().unwrap();
            disk.fail(operation, 0, errno);
            let mut scratch = synced.clone();
            // Enough for more segments than there are, a checkpoint and a compaction.
            for n in 1..20 {
                let done = step(&store, &mut scratch, &write(1 + (n % 3) as u8, n as u32 * 4), n);
                if done.and_then(|()| store.sync()).is_err() {
                    break;
                }
            }
            let _ = store.maintain(&|_| Some(std::time::Duration::ZERO));
            let _ = store.close();
            let _ = store.read(chunk(0), BlockIndex(0), 4);
            let is_broken = meaning(call(operation), &std::io::Error::from_raw_os_error(errno)) == Meaning::Broken;
            let counts = operation != Operation::Read;
            assert_eq!(
                store.condemned().is_some(),
                is_broken && counts,
                "{what}: {:?}",
                store.fault()
            );
            disk.heal();
            if is_broken && counts {
                continue;
            }
            assert_eq!(
                store.shortage().is_some(),
                !is_broken && errno_is_told(operation, errno),
                "{what}"
            );
            let ended = store.fault().is_some();
            drop(store);
            let image = disk.image(Image::Power);
            let (store, report) = open(if ended { &disk } else { &image }, 24);
            assert!(report.rot.is_empty(), "{what}: {:?}", report.rot);
            let read = store.read(chunk(0), BlockIndex(0), 4).unwrap();
            assert_eq!(read.runs.iter().map(|run| run.blocks).sum::<u32>(), 4, "{what}");
            step(&store, &mut synced, &write(5, 0), 50).unwrap();
            store.sync().unwrap();
        }
    }
}

/// A full disk is told by its usage, and a read that did not succeed by its error.
fn errno_is_told(operation: Operation, errno: i32) -> bool {
    let space = [28, 122, 27].contains(&errno);
    match operation {
        Operation::Create => !space,
        Operation::Write => true,
        Operation::Read | Operation::Replace | Operation::Sync => false,
    }
}

/// What had run out comes back in time, and nobody is told anything.
#[test]
fn a_shortage_that_passes_is_waited_for() {
    let disk = SimDisk::new();
    let patient = StoreOptions {
        patience: std::time::Duration::from_mins(1),
        ..options(24)
    };
    let (store, _) = ChunkStore::open(Arc::new(disk.clone()), patient).unwrap();
    disk.fail(Operation::Write, 0, ENOMEM);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut model = Model::new();
            let write = Op::Write {
                chunk: 0,
                first: 0,
                blocks: 2,
                last: 4096,
            };
            step(&store, &mut model, &write, 0).and_then(|()| store.sync())
        });
        while store.shortage() != Some(Scarce::Memory) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        disk.heal();
        writer.join().unwrap().unwrap();
    });
    assert!(store.fault().is_none());
}

/// The kernel tells once of what it could not write back, so a store that met it while it was opened is not opened again.
#[test]
fn a_sync_that_fails_while_a_store_is_opened_condemns_it() {
    for errno in [EIO, ENOMEM] {
        let disk = SimDisk::new();
        let (store, _) = open(&disk, 24);
        let mut model = Model::new();
        let write = Op::Write {
            chunk: 0,
            first: 0,
            blocks: 2,
            last: 4096,
        };
        step(&store, &mut model, &write, 0).unwrap();
        drop(store);
        disk.spoil(Mishap::FailsOnce(Operation::Sync, errno), 0);
        for _ in 0..2 {
            let opened = ChunkStore::open(Arc::new(disk.clone()), options(24));
            assert!(matches!(opened, Err(StoreError::Poisoned { .. })), "{errno}");
        }
    }
}
