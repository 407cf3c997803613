//! Input that no honest peer sends.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dfs_common::units::MAX_PAYLOAD_SIZE_BYTES;
use dfs_common::wire::Lane;
use dfs_common::{ClusterId, Error, ErrorCode, NodeName, Role, codec};
use dfs_crypto::CertificateAuthority;
use dfs_net::{CancellationToken, Endpoint, Incoming, NetError, Outgoing, Service};

struct Echo;

impl Service for Echo {
    async fn call(&self, request: Incoming) -> Result<Outgoing, Error> {
        Ok(Outgoing {
            header: codec::encode(&7_u32)?,
            payload: vec![request.payload],
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_oversize_leave_the_server_well() {
    let authority = CertificateAuthority::generate(ClusterId([1; 16])).unwrap();
    let local: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let name = NodeName::new(Role::Storage, 1);
    let server = Endpoint::bind(&authority.issue(name).unwrap(), local).await.unwrap();
    let address = server.local_address();
    let client = Endpoint::bind(&authority.issue(NodeName::new(Role::Client, 1)).unwrap(), local)
        .await
        .unwrap();
    let peer = client.peer(name, address);

    // Asked before anybody serves: the handshake is tried again until somebody does.
    let serving = tokio::spawn({
        let server = server.clone();
        async move {
            tokio::time::sleep(Duration::from_millis(150)).await;
            server.serve(Arc::new(Echo), CancellationToken::new()).await;
        }
    });
    let ask = |payload: Bytes| {
        let peer = peer.clone();
        async move {
            peer.call::<_, u32>(Lane::Bulk, &1_u32, &[payload], Duration::from_secs(5))
                .await
        }
    };
    assert_eq!(ask(Bytes::from_static(b"x")).await.unwrap().1, "x");

    let stranger = UdpSocket::bind(local).unwrap();
    let mut seed = 1_u32;
    for size in (0..1500).step_by(3).chain([20_000, 60_000]) {
        let noise: Vec<u8> = (0..size)
            .map(|_| {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (seed >> 24) as u8
            })
            .collect();
        stranger.send_to(&noise, address).unwrap();
    }
    assert_eq!(ask(Bytes::from_static(b"y")).await.unwrap().1, "y");

    let largest = Bytes::from(vec![3; MAX_PAYLOAD_SIZE_BYTES]);
    assert_eq!(ask(largest.clone()).await.unwrap().1, largest);
    let error = ask(Bytes::from(vec![3; MAX_PAYLOAD_SIZE_BYTES + 1])).await.unwrap_err();
    assert!(matches!(error, NetError::Remote(e) if e.code == ErrorCode::BadMessage));
    assert!(peer.round_trip().is_none(), "the control lane was never used");
    serving.abort();
}
