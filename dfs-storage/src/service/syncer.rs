//! The thread that makes the store durable: everybody who asked while one sync ran shares the next.

use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dfs_common::{Error, ErrorCode, Result};

use super::signs::Meter;
use crate::store::ChunkStore;

/// A sync that takes this long is worth a line in the log.
const SLOW: Duration = Duration::from_millis(200);

/// Nobody asks for a sync, but so much is written: whoever asks next would wait for all of it.
const BACKLOG_BYTES: u64 = 4 << 20;

/// How often to look for that.
const LOOK: Duration = Duration::from_millis(20);

/// Called on the sync thread with the outcome.
type Done = Box<dyn FnOnce(Result<()>) + Send>;

#[derive(Debug)]
pub(crate) struct Syncer {
    /// Unbounded in itself; callers are bounded by the mutations and requests that a chain admits.
    asked: mpsc::Sender<Done>,
}

impl Syncer {
    pub(crate) fn start(store: ChunkStore, meter: Arc<Meter>) -> Result<(Self, JoinHandle<()>)> {
        let (asked, requests) = mpsc::channel::<Done>();
        let thread = std::thread::Builder::new()
            .name("dfs-sync".into())
            .spawn(move || {
                loop {
                    let mut waiting = match requests.recv_timeout(LOOK) {
                        Ok(first) => vec![first],
                        Err(RecvTimeoutError::Timeout) => {
                            if store.unsynced_bytes() >= BACKLOG_BYTES && store.fault().is_none() {
                                // A failure is the store's fault from then on; whoever asks is told.
                                let _ = meter.watch(|| store.sync());
                            }
                            continue;
                        }
                        Err(RecvTimeoutError::Disconnected) => break,
                    };
                    waiting.extend(requests.try_iter());
                    let begun = Instant::now();
                    let outcome = meter.measure(|| store.sync()).map_err(Error::from);
                    let took = begun.elapsed();
                    if took >= SLOW {
                        tracing::warn!(
                            took_ms = took.as_millis() as u64,
                            "the disk was slow to sync the store: writes waited for it"
                        );
                    }
                    for done in waiting {
                        done(outcome.clone());
                    }
                }
            })
            .map_err(|e| Error::new(ErrorCode::Internal, format!("no thread for syncing: {e}")))?;
        Ok((Self { asked }, thread))
    }

    pub(crate) fn sync(&self, done: impl FnOnce(Result<()>) + Send + 'static) {
        if let Err(mpsc::SendError(done)) = self.asked.send(Box::new(done)) {
            done(Err(Error::new(ErrorCode::Poisoned, "the sync thread is gone")));
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use dfs_common::units::{BLOCK_SIZE_BYTES, SEAL_SIZE_BYTES};
    use dfs_common::wire::storage::{Mutation, Origin};
    use dfs_common::{
        BlockIndex, ChainId, ChunkId, ChunkIndex, ChunkVersion, ClusterId, Epoch, HybridClock, InodeId, Level,
        RequestId, StorageId,
    };

    use super::*;
    use crate::disk::SimDisk;
    use crate::disk::sim::Image;
    use crate::store::StoreOptions;

    #[test]
    fn what_nobody_asks_to_sync_does_not_pile_up() {
        let disk = SimDisk::new();
        let options = StoreOptions::new(ClusterId([7; 16]), StorageId(3), 1 << 30);
        let (store, _) = ChunkStore::open(Arc::new(disk.clone()), options.clone()).unwrap();
        let meter = Arc::<Meter>::default();
        let (syncer, thread) = Syncer::start(store.clone(), Arc::clone(&meter)).unwrap();
        let origin = Origin {
            id: RequestId::SYSTEM,
            level: Level::Quorum,
            stamp: HybridClock::default(),
        };
        let chunk = ChunkId::new(InodeId(7), ChunkIndex(0));
        let write = |counter: u64| {
            let mutation = Mutation::Write {
                first: BlockIndex(0),
                blocks: 64,
                last_length_bytes: BLOCK_SIZE_BYTES as u32,
                conditions: Vec::new(),
            };
            let payload = Bytes::from(vec![1; 64 * (BLOCK_SIZE_BYTES + SEAL_SIZE_BYTES)]);
            let version = ChunkVersion {
                epoch: Epoch(1),
                counter,
            };
            store
                .apply(ChainId(1), chunk, version, origin, &mutation, &payload)
                .unwrap();
        };
        write(1);
        std::thread::sleep(LOOK * 10);
        assert!(store.unsynced_bytes() > 0, "a little may wait for who asks");
        for counter in 2..=20 {
            write(counter);
        }
        let end = Instant::now() + Duration::from_secs(20);
        while store.unsynced_bytes() >= BACKLOG_BYTES {
            assert!(Instant::now() < end, "{}", store.unsynced_bytes());
            std::thread::sleep(LOOK);
        }
        drop(syncer);
        thread.join().unwrap();
        assert_eq!(meter.pace().done, 0, "peers sync less at a time: that is no measure");
        let (again, _) = ChunkStore::open(Arc::new(disk.image(Image::Power)), options).unwrap();
        // Of those of the last 4 MiB nobody said anything.
        let newest = 20 - BACKLOG_BYTES / (64 * (BLOCK_SIZE_BYTES + SEAL_SIZE_BYTES) as u64);
        assert!(again.version(chunk).counter >= newest, "{}", again.version(chunk));
    }
}
