//! etcd, one member, with snapshots and compactions close together.

use std::io::Write;
use std::net::TcpListener;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use super::engine::{Client, Engine, Place, until_it_answers};
use super::judge::{Found, text};
use super::process::Process;
use crate::process::run;

#[derive(Debug)]
pub struct Etcd {
    place: Place,
    client_port: u16,
    peer_port: u16,
    server: Option<Process>,
}

impl Etcd {
    /// # Errors
    /// There is no free port.
    pub fn new(place: Place) -> Result<Self, String> {
        Ok(Self {
            place,
            client_port: free_port()?,
            peer_port: free_port()?,
            server: None,
        })
    }

    fn control(&self, arguments: &[&str]) -> Result<String, String> {
        let finished = run(control(self.client_port).args(arguments));
        if finished.ok() {
            Ok(finished.stdout)
        } else {
            Err(format!("etcdctl {arguments:?}: {}{}", finished.stdout, finished.stderr))
        }
    }
}

fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
    Ok(listener.local_addr().map_err(|e| e.to_string())?.port())
}

fn control(port: u16) -> Command {
    let mut command = Command::new("etcdctl");
    command
        .env("ETCDCTL_API", "3")
        .env("ETCDCTL_ENDPOINTS", format!("127.0.0.1:{port}"))
        .args(["--command-timeout", "60s"]);
    command
}

struct Committing {
    client: u32,
    port: u16,
}

impl Client for Committing {
    fn commit(&mut self, number: u64) -> Result<(), String> {
        let mut child = control(self.port)
            .arg("txn")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| e.to_string())?;
        let (client, text) = (self.client, text(self.client, number));
        // No comparisons, two puts, nothing for the other case.
        let request = format!("\nput t/{client}/{number} {text}\nput c/{client} {number}\n\n\n");
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(request.as_bytes()).map_err(|e| e.to_string())?;
        }
        let output = child.wait_with_output().map_err(|e| e.to_string())?;
        let said = String::from_utf8_lossy(&output.stdout);
        if output.status.success() && said.starts_with("SUCCESS") {
            Ok(())
        } else {
            Err(format!("{said}{}", String::from_utf8_lossy(&output.stderr)))
        }
    }
}

impl Engine for Etcd {
    fn name(&self) -> &'static str {
        "etcd"
    }

    fn create(&mut self) -> Result<(), String> {
        self.start()
    }

    fn start(&mut self) -> Result<(), String> {
        if self.server.is_some() {
            return Ok(());
        }
        let log = super::run::log_file(&self.place, "etcd")?;
        let client = format!("http://127.0.0.1:{}", self.client_port);
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let mut command = Command::new("etcd");
        command
            .arg("--data-dir")
            .arg(self.place.data.join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .args(["--snapshot-count", "100", "--logger", "zap"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let mut server = Process::start(&mut command)?;
        let answered = until_it_answers(
            || self.control(&["endpoint", "health"]).map(drop),
            || server.has_ended(),
        );
        self.server = Some(server);
        answered
    }

    fn connect(&mut self, client: u32) -> Result<Box<dyn Client>, String> {
        Ok(Box::new(Committing {
            client,
            port: self.client_port,
        }))
    }

    fn kill(&mut self) {
        if let Some(server) = &mut self.server {
            server.kill();
        }
    }

    fn reap(&mut self) -> Result<(), String> {
        self.server.take().map_or(Ok(()), |mut server| server.reap())
    }

    fn read(&mut self, client: u32) -> Result<Found, String> {
        let prefix = format!("t/{client}/");
        let said = self.control(&["get", "--prefix", &prefix])?;
        let lines: Vec<&str> = said.lines().collect();
        let mut found = Found::default();
        for pair in lines.chunks(2) {
            let [key, value] = pair else {
                return Err(format!("{pair:?} is no key with a value"));
            };
            let number = key.strip_prefix(&prefix).and_then(|number| number.parse().ok());
            found.rows.push((number.ok_or(*key)?, (*value).to_owned()));
        }
        let counter = self.control(&["get", "--print-value-only", &format!("c/{client}")])?;
        let counter = counter.trim();
        found.counter = if counter.is_empty() {
            0
        } else {
            counter.parse().map_err(|_| counter.to_owned())?
        };
        Ok(found)
    }

    fn verify(&mut self) -> Result<(), String> {
        let alarms = self.control(&["alarm", "list"])?;
        if !alarms.trim().is_empty() {
            return Err(format!("alarms: {alarms}"));
        }
        // Both read every key: the hash of all revisions, and a copy whose own hash is looked at.
        let _ = self.control(&["endpoint", "hashkv"])?;
        let copy = self.place.local.join("snapshot.db");
        let _ = std::fs::remove_file(&copy);
        let copy = copy.display().to_string();
        let _ = self.control(&["snapshot", "save", &copy])?;
        self.control(&["snapshot", "status", &copy]).map(drop)
    }

    fn verify_at_rest(&mut self) -> Result<(), String> {
        let _ = self.verify();
        self.server
            .take()
            .map_or(Ok(()), |mut server| server.stop(Signal::TERM))
    }
}
