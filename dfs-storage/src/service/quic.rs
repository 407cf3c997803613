//! The node on the real network: QUIC out, QUIC in.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dfs_common::wire::Lane;
use dfs_common::wire::meta::{MetaRequest, MetaResponse};
use dfs_common::wire::storage::{StorageRequest, StorageResponse};
use dfs_common::{Error, NodeName, Result, codec};
use dfs_net::{Endpoint, Incoming, Outgoing, Peer, Service};
use parking_lot::Mutex;

use super::handler;
use super::network::{Answering, Transport};
use super::node::Node;

pub(crate) struct QuicTransport {
    endpoint: Endpoint,
    /// Kept, since a connection lives as long as somebody holds its peer. One a name: an old address is of no use.
    peers: Mutex<BTreeMap<NodeName, Peer>>,
}

impl QuicTransport {
    pub(crate) const fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            peers: Mutex::new(BTreeMap::new()),
        }
    }

    fn peer(&self, name: NodeName, address: SocketAddr) -> Peer {
        let mut peers = self.peers.lock();
        match peers.get(&name) {
            Some(peer) if peer.address() == address => peer.clone(),
            _ => {
                let peer = self.endpoint.peer(name, address);
                peers.insert(name, peer.clone());
                peer
            }
        }
    }
}

impl std::fmt::Debug for QuicTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QuicTransport").finish_non_exhaustive()
    }
}

impl Transport for QuicTransport {
    fn storage<'a>(
        &'a self,
        to: NodeName,
        address: SocketAddr,
        lane: Lane,
        request: &'a StorageRequest,
        payload: &'a [Bytes],
        deadline: Duration,
    ) -> Answering<'a, (StorageResponse, Bytes)> {
        Box::pin(async move {
            let peer = self.peer(to, address);
            peer.call(lane, request, payload, deadline).await.map_err(Error::from)
        })
    }

    fn meta<'a>(
        &'a self,
        to: NodeName,
        address: SocketAddr,
        request: &'a MetaRequest,
        deadline: Duration,
    ) -> Answering<'a, MetaResponse> {
        Box::pin(async move {
            let peer = self.peer(to, address);
            let (response, _) = peer
                .call::<_, MetaResponse>(Lane::Control, request, &[], deadline)
                .await?;
            Ok(response)
        })
    }
}

pub(crate) struct StorageService {
    pub(crate) node: Arc<Node>,
}

impl Service for StorageService {
    async fn call(&self, request: Incoming) -> Result<Outgoing> {
        let header: StorageRequest = codec::decode(&request.header)?;
        // What clients wait for, here or at the member before this one, shows whether copying leaves them enough.
        let felt = matches!(
            header,
            StorageRequest::Mutate(_)
                | StorageRequest::Read { .. }
                | StorageRequest::Sync { .. }
                | StorageRequest::Forward(_)
                | StorageRequest::ForwardSync { .. }
        );
        let start = std::time::Instant::now();
        let (response, payload) =
            handler::handle(&self.node, request.peer.name, header, request.payload, request.deadline).await?;
        if felt {
            let took_us = u32::try_from(start.elapsed().as_micros()).unwrap_or(u32::MAX);
            self.node.budget.lock().answered(took_us);
        }
        Ok(Outgoing {
            header: codec::encode(&response)?,
            payload: vec![payload],
        })
    }
}
