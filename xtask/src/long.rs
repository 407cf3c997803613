//! Checks that take longer than a gate may: one command each, with how long it takes.

use anyhow::{Result, bail};

use crate::{harness, sim};

struct Long {
    name: &'static str,
    /// On two cores that do nothing else.
    takes: &'static str,
    what: &'static str,
    run: fn(&[String]) -> Result<()>,
}

const ALL: &[Long] = &[
    Long {
        name: "databases",
        takes: "20 min",
        what: "PostgreSQL, SQLite, etcd and Redis through power cuts of all servers, remount and recovery",
        run: |more| harness("databases", more),
    },
    Long {
        name: "power-cuts",
        takes: "25 min",
        what: "200 power cuts with overwrites and foreign fsyncs, every other one of all servers",
        run: |more| {
            harness(
                "faults",
                &with(
                    &["power", "--kinds", "power-all", "--events", "200", "--seconds", "14400"],
                    more,
                ),
            )
        },
    },
    Long {
        name: "turnover",
        takes: "40 min",
        what: "500,000 files of four chunks made and removed: memory and disks are as they were",
        run: |more| harness("turnover", more),
    },
    Long {
        name: "seeds",
        takes: "some hours",
        what: "100,000 seeds of the simulator",
        run: |more| sim(&with(&["--seeds", "100000"], more)),
    },
];

/// What is given on the command line comes later, and so wins.
fn with(first: &[&str], more: &[String]) -> Vec<String> {
    let first = first.iter().map(|word| (*word).to_owned());
    first.chain(more.iter().cloned()).collect()
}

pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let name = arguments.first().map_or("--help", String::as_str);
    if matches!(name, "--help" | "-h") {
        eprintln!("{}", usage());
        return Ok(());
    }
    match ALL.iter().find(|long| long.name == name) {
        Some(long) => (long.run)(&arguments[1..]),
        None => bail!("there is no long command {name:?}\n{}", usage()),
    }
}

fn usage() -> String {
    let line = |long: &Long| format!("  {:<11} {:<11} {}", long.name, long.takes, long.what);
    let lines: Vec<String> = ALL.iter().map(line).collect();
    format!(
        "usage: cargo xtask long NAME [its own arguments; --help has them]\n{}",
        lines.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ_and_help_has_all_of_them() {
        for (at, long) in ALL.iter().enumerate() {
            assert!(usage().contains(long.name));
            assert!(ALL[..at].iter().all(|other| other.name != long.name));
        }
    }

    #[test]
    fn what_is_given_comes_last() {
        let given = with(&["--rounds", "10"], &["--rounds".to_owned(), "3".to_owned()]);
        assert_eq!(given, ["--rounds", "10", "--rounds", "3"]);
    }
}
