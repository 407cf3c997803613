//! One UDP socket of one process, with its identity.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dfs_common::wire::ALPN;
use dfs_common::{CertificateIssue, ClusterId, Incarnation, NodeName};
use dfs_crypto::{Credentials, tls};
use parking_lot::Mutex;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{ClientConfig, ServerConfig, TokioRuntime, VarInt};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::error::NetError;
use crate::issues::RequiredIssues;
use crate::liveness;
use crate::peer::{Peer, PeerInner};
use crate::server::{self, Service};
use crate::transport::{self, Transports};

/// Peers that are kept without a handle on them; more than a cluster has servers.
const PEERS_KEPT: usize = 1024;

/// How long `close` waits for peers to hear of it.
const CLOSE_WAIT: Duration = Duration::from_millis(200);

/// Sends and receives for one process. Cheap to clone; all clones share the socket.
#[derive(Clone, Debug)]
pub struct Endpoint {
    inner: Arc<EndpointInner>,
}

pub(crate) struct EndpointInner {
    pub(crate) quic: quinn::Endpoint,
    pub(crate) cluster: ClusterId,
    pub(crate) name: NodeName,
    /// Of its own for every endpoint.
    incarnation: Incarnation,
    address: SocketAddr,
    /// While somebody is served. Never given back before the endpoint is: a refusal at its port says that the process is gone.
    listener: OnceLock<Option<Arc<TcpListener>>>,
    transports: Transports,
    client_crypto: Arc<QuicClientConfig>,
    server_crypto: Arc<QuicServerConfig>,
    /// Kept with their connections while nobody holds a handle: a handshake costs more than any request.
    peers: Mutex<HashMap<(NodeName, SocketAddr), Arc<PeerInner>>>,
    pub(crate) required: RequiredIssues,
}

impl std::fmt::Debug for EndpointInner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Endpoint({} at {})", self.name, self.address)
    }
}

impl Endpoint {
    /// Binds `listen` (port 0 picks one) under the identity of `credentials`, with an incarnation drawn by lot.
    ///
    /// # Errors
    /// `Bind` when the port is taken or the address is not this host's; `Credentials` when they make no TLS identity.
    pub async fn bind(credentials: &Credentials, listen: SocketAddr) -> Result<Self, NetError> {
        Self::bind_as(credentials, listen, draw_incarnation()?).await
    }

    /// The same for a process that has a number of its own, which no other process of its name ever had.
    ///
    /// # Errors
    /// As `bind`.
    #[expect(
        clippy::unused_async,
        reason = "must run within a runtime, and says so by its signature"
    )]
    pub async fn bind_as(
        credentials: &Credentials,
        listen: SocketAddr,
        incarnation: Incarnation,
    ) -> Result<Self, NetError> {
        let bad = |error: &dyn std::fmt::Display| NetError::Credentials(error.to_string());
        let server = tls::server_config(credentials, ALPN).map_err(|error| bad(&error))?;
        let client = tls::client_config(credentials, ALPN).map_err(|error| bad(&error))?;
        let server_crypto = Arc::new(QuicServerConfig::try_from(server).map_err(|error| bad(&error))?);
        let client_crypto = Arc::new(QuicClientConfig::try_from(client).map_err(|error| bad(&error))?);
        let socket = transport::socket(listen)?;
        let fail = |error: std::io::Error| NetError::Bind {
            address: listen,
            reason: error.to_string(),
        };
        // Nothing comes in before `serve`: a process that only asks must not collect strangers' handshakes.
        let quic =
            quinn::Endpoint::new(transport::endpoint_config(), None, socket, Arc::new(TokioRuntime)).map_err(fail)?;
        let address = quic.local_addr().map_err(fail)?;
        let inner = EndpointInner {
            quic,
            cluster: credentials.cluster(),
            name: credentials.name(),
            incarnation,
            address,
            listener: OnceLock::new(),
            transports: Transports::new(),
            client_crypto,
            server_crypto,
            peers: Mutex::new(HashMap::new()),
            required: RequiredIssues::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// An endpoint that only asks: any free port, on all addresses.
    pub async fn client(credentials: &Credentials) -> Result<Self, NetError> {
        Self::bind(credentials, SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0))).await
    }

    #[must_use]
    pub fn local_address(&self) -> SocketAddr {
        self.inner.address
    }

    #[must_use]
    pub fn name(&self) -> NodeName {
        self.inner.name
    }

    /// Tells this process from an earlier or later one of the same name.
    #[must_use]
    pub fn incarnation(&self) -> Incarnation {
        self.inner.incarnation
    }

    /// From now on no machine with a certificate of a lower issue is accepted as `name`, whoever
    /// connects to whom; its connections end. What was required before stays so if it is more.
    pub fn require(&self, name: NodeName, issue: CertificateIssue) {
        if !self.inner.required.raise(name, issue) {
            return;
        }
        let peers = self.inner.peers.lock();
        for (_, peer) in peers.iter().filter(|((of, _), _)| *of == name) {
            peer.close("another machine takes its place");
        }
    }

    /// A handle on another process. Connects when it is used; all handles on one peer share its connections.
    #[must_use]
    pub fn peer(&self, name: NodeName, address: SocketAddr) -> Peer {
        let mut peers = self.inner.peers.lock();
        if let Some(known) = peers.get(&(name, address)).cloned() {
            return Peer::from(known);
        }
        if peers.len() >= PEERS_KEPT {
            peers.retain(|_, peer| Arc::strong_count(peer) > 1);
        }
        let peer = Arc::new(PeerInner::new(Arc::downgrade(&self.inner), name, address));
        peers.insert((name, address), Arc::clone(&peer));
        Peer::from(peer)
    }

    /// Answers requests with `service` until `shutdown`.
    pub async fn serve<S: Service>(&self, service: Arc<S>, shutdown: CancellationToken) {
        let listener = self.inner.listener.get_or_init(|| liveness::listen(self.inner.address));
        if let Some(listener) = listener.clone() {
            tokio::spawn(liveness::attend(listener, self.inner.incarnation, shutdown.clone()));
        }
        server::serve(Arc::clone(&self.inner), service, shutdown).await;
    }

    /// Tells peers and stops.
    pub async fn close(&self) {
        self.inner.quic.close(VarInt::from_u32(0), b"closing");
        let _ = tokio::time::timeout(CLOSE_WAIT, self.inner.quic.wait_idle()).await;
    }
}

impl EndpointInner {
    pub(crate) fn client_config(&self, toward: SocketAddr) -> ClientConfig {
        let mut config = ClientConfig::new(Arc::clone(&self.client_crypto) as _);
        config.transport_config(self.transports.toward(toward.ip()));
        config
    }

    /// From now on handshakes are answered; before, they are dropped and the other side tries again.
    pub(crate) fn accept_connections(&self) {
        let config = ServerConfig::with_crypto(Arc::clone(&self.server_crypto) as _);
        self.quic.set_server_config(Some(config));
    }

    pub(crate) fn server_config(&self, toward: SocketAddr) -> ServerConfig {
        let mut config = ServerConfig::with_crypto(Arc::clone(&self.server_crypto) as _);
        config.transport_config(self.transports.toward(toward.ip()));
        config
    }
}

fn draw_incarnation() -> Result<Incarnation, NetError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| NetError::Credentials(format!("no randomness: {error}")))?;
    Ok(Incarnation(u64::from_le_bytes(bytes)))
}
