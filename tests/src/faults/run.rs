//! One run: cluster, load, rounds of faults, healing, verdict.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::draw::Draw;
use super::inject::Active;
use super::load::{Load, Plan, Promise};
use super::overwrites::{Files, MOUNTS, Overwrites};
use super::schedule::{Kind, Round};
use crate::host_cluster::HostCluster;
use crate::interrupt::is_interrupted;

/// After a round, and at the end. Generous: it says that everything came back by itself, not how fast.
const HEALED_WITHIN: Duration = Duration::from_secs(90);

/// After that, whoever looks after the cluster restarts a server whose disk had failed, and that does not end by itself.
const OPERATOR_WAITS: Duration = Duration::from_secs(10);

/// Threads for registers at each mount.
const REGISTER_THREADS: u32 = 3;

#[derive(Clone, Debug)]
pub struct Options {
    pub seed: u64,
    pub seconds: u64,
    pub kinds: Vec<Kind>,
    /// Where logs and histories of a failed run are kept.
    pub keep: PathBuf,
    /// Say what happens while it happens.
    pub loud: bool,
}

/// What a run was and what came of it.
#[derive(Debug, Default)]
pub struct Report {
    pub seed: u64,
    pub schedule: Vec<String>,
    /// How many faults of each kind, and how often they struck.
    pub counts: BTreeMap<Kind, (u64, u64)>,
    pub rounds: u64,
    pub longest_healing: Duration,
    /// Of any operation that a user of a mount waited for.
    pub longest_stall: Duration,
    pub load: Vec<String>,
    pub revived: Vec<String>,
    pub failures: Vec<String>,
}

impl Report {
    #[must_use]
    pub fn passed(&self) -> bool {
        self.failures.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: {} rounds", self.seed, self.rounds)?;
        writeln!(f, "{:<14} {:>6} {:>9}", "FAULT", "TIMES", "STRUCK")?;
        for (kind, (times, struck)) in &self.counts {
            writeln!(f, "{:<14} {times:>6} {struck:>9}", kind.name())?;
        }
        for line in &self.load {
            writeln!(f, "{line}")?;
        }
        writeln!(
            f,
            "longest stall {:.1?}, longest time to healthy {:.1?}",
            self.longest_stall, self.longest_healing
        )?;
        if !self.revived.is_empty() {
            writeln!(f, "started again by who looks after them: {}", self.revived.join(", "))?;
        }
        if self.passed() {
            return writeln!(f, "verdict: passed");
        }
        writeln!(f, "verdict: FAILED")?;
        for failure in &self.failures {
            writeln!(f, "- {failure}")?;
        }
        Ok(())
    }
}

struct Runner<'a> {
    options: &'a Options,
    cluster: HostCluster,
    report: Report,
    began: Instant,
    /// Servers whose disk returned errors since they last started.
    broken: BTreeSet<usize>,
    /// Where all servers may lose their power.
    overwrites: Option<Overwrites>,
}

/// Mounts of the load that is not overwrites.
const LOAD_MOUNTS: usize = 2;

/// Runs once.
#[must_use]
pub fn run(options: &Options) -> Report {
    let disks = options
        .kinds
        .iter()
        .any(|kind| matches!(kind, Kind::Power | Kind::PowerAll));
    let has_overwrites = options.kinds.contains(&Kind::PowerAll);
    let mounts = if has_overwrites { MOUNTS } else { LOAD_MOUNTS };
    let cluster = HostCluster::up(mounts, disks);
    let overwrites = has_overwrites.then(|| Overwrites::start(&cluster, options.seed, "", Files::All));
    let mut runner = Runner {
        options,
        cluster,
        report: Report {
            seed: options.seed,
            ..Report::default()
        },
        began: Instant::now(),
        broken: BTreeSet::new(),
        overwrites,
    };
    runner.go();
    runner.report
}

