//! `dfs scrub`: what the storage nodes find when they check what they have stored.

use std::time::Duration;

use dfs_client::AdminClient;
use dfs_common::wire::storage::{Damage, DamageOutcome, FoundBy, ScrubReport};
use dfs_common::{ChainId, NodeName, StorageId};
use serde::Serialize;

use crate::args::{ScrubArgs, ScrubVerb};
use crate::failure::{Code, Failure, Outcome};
use crate::output::{self, Table, utc};
use crate::program;
use crate::status::{self, storage_name};

/// Between two looks at a round that is waited for.
const LOOK: Duration = Duration::from_millis(200);

/// What was found at the end of a round is usually mended a moment later.
const SETTLE: Duration = Duration::from_secs(10);

#[derive(Debug, Serialize)]
struct NodeView {
    node: String,
    /// Why it said nothing.
    unreachable: Option<String>,
    running: bool,
    began: Option<String>,
    ended: Option<String>,
    rounds: u64,
    checked_bytes: u64,
    total_bytes: u64,
    rate_bytes: u64,
    found: u64,
    mended: u64,
    open: u64,
    lost: u64,
    errors: Vec<ErrorView>,
}

#[derive(Clone, Debug, Serialize)]
struct ErrorView {
    time: String,
    node: String,
    chain: Option<u32>,
    chunk: Option<String>,
    found_by: &'static str,
    what: String,
    outcome: String,
}

pub(crate) fn run(verb: &ScrubVerb) -> Outcome {
    match verb {
        ScrubVerb::Start { wait, of } => program::block_on(start(of, *wait)),
        ScrubVerb::Status { of } => program::block_on(look(of, false, print_status)),
        ScrubVerb::Errors { of } => program::block_on(look(of, true, print_errors)),
    }
}

fn outcome_text(outcome: DamageOutcome) -> String {
    match outcome {
        DamageOutcome::Open => "being mended".into(),
        DamageOutcome::Mended { from } => format!("mended from {}", storage_name(from)),
        DamageOutcome::Replaced => "replaced".into(),
        DamageOutcome::Rebuilt => "rebuilt".into(),
        DamageOutcome::Lost => "lost: no sound copy".into(),
    }
}

fn error_view(node: StorageId, damage: &Damage) -> ErrorView {
    ErrorView {
        time: utc(damage.at),
        node: storage_name(node),
        chain: damage.chain.map(ChainId::get),
        chunk: damage.chunk.map(|chunk| chunk.to_string()),
        found_by: match damage.found_by {
            FoundBy::Start => "start",
            FoundBy::Read => "read",
            FoundBy::Scrub => "scrub",
            FoundBy::Compaction => "compaction",
        },
        what: damage.what.clone(),
        outcome: outcome_text(damage.outcome),
    }
}

fn node_view(node: StorageId, report: dfs_common::Result<ScrubReport>) -> NodeView {
    let (report, unreachable) = match report {
        Ok(report) => (report, None),
        Err(error) => (ScrubReport::default(), Some(error.detail)),
    };
    NodeView {
        node: storage_name(node),
        unreachable,
        running: report.running,
        began: report.began.map(utc),
        ended: report.ended.map(utc),
        rounds: report.rounds,
        checked_bytes: report.checked_bytes,
        total_bytes: report.total_bytes,
        rate_bytes: report.rate_bytes,
        found: report.found,
        mended: report.mended,
        open: report.open,
        lost: report.lost,
        errors: report.damage.iter().map(|damage| error_view(node, damage)).collect(),
    }
}

/// The nodes that are meant.
async fn nodes(client: &AdminClient, of: &ScrubArgs) -> Outcome<Vec<StorageId>> {
    let known: Vec<StorageId> = client.status().await?.routing.nodes.keys().copied().collect();
    match of.node {
        None => Ok(known),
        Some(number) if known.contains(&StorageId(number)) => Ok(vec![StorageId(number)]),
        Some(number) => Err(Failure::usage(format!(
            "there is no storage-{number} in the cluster; see: dfs status"
        ))),
    }
}

async fn ask(client: &AdminClient, nodes: &[StorageId], start: bool) -> Vec<NodeView> {
    let mut views = Vec::with_capacity(nodes.len());
    for &node in nodes {
        views.push(node_view(node, client.scrub(node, start).await));
    }
    views
}

