//! What the log does when its disk says no: a medium that is broken condemns the store, and what has only run out is waited for.

use std::io;
use std::time::{Duration, Instant};

use dfs_common::{DiskCall, Meaning, Scarce};

use super::error::StoreError;
use super::log::{Log, POISON_FILE, State};
use crate::disk::{Disk, meaning};

/// Before a write is made again for which something had run out. Each pause is twice as long as the
/// one before it.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// What has run out counts as short for so long after it was last missed.
const SHORT_FOR: Duration = Duration::from_secs(10);

/// Why a log takes nothing more.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) reason: String,
    /// Nobody knows what is on the medium. Otherwise it is as it was, and opening it anew is enough.
    pub(super) condemned: bool,
}

impl Fault {
    pub(super) fn error(&self) -> StoreError {
        let reason = self.reason.clone();
        if self.condemned {
            StoreError::Poisoned { reason }
        } else {
            StoreError::Stopped { reason }
        }
    }
}

/// What ran out last, and when.
#[derive(Debug, Default)]
pub(super) struct Shortage(Option<(Scarce, Instant)>);

impl Shortage {
    pub(super) fn now(&self) -> Option<Scarce> {
        self.0
            .filter(|(_, since)| since.elapsed() < SHORT_FOR)
            .map(|(scarce, _)| scarce)
    }
}

/// The next start must know too: pages that never reached the medium may look fine from memory.
fn mark(disk: &dyn Disk, reason: &str) {
    let reason = reason.as_bytes();
    let marked = disk
        .replace(POISON_FILE, &[reason])
        // A disk whose syncs fail is what this is for. Not durable is good enough: pages that lie live as long as the memory that holds
        // this file, and after a power cut there is only what the medium has.
        .or_else(|_| disk.leave(POISON_FILE, reason));
    if let Err(error) = marked {
        tracing::error!(%error, "the store's fault can not be recorded on its own disk");
    }
}

/// What an error means that a store met while it was being opened: a write or sync that the medium
/// failed condemns it, because the kernel would say nothing of what it lost if the store were
/// opened once more.
pub(super) fn opening_failed(disk: &dyn Disk, error: StoreError) -> StoreError {
    let StoreError::Unwritten { doing, call, source } = error else {
        return error;
    };
    match meaning(call, &source) {
        Meaning::NotNow(scarce) => StoreError::NotNow { doing, scarce, source },
        Meaning::Broken => {
            let reason = format!("{doing}: {source}");
            mark(disk, &reason);
            StoreError::Poisoned { reason }
        }
    }
}

/// On a worker of a runtime the others' work goes on elsewhere.
fn sleep(pause: Duration) {
    let is_worker = tokio::runtime::Handle::try_current()
        .is_ok_and(|handle| handle.runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread);
    if is_worker {
        tokio::task::block_in_place(|| std::thread::sleep(pause));
    } else {
        std::thread::sleep(pause);
    }
}

impl Log {
    /// Takes nothing more from here on. The first reason is the one that counts.
    pub(super) fn poison(&self, doing: &str, error: &io::Error) -> StoreError {
        let fault = self.poison_locked(&mut self.lock(), doing, error);
        self.mark_poisoned(&fault);
        fault.error()
    }

    pub(super) fn poison_locked(&self, state: &mut State, doing: &str, error: &io::Error) -> Fault {
        let fault = Fault {
            reason: format!("{doing}: {error}"),
            condemned: true,
        };
        self.end(state, fault)
    }

    fn end(&self, state: &mut State, fault: Fault) -> Fault {
        let fault = match &state.fault {
            // What is broken counts more than what had run out before.
            Some(first) if first.condemned || !fault.condemned => first.clone(),
            _ => fault,
        };
        state.fault = Some(fault.clone());
        self.changed.notify_all();
        fault
    }

    pub(super) fn mark_poisoned(&self, fault: &Fault) {
        if fault.condemned {
            mark(self.disk(), &fault.reason);
        }
    }

    /// Something had run out, and the disk is as it was.
    pub(super) fn note_shortage(&self, scarce: Scarce, doing: &str, error: &io::Error) {
        let mut shortage = self.shortage.lock();
        if shortage.now() != Some(scarce) {
            tracing::warn!(%error, "{doing}: this node has run out of {scarce}");
        }
        shortage.0 = Some((scarce, Instant::now()));
    }

    /// Makes a write that has to succeed. What has run out is waited for, with everybody who comes after this; if it does not come
    /// back, the log ends, and what is on the disk is whole. An error that says that the medium is broken condemns the store.
    pub(super) fn persist(&self, doing: &str, mut attempt: impl FnMut() -> io::Result<()>) -> Result<(), StoreError> {
        let start = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let Err(error) = attempt() else {
                return Ok(());
            };
            let Meaning::NotNow(scarce) = meaning(DiskCall::Write, &error) else {
                return Err(self.poison(doing, &error));
            };
            self.note_shortage(scarce, doing, &error);
            if start.elapsed() >= self.patience {
                let reason = format!("{doing}: {error}: this node has run out of {scarce}");
                let fault = Fault {
                    reason,
                    condemned: false,
                };
                return Err(self.end(&mut self.lock(), fault).error());
            }
            sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}
