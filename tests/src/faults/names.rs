//! Names under load: create, rename, unlink and stat in a directory that only this thread changes, against a model.
//!
//! What was acknowledged must be so, now and in the end, through every mount. Names whose operation failed with anything but a
//! contradiction are of unknown fate and never used again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::draw::Draw;
use super::felt::Felt;

/// Present at a time; bounded, so that final checks stay short.
const MOST_NAMES: usize = 60;

/// How often a final look is tried before what it says counts.
const FINAL_TRIES: u32 = 40;

#[derive(Debug, Default)]
struct Model {
    /// Name and the number that its file holds.
    present: BTreeMap<String, u64>,
    absent: BTreeSet<String>,
}

#[derive(Debug)]
pub struct Names {
    pub felt: Arc<Felt>,
    name: String,
    mounts: Vec<PathBuf>,
    thread: Option<JoinHandle<Model>>,
}

impl Names {
    /// Works through mount number `by`, in a directory of its own.
    #[must_use]
    pub fn start(mounts: &[PathBuf], tag: &str, by: usize, seed: u64, began: Instant) -> Self {
        let felt = Arc::new(Felt::new(began));
        let name = format!("names{tag}-{by}");
        let directory = mounts[by].join(&name);
        fs::create_dir(&directory).expect("a fresh directory");
        let thread = {
            let felt = Arc::clone(&felt);
            let draw = Draw::new(seed ^ (by as u64 + 77) << 20);
            thread::spawn(move || work(&directory, draw, &felt))
        };
        Self {
            felt,
            name,
            mounts: mounts.to_vec(),
            thread: Some(thread),
        }
    }

    /// Stops, and compares what every mount sees with the model.
    pub fn finish(&mut self) {
        self.felt.stop();
        let Some(Ok(model)) = self.thread.take().map(JoinHandle::join) else {
            return self.felt.violation("the thread of names died".to_owned());
        };
        for mount in &self.mounts {
            let directory = mount.join(&self.name);
            for (name, number) in &model.present {
                let wanted = Some(number.to_string());
                let found = finally(|| content(&directory.join(name)));
                if !matches!(&found, Ok(found) if *found == wanted) {
                    self.felt.violation(format!(
                        "{}/{name} should hold {number}: {found:?}",
                        directory.display()
                    ));
                }
            }
            for name in &model.absent {
                let found = finally(|| content(&directory.join(name)));
                if !matches!(found, Ok(None)) {
                    self.felt
                        .violation(format!("{}/{name} should not be there: {found:?}", directory.display()));
                }
            }
        }
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.felt.stop();
    }
}

/// `None`: there is no such file.
fn content(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn finally<T>(mut look: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut tries = 0;
    loop {
        tries += 1;
        match look() {
            Err(_) if tries < FINAL_TRIES => thread::sleep(Duration::from_millis(500)),
            result => return result,
        }
    }
}

fn work(directory: &Path, mut draw: Draw, felt: &Felt) -> Model {
    let mut model = Model::default();
    let mut number = 0;
    while !felt.is_stopped() {
        number += 1;
        let fresh = format!("n{number}");
        let some = || {
            model
                .present
                .keys()
                .nth(number as usize % model.present.len().max(1))
                .cloned()
        };
        let one = some();
        let kind = draw.below(10);
        let started = Instant::now();
        let result = match (kind, one) {
            (0..=3, _) | (_, None) if model.present.len() < MOST_NAMES => {
                let result = create(&directory.join(&fresh), number);
                judge(felt, "create", &fresh, &result, |kind| kind == ErrorKind::AlreadyExists);
                if result.is_ok() {
                    model.present.insert(fresh.clone(), number);
                }
                ("create", fresh, result)
            }
            (4..=6, Some(from)) => {
                let result = fs::rename(directory.join(&from), directory.join(&fresh));
                judge(felt, "rename", &from, &result, |kind| kind == ErrorKind::NotFound);
                let held = model.present.remove(&from);
                if let (Ok(()), Some(held)) = (&result, held) {
                    model.present.insert(fresh, held);
                    model.absent.insert(from.clone());
                }
                ("rename", from, result)
            }
            (7, Some(name)) => {
                let result = content(&directory.join(&name)).map(|found| {
                    let wanted = model.present.get(&name).map(u64::to_string);
                    if found != wanted {
                        felt.violation(format!("{name} should hold {wanted:?}: {found:?}"));
                    }
                });
                ("read", name, result)
            }
            (_, Some(name)) => {
                let result = fs::remove_file(directory.join(&name));
                judge(felt, "unlink", &name, &result, |kind| kind == ErrorKind::NotFound);
                model.present.remove(&name);
                if result.is_ok() {
                    model.absent.insert(name.clone());
                }
                ("unlink", name, result)
            }
            (_, None) => continue,
        };
        let (what, name, result) = result;
        felt.note(|| format!("{what} {name}"), started, &result);
        thread::sleep(Duration::from_millis(if result.is_ok() {
            draw.between(1, 6)
        } else {
            50
        }));
    }
    model
}

fn create(path: &Path, number: u64) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(number.to_string().as_bytes())?;
    file.sync_all()
}

/// An answer that can not be, whatever failed.
fn judge(felt: &Felt, what: &str, name: &str, result: &io::Result<()>, contradicts: impl Fn(ErrorKind) -> bool) {
    if let Err(error) = result
        && contradicts(error.kind())
    {
        felt.violation(format!("{what} {name}: {error}, which can not be"));
    }
}
