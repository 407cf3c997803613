//! Another process, as this one asks it: connections by lane, made when needed and once for all who wait.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use dfs_common::units::MAX_PAYLOAD_SIZE_BYTES;
use dfs_common::wire::{Hello, Lane, PROTOCOL_VERSION};
use dfs_common::{Error, ErrorCode, NodeName, codec};
use dfs_crypto::certificate::{PeerIdentity, dns_name};
use dfs_crypto::identity_of;
use parking_lot::Mutex;
use quinn::{Connection, ConnectionError, RecvStream, SendStream, VarInt};
use rustls::pki_types::CertificateDer;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use crate::endpoint::EndpointInner;
use crate::error::NetError;
use crate::frame::{self, FrameError};
use crate::liveness;

/// Connections for bulk data: two, so that two cores can encrypt.
const BULK_CONNECTIONS: usize = 2;

/// A handshake that takes longer is tried anew.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(600);
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_millis(500);

/// Largest `Hello`, generously.
pub(crate) const HELLO_MAX_BYTES: usize = 256;

/// TLS alerts as QUIC carries them (RFC 9001, section 4.8).
const CRYPTO_ERRORS: std::ops::Range<u64> = 0x100..0x200;

/// Application close code of a refusal; the reason is text.
pub(crate) const REFUSED: u32 = 1;

/// A handle on another process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Peer {
    inner: Arc<PeerInner>,
}

pub(crate) struct PeerInner {
    /// The endpoint owns its peers; a handle alone does not keep the socket.
    endpoint: Weak<EndpointInner>,
    name: NodeName,
    address: SocketAddr,
    control: Arc<Slot>,
    bulk: [Arc<Slot>; BULK_CONNECTIONS],
    turn: AtomicUsize,
    /// Waits for the process's death while there are connections to it.
    watch: Mutex<Option<JoinHandle<()>>>,
    /// It has died: nobody is to wait for its answer to a handshake before its kernel says that somebody is there again.
    gone: Arc<AtomicBool>,
}

impl Drop for PeerInner {
    fn drop(&mut self) {
        if let Some(watch) = self.watch.get_mut() {
            watch.abort();
        }
    }
}

impl std::fmt::Debug for PeerInner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Peer({} at {})", self.name, self.address)
    }
}

type Attempt = watch::Receiver<Option<Result<Connection, NetError>>>;

/// Place of one connection.
#[derive(Default)]
struct Slot {
    state: Mutex<SlotState>,
}

#[derive(Default)]
struct SlotState {
    connection: Option<Connection>,
    attempt: Option<Attempt>,
    backoff: Duration,
    not_before: Option<Instant>,
}

impl From<Arc<PeerInner>> for Peer {
    fn from(inner: Arc<PeerInner>) -> Self {
        Self { inner }
    }
}

impl Peer {
    #[must_use]
    pub fn name(&self) -> NodeName {
        self.inner.name
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.inner.address
    }

    /// Whether the control lane stands at this moment.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.inner.control.current().is_some()
    }

    /// Smoothed round trip of the control lane.
    #[must_use]
    pub fn round_trip(&self) -> Option<Duration> {
        self.inner.control.current().map(|connection| connection.rtt())
    }

    /// Sends a request and waits for its answer, within `deadline` in all. Dropping the future cancels the work at the peer.
    ///
    /// # Errors
    /// `Remote` with the peer's own error; `Timeout`, `Unreachable` (sent or not: the caller can not know), `Refused`.
    pub async fn call<Q: Serialize + Sync, R: DeserializeOwned>(
        &self,
        lane: Lane,
        request: &Q,
        payload: &[Bytes],
        deadline: Duration,
    ) -> Result<(R, Bytes), NetError> {
        let header = codec::encode(request)?;
        let payload_size: usize = payload.iter().map(Bytes::len).sum();
        if payload_size > MAX_PAYLOAD_SIZE_BYTES {
            let detail = format!("a payload of {payload_size} B is over the limit of {MAX_PAYLOAD_SIZE_BYTES} B");
            return Err(NetError::Remote(Error::new(ErrorCode::BadMessage, detail)));
        }
        let inner = &self.inner;
        match timeout(deadline, inner.exchange(lane, &header, payload, deadline)).await {
            Ok(answer) => {
                let (header, payload) = answer?;
                Ok((codec::decode(&header)?, payload))
            }
            Err(_) => Err(NetError::Timeout {
                peer: inner.name,
                address: inner.address,
                deadline,
            }),
        }
    }
}

