//! From arguments to a verb to an exit code.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use clap::error::ErrorKind;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::args::{Cli, Verb};
use crate::failure::{Code, Failure, Outcome};
use crate::log_bound::Bounded;
use crate::log_file::LogFile;
use crate::{
    chain, conflicts, credentials, dev, init, meta, mounting, node, output, place, policy, resync, scrub, serve,
    status, sync, verify,
};

/// Parses, runs, reports.
pub(crate) fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<_> = arguments.collect();
    let as_mount_helper = arguments
        .first()
        .is_some_and(|name| Path::new(name).file_name().is_some_and(|name| name == "mount.dfs"));
    let parsed = if as_mount_helper {
        mounting::helper_arguments(&arguments)
            .and_then(|arguments| Cli::try_parse_from(arguments).map_err(|error| Failure::usage(error.to_string())))
    } else {
        match Cli::try_parse_from(&arguments) {
            Ok(cli) => Ok(cli),
            Err(error) => {
                let code = match error.kind() {
                    ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Code::Ok,
                    _ => Code::Usage,
                };
                let _ = error.print();
                return code.into();
            }
        }
    };
    match parsed.and_then(|cli| start(&cli)) {
        Ok(code) => code.into(),
        Err(failure) => {
            output::complain(&failure.line());
            failure.code.into()
        }
    }
}

fn start(cli: &Cli) -> Outcome {
    start_log(cli)?;
    match &cli.verb {
        Verb::Dev(verb) => dev::run(verb),
        Verb::Mount(arguments) => mounting::mount(arguments, cli.log_file.as_deref()),
        Verb::Umount(arguments) => mounting::umount(arguments),
        Verb::Init(arguments) => init::run(arguments),
        Verb::Meta(arguments) => match (&arguments.verb, &arguments.serve) {
            (Some(verb), _) => meta::run(verb),
            (None, Some(serve)) => serve::meta(serve),
            (None, None) => Err(Failure::usage(
                "dfs meta needs --config FILE, or a verb: dfs meta --help",
            )),
        },
        Verb::Storage(arguments) => serve::storage(arguments),
        Verb::Status(arguments) => status::show(arguments),
        Verb::Health(arguments) => status::health(arguments),
        Verb::Chain(verb) => chain::run(verb),
        Verb::Scrub(verb) => scrub::run(verb),
        Verb::Node(verb) => node::run(verb),
        Verb::Credentials(verb) => credentials::run(verb),
        Verb::Resync(verb) => resync::run(verb),
        Verb::Where(arguments) => place::show(arguments),
        Verb::Verify(arguments) => verify::run(arguments),
        Verb::Policy(verb) => policy::run(verb),
        Verb::Sync(args) => sync::run(args),
        Verb::Conflicts(verb) => conflicts::run(verb),
        Verb::Version => {
            output::line(&format!(
                "dfs {} (protocol {})",
                env!("CARGO_PKG_VERSION"),
                dfs_common::wire::PROTOCOL_VERSION
            ));
            Ok(Code::Ok)
        }
    }
}

/// The consensus library tells every step of every election, and calls each message an error that
/// did not arrive; what matters of it, the servers say themselves.
const SERVER_LOG: &str = "info,openraft=off";

fn start_log(cli: &Cli) -> Outcome<()> {
    // A verb's failure is one line that it prints itself; what lies under it is for who asks.
    let default = match cli.verb {
        Verb::Meta(ref arguments) if arguments.verb.is_none() => SERVER_LOG,
        Verb::Storage(_) => SERVER_LOG,
        Verb::Mount(ref mount) if mount.foreground => SERVER_LOG,
        _ => "off",
    };
    let filter = cli
        .log
        .clone()
        .or_else(|| std::env::var("RUST_LOG").ok().filter(|text| !text.is_empty()));
    let filter = filter.unwrap_or_else(|| default.to_owned());
    let filter = EnvFilter::try_new(&filter)
        .map_err(|error| Failure::usage(format!("log filter {filter:?} is not valid: {error}")))?;
    let (writer, is_terminal) = match &cli.log_file {
        Some(path) => {
            let log = LogFile::open(path).with_context(|| format!("log file {}", path.display()))?;
            (BoxMakeWriter::new(log), false)
        }
        None => (BoxMakeWriter::new(std::io::stderr), std::io::stderr().is_terminal()),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(is_terminal);
    let set = if cli.log_json {
        let format = tracing_subscriber::fmt::format().json();
        builder.json().event_format(Bounded::new(format, true)).try_init()
    } else {
        let format = tracing_subscriber::fmt::format();
        builder.event_format(Bounded::new(format, false)).try_init()
    };
    set.map_err(|error| Failure::new(format!("logging can not be set up: {error}")))
}

/// One endpoint's packets pass through one thread; beyond this more of them only pass work around.
const MAX_WORKERS: usize = 8;

/// Has the process take as many descriptors as its hard limit allows: the soft one is made for programs that ask `select`. Returns
/// what it got.
pub(crate) fn raise_descriptors() -> u64 {
    use rustix::process::{Resource, getrlimit, setrlimit};

    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "the limit of file descriptors can not be raised");
            limit = getrlimit(Resource::Nofile);
        }
    }
    limit.current.unwrap_or(u64::MAX)
}

/// Of a process that has started: one that can not says one line, why.
pub(crate) fn tell_descriptors(descriptors: u64) {
    if descriptors < FEW_DESCRIPTORS {
        tracing::warn!(
            descriptors,
            "few file descriptors: raise the limit (ulimit -n, LimitNOFILE=)"
        );
    } else {
        tracing::info!(descriptors, "file descriptors that this process may have");
    }
}

/// A server with some dozens of peers and mounts needs these.
const FEW_DESCRIPTORS: u64 = 512;

/// Runs a verb that talks to the cluster.
pub(crate) fn block_on<T>(work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    runtime()?.block_on(work)
}

/// Half of the processors: a request that crosses threads within a process pays for it with a wake-up (110 us for one that
/// stays on one thread, 240 us over two, measured on two processors), and a server's disk and the kernel want theirs.
fn workers() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (processors / 2).clamp(1, MAX_WORKERS)
}

pub(crate) fn runtime() -> Outcome<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    // tokio's own variable, for those who measure.
    if std::env::var_os("TOKIO_WORKER_THREADS").is_none() {
        builder.worker_threads(workers());
    }
    Ok(builder.enable_all().build()?)
}
