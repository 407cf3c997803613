//! A program that makes one of two versions. It gets both as whole files in a directory that nobody else may look into, and that goes
//! however it ends.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::Context;
use dfs_client::Client;
use dfs_client::conflicts::{Version, Versions};
use dfs_common::ConflictId;
use dfs_common::conflict::ConflictEntry;
use tokio::fs::File;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::resolve::{interrupted, plain};
use crate::failure::{Failure, Outcome};

/// Merges one conflict. Whatever goes wrong, it stays open.
pub(super) async fn run(
    client: &Client,
    entry: &ConflictEntry,
    command: &str,
    by: &str,
    stop: &CancellationToken,
) -> Outcome<()> {
    let id = entry.conflict.id;
    let versions = client.versions(entry).await.map_err(plain)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix("dfs-conflict-");
    // What is in it is somebody's plaintext, perhaps of a file that others may not read.
    builder.permissions(Permissions::from_mode(0o700));
    let directory = builder.tempdir().context("a temporary directory can not be made")?;
    let outcome = async {
        let work = merge(client, &versions, command, directory.path());
        let mut result = tokio::select! {
            () = stop.cancelled() => Err(interrupted(id)),
            merged = work => merged,
        }?;
        let settled = client.resolve_merged(&versions, &mut result, by).await;
        settled.map_err(plain)
    }
    .await;
    let closed = directory.close().context("the temporary directory can not be removed");
    outcome?;
    Ok(closed?)
}

/// Lets the program work; the result, to be read.
async fn merge(client: &Client, versions: &Versions, command: &str, directory: &Path) -> Outcome<File> {
    let [current, other, result] = ["current", "other", "result"].map(|name| directory.join(name));
    for (which, path) in [(Version::Current, &current), (Version::Other, &other)] {
        let named = || format!("copy of a version at {}", path.display());
        let mut copy = File::create_new(path).await.with_context(named)?;
        client.copy_version(versions, which, &mut copy).await.map_err(plain)?;
    }
    let id = versions.id();
    let files = [current, other, result];
    let started = program(command, id, versions.path(), &files).status();
    let status = started.await.context("sh can not be started")?;
    let [_, _, result] = files;
    let has_result = result.is_file();
    if let Some(why) = refusal(id, status, has_result) {
        return Err(Failure::new(why));
    }
    Ok(File::open(&result)
        .await
        .context("the program's result can not be read")?)
}

/// The program as the shell runs it: with the three files as its arguments, and in its environment.
fn program(command: &str, id: ConflictId, path: &[u8], files: &[PathBuf; 3]) -> Command {
    let [current, other, result] = files;
    let mut program = Command::new("sh");
    program
        .arg("-c")
        .arg(format!("{command} \"$@\""))
        .arg("sh")
        .args(files)
        .env("DFS_PATH", OsStr::from_bytes(path))
        .env("DFS_CONFLICT", id.to_string())
        .env("DFS_CURRENT", current)
        .env("DFS_OTHER", other)
        .env("DFS_RESULT", result)
        .kill_on_drop(true);
    program
}

/// Why what the program did does not count.
fn refusal(id: ConflictId, status: ExitStatus, has_result: bool) -> Option<String> {
    if !status.success() {
        return Some(format!("conflict {id}: the program ended with {status}; it stays open"));
    }
    (!has_result).then(|| {
        format!(
            "conflict {id}: the program ended well but wrote no result (its third argument, $DFS_RESULT); it stays open"
        )
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn only_success_with_a_result_counts() {
        let status = |code: i32| ExitStatus::from_raw(code << 8);
        assert_eq!(refusal(ConflictId(3), status(0), true), None);
        let silent = refusal(ConflictId(3), status(0), false).unwrap();
        assert!(silent.contains("wrote no result"), "{silent}");
        let failed = refusal(ConflictId(3), status(7), true).unwrap();
        assert!(failed.contains("exit status: 7"), "{failed}");
        let killed = refusal(ConflictId(3), ExitStatus::from_raw(9), true).unwrap();
        assert!(killed.contains("signal: 9"), "{killed}");
    }

    #[tokio::test]
    async fn a_program_has_the_files_as_arguments_and_in_its_environment() {
        let scratch = tempfile::tempdir().unwrap();
        let files = ["it's current", "other", "result"].map(|name| scratch.path().join(name));
        std::fs::write(&files[0], "a ").unwrap();
        std::fs::write(&files[1], "b").unwrap();
        let commands = [
            "merge() { cat \"$1\" \"$2\" > \"$3\"; }; merge",
            "cat \"$DFS_CURRENT\" \"$DFS_OTHER\" > \"$DFS_RESULT\"; test $DFS_CONFLICT,$DFS_PATH = 3,/x && true",
        ];
        for command in commands {
            let status = program(command, ConflictId(3), b"/x", &files).status().await.unwrap();
            assert!(status.success(), "{command}");
            assert_eq!(std::fs::read_to_string(&files[2]).unwrap(), "a b");
            std::fs::remove_file(&files[2]).unwrap();
        }
    }
}
