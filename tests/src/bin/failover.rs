//! How long an application waits when a server fails: `cargo run --release -p dfs-tests --bin failover -- --runs 30 --results FILE`.
//!
//! Every way to fail and every role, a number of times each, on one cluster with a network namespace a server. Each run is one
//! line of JSON at the end of the file of results, so a run that was interrupted is taken up where it was. At the end a table of
//! the file is printed. As root, for the namespaces.
#![expect(
    clippy::print_stdout,
    clippy::panic,
    clippy::expect_used,
    reason = "a tool for people; what goes wrong is shown and ends it"
)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use dfs_tests::HostCluster;
use dfs_tests::actors::Actor;
use dfs_tests::history::Appender;
use serde_json::{Value, json};

const WAYS: [&str; 4] = ["kill -9", "SIGSTOP", "deaf", "mute"];
const ROLES: [&str; 4] = ["head", "middle", "tail", "leader"];

/// Before the failure, while it lasts, and after all is well again.
const BEFORE: Duration = Duration::from_millis(700);
const DOWN: Duration = Duration::from_millis(2_200);
const AFTER: Duration = Duration::from_millis(200);

const HEALTHY: Duration = Duration::from_secs(30);

/// How long an application waits when a server fails. Needs root.
#[derive(Parser)]
struct Options {
    /// Of each way to fail and each role.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Where each run becomes a line of JSON; what is there already counts.
    #[arg(long, default_value = "failover.jsonl", value_name = "FILE")]
    results: PathBuf,
    /// Part of `WAY/ROLE`, such as `kill -9/leader`, or `deaf`.
    #[arg(long, value_name = "PART")]
    only: Option<String>,
}

fn results(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap_or_default();
    // The last line of a run that was cut off may be torn.
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

fn main() {
    let options = Options::parse();
    let wanted = |way: &str, role: &str| {
        let kind = format!("{way}/{role}");
        options.only.as_ref().is_none_or(|only| kind.contains(only.as_str()))
    };
    let mut cluster = None;
    // Round after round, so that a slow hour of the machine falls on all alike.
    for round in 0..options.runs {
        for way in WAYS {
            for role in ROLES {
                let done = results(&options.results);
                let done = done
                    .iter()
                    .filter(|run| run["way"] == way && run["role"] == role)
                    .count();
                if !wanted(way, role) || done > round {
                    continue;
                }
                let cluster = cluster.get_or_insert_with(|| HostCluster::up(1, false));
                let result = run(cluster, way, role);
                println!("{result}");
                let mut file = File::options()
                    .create(true)
                    .append(true)
                    .open(&options.results)
                    .expect("a writable file");
                writeln!(file, "{result}").expect("a writable file");
            }
        }
    }
    drop(cluster);
    print_table(&results(&options.results));
}

fn fail(cluster: &mut HostCluster, way: &str, victim: &str) {
    let (host, index) = (cluster.host(victim), cluster.index(victim));
    match way {
        "kill -9" => cluster.kill(index),
        "SIGSTOP" => cluster.signal(index, "STOP"),
        "deaf" => cluster.deafen(host),
        _ => cluster.mute(host),
    }
}

fn undo(cluster: &mut HostCluster, way: &str, victim: &str) {
    let (host, index) = (cluster.host(victim), cluster.index(victim));
    match way {
        "kill -9" => cluster.start(index),
        "SIGSTOP" => cluster.signal(index, "CONT"),
        _ => cluster.hosts.clear_rules(host),
    }
}

fn run(cluster: &mut HostCluster, way: &str, role: &str) -> Value {
    // The time of it names the directory: an earlier run's may be there.
    let number = results_number();
    let at = cluster.mount_points().remove(0).join(format!("run-{number}"));
    fs::create_dir(&at).expect("a directory on the mount");
    let log = at.join("log");
    let mut writer = Appender::start(&log);
    let reader = Actor::reader(&at).expect("a file to read");
    let short = Arc::new(AtomicU64::new(0));
    let follower = Actor::follower(log.clone(), Arc::clone(&short));
    let user = Actor::metadata_user(at.clone());
    thread::sleep(BEFORE);
    let victim = if role == "leader" {
        cluster.leader()
    } else {
        let place = ROLES.iter().position(|&known| known == role).expect("a role");
        cluster.chain_of(&log).swap_remove(place)
    };
    let begin = || {
        writer.begin();
        [&reader, &follower, &user].into_iter().for_each(Actor::begin);
    };
    let stalls = || {
        let reads = reader.longest().max(follower.longest());
        [
            ("writer", writer.longest()),
            ("reader", reads),
            ("metadata", user.longest()),
        ]
        .map(|(name, stall)| (name.to_owned(), json!(stall.as_millis() as u64)))
        .into_iter()
        .collect::<serde_json::Map<_, _>>()
    };
    begin();
    fail(cluster, way, &victim);
    thread::sleep(DOWN);
    let down = stalls();
    begin();
    let undone = Instant::now();
    undo(cluster, way, &victim);
    // Who was cut off for a moment may not be missed yet.
    thread::sleep(AFTER);
    cluster.wait_healthy(HEALTHY).unwrap_or_else(|why| panic!("{why}"));
    let healed = undone.elapsed();
    thread::sleep(AFTER);
    let back = stalls();
    let errors: Vec<String> = [&reader, &follower, &user]
        .into_iter()
        .flat_map(Actor::errors)
        .collect();
    drop((reader, follower, user));
    writer.stop();
    // Ends all if anything acknowledged is not there.
    writer.check();
    let result = json!({
        "way": way, "role": role, "victim": victim, "down_ms": down, "back_ms": back, "healed_ms": healed.as_millis() as u64,
        "errors": errors.len() as u64 + writer.errors(), "first_error": errors.first(), "acknowledged": writer.acknowledged(),
        "short_reads": short.load(Ordering::SeqCst),
    });
    fs::remove_dir_all(&at).expect("removing what the run made");
    result
}

fn results_number() -> u128 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis())
}

fn print_table(results: &[Value]) {
    let mut kinds: BTreeMap<(usize, usize), Vec<&Value>> = BTreeMap::new();
    for run in results {
        let place = |names: &[&str], name: &Value| names.iter().position(|&known| name == known).unwrap_or(names.len());
        kinds
            .entry((place(&WAYS, &run["way"]), place(&ROLES, &run["role"])))
            .or_default()
            .push(run);
    }
    println!("\nLongest stall in ms, p50 / max, while it was down and (in brackets) when it came back.\n");
    println!("| failure | of | runs | writer | reader | metadata user | errors |\n|---|---|---|---|---|---|---|");
    for runs in kinds.values() {
        let cell = |actor: &str| {
            let figures = |phase: &str| {
                let mut figures: Vec<u64> = runs.iter().filter_map(|run| run[phase][actor].as_u64()).collect();
                figures.sort_unstable();
                let median = figures.get(figures.len() / 2).copied().unwrap_or(0);
                format!("{median} / {}", figures.last().copied().unwrap_or(0))
            };
            format!("{} ({})", figures("down_ms"), figures("back_ms"))
        };
        let errors: u64 = runs.iter().filter_map(|run| run["errors"].as_u64()).sum();
        println!(
            "| {} | {} | {} | {} | {} | {} | {errors} |",
            runs[0]["way"].as_str().unwrap_or("?"),
            runs[0]["role"].as_str().unwrap_or("?"),
            runs.len(),
            cell("writer"),
            cell("reader"),
            cell("metadata"),
        );
    }
}
