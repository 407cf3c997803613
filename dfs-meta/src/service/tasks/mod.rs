//! Background tasks: each in a file of its own, all of one shape, all ended by one token.

pub(super) mod deaths;
pub(super) mod expire;
pub(super) mod purge;

use std::future::Future;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::shared::Shared;

/// Work that goes on beside requests until the server stops.
pub(super) trait Task: Send + 'static {
    const NAME: &'static str;

    /// Returns soon after `shutdown`.
    fn run(self, shared: Arc<Shared>, shutdown: CancellationToken) -> impl Future<Output = ()> + Send;
}

pub(super) fn spawn<T: Task>(tasks: &TaskTracker, task: T, shared: &Arc<Shared>, shutdown: &CancellationToken) {
    let (shared, shutdown) = (Arc::clone(shared), shutdown.clone());
    tasks.spawn(async move {
        task.run(shared, shutdown).await;
        debug!(task = T::NAME, "background task ended");
    });
}
