//! Processes of a database, and everything that they started, killed without mercy and by number.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, ChildStdin, ChildStdout, Command};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// For a process to go after SIGKILL or a request to stop.
const GONE_WITHIN: Duration = Duration::from_mins(1);

#[derive(Debug)]
pub struct Process {
    child: Child,
    /// Was killed or has ended, and is only to be waited for.
    is_killed: bool,
}

impl Process {
    /// # Errors
    /// It does not start.
    pub fn start(command: &mut Command) -> Result<Self, String> {
        let child = command.spawn().map_err(|e| format!("{command:?}: {e}"))?;
        Ok(Self {
            child,
            is_killed: false,
        })
    }

    /// What it reads and what it prints, if they are pipes and were not taken yet.
    pub fn pipes(&mut self) -> Option<(ChildStdin, ChildStdout)> {
        Some((self.child.stdin.take()?, self.child.stdout.take()?))
    }

    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    #[must_use]
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_some())
    }

    /// SIGKILL to it and its offspring. Does not wait: who is in the middle of a system call at a mount goes only with that mount.
    pub fn kill(&mut self) {
        if self.is_killed || self.has_ended() {
            return;
        }
        self.is_killed = true;
        // Stopped first, so that it starts nobody meanwhile.
        send(self.child.id(), Signal::STOP);
        for pid in family(self.child.id(), &parents()) {
            send(pid, Signal::KILL);
        }
    }

    /// Waits until it is gone.
    ///
    /// # Errors
    /// It is still there.
    pub fn reap(&mut self) -> Result<(), String> {
        let began = Instant::now();
        while !self.has_ended() {
            if began.elapsed() > GONE_WITHIN {
                return Err(format!("process {} does not go", self.child.id()));
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Asks it to end, and waits.
    ///
    /// # Errors
    /// It does not.
    pub fn stop(&mut self, how: Signal) -> Result<(), String> {
        if !self.has_ended() {
            send(self.child.id(), how);
        }
        self.reap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        let _ = self.reap();
    }
}

/// It may be gone.
fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// Every process and its parent.
fn parents() -> BTreeMap<u32, u32> {
    let of = |pid: u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name of the program stands in parentheses, and may hold anything.
        let parent = text.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        Some((pid, parent))
    };
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| of(entry.file_name().to_str()?.parse().ok()?))
        .collect()
}

/// A process and all that come from it, itself first.
fn family(root: u32, parents: &BTreeMap<u32, u32>) -> Vec<u32> {
    let mut family = vec![root];
    let mut at = 0;
    while at < family.len() {
        let parent = family[at];
        family.extend(parents.iter().filter(|(_, of)| **of == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    family
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_is_everybody_below_and_nobody_else() {
        let parents = BTreeMap::from([(2, 1), (3, 1), (4, 3), (5, 4), (6, 2)]);
        assert_eq!(family(3, &parents), vec![3, 4, 5]);
        assert_eq!(family(6, &parents), vec![6]);
    }
}
