//! `dfs chain`: chains as they are, as they change, and whether their replicas are equal.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use dfs_client::AdminClient;
use dfs_client::admin::{ChainReport, ChunkComparison};
use dfs_common::{BlockIndex, ChainId, ErrorCode};
use serde::Serialize;

use crate::args::{ChainVerb, ClusterArgs, Format, ShowArgs};
use crate::failure::{Code, Failure, Outcome};
use crate::output;
use crate::program::block_on;
use crate::status::{self, ChainView, Health, ResyncView, storage_name};

/// How long differences may be writes in flight before they count as differences.
const SETTLE: Duration = Duration::from_secs(5);

/// Differing chunks of one chain that a table names; JSON has all.
const DIFFERENCES_SHOWN: usize = 10;

pub(crate) fn run(verb: &ChainVerb) -> Outcome {
    match verb {
        ChainVerb::List(show) => list(show),
        ChainVerb::Show { id, show } => show_one(*id, show),
        ChainVerb::Watch {
            once,
            until_healthy,
            interval,
            show,
        } => {
            if !(0.05..=3600.0).contains(interval) {
                return Err(Failure::usage("--interval must lie between 0.05 and 3600 seconds"));
            }
            let interval = Duration::from_secs_f64(*interval);
            block_on(watch(show, interval, *once, *until_healthy))
        }
        ChainVerb::Verify { ids, deep, show } => block_on(verify(ids, *deep, show)),
    }
}

fn chains(cluster: &ClusterArgs) -> Outcome<Vec<ChainView>> {
    block_on(async {
        let client = status::connect(cluster).await?;
        let known = client.status().await?;
        client.close().await;
        Ok(status::view(&known).chains)
    })
}

fn list(show: &ShowArgs) -> Outcome {
    let chains = chains(&show.cluster)?;
    output::print(show.output, &chains, || status::print_chains(&chains))
}

fn show_one(id: u32, show: &ShowArgs) -> Outcome {
    let chains = chains(&show.cluster)?;
    let Some(chain) = chains.iter().find(|chain| chain.id == id) else {
        return Err(Failure::new(format!("there is no chain {id}; see: dfs chain list")));
    };
    output::print(show.output, chain, || status::print_chains(std::slice::from_ref(chain)))
}

/// What one look shows.
#[derive(Debug, Serialize)]
struct Look<'a> {
    health: Health,
    chains: &'a [ChainView],
    resyncs: &'a [ResyncView],
}

