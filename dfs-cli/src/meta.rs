//! `dfs meta move` and `dfs meta replace`: a metadata server gets another address, or another
//! machine takes its place.

use std::fs;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use anyhow::Context;
use dfs_common::wire::meta::ClusterStatus;
use dfs_common::{CertificateIssue, MetaId, MetaPlace, NodeName, Role};

use crate::args::{ClusterArgs, MetaVerb};
use crate::config;
use crate::failure::{Code, Failure, Outcome};
use crate::init;
use crate::output;
use crate::program::block_on;
use crate::status::meta_name;

pub(crate) fn run(verb: &MetaVerb) -> Outcome {
    match verb {
        MetaVerb::Move { name, address, cluster } => block_on(move_to(server(name)?, resolve(address)?, cluster)),
        MetaVerb::Replace {
            directory,
            name,
            address,
            data,
        } => block_on(replace(directory, server(name)?, resolve(address)?, data.as_deref())),
    }
}

fn server(name: &str) -> Outcome<MetaId> {
    match name.parse() {
        Ok(NodeName {
            role: Role::Meta,
            number,
        }) => Ok(MetaId(number)),
        _ => Err(Failure::usage(format!(
            "{name:?} is no metadata server; one is called meta-2, say (dfs status)"
        ))),
    }
}

fn resolve(address: &str) -> Outcome<SocketAddr> {
    let wrong = |why: &str| Failure::usage(format!("{address:?} is not HOST:PORT, such as 10.0.0.1:7100: {why}"));
    let mut found = address.to_socket_addrs().map_err(|error| wrong(&error.to_string()))?;
    found.next().ok_or_else(|| wrong("the host has no address"))
}

/// Which certificates are accepted of the server now.
fn issue_of(status: &ClusterStatus, server: MetaId) -> CertificateIssue {
    let moved = status.routing.moved.get(&server);
    moved.map_or_else(CertificateIssue::default, |place| place.issue)
}

async fn move_to(server: MetaId, address: SocketAddr, cluster: &ClusterArgs) -> Outcome {
    let loaded = config::find(cluster)?;
    let client = loaded.connect_admin().await?;
    let issue = issue_of(&client.status().await?, server);
    client.move_meta(server, MetaPlace { address, issue }).await?;
    client.close().await;
    let name = meta_name(server);
    output::line(&format!(
        "{name} is at {address} now: the others look for it there, and all that runs hears of it. Next:"
    ));
    let directory = loaded.path.parent().unwrap_or(Path::new("/"));
    tell_files(&change_files(&loaded.path, directory, server, address)?);
    output::line(&format!(
        "  start {name} at that address: `listen` in its own node.toml, and its data directory as it was"
    ));
    output::line("  who was started with the old address runs on, and is named by: dfs health detail");
    Ok(Code::Ok)
}

async fn replace(directory: &Path, server: MetaId, address: SocketAddr, data: Option<&str>) -> Outcome {
    let directory = std::path::absolute(directory)?;
    let name = NodeName::from(server);
    let file = directory.join("cluster.toml");
    let loaded = config::read(&file)?;
    // Before anything is changed.
    let authority = init::authority(&directory)?;
    let root = init::root_key(&loaded.config.credentials)?;
    let client = loaded.connect_admin().await?;
    let issue = issue_of(&client.status().await?, server).next();
    client.move_meta(server, MetaPlace { address, issue }).await?;
    client.close().await;
    let home = directory.join("nodes").join(name.to_string());
    // Where people had its data, for the new machine as well.
    let before = config::node_as_written(&home.join("node.toml"));
    if home.exists() {
        let replaced = directory.join("replaced");
        init::make_private(&replaced)?;
        let aside = replaced.join(format!("{name}-{issue}"));
        fs::rename(&home, &aside).with_context(|| format!("{} can not be put aside", home.display()))?;
    }
    let changed = change_files(&file, &directory, server, address)?;
    let credentials = authority.issue_again(name, issue).context("certificate")?;
    let member = init::Member {
        id: server.get(),
        address,
    };
    let cluster = config::read(&file)?.config;
    let data = data.map(str::to_owned);
    let data = data.or_else(|| Some(before?.data.to_str()?.to_owned()));
    init::write_meta(&home, &cluster, &credentials, &root, &member, data.as_deref())?;
    output::line(&format!(
        "The machine that was {name} is refused from now on, should it come back. Its successor's directory is {}. Next:",
        home.display()
    ));
    output::line("  1. copy it to its machine, keep its files readable by the server alone");
    output::line("  2. there: dfs meta --config node.toml (its data directory empty: the others fill it)");
    tell_files(&changed);
    output::line("Until it is filled the group stands on the other two: dfs health detail");
    Ok(Code::Ok)
}

/// The configurations beside `file` that name the server, with its new address in them.
fn change_files(file: &Path, directory: &Path, server: MetaId, address: SocketAddr) -> Outcome<Vec<PathBuf>> {
    let mut files = vec![file.to_path_buf()];
    if let Ok(nodes) = fs::read_dir(directory.join("nodes")) {
        let mut nodes: Vec<_> = nodes.flatten().map(|node| node.path().join("node.toml")).collect();
        nodes.sort();
        files.extend(nodes.into_iter().filter(|path| path.exists()));
    }
    let mut changed = Vec::new();
    for path in files {
        if config::move_server(&path, server, address)? {
            changed.push(path);
        }
    }
    Ok(changed)
}

fn tell_files(changed: &[PathBuf]) {
    let files: Vec<_> = changed.iter().map(|path| path.display().to_string()).collect();
    if files.is_empty() {
        output::line("  change its address under [[meta]] in every cluster.toml and node.toml");
    } else {
        output::line(&format!(
            "  the address is changed in {}; change it in their copies on other machines too",
            files.join(", ")
        ));
    }
}
