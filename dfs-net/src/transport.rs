//! QUIC's knobs, chosen by link.
//!
//! On loopback a datagram may be 65,507 bytes, which halves the CPU a byte costs; segmentation offload must be off
//! there, since ten such segments do not fit the kernel's 64 KiB and the error is swallowed as loss, and the
//! congestion window must start large, or the default one deadlocks the handshake at such an MTU. On a network the MTU is discovered and
//! segmentation offload does the batching.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::{EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use rustix::net::sockopt;

use crate::error::NetError;

/// Silence after which the other side is taken for dead. With [`KEEP_ALIVE`] four probes must be lost.
pub(crate) const IDLE_TIMEOUT_MS: u32 = 700;
const KEEP_ALIVE: Duration = Duration::from_millis(150);

/// IPv4's largest UDP payload.
const LOOPBACK_MTU: u16 = 65_507;
/// Segmentation offload sends ten segments at a time, which must fit 64 KiB.
const NETWORK_MTU_MAX: u16 = 6_400;

/// Requests under way on one connection; the next one waits for a stream.
const STREAMS_MAX: u32 = 1024;
/// A megabyte of data with room to pipeline.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
/// Bounds what one connection can make the other side buffer.
const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;
const LOOPBACK_WINDOW_BYTES: u64 = 16 << 20;
const NETWORK_WINDOW_BYTES: u64 = 256 << 10;

/// A burst of a connection's window should fit, or loopback loses packets.
const SOCKET_BUFFER_BYTES: usize = 16 << 20;

/// Configurations for both kinds of link.
#[derive(Clone, Debug)]
pub(crate) struct Transports {
    loopback: Arc<TransportConfig>,
    network: Arc<TransportConfig>,
}

impl Transports {
    pub(crate) fn new() -> Self {
        let mut loopback = common();
        let mut congestion = CubicConfig::default();
        congestion.initial_window(LOOPBACK_WINDOW_BYTES);
        loopback
            .initial_mtu(LOOPBACK_MTU)
            .mtu_discovery_config(None)
            .enable_segmentation_offload(false)
            .initial_rtt(Duration::from_millis(5))
            .congestion_controller_factory(Arc::new(congestion));

        let mut network = common();
        let mut discovery = MtuDiscoveryConfig::default();
        discovery.upper_bound(NETWORK_MTU_MAX);
        let mut congestion = CubicConfig::default();
        congestion.initial_window(NETWORK_WINDOW_BYTES);
        network
            .mtu_discovery_config(Some(discovery))
            .initial_rtt(Duration::from_millis(20))
            .congestion_controller_factory(Arc::new(congestion));
        Self {
            loopback: Arc::new(loopback),
            network: Arc::new(network),
        }
    }

    pub(crate) fn toward(&self, address: IpAddr) -> Arc<TransportConfig> {
        Arc::clone(if address.is_loopback() {
            &self.loopback
        } else {
            &self.network
        })
    }
}

fn common() -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(u64::from(CONNECTION_WINDOW_BYTES));
    config
}

/// What both ends accept; the sender's transport decides what is sent.
pub(crate) fn endpoint_config() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    // The bound is a constant within QUIC's range; should a release reject it, the default still works.
    let _ = config.max_udp_payload_size(LOOPBACK_MTU);
    config
}

/// A bound socket with buffers as large as the kernel lets us have.
pub(crate) fn socket(listen: SocketAddr) -> Result<UdpSocket, NetError> {
    let socket = UdpSocket::bind(listen).map_err(|error| {
        let reason = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                "the port is in use by another process; stop it or choose another port".to_owned()
            }
            std::io::ErrorKind::AddrNotAvailable => "this host does not have that address".to_owned(),
            _ => error.to_string(),
        };
        NetError::Bind {
            address: listen,
            reason,
        }
    })?;
    // Root may go over the system's limit; others get as much as it allows.
    if sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER_BYTES).is_err() {
        let _ = sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES);
    }
    let _ = sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES);
    Ok(socket)
}
