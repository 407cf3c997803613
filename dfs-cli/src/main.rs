//! `dfs`: the servers, the mount, the development cluster and every admin verb in one binary.
//!
//! A verb validates what it was given before it changes anything, says what went wrong in one line on stderr, and ends
//! with one of the exit codes of [`failure::Code`].

mod again;
mod args;
mod chain;
mod config;
mod conflicts;
mod credentials;
mod dev;
mod failure;
mod files;
mod init;
mod lateness;
mod log_bound;
mod log_file;
mod meta;
mod mounting;
mod node;
mod output;
mod place;
mod policy;
mod process;
mod program;
mod resync;
mod scrub;
mod serve;
mod status;
mod sync;
mod verify;

/// Requests allocate in many small and some large pieces, on one thread and free them on another: this allocator takes half
/// the time of the system's for that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    program::run(std::env::args_os())
}