impl PeerInner {
    pub(crate) fn new(endpoint: Weak<EndpointInner>, name: NodeName, address: SocketAddr) -> Self {
        Self {
            endpoint,
            name,
            address,
            control: Arc::default(),
            bulk: std::array::from_fn(|_| Arc::default()),
            turn: AtomicUsize::new(0),
            watch: Mutex::new(None),
            gone: Arc::default(),
        }
    }

    /// Ends every connection, and with it what is asked over it.
    pub(crate) fn close(&self, reason: &str) {
        for slot in self.bulk.iter().chain([&self.control]) {
            slot.close(reason);
        }
    }

    async fn exchange(
        &self,
        lane: Lane,
        header: &[u8],
        payload: &[Bytes],
        deadline: Duration,
    ) -> Result<(Bytes, Bytes), NetError> {
        let (send, recv) = self.open(lane).await?;
        let mut send = ResetOnDrop(send);
        let mut recv = recv;
        let deadline_ms = u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX);
        frame::write(&mut send.0, deadline_ms, header, payload)
            .await
            .map_err(|error| self.unreachable(&error))?;
        send.0.finish().map_err(|error| self.unreachable(&error))?;
        let broken = |error: FrameError| match error {
            FrameError::TooBig { .. } => {
                NetError::Remote(Error::new(ErrorCode::BadMessage, format!("{} sent {error}", self.name)))
            }
            _ => self.unreachable(&error),
        };
        let prefix = frame::read_prefix(&mut recv).await.map_err(broken)?;
        let answer = frame::read_body(&mut recv, prefix).await.map_err(broken)?;
        if answer.word == 0 {
            Ok((answer.header, answer.payload))
        } else {
            Err(NetError::Remote(codec::decode(&answer.header)?))
        }
    }

    /// A stream on a standing connection. A connection that turns out dead before anything was sent is replaced.
    async fn open(&self, lane: Lane) -> Result<(SendStream, RecvStream), NetError> {
        let slot = match lane {
            Lane::Control => &self.control,
            Lane::Bulk => &self.bulk[self.turn.fetch_add(1, Ordering::Relaxed) % BULK_CONNECTIONS],
        };
        loop {
            let connection = self.connection(slot, lane).await?;
            match connection.open_bi().await {
                Ok(streams) => return Ok(streams),
                Err(error) if refusal(&error).is_some() => {
                    return Err(self.refused(refusal(&error).unwrap_or_default()));
                }
                Err(_) => slot.forget(&connection),
            }
        }
    }

    async fn connection(&self, slot: &Arc<Slot>, lane: Lane) -> Result<Connection, NetError> {
        let mut attempt = {
            let mut state = slot.state.lock();
            if let Some(connection) = state.standing() {
                return Ok(connection);
            }
            match &state.attempt {
                Some(attempt) => attempt.clone(),
                None => self.start(slot, &mut state, lane),
            }
        };
        let done = attempt
            .wait_for(Option::is_some)
            .await
            .map_err(|_| self.unreachable(&"the attempt to connect was given up"))?;
        let result = done.clone().unwrap_or_else(|| Err(self.unreachable(&"no attempt")));
        if result.is_ok() {
            self.keep_watch();
        }
        result
    }

    /// A process that is killed says nothing; its kernel does. Every request under way then ends at once.
    fn keep_watch(&self) {
        let mut watch = self.watch.lock();
        if watch.as_ref().is_some_and(|watch| !watch.is_finished()) {
            return;
        }
        let (name, address, gone) = (self.name, self.address, Arc::clone(&self.gone));
        let slots: Vec<_> = self.bulk.iter().chain([&self.control]).map(Arc::clone).collect();
        *watch = Some(tokio::spawn(async move {
            liveness::death(address, None).await;
            tracing::debug!(peer = %name, %address, "its process died");
            gone.store(true, Ordering::Release);
            for slot in slots {
                slot.close("its process died");
            }
        }));
    }

    /// Starts one attempt for all who wait; it outlives any of them.
    fn start(&self, slot: &Arc<Slot>, state: &mut SlotState, lane: Lane) -> Attempt {
        let (tell, attempt) = watch::channel(None);
        state.attempt = Some(attempt.clone());
        let not_before = state.not_before;
        let (slot, endpoint, name, address) = (Arc::clone(slot), Weak::clone(&self.endpoint), self.name, self.address);
        let gone = Arc::clone(&self.gone);
        tokio::spawn(async move {
            if let Some(not_before) = not_before {
                sleep_until(not_before).await;
            }
            let connecting = async {
                if gone.load(Ordering::Acquire) {
                    if liveness::is_refused(address).await {
                        return Err(NetError::NobodyListens { peer: name, address });
                    }
                    gone.store(false, Ordering::Release);
                }
                match endpoint.upgrade() {
                    Some(endpoint) => connect(&endpoint, name, address, lane).await,
                    None => Err(NetError::Unreachable {
                        peer: name,
                        address,
                        reason: "this process closed its endpoint".to_owned(),
                    }),
                }
            };
            let result = match timeout(CONNECT_TIMEOUT, connecting).await {
                Ok(result) => result,
                Err(_) => Err(NetError::Unreachable {
                    peer: name,
                    address,
                    reason: "no answer to the handshake".to_owned(),
                }),
            };
            // Under the slot's lock: who requires a higher issue meanwhile closes what stands
            // there.
            let mut state = slot.state.lock();
            let result = result.and_then(|(connection, identity)| accept(&endpoint, connection, &identity, address));
            state.finish(&result);
            drop(state);
            let _ = tell.send(Some(result));
        });
        attempt
    }

    fn unreachable(&self, reason: &(dyn std::fmt::Display + Sync)) -> NetError {
        NetError::Unreachable {
            peer: self.name,
            address: self.address,
            reason: reason.to_string(),
        }
    }

    fn refused(&self, reason: String) -> NetError {
        NetError::Refused {
            peer: self.name,
            address: self.address,
            reason,
        }
    }
}

