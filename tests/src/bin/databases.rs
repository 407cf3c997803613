//! `cargo xtask long databases`: databases on a mount through power cuts of all servers.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

use std::path::PathBuf;
use std::process::ExitCode;

use dfs_tests::databases::kind::Kind;
use dfs_tests::databases::packages;
use dfs_tests::databases::run::{Options, Order, run};
use dfs_tests::interrupt;

const USAGE: &str = "usage: databases [--rounds N] [--only NAME,...] [--at-once] [--seed S] [--keep DIR]
  --rounds N   of each database (default 10): clients commit, then all servers lose their power and database and
               mount are killed. Or that twice, the second time right after recovery; or first only database
               and mount are killed; or first power is cut and comes back while they live
  --only       postgres, sqlite-wal, sqlite-rollback (sqlite: both), etcd, redis (default: all)
  --at-once    all of them beside each other, not one after the other
  --seed S     when power is cut (default 1)
  --keep DIR   where the logs of a failed run go (default target/databases)
DFS_BINARY=PATH in the environment: that dfs instead of the one just built.
Needs root; installs the Debian packages postgresql, sqlite3, etcd-server, etcd-client and redis-server if they
are missing. The data of servers and databases stands below /var/tmp while it runs.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments
        .iter()
        .any(|argument| argument == "--help" || argument == "-h")
    {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let options = match parse(arguments) {
        Ok(options) => options,
        Err(why) => {
            eprintln!("{why}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    if let Err(why) = packages::ensure(&options.kinds) {
        eprintln!("databases: {why}");
        return ExitCode::FAILURE;
    }
    interrupt::watch();
    let report = run(&options);
    println!("{report}");
    if report.passed() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn parse(arguments: Vec<String>) -> Result<Options, String> {
    let mut options = Options {
        kinds: Kind::ALL.to_vec(),
        order: Order::OneAfterTheOther,
        rounds: 10,
        seed: 1,
        keep: PathBuf::from("target/databases"),
    };
    let mut arguments = arguments.into_iter();
    while let Some(name) = arguments.next() {
        if name == "--at-once" {
            options.order = Order::AtOnce;
            continue;
        }
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
        let number = || value.parse::<u64>().map_err(|e| format!("{value:?}: {e}"));
        match name.as_str() {
            "--rounds" => options.rounds = number()?,
            "--seed" => options.seed = number()?,
            "--keep" => options.keep = PathBuf::from(value),
            "--only" => {
                let named: Vec<Vec<Kind>> = value.split(',').map(Kind::parse).collect::<Result<_, _>>()?;
                options.kinds = named.concat();
            }
            _ => return Err(format!("{name} is not known")),
        }
    }
    Ok(options)
}
