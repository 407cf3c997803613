//! Answering: connections in, identity out of their certificate, one task a request.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dfs_common::units::{MAX_HEADER_SIZE_BYTES, MAX_PAYLOAD_SIZE_BYTES};
use dfs_common::wire::{Hello, Lane, PROTOCOL_VERSION};
use dfs_common::{Error, ErrorCode, codec};
use dfs_crypto::{PeerIdentity, identity_of};
use quinn::{Connection, ConnectionError, RecvStream, SendStream, VarInt};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::endpoint::EndpointInner;
use crate::frame::{self, FrameError};
use crate::peer::{HELLO_MAX_BYTES, REFUSED, peer_certificate, refusal};

/// Connections of one process: hundreds of clients with their lanes.
const CONNECTIONS_MAX: usize = 4096;
/// Handshakes under way at a time.
const HANDSHAKES_MAX: usize = 256;
/// Requests in memory, over all connections.
const REQUESTS_MAX: usize = 8192;
/// Bytes of requests in memory, in KiB, over all connections.
const REQUEST_MEMORY_KIB: u32 = 256 << 10;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(2);
/// A request or an answer that moves no further for this long gives its place and memory back, so that one slow or
/// hostile caller can not hold what all share.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(10);

/// A request as it came.
#[derive(Debug)]
pub struct Incoming {
    /// From the verified certificate.
    pub peer: PeerIdentity,
    pub lane: Lane,
    pub header: Bytes,
    pub payload: Bytes,
    /// What the caller gives it, from now.
    pub deadline: Duration,
}

/// A response.
#[derive(Debug, Default)]
pub struct Outgoing {
    /// Encoded with `dfs_common::codec`.
    pub header: Vec<u8>,
    pub payload: Vec<Bytes>,
}

/// What a process does for others. The future is dropped when the caller gives up or its deadline ends.
pub trait Service: Send + Sync + 'static {
    fn call(&self, request: Incoming) -> impl Future<Output = Result<Outgoing, Error>> + Send;
}

struct Bounds {
    connections: Semaphore,
    handshakes: Semaphore,
    requests: Semaphore,
    memory_kib: Semaphore,
}

pub(crate) async fn serve<S: Service>(endpoint: Arc<EndpointInner>, service: Arc<S>, shutdown: CancellationToken) {
    let bounds = Arc::new(Bounds {
        connections: Semaphore::new(CONNECTIONS_MAX),
        handshakes: Semaphore::new(HANDSHAKES_MAX),
        requests: Semaphore::new(REQUESTS_MAX),
        memory_kib: Semaphore::new(REQUEST_MEMORY_KIB as usize),
    });
    endpoint.accept_connections();
    loop {
        let incoming = tokio::select! {
            () = shutdown.cancelled() => return,
            incoming = endpoint.quic.accept() => incoming,
        };
        let Some(incoming) = incoming else { return };
        let (endpoint, service, shutdown, bounds) = (
            Arc::clone(&endpoint),
            Arc::clone(&service),
            shutdown.clone(),
            Arc::clone(&bounds),
        );
        tokio::spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = connection(&endpoint, &service, incoming, &bounds) => {}
            }
        });
    }
}

async fn connection<S: Service>(
    endpoint: &EndpointInner,
    service: &Arc<S>,
    incoming: quinn::Incoming,
    bounds: &Arc<Bounds>,
) {
    let address = incoming.remote_address();
    let Ok(_place) = bounds.connections.try_acquire() else {
        warn!(%address, "refused a connection: {CONNECTIONS_MAX} are open already");
        incoming.refuse();
        return;
    };
    let established = {
        let Ok(_handshake) = bounds.handshakes.acquire().await else {
            return;
        };
        timeout(HANDSHAKE_TIMEOUT, establish(endpoint, incoming)).await
    };
    let (connection, peer, lane) = match established {
        Ok(Ok(established)) => established,
        Ok(Err(reason)) => {
            if let Some(reason) = reason {
                warn!(%address, "refused a connection: {reason}");
            }
            return;
        }
        Err(_) => {
            debug!(%address, "a handshake was not finished in time");
            return;
        }
    };
    debug!(%address, peer = %peer.name, ?lane, "connected");
    let serve = async {
        while let Ok((send, recv)) = connection.accept_bi().await {
            let (service, bounds) = (Arc::clone(service), Arc::clone(bounds));
            tokio::spawn(async move { request(&*service, peer, lane, send, recv, &bounds).await });
        }
    };
    tokio::select! {
        () = serve => {}
        reason = endpoint.required.refused(&peer) => {
            warn!(%address, "ended a connection: {reason}");
            connection.close(VarInt::from_u32(REFUSED), reason.as_bytes());
        }
    }
}

