//! A log file of bounded size.
//!
//! What would make `NAME` longer than [`MOST_BYTES`] goes to a new file; the earlier ones are
//! `NAME.1` (the newest) to `NAME.3`. The process does this itself, so that no log of a cluster
//! fills a disk on a machine where nobody has set up logrotate.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::fs::fstat;
use tracing_subscriber::fmt::MakeWriter;

const MOST_BYTES: u64 = 16 << 20;

/// Earlier files that stay.
const KEPT: u32 = 3;

/// For [`tracing_subscriber`]; clones write to the same file.
#[derive(Clone, Debug)]
pub(crate) struct LogFile(Arc<Mutex<Rotating>>);

impl LogFile {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self(Arc::new(Mutex::new(Rotating::open(path, MOST_BYTES)?))))
    }
}

impl Write for LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.lock().write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogFile {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[derive(Debug)]
struct Rotating {
    path: PathBuf,
    file: File,
    size_bytes: u64,
    most_bytes: u64,
}

impl Rotating {
    fn open(path: &Path, most_bytes: u64) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        Ok(Self {
            path: path.to_path_buf(),
            size_bytes: file.metadata()?.len(),
            file,
            most_bytes,
        })
    }

    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.size_bytes > 0 && self.size_bytes + line.len() as u64 > self.most_bytes {
            let rotated = self.rotate();
            // Also if there is no new file: the next attempt comes when as much has been written
            // again.
            self.size_bytes = 0;
            if let Err(error) = rotated {
                writeln!(self.file, "{} can not be put aside: {error}", self.path.display())?;
            }
        }
        let written = self.file.write(line)?;
        self.size_bytes += written as u64;
        Ok(written)
    }

    fn rotate(&mut self) -> io::Result<()> {
        let earlier = |number: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        for number in (1..KEPT).rev() {
            match fs::rename(earlier(number), earlier(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        match fs::rename(&self.path, earlier(1)) {
            // Somebody removed it, or there was no new file the last time.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = File::options().create(true).append(true).open(&self.path)?;
        // A panic is written to stderr, and belongs into the newest file, too.
        if is_same(&io::stderr(), &self.file)? {
            rustix::stdio::dup2_stderr(&file)?;
        }
        self.file = file;
        Ok(())
    }
}

fn is_same(one: &impl AsFd, other: &impl AsFd) -> io::Result<bool> {
    let (one, other) = (fstat(one)?, fstat(other)?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_is_put_aside_and_four_files_stay() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("storage-1.log");
        fs::write(&path, "from the last run\n").unwrap();
        let mut log = Rotating::open(&path, 1_000).unwrap();
        for number in 0..200 {
            log.write_all_of(&format!("line {number} {}\n", "x".repeat(40)));
        }
        let mut names: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        names.sort();
        assert_eq!(names.len(), 4, "{names:?}");
        let texts: Vec<String> = names.iter().map(|name| fs::read_to_string(name).unwrap()).collect();
        assert!(texts.iter().all(|text| text.len() <= 1_000 && text.ends_with('\n')));
        // Newest, then from the newest of the earlier to the oldest.
        let first = |text: &str| text.split(' ').nth(1).unwrap().parse::<u32>().unwrap();
        let firsts: Vec<u32> = texts.iter().map(|text| first(text)).collect();
        assert!(firsts.is_sorted_by(|one, next| one > next), "{firsts:?}");
        assert!(texts[0].contains("line 199 "));
    }

    #[test]
    fn a_log_that_can_not_be_put_aside_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        // Directories with something in them stand where the earlier files belong.
        for number in 2..=3 {
            fs::create_dir_all(directory.path().join(format!("log.{number}/in-the-way"))).unwrap();
        }
        let mut log = Rotating::open(&path, 100).unwrap();
        for number in 0..10 {
            log.write_all_of(&format!("line {number} {}\n", "x".repeat(40)));
        }
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("line 9 ") && text.contains("line 0 "), "{text}");
        assert!(text.contains("can not be put aside"), "{text}");
    }

    #[test]
    fn a_log_that_somebody_removed_begins_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = Rotating::open(&path, 100).unwrap();
        fs::remove_file(&path).unwrap();
        for number in 0..4 {
            log.write_all_of(&format!("line {number} {}\n", "x".repeat(40)));
        }
        assert!(fs::read_to_string(&path).unwrap().contains("line 3 "));
    }

    impl Rotating {
        fn write_all_of(&mut self, line: &str) {
            assert_eq!(self.write(line.as_bytes()).unwrap(), line.len());
        }
    }
}
