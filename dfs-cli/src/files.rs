//! Small files: written whole or not at all.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};

/// Replaces `path`: temporary file, fsync, rename, fsync of the directory.
pub(crate) fn replace(path: &Path, content: &str) -> anyhow::Result<()> {
    let parent = path
        .parent()
        .ok_or_else(|| anyhow!("{} has no directory", path.display()))?;
    let temporary = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(parent)?.sync_all()
    };
    write().with_context(|| format!("{} can not be written", path.display()))
}

pub(crate) fn make_directory(path: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(path).with_context(|| format!("{} can not be made", path.display()))
}

/// A directory of the user's by the XDG rules: `$VARIABLE/dfs/dev`, else `~/FALLBACK/dfs/dev`.
pub(crate) fn user_path(variable: &str, fallback: &str) -> PathBuf {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let base = absolute(variable).or_else(|| absolute("HOME").map(|home| home.join(fallback)));
    base.unwrap_or_else(|| PathBuf::from("/var/lib"))
        .join("dfs")
        .join("dev")
}

/// Whether a directory holds nothing but what a fresh file system has.
pub(crate) fn is_empty(directory: &Path) -> std::io::Result<bool> {
    for entry in fs::read_dir(directory)? {
        if entry?.file_name() != "lost+found" {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_is_whole() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("a.toml");
        replace(&path, "one").unwrap();
        replace(&path, "two").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 1);
        assert!(replace(&scratch.path().join("no/where"), "x").is_err());
        assert!(!is_empty(scratch.path()).unwrap());
        fs::remove_file(&path).unwrap();
        fs::create_dir(scratch.path().join("lost+found")).unwrap();
        assert!(is_empty(scratch.path()).unwrap());
    }
}
