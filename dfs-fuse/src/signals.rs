//! Whether the process behind a slow request has been killed.
//!
//! fuser 0.18 answers FUSE_INTERRUPT with ENOSYS, after which the kernel sends none: a process that waits for a request
//! could not even be killed before the request ends. So a request that takes long looks at its caller's pending signals
//! in /proc, and is answered with EINTR when one of them ends the process.

use std::time::Duration;

/// Requests faster than this are never looked at, so the common path costs one timer.
const SLOW: Duration = Duration::from_millis(300);

/// How often the caller of a slow request is looked at.
const POLL: Duration = Duration::from_millis(100);

/// Returns when the thread `thread` has a fatal signal pending; never if it has none, or is not known (0: the kernel
/// itself asks, for read-ahead).
pub(crate) async fn killed(thread: u32) {
    if thread == 0 {
        return std::future::pending().await;
    }
    let path = format!("/proc/{thread}/status");
    tokio::time::sleep(SLOW).await;
    loop {
        // procfs answers from memory; this does not block.
        match std::fs::read_to_string(&path) {
            Ok(status) if fatal_signal_pending(&status) => return,
            Ok(_) => {}
            // Gone: it can not be waiting any more.
            Err(_) => return std::future::pending().await,
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Whether `/proc/PID/status` shows a pending signal that will end the process.
pub(crate) fn fatal_signal_pending(status: &str) -> bool {
    let mask = |field: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
            .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
            .unwrap_or(0)
    };
    let pending = mask("SigPnd") | mask("ShdPnd");
    let held_back = mask("SigBlk") | mask("SigIgn") | mask("SigCgt") | HARMLESS;
    // Linux turns a fatal signal into SIGKILL of every thread; those that dump core stay as they are.
    pending & bit(libc::SIGKILL) != 0 || pending & !held_back != 0
}

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Signals whose default is not to end the process.
const HARMLESS: u64 = bit(libc::SIGCHLD)
    | bit(libc::SIGCONT)
    | bit(libc::SIGSTOP)
    | bit(libc::SIGTSTP)
    | bit(libc::SIGTTIN)
    | bit(libc::SIGTTOU)
    | bit(libc::SIGURG)
    | bit(libc::SIGWINCH);

#[cfg(test)]
mod tests {
    use super::*;

    fn status(thread: u64, shared: u64, blocked: u64, ignored: u64, caught: u64) -> String {
        format!(
            "Name:\tdd\nSigQ:\t1/2\nSigPnd:\t{thread:016x}\nShdPnd:\t{shared:016x}\nSigBlk:\t{blocked:016x}\n\
             SigIgn:\t{ignored:016x}\nSigCgt:\t{caught:016x}\n"
        )
    }

    #[test]
    fn only_signals_that_end_the_process_count() {
        let (kill, term, child) = (bit(libc::SIGKILL), bit(libc::SIGTERM), bit(libc::SIGCHLD));
        assert!(!fatal_signal_pending(&status(0, 0, 0, 0, 0)));
        assert!(fatal_signal_pending(&status(kill, 0, 0, 0, 0)));
        assert!(fatal_signal_pending(&status(0, kill, u64::MAX, u64::MAX, u64::MAX)));
        assert!(fatal_signal_pending(&status(0, term, 0, 0, 0)));
        assert!(!fatal_signal_pending(&status(0, term, term, 0, 0)));
        assert!(!fatal_signal_pending(&status(0, term, 0, term, 0)));
        assert!(!fatal_signal_pending(&status(0, term, 0, 0, term)));
        assert!(!fatal_signal_pending(&status(child, child, 0, 0, 0)));
        assert!(!fatal_signal_pending("nonsense"));
    }

    #[test]
    fn this_process_is_not_being_killed() {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        assert!(status.contains("SigPnd:"));
        assert!(!fatal_signal_pending(&status));
    }
}
