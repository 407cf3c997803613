//! How fast the block log is on this machine: `cargo run --release -p dfs-storage --example block_log -- DIRECTORY`.
#![allow(clippy::print_stdout)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use dfs_common::wire::storage::{Mutation, Origin};
use dfs_common::{
    BlockIndex, ChainId, ChunkId, ChunkIndex, ChunkVersion, ClusterId, Epoch, HybridClock, InodeId, Level, RequestId,
    StorageId,
};
use dfs_storage::disk::RealDisk;
use dfs_storage::store::{ChunkStore, StoreError, StoreOptions};

fn write(store: &ChunkStore, n: u64, blocks: u32, payload: &Bytes) -> Result<(), StoreError> {
    let chunk = ChunkId::new(InodeId(1 + n % 512), ChunkIndex(0));
    let version = ChunkVersion {
        epoch: Epoch(1),
        counter: n + 1,
    };
    let mutation = Mutation::Write {
        first: BlockIndex((n / 512) as u32 % 4 * blocks),
        blocks,
        last_length_bytes: 4096,
        conditions: Vec::new(),
    };
    let origin = Origin {
        id: RequestId::SYSTEM,
        level: Level::Quorum,
        cut: dfs_common::CutEpoch::NONE,
        stamp: HybridClock::default(),
    };
    store.apply(ChainId(1), chunk, version, origin, &mutation, payload)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = PathBuf::from(std::env::args().nth(1).ok_or("name a directory that may be filled")?);
    let disk = Arc::new(RealDisk::open(&directory)?);
    let options = StoreOptions::new(ClusterId([1; 16]), StorageId(1), 8 << 30);
    let (store, _) = ChunkStore::open(disk.clone(), options.clone())?;
    let large = Bytes::from(vec![0x5a; 256 * (4096 + 28)]);
    let small = Bytes::from(vec![0x5a; 4096 + 28]);

    let start = Instant::now();
    for n in 0..1024 {
        write(&store, n, 256, &large)?;
    }
    println!(
        "1 MiB apply         {:6.0} MiB/s",
        1024.0 / start.elapsed().as_secs_f64()
    );
    let start = Instant::now();
    store.sync()?;
    println!("sync of 1 GiB       {:6.2} s", start.elapsed().as_secs_f64());

    let start = Instant::now();
    for n in 0..50_000 {
        write(&store, 10_000 + n, 1, &small)?;
    }
    println!(
        "4 KiB apply         {:6.2} us",
        start.elapsed().as_secs_f64() * 1e6 / 50_000.0
    );
    store.sync()?;

    let start = Instant::now();
    for n in 0..3000 {
        write(&store, 100_000 + n, 1, &small)?;
        store.sync()?;
    }
    println!("4 KiB apply + sync  {:6.0} /s", 3000.0 / start.elapsed().as_secs_f64());

    let start = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..16)
            .map(|thread| {
                let (store, small) = (&store, &small);
                scope.spawn(move || {
                    (0..1000).try_for_each(|n| {
                        write(store, 200_000 + thread * 1000 + n, 1, small)?;
                        store.sync()
                    })
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .map_err(|_| "a writer died")?
                .map_err(|_| "a write failed")
        })
    })?;
    println!(
        "the same, 16 threads{:6.0} /s",
        16_000.0 / start.elapsed().as_secs_f64()
    );

    let start = Instant::now();
    for n in 0..50_000_u64 {
        store.read(
            ChunkId::new(InodeId(1 + n % 512), ChunkIndex(0)),
            BlockIndex((n % 256) as u32),
            1,
        )?;
    }
    println!(
        "4 KiB read          {:6.2} us",
        start.elapsed().as_secs_f64() * 1e6 / 50_000.0
    );
    let start = Instant::now();
    for n in 0..512 {
        store.read(ChunkId::new(InodeId(1 + n), ChunkIndex(0)), BlockIndex(256), 256)?;
    }
    println!(
        "1 MiB read          {:6.0} MiB/s",
        512.0 / start.elapsed().as_secs_f64()
    );

    let start = Instant::now();
    store.close()?;
    println!("checkpoint          {:6.3} s", start.elapsed().as_secs_f64());
    drop(store);
    let start = Instant::now();
    let (store, report) = ChunkStore::open(disk, options)?;
    println!(
        "start               {:6.3} s, {} records",
        start.elapsed().as_secs_f64(),
        report.records
    );
    drop(store);
    std::fs::remove_dir_all(&directory)?;
    Ok(())
}