/// Handshake, identity and `Hello`. `Err(Some(reason))` is a refusal worth a line, `Err(None)` a connection that just ended.
async fn establish(
    endpoint: &EndpointInner,
    incoming: quinn::Incoming,
) -> Result<(Connection, PeerIdentity, Lane), Option<String>> {
    let certificates = |error: ConnectionError| {
        refusal(&error).map(|reason| format!("its certificate is not accepted here, or it does not accept ours ({reason}); both must be of this cluster's CA"))
    };
    let config = Arc::new(endpoint.server_config(incoming.remote_address()));
    let connection = incoming
        .accept_with(config)
        .map_err(certificates)?
        .await
        .map_err(certificates)?;
    let refuse = |connection: &Connection, reason: String| {
        connection.close(VarInt::from_u32(REFUSED), reason.as_bytes());
        Some(reason)
    };
    let identity = peer_certificate(&connection)
        .ok_or_else(|| refuse(&connection, "it shows no certificate".to_owned()))
        .and_then(|certificate| identity_of(&certificate).map_err(|error| refuse(&connection, error.to_string())))?;
    if identity.cluster != endpoint.cluster {
        return Err(refuse(
            &connection,
            format!(
                "its certificate is of cluster {}, this is {}",
                identity.cluster, endpoint.cluster
            ),
        ));
    }
    endpoint
        .required
        .check(&identity)
        .map_err(|reason| refuse(&connection, reason))?;
    let (mut send, mut recv) = connection.accept_bi().await.map_err(certificates)?;
    let hello = recv
        .read_to_end(HELLO_MAX_BYTES)
        .await
        .map_err(|error| refuse(&connection, format!("no greeting: {error}")))?;
    let (hello, lane): (Hello, Lane) =
        codec::decode(&hello).map_err(|error| refuse(&connection, format!("no greeting: {error}")))?;
    if hello.protocol != PROTOCOL_VERSION || hello.cluster != endpoint.cluster {
        let reason = format!(
            "{} speaks protocol {}, this is {PROTOCOL_VERSION}: run the same version everywhere",
            identity.name, hello.protocol
        );
        return Err(refuse(&connection, reason));
    }
    let answer = codec::encode(&Hello {
        protocol: PROTOCOL_VERSION,
        cluster: endpoint.cluster,
    })
    .map_err(|_| None)?;
    send.write_all(&answer).await.map_err(|_| None)?;
    let _ = send.finish();
    Ok((connection, identity, lane))
}

async fn request<S: Service>(
    service: &S,
    peer: PeerIdentity,
    lane: Lane,
    mut send: SendStream,
    mut recv: RecvStream,
    bounds: &Bounds,
) {
    let Ok(prefix) = timeout(TRANSFER_TIMEOUT, frame::read_prefix(&mut recv)).await else {
        return;
    };
    let prefix = match prefix {
        Ok(prefix) => prefix,
        Err(error @ FrameError::TooBig { .. }) => {
            warn!(peer = %peer.name, "refused a request: {error}");
            answer(&mut send, Err(Error::new(ErrorCode::BadMessage, error.to_string()))).await;
            return;
        }
        Err(_) => return,
    };
    let Ok(_place) = bounds.requests.acquire().await else {
        return;
    };
    let kib = u32::try_from(prefix.size_bytes() / 1024 + 1).unwrap_or(REQUEST_MEMORY_KIB);
    let Ok(_memory) = bounds.memory_kib.acquire_many(kib).await else {
        return;
    };
    let Ok(Ok(frame)) = timeout(TRANSFER_TIMEOUT, frame::read_body(&mut recv, prefix)).await else {
        return;
    };
    let deadline = Duration::from_millis(u64::from(frame.word));
    let incoming = Incoming {
        peer,
        lane,
        header: frame.header,
        payload: frame.payload,
        deadline,
    };
    let given_up = send.stopped();
    let result = tokio::select! {
        result = timeout(deadline, service.call(incoming)) => result,
        _ = given_up => return,
    };
    let late = |_| {
        Err(Error::new(
            ErrorCode::Timeout,
            format!("not done within {} ms", deadline.as_millis()),
        ))
    };
    answer(&mut send, result.unwrap_or_else(late)).await;
}

async fn answer(send: &mut SendStream, result: Result<Outgoing, Error>) {
    let (status, outgoing) = match result {
        Ok(outgoing) => (0, outgoing),
        Err(error) => (1, error_response(&error)),
    };
    let payload_size: usize = outgoing.payload.iter().map(Bytes::len).sum();
    let (status, outgoing) = if outgoing.header.len() > MAX_HEADER_SIZE_BYTES || payload_size > MAX_PAYLOAD_SIZE_BYTES {
        (
            1,
            error_response(&Error::new(
                ErrorCode::Internal,
                format!(
                    "an answer of {} + {payload_size} B is over the limits",
                    outgoing.header.len()
                ),
            )),
        )
    } else {
        (status, outgoing)
    };
    // Who asked may be gone; nobody else is interested.
    let written = timeout(
        TRANSFER_TIMEOUT,
        frame::write(send, status, &outgoing.header, &outgoing.payload),
    )
    .await;
    if matches!(written, Ok(Ok(()))) {
        let _ = send.finish();
    } else {
        // Dropped, it would look like an answer that ends early.
        let _ = send.reset(VarInt::from_u32(0));
    }
}

fn error_response(error: &Error) -> Outgoing {
    Outgoing {
        header: codec::encode(error).unwrap_or_default(),
        payload: Vec::new(),
    }
}
