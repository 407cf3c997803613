//! `cargo xtask sim`: runs seeds on every core and prints what came of them.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

mod progress;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use dfs_sim::shrink::shrink;
use progress::Progress;

use dfs_sim::{Kind, Outcome, Schedule, run};

const USAGE: &str = "usage: cargo xtask sim [--seeds N] [--from S] [--seed S [--keep PLACES]] [--cores N] [--resume FILE] [--planted all|NAME]
  --seeds N       how many seeds (2000)
  --from S        the first one (1)
  --seed S        only this one, with its last events
  --keep PLACES   of its schedule only these steps, as a failure prints them
  --cores N       threads (all cores)
  --resume FILE   notes how far it got after every 1,000 seeds, and goes on from there; prints its table at the end
  --planted ...   plants each known bug, or the one so named, and runs seeds until it is found";

/// Failed seeds (a thread) after which there is enough to look at.
const FAILURES: usize = 5;

/// Seeds after which a planted bug counts as not found.
#[cfg(feature = "planted")]
const PLANTED_SEEDS: u64 = 10_000;

#[derive(Debug, Default)]
struct Options {
    seeds: Option<u64>,
    from: Option<u64>,
    seed: Option<u64>,
    keep: Option<Vec<usize>>,
    planted: Option<String>,
    cores: Option<usize>,
    resume: Option<PathBuf>,
}

fn options() -> Option<Options> {
    let mut options = Options::default();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments.next()?;
        match argument.as_str() {
            "--seeds" => options.seeds = Some(value.parse().ok()?),
            "--from" => options.from = Some(value.parse().ok()?),
            "--seed" => options.seed = Some(value.parse().ok()?),
            "--keep" => options.keep = Some(value.split(',').map(str::parse).collect::<Result<_, _>>().ok()?),
            "--cores" => options.cores = Some(value.parse().ok()?),
            "--resume" => options.resume = Some(value.into()),
            "--planted" => options.planted = Some(value),
            _ => return None,
        }
    }
    Some(options)
}

fn main() -> ExitCode {
    let Some(options) = options() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    // A panic is a violation, and told as one.
    std::panic::set_hook(Box::new(|_| {}));
    if let Some(name) = &options.planted {
        return planted(name);
    }
    if let Some(seed) = options.seed {
        return one(seed, options.keep.as_deref());
    }
    let (from, seeds) = (options.from.unwrap_or(1), options.seeds.unwrap_or(2_000));
    let cores = options
        .cores
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(2, std::num::NonZero::get));
    let (total, failed, seconds) = if let Some(file) = &options.resume {
        match Progress::run(file, from, seeds, cores) {
            Ok(progress) => (progress.total, progress.failed, progress.seconds),
            Err(error) => {
                eprintln!(
                    "{}: {error}; the run goes on where it was when that is mended",
                    file.display()
                );
                return ExitCode::from(2);
            }
        }
    } else {
        let start = Instant::now();
        let (total, failed) = many(from, seeds, cores, FAILURES);
        (total, failed, start.elapsed().as_secs_f64())
    };
    print_table(seeds, &total, failed.len() as u64, seconds);
    if let Some(&seed) = failed.first() {
        println!("\nfailed seeds: {failed:?}");
        explain(&Schedule::draw(seed));
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn one(seed: u64, keep: Option<&[usize]>) -> ExitCode {
    let schedule = Schedule::draw(seed);
    let schedule = keep.map_or_else(|| schedule.clone(), |keep| schedule.only(keep));
    let start = Instant::now();
    let outcome = run(&schedule, true);
    for line in &outcome.log {
        println!("{line}");
    }
    println!("seed {seed}: {:?}", schedule.character);
    println!(
        "trace hash {:016x}, {} events, {} answers, {} s simulated in {:.3} s",
        outcome.hash,
        outcome.events,
        outcome.answers,
        outcome.simulated_ms / 1_000,
        start.elapsed().as_secs_f64()
    );
    if let Some(violation) = outcome.violation {
        println!("VIOLATION of {}: {}", violation.invariant, violation.detail);
        if keep.is_none() {
            explain(&schedule);
        }
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Prints the smallest schedule that still fails, and how to see it again.
fn explain(schedule: &Schedule) {
    let Some(violation) = run(schedule, false).violation else {
        return println!(
            "seed {} passes when it is run again: something is not deterministic",
            schedule.seed
        );
    };
    println!(
        "\nseed {}: VIOLATION of {}: {}",
        schedule.seed, violation.invariant, violation.detail
    );
    let (keep, outcome) = shrink(schedule, violation.invariant);
    println!("\nlast events of the smallest schedule that fails:");
    for line in outcome.log {
        println!("{line}");
    }
    println!(
        "\nits {} of {} steps ({:?}):",
        keep.len(),
        schedule.steps.len(),
        schedule.character
    );
    for &at in &keep {
        if let Some(step) = schedule.steps.get(at) {
            println!("  {at:>4}: {:>6} ms {:?}", step.at_ms, step.what);
        }
    }
    let places: Vec<String> = keep.iter().map(ToString::to_string).collect();
    println!(
        "\nreplay: cargo xtask sim --seed {} --keep {}",
        schedule.seed,
        places.join(",")
    );
}

fn many(from: u64, seeds: u64, cores: usize, failures: usize) -> (Outcome, Vec<u64>) {
    let next = AtomicU64::new(from);
    let enough = AtomicBool::new(false);
    let result = Mutex::new((Outcome::default(), Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                let mut total = Outcome::default();
                let mut failed = Vec::new();
                while !enough.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + seeds {
                        break;
                    }
                    let outcome = run(&Schedule::draw(seed), false);
                    add(&mut total, &outcome);
                    if outcome.violation.is_some() {
                        failed.push(seed);
                        enough.store(failed.len() >= failures, Ordering::Relaxed);
                    }
                }
                if let Ok(mut result) = result.lock() {
                    add(&mut result.0, &total);
                    result.1.extend(failed);
                }
            });
        }
    });
    let (total, mut failed) = result.into_inner().unwrap_or_default();
    failed.sort_unstable();
    (total, failed)
}

