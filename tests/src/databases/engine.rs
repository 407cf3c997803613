//! What every database under test can do.

use std::fmt;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use super::judge::Found;

/// For a database to answer after a start, its recovery included.
pub const ANSWERS_WITHIN: Duration = Duration::from_mins(3);

/// Where a database lives.
#[derive(Clone, Debug)]
pub struct Place {
    /// On the mount: its data.
    pub data: PathBuf,
    /// On the local disk: logs, sockets.
    pub local: PathBuf,
}

/// One client's connection.
pub trait Client: Send {
    /// Commits transaction `number`; returns when the database says that it is durable.
    ///
    /// # Errors
    /// It did not say so.
    fn commit(&mut self, number: u64) -> Result<(), String>;
}

/// A database: a server and its files, or only files.
pub trait Engine: fmt::Debug {
    fn name(&self) -> &'static str;

    /// Makes an empty database.
    ///
    /// # Errors
    /// What its tools said.
    fn create(&mut self) -> Result<(), String>;

    /// Starts it, with the recovery that it needs; returns when it answers.
    ///
    /// # Errors
    /// It does not come.
    fn start(&mut self) -> Result<(), String>;

    /// # Errors
    /// It can not be reached.
    fn connect(&mut self, client: u32) -> Result<Box<dyn Client>, String>;

    /// SIGKILL to everything of it, clients included, without waiting.
    fn kill(&mut self);

    /// Waits until all that was killed is gone.
    ///
    /// # Errors
    /// Something is not.
    fn reap(&mut self) -> Result<(), String>;

    /// # Errors
    /// It can not be read.
    fn read(&mut self, client: u32) -> Result<Found, String>;

    /// Its own checks, while it runs.
    ///
    /// # Errors
    /// What they found.
    fn verify(&mut self) -> Result<(), String>;

    /// Stops it in an orderly way, and has it checked at rest if it can be.
    ///
    /// # Errors
    /// What was found.
    fn verify_at_rest(&mut self) -> Result<(), String>;
}

/// Tries until it works, somebody ended, or time is over.
///
/// # Errors
/// What it said last.
pub fn until_it_answers(
    mut ask: impl FnMut() -> Result<(), String>,
    mut has_ended: impl FnMut() -> bool,
) -> Result<(), String> {
    let began = Instant::now();
    loop {
        match ask() {
            Ok(()) => return Ok(()),
            Err(said) if has_ended() => return Err(format!("it ended: {said}")),
            Err(said) if began.elapsed() > ANSWERS_WITHIN => return Err(format!("it does not answer: {said}")),
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}
