//! A server that failed starts anew in its own process: nothing of what it had in memory or open lives on.
//!
//! A disk that fails again and again must not have its data copied to it for ever, so this is done a few times an hour; after
//! that the server stays as it is, says so, and waits for somebody who looks at the disk.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::failure::Failure;

/// When earlier programs in this process gave up, in seconds since 1970, comma-separated.
const STARTS: &str = "DFS_STARTED_AGAIN";

/// Set if this is not the first program in this process.
const ANOTHER: &str = "DFS_STARTED_ANOTHER";

const MAX_STARTS: usize = 3;

const WITHIN_S: u64 = 3_600;

fn now_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Of `text`, those that still count.
fn recent(text: &str, now_s: u64) -> Vec<u64> {
    let times = text.split(',').filter_map(|time| time.parse().ok());
    times
        .filter(|time: &u64| now_s.saturating_sub(*time) < WITHIN_S)
        .collect()
}

fn starts() -> Vec<u64> {
    recent(&std::env::var(STARTS).unwrap_or_default(), now_s())
}

/// Whether another start may be tried.
pub(crate) fn is_allowed() -> bool {
    starts().len() < MAX_STARTS
}

/// Whether an earlier program in this process gave up.
pub(crate) fn is_another() -> bool {
    std::env::var_os(ANOTHER).is_some()
}

/// Starts this very program anew for a reason that may come back any number of times. Comes back only if that fails.
pub(crate) fn start_uncounted(reason: &str, variable: Option<(&str, &str)>) -> Failure {
    tracing::warn!(reason, "starts anew");
    execute(reason, &starts(), variable)
}

/// Starts this very program anew, with one more variable. Comes back only if that fails.
pub(crate) fn start(reason: &str, variable: Option<(&str, &str)>) -> Failure {
    tracing::warn!(reason, "starts anew");
    let mut times = starts();
    times.push(now_s());
    execute(reason, &times, variable)
}

fn execute(reason: &str, times: &[u64], variable: Option<(&str, &str)>) -> Failure {
    let times: Vec<String> = times.iter().map(u64::to_string).collect();
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    // By its name, which is what people see of it; if that is gone, the running program's own file.
    let program = std::env::current_exe().ok().filter(|path| path.exists());
    let mut command = Command::new(program.unwrap_or_else(|| "/proc/self/exe".into()));
    command
        .arg0(name)
        .args(arguments)
        .env(STARTS, times.join(","))
        .env(ANOTHER, "1");
    match variable {
        Some((name, value)) => command.env(name, value),
        None => command.env_remove("DFS_CONDEMNED"),
    };
    let error = command.exec();
    Failure::new(format!("{reason}; and it can not start anew: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_hour_counts() {
        assert!(recent("", 10_000).is_empty());
        assert_eq!(recent("100,6401,x,9000", 10_000), vec![6_401, 9_000]);
    }
}
