//! Many power cuts over one cluster under load: one victim, two, all storage nodes, or all servers at once.
//!
//! After each cut the victims start again with what their disks had synced, and the cluster has to become healthy by itself. Every
//! [`CUTS_BETWEEN_CHECKS`] cuts the load stops and everything that was acknowledged and synced is looked for. Where many lose their
//! power together there are overwrites too (`overwrites`), and a third mount that is killed and mounted again.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use super::draw::Draw;
use super::load::{Load, Plan, Promise};
use super::overwrites::tally::Tally;
use super::overwrites::{DOOMED, Files, MOUNTS, Overwrites};
use super::schedule::STORAGE;
use crate::host_cluster::HostCluster;
use crate::interrupt::is_interrupted;

const CUTS_BETWEEN_CHECKS: u64 = 20;

/// The same where each event takes several servers.
const EVENTS_BETWEEN_CHECKS: u64 = 5;

/// How long a cut waits for an fsync to come before it.
const VOUCHED_WITHIN: Duration = Duration::from_secs(4);

/// Mounts of the load that is not overwrites.
const LOAD_MOUNTS: usize = 2;

const HEALED_WITHIN: Duration = Duration::from_mins(2);

#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    /// Servers that lose their power, those that lose it together counted one by one.
    pub cuts: u64,
    /// Cuts, those that happen together counted as one. Either limit ends the run.
    pub events: u64,
    /// No new cut after this.
    pub seconds: u64,
    pub keep: PathBuf,
    pub victims: Victims,
    pub after_loss: AfterLoss,
}

/// What to do when something that was acknowledged is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AfterLoss {
    Stop,
    /// Count on.
    GoOn,
}

/// Who may lose power together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victims {
    /// One server, or two.
    OneOrTwo,
    /// Also all storage nodes, or all servers.
    Any,
    /// All servers every other time, else some: the hardest on data.
    All,
}

impl Victims {
    fn has_overwrites(self) -> bool {
        self != Self::OneOrTwo
    }
}

/// What becomes of the third mount around a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MountEvent {
    Nothing,
    /// Killed and mounted again, some time before the cut.
    Before,
    /// Killed together with the servers.
    Together,
    /// Killed and mounted again when they are back.
    After,
}

impl MountEvent {
    fn draw(draw: &mut Draw) -> Self {
        match draw.below(10) {
            0..3 => Self::Nothing,
            3..6 => Self::Before,
            6..8 => Self::Together,
            _ => Self::After,
        }
    }
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
    pub overwrites: Option<Tally>,
    remounts: u64,
    /// The cluster is not as it should be: nothing more can be learned from it.
    is_broken: bool,
    pub failures: Vec<String>,
}

impl Report {
    fn may_go_on(&self, options: &Options) -> bool {
        let has_time = self.cuts < options.cuts && self.events < options.events;
        has_time
            && !self.is_broken
            && !is_interrupted()
            && (self.failures.is_empty() || options.after_loss == AfterLoss::GoOn)
    }

