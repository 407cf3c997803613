//! `dfs dev down`: unmount, so that everything is written, then stop the servers.

use std::time::Duration;

use dfs_fuse::MountError;
use rustix::process::Signal;

use super::layout::{DevCluster, MOUNT};
use crate::failure::{Code, Failure, Outcome};
use crate::mounting;
use crate::process::Process;

/// For the mount to hand over what is unwritten: the client's own deadline, and a little.
const DRAIN_BOUND: Duration = Duration::from_secs(35);

/// The same when it was told not to insist.
const FORCED_DRAIN_BOUND: Duration = Duration::from_secs(5);

/// For the servers to close their stores.
const STOP_BOUND: Duration = Duration::from_secs(10);

/// For the kernel to take a killed process away.
const KILL_BOUND: Duration = Duration::from_secs(5);

pub(super) fn run(cluster: &DevCluster, force: bool) -> Outcome {
    let running = cluster.running();
    let mount = running
        .iter()
        .find(|(name, _)| name == MOUNT)
        .map(|(_, process)| *process);
    // Nobody can use a mount whose process is gone, so it may as well be detached.
    unmount(cluster, force || mount.is_none())?;
    if let Some(mount) = mount {
        let bound = if force { FORCED_DRAIN_BOUND } else { DRAIN_BOUND };
        // It ends by itself, once everything is written.
        wait_all(&[(MOUNT.to_owned(), mount)], bound)?;
    }
    let servers: Vec<_> = running.into_iter().filter(|(name, _)| name != MOUNT).collect();
    for (_, process) in &servers {
        process.signal(Signal::TERM);
    }
    wait_all(&servers, STOP_BOUND)?;
    for name in cluster.names() {
        cluster.forget_process(&name);
    }
    Ok(Code::Ok)
}

fn unmount(cluster: &DevCluster, force: bool) -> Outcome<()> {
    // Never mounted, or unmounted by hand.
    let Ok(mount_point) = cluster.mount_point() else {
        return Ok(());
    };
    if !cluster.is_mounted()? {
        return Ok(());
    }
    match dfs_fuse::unmount(&mount_point, force) {
        Ok(()) | Err(MountError::NotMounted(_)) => Ok(()),
        Err(MountError::InUse(path)) => Err(mounting::in_use(&path)),
        Err(other) => Err(other.into()),
    }
}

/// Waits for all to end; SIGKILL for who is still there after `bound`.
fn wait_all(processes: &[(String, Process)], bound: Duration) -> Outcome<()> {
    for (name, process) in processes {
        if process.wait_gone(bound) {
            continue;
        }
        tracing::warn!(name, pid = process.pid, "does not stop by itself and is killed");
        process.signal(Signal::KILL);
        if !process.wait_gone(KILL_BOUND) {
            return Err(Failure::new(format!("{name} (pid {}) does not go away", process.pid)));
        }
    }
    Ok(())
}
