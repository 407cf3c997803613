//! Faults done to a cluster, and undone. What is undone is undone when dropped, too.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use super::schedule::{Fault, Kind};
use crate::host_cluster::HostCluster;
use crate::hosts::address;
use crate::process::run;

/// For strace to take hold of every thread.
const ATTACH: Duration = Duration::from_millis(150);

/// Where a full disk is met: what is written to has its space already.
const TAKES_SPACE: &str = "fallocate";

/// A tracer that changes what system calls return. Killed when dropped, which lets the process go.
#[derive(Debug)]
pub struct Tracer {
    child: Child,
    log: PathBuf,
}

impl Tracer {
    fn attach(cluster: &HostCluster, pid: u32, calls: &str, what: &str) -> Self {
        let log = cluster.scratch().join(format!("strace-{pid}.trace"));
        let child = Command::new("strace")
            .args(["-f", "-qq", "-o"])
            .arg(&log)
            .args([
                "-p",
                &pid.to_string(),
                "-e",
                &format!("trace={calls}"),
                "-e",
                "signal=none",
            ])
            .args(["-e", &format!("inject={calls}:{what}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("strace is installed");
        thread::sleep(ATTACH);
        Self { child, log }
    }

    /// Lets go; how many calls were changed.
    fn detach(mut self) -> u64 {
        self.stop();
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        (log.matches("INJECTED").count() + log.matches("DELAYED").count()) as u64
    }

    fn stop(&mut self) {
        // SIGKILL would do, but a process whose tracer dies within a system call's stop may be left with it.
        let pid = self.child.id().to_string();
        let _ = run(Command::new("kill").args(["-TERM", &pid]));
        for _ in 0..100 {
            if self.child.try_wait().is_ok_and(|status| status.is_some()) {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.stop();
        }
    }
}

/// A fault that is under way.
#[derive(Debug)]
pub struct Active {
    pub fault: Fault,
    tracers: Vec<Tracer>,
}

impl Active {
    pub fn begin(cluster: &mut HostCluster, fault: &Fault) -> Self {
        let mut tracers = Vec::new();
        let first = fault.victims[0];
        let drop_all = || vec!["counter drop".to_owned()];
        let rules = |cluster: &HostCluster, victim: usize, incoming: Vec<String>, outgoing: Vec<String>| {
            cluster
                .hosts
                .set_rules(cluster.servers[victim].host, &incoming, &outgoing);
        };
        match fault.kind {
            Kind::Kill | Kind::KillAll => fault.victims.iter().for_each(|victim| cluster.signal(*victim, "KILL")),
            Kind::Pause => cluster.signal(first, "STOP"),
            Kind::Cut => rules(cluster, first, drop_all(), drop_all()),
            Kind::CutIncoming => rules(cluster, first, drop_all(), Vec::new()),
            Kind::CutOutgoing => rules(cluster, first, Vec::new(), drop_all()),
            Kind::CutBetween => {
                let other = address(cluster.servers[fault.victims[1]].host);
                let incoming = vec![format!("ip saddr {other} counter drop")];
                let outgoing = vec![format!("ip daddr {other} counter drop")];
                rules(cluster, first, incoming, outgoing);
            }
            Kind::Loss => {
                let some = format!("numgen random mod 100 < {} counter drop", fault.amount);
                rules(cluster, first, vec![some], Vec::new());
            }
            Kind::Power | Kind::PowerAll => cluster.cut_power(&fault.victims),
            Kind::SyncError => tracers.extend(trace(cluster, first, "fdatasync,fsync", "error=EIO:when=2")),
            Kind::ReadError => tracers.extend(trace(cluster, first, "pread64", "error=EIO:when=1+3")),
            Kind::Full => tracers.extend(trace(cluster, first, TAKES_SPACE, "error=ENOSPC")),
            Kind::SlowDisk => {
                let delay = format!("delay_enter={}", fault.amount * 1000);
                tracers.extend(trace(cluster, first, "fdatasync,fsync", &delay));
            }
        }
        Self {
            fault: fault.clone(),
            tracers,
        }
    }

    /// Undoes it. Returns how often it struck: packets dropped, calls changed, or processes hit.
    pub fn end(mut self, cluster: &mut HostCluster) -> u64 {
        let first = self.fault.victims[0];
        match self.fault.kind {
            Kind::Kill | Kind::KillAll | Kind::Power | Kind::PowerAll => {
                for victim in &self.fault.victims {
                    cluster.kill(*victim);
                    cluster.start(*victim);
                }
                self.fault.victims.len() as u64
            }
            Kind::Pause => {
                cluster.signal(first, "CONT");
                1
            }
            Kind::Cut | Kind::CutIncoming | Kind::CutOutgoing | Kind::CutBetween | Kind::Loss => {
                let host = cluster.servers[first].host;
                let struck = cluster.hosts.counted(host);
                cluster.hosts.clear_rules(host);
                struck
            }
            Kind::SyncError | Kind::ReadError | Kind::Full | Kind::SlowDisk => {
                self.tracers.drain(..).map(Tracer::detach).sum()
            }
        }
    }
}

/// What strace(1) calls an injection, in all calls of this kind of one server.
pub fn trace(cluster: &HostCluster, victim: usize, calls: &str, what: &str) -> Option<Tracer> {
    let pid = cluster.servers[victim].pid()?;
    Some(Tracer::attach(cluster, pid, calls, what))
}