async fn watch(show: &ShowArgs, interval: Duration, once: bool, until_healthy: bool) -> Outcome {
    let client = status::connect(&show.cluster).await?;
    let mut rates = Rates::default();
    let start = Instant::now();
    loop {
        let view = match client.status().await {
            Ok(status) => status::view(&status),
            // Elections and restarts are what one watches for.
            Err(error) if !once && error.code != ErrorCode::Unauthorized => {
                if show.output == Format::Table {
                    output::line(&format!(
                        "{:7.1} s  no answer: {}",
                        start.elapsed().as_secs_f64(),
                        error.detail
                    ));
                }
                pause(interval).await?;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        match show.output {
            // One object a line, so that a program can read the stream.
            Format::Json => output::line(&serde_json::to_string(&Look {
                health: view.health,
                chains: &view.chains,
                resyncs: &view.resyncs,
            })?),
            Format::Table => {
                output::line(&format!(
                    "{:7.1} s  health {}",
                    start.elapsed().as_secs_f64(),
                    output::coloured(&view.health.to_string())
                ));
                status::print_chains(&view.chains);
                for resync in &view.resyncs {
                    let rate = rates.of(resync, Instant::now());
                    let rate = rate.map_or_else(String::new, |rate| format!(", {}/s", output::bytes(rate)));
                    output::line(&format!("{}{rate}", status::resync_line(resync)));
                }
                output::line("");
            }
        }
        if once || (until_healthy && view.health == Health::Ok) {
            client.close().await;
            return Ok(Code::Ok);
        }
        pause(interval).await?;
    }
}

async fn pause(interval: Duration) -> Outcome<()> {
    tokio::select! {
        () = tokio::time::sleep(interval) => Ok(()),
        _ = tokio::signal::ctrl_c() => Err(Failure::new("interrupted")),
    }
}

/// Bytes a second of each resync, from one look to the next.
#[derive(Debug, Default)]
struct Rates(BTreeMap<(u32, String), (u64, Instant)>);

impl Rates {
    /// Bytes a second since the last look; none at the first.
    fn of(&mut self, resync: &ResyncView, now: Instant) -> Option<u64> {
        let before = self
            .0
            .insert((resync.chain, resync.to.clone()), (resync.bytes_done, now));
        before.map(|(bytes, at)| {
            let millis = now.duration_since(at).as_millis().max(1);
            (u128::from(resync.bytes_done.saturating_sub(bytes)) * 1000 / millis) as u64
        })
    }
}

#[derive(Debug, Serialize)]
struct VerifyView {
    equal: bool,
    chunks: u64,
    chains: Vec<ChainVerifyView>,
}

#[derive(Debug, Serialize)]
struct ChainVerifyView {
    chain: u32,
    epoch: u64,
    compared: Vec<String>,
    chunks: u64,
    differing: Vec<DifferenceView>,
    unreachable: Vec<String>,
}

#[derive(Debug, Serialize)]
struct DifferenceView {
    chunk: String,
    replicas: Vec<ReplicaView>,
}

#[derive(Debug, Serialize)]
struct ReplicaView {
    name: String,
    /// `None`: it does not have the chunk.
    version: Option<String>,
    digest: Option<String>,
    blocks: Option<u32>,
    rotten_block: Option<u32>,
}

async fn verify(ids: &[u32], deep: bool, show: &ShowArgs) -> Outcome {
    let client = status::connect(&show.cluster).await?;
    let known = client.status().await?;
    let all: Vec<_> = known.routing.chains.keys().copied().collect();
    if let Some(unknown) = ids.iter().find(|&&id| !all.contains(&ChainId(id))) {
        return Err(Failure::usage(format!(
            "there is no chain {unknown}; see: dfs chain list"
        )));
    }
    if all.is_empty() {
        return Err(Failure::new(
            "there are no chains yet: too few storage nodes have joined",
        ));
    }
    let chosen = all
        .into_iter()
        .filter(|chain| ids.is_empty() || ids.contains(&chain.get()));
    let mut chains = Vec::new();
    for chain in chosen {
        chains.push(chain_verify_view(&verify_one(&client, chain, deep).await?));
    }
    client.close().await;
    let chunks = chains.iter().map(|chain| chain.chunks).sum();
    let equal = chains
        .iter()
        .all(|chain| chain.differing.is_empty() && chain.unreachable.is_empty());
    let view = VerifyView { equal, chunks, chains };
    output::print(show.output, &view, || print_verify(&view))?;
    Ok(if equal { Code::Ok } else { Code::Failed })
}

/// A chain that changes while it is compared is compared again.
async fn verify_one(client: &AdminClient, chain: ChainId, deep: bool) -> Outcome<ChainReport> {
    let start = Instant::now();
    loop {
        let report = client.verify_chain(chain, deep).await?;
        // Replicas are listed one after the other; writes in between look like differences, but pass.
        if report.differing.is_empty() || start.elapsed() > SETTLE {
            return Ok(report);
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

fn chain_verify_view(report: &ChainReport) -> ChainVerifyView {
    ChainVerifyView {
        chain: report.chain.id.get(),
        epoch: report.chain.epoch.get(),
        compared: report.compared.iter().map(|&node| storage_name(node)).collect(),
        chunks: report.chunks,
        differing: report.differing.iter().map(difference_view).collect(),
        unreachable: report
            .unreachable
            .iter()
            .map(|(_, error)| error.detail.clone())
            .collect(),
    }
}

fn difference_view(difference: &ChunkComparison) -> DifferenceView {
    let replicas = difference.replicas.iter().map(|(node, summary)| ReplicaView {
        name: storage_name(*node),
        version: summary.as_ref().map(|summary| summary.version.to_string()),
        digest: summary.as_ref().map(|summary| hex::encode(summary.digest)),
        blocks: summary.as_ref().map(|summary| summary.blocks),
        rotten_block: summary.as_ref().and_then(|summary| summary.rotten).map(BlockIndex::get),
    });
    DifferenceView {
        chunk: difference.chunk.to_string(),
        replicas: replicas.collect(),
    }
}

fn print_verify(view: &VerifyView) {
    for chain in &view.chains {
        for difference in chain.differing.iter().take(DIFFERENCES_SHOWN) {
            let replicas = difference
                .replicas
                .iter()
                .map(|replica| match (&replica.version, &replica.digest) {
                    (Some(version), Some(digest)) => {
                        let rotten = replica
                            .rotten_block
                            .map_or(String::new(), |block| format!(" block {block} rotten"));
                        format!(
                            "{} v{version} {}{rotten}",
                            replica.name,
                            digest.get(..8).unwrap_or(digest)
                        )
                    }
                    _ => format!("{} does not have it", replica.name),
                });
            let replicas = replicas.collect::<Vec<_>>().join(", ");
            output::line(&format!(
                "chain {}: chunk {} differs: {replicas}",
                chain.chain, difference.chunk
            ));
        }
        let more = chain.differing.len().saturating_sub(DIFFERENCES_SHOWN);
        if more > 0 {
            output::line(&format!("chain {}: {more} more chunks differ", chain.chain));
        }
        for reason in &chain.unreachable {
            output::line(&format!("chain {}: not compared: {reason}", chain.chain));
        }
        if chain.compared.len() < 2 {
            output::line(&format!(
                "chain {}: only {} replica in sync",
                chain.chain,
                chain.compared.len()
            ));
        }
    }
    if view.equal {
        output::line(&format!(
            "all replicas are equal: {} chunks on {} chains",
            view.chunks,
            view.chains.len()
        ));
    }
}
