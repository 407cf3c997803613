//! Where the service meets the network: requests in, calls to other servers and to storage nodes out.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dfs_common::wire::Lane;
use dfs_common::wire::meta::{MetaRequest, MetaResponse};
use dfs_common::wire::storage::{StorageRequest, StorageResponse};
use dfs_common::{Error, ErrorCode, Incarnation, MetaId, Result, RoutingTable, StorageId, Whereabouts, codec};
use dfs_net::{Endpoint, Incoming, NetError, Outgoing, Service};
use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::error;

use super::dispatch;
use super::shared::{Shared, StorageCaller};
use crate::consensus::Transport;

/// Decodes, answers, encodes.
#[derive(Debug)]
pub(super) struct Requests {
    pub(super) shared: Arc<Shared>,
}

impl Service for Requests {
    fn call(&self, request: Incoming) -> impl Future<Output = Result<Outgoing>> + Send {
        let shared = Arc::clone(&self.shared);
        async move {
            let message: MetaRequest = codec::decode(&request.header)?;
            let answer = dispatch::answer(&shared, request.peer.name, message, request.deadline).await;
            Ok(Outgoing {
                header: codec::encode(&answer)?,
                payload: Vec::new(),
            })
        }
    }
}

/// Consensus messages over the control lane.
#[derive(Debug)]
pub(super) struct BetweenServers {
    endpoint: Endpoint,
    routing: watch::Receiver<Arc<RoutingTable>>,
    places: Mutex<BTreeMap<MetaId, Whereabouts>>,
    refused_by: Mutex<BTreeSet<MetaId>>,
}

impl BetweenServers {
    pub(super) fn new(
        endpoint: Endpoint,
        configured: &BTreeMap<MetaId, SocketAddr>,
        routing: watch::Receiver<Arc<RoutingTable>>,
    ) -> Self {
        let places = configured.iter().map(|(&id, &address)| (id, Whereabouts::new(address)));
        Self {
            endpoint,
            routing,
            places: Mutex::new(places.collect()),
            refused_by: Mutex::default(),
        }
    }

    /// Where it was found last, or where the group says that it is now.
    fn address(&self, of: MetaId) -> Option<SocketAddr> {
        let moved = self.routing.borrow().moved.get(&of).map(|place| place.address);
        let mut places = self.places.lock();
        let place = places.get_mut(&of)?;
        if let Some(moved) = moved {
            place.hear(moved);
        }
        Some(place.address())
    }

    /// How a call to that server ended.
    fn note(&self, server: MetaId, at: SocketAddr, error: Option<&NetError>) {
        match error {
            None | Some(NetError::Remote(_)) => {
                self.refused_by.lock().remove(&server);
                return;
            }
            // Every further call would say the same.
            Some(error @ NetError::Refused { .. }) if self.refused_by.lock().insert(server) => {
                error!(%error, "a metadata server refuses this one");
            }
            Some(_) => {}
        }
        let mut places = self.places.lock();
        // Of several that failed there, the first has the next one tried.
        if let Some(place) = places.get_mut(&server).filter(|place| place.address() == at) {
            place.failed();
        }
    }
}

#[async_trait]
impl Transport for BetweenServers {
    async fn send(&self, to: MetaId, kind: u8, body: Vec<u8>, deadline: Duration) -> Result<Vec<u8>> {
        let address = self.address(to).ok_or_else(|| {
            Error::new(
                ErrorCode::Unreachable,
                format!("meta-{to} is not in this server's configuration"),
            )
        })?;
        let peer = self.endpoint.peer(to.into(), address);
        let request = MetaRequest::Consensus { kind, body };
        let answer: std::result::Result<(MetaResponse, _), _> = peer.call(Lane::Control, &request, &[], deadline).await;
        self.note(to, address, answer.as_ref().err());
        let (answer, _) = answer?;
        match answer {
            MetaResponse::Consensus { body } => Ok(body),
            MetaResponse::Failed(e) => Err(e),
            other => Err(Error::new(
                ErrorCode::BadMessage,
                format!("meta-{to} answered a consensus message by {other:?}"),
            )),
        }
    }

    async fn death(&self, of: MetaId) {
        match self.address(of) {
            Some(address) => dfs_net::liveness::death(address, None).await,
            None => std::future::pending().await,
        }
    }
}

/// The clean-up's calls.
#[derive(Debug)]
pub(super) struct ToStorage {
    pub(super) endpoint: Endpoint,
}

#[async_trait]
impl StorageCaller for ToStorage {
    async fn call(
        &self,
        node: StorageId,
        address: SocketAddr,
        request: &StorageRequest,
        deadline: Duration,
    ) -> Result<StorageResponse> {
        let peer = self.endpoint.peer(node.into(), address);
        let (answer, _) = peer.call(Lane::Control, request, &[], deadline).await?;
        Ok(answer)
    }

    async fn death(&self, address: SocketAddr, incarnation: Incarnation) {
        dfs_net::liveness::death(address, Some(incarnation)).await;
    }
}
