//! `dfs`: the servers, the mount, the development cluster and every admin verb in one binary.
//!
//! A verb validates what it was given before it changes anything, says what went wrong in one line on stderr, and ends
//! with one of the exit codes of [`failure::Code`].

mod args;
mod chain;
mod config;
mod dev;
mod failure;
mod files;
mod init;
mod mounting;
mod output;
mod place;
mod process;
mod program;
mod serve;
mod status;

fn main() -> std::process::ExitCode {
    program::run(std::env::args_os())
}
