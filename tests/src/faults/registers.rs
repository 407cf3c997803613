//! Registers in files: one block each, written and read by several threads of several mounts, with every call recorded.
//!
//! A write is pwrite(2) of the whole block and fsync(2); a read opens the file anew with O_DIRECT, so that neither the kernel's
//! page cache nor read-ahead answers (docs/SEMANTICS.md). A block that is not one value in all its words is a violation at once.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use dfs_history::{Action, ClientId, Key, Operation};

use super::draw::Draw;
use super::felt::Felt;

pub const REGISTERS: u32 = 8;
const BLOCK: usize = 4096;

/// Blocks of a register's file; the register is one of them.
const BLOCKS: u64 = 4;

/// How often a final read is tried before it counts as lost.
const FINAL_TRIES: u32 = 40;

#[derive(Debug)]
pub struct Registers {
    pub felt: Arc<Felt>,
    history: Arc<Mutex<Vec<Operation<u64>>>>,
    directories: Vec<PathBuf>,
    threads: Vec<JoinHandle<()>>,
    clients: u32,
}

impl Registers {
    /// Makes the files through the first mount and starts this many threads at each.
    #[must_use]
    pub fn start(mounts: &[PathBuf], tag: &str, threads: u32, seed: u64, began: Instant) -> Self {
        let directories: Vec<PathBuf> = mounts
            .iter()
            .map(|mount| mount.join(format!("registers{tag}")))
            .collect();
        std::fs::create_dir(&directories[0]).expect("a fresh directory");
        for key in 0..REGISTERS {
            let file = File::create(path(&directories[0], Key(key))).expect("a fresh file");
            file.write_all_at(&vec![0; BLOCK * BLOCKS as usize], 0)
                .expect("a fresh file");
            file.sync_all().expect("a fresh file");
        }
        let felt = Arc::new(Felt::new(began));
        let history = Arc::new(Mutex::new(Vec::new()));
        let mut registers = Self {
            felt,
            history,
            directories,
            threads: Vec::new(),
            clients: 0,
        };
        for directory in registers.directories.clone() {
            for _ in 0..threads {
                let client = ClientId(registers.clients);
                registers.clients += 1;
                let (felt, history) = (Arc::clone(&registers.felt), Arc::clone(&registers.history));
                let directory = directory.clone();
                let draw = Draw::new(seed ^ u64::from(client.0 + 1) << 32);
                registers.threads.push(thread::spawn(move || {
                    work(&directory, client, draw, &felt, &history);
                }));
            }
        }
        registers
    }

    /// Stops, reads every register through every mount, and returns all that happened.
    pub fn finish(&mut self) -> Vec<Operation<u64>> {
        self.felt.stop();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        for (number, directory) in self.directories.iter().enumerate() {
            for key in (0..REGISTERS).map(Key) {
                let client = ClientId(self.clients + number as u32);
                let read = (0..FINAL_TRIES).find_map(|_| {
                    let read = recorded_read(directory, client, key, &self.felt);
                    if read.is_none() {
                        thread::sleep(Duration::from_millis(500));
                    }
                    read
                });
                match read {
                    Some(read) => self.history.lock().expect("no panic under it").push(read),
                    None => self.felt.violation(format!(
                        "register {} can not be read through mount {number} in the end",
                        key.0
                    )),
                }
            }
        }
        self.history.lock().expect("no panic under it").clone()
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        self.felt.stop();
    }
}

fn path(directory: &Path, key: Key) -> PathBuf {
    directory.join(format!("r{}", key.0))
}

fn offset(key: Key) -> u64 {
    u64::from(key.0) % BLOCKS * BLOCK as u64
}

fn work(directory: &Path, client: ClientId, mut draw: Draw, felt: &Felt, history: &Mutex<Vec<Operation<u64>>>) {
    let mut number = 0;
    while !felt.is_stopped() {
        let key = Key(draw.below(u64::from(REGISTERS)) as u32);
        let operation = if draw.percent(50) {
            number += 1;
            Some(recorded_write(directory, client, key, number, felt))
        } else {
            recorded_read(directory, client, key, felt)
        };
        let failed = operation.as_ref().is_none_or(|operation| operation.returned.is_none());
        history.lock().expect("no panic under it").extend(operation);
        thread::sleep(Duration::from_millis(if failed { 50 } else { draw.between(1, 8) }));
    }
}

fn recorded_write(directory: &Path, client: ClientId, key: Key, number: u64, felt: &Felt) -> Operation<u64> {
    let value = u64::from(client.0 + 1) << 32 | number;
    let (started, called) = (Instant::now(), felt.now_us());
    let result = OpenOptions::new()
        .write(true)
        .open(path(directory, key))
        .and_then(|file| {
            file.write_all_at(&block(value), offset(key))?;
            file.sync_data()
        });
    felt.note(
        || format!("client {} writes register {}", client.0, key.0),
        started,
        &result,
    );
    Operation {
        client,
        key,
        action: Action::Write(value),
        called,
        // An error says nothing about what happens to the bytes: they may be on their way.
        returned: result.ok().map(|()| felt.now_us()),
    }
}

fn recorded_read(directory: &Path, client: ClientId, key: Key, felt: &Felt) -> Option<Operation<u64>> {
    let (started, called) = (Instant::now(), felt.now_us());
    let mut bytes = vec![0; BLOCK];
    let result = OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::DIRECT.bits().cast_signed())
        .open(path(directory, key))
        .and_then(|file| file.read_exact_at(&mut bytes, offset(key)));
    let returned = felt.now_us();
    felt.note(
        || format!("client {} reads register {}", client.0, key.0),
        started,
        &result,
    );
    result.ok()?;
    let Some(value) = value(&bytes) else {
        felt.violation(format!(
            "register {} holds what nobody wrote: {:02x?}...",
            key.0,
            &bytes[..32]
        ));
        return None;
    };
    Some(Operation {
        client,
        key,
        action: Action::Read(value),
        called,
        returned: Some(returned),
    })
}

/// A block that is this value and nothing else.
fn block(value: u64) -> Vec<u8> {
    let word = |index: u64| if value == 0 { 0 } else { value.wrapping_add(index << 48) };
    (0..BLOCK as u64 / 8)
        .flat_map(|index| word(index).to_le_bytes())
        .collect()
}

/// The value of a whole block; `None` if it is a mixture or foreign.
fn value(bytes: &[u8]) -> Option<u64> {
    let value = u64::from_le_bytes(bytes.first_chunk().copied()?);
    (bytes == block(value)).then_some(value)
}