impl Runner<'_> {
    fn go(&mut self) {
        let history = self.cluster.scratch().join("history.log");
        let plan = Plan {
            mounts: self.cluster.mount_points().into_iter().take(LOAD_MOUNTS).collect(),
            seed: self.options.seed,
            register_threads: REGISTER_THREADS,
            logs: 1,
            names: true,
            promise: Promise::Linearizable,
            history,
            tag: String::new(),
        };
        let load = Load::start(&plan, self.cluster.log("load"));
        thread::sleep(Duration::from_millis(500));
        let mut draw = Draw::new(self.options.seed);
        let end = Instant::now() + Duration::from_secs(self.options.seconds);
        while Instant::now() < end && self.report.passed() && !is_interrupted() {
            let round = Round::draw(&mut draw, &self.options.kinds);
            self.round(&round);
        }
        if self.report.passed() {
            self.heal("the end");
        }
        let overwrites = self.overwrites.take().map(Overwrites::finish);
        let found = load.finish();
        self.report.load = found.lines;
        self.report.longest_stall = found.longest;
        for failure in found.failures {
            self.fail(failure);
        }
        if let Some(tally) = overwrites {
            self.report.load.extend(tally.lines());
            tally.failures().into_iter().for_each(|failure| self.fail(failure));
        }
        if self.report.passed() {
            self.heal("the end of the checks");
        }
        let verified = self.cluster.admin(&["chain", "verify", "--deep"]);
        if self.report.passed() && !verified.ok() {
            self.fail(format!("replicas differ:\n{}{}", verified.stdout, verified.stderr));
        }
        if !self.report.passed() {
            self.keep();
        }
    }

    fn say(&self, line: &str) {
        if self.options.loud {
            #[expect(clippy::print_stderr, reason = "asked for")]
            {
                eprintln!("{:>7.1} s  {line}", self.began.elapsed().as_secs_f64());
            }
        }
    }

    fn fail(&mut self, what: String) {
        self.say(&format!("FAILED: {what}"));
        self.report.failures.push(what);
    }

    fn round(&mut self, round: &Round) {
        self.report.rounds += 1;
        let began = Instant::now();
        // Beginnings and ends in the order of their times.
        let mut events: Vec<(u64, bool, usize)> = Vec::new();
        for (at, fault) in round.faults.iter().enumerate() {
            events.push((fault.after_ms, true, at));
            events.push((fault.after_ms + fault.lasts_ms, false, at));
        }
        events.sort_unstable_by_key(|(time, begins, _)| (*time, *begins));
        let mut active: BTreeMap<usize, Active> = BTreeMap::new();
        for (time_ms, begins, at) in events {
            thread::sleep(Duration::from_millis(time_ms).saturating_sub(began.elapsed()));
            let fault = &round.faults[at];
            if begins {
                let line = fault.to_string();
                self.say(&line);
                self.report
                    .schedule
                    .push(format!("{:>7.1} s  {line}", self.began.elapsed().as_secs_f64()));
                self.signal(fault.kind);
                active.insert(at, Active::begin(&mut self.cluster, fault));
                self.signal(fault.kind);
            } else if let Some(active) = active.remove(&at) {
                let struck = active.end(&mut self.cluster);
                if struck > 0 && matches!(fault.kind, Kind::SyncError | Kind::ReadError | Kind::Full) {
                    self.broken.insert(fault.victims[0]);
                }
                let count = self.report.counts.entry(fault.kind).or_default();
                count.0 += 1;
                count.1 += struck;
            }
        }
        thread::sleep(Duration::from_millis(round.rest_ms));
        self.revive();
        if round.heals {
            self.heal(&format!("round {}", self.report.rounds));
        }
    }

    /// Power is about to be cut, or was.
    fn signal(&self, kind: Kind) {
        if let (Some(overwrites), Kind::Power | Kind::PowerAll) = (&self.overwrites, kind) {
            overwrites.signals.power();
        }
    }

    /// What a service manager does.
    fn revive(&mut self) {
        let revived = self.cluster.revive();
        if !revived.is_empty() {
            self.say(&format!("started again: {}", revived.join(", ")));
        }
        self.report.revived.extend(revived);
    }

    fn heal(&mut self, after: &str) {
        let began = Instant::now();
        loop {
            self.revive();
            match self.cluster.wait_healthy(Duration::from_secs(2)) {
                Ok(_) => break,
                Err(said) if is_interrupted() => return self.fail(said),
                Err(said) if began.elapsed() > HEALED_WITHIN => {
                    return self.fail(format!(
                        "after {after}: still not healthy after {HEALED_WITHIN:?}: {said}"
                    ));
                }
                Err(said) => self.look_after(&said, began.elapsed()),
            }
        }
        self.broken.clear();
        self.say(&format!("healthy after {:.1?}", began.elapsed()));
        self.report.longest_healing = self.report.longest_healing.max(began.elapsed());
    }

    /// What `dfs health` tells its reader to do about a broken disk. Nobody else is helped.
    fn look_after(&mut self, health: &str, waited: Duration) {
        for index in self.broken.clone() {
            let server = &self.cluster.servers[index];
            let (name, is_meta) = (server.name.clone(), server.is_meta);
            let needs_a_disk = health.contains(&format!("{name} has a fault")) || server.is_poisoned();
            if !is_meta && needs_a_disk {
                self.cluster.replace_disk(index);
            } else if is_meta && waited > OPERATOR_WAITS {
                self.cluster.kill(index);
                self.cluster.start(index);
            } else {
                continue;
            }
            self.say(&format!("looked after: {name}"));
            self.report.revived.push(format!("{name} (broken disk)"));
            self.broken.remove(&index);
        }
    }

    fn keep(&mut self) {
        let at = self.options.keep.join(format!("seed-{}", self.options.seed));
        self.cluster.keep_logs(&at);
        let text = format!("{}\n{}", self.report, self.report.schedule.join("\n"));
        write(&at.join("report.txt"), &text);
        self.report
            .load
            .push(format!("logs and history are kept in {}", at.display()));
    }
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}
