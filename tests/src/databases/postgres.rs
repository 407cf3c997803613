//! PostgreSQL, as Debian installs it, with page checksums and its own checks of heap and indexes.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;

use super::engine::{Client, Engine, Place, until_it_answers};
use super::judge::Found;
use super::pipe::{Pipe, Shared, kill_all, reap_all};
use super::process::Process;
use super::sqlite::found_in;
use crate::process::{run, shell};

/// It refuses to run as root.
const USER: &str = "postgres";

/// Small, so that checkpoints and new segments of the log come while power is cut.
const SETTINGS: &str = "
listen_addresses = ''
fsync = on
synchronous_commit = on
full_page_writes = on
shared_buffers = 16MB
max_connections = 20
checkpoint_timeout = 30s
min_wal_size = 32MB
max_wal_size = 48MB
autovacuum_naptime = 5s
";

#[derive(Debug)]
pub struct Postgres {
    place: Place,
    user: u32,
    group: u32,
    server: Option<Process>,
    clients: Vec<Shared>,
}

impl Postgres {
    /// # Errors
    /// There is no such user.
    pub fn new(place: Place) -> Result<Self, String> {
        let id = |flag: &str| {
            let said = run(Command::new("id").args([flag, USER]));
            let id = said.stdout.trim().parse::<u32>();
            id.map_err(|_| format!("there is no user {USER}: {}", said.stderr))
        };
        Ok(Self {
            user: id("-u")?,
            group: id("-g")?,
            place,
            server: None,
            clients: Vec::new(),
        })
    }

    fn data(&self) -> PathBuf {
        self.place.data.join("data")
    }

    /// One of its programs, as its user.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(programs().unwrap_or_default().join(program));
        command
            .uid(self.user)
            .gid(self.group)
            .current_dir("/")
            .env("PGHOST", &self.place.local)
            .env("PGUSER", USER)
            .env("LC_ALL", "C.UTF-8");
        command
    }

    fn psql(&self) -> Command {
        let mut command = self.command("psql");
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", "postgres"]);
        command
    }

    fn query(&self, sql: &str) -> Result<String, String> {
        finished(self.psql().args(["-c", sql]))
    }
}

fn finished(command: &mut Command) -> Result<String, String> {
    let finished = run(command);
    if finished.ok() {
        Ok(finished.stdout)
    } else {
        Err(format!("{command:?}: {}{}", finished.stdout, finished.stderr))
    }
}

/// Where Debian keeps the programs of the newest version that is installed.
#[must_use]
pub fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let number = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    let newest = versions
        .map(|entry| entry.path())
        .filter(|path| path.join("bin/postgres").exists())
        .max_by_key(|path| number(path))?;
    Some(newest.join("bin"))
}

fn statements(client: u32, number: u64, text: &str) -> String {
    format!(
        "begin; insert into t values ({client}, {number}, '{text}'); update c set n = {number} where client = {client}; \
         commit; select 'done {number}';\n"
    )
}

impl Engine for Postgres {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn create(&mut self) -> Result<(), String> {
        for directory in [&self.place.data, &self.place.local] {
            std::os::unix::fs::chown(directory, Some(self.user), Some(self.group)).map_err(|e| e.to_string())?;
        }
        let data = self.data();
        finished(
            self.command("initdb")
                .args(["--data-checksums", "--auth=trust", "-D"])
                .arg(&data),
        )?;
        let settings = data.join("postgresql.auto.conf");
        let text = format!("{SETTINGS}unix_socket_directories = '{}'\n", self.place.local.display());
        // By a program, because this process starts others and so has no file of the mount open.
        shell(&format!("cat > {} <<'END'\n{text}END\n", settings.display()));
        self.start()?;
        self.query(
            "create table t (client int, n bigint, text text, primary key (client, n)); create index on t (text); \
             create table c (client int primary key, n bigint); insert into c select g, 0 from generate_series(0, 3) g; \
             create extension amcheck",
        )
        .map(drop)
    }

    fn start(&mut self) -> Result<(), String> {
        if self.server.is_some() {
            return Ok(());
        }
        let log = super::run::log_file(&self.place, "postgres")?;
        let mut command = self.command("postgres");
        command
            .arg("-D")
            .arg(self.data())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let mut server = Process::start(&mut command)?;
        let answered = until_it_answers(|| self.query("select 1").map(drop), || server.has_ended());
        self.server = Some(server);
        answered
    }

    fn connect(&mut self, client: u32) -> Result<Box<dyn Client>, String> {
        let log = super::run::log_file(&self.place, "psql")?;
        let (pipe, process) = Pipe::start(&mut self.psql(), log, client, statements)?;
        self.clients.push(process);
        Ok(Box::new(pipe))
    }

    fn kill(&mut self) {
        if let Some(server) = &mut self.server {
            server.kill();
        }
        kill_all(&self.clients);
    }

    fn reap(&mut self) -> Result<(), String> {
        if let Some(mut server) = self.server.take() {
            server.reap()?;
        }
        reap_all(&mut self.clients)
    }

    fn read(&mut self, client: u32) -> Result<Found, String> {
        let rows = format!("select 'row|' || n || '|' || text from t where client = {client} order by n");
        let counter = format!("select 'counter|' || n || '|' from c where client = {client}");
        found_in(&self.psql_lines(&[&rows, &counter])?)
    }

    fn verify(&mut self) -> Result<(), String> {
        // Every page is read, so every checksum is looked at; then every index against its table.
        let said = finished(self.command("pg_amcheck").args([
            "--heapallindexed",
            "--parent-check",
            "--no-strict-names",
            "-d",
            "postgres",
        ]))?;
        if said.trim().is_empty() {
            Ok(())
        } else {
            Err(format!("pg_amcheck: {said}"))
        }
    }

    fn verify_at_rest(&mut self) -> Result<(), String> {
        if let Some(mut server) = self.server.take() {
            server.stop(Signal::INT)?;
        }
        let said = finished(self.command("pg_checksums").arg("--check").arg("-D").arg(self.data()))?;
        if said.contains("Bad checksums:  0") {
            Ok(())
        } else {
            Err(format!("pg_checksums: {said}"))
        }
    }
}

impl Postgres {
    fn psql_lines(&self, queries: &[&str]) -> Result<String, String> {
        let mut command = self.psql();
        for query in queries {
            command.args(["-c", query]);
        }
        finished(&mut command)
    }
}
