//! Typed calls to servers. Thin: names, lanes and the answer's error.
//!
//! [`Transport`] is the seam for tests: a cluster in memory, on whatever time the test's runtime has.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dfs_common::wire::Lane;
use dfs_common::wire::meta::{MetaRequest, MetaResponse};
use dfs_common::wire::storage::{StorageRequest, StorageResponse};
use dfs_common::{Error, ErrorCode, MetaId, Result, StorageId};
use dfs_net::{BootInstant, Endpoint};
use tokio::time::Instant;

/// What a [`Transport`] answers with.
pub type Reply<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// Carries the requests of one mount to servers that are not processes. A reply that never comes is a timeout of the caller;
/// one that the caller drops may have taken effect, as on a network.
pub trait Transport: Send + Sync + 'static {
    fn meta<'a>(&'a self, server: MetaId, request: &'a MetaRequest) -> Reply<'a, MetaResponse>;

    fn storage<'a>(
        &'a self,
        node: StorageId,
        request: &'a StorageRequest,
        payload: &'a [Bytes],
    ) -> Reply<'a, (StorageResponse, Bytes)>;

    /// How long the mount's machine was suspended so far, by the test's word: leases run out meanwhile, timers do not.
    fn asleep(&self) -> Duration {
        Duration::ZERO
    }
}

#[derive(Clone)]
enum Link {
    Quic(Endpoint),
    Memory(Arc<dyn Transport>),
}

#[derive(Clone)]
pub(crate) struct Network {
    link: Link,
    started: (BootInstant, Instant),
}

impl Network {
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        Self {
            link: Link::Quic(endpoint),
            started: now(),
        }
    }

    pub(crate) fn over(transport: Arc<dyn Transport>) -> Self {
        Self {
            link: Link::Memory(transport),
            started: now(),
        }
    }

    /// Milliseconds by the clock of leases, which goes on while the machine is suspended.
    pub(crate) fn lease_now_ms(&self) -> u64 {
        let since = match &self.link {
            Link::Quic(_) => self.started.0.elapsed(),
            Link::Memory(transport) => self.started.1.elapsed() + transport.asleep(),
        };
        since.as_millis() as u64
    }

    pub(crate) async fn meta(
        &self,
        server: (MetaId, SocketAddr),
        request: &MetaRequest,
        deadline: Duration,
    ) -> Result<MetaResponse> {
        let response = match &self.link {
            Link::Quic(endpoint) => endpoint
                .peer(server.0.into(), server.1)
                .call::<_, MetaResponse>(Lane::Control, request, &[], deadline)
                .await
                .map(|(response, _)| response)
                .map_err(Error::from)?,
            Link::Memory(transport) => within(deadline, transport.meta(server.0, request)).await?,
        };
        match response {
            MetaResponse::Failed(error) => Err(error),
            other => Ok(other),
        }
    }

    pub(crate) async fn storage(
        &self,
        node: (StorageId, SocketAddr),
        lane: Lane,
        request: &StorageRequest,
        payload: &[Bytes],
        deadline: Duration,
    ) -> Result<(StorageResponse, Bytes)> {
        let (response, bytes) = match &self.link {
            Link::Quic(endpoint) => endpoint
                .peer(node.0.into(), node.1)
                .call::<_, StorageResponse>(lane, request, payload, deadline)
                .await
                .map_err(Error::from)?,
            Link::Memory(transport) => within(deadline, transport.storage(node.0, request, payload)).await?,
        };
        match response {
            StorageResponse::Failed(error) => Err(error),
            other => Ok((other, bytes)),
        }
    }

    pub(crate) fn is_connected(&self, node: (StorageId, SocketAddr)) -> bool {
        match &self.link {
            Link::Quic(endpoint) => endpoint.peer(node.0.into(), node.1).is_connected(),
            Link::Memory(_) => true,
        }
    }

    pub(crate) async fn close(&self) {
        match &self.link {
            Link::Quic(endpoint) => endpoint.close().await,
            Link::Memory(_) => {}
        }
    }
}

fn now() -> (BootInstant, Instant) {
    (BootInstant::now(), Instant::now())
}

async fn within<T>(deadline: Duration, reply: Reply<'_, T>) -> Result<T> {
    tokio::time::timeout(deadline, reply).await.unwrap_or_else(|_| {
        Err(Error::new(
            ErrorCode::Timeout,
            format!("no answer within {} ms", deadline.as_millis()),
        ))
    })
}
