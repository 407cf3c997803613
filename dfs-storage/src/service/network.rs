//! Whom this node talks to: neighbours by their number, the metadata group by whoever leads it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dfs_common::wire::Lane;
use dfs_common::wire::meta::{MetaRequest, MetaResponse};
use dfs_common::wire::storage::{StorageRequest, StorageResponse};
use dfs_common::{Error, ErrorCode, MetaId, NodeName, Result, RoutingTable, StorageId, Whereabouts};
use parking_lot::Mutex;

pub(crate) type Answering<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// The seam to the network, so that several nodes can run in one process without one.
pub(crate) trait Transport: Send + Sync + std::fmt::Debug {
    fn storage<'a>(
        &'a self,
        to: NodeName,
        address: SocketAddr,
        lane: Lane,
        request: &'a StorageRequest,
        payload: &'a [Bytes],
        deadline: Duration,
    ) -> Answering<'a, (StorageResponse, Bytes)>;

    fn meta<'a>(
        &'a self,
        to: NodeName,
        address: SocketAddr,
        request: &'a MetaRequest,
        deadline: Duration,
    ) -> Answering<'a, MetaResponse>;
}

/// After this long without an answer another metadata server is asked too: the leader may be gone.
const HEDGE_AFTER: Duration = Duration::from_millis(300);

#[derive(Debug)]
struct Server {
    id: MetaId,
    at: Whereabouts,
    /// It did not answer, or not soon, when it was asked last, or said that it does not lead: then
    /// it may be elsewhere.
    doubtful: bool,
}

#[derive(Debug)]
pub(crate) struct Network {
    transport: Arc<dyn Transport>,
    meta: Mutex<Vec<Server>>,
    /// Where the configuration has the metadata servers.
    configured: BTreeMap<MetaId, SocketAddr>,
    /// Who answered last as leader: an index into `meta`.
    leader: AtomicUsize,
}

impl Network {
    pub(crate) fn new(transport: Arc<dyn Transport>, meta: Vec<(MetaId, SocketAddr)>) -> Self {
        Self {
            transport,
            configured: meta.iter().copied().collect(),
            meta: Mutex::new(
                meta.into_iter()
                    .map(|(id, address)| Server {
                        id,
                        at: Whereabouts::new(address),
                        doubtful: false,
                    })
                    .collect(),
            ),
            leader: AtomicUsize::new(0),
        }
    }

    /// Where the configuration has the metadata servers.
    pub(crate) fn configured(&self) -> BTreeMap<MetaId, SocketAddr> {
        self.configured.clone()
    }

    pub(crate) async fn storage(
        &self,
        table: &RoutingTable,
        to: StorageId,
        lane: Lane,
        request: &StorageRequest,
        payload: &[Bytes],
        deadline: Duration,
    ) -> Result<(StorageResponse, Bytes)> {
        let Some(address) = table.address(to) else {
            return Err(Error::new(
                ErrorCode::Unreachable,
                format!("storage-{to} has no address in the routing table"),
            ));
        };
        self.transport
            .storage(to.into(), address, lane, request, payload, deadline)
            .await
    }

    /// Asks the leader, and finds it if it has moved: by hints, by trying the others, and by asking a second one while
    /// the first is silent.
    pub(crate) async fn meta(&self, request: &MetaRequest, deadline: Duration) -> Result<MetaResponse> {
        let attempts = async {
            let mut last = Error::new(ErrorCode::Unreachable, "no metadata server is configured");
            let servers = self.meta.lock().len();
            for _ in 0..2 * servers {
                let first = self.leader.load(Ordering::Relaxed) % servers;
                match self.ask_with_hedge(first, request, deadline).await {
                    (at, Ok(MetaResponse::NotLeader { leader })) => {
                        last = Error::new(
                            ErrorCode::NotLeader,
                            format!("meta-{} does not lead", self.server(at).0),
                        );
                        self.meta.lock()[at].doubtful = true;
                        let hinted = leader.and_then(|(id, address)| self.learn(id, address));
                        self.leader
                            .store(hinted.unwrap_or((at + 1) % servers), Ordering::Relaxed);
                        if hinted.is_none() {
                            // An election takes some hundred milliseconds: no storm meanwhile.
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    }
                    (at, Ok(response)) => {
                        self.answered(at, response.routing());
                        self.leader.store(at, Ordering::Relaxed);
                        return Ok(response);
                    }
                    (at, Err(error)) => {
                        last = error;
                        self.note_failure(at);
                        self.leader.store((at + 1) % servers, Ordering::Relaxed);
                    }
                }
            }
            Err(last)
        };
        tokio::time::timeout(deadline, attempts).await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorCode::Timeout,
                format!("no metadata server answered within {} ms", deadline.as_millis()),
            ))
        })
    }

    fn server(&self, at: usize) -> (MetaId, SocketAddr) {
        let server = &self.meta.lock()[at];
        (server.id, server.at.address())
    }

    /// That one leads, and the group says in its table where its servers are.
    fn answered(&self, at: usize, table: Option<&RoutingTable>) {
        let mut meta = self.meta.lock();
        meta[at].doubtful = false;
        let Some(table) = table else { return };
        for server in meta.iter_mut() {
            if let Some(&address) = table.meta.get(&server.id) {
                server.at.hear(address);
            }
        }
    }

    fn note_failure(&self, at: usize) {
        let server = &mut self.meta.lock()[at];
        server.doubtful = true;
        server.at.failed();
    }

    /// A metadata server says where another one is. Returns the place of that one.
    fn learn(&self, id: MetaId, address: SocketAddr) -> Option<usize> {
        let mut meta = self.meta.lock();
        let at = meta.iter().position(|server| server.id == id)?;
        if meta[at].doubtful {
            meta[at].doubtful = !meta[at].at.learn(address);
        }
        Some(at)
    }

    async fn ask_with_hedge(
        &self,
        first: usize,
        request: &MetaRequest,
        deadline: Duration,
    ) -> (usize, Result<MetaResponse>) {
        let ask = |at: usize| async move {
            let (id, address) = self.server(at);
            (at, self.transport.meta(id.into(), address, request, deadline).await)
        };
        let preferred = ask(first);
        tokio::pin!(preferred);
        // A request that is meant to wait at the leader is not hedged: silence is its normal state.
        let waits = matches!(request, MetaRequest::Routing { wait_ms, .. } if *wait_ms > 0);
        let servers = self.meta.lock().len();
        if waits || servers == 1 {
            return preferred.await;
        }
        tokio::select! {
            answer = &mut preferred => return answer,
            () = tokio::time::sleep(HEDGE_AFTER) => {}
        }
        self.meta.lock()[first].doubtful = true;
        let other = ask((first + 1) % servers);
        tokio::pin!(other);
        tokio::select! {
            answer = &mut preferred => answer,
            answer = &mut other => match answer {
                // It knows better only if it leads or knows who else does.
                (_, Ok(MetaResponse::NotLeader { leader: Some(named) })) if named == self.server(first) => preferred.await,
                answer => answer,
            },
        }
    }
}
