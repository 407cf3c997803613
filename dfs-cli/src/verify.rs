//! `dfs verify`: every block of files, on every replica, opened with the files' keys.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use dfs_client::AdminClient;
use dfs_client::verify::FileReport;
use dfs_crypto::key::RootKey;
use serde::Serialize;

use crate::args::VerifyArgs;
use crate::config::Loaded;
use crate::failure::{Code, Failure, Outcome};
use crate::output;
use crate::place::{cluster_of, on_a_mount};
use crate::program::block_on;
use crate::status::storage_name;

/// Lines about one replica of one file in a table; JSON has all.
const SHOWN: usize = 10;

#[derive(Debug, Serialize)]
struct FileView {
    path: String,
    sound: bool,
    replicas: Vec<ReplicaView>,
    /// Chunks that were not looked at everywhere.
    missing: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ReplicaView {
    name: String,
    chunks: u64,
    blocks: u64,
    bad: Vec<String>,
}

pub(crate) fn run(arguments: &VerifyArgs) -> Outcome {
    let (path, entry) = on_a_mount(&arguments.path)?;
    let loaded = cluster_of(&arguments.show.cluster, &entry)?;
    let files = files_below(&path)?;
    let views = block_on(verify(&loaded, &entry.mount_point, &files))?;
    output::print(arguments.show.output, &views, || print(&views))?;
    if views.iter().any(|view| !view.sound) {
        return Ok(Code::Failed);
    }
    Ok(if views.iter().any(|view| !view.missing.is_empty()) {
        Code::Degraded
    } else {
        Code::Ok
    })
}

/// The file, or every regular file of the directory.
fn files_below(path: &Path) -> Outcome<Vec<PathBuf>> {
    let mut left = vec![path.to_path_buf()];
    let mut files = Vec::new();
    while let Some(at) = left.pop() {
        let io = |error: std::io::Error| Failure::new(format!("{}: {error}", at.display()));
        let kind = std::fs::symlink_metadata(&at).map_err(io)?.file_type();
        if kind.is_file() {
            files.push(at);
        } else if kind.is_dir() {
            for entry in std::fs::read_dir(&at).map_err(io)? {
                left.push(entry.map_err(io)?.path());
            }
        } else if at == path {
            return Err(Failure::new(format!(
                "{} is neither a regular file nor a directory: it has no blocks",
                at.display()
            )));
        }
    }
    files.sort();
    Ok(files)
}

async fn verify(loaded: &Loaded, mount_point: &Path, files: &[PathBuf]) -> Outcome<Vec<FileView>> {
    let key = loaded.config.credentials.join("root.key");
    let root = RootKey::load(&key).with_context(|| format!("root key {}", key.display()))?;
    let client = loaded.connect_admin().await?;
    let mut views = Vec::new();
    for path in files {
        views.push(one(&client, &root, mount_point, path).await?);
    }
    client.close().await;
    Ok(views)
}

async fn one(client: &AdminClient, root: &RootKey, mount_point: &Path, path: &Path) -> Outcome<FileView> {
    let within = path.strip_prefix(mount_point)?;
    let attributes = client.resolve(within.as_os_str().as_bytes()).await?;
    let report = client.verify_file(&attributes, root).await?;
    Ok(view(path, report))
}

fn view(path: &Path, report: FileReport) -> FileView {
    FileView {
        path: path.display().to_string(),
        sound: report.is_sound(),
        replicas: report
            .replicas
            .into_iter()
            .map(|(node, replica)| ReplicaView {
                name: storage_name(node),
                chunks: replica.chunks,
                blocks: replica.blocks,
                bad: replica.bad,
            })
            .collect(),
        missing: report.missing,
    }
}

fn print(views: &[FileView]) {
    for view in views {
        let replicas = view.replicas.iter();
        let opened: Vec<String> = replicas
            .map(|replica| format!("{} {} blocks", replica.name, replica.blocks))
            .collect();
        let verdict = match (view.sound, view.missing.is_empty()) {
            (false, _) => "damaged",
            (true, false) => "sound where it was looked at",
            (true, true) => "sound",
        };
        let opened = if opened.is_empty() {
            "no data".to_owned()
        } else {
            opened.join(", ")
        };
        output::line(&format!("{}: {verdict}: {opened}", view.path));
        for replica in &view.replicas {
            for line in replica.bad.iter().take(SHOWN) {
                output::line(&format!("  {}: {line}", replica.name));
            }
            if replica.bad.len() > SHOWN {
                output::line(&format!("  {}: and {} more", replica.name, replica.bad.len() - SHOWN));
            }
        }
        for line in view.missing.iter().take(SHOWN) {
            output::line(&format!("  {line}"));
        }
    }
    if views.is_empty() {
        output::line("no regular file there");
    }
}
