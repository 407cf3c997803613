//! Typed calls to servers. Thin: names, lanes and the answer's error.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use dfs_common::wire::Lane;
use dfs_common::wire::meta::{MetaRequest, MetaResponse};
use dfs_common::wire::storage::{StorageRequest, StorageResponse};
use dfs_common::{Error, MetaId, Result, StorageId};
use dfs_net::Endpoint;

#[derive(Clone)]
pub(crate) struct Network {
    endpoint: Endpoint,
}

impl Network {
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint }
    }

    pub(crate) async fn meta(
        &self,
        server: (MetaId, SocketAddr),
        request: &MetaRequest,
        deadline: Duration,
    ) -> Result<MetaResponse> {
        let peer = self.endpoint.peer(server.0.into(), server.1);
        let (response, _) = peer
            .call::<_, MetaResponse>(Lane::Control, request, &[], deadline)
            .await
            .map_err(Error::from)?;
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
        let peer = self.endpoint.peer(node.0.into(), node.1);
        let (response, bytes) = peer
            .call::<_, StorageResponse>(lane, request, payload, deadline)
            .await
            .map_err(Error::from)?;
        match response {
            StorageResponse::Failed(error) => Err(error),
            other => Ok((other, bytes)),
        }
    }

    pub(crate) fn is_connected(&self, node: (StorageId, SocketAddr)) -> bool {
        self.endpoint.peer(node.0.into(), node.1).is_connected()
    }

    pub(crate) async fn close(&self) {
        self.endpoint.close().await;
    }
}
