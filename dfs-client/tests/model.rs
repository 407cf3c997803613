//! Random programs on mounts over a cluster in memory, judged by what POSIX and docs/SEMANTICS.md allow.
//!
//! `MODEL_PROGRAMS` is how many (3,000 by default), `MODEL_SEED` the first one's seed; `MODEL_SECONDS` ends a run early. A failure prints its
//! seed, the smallest program that still fails, and what happened. `MODEL_KEEP_GOING=N` counts up to N failures and their kinds
//! instead of stopping at the first.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod harness;

use std::collections::BTreeMap;
use std::time::Instant;

use harness::cluster::Servers;
use harness::program::{self, Program};
use harness::run::run;
use harness::shrink::shrink;

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn servers(program: &Program) -> Servers {
    match std::env::var("MODEL_SERVERS").as_deref() {
        Ok("old") => Servers::OLD,
        Ok("new") => Servers::NEW,
        _ => Servers::of(program.seed),
    }
}

fn describe(program: &Program) -> String {
    let steps: Vec<_> = program.steps.iter().map(|step| format!("    {step:?},")).collect();
    format!("seed {}\n{}", program.seed, steps.join("\n"))
}

fn explain(program: &Program) -> String {
    let kind = |program: &Program| {
        run(program, servers(program), false)
            .verdict
            .err()
            .map(|wrong| wrong.kind())
    };
    let first = kind(program);
    // A failure may hang on what is ready first: it has to come each time.
    let fails = |candidate: &Program| (0..2).all(|_| kind(candidate) == first);
    let small = match &first {
        Some(_) => shrink(program, fails),
        None => program.clone(),
    };
    let report = run(&small, servers(&small), true);
    let verdict = report.verdict.err();
    let verdict = verdict.map_or_else(|| "this time it was right".to_owned(), |wrong| wrong.to_string());
    format!("{verdict}\n{}\n{}", describe(&small), report.log.join("\n"))
}

#[test]
fn random_programs_do_what_the_documents_say() {
    let count = from_environment("MODEL_PROGRAMS", 20_000);
    let first = from_environment("MODEL_SEED", 1);
    let seconds = from_environment("MODEL_SECONDS", u64::MAX);
    let keep_going = from_environment("MODEL_KEEP_GOING", 0);
    let started = Instant::now();
    let mut kinds: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let (mut done, mut failed, mut lost) = (0, 0, 0);
    for seed in first..first + count {
        if started.elapsed().as_secs() >= seconds {
            break;
        }
        let program = program::random(seed);
        let report = run(&program, servers(&program), false);
        done += 1;
        lost += report.lost;
        let Err(error) = report.verdict else { continue };
        assert!(keep_going > 0, "program {done}: {error}\n{}", explain(&program));
        failed += 1;
        kinds.entry(error.kind()).or_default().push(seed);
        if failed >= keep_going {
            break;
        }
    }
    let rate = f64::from(done) / started.elapsed().as_secs_f64();
    println!("{done} programs, {rate:.0} a second, {lost} mutations lost with their power, {failed} failures");
    for (kind, seeds) in &kinds {
        println!("{:>6} x {kind} (seeds {:?})", seeds.len(), &seeds[..seeds.len().min(5)]);
    }
    assert!(kinds.is_empty(), "{failed} of {done} programs failed");
}

/// What a seed does can be seen again, so that a failure can be looked at. Not always at the first try: tokio wakes those who
/// wait for the same `watch` in an order that it draws, and only its unstable interface takes a seed for that.
#[test]
fn the_same_seed_does_the_same() {
    const TRIES: usize = 8;

    let count = from_environment("MODEL_TWICE", 100);
    let differ: Vec<u64> = (1..=count)
        .filter(|&seed| {
            let program = program::random(seed);
            let log = || run(&program, servers(&program), true).log;
            let first = log();
            (0..TRIES).all(|_| log() != first)
        })
        .collect();
    assert!(
        differ.len() as u64 * 20 <= count,
        "{} of {count} programs went differently {TRIES} times more: {differ:?}",
        differ.len()
    );
}

/// Each bug that can be planted in the client is found, and after how many programs. With `--features planted`.
#[cfg(feature = "planted")]
#[test]
fn planted_bugs_are_found() {
    use dfs_common::planted::{Bug, plant};

    let most = from_environment("MODEL_PROGRAMS", 40_000);
    let only = std::env::var("MODEL_PLANTED").unwrap_or_default();
    println!("| planted bug | programs until it was found | by |\n|---|---|---|");
    let mut missed = Vec::new();
    for &bug in Bug::CLIENT.iter().filter(|bug| format!("{bug:?}").contains(&only)) {
        plant(Some(bug));
        let found = (1..=most).find_map(|seed| {
            let wrong = run(&program::random(seed), Servers::of(seed), false).verdict.err()?;
            Some((seed, wrong))
        });
        plant(None);
        match found {
            Some((seed, wrong)) => println!("| {} | {seed} | {} |", bug.name(), wrong.kind()),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
