//! A client that is a command-line program: statements go in, and a line comes out when they are done.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use super::engine::Client;
use super::judge::text;
use super::process::Process;

/// Shared with the engine, which kills it: its thread may be waiting for a line.
pub type Shared = Arc<Mutex<Process>>;

/// Makes the statements of one transaction: from the client's number, the transaction's, and its text.
pub type Statements = fn(u32, u64, &str) -> String;

#[derive(Debug)]
pub struct Pipe {
    client: u32,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    statements: Statements,
}

impl Pipe {
    /// The program reads statements from its standard input and ends at the first error. `statements` end with one that prints
    /// `done N` if all before it succeeded.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(
        command: &mut Command,
        log: File,
        client: u32,
        statements: Statements,
    ) -> Result<(Self, Shared), String> {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut child = Process::start(command)?;
        let (stdin, stdout) = child.pipes().ok_or("no pipes")?;
        let pipe = Self {
            client,
            stdin,
            stdout: BufReader::new(stdout),
            statements,
        };
        Ok((pipe, Arc::new(Mutex::new(child))))
    }
}

impl Client for Pipe {
    fn commit(&mut self, number: u64) -> Result<(), String> {
        let statements = (self.statements)(self.client, number, &text(self.client, number));
        self.stdin
            .write_all(statements.as_bytes())
            .and_then(|()| self.stdin.flush())
            .map_err(|e| e.to_string())?;
        let wanted = format!("done {number}");
        loop {
            let mut line = String::new();
            match self.stdout.read_line(&mut line) {
                Ok(0) => return Err("the client ended".to_owned()),
                Ok(_) if line.trim() == wanted => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(error.to_string()),
            }
        }
    }
}

/// Kills every client, and forgets none before it is gone.
pub fn kill_all(clients: &[Shared]) {
    for client in clients {
        client.lock().unwrap_or_else(PoisonError::into_inner).kill();
    }
}

/// # Errors
/// One does not go.
pub fn reap_all(clients: &mut Vec<Shared>) -> Result<(), String> {
    for client in clients.drain(..) {
        client.lock().unwrap_or_else(PoisonError::into_inner).reap()?;
    }
    Ok(())
}
