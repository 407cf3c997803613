//! `cargo xtask faults`: fault runs from seeds, as long as one likes.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

use std::path::PathBuf;
use std::process::ExitCode;

use dfs_tests::faults::load::{Plan, serve};
use dfs_tests::faults::overwrites::hand;
use dfs_tests::faults::{Kind, Options, power, run};
use dfs_tests::interrupt;

const USAGE: &str =
    "usage: faults [power] [--seed S] [--seeds N] [--seconds T] [--kinds kill,cut,...] [--keep DIR] [--quiet]
  --seed S     first seed (default 1)
  --seeds N    how many, one after the other (default 1)
  --seconds T  how long faults fall for each seed (default 60); healing and checks come on top
  --kinds      only these (default: all)
  --keep DIR   where logs and histories of failed runs go (default target/faults)
power: power cuts only, --cuts N servers (default 200) or --events N of cuts that happen together, within --seconds
(default 3600); --kinds power: one or two at a time; --kinds power-all: all servers every other time, else some.
--go-on counts on when something acknowledged is not there.
Where all servers may lose their power there are overwrites, and fsync by others than the writer.
DFS_BINARY=PATH in the environment: that dfs instead of the one just built.
Needs root, nftables, strace, iproute2, e2fsprogs and xfsprogs.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "load") {
        let Some(plan) = Plan::parse(&arguments[1..]) else {
            return ExitCode::from(2);
        };
        serve(&plan);
        return ExitCode::SUCCESS;
    }
    if arguments.first().is_some_and(|first| first == "hand") {
        let Some((path, shape)) = hand::parse(&arguments[1..]) else {
            return ExitCode::from(2);
        };
        hand::serve(&path, shape);
        return ExitCode::SUCCESS;
    }
    if arguments
        .iter()
        .any(|argument| argument == "--help" || argument == "-h")
    {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    interrupt::watch();
    let only_power = arguments.first().is_some_and(|first| first == "power");
    let (mut options, seeds, limits) = match parse(arguments.into_iter().skip(usize::from(only_power)), only_power) {
        Ok(parsed) => parsed,
        Err(why) => {
            eprintln!("{why}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if only_power {
        let report = power::run(&power::Options {
            seed: options.seed,
            cuts: limits.cuts,
            events: limits.events,
            seconds: options.seconds,
            keep: options.keep,
            victims: match options.kinds.as_slice() {
                [Kind::PowerAll] => power::Victims::All,
                [Kind::Power] => power::Victims::OneOrTwo,
                _ => power::Victims::Any,
            },
            after_loss: limits.after_loss,
        });
        println!("{report}");
        return if report.failures.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        };
    }
    let mut failed = Vec::new();
    for seed in options.seed..options.seed.saturating_add(seeds) {
        options.seed = seed;
        let report = run::run(&options);
        for line in &report.schedule {
            println!("{line}");
        }
        println!("{report}");
        if !report.passed() {
            failed.push(seed);
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!("failed seeds: {failed:?}");
    ExitCode::FAILURE
}

/// When a run of power cuts ends.
struct Limits {
    cuts: u64,
    events: u64,
    after_loss: power::AfterLoss,
}

fn parse(arguments: impl Iterator<Item = String>, only_power: bool) -> Result<(Options, u64, Limits), String> {
    let mut options = Options {
        seed: 1,
        seconds: if only_power { 3600 } else { 60 },
        kinds: Kind::ALL.to_vec(),
        keep: PathBuf::from("target/faults"),
        loud: true,
    };
    let mut seeds = 1;
    let (mut cuts, mut events, mut after_loss) = (None, None, power::AfterLoss::Stop);
    let mut arguments = arguments;
    while let Some(name) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{name} needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|e| format!("{text:?}: {e}"));
        match name.as_str() {
            "--seed" => options.seed = number(value()?)?,
            "--seeds" => seeds = number(value()?)?,
            "--seconds" => options.seconds = number(value()?)?,
            "--kinds" => options.kinds = value()?.split(',').map(Kind::parse).collect::<Result<_, _>>()?,
            "--keep" => options.keep = PathBuf::from(value()?),
            "--cuts" => cuts = Some(number(value()?)?),
            "--events" => events = Some(number(value()?)?),
            "--go-on" => after_loss = power::AfterLoss::GoOn,
            "--quiet" => options.loud = false,
            _ => return Err(format!("{name} is not known")),
        }
    }
    let limits = Limits {
        cuts: cuts.unwrap_or(if events.is_some() { u64::MAX } else { 200 }),
        events: events.unwrap_or(u64::MAX),
        after_loss,
    };
    Ok((options, seeds, limits))
}
