//! What a store may take of its disk, as the disk is now: others write to it, empty it, or make it
//! larger.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dfs_common::Error;

use super::Node;
use super::directory::capacity_bytes;

const MEASURE_EVERY: Duration = Duration::from_secs(5);

/// Keeps the store's capacity true. `data` is its data directory.
pub(crate) async fn run(node: Arc<Node>, data: PathBuf) {
    loop {
        tokio::select! {
            () = node.stopping.cancelled() => return,
            () = tokio::time::sleep(MEASURE_EVERY) => {}
        }
        let (store, data) = (node.store.clone(), data.clone());
        let measured = tokio::task::spawn_blocking(move || {
            let capacity = capacity_bytes(&data, store.file_bytes())?;
            store.set_capacity(capacity);
            Ok::<_, Error>(())
        });
        match measured.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the capacity stays what it was"),
            Err(error) => tracing::error!(%error, "the disk was not measured: the capacity stays what it was"),
        }
    }
}
