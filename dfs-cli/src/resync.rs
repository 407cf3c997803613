//! `dfs resync`: how far repairs are, and whether they may go on.

use std::time::Duration;

use serde::Serialize;

use crate::args::ResyncVerb;
use crate::failure::{Code, Outcome};
use crate::output::{self, Table};
use crate::program::block_on;
use crate::status::{self, ResyncView};

/// Between the two looks that give a rate.
const BETWEEN: Duration = Duration::from_secs(1);

#[derive(Debug, Serialize)]
struct View {
    paused: bool,
    bytes_per_second: u64,
    bytes_left: u64,
    /// `None`: nothing is left, or nothing moves.
    seconds_left: Option<u64>,
    resyncs: Vec<ResyncView>,
}

pub(crate) fn run(verb: &ResyncVerb) -> Outcome {
    match verb {
        ResyncVerb::Status(show) => block_on(async {
            let client = status::connect(&show.cluster).await?;
            let first = client.status().await?;
            tokio::time::sleep(BETWEEN).await;
            let second = client.status().await?;
            client.close().await;
            let view = view(
                &status::view(&first).resyncs,
                status::view(&second).resyncs,
                second.routing.resyncs_paused,
            );
            output::print(show.output, &view, || print(&view))
        }),
        ResyncVerb::Pause(cluster) => block_on(async {
            let client = status::connect(cluster).await?;
            client.pause_resyncs(true).await?;
            client.close().await;
            output::line("nothing is copied until: dfs resync resume. What is out of sync stays so");
            Ok(Code::Ok)
        }),
        ResyncVerb::Resume(cluster) => block_on(async {
            let client = status::connect(cluster).await?;
            client.pause_resyncs(false).await?;
            client.close().await;
            output::line("repairs go on; see: dfs resync status");
            Ok(Code::Ok)
        }),
    }
}

/// From two looks, a second apart. Pure.
fn view(first: &[ResyncView], second: Vec<ResyncView>, paused: bool) -> View {
    let moved = second.iter().map(|now| {
        let before = first
            .iter()
            .find(|before| before.chain == now.chain && before.to == now.to);
        now.bytes_done
            .saturating_sub(before.map_or(0, |before| before.bytes_done))
    });
    let bytes_per_second: u64 = moved.sum();
    let bytes_left: u64 = second
        .iter()
        .map(|resync| resync.bytes_total.saturating_sub(resync.bytes_done))
        .sum();
    View {
        paused,
        bytes_per_second,
        bytes_left,
        seconds_left: (!second.is_empty() && !paused)
            .then(|| bytes_left.checked_div(bytes_per_second))
            .flatten(),
        resyncs: second,
    }
}

fn print(view: &View) {
    if view.paused {
        output::line("paused; go on: dfs resync resume");
    }
    if view.resyncs.is_empty() {
        output::line("nothing is being copied");
        return;
    }
    let mut table = Table::new(&["CHAIN", "TO", "CHUNKS", "OF", "COPIED", "OF", "DONE"]);
    for resync in &view.resyncs {
        table.row([
            resync.chain.to_string(),
            resync.to.clone(),
            resync.chunks_done.to_string(),
            resync.chunks_total.to_string(),
            output::bytes(resync.bytes_done),
            output::bytes(resync.bytes_total),
            format!("{} %", resync.percent()),
        ]);
    }
    table.print();
    let left = view
        .seconds_left
        .map_or_else(String::new, |seconds| format!(", some {seconds} s"));
    output::line(&format!(
        "{}/s, {} left{left} (chains that wait for their turn come on top)",
        output::bytes(view.bytes_per_second),
        output::bytes(view.bytes_left)
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_comes_from_two_looks() {
        let resync = |bytes_done| ResyncView {
            chain: 1,
            to: "storage-1".into(),
            chunks_done: 1,
            chunks_total: 4,
            bytes_done,
            bytes_total: 100,
        };
        let moving = view(&[resync(20)], vec![resync(30)], false);
        assert_eq!(
            (moving.bytes_per_second, moving.bytes_left, moving.seconds_left),
            (10, 70, Some(7))
        );
        let still = view(&[resync(20)], vec![resync(20)], false);
        assert_eq!(still.seconds_left, None);
        assert_eq!(view(&[resync(20)], vec![resync(30)], true).seconds_left, None);
        assert_eq!(view(&[resync(20)], Vec::new(), false).seconds_left, None);
    }
}