impl Slot {
    fn current(&self) -> Option<Connection> {
        self.state.lock().standing()
    }

    fn close(&self, reason: &str) {
        if let Some(connection) = self.state.lock().connection.take() {
            connection.close(VarInt::from_u32(0), reason.as_bytes());
        }
    }

    fn forget(&self, dead: &Connection) {
        let mut state = self.state.lock();
        if state
            .connection
            .as_ref()
            .is_some_and(|connection| connection.stable_id() == dead.stable_id())
        {
            state.connection = None;
        }
    }
}

impl SlotState {
    fn standing(&self) -> Option<Connection> {
        self.connection
            .as_ref()
            .filter(|connection| connection.close_reason().is_none())
            .cloned()
    }

    fn finish(&mut self, result: &Result<Connection, NetError>) {
        self.attempt = None;
        self.connection = result.as_ref().ok().cloned();
        self.backoff = match result {
            Ok(_) => Duration::ZERO,
            // The other host's kernel said so: asking again soon costs nobody anything, and whoever comes back is waited for by others.
            Err(NetError::NobodyListens { .. }) => BACKOFF_MIN,
            Err(_) => (self.backoff * 2).clamp(BACKOFF_MIN, BACKOFF_MAX),
        };
        self.not_before = result.is_err().then(|| Instant::now() + self.backoff);
    }
}

/// A stream that is dropped unfinished tells the peer, instead of looking complete.
struct ResetOnDrop(SendStream);

impl Drop for ResetOnDrop {
    fn drop(&mut self) {
        // Fails when it is finished already, which is the usual case.
        let _ = self.0.reset(VarInt::from_u32(0));
    }
}

