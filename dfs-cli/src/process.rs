//! Processes, by what /proc says about them.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

/// A process that can not be confused with another: numbers are used again, but not with the same start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// Clock ticks after boot, from `/proc/PID/stat`.
    pub(crate) started_ticks: u64,
}

impl Process {
    /// The one that has this number now.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let (started_ticks, alive) = parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
        alive.then_some(Self { pid, started_ticks })
    }

    pub(crate) fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Signals it if it is still the same process.
    pub(crate) fn signal(self, signal: Signal) -> bool {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        self.is_alive() && pid.is_some_and(|pid| rustix::process::kill_process(pid, signal).is_ok())
    }

    /// Whether it is gone within `bound`.
    pub(crate) fn wait_gone(self, bound: Duration) -> bool {
        let start = Instant::now();
        while self.is_alive() {
            if start.elapsed() > bound {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }
}

/// Start time, and whether it is more than a zombie. The command's name may hold blanks and parentheses.
///
/// The first thread is a zombie before the others are: until they have ended, files are open and ports are taken.
fn parse_stat(stat: &str) -> Option<(u64, bool)> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace();
    let state = fields.next()?;
    // state is field 3, num_threads field 20, starttime field 22.
    let threads: u32 = fields.nth(16)?.parse().ok()?;
    let started = fields.nth(1)?.parse().ok()?;
    Some((started, threads > 1 || !matches!(state, "Z" | "X")))
}

/// Becomes leader of a session of its own, so that no terminal's hang-up or Ctrl-C reaches it.
pub(crate) fn leave_session() {
    // Fails only for who leads one already.
    let _ = rustix::process::setsid();
}

/// The command's name, for people.
pub(crate) fn name_of(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).map_or_else(|_| "?".into(), |name| name.trim().to_owned())
}

fn every_pid() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Targets of a process's open files, working directory and program, without touching what they point to.
fn links_of(pid: u32) -> Vec<PathBuf> {
    let base = PathBuf::from(format!("/proc/{pid}"));
    let open = fs::read_dir(base.join("fd"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let fixed = ["cwd", "root", "exe"].map(|name| base.join(name));
    open.chain(fixed).filter_map(|link| fs::read_link(link).ok()).collect()
}

/// Who has something open under a directory: `pid 12 (bash)`.
pub(crate) fn users_of(directory: &Path) -> Vec<String> {
    let uses = |&pid: &u32| links_of(pid).iter().any(|target| target.starts_with(directory));
    every_pid()
        .filter(uses)
        .map(|pid| format!("pid {pid} ({})", name_of(pid)))
        .collect()
}

/// Who has a UDP port: `pid 12 (dfs)`.
pub(crate) fn owner_of_udp_port(port: u16) -> Option<String> {
    let inode = ["/proc/net/udp", "/proc/net/udp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .find_map(|table| inode_of_port(&table, port))?;
    let socket = PathBuf::from(format!("socket:[{inode}]"));
    every_pid()
        .find(|&pid| links_of(pid).contains(&socket))
        .map(|pid| format!("pid {pid} ({})", name_of(pid)))
}

/// `sl local_address rem_address st queues tr retrnsmt uid timeout inode ...`
fn inode_of_port(table: &str, port: u16) -> Option<u64> {
    table.lines().skip(1).find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let (_, local_port) = fields.get(1)?.rsplit_once(':')?;
        (u16::from_str_radix(local_port, 16).ok()? == port).then_some(())?;
        fields.get(9)?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_a_hostile_name() {
        let fields = "1 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 100 200";
        assert_eq!(parse_stat(&format!("7 (a) b (c) S {fields}")), Some((4711, true)));
        assert_eq!(parse_stat(&format!("7 (dfs) Z {fields}")), Some((4711, false)));
        assert_eq!(parse_stat("7 (dfs) S 1"), None);
        let ending = fields.replace(" 20 0 1 0 ", " 20 0 3 0 ");
        assert_eq!(parse_stat(&format!("7 (dfs) Z {ending}")), Some((4711, true)));
    }

    #[test]
    fn this_process_is_alive_and_its_like_is_not() {
        let me = Process::of(std::process::id()).unwrap();
        assert!(me.is_alive());
        let other = Process {
            started_ticks: me.started_ticks + 1,
            ..me
        };
        assert!(!other.is_alive());
        assert!(
            !other.signal(Signal::KILL),
            "another process with this number is never killed"
        );
        assert!(other.wait_gone(Duration::ZERO));
    }

    #[test]
    fn a_taken_port_has_an_owner() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let owner = owner_of_udp_port(socket.local_addr().unwrap().port()).unwrap();
        assert!(owner.starts_with(&format!("pid {} (", std::process::id())), "{owner}");
    }

    #[test]
    fn an_open_file_has_a_user() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().canonicalize().unwrap();
        let _file = fs::File::create(directory.join("x")).unwrap();
        let users = users_of(&directory);
        assert_eq!(users.len(), 1, "{users:?}");
    }
}