fn add(total: &mut Outcome, one: &Outcome) {
    total.hash ^= one.hash;
    total.events += one.events;
    total.answers += one.answers;
    total.simulated_ms += one.simulated_ms;
    total.undecided += one.undecided;
    total.amnesties += one.amnesties;
    for (&kind, count) in &one.fired {
        *total.fired.entry(kind).or_default() += count;
    }
}

fn print_table(seeds: u64, total: &Outcome, violations: u64, seconds: f64) {
    println!(
        "| seeds | simulated hours | events | answers | violations | undecided histories | chains that lost unsynced data | seconds | seeds/s |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    println!(
        "| {seeds} | {:.1} | {} | {} | {violations} | {} | {} | {seconds:.0} | {:.0} |",
        total.simulated_ms as f64 / 3_600_000.0,
        total.events,
        total.answers,
        total.undecided,
        total.amnesties,
        seeds as f64 / seconds
    );
    println!(
        "hash over all traces: {:016x}\n\n| fault | fired |\n|---|---|",
        total.hash
    );
    let fired: BTreeMap<Kind, u64> = Kind::EVERY
        .iter()
        .map(|&kind| (kind, total.fired.get(&kind).copied().unwrap_or(0)))
        .collect();
    for (kind, count) in fired {
        println!("| {kind:?} | {count} |");
    }
}

#[cfg(not(feature = "planted"))]
fn planted(_: &str) -> ExitCode {
    eprintln!("this build has no planted bugs: use `cargo xtask sim --planted`, which builds them in");
    ExitCode::from(2)
}

#[cfg(feature = "planted")]
fn planted(name: &str) -> ExitCode {
    use dfs_common::planted::{Bug, plant};
    let chosen: Vec<Bug> = Bug::EVERY
        .iter()
        .copied()
        .filter(|bug| name == "all" || bug.name() == name || format!("{bug:?}") == name)
        .collect();
    if chosen.is_empty() {
        eprintln!("no planted bug is called {name:?}; there are:");
        for bug in Bug::EVERY {
            eprintln!("  {bug:?}: {}", bug.name());
        }
        return ExitCode::from(2);
    }
    let mut missed = 0;
    println!("| planted bug | seeds until it was found | seconds | by |\n|---|---|---|---|");
    for bug in chosen {
        let start = Instant::now();
        plant(Some(bug));
        let mut found = None;
        for seed in 1..=PLANTED_SEEDS {
            if let Some(violation) = run(&Schedule::draw(seed), false).violation {
                found = Some((seed, violation));
                break;
            }
        }
        plant(None);
        let seconds = start.elapsed().as_secs_f64();
        match found {
            Some((seed, violation)) => println!("| {} | {seed} | {seconds:.1} | {} |", bug.name(), violation.invariant),
            None => {
                missed += 1;
                println!("| {} | NOT FOUND in {PLANTED_SEEDS} | {seconds:.1} | |", bug.name());
            }
        }
    }
    if missed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
