//! SQLite, with a write-ahead log or a rollback journal: no server, the clients are all there is.

use std::process::Command;

use super::engine::{Client, Engine, Place};
use super::judge::Found;
use super::pipe::{Pipe, Shared, kill_all, reap_all};
use crate::process::run;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Journal {
    Wal,
    Rollback,
}

impl Journal {
    /// What a connection says first.
    fn pragmas(self) -> &'static str {
        match self {
            // FULL: the log is synced at every commit.
            Self::Wal => {
                "PRAGMA busy_timeout=60000; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=50;"
            }
            // EXTRA: the directory too, when the journal is gone from it.
            Self::Rollback => "PRAGMA busy_timeout=60000; PRAGMA journal_mode=DELETE; PRAGMA synchronous=EXTRA;",
        }
    }
}

#[derive(Debug)]
pub struct Sqlite {
    place: Place,
    journal: Journal,
    clients: Vec<Shared>,
}

impl Sqlite {
    #[must_use]
    pub fn new(place: Place, journal: Journal) -> Self {
        Self {
            place,
            journal,
            clients: Vec::new(),
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new("sqlite3");
        command.args(["-batch", "-bail"]).arg(self.place.data.join("test.db"));
        command
    }

    fn query(&self, sql: &str) -> Result<String, String> {
        let finished = run(self.command().arg(format!("{} {sql}", self.journal.pragmas())));
        if finished.ok() && finished.stderr.is_empty() {
            Ok(finished.stdout)
        } else {
            Err(format!("{}{}", finished.stdout, finished.stderr))
        }
    }
}

fn statements(client: u32, number: u64, text: &str) -> String {
    format!(
        "BEGIN IMMEDIATE; INSERT INTO t VALUES ({client}, {number}, '{text}'); \
         UPDATE c SET n = {number} WHERE client = {client}; COMMIT; SELECT 'done {number}';\n"
    )
}

impl Engine for Sqlite {
    fn name(&self) -> &'static str {
        match self.journal {
            Journal::Wal => "sqlite-wal",
            Journal::Rollback => "sqlite-rollback",
        }
    }

    fn create(&mut self) -> Result<(), String> {
        self.query(
            "CREATE TABLE t (client INTEGER, n INTEGER, text TEXT, PRIMARY KEY (client, n)); CREATE INDEX by_text ON t (text); \
             CREATE TABLE c (client INTEGER PRIMARY KEY, n INTEGER); INSERT INTO c VALUES (0, 0), (1, 0), (2, 0), (3, 0);",
        )
        .map(drop)
    }

    /// The first to open it recovers it.
    fn start(&mut self) -> Result<(), String> {
        self.query("SELECT count(*) FROM t;").map(drop)
    }

    fn connect(&mut self, client: u32) -> Result<Box<dyn Client>, String> {
        let log = super::run::log_file(&self.place, self.name())?;
        let mut command = self.command();
        command.args(["-cmd", self.journal.pragmas()]);
        let (pipe, process) = Pipe::start(&mut command, log, client, statements)?;
        self.clients.push(process);
        Ok(Box::new(pipe))
    }

    fn kill(&mut self) {
        kill_all(&self.clients);
    }

    fn reap(&mut self) -> Result<(), String> {
        reap_all(&mut self.clients)
    }

    fn read(&mut self, client: u32) -> Result<Found, String> {
        let rows = self.query(&format!(
            "SELECT 'row|' || n || '|' || text FROM t WHERE client = {client} ORDER BY n; \
             SELECT 'counter|' || n || '|' FROM c WHERE client = {client};"
        ))?;
        found_in(&rows)
    }

    fn verify(&mut self) -> Result<(), String> {
        let said = self.query("PRAGMA integrity_check;")?;
        match said.lines().last() {
            Some("ok") => Ok(()),
            _ => Err(format!("integrity_check: {said}")),
        }
    }

    fn verify_at_rest(&mut self) -> Result<(), String> {
        self.verify()
    }
}

/// Lines `row|NUMBER|TEXT` and `counter|NUMBER|` among others.
pub(super) fn found_in(lines: &str) -> Result<Found, String> {
    let mut found = Found::default();
    for line in lines.lines() {
        let mut words = line.splitn(3, '|');
        let (kind, number, text) = (words.next(), words.next(), words.next());
        let number = number.unwrap_or_default().parse::<u64>().ok();
        match (kind, number, text) {
            (Some("row"), Some(number), Some(text)) => found.rows.push((number, text.to_owned())),
            (Some("counter"), Some(number), Some(_)) => found.counter = number,
            (Some("row" | "counter"), _, _) => return Err(format!("{line:?} is no row")),
            _ => {}
        }
    }
    Ok(found)
}
