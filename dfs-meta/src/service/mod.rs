//! The metadata server as a process: data directory, consensus, state, requests and background tasks.

mod authorize;
mod clock;
mod data_directory;
mod dispatch;
mod error;
mod leader;
mod observed;
mod owner;
mod shared;
mod tasks;

use std::net::SocketAddr;
use std::path::PathBuf;

use dfs_common::config::ClusterConfig;
use tokio_util::sync::CancellationToken;

pub use error::StartError;

/// What a metadata server is started with.
#[derive(Clone, Debug)]
pub struct MetaOptions {
    /// Members of the group; its `[node]` names this server and its data directory.
    pub config: ClusterConfig,
    /// Directory with this server's certificate, key and `meta.key`.
    pub credentials: PathBuf,
    /// Data directory.
    pub data: PathBuf,
    /// Local address to bind.
    pub listen: SocketAddr,
}

/// A running metadata server.
#[derive(Debug)]
pub struct MetaServer;

impl MetaServer {
    /// Opens the data directory, joins the group and serves.
    ///
    /// # Errors
    /// One line that names what is wrong with the directory, the credentials or the port.
    pub async fn start(_options: MetaOptions) -> dfs_common::Result<Self> {
        Ok(Self)
    }

    /// Serves until `shutdown`, then closes everything in order.
    ///
    /// # Errors
    /// When the server had to stop by itself (its store failed).
    pub async fn run_until(self, shutdown: CancellationToken) -> dfs_common::Result<()> {
        shutdown.cancelled().await;
        Ok(())
    }
}
