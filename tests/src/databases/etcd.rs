//! etcd, one member, with snapshots and compactions close together.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::engine::{Client, Engine, Place, until_it_answers};
use super::judge::{Found, text};
use super::process::Process;
use crate::process::run;

/// For an answer: several times a mount's deadline.
const ANSWERED_WITHIN: Duration = Duration::from_mins(2);

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

/// One connection to its JSON gateway: a client of its own for each transaction would be most of the work.
struct Committing {
    client: u32,
    stream: TcpStream,
    answers: BufReader<TcpStream>,
}

impl Committing {
    fn connect(client: u32, port: u16) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(ANSWERED_WITHIN))?;
        let answers = BufReader::new(stream.try_clone()?);
        Ok(Self {
            client,
            stream,
            answers,
        })
    }

    fn post(&mut self, path: &str, body: &Value) -> io::Result<String> {
        let body = body.to_string();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: etcd\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.write_all(request.as_bytes())?;
        let mut length = 0;
        loop {
            let mut line = String::new();
            if self.answers.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if line.trim().is_empty() {
                break;
            }
            if let Some(("content-length", value)) = line.to_ascii_lowercase().split_once(':') {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
        }
        let mut answer = vec![0; length];
        self.answers.read_exact(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

impl Client for Committing {
    fn commit(&mut self, number: u64) -> Result<(), String> {
        let put = |key: String, value: String| json!({"requestPut": {"key": base64(key.as_bytes()), "value": base64(value.as_bytes())}});
        let client = self.client;
        let request = json!({"success": [
            put(format!("t/{client}/{number}"), text(client, number)),
            put(format!("c/{client}"), number.to_string()),
        ]});
        let answer = self.post("/v3/kv/txn", &request).map_err(|e| e.to_string())?;
        let parsed: Value = serde_json::from_str(&answer).unwrap_or_default();
        if parsed["succeeded"] == true {
            Ok(())
        } else {
            Err(answer)
        }
    }
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or_default());
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= chunk.len() { digit.into() } else { '=' });
        }
    }
    text
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
        let connected = Committing::connect(client, self.client_port);
        Ok(Box::new(connected.map_err(|e| e.to_string())?))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_that_of_the_rfc() {
        let wanted = ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"];
        for (length, wanted) in wanted.iter().enumerate() {
            assert_eq!(base64(&b"foobar"[..length]), *wanted);
        }
    }
}
