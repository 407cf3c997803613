//! Two processes' worth of endpoints over real sockets.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::large_stack_arrays,
    reason = "a test fails by panicking"
)]

use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dfs_common::wire::Lane;
use dfs_common::{ClusterId, Error, ErrorCode, NodeName, Role, codec};
use dfs_crypto::CertificateAuthority;
use dfs_net::{CancellationToken, Endpoint, Incoming, NetError, Outgoing, Service};

#[derive(Default)]
struct Echo {
    started: AtomicUsize,
    dropped: Arc<AtomicUsize>,
}

struct CountDrop(Arc<AtomicUsize>);

impl Drop for CountDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Service for Echo {
    async fn call(&self, request: Incoming) -> Result<Outgoing, Error> {
        self.started.fetch_add(1, Ordering::SeqCst);
        let word: String = codec::decode(&request.header)?;
        match word.as_str() {
            "fail" => Err(Error::new(ErrorCode::NoSpace, "full")),
            "hang" => {
                let _count = CountDrop(Arc::clone(&self.dropped));
                pending().await
            }
            _ => Ok(Outgoing {
                header: codec::encode(&format!("{word} from {}", request.peer.name))?,
                payload: vec![request.payload],
            }),
        }
    }
}

fn local() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn authority(byte: u8) -> CertificateAuthority {
    CertificateAuthority::generate(ClusterId([byte; 16])).unwrap()
}

async fn endpoint(ca: &CertificateAuthority, role: Role, number: u64) -> Endpoint {
    let credentials = ca.issue(NodeName::new(role, number)).unwrap();
    Endpoint::bind(&credentials, local()).await.unwrap()
}

async fn server(ca: &CertificateAuthority) -> (Endpoint, Arc<Echo>) {
    let (server, echo) = (endpoint(ca, Role::Meta, 1).await, Arc::<Echo>::default());
    let (serving, service) = (server.clone(), Arc::clone(&echo));
    tokio::spawn(async move { serving.serve(service, CancellationToken::new()).await });
    (server, echo)
}

const META_1: NodeName = NodeName::new(Role::Meta, 1);
const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_requests_at_once_and_an_error() {
    let ca = authority(1);
    let (server, _) = server(&ca).await;
    let client = endpoint(&ca, Role::Client, 7).await;
    let peer = client.peer(META_1, server.local_address());
    let mut calls = Vec::new();
    for n in 0..1000 {
        let peer = peer.clone();
        calls.push(tokio::spawn(async move {
            let word = format!("n{n}");
            peer.call::<_, String>(Lane::Control, &word, &[], 20 * SECOND)
                .await
                .unwrap()
                .0
        }));
    }
    for (n, call) in calls.into_iter().enumerate() {
        assert_eq!(call.await.unwrap(), format!("n{n} from client-7"));
    }
    let error = peer
        .call::<_, String>(Lane::Control, &"fail", &[], 5 * SECOND)
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            NetError::Remote(Error {
                code: ErrorCode::NoSpace,
                ..
            })
        ),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlines_hold_and_dropping_cancels_at_the_server() {
    let ca = authority(1);
    let (server, echo) = server(&ca).await;
    let client = endpoint(&ca, Role::Client, 7).await;
    let peer = client.peer(META_1, server.local_address());
    let _ = peer
        .call::<_, String>(Lane::Control, &"hello", &[], 5 * SECOND)
        .await
        .unwrap();
    let error = peer
        .call::<_, String>(Lane::Control, &"hang", &[], SECOND / 5)
        .await
        .unwrap_err();
    let late = matches!(
        error,
        NetError::Timeout { .. }
            | NetError::Remote(Error {
                code: ErrorCode::Timeout,
                ..
            })
    );
    assert!(late, "{error}");
    let call = tokio::spawn(async move { peer.call::<_, String>(Lane::Control, &"hang", &[], 60 * SECOND).await });
    while echo.started.load(Ordering::SeqCst) < 3 {
        tokio::time::sleep(SECOND / 100).await;
    }
    call.abort();
    let start = Instant::now();
    while echo.dropped.load(Ordering::SeqCst) < 2 {
        assert!(start.elapsed() < 5 * SECOND, "the server goes on working for nobody");
        tokio::time::sleep(SECOND / 100).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused_with_a_reason() {
    let (ours, theirs) = (authority(1), authority(2));
    let (server, echo) = server(&ours).await;
    let foreign = endpoint(&theirs, Role::Client, 7).await;
    let peer = foreign.peer(META_1, server.local_address());
    let error = peer
        .call::<_, String>(Lane::Control, &"hello", &[], 5 * SECOND)
        .await
        .unwrap_err();
    assert!(matches!(error, NetError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");

    // The right CA, but not who was called.
    let client = endpoint(&ours, Role::Client, 7).await;
    let wrong = client.peer(NodeName::new(Role::Meta, 2), server.local_address());
    let error = wrong
        .call::<_, String>(Lane::Control, &"hello", &[], 5 * SECOND)
        .await
        .unwrap_err();
    assert!(matches!(error, NetError::Refused { .. }), "{error}");
    assert_eq!(echo.started.load(Ordering::SeqCst), 0);
}

#[test]
fn a_dead_peer_fails_what_waits_for_it() {
    let ca = authority(1);
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap()
    };
    let (serving, asking) = (runtime(), runtime());
    let (first, echo) = serving.block_on(server(&ca));
    let address = first.local_address();
    let client = asking.block_on(endpoint(&ca, Role::Client, 7));
    let peer = client.peer(META_1, address);
    let waiting = peer.clone();
    let call = asking.spawn(async move {
        waiting
            .call::<_, String>(Lane::Control, &"hang", &[], 60 * SECOND)
            .await
    });
    while echo.started.load(Ordering::SeqCst) < 1 {
        std::thread::sleep(SECOND / 100);
    }
    // Gone without a word, as by kill -9.
    serving.shutdown_background();
    std::mem::forget(first);
    let start = Instant::now();
    let error = asking.block_on(call).unwrap().unwrap_err();
    assert!(matches!(error, NetError::Unreachable { .. }), "{error}");
    assert!(start.elapsed() < 3 * SECOND, "{:?}", start.elapsed());
}
