//! `dfs where`: the chunks of a file, the chains they are on, and who serves those.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use dfs_client::admin::ChunkPlace;
use dfs_common::wire::namespace::Attributes;
use dfs_fuse::mounts::{self, FILE_SYSTEM_TYPE, MountEntry};
use serde::Serialize;

use crate::args::{ClusterArgs, WhereArgs};
use crate::config::{self, Loaded};
use crate::failure::{Failure, Outcome};
use crate::output::{self, Table};
use crate::program::block_on;
use crate::status::{ChainView, chain_view};

#[derive(Debug, Serialize)]
struct PlaceView {
    path: String,
    inode: u64,
    length_bytes: u64,
    chunk_size_bytes: Option<u32>,
    chunks: Vec<ChunkView>,
}

#[derive(Debug, Serialize)]
struct ChunkView {
    index: u32,
    chain: ChainView,
}

pub(crate) fn show(arguments: &WhereArgs) -> Outcome {
    let (path, entry) = on_a_mount(&arguments.path)?;
    let within = path.strip_prefix(&entry.mount_point)?.to_path_buf();
    let loaded = cluster_of(&arguments.show.cluster, &entry)?;
    let (attributes, places) = block_on(ask(&loaded, &within))?;
    let view = PlaceView {
        path: path.display().to_string(),
        inode: attributes.inode.get(),
        length_bytes: attributes.length_bytes,
        chunk_size_bytes: attributes.file.as_ref().map(|file| file.layout.chunk_size_bytes),
        chunks: places
            .iter()
            .map(|place| ChunkView {
                index: place.index.get(),
                chain: chain_view(&place.chain),
            })
            .collect(),
    };
    output::print(arguments.show.output, &view, || print(&view))
}

async fn ask(loaded: &Loaded, within: &Path) -> Outcome<(Attributes, Vec<ChunkPlace>)> {
    let client = loaded.connect_admin().await?;
    let attributes = client.resolve(within.as_os_str().as_bytes()).await?;
    let places = client.locate(&attributes).await?;
    client.close().await;
    Ok((attributes, places))
}

/// The path without symlinks above its last component, and the mount that it is on.
pub(crate) fn on_a_mount(path: &Path) -> Outcome<(PathBuf, MountEntry)> {
    let failed = |error: io::Error| Failure::new(format!("{}: {error}", path.display()));
    let absolute = std::path::absolute(path).map_err(failed)?;
    std::fs::symlink_metadata(&absolute).map_err(failed)?;
    let resolved = match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => parent.canonicalize().map_err(failed)?.join(name),
        _ => absolute,
    };
    let entries = mounts::mounted().map_err(failed)?;
    let under = entries
        .into_iter()
        .filter(|entry| resolved.starts_with(&entry.mount_point));
    let deepest = under.max_by_key(|entry| entry.mount_point.as_os_str().len());
    match deepest {
        Some(entry) if entry.file_system == FILE_SYSTEM_TYPE => Ok((resolved, entry)),
        _ => Err(Failure::new(format!("{} is not on a mount of dfs", path.display()))),
    }
}

/// The one named, else the one whose file the mount shows as its source.
pub(crate) fn cluster_of(cluster: &ClusterArgs, entry: &MountEntry) -> Outcome<Loaded> {
    let source = PathBuf::from(&entry.source);
    if cluster.cluster.is_none() && source.exists() {
        return config::read(&source);
    }
    config::find(cluster)
}

fn print(view: &PlaceView) {
    let chunk_size = view.chunk_size_bytes.map_or(String::new(), |size| {
        format!(", chunks of {}", output::bytes(u64::from(size)))
    });
    output::line(&format!(
        "{}: inode {}, {}{chunk_size}",
        view.path,
        view.inode,
        output::bytes(view.length_bytes)
    ));
    if view.chunks.is_empty() {
        output::line("no chunks: it has no data of its own");
        return;
    }
    let mut table = Table::new(&["CHUNK", "CHAIN", "EPOCH", "MEMBERS, HEAD FIRST"]);
    for chunk in &view.chunks {
        let members = chunk.chain.members.iter();
        let members = members.map(|member| format!("{} {}", member.name, output::coloured(&member.state)));
        table.row([
            chunk.index.to_string(),
            chunk.chain.id.to_string(),
            chunk.chain.epoch.to_string(),
            members.collect::<Vec<_>>().join(", "),
        ]);
    }
    table.print();
}
