//! `dfs meta` and `dfs storage`: one server in the foreground, until SIGTERM or SIGINT.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use dfs_common::{ErrorCode, NodeName, Role};
use dfs_crypto::certificate::Credentials;
use dfs_meta::room::Room;
use dfs_meta::service::{MetaOptions, MetaServer};
use dfs_storage::service::{Ended, StorageOptions, StorageServer};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::args::ServeArgs;
use crate::config::{self, Loaded};
use crate::failure::{Code, Failure, Outcome};
use crate::{again, lateness, process, program};

pub(crate) fn meta(arguments: &ServeArgs) -> Outcome {
    let loaded = prepare(arguments, Role::Meta)?;
    let node = config::node_of(&loaded)?;
    let options = MetaOptions {
        config: loaded.config.clone(),
        credentials: loaded.config.credentials.clone(),
        data: node.data.clone(),
        listen: arguments.listen.unwrap_or(node.listen),
        snapshot_every: node.snapshot_every,
    };
    let ended = program::block_on(async {
        lateness::watch();
        let descriptors = program::raise_descriptors();
        let shutdown = on_signal()?;
        let data = options.data.clone();
        if !wait_for_room(&data, &shutdown).await {
            return Ok(Ok(()));
        }
        let (ended, rest) = match MetaServer::start(options).await {
            Ok(server) => {
                program::tell_descriptors(descriptors);
                (server.run_until(shutdown.clone()).await, Duration::ZERO)
            }
            Err(error) if error.code == ErrorCode::Internal && again::is_another() => {
                let error = dfs_common::Error::new(ErrorCode::Poisoned, error.detail);
                (Err(error), DISK_RESTS)
            }
            Err(error) => return Err(error.into()),
        };
        // A disk that fails or lacks something may do so for a while, and must not cost the few starts that there are.
        if let Err(error) = &ended
            && error.code == ErrorCode::Poisoned
            && (again::is_allowed() || lacked_space(error))
            && !wait_for_disk(error, &data, rest, &shutdown).await
        {
            return Ok(Ok(()));
        }
        Ok(ended)
    })?;
    match ended {
        Ok(()) => Ok(Code::Ok),
        // What its disk did to it is found at the start, and cured from the others.
        Err(error) if error.code == ErrorCode::Poisoned && lacked_space(&error) => {
            Err(again::start_uncounted(&error.detail, None))
        }
        Err(error) if error.code == ErrorCode::Poisoned && again::is_allowed() => {
            Err(again::start(&error.detail, None))
        }
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn storage(arguments: &ServeArgs) -> Outcome {
    let loaded = prepare(arguments, Role::Storage)?;
    let node = config::node_of(&loaded)?;
    let options = StorageOptions {
        config: loaded.config.clone(),
        credentials: loaded.config.credentials.clone(),
        data: node.data.clone(),
        listen: arguments.listen.unwrap_or(node.listen),
        advertise: node.advertise,
        capacity_bytes: node.capacity_bytes,
        condemned: std::env::var(CONDEMNED).ok(),
        ends_on_fault: again::is_allowed(),
        scrub_bytes_per_s: node.scrub_mib_per_s.map(|mib| mib.saturating_mul(1 << 20)),
    };
    let ended = program::block_on(async {
        lateness::watch();
        let descriptors = program::raise_descriptors();
        let shutdown = on_signal()?;
        let (condemned, may_start_again) = (options.condemned.clone(), options.ends_on_fault);
        let data = options.data.clone();
        let server = match StorageServer::start(options, &shutdown).await {
            Ok(server) => server,
            // Opening its store condemned it.
            Err(error) if error.code == ErrorCode::Poisoned && may_start_again && !shutdown.is_cancelled() => {
                return Ok(Ended::Faulty {
                    reason: error.detail,
                    condemned: true,
                });
            }
            Err(error) if is_short(&error) && (condemned.is_some() || again::is_another()) => {
                if !wait_for_disk(&error, &data, DISK_RESTS, &shutdown).await {
                    return Ok(Ended::Stopped);
                }
                return Ok(Ended::Short { reason: error.detail });
            }
            // A disk that failed a moment ago may go on failing for a while, and must not cost the few starts that there are.
            Err(error) if error.code == ErrorCode::Internal && condemned.is_some() && may_start_again => {
                return Ok(
                    match (wait_for_disk(&error, &data, DISK_RESTS, &shutdown).await, &condemned) {
                        (true, Some(reason)) => Ended::Faulty {
                            reason: reason.clone(),
                            condemned: true,
                        },
                        _ => Ended::Stopped,
                    },
                );
            }
            Err(error) => return Err(error.into()),
        };
        program::tell_descriptors(descriptors);
        let ended = server.run_until(shutdown.clone()).await?;
        if let Ended::Short { reason } = &ended {
            let error = dfs_common::Error::new(ErrorCode::Overloaded, reason.clone());
            if !wait_for_disk(&error, &data, Duration::ZERO, &shutdown).await {
                return Ok(Ended::Stopped);
            }
        }
        Ok(ended)
    })?;
    match ended {
        Ended::Stopped => Ok(Code::Ok),
        Ended::Faulty { reason, condemned } => {
            Err(again::start(&reason, condemned.then_some((CONDEMNED, reason.as_str()))))
        }
        Ended::Short { reason } => {
            let condemned = std::env::var(CONDEMNED).ok();
            let condemned = condemned.as_deref().map(|reason| (CONDEMNED, reason));
            Err(again::start_uncounted(&reason, condemned))
        }
    }
}

/// Between two looks whether a failing disk works again.
const DISK_RESTS: Duration = Duration::from_secs(3);

const SPARE_DESCRIPTORS: usize = 16;

/// Whether a start found that something had run out, which comes back by itself.
const fn is_short(error: &dfs_common::Error) -> bool {
    matches!(error.code, ErrorCode::Overloaded | ErrorCode::NoSpace)
}

/// Looks after `rest`, and then again and again, whether a file can be written to the disk of `data`. `false`: the server is to stop.
async fn wait_for_disk(
    error: &dfs_common::Error,
    data: &Path,
    mut rest: Duration,
    shutdown: &CancellationToken,
) -> bool {
    tracing::warn!(%error, data = %data.display(), "waits until a file can be written to its disk, and then starts anew");
    loop {
        let data = data.to_owned();
        let look = async {
            tokio::time::sleep(rest).await;
            tokio::task::spawn_blocking(move || takes_writes(&data)).await
        };
        // A disk that hangs holds up the look, and not the end of this server.
        tokio::select! {
            () = shutdown.cancelled() => return false,
            looked = look => if let Ok(Ok(())) = looked {
                return true;
            }
        }
        rest = DISK_RESTS;
    }
}

/// What a stopped server says of why has passed through a library that keeps only the text.
fn lacked_space(error: &dfs_common::Error) -> bool {
    [dfs_common::errno::ENOSPC, dfs_common::errno::EDQUOT]
        .iter()
        .any(|number| error.detail.contains(&format!("os error {number})")))
}

/// Waits until something can be written to the disk of `data`. `false`: the server is to stop.
async fn wait_for_room(data: &Path, shutdown: &CancellationToken) -> bool {
    let mut told = false;
    loop {
        let path = data.to_owned();
        let looked = tokio::task::spawn_blocking(move || Room::is_out(&path)).await;
        if !matches!(looked, Ok(true)) {
            return true;
        }
        if !told {
            tracing::warn!(data = %data.display(), "its disk is full: it starts when there is room");
            told = true;
        }
        tokio::select! {
            () = shutdown.cancelled() => return false,
            () = tokio::time::sleep(DISK_RESTS) => {}
        }
    }
}

/// Writes a file and syncs it, and has the descriptors that a start needs before it can say what is wrong.
fn takes_writes(data: &Path) -> std::io::Result<()> {
    let spare: std::io::Result<Vec<File>> = (0..SPARE_DESCRIPTORS).map(|_| File::open("/dev/null")).collect();
    spare?;
    let path = data.join("disk-check");
    let mut file = File::create(&path)?;
    file.write_all(b"This file may be removed.\n")?;
    file.sync_all()?;
    fs::remove_file(&path)
}

/// Tells the next program in this process why its store can not be trusted: its disk may not have taken it.
const CONDEMNED: &str = "DFS_CONDEMNED";

/// All that can be wrong before anything is opened.
fn prepare(arguments: &ServeArgs, role: Role) -> Outcome<Loaded> {
    let loaded = config::read(&arguments.config)?;
    let node = config::node_of(&loaded)?;
    let name = node.node_name()?;
    if name.role != role {
        return Err(Failure::new(format!(
            "{}: describes {name}; start it with: dfs {}",
            loaded.path.display(),
            name.role
        )));
    }
    check_credentials(&loaded, name)?;
    if arguments.own_session {
        process::leave_session();
    }
    Ok(loaded)
}

fn check_credentials(loaded: &Loaded, name: NodeName) -> Outcome<()> {
    let directory = &loaded.config.credentials;
    let credentials =
        Credentials::load(directory).with_context(|| format!("credentials in {}", directory.display()))?;
    let bearer = credentials.name();
    if bearer != name {
        return Err(Failure::new(format!(
            "credentials in {} are {bearer}'s, but {} is for {name}; give each node its own",
            directory.display(),
            loaded.path.display()
        )));
    }
    Ok(())
}

/// Cancelled at SIGTERM or SIGINT.
pub(crate) fn on_signal() -> Outcome<CancellationToken> {
    let token = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let cancel = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("asked to stop");
        cancel.cancel();
    });
    Ok(token)
}