/// Unless another machine has taken its place.
fn accept(
    endpoint: &Weak<EndpointInner>,
    connection: Connection,
    identity: &PeerIdentity,
    address: SocketAddr,
) -> Result<Connection, NetError> {
    let required = endpoint.upgrade().map(|endpoint| endpoint.required.clone());
    match required.map_or(Ok(()), |required| required.check(identity)) {
        Ok(()) => Ok(connection),
        Err(reason) => {
            connection.close(VarInt::from_u32(REFUSED), reason.as_bytes());
            Err(NetError::Refused {
                peer: identity.name,
                address,
                reason,
            })
        }
    }
}

async fn connect(
    endpoint: &EndpointInner,
    name: NodeName,
    address: SocketAddr,
    lane: Lane,
) -> Result<(Connection, PeerIdentity), NetError> {
    let unreachable = |reason: String| NetError::Unreachable {
        peer: name,
        address,
        reason,
    };
    let refused = |reason: String| NetError::Refused {
        peer: name,
        address,
        reason,
    };
    let classify = |error: ConnectionError| match refusal(&error) {
        Some(reason) => refused(reason),
        None => unreachable(error.to_string()),
    };
    let connecting = endpoint
        .quic
        .connect_with(endpoint.client_config(address), address, &dns_name(name))
        .map_err(|error| unreachable(error.to_string()))?;
    let connection = connecting.await.map_err(classify)?;
    let identity = peer_certificate(&connection).and_then(|certificate| identity_of(&certificate).ok());
    let identity = match identity {
        Some(identity) if identity.cluster == endpoint.cluster && identity.name == name => identity,
        Some(identity) => {
            connection.close(VarInt::from_u32(REFUSED), b"not who was called");
            return Err(refused(format!(
                "its certificate is of {} in cluster {}",
                identity.name, identity.cluster
            )));
        }
        None => {
            connection.close(VarInt::from_u32(REFUSED), b"no dfs certificate");
            return Err(refused("its certificate is none of dfs".to_owned()));
        }
    };
    let hello = codec::encode(&(
        Hello {
            protocol: PROTOCOL_VERSION,
            cluster: endpoint.cluster,
        },
        lane,
    ))?;
    let answer = async {
        let (mut send, mut recv) = connection.open_bi().await.map_err(classify)?;
        send.write_all(&hello)
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        let _ = send.finish();
        recv.read_to_end(HELLO_MAX_BYTES)
            .await
            .map_err(|error| unreachable(error.to_string()))
    };
    let answer: Result<Vec<u8>, NetError> = answer.await;
    let answer = match (answer, connection.close_reason()) {
        (Ok(answer), _) => answer,
        // The close says more than the stream that died of it.
        (Err(_), Some(reason)) => return Err(classify(reason)),
        (Err(error), None) => return Err(error),
    };
    let hello: Hello = codec::decode(&answer)?;
    if hello.protocol != PROTOCOL_VERSION || hello.cluster != endpoint.cluster {
        connection.close(VarInt::from_u32(REFUSED), b"another protocol version or cluster");
        return Err(refused(format!(
            "it speaks version {} for cluster {}",
            hello.protocol, hello.cluster
        )));
    }
    Ok((connection, identity))
}

/// Why a connection was refused, if it was refused and not merely lost.
pub(crate) fn refusal(error: &ConnectionError) -> Option<String> {
    match error {
        ConnectionError::TransportError(error) if CRYPTO_ERRORS.contains(&u64::from(error.code)) => {
            Some(error.to_string())
        }
        ConnectionError::ConnectionClosed(close) if CRYPTO_ERRORS.contains(&u64::from(close.error_code)) => {
            Some(close.to_string())
        }
        ConnectionError::ApplicationClosed(close) if close.error_code == VarInt::from_u32(REFUSED) => {
            Some(String::from_utf8_lossy(&close.reason).into_owned())
        }
        _ => None,
    }
}

pub(crate) fn peer_certificate(connection: &Connection) -> Option<CertificateDer<'static>> {
    let chain = connection
        .peer_identity()?
        .downcast::<Vec<CertificateDer<'static>>>()
        .ok()?;
    chain.first().cloned()
}
