//! The thread that makes the store durable: everybody who asked while one sync ran shares the next.

use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dfs_common::{Error, ErrorCode, Result};

use super::signs::Meter;
use crate::store::ChunkStore;

/// A sync that takes this long is worth a line in the log.
const SLOW: Duration = Duration::from_millis(200);

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
                while let Ok(first) = requests.recv() {
                    let mut waiting = vec![first];
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
