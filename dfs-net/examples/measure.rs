//! Latency of small requests and throughput of large ones, both ends on this machine:
//! `cargo run --release -p dfs-net --example measure`.
#![expect(clippy::print_stdout, reason = "prints its figures")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dfs_common::wire::Lane;
use dfs_common::{ClusterId, Error, NodeName, Role};
use dfs_crypto::CertificateAuthority;
use dfs_net::{CancellationToken, Endpoint, Incoming, NetError, Outgoing, Service};

struct Take;

impl Service for Take {
    async fn call(&self, request: Incoming) -> Result<Outgoing, Error> {
        Ok(Outgoing {
            header: request.header.to_vec(),
            payload: Vec::new(),
        })
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let ca = CertificateAuthority::generate(ClusterId([1; 16]))?;
    let (server, client) = (NodeName::new(Role::Storage, 1), NodeName::new(Role::Client, 1));
    let local = "127.0.0.1:0".parse()?;
    let serving = Endpoint::bind(&ca.issue(server)?, local).await?;
    let address = serving.local_address();
    tokio::spawn(async move { serving.serve(Arc::new(Take), CancellationToken::new()).await });
    let asking = Endpoint::bind(&ca.issue(client)?, local).await?;
    let peer = asking.peer(server, address);
    let deadline = Duration::from_secs(10);

    for pause in [Duration::ZERO, Duration::from_millis(20)] {
        let mut latencies = Vec::new();
        for _ in 0..if pause.is_zero() { 5000 } else { 100 } {
            tokio::time::sleep(pause).await;
            let start = Instant::now();
            let _: (u64, _) = peer.call(Lane::Control, &7_u64, &[], deadline).await?;
            latencies.push(start.elapsed());
        }
        latencies.sort();
        let at = |percent: usize| latencies[latencies.len() * percent / 100];
        println!("one at a time, {pause:?} apart: p50 {:?}, p99 {:?}", at(50), at(99));
    }

    let megabyte = Bytes::from(vec![7; 1 << 20]);
    let start = Instant::now();
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..2048 {
        if calls.len() >= 8 {
            calls.join_next().await.ok_or("no call")???;
        }
        let (peer, megabyte) = (peer.clone(), megabyte.clone());
        calls.spawn(async move {
            peer.call::<_, u64>(Lane::Bulk, &7_u64, &[megabyte], deadline)
                .await
                .map(drop) as Result<(), NetError>
        });
    }
    while let Some(done) = calls.join_next().await {
        done??;
    }
    println!(
        "1 MiB requests, 8 at a time: {:.0} MiB/s",
        2048.0 / start.elapsed().as_secs_f64()
    );
    Ok(())
}
