//! Many power cuts over one cluster under load: one victim, two, all storage nodes, or all servers at once.
//!
//! After each cut the victims start again with what their disks had synced, and the cluster has to become healthy by itself. Every
//! [`CUTS_BETWEEN_CHECKS`] cuts the load stops and everything that was acknowledged and synced is looked for.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use super::draw::Draw;
use super::load::{Load, Plan, Promise};
use super::schedule::STORAGE;
use crate::host_cluster::HostCluster;

const CUTS_BETWEEN_CHECKS: u64 = 20;

const HEALED_WITHIN: Duration = Duration::from_mins(2);

#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    /// Servers that lose their power, those that lose it together counted one by one.
    pub cuts: u64,
    /// No new cut after this.
    pub seconds: u64,
    pub keep: PathBuf,
    pub victims: Victims,
}

/// Who may lose power together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victims {
    /// One server, or two.
    OneOrTwo,
    /// Also all storage nodes, or all servers.
    Any,
    /// All storage nodes each time: the hardest on data.
    AllStorage,
}

/// Times to healthy of one kind of cut.
#[derive(Debug, Default)]
struct Row {
    cuts: u64,
    healing: Vec<Duration>,
}

#[derive(Debug, Default)]
pub struct Report {
    rows: BTreeMap<(&'static str, &'static str, &'static str), Row>,
    pub cuts: u64,
    pub events: u64,
    acknowledged_bytes: u64,
    longest_stall: Duration,
    revived: Vec<String>,
    load: Vec<String>,
    pub failures: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<9} {:<5} {:<15} {:>5} {:>12} {:>12}",
            "SERVER", "DISK", "TOGETHER WITH", "CUTS", "HEALED p50", "max"
        )?;
        for ((role, disk, together), row) in &self.rows {
            let mut times = row.healing.clone();
            times.sort_unstable();
            let middle = times.get(times.len() / 2).copied().unwrap_or_default();
            let longest = times.last().copied().unwrap_or_default();
            writeln!(
                f,
                "{role:<9} {disk:<5} {together:<15} {:>5} {middle:>12.1?} {longest:>12.1?}",
                row.cuts
            )?;
        }
        writeln!(
            f,
            "{} servers lost their power in {} events; {} bytes of logs acknowledged and synced; longest stall {:.1?}",
            self.cuts, self.events, self.acknowledged_bytes, self.longest_stall
        )?;
        for line in &self.load {
            writeln!(f, "{line}")?;
        }
        if !self.revived.is_empty() {
            writeln!(f, "had to be started again: {}", self.revived.join(", "))?;
        }
        if self.failures.is_empty() {
            return writeln!(f, "verdict: passed: 0 bytes lost, every server back by itself");
        }
        writeln!(f, "verdict: FAILED")?;
        for failure in &self.failures {
            writeln!(f, "- {failure}")?;
        }
        Ok(())
    }
}

/// Cuts until there were enough, time is over, or something is wrong.
#[must_use]
pub fn run(options: &Options) -> Report {
    let mut cluster = HostCluster::up(2, true);
    let mut report = Report::default();
    let mut draw = Draw::new(options.seed);
    let end = Instant::now() + Duration::from_secs(options.seconds);
    let mut stage = 0;
    while report.failures.is_empty() && report.cuts < options.cuts && Instant::now() < end {
        stage += 1;
        let plan = Plan {
            mounts: cluster.mount_points(),
            seed: options.seed ^ stage << 8,
            register_threads: 2,
            logs: 2,
            names: true,
            promise: Promise::Linearizable,
            history: cluster.scratch().join(format!("history-{stage}.log")),
            tag: format!("-{stage}"),
        };
        let load = Load::start(&plan, cluster.log("load"));
        let until = (report.cuts + CUTS_BETWEEN_CHECKS).min(options.cuts);
        while report.failures.is_empty() && report.cuts < until && Instant::now() < end {
            cut(&mut cluster, &mut draw, &mut report, options.victims);
        }
        let found = load.finish();
        report.acknowledged_bytes += found.acknowledged_bytes;
        report.longest_stall = report.longest_stall.max(found.longest);
        report.load = found.lines;
        report.failures.extend(found.failures);
        if let Err(said) = cluster.wait_healthy(HEALED_WITHIN) {
            report.failures.push(format!("after the checks: {said}"));
        }
        let verified = cluster.admin(&["chain", "verify", "--deep"]);
        if !verified.ok() {
            report
                .failures
                .push(format!("replicas differ:\n{}{}", verified.stdout, verified.stderr));
        }
        say(&format!("{} cuts, checked", report.cuts));
    }
    if !report.failures.is_empty() {
        let at = options.keep.join(format!("power-{}", options.seed));
        cluster.keep_logs(&at);
        report
            .load
            .push(format!("logs and histories are kept in {}", at.display()));
    }
    report
}

fn cut(cluster: &mut HostCluster, draw: &mut Draw, report: &mut Report, who: Victims) {
    let one = draw.below(6) as usize;
    let (victims, together) = match draw.below(100) {
        _ if who == Victims::AllStorage => (STORAGE.to_vec(), "all storage"),
        0..55 => (vec![one], "nobody"),
        other if other < 80 || who == Victims::OneOrTwo => {
            (vec![one, (one + draw.between(1, 5) as usize) % 6], "another")
        }
        80..88 => (STORAGE.to_vec(), "all storage"),
        _ => ((0..6).collect(), "all"),
    };
    thread::sleep(Duration::from_millis(draw.between(200, 900)));
    cluster.cut_power(&victims);
    thread::sleep(Duration::from_millis(draw.between(0, 1200)));
    let names: Vec<_> = victims
        .iter()
        .map(|index| cluster.servers[*index].name.clone())
        .collect();
    let began = Instant::now();
    for index in &victims {
        cluster.start(*index);
    }
    report.events += 1;
    match cluster.wait_healthy(HEALED_WITHIN) {
        Ok(_) => {}
        Err(said) => report
            .failures
            .push(format!("after a power cut of {}: {said}", names.join(" and "))),
    }
    let healed = began.elapsed();
    let revived = cluster.revive();
    if !revived.is_empty() {
        report
            .failures
            .push(format!("did not come back by themselves: {}", revived.join(", ")));
    }
    report.revived.extend(revived);
    for index in victims {
        let server = &cluster.servers[index];
        let role = if server.is_meta { "metadata" } else { "storage" };
        let row = report.rows.entry((role, server.disk_kind, together)).or_default();
        row.cuts += 1;
        row.healing.push(healed);
        report.cuts += 1;
    }
    say(&format!(
        "power cut of {}: healthy after {healed:.1?}",
        names.join(" and ")
    ));
}

fn say(line: &str) {
    #[expect(clippy::print_stderr, reason = "a long run says where it is")]
    {
        eprintln!("{line}");
    }
}
