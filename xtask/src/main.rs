//! Tasks around the code: `cargo xtask verify` checks what CI checks and never edits; `cargo xtask fix` edits.
#![expect(clippy::print_stderr, reason = "a command-line tool talks on stderr")]

use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// One profile and one target directory for everything: the tests run the very binary that users build.
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

const USAGE: &str = "usage: cargo xtask verify | fix
  verify   format, lints and tests, exactly as CI runs them; edits nothing
  fix      formats, and applies what the lints can mend by themselves";

fn main() -> ExitCode {
    let steps = match std::env::args().nth(1).as_deref() {
        Some("verify") => VERIFY,
        Some("fix") => FIX,
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match steps.iter().try_for_each(|step| cargo(step)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
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
