//! The mixed load, and the process that carries it.
//!
//! A process of its own, because whoever has files of a mount open must not start others: a child closes its copies of
//! them before it runs, closing flushes, and a flush waits for the very cluster that the child was to repair.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use dfs_history::{Budget, Operation, check, goes_back, stale_reads};
use serde_json::{Value, json};

use super::felt::Felt;
use super::names::Names;
use super::registers::Registers;
use crate::history::Appender;
use crate::process::harness_binary;

/// What the process says when it is under way.
const READY: &str = "ready";

/// What came of a load.
#[derive(Debug, Default)]
pub struct Findings {
    pub lines: Vec<String>,
    pub failures: Vec<String>,
    pub acknowledged_bytes: u64,
    pub longest: Duration,
    /// Reads that surely returned an overwritten value.
    pub stale_reads: u64,
    /// Whether the registers' history is linearizable.
    pub linearizable: bool,
}

/// What the registers are held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    Linearizable,
    /// No client sees an older value than it saw before.
    NeverBack,
}

/// What is to be done, and by how many.
#[derive(Clone, Debug)]
pub struct Plan {
    pub mounts: Vec<PathBuf>,
    pub seed: u64,
    /// Threads for registers at each mount; 0: no registers.
    pub register_threads: u32,
    /// Logs appended to at each mount.
    pub logs: u32,
    pub names: bool,
    pub promise: Promise,
    /// Where the history of the registers goes.
    pub history: PathBuf,
    /// Makes names that differ from those of other loads.
    pub tag: String,
}

impl Plan {
    fn arguments(&self) -> Vec<String> {
        let mounts: Vec<_> = self.mounts.iter().map(|mount| mount.display().to_string()).collect();
        vec![
            "load".to_owned(),
            mounts.join(","),
            self.seed.to_string(),
            self.register_threads.to_string(),
            self.logs.to_string(),
            self.names.to_string(),
            (self.promise == Promise::Linearizable).to_string(),
            self.history.display().to_string(),
            self.tag.clone(),
        ]
    }

    /// The inverse of what the parent passes.
    #[must_use]
    pub fn parse(arguments: &[String]) -> Option<Self> {
        let [mounts, seed, register_threads, logs, names, strict, history, tag] = arguments else {
            return None;
        };
        Some(Self {
            mounts: mounts.split(',').map(PathBuf::from).collect(),
            seed: seed.parse().ok()?,
            register_threads: register_threads.parse().ok()?,
            logs: logs.parse().ok()?,
            names: names.parse().ok()?,
            promise: if strict.parse().ok()? {
                Promise::Linearizable
            } else {
                Promise::NeverBack
            },
            history: PathBuf::from(history),
            tag: tag.clone(),
        })
    }
}

/// A load that runs, as its parent sees it.
#[derive(Debug)]
pub struct Load {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Load {
    /// Returns when every thread has its files.
    #[must_use]
    pub fn start(plan: &Plan, log: std::fs::File) -> Self {
        let mut child = Command::new(harness_binary("faults"))
            .args(plan.arguments())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the binary `faults` stands beside dfs: cargo build --release -p dfs-tests");
        let stdin = child.stdin.take();
        let mut stdout = BufReader::new(child.stdout.take().expect("it is a pipe"));
        let mut line = String::new();
        let _ = stdout.read_line(&mut line);
        assert_eq!(line.trim(), READY, "the load does not begin; see load.log");
        Self { child, stdin, stdout }
    }

