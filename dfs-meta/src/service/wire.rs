//! Where the service meets the network: requests in, calls to other servers and to storage nodes out.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dfs_common::wire::Lane;
use dfs_common::wire::meta::{MetaRequest, MetaResponse};
use dfs_common::wire::storage::{StorageRequest, StorageResponse};
use dfs_common::{Error, ErrorCode, Incarnation, MetaId, Result, StorageId, codec};
use dfs_net::{Endpoint, Incoming, Outgoing, Service};

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
    pub(super) endpoint: Endpoint,
    pub(super) members: BTreeMap<MetaId, SocketAddr>,
}

#[async_trait]
impl Transport for BetweenServers {
    async fn send(&self, to: MetaId, kind: u8, body: Vec<u8>, deadline: Duration) -> Result<Vec<u8>> {
        let address = *self.members.get(&to).ok_or_else(|| {
            Error::new(
                ErrorCode::Unreachable,
                format!("meta-{to} is not in this server's configuration"),
            )
        })?;
        let peer = self.endpoint.peer(to.into(), address);
        let request = MetaRequest::Consensus { kind, body };
        let (answer, _): (MetaResponse, _) = peer.call(Lane::Control, &request, &[], deadline).await?;
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
        match self.members.get(&of) {
            Some(&address) => dfs_net::liveness::death(address, None).await,
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
