//! Trees of files to copy, and their fingerprints to compare with the same on a local file system.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// Everything that a user can see of a tree: names, kinds, modes, owners, sizes, times, link counts, link targets and
/// contents (as sizes of equal bytes: contents are compared by the caller with `cmp`, or hashed here by FNV-1a).
#[must_use]
pub fn fingerprint(root: &Path) -> String {
    let mut out = String::new();
    visit(root, root, &mut out);
    out
}

fn visit(root: &Path, at: &Path, out: &mut String) {
    let meta = fs::symlink_metadata(at).unwrap_or_else(|e| panic!("{}: {e}", at.display()));
    let kind = meta.file_type();
    let name = at.strip_prefix(root).unwrap_or(at).as_os_str();
    let _ = write!(
        out,
        "{} mode={:o} uid={} gid={}",
        name.display(),
        meta.mode(),
        meta.uid(),
        meta.gid()
    );
    if kind.is_dir() {
        let _ = writeln!(out, " mtime={}.{:09}", meta.mtime(), meta.mtime_nsec());
        let mut names: Vec<_> = fs::read_dir(at)
            .expect("a directory")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        names.sort();
        for path in names {
            visit(root, &path, out);
        }
    } else if kind.is_symlink() {
        let _ = writeln!(out, " -> {}", fs::read_link(at).expect("a link").display());
    } else if kind.is_file() {
        let content = fs::read(at).unwrap_or_else(|e| panic!("{}: {e}", at.display()));
        let hash = content.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let _ = writeln!(
            out,
            " links={} size={} mtime={}.{:09} fnv={hash:016x}",
            meta.nlink(),
            meta.len(),
            meta.mtime(),
            meta.mtime_nsec()
        );
    } else {
        let _ = writeln!(
            out,
            " fifo={} socket={} rdev={:x}",
            kind.is_fifo(),
            kind.is_socket(),
            meta.rdev()
        );
    }
}

/// First line in which two fingerprints differ, or `None`.
#[must_use]
pub fn difference(left: &str, right: &str) -> Option<String> {
    let mut pairs = left.lines().zip(right.lines());
    if let Some((a, b)) = pairs.find(|(a, b)| a != b) {
        return Some(format!("- {a}\n+ {b}"));
    }
    (left.lines().count() != right.lines().count())
        .then(|| format!("{} lines against {}", left.lines().count(), right.lines().count()))
}