    /// Has it stop, check everything, and say what it found.
    #[must_use]
    pub fn finish(mut self) -> Findings {
        drop(self.stdin.take());
        let mut line = String::new();
        let _ = self.stdout.read_line(&mut line);
        let _ = self.child.wait();
        let Ok(found) = serde_json::from_str::<Value>(&line) else {
            return Findings {
                failures: vec!["the load died; see load.log".to_owned()],
                ..Findings::default()
            };
        };
        let texts = |key: &str| {
            let list = found[key].as_array().into_iter().flatten();
            list.filter_map(|text| text.as_str().map(str::to_owned)).collect()
        };
        Findings {
            lines: texts("lines"),
            failures: texts("failures"),
            acknowledged_bytes: found["acknowledged_bytes"].as_u64().unwrap_or_default(),
            longest: Duration::from_micros(found["longest_us"].as_u64().unwrap_or_default()),
            stale_reads: found["stale_reads"].as_u64().unwrap_or_default(),
            linearizable: found["linearizable"].as_bool().unwrap_or_default(),
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process itself: works until stdin ends, then judges.
pub fn serve(plan: &Plan) {
    let began = Instant::now();
    let mut registers = (plan.register_threads > 0)
        .then(|| Registers::start(&plan.mounts, &plan.tag, plan.register_threads, plan.seed, began));
    let by_mount = 0..plan.mounts.len();
    let mut names: Vec<Names> = by_mount
        .filter(|_| plan.names)
        .map(|by| Names::start(&plan.mounts, &plan.tag, by, plan.seed, began))
        .collect();
    let log = |mount: &Path, number| Appender::start(&mount.join(format!("log{}-{number}", plan.tag)));
    let mut logs: Vec<Appender> = (0..plan.logs as usize * plan.mounts.len())
        .map(|number| log(&plan.mounts[number % plan.mounts.len()], number))
        .collect();
    say(READY);
    let _ = std::io::stdin().lines().count();
    let mut findings = Findings::default();
    logs.iter_mut().for_each(Appender::stop);
    if let Some(registers) = &mut registers {
        let history = registers.finish();
        findings.registers(&history, plan.promise);
        findings.felt("registers", &registers.felt);
        std::fs::write(&plan.history, lines_of(&history)).expect("a history can be written");
    }
    for names in &mut names {
        names.finish();
        findings.felt("names", &names.felt);
    }
    for (number, log) in logs.iter().enumerate() {
        findings.log(number, log);
    }
    say(&json!({
        "lines": findings.lines,
        "failures": findings.failures,
        "acknowledged_bytes": findings.acknowledged_bytes,
        "stale_reads": findings.stale_reads,
        "linearizable": findings.linearizable,
        "longest_us": u64::try_from(findings.longest.as_micros()).unwrap_or(u64::MAX),
    })
    .to_string());
}

fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    // Without a parent, nobody cares.
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}

fn lines_of(history: &[Operation<u64>]) -> String {
    let mut lines = String::new();
    for operation in history {
        let _ = writeln!(lines, "{} {operation}", operation.key.0);
    }
    lines
}

impl Findings {
    fn registers(&mut self, history: &[Operation<u64>], promise: Promise) {
        let verdict = check(history, &0, Budget::default());
        let stale = stale_reads(history, &0);
        self.stale_reads = stale.len() as u64;
        self.linearizable = verdict.is_linearizable();
        let unknown = history.iter().filter(|operation| operation.returned.is_none()).count();
        self.lines.push(format!(
            "registers: {} operations, {unknown} of unknown fate, {} stale reads: {}",
            history.len(),
            stale.len(),
            if verdict.is_linearizable() {
                "linearizable"
            } else {
                "NOT linearizable"
            }
        ));
        if !verdict.is_linearizable() && promise == Promise::Linearizable {
            self.failures.push(format!("registers: {verdict}"));
        }
        if let Some(regression) = goes_back(history, &0) {
            self.failures.push(format!("registers: {regression}"));
        }
    }

    fn log(&mut self, number: usize, log: &Appender) {
        self.lines.push(format!(
            "log {number}: {} records acknowledged, {} errors, longest {:.1?}",
            log.acknowledged(),
            log.errors(),
            log.longest()
        ));
        self.acknowledged_bytes += log.acknowledged() * crate::history::RECORD as u64;
        self.longest = self.longest.max(log.longest());
        if let Err(why) = log.verdict() {
            self.failures.push(format!("log {number}: {why}"));
        }
    }

    fn felt(&mut self, what: &str, felt: &Felt) {
        self.lines.push(format!(
            "{what}: {} operations done, {} errors, longest {:.1?}",
            felt.done(),
            felt.errors(),
            felt.longest()
        ));
        self.lines
            .extend(felt.examples().into_iter().map(|example| format!("    {example}")));
        self.failures.extend(
            felt.violations()
                .into_iter()
                .map(|violation| format!("{what}: {violation}")),
        );
        self.longest = self.longest.max(felt.longest());
    }
}
