//! Running commands with a bound on their time, and finding the binary under test.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// No command of a test runs longer than this: a hang is a failure with a name, not a stuck gate.
const COMMAND_DEADLINE: Duration = Duration::from_mins(4);

/// What a command left.
#[derive(Clone, Debug)]
pub struct Finished {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Finished {
    #[must_use]
    pub fn ok(&self) -> bool {
        self.code == Some(0)
    }

    /// Panics with everything that the command said unless it ended with 0.
    #[track_caller]
    #[must_use]
    pub fn expect_ok(self, what: &str) -> Self {
        assert!(
            self.ok(),
            "{what}: exit {:?} after {:?}\n{}\n{}",
            self.code,
            self.took,
            self.stdout,
            self.stderr
        );
        self
    }
}

/// Names another `dfs` than the one beside the running test, so that one harness compares two of them.
const BINARY_VARIABLE: &str = "DFS_BINARY";

/// The `dfs` binary under test: what [`BINARY_VARIABLE`] names, else the one beside the running test, built first if a test is run
/// alone.
#[must_use]
pub fn dfs_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(named) = std::env::var_os(BINARY_VARIABLE) {
            let named = PathBuf::from(named);
            assert!(named.is_file(), "{BINARY_VARIABLE}: there is no {}", named.display());
            return named;
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .expect("tests/ stands in the workspace");
        let built = Command::new(env!("CARGO"))
            .current_dir(root)
            .args(["build", "--release", "--quiet", "--workspace", "--bin", "dfs"])
            .status()
            .expect("cargo starts");
        assert!(built.success(), "dfs does not build");
        harness_binary("dfs")
    })
}

/// A binary that is built with the tests, in the directory that the running test comes from.
#[must_use]
pub fn harness_binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let target = test
        .ancestors()
        .find(|at| at.ends_with("release"))
        .expect("tests run from target/release");
    target.join(name)
}

/// Runs `dfs` with these arguments.
pub fn dfs<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Finished {
    run(Command::new(dfs_binary()).args(arguments))
}

/// Runs `dfs` with these arguments, on a machine whose clock is off: faketime's library says so to
/// it and to whatever it starts.
#[track_caller]
pub fn dfs_with_clock<S: AsRef<OsStr>>(off: &str, arguments: impl IntoIterator<Item = S>) -> Finished {
    let library = shell("ls /usr/lib/*/faketime/libfaketimeMT.so.1");
    run(Command::new(dfs_binary())
        .args(arguments)
        .env("LD_PRELOAD", library.trim())
        .env("FAKETIME", off)
        // As a clock that is set wrong: what counts durations goes on.
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1"))
}

/// Runs a shell line; panics unless it ends with 0. Returns its output.
#[track_caller]
pub fn shell(line: &str) -> String {
    run(Command::new("bash").arg("-euo").arg("pipefail").arg("-c").arg(line))
        .expect_ok(line)
        .stdout
}

/// Runs a shell line in a directory; the caller judges the result.
pub fn run_in(directory: &Path, line: &str) -> Finished {
    run(Command::new("bash")
        .arg("-euo")
        .arg("pipefail")
        .arg("-c")
        .arg(line)
        .current_dir(directory))
}

/// Runs a command to its end, killing it after [`COMMAND_DEADLINE`].
pub fn run(command: &mut Command) -> Finished {
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?} does not start: {e}"));
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let code = wait(&mut child, start);
    let text =
        |reader: thread::JoinHandle<Vec<u8>>| String::from_utf8_lossy(&reader.join().unwrap_or_default()).into_owned();
    Finished {
        code,
        stdout: text(stdout),
        stderr: text(stderr),
        took: start.elapsed(),
    }
}

fn wait(child: &mut Child, start: Instant) -> Option<i32> {
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return status.code();
        }
        if start.elapsed() > COMMAND_DEADLINE {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn drain<R: Read + Send + 'static>(pipe: Option<R>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}
