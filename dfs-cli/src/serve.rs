//! `dfs meta` and `dfs storage`: one server in the foreground, until SIGTERM or SIGINT.

use anyhow::Context;
use dfs_common::{NodeName, Role};
use dfs_crypto::certificate::Credentials;
use dfs_meta::service::{MetaOptions, MetaServer};
use dfs_storage::service::{StorageOptions, StorageServer};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::args::ServeArgs;
use crate::config::{self, Loaded};
use crate::failure::{Code, Failure, Outcome};
use crate::{process, program};

pub(crate) fn meta(arguments: &ServeArgs) -> Outcome {
    let loaded = prepare(arguments, Role::Meta)?;
    let node = config::node_of(&loaded)?;
    let options = MetaOptions {
        config: loaded.config.clone(),
        credentials: loaded.config.credentials.clone(),
        data: node.data.clone(),
        listen: arguments.listen.unwrap_or(node.listen),
    };
    program::block_on(async {
        let shutdown = on_signal()?;
        let server = MetaServer::start(options).await?;
        server.run_until(shutdown).await?;
        Ok(Code::Ok)
    })
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
    };
    program::block_on(async {
        let shutdown = on_signal()?;
        let server = StorageServer::start(options).await?;
        server.run_until(shutdown).await?;
        Ok(Code::Ok)
    })
}

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