    fn broke(&mut self, what: String) {
        self.is_broken = true;
        self.failures.push(what);
    }
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
        if let Some(overwrites) = &self.overwrites {
            for line in overwrites.lines() {
                writeln!(f, "{line}")?;
            }
            writeln!(f, "    a mount was killed and mounted again {} times", self.remounts)?;
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
    let mounts = if options.victims.has_overwrites() {
        MOUNTS
    } else {
        LOAD_MOUNTS
    };
    let mut cluster = HostCluster::up(mounts, true);
    let mut report = Report::default();
    let mut draw = Draw::new(options.seed);
    let end = Instant::now() + Duration::from_secs(options.seconds);
    let mut stage = 0;
    while report.may_go_on(options) && Instant::now() < end {
        stage += 1;
        run_stage(&mut cluster, options, stage, end, &mut draw, &mut report);
        say(&format!("{} cuts in {} events, checked", report.cuts, report.events));
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

/// Some cuts under one load, and its verdict.
fn run_stage(
    cluster: &mut HostCluster,
    options: &Options,
    stage: u64,
    end: Instant,
    draw: &mut Draw,
    report: &mut Report,
) {
    let plan = Plan {
        mounts: cluster.mount_points().into_iter().take(LOAD_MOUNTS).collect(),
        seed: options.seed ^ stage << 8,
        register_threads: 2,
        logs: 2,
        names: true,
        promise: Promise::Linearizable,
        history: cluster.scratch().join(format!("history-{stage}.log")),
        tag: format!("-{stage}"),
    };
    // Every other time one file is alone: all that a server has not synced becomes durable with anybody's sync.
    let is_quiet = options.victims == Victims::All && stage.is_multiple_of(2);
    let files = if is_quiet { Files::One(stage / 2) } else { Files::All };
    // First the overwrites: who carries the other load has files open, and processes are started here.
    let overwrites = options
        .victims
        .has_overwrites()
        .then(|| Overwrites::start(cluster, plan.seed, &plan.tag, files));
    let load = (!is_quiet).then(|| Load::start(&plan, cluster.log("load")));
    let (cuts, events) = (report.cuts, report.events);
    let is_over = |report: &Report| match options.victims {
        Victims::All => report.events >= events + EVENTS_BETWEEN_CHECKS,
        Victims::OneOrTwo | Victims::Any => report.cuts >= cuts + CUTS_BETWEEN_CHECKS,
    };
    while report.may_go_on(options) && !is_over(report) && Instant::now() < end {
        cut(cluster, draw, report, options.victims, overwrites.as_ref());
    }
    if let Some(overwrites) = overwrites {
        kill_and_mount(cluster, &overwrites, report);
        let found = overwrites.finish();
        report.failures.extend(found.failures());
        report.overwrites.get_or_insert_default().add(found);
    }
    if let Some(found) = load.map(Load::finish) {
        report.acknowledged_bytes += found.acknowledged_bytes;
        report.longest_stall = report.longest_stall.max(found.longest);
        report.load = found.lines;
        report.failures.extend(found.failures);
    }
    if let Err(said) = cluster.wait_healthy(HEALED_WITHIN) {
        report.broke(format!("after the checks: {said}"));
    }
    let verified = cluster.admin(&["chain", "verify", "--deep"]);
    if !verified.ok() {
        report.broke(format!("replicas differ:\n{}{}", verified.stdout, verified.stderr));
    }
}

/// The third mount is gone, and there again.
fn kill_and_mount(cluster: &mut HostCluster, overwrites: &Overwrites, report: &mut Report) {
    overwrites.signals.mount();
    cluster.kill_mount(DOOMED);
    cluster.mount_again(DOOMED);
    overwrites.signals.mount();
    report.remounts += 1;
}

/// Who loses power this time, and what that is called.
fn draw_victims(draw: &mut Draw, who: Victims, event: u64) -> (Vec<usize>, &'static str) {
    let one = draw.below(6) as usize;
    let two = vec![one, (one + draw.between(1, 5) as usize) % 6];
    let all = (0..6).collect();
    match (who, draw.below(100)) {
        (Victims::All, _) if event.is_multiple_of(2) => (all, "all"),
        (Victims::All, 0..40) => (STORAGE.to_vec(), "all storage"),
        (_, 0..55) => (vec![one], "nobody"),
        (Victims::OneOrTwo, _) | (_, 55..80) => (two, "another"),
        (_, 80..88) => (STORAGE.to_vec(), "all storage"),
        _ => (all, "all"),
    }
}

fn cut(cluster: &mut HostCluster, draw: &mut Draw, report: &mut Report, who: Victims, overwrites: Option<&Overwrites>) {
    let (victims, together) = draw_victims(draw, who, report.events);
    let of_mount = MountEvent::draw(draw);
    if let (Some(overwrites), MountEvent::Before) = (overwrites, of_mount) {
        kill_and_mount(cluster, overwrites, report);
    }
    let at_work_ms = if overwrites.is_some() { 3000 } else { 900 };
    thread::sleep(Duration::from_millis(draw.between(200, at_work_ms)));
    if let Some(overwrites) = overwrites.filter(|_| draw.percent(50)) {
        await_vouching(overwrites);
    }
    if let Some(overwrites) = overwrites {
        signal(overwrites, &victims);
        if of_mount == MountEvent::Together {
            overwrites.signals.mount();
            cluster.kill_mount(DOOMED);
        }
    }
    cluster.cut_power(&victims);
    if let Some(overwrites) = overwrites {
        signal(overwrites, &victims);
    }
    thread::sleep(Duration::from_millis(draw.between(0, 1200)));
    let names: Vec<_> = victims
        .iter()
        .map(|index| cluster.servers[*index].name.clone())
        .collect();
    heal(cluster, report, &victims, together, &names.join(" and "));
    let Some(overwrites) = overwrites.filter(|_| !report.is_broken) else {
        return;
    };
    match of_mount {
        MountEvent::Together => {
            cluster.mount_again(DOOMED);
            overwrites.signals.mount();
            report.remounts += 1;
        }
        MountEvent::After => kill_and_mount(cluster, overwrites, report),
        MountEvent::Nothing | MountEvent::Before => {}
    }
}

/// What a mount has sent survives the power loss of one storage node, and of all metadata servers.
fn signal(overwrites: &Overwrites, victims: &[usize]) {
    let storage = victims.iter().filter(|victim| STORAGE.contains(victim)).count();
    if storage > 1 {
        overwrites.signals.power();
    } else {
        overwrites.signals.harmless();
    }
}

/// Until somebody has just vouched for what others wrote, if anybody does.
fn await_vouching(overwrites: &Overwrites) {
    let (began, before) = (Instant::now(), overwrites.signals.times_vouched());
    while overwrites.signals.times_vouched() == before && began.elapsed() < VOUCHED_WITHIN {
        thread::sleep(Duration::from_millis(1));
    }
}

fn heal(cluster: &mut HostCluster, report: &mut Report, victims: &[usize], together: &'static str, names: &str) {
    let began = Instant::now();
    for index in victims {
        cluster.start(*index);
    }
    report.events += 1;
    if let Err(said) = cluster.wait_healthy(HEALED_WITHIN) {
        report.broke(format!("after a power cut of {names}: {said}"));
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
        let server = &cluster.servers[*index];
        let role = if server.is_meta { "metadata" } else { "storage" };
        let row = report.rows.entry((role, server.disk_kind, together)).or_default();
        row.cuts += 1;
        row.healing.push(healed);
        report.cuts += 1;
    }
    say(&format!("power cut of {names}: healthy after {healed:.1?}"));
}

fn say(line: &str) {
    #[expect(clippy::print_stderr, reason = "a long run says where it is")]
    {
        eprintln!("{line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_other_cut_takes_all_servers_where_that_is_wanted() {
        let mut draw = Draw::new(4);
        let drawn: Vec<_> = (0..400)
            .map(|event| draw_victims(&mut draw, Victims::All, event))
            .collect();
        assert!(drawn.iter().step_by(2).all(|(victims, _)| victims.len() == 6));
        for together in ["nobody", "another", "all storage"] {
            assert!(drawn.iter().any(|(_, other)| *other == together), "{together}");
        }
    }

    #[test]
    fn victims_are_as_many_as_asked_for() {
        let mut draw = Draw::new(5);
        for event in 0..400 {
            let (victims, _) = draw_victims(&mut draw, Victims::OneOrTwo, event);
            assert!(matches!(victims.len(), 1 | 2), "{victims:?}");
            assert!(victims.len() == 1 || victims[0] != victims[1], "{victims:?}");
        }
    }
}
