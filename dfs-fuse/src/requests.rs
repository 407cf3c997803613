//! Running requests beside each other: each is a task of the runtime, their number is bounded, and each is answered.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dfs_common::{InodeId, Result};
use fuser::{Errno, Request};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::convert::errno;
use crate::recent::Recent;
use crate::signals;

/// Requests in progress. A write carries up to 1 MiB, so this bounds memory; beyond it requests wait in the kernel,
/// where their processes can still be killed. Every request ends within the client's deadline, so slots come back.
const REQUESTS_IN_PROGRESS: usize = 512;

#[derive(Debug)]
pub(crate) struct Requests {
    runtime: Handle,
    slots: Arc<Semaphore>,
    recent: Arc<Recent>,
}

/// What a log line says about a request: never a name or content.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject {
    operation: &'static str,
    inode: InodeId,
    thread: u32,
    changes: bool,
}

impl Subject {
    /// A request that changes nothing.
    pub(crate) fn reading(request: &Request, operation: &'static str, inode: InodeId) -> Self {
        Self {
            operation,
            inode,
            thread: request.pid(),
            changes: false,
        }
    }

    pub(crate) fn changing(request: &Request, operation: &'static str, inode: InodeId) -> Self {
        Self {
            changes: true,
            ..Self::reading(request, operation, inode)
        }
    }

    pub(crate) const fn thread(&self) -> u32 {
        self.thread
    }
}

impl Requests {
    pub(crate) fn new(runtime: Handle) -> Self {
        Self {
            runtime,
            slots: Arc::new(Semaphore::new(REQUESTS_IN_PROGRESS)),
            recent: Arc::default(),
        }
    }

    pub(crate) fn recent(&self) -> &Arc<Recent> {
        &self.recent
    }

    /// Runs `work` and hands its result to `answer`, exactly once.
    pub(crate) fn serve<T, W, A>(&self, subject: Subject, work: W, answer: A)
    where
        T: Send + 'static,
        W: Future<Output = Result<T>> + Send + 'static,
        A: FnOnce(std::result::Result<T, Errno>) + Send + 'static,
    {
        self.serve_with_undo(subject, work, answer, |_| std::future::ready(()));
    }

    /// The same for work that leaves something behind: `undo` takes it back if it comes after the caller was killed.
    pub(crate) fn serve_with_undo<T, W, A, U, F>(&self, subject: Subject, work: W, answer: A, undo: U)
    where
        T: Send + 'static,
        W: Future<Output = Result<T>> + Send + 'static,
        A: FnOnce(std::result::Result<T, Errno>) + Send + 'static,
        U: FnOnce(T) -> F + Send + 'static,
        F: Future<Output = ()> + Send,
    {
        let Some(slot) = self.slot() else {
            return answer(Err(Errno::EIO));
        };
        self.recent.take(subject.thread, None);
        let recent = subject.changes.then(|| Arc::clone(&self.recent));
        if let Some(recent) = &recent {
            let _ = recent.changed();
        }
        let answer = move |result| {
            if let Some(recent) = recent {
                let _ = recent.changed();
            }
            answer(result);
        };
        self.runtime.spawn(async move {
            let _slot = slot;
            let begun = Instant::now();
            let mut work = pin!(work);
            tokio::select! {
                biased;
                result = &mut work => {
                    slow(subject, begun.elapsed());
                    answer(result.map_err(|error| report(subject, &error)));
                }
                () = signals::killed(subject.thread) => {
                    answer(Err(Errno::EINTR));
                    // The client's own state stays whole when a call runs to its end, which is bounded.
                    if let Ok(late) = work.await {
                        undo(late).await;
                    }
                }
            }
        });
    }

    /// Answers what needed no waiting, on the FUSE thread.
    pub(crate) fn answered<T>(
        &self,
        subject: Subject,
        result: Result<T>,
        answer: impl FnOnce(std::result::Result<T, Errno>),
    ) {
        self.recent.take(subject.thread, None);
        answer(result.map_err(|error| report(subject, &error)));
    }

    /// Runs what may start tasks.
    pub(crate) fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        let _runtime = self.runtime.enter();
        work()
    }

    /// Waits on the FUSE thread, not on the runtime: that is what keeps further requests in the kernel.
    fn slot(&self) -> Option<OwnedSemaphorePermit> {
        let slots = Arc::clone(&self.slots);
        match Arc::clone(&slots).try_acquire_owned() {
            Ok(slot) => Some(slot),
            Err(_) => self.runtime.block_on(slots.acquire_owned()).ok(),
        }
    }
}

/// Whoever waited that long will ask why.
const SLOW: Duration = Duration::from_secs(1);

fn slow(subject: Subject, took: Duration) {
    let Subject {
        operation,
        inode,
        thread,
        ..
    } = subject;
    if took >= SLOW {
        let took_ms = took.as_millis() as u64;
        tracing::warn!(operation, %inode, thread, took_ms, "slow request");
    }
}

/// The errno that the kernel gets. What an application can not explain by itself is logged with its reason.
fn report(subject: Subject, error: &dfs_common::Error) -> Errno {
    let Subject {
        operation,
        inode,
        thread,
        ..
    } = subject;
    let code = error.code;
    if matches!(error.errno(), libc::EIO | libc::ETIMEDOUT | libc::EPROTO | libc::EAGAIN) {
        tracing::warn!(operation, %inode, thread, ?code, "request failed: {}", error.detail);
    } else {
        tracing::trace!(operation, %inode, thread, ?code, "request refused");
    }
    errno(error)
}
