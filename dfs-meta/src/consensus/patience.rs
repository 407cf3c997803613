//! Disk calls that are made again while descriptors, memory or the like have run out.
//!
//! A metadata server that stops for such a reason finds no more of it when it starts again, and the others run out of it at about the
//! same time. So it waits a while. See `room` for space.

use std::io;
use std::time::{Duration, Instant};

use dfs_common::{DiskCall, Meaning, Scarce};

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// For what the log needs at once: everybody waits meanwhile, and another server may have what this one lacks.
const SHORT: Duration = Duration::from_secs(5);

/// For what nobody waits for.
const LONG: Duration = Duration::from_mins(1);

/// A call that the log can not go on without.
pub(super) fn patiently<T>(call: DiskCall, attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    within(SHORT, call, attempt)
}

/// A call of work in the background.
pub(super) fn very_patiently<T>(call: DiskCall, attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    within(LONG, call, attempt)
}

fn within<T>(patience: Duration, call: DiskCall, mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let start = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let error = match attempt() {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let meaning = error
            .raw_os_error()
            .map(|errno| dfs_common::errno::meaning(call, errno));
        match meaning {
            Some(Meaning::NotNow(scarce)) if scarce != Scarce::Space && start.elapsed() < patience => {
                if pause == FIRST_PAUSE {
                    tracing::warn!(%error, "this metadata server has run out of {scarce}: it waits");
                }
                std::thread::sleep(pause);
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            _ => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use dfs_common::errno::{EIO, EMFILE, ENOSPC};

    use super::*;

    /// How often a call that fails three times with this is made, and whether it succeeds.
    fn calls(errno: i32, patience: Duration) -> (u32, bool) {
        let mut made = 0;
        let outcome = within(patience, DiskCall::Name, || {
            made += 1;
            match made {
                1..=3 => Err(io::Error::from_raw_os_error(errno)),
                _ => Ok(()),
            }
        });
        (made, outcome.is_ok())
    }

    #[test]
    fn only_what_comes_back_by_itself_is_waited_for() {
        assert_eq!(calls(EMFILE, Duration::from_mins(1)), (4, true));
        assert_eq!(calls(EMFILE, Duration::ZERO), (1, false));
        assert_eq!(calls(EIO, Duration::from_mins(1)), (1, false));
        assert_eq!(calls(ENOSPC, Duration::from_mins(1)), (1, false));
    }
}