fn code(views: &[NodeView]) -> Code {
    let bad = views
        .iter()
        .any(|view| view.unreachable.is_some() || view.open > 0 || view.lost > 0);
    if bad { Code::Failed } else { Code::Ok }
}

async fn start(of: &ScrubArgs, wait: bool) -> Outcome {
    let client = status::connect(&of.show.cluster).await?;
    let nodes = nodes(&client, of).await?;
    let mut views = ask(&client, &nodes, true).await;
    let mut settle = SETTLE;
    loop {
        let running = views.iter().any(|view| view.running);
        let mending = views.iter().any(|view| view.open > view.lost);
        if !wait || (!running && (!mending || settle.is_zero())) {
            break;
        }
        if !running {
            settle = settle.saturating_sub(LOOK);
        }
        tokio::time::sleep(LOOK).await;
        views = ask(&client, &nodes, false).await;
    }
    client.close().await;
    output::print(of.show.output, &views, || print_status(&views))?;
    Ok(code(&views))
}

/// What the metadata servers found, as rows beside those of the storage nodes.
async fn metadata(client: &AdminClient) -> Vec<NodeView> {
    let mut views = Vec::new();
    for (server, found) in client.meta_damage().await {
        let node = NodeName::from(server).to_string();
        let (found, unreachable) = match found {
            Ok(found) => (found, None),
            Err(error) => (Vec::new(), Some(error.detail)),
        };
        let errors = found.into_iter().map(|damage| ErrorView {
            time: utc(damage.at),
            node: node.clone(),
            chain: None,
            chunk: None,
            found_by: "start",
            what: damage.what,
            outcome: "rebuilt".into(),
        });
        let errors: Vec<_> = errors.collect();
        let count = errors.len() as u64;
        views.push(NodeView {
            node,
            unreachable,
            found: count,
            mended: count,
            errors,
            ..node_view(StorageId(0), Ok(ScrubReport::default()))
        });
    }
    views
}

async fn look(of: &ScrubArgs, with_metadata: bool, print: fn(&[NodeView])) -> Outcome {
    let client = status::connect(&of.show.cluster).await?;
    let nodes = nodes(&client, of).await?;
    let mut views = ask(&client, &nodes, false).await;
    if with_metadata && of.node.is_none() {
        views.extend(metadata(&client).await);
    }
    client.close().await;
    output::print(of.show.output, &views, || print(&views))?;
    Ok(code(&views))
}

fn print_status(views: &[NodeView]) {
    let mut table = Table::new(&[
        "STORAGE", "STATE", "BEGAN", "CHECKED", "OF", "RATE", "ROUNDS", "FOUND", "MENDED", "OPEN", "LOST",
    ]);
    for view in views {
        if let Some(reason) = &view.unreachable {
            table.row([view.node.clone(), format!("does not answer: {reason}")]);
            continue;
        }
        table.row([
            view.node.clone(),
            if view.running { "running" } else { "idle" }.to_owned(),
            view.began.clone().unwrap_or_else(|| "never".into()),
            output::bytes(view.checked_bytes),
            output::bytes(view.total_bytes),
            format!("{}/s", output::bytes(view.rate_bytes)),
            view.rounds.to_string(),
            view.found.to_string(),
            view.mended.to_string(),
            view.open.to_string(),
            view.lost.to_string(),
        ]);
    }
    table.print();
}

fn print_errors(views: &[NodeView]) {
    let mut table = Table::new(&["TIME", "STORAGE", "CHAIN", "CHUNK", "FOUND BY", "OUTCOME", "WHAT"]);
    for error in views.iter().flat_map(|view| &view.errors) {
        table.row([
            error.time.clone(),
            error.node.clone(),
            error.chain.map_or_else(|| "-".into(), |chain| chain.to_string()),
            error.chunk.clone().unwrap_or_else(|| "-".into()),
            error.found_by.to_owned(),
            error.outcome.clone(),
            error.what.clone(),
        ]);
    }
    table.print();
    if views.iter().any(|view| view.lost > 0) {
        output::line(
            "lost: write those blocks again, or restore or remove the file; 4098:2 is chunk 2 of the file that find -inum 4098 finds. Then: \
             dfs scrub start --wait",
        );
    }
    for view in views {
        if let Some(reason) = &view.unreachable {
            output::line(&format!("{} does not answer: {reason}", view.node));
        }
    }
}
