//! `dfs dev`: a whole cluster on this machine, of the same processes that make a real one.
//!
//! ```text
//! DIR/cluster.toml, credentials/, ca/, nodes/   as `dfs init` writes them
//! DIR/dev.toml                                  where it is mounted
//! DIR/log/NAME.log                              what each process says
//! DIR/run/NAME.pid                              its number and start time, so that no other process is ever signalled
//! ```

mod down;
mod layout;
mod ports;
mod up;

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;

use self::layout::{DevCluster, MOUNT};
use crate::args::{DataArgs, DevVerb};
use crate::failure::{Code, Failure, Outcome};
use crate::output;

pub(crate) use self::layout::{CLUSTER_FILE, known_directories};

/// The kernel needs a moment to take a killed process away.
const KILL_BOUND: Duration = Duration::from_secs(5);

pub(crate) fn run(verb: &DevVerb) -> Outcome {
    match verb {
        DevVerb::Up {
            mount_point,
            data,
            meta,
            storage,
        } => up::run(mount_point, data.clone(), *meta, *storage),
        DevVerb::Ps { data, output: format } => {
            let rows = find(data)?.processes();
            output::print(*format, &rows, || layout::print_processes(&rows))
        }
        DevVerb::Kill { name, data } => kill(&find(data)?, name),
        DevVerb::Start { name, data } => up::start_one(&find(data)?, name),
        DevVerb::Down { force, data } => down::run(&find(data)?, *force),
    }
}

/// The development cluster that the arguments mean.
fn find(arguments: &DataArgs) -> Outcome<DevCluster> {
    let candidates: Vec<PathBuf> = match &arguments.data {
        Some(directory) => vec![std::path::absolute(directory)?],
        None => known_directories(),
    };
    let found = candidates
        .iter()
        .find(|directory| directory.join(CLUSTER_FILE).exists());
    match found {
        Some(directory) => DevCluster::open(directory),
        None => Err(Failure::new(format!(
            "no development cluster in {}; start one: dfs dev up MOUNTPOINT",
            candidates
                .iter()
                .map(|directory| directory.display().to_string())
                .collect::<Vec<_>>()
                .join(" or ")
        ))),
    }
}

fn kill(cluster: &DevCluster, name: &str) -> Outcome {
    cluster.check_name(name)?;
    let Some(process) = cluster.process(name).filter(|process| process.is_alive()) else {
        return Err(Failure::new(format!("{name} is not running; see: dfs dev ps")));
    };
    if !process.signal(Signal::KILL) {
        return Err(Failure::new(format!(
            "{name} (pid {}) could not be killed",
            process.pid
        )));
    }
    if !process.wait_gone(KILL_BOUND) {
        return Err(Failure::new(format!("{name} (pid {}) does not go away", process.pid)));
    }
    if name == MOUNT && cluster.is_mounted()? {
        // What is left is a mount that answers nothing.
        dfs_fuse::unmount(&cluster.mount_point()?, true)?;
    }
    Ok(Code::Ok)
}
