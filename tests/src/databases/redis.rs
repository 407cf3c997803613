//! Redis with an append-only file that is synced before every answer, and rewritten often.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use super::engine::{Client, Engine, Place, until_it_answers};
use super::judge::{Found, text};
use super::process::Process;
use crate::process::run;

/// For an answer: several times a mount's deadline.
const ANSWERED_WITHIN: Duration = Duration::from_mins(2);

#[derive(Debug)]
pub struct Redis {
    place: Place,
    server: Option<Process>,
}

impl Redis {
    #[must_use]
    pub fn new(place: Place) -> Self {
        Self { place, server: None }
    }

    fn socket(&self) -> PathBuf {
        self.place.local.join("redis.socket")
    }

    fn connection(&self) -> Result<Connection, String> {
        Connection::open(&self.socket())
    }
}

/// The protocol, as far as it is needed: commands out, one value in.
struct Connection {
    stream: UnixStream,
    answers: BufReader<UnixStream>,
}

impl Connection {
    fn open(socket: &std::path::Path) -> Result<Self, String> {
        let stream = UnixStream::connect(socket).map_err(|e| e.to_string())?;
        stream
            .set_read_timeout(Some(ANSWERED_WITHIN))
            .map_err(|e| e.to_string())?;
        let answers = BufReader::new(stream.try_clone().map_err(|e| e.to_string())?);
        Ok(Self { stream, answers })
    }

    fn send(&mut self, commands: &[Vec<String>]) -> Result<(), String> {
        let mut bytes = Vec::new();
        for command in commands {
            bytes.extend_from_slice(format!("*{}\r\n", command.len()).as_bytes());
            for word in command {
                bytes.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
            }
        }
        self.stream.write_all(&bytes).map_err(|e| e.to_string())
    }

    fn line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        match self.answers.read_line(&mut line) {
            Ok(0) => Err("the server hung up".to_owned()),
            Ok(_) => Ok(line.trim_end().to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// A status or a string; `None`: there is no such key.
    fn value(&mut self) -> Result<Option<String>, String> {
        let line = self.line()?;
        match line.split_at_checked(1) {
            Some(("$", "-1")) => Ok(None),
            Some(("$", _)) => self.line().map(Some),
            Some(("-", said)) => Err(said.to_owned()),
            _ => Ok(Some(line)),
        }
    }
}

fn words(command: &[&str]) -> Vec<String> {
    command.iter().map(|word| (*word).to_owned()).collect()
}

struct Committing {
    client: u32,
    connection: Connection,
}

impl Client for Committing {
    fn commit(&mut self, number: u64) -> Result<(), String> {
        let (key, counter) = (format!("t:{}:{number}", self.client), format!("c:{}", self.client));
        self.connection.send(&[
            words(&["MULTI"]),
            words(&["SET", &key, &text(self.client, number)]),
            words(&["SET", &counter, &number.to_string()]),
            words(&["EXEC"]),
        ])?;
        for wanted in ["+OK", "+QUEUED", "+QUEUED", "*2", "+OK", "+OK"] {
            match self.connection.value()? {
                Some(said) if said == wanted => {}
                said => return Err(format!("{said:?} in place of {wanted}")),
            }
        }
        Ok(())
    }
}

impl Engine for Redis {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn create(&mut self) -> Result<(), String> {
        self.start()
    }

    fn start(&mut self) -> Result<(), String> {
        if self.server.is_some() {
            return Ok(());
        }
        let log = super::run::log_file(&self.place, "redis")?;
        let mut command = Command::new("redis-server");
        command
            .args(["--port", "0", "--daemonize", "no", "--save", "", "--dir"])
            .arg(&self.place.data)
            .arg("--unixsocket")
            .arg(self.socket())
            .args([
                "--appendonly",
                "yes",
                "--appendfsync",
                "always",
                "--no-appendfsync-on-rewrite",
                "no",
            ])
            .args([
                "--auto-aof-rewrite-percentage",
                "50",
                "--auto-aof-rewrite-min-size",
                "64kb",
            ])
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(Stdio::null());
        let mut server = Process::start(&mut command)?;
        let ask = || {
            let mut connection = self.connection()?;
            connection.send(&[words(&["PING"])])?;
            // An error while it loads.
            connection.value().map(drop)
        };
        let answered = until_it_answers(ask, || server.has_ended());
        self.server = Some(server);
        answered
    }

    fn connect(&mut self, client: u32) -> Result<Box<dyn Client>, String> {
        let connection = self.connection()?;
        Ok(Box::new(Committing { client, connection }))
    }

    fn kill(&mut self) {
        if let Some(server) = &mut self.server {
            server.kill();
        }
    }

    fn reap(&mut self) -> Result<(), String> {
        let _ = std::fs::remove_file(self.socket());
        self.server.take().map_or(Ok(()), |mut server| server.reap())
    }

    fn read(&mut self, client: u32) -> Result<Found, String> {
        let mut connection = self.connection()?;
        connection.send(&[words(&["KEYS", &format!("t:{client}:*")])])?;
        let count = connection.line()?;
        let count: usize = count.trim_start_matches('*').parse().map_err(|_| count)?;
        let mut numbers = Vec::new();
        for _ in 0..count {
            let key = connection.value()?.unwrap_or_default();
            let number = key.rsplit(':').next().and_then(|number| number.parse::<u64>().ok());
            numbers.push(number.ok_or(key)?);
        }
        let mut found = Found::default();
        for number in numbers {
            connection.send(&[words(&["GET", &format!("t:{client}:{number}")])])?;
            found.rows.push((number, connection.value()?.unwrap_or_default()));
        }
        connection.send(&[words(&["GET", &format!("c:{client}")])])?;
        let counter = connection.value()?;
        found.counter = counter.map_or(Ok(0), |counter| counter.parse().map_err(|_| counter))?;
        Ok(found)
    }

    fn verify(&mut self) -> Result<(), String> {
        let manifest = self.place.data.join("appendonlydir/appendonly.aof.manifest");
        let checked = run(Command::new("redis-check-aof").arg(manifest));
        if checked.ok() && checked.stdout.contains("is valid") {
            Ok(())
        } else {
            Err(format!("redis-check-aof: {}{}", checked.stdout, checked.stderr))
        }
    }

    fn verify_at_rest(&mut self) -> Result<(), String> {
        if let Some(mut server) = self.server.take() {
            server.stop(Signal::TERM)?;
        }
        self.verify()
    }
}
