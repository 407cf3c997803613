//! A process that has one file of a mount open and does to it what its parent says, line by line.
//!
//! A process each, because what is tried is what one process may rely on that another wrote; and because whoever has files of a
//! mount open must not start others (see `load.rs`).

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use super::cell::{Part, Seq, Shape, from_line, to_line};
use crate::process::harness_binary;

/// Nothing hangs for ever: several times a mount's deadline.
const ANSWERED_WITHIN: Duration = Duration::from_mins(3);

/// What a hand can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// For reading and writing; made if it is not there.
    Open,
    Write(usize, Seq),
    Fsync,
    Fdatasync,
    Close,
    /// The whole file, by the open handle.
    Cached,
    /// The whole file, by a new handle with O_DIRECT.
    Direct,
}

impl Order {
    fn line(self) -> String {
        match self {
            Self::Open => "open".to_owned(),
            Self::Write(cell, seq) => format!("write {cell} {}", seq.0),
            Self::Fsync => "fsync".to_owned(),
            Self::Fdatasync => "fdatasync".to_owned(),
            Self::Close => "close".to_owned(),
            Self::Cached => "cached".to_owned(),
            Self::Direct => "direct".to_owned(),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        let order = match words.next()? {
            "open" => Self::Open,
            "write" => Self::Write(words.next()?.parse().ok()?, Seq(words.next()?.parse().ok()?)),
            "fsync" => Self::Fsync,
            "fdatasync" => Self::Fdatasync,
            "close" => Self::Close,
            "cached" => Self::Cached,
            "direct" => Self::Direct,
            _ => return None,
        };
        words.next().is_none().then_some(order)
    }
}

/// Why an order was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// What the system call said.
    Error(String),
    /// No answer, or the process is gone.
    Hung,
}

/// The process, as its parent sees it.
#[derive(Debug)]
pub struct Hand {
    child: Child,
    stdin: ChildStdin,
    answers: Receiver<String>,
}

impl Hand {
    #[must_use]
    pub fn start(path: &Path, shape: Shape, log: File) -> Self {
        let numbers = [shape.file as usize, shape.cells, shape.cell_bytes];
        let mut child = Command::new(harness_binary("faults"))
            .arg("hand")
            .arg(path)
            .args(numbers.map(|number| number.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the binary `faults` stands beside dfs: cargo build --release -p dfs-tests");
        let stdin = child.stdin.take().expect("it is a pipe");
        let stdout = child.stdout.take().expect("it is a pipe");
        let (sender, answers) = channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, stdin, answers }
    }

    /// Does it, and waits.
    ///
    /// # Errors
    /// What the system call said, or that there was no answer.
    pub fn order(&mut self, order: Order) -> Result<String, Refusal> {
        writeln!(self.stdin, "{}", order.line()).map_err(|_| Refusal::Hung)?;
        let answer = self.answers.recv_timeout(ANSWERED_WITHIN).map_err(|_| Refusal::Hung)?;
        match answer.split_once(' ') {
            Some(("ok", rest)) => Ok(rest.to_owned()),
            Some((_, said)) => Err(Refusal::Error(said.to_owned())),
            None => Err(Refusal::Error(answer)),
        }
    }

    /// Reads the whole file.
    ///
    /// # Errors
    /// As [`Self::order`].
    pub fn read(&mut self, order: Order) -> Result<Vec<Vec<Part>>, Refusal> {
        let line = self.order(order)?;
        from_line(&line).ok_or(Refusal::Error(line))
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The inverse of what the parent passes.
#[must_use]
pub fn parse(arguments: &[String]) -> Option<(PathBuf, Shape)> {
    let [path, file, cells, cell_bytes] = arguments else {
        return None;
    };
    let shape = Shape {
        file: file.parse().ok()?,
        cells: cells.parse().ok()?,
        cell_bytes: cell_bytes.parse().ok()?,
    };
    Some((PathBuf::from(path), shape))
}

/// The process itself: does what it is told until stdin ends.
pub fn serve(path: &Path, shape: Shape) {
    let mut file = None;
    for line in io::stdin().lines().map_while(Result::ok) {
        let result = match Order::parse(&line) {
            Some(order) => act(order, path, shape, &mut file),
            None => Err(io::Error::other(format!("{line:?} is no order"))),
        };
        let answer = match result {
            Ok(said) => format!("ok {said}"),
            Err(error) => format!("error {error}"),
        };
        let mut stdout = io::stdout().lock();
        if writeln!(stdout, "{answer}").and_then(|()| stdout.flush()).is_err() {
            return;
        }
    }
}

fn act(order: Order, path: &Path, shape: Shape, file: &mut Option<File>) -> io::Result<String> {
    let no_file = || io::Error::other("no file is open");
    match order {
        Order::Open => {
            let mut options = OpenOptions::new();
            *file = Some(options.read(true).write(true).create(true).truncate(false).open(path)?);
        }
        Order::Write(cell, seq) => {
            let file = file.as_ref().ok_or_else(no_file)?;
            file.write_all_at(&shape.record(cell, seq), shape.offset(cell) as u64)?;
        }
        Order::Fsync => file.as_ref().ok_or_else(no_file)?.sync_all()?,
        Order::Fdatasync => file.as_ref().ok_or_else(no_file)?.sync_data()?,
        Order::Close => close(file.take())?,
        Order::Cached => return whole(file.as_ref().ok_or_else(no_file)?, shape),
        Order::Direct => {
            let direct = rustix::fs::OFlags::DIRECT.bits().cast_signed();
            let file = OpenOptions::new().read(true).custom_flags(direct).open(path)?;
            return whole(&file, shape);
        }
    }
    Ok(String::new())
}

/// `close` and what it returned, which dropping a `File` hides.
fn close(file: Option<File>) -> io::Result<()> {
    match file {
        Some(file) => Ok(nix::unistd::close(file)?),
        None => Ok(()),
    }
}

fn whole(file: &File, shape: Shape) -> io::Result<String> {
    let mut bytes = vec![0; shape.file_bytes()];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], filled as u64)? {
            0 => break,
            read => filled += read,
        }
    }
    bytes.truncate(filled);
    Ok(to_line(&shape.decode(&bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_say_the_same_as_lines() {
        for order in [
            Order::Open,
            Order::Write(3, Seq(9)),
            Order::Fsync,
            Order::Fdatasync,
            Order::Close,
            Order::Cached,
            Order::Direct,
        ] {
            assert_eq!(Order::parse(&order.line()), Some(order));
        }
        assert_eq!(Order::parse("write 1"), None);
        assert_eq!(Order::parse("fsync now"), None);
    }
}
