//! Tasks around the code: `cargo xtask verify` checks what CI checks and never edits; `cargo xtask fix` edits.
#![expect(clippy::print_stderr, reason = "a command-line tool talks on stderr")]

mod long;

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// One profile and one target directory for everything: the tests run the very binary that users
/// build. Whatever is built is built of the whole workspace: of a part of it, dependencies come
/// with fewer features, and would be compiled once more.
const VERIFY: &[&[&str]] = &[
    &["fmt", "--all", "--check"],
    &[
        "clippy",
        "--release",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ],
    &["build", "--release", "--workspace"],
    &["test", "--release", "--workspace"],
];

/// Seeds of the simulator in `verify`.
const SEEDS: &str = "2000";

const FIX: &[&[&str]] = &[
    &[
        "clippy",
        "--release",
        "--workspace",
        "--all-targets",
        "--fix",
        "--allow-dirty",
        "--allow-staged",
    ],
    &["fmt", "--all"],
];

const USAGE: &str = "usage: cargo xtask verify | fix | sim ... | faults ... | long ...
  verify   format, lints and tests, exactly as CI runs them; edits nothing
  fix      formats, and applies what the lints can mend by themselves
  sim      clusters in virtual time: --seeds N, --from S, --seed S [--keep PLACES], --planted all|NAME, --resume FILE [--cores N]
  faults   fault runs over real processes, from seeds; see: cargo xtask faults --help
  long     what takes longer than a gate may; see: cargo xtask long --help";

/// The servers' binary, and the harness that stands beside it.
const HARNESS: &[&str] = &["build", "--release", "--quiet", "--workspace"];

fn main() -> ExitCode {
    let steps = match std::env::args().nth(1).as_deref() {
        Some("verify") => return finish(verify()),
        Some("fix") => FIX,
        Some("faults") => {
            let arguments: Vec<String> = std::env::args().skip(2).collect();
            return finish(harness("faults", &arguments));
        }
        Some("long") => return finish(long::run(&std::env::args().skip(2).collect::<Vec<_>>())),
        Some("sim") => return finish(sim(&std::env::args().skip(2).collect::<Vec<_>>())),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    finish(steps.iter().try_for_each(|step| cargo(step)))
}

fn verify() -> Result<()> {
    VERIFY.iter().try_for_each(|step| cargo(step))?;
    sim(&["--seeds", SEEDS].map(str::to_owned))?;
    // And that the simulator would notice.
    sim(&["--planted", "all"].map(str::to_owned))
}

/// Planted bugs are built in for such a run only: no program that is shipped has this feature.
fn sim(arguments: &[String]) -> Result<()> {
    let mut build = vec!["build", "--release", "--workspace", "--bin", "dfs-sim"];
    if arguments.iter().any(|argument| argument == "--planted") {
        build.extend(["--features", "dfs-sim/planted"]);
    }
    cargo(&build)?;
    run("dfs-sim", arguments)
}

fn finish(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Builds the servers and the harness, and runs one of its binaries.
fn harness(binary: &str, arguments: &[String]) -> Result<()> {
    cargo(HARNESS)?;
    run(binary, arguments)
}

/// Runs a binary that was built.
fn run(binary: &str, arguments: &[String]) -> Result<()> {
    let binary = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../target/release")
        .join(binary);
    let start = Instant::now();
    let status = Command::new(&binary)
        .args(arguments)
        .status()
        .with_context(|| format!("{} does not start", binary.display()))?;
    if !status.success() {
        bail!("{} failed ({status})", binary.display());
    }
    eprintln!("  {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

fn cargo(arguments: &[&str]) -> Result<()> {
    eprintln!("+ cargo {}", arguments.join(" "));
    let start = Instant::now();
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(arguments)
        .status()
        .context("cargo does not start")?;
    if !status.success() {
        bail!("cargo {} failed ({status})", arguments.join(" "));
    }
    eprintln!("  {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}
