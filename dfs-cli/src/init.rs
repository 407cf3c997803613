//! `dfs init`: certificate authority, root key, and for each node a directory that can be carried to its machine.
//!
//! ```text
//! DIR/cluster.toml             what a client needs, with absolute paths
//! DIR/credentials/             a client's certificate and key, the root key; admin/ an administrator's
//! DIR/ca/                      the certificate authority; keep it away from the nodes
//! DIR/nodes/NAME/node.toml     a server's configuration
//! DIR/nodes/NAME/credentials/  its certificate and key; meta.key on metadata servers
//! DIR/nodes/NAME/data/         its data, unless --data says otherwise
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use dfs_common::config::{ClusterConfig, MetaServer, NodeSection};
use dfs_common::{ClusterId, NodeName, Role};
use dfs_crypto::certificate::{CertificateAuthority, Credentials};
use dfs_crypto::key::RootKey;

use crate::args::InitArgs;
use crate::config::{self, ADMIN_CREDENTIALS};
use crate::failure::{Code, Failure, Outcome};
use crate::files::{self, make_directory};
use crate::output;

/// Placeholder for the node's name in `--data`.
const NAME_PLACEHOLDER: &str = "{}";

/// A node to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) id: u64,
    pub(crate) address: SocketAddr,
}

pub(crate) fn run(arguments: &InitArgs) -> Outcome {
    let meta = parse_members(&arguments.meta)?;
    let storage = parse_members(&arguments.storage)?;
    let addresses: BTreeSet<_> = meta.iter().chain(&storage).map(|member| member.address).collect();
    if addresses.len() != meta.len() + storage.len() {
        return Err(Failure::usage("two nodes have the same address; each needs its own"));
    }
    let directory = std::path::absolute(&arguments.directory)?;
    if files::is_empty(&directory).is_ok_and(|empty| !empty) {
        return Err(Failure::new(format!(
            "{} is not empty; dfs init makes a new cluster in a new directory",
            directory.display()
        )));
    }
    create(&directory, &meta, &storage, arguments.data.as_deref())?;
    output::line(&format!("A new cluster is in {}. Next:", directory.display()));
    output::line("  1. copy nodes/NAME to each machine, keep its files readable by the server alone");
    output::line("  2. there: dfs meta --config node.toml, or dfs storage --config node.toml");
    output::line(&format!(
        "  3. dfs health detail --cluster {0}/cluster.toml, then dfs mount --cluster {0}/cluster.toml MOUNTPOINT",
        directory.display()
    ));
    output::line("Keep ca/ and credentials/root.key safe: without the root key no file can be read again.");
    Ok(Code::Ok)
}

/// Writes everything; `cluster.toml` last, so that a directory with it is complete.
pub(crate) fn create(directory: &Path, meta: &[Member], storage: &[Member], data: Option<&str>) -> anyhow::Result<()> {
    let mut id = [0_u8; 16];
    getrandom::fill(&mut id).map_err(|error| anyhow!("no randomness: {error}"))?;
    let cluster = ClusterId(id);
    let authority = CertificateAuthority::generate(cluster).context("certificate authority")?;
    let root = RootKey::generate().context("root key")?;
    save_authority(&authority, directory)?;

    let client = directory.join("credentials");
    let admin = client.join(ADMIN_CREDENTIALS);
    for (name, at) in [
        (NodeName::new(Role::Client, 1), &client),
        (NodeName::new(Role::Admin, 1), &admin),
    ] {
        make_private(at)?;
        authority.issue(name)?.save(at)?;
        root.save(&at.join("root.key"))?;
    }

    let servers: Vec<_> = meta
        .iter()
        .map(|member| MetaServer {
            id: member.id,
            address: member.address,
        })
        .collect();
    let nodes = meta
        .iter()
        .map(|member| (Role::Meta, member))
        .chain(storage.iter().map(|member| (Role::Storage, member)));
    for (role, member) in nodes {
        let name = NodeName::new(role, member.id);
        let home = directory.join("nodes").join(name.to_string());
        let credentials = authority.issue(name)?;
        let root = (role == Role::Meta).then_some(&root);
        write_node(
            &home,
            &credentials,
            root,
            &node_file(cluster, &servers, name, member.address, data),
        )?;
    }
    let file = ClusterConfig {
        cluster: cluster.to_string(),
        credentials: client,
        node: None,
        meta: servers,
    };
    config::write(&directory.join("cluster.toml"), &file)
}

fn node_file(
    cluster: ClusterId,
    servers: &[MetaServer],
    name: NodeName,
    address: SocketAddr,
    data: Option<&str>,
) -> ClusterConfig {
    let data = data.map_or_else(
        || "data".to_owned(),
        |data| data.replace(NAME_PLACEHOLDER, &name.to_string()),
    );
    let node = NodeSection {
        name: name.to_string(),
        listen: address,
        advertise: None,
        data: PathBuf::from(data),
        capacity_bytes: None,
        scrub_mib_per_s: None,
        snapshot_every: None,
    };
    ClusterConfig {
        cluster: cluster.to_string(),
        credentials: "credentials".into(),
        node: Some(node),
        meta: servers.to_vec(),
    }
}

/// One more storage node for the cluster in `directory`: its directory, complete when its `node.toml` is there.
pub(crate) fn add_storage(directory: &Path, member: &Member, data: Option<&str>) -> Outcome<PathBuf> {
    let cluster = config::read(&directory.join("cluster.toml"))?.config;
    let name = NodeName::new(Role::Storage, member.id);
    if u32::try_from(member.id).is_err() {
        return Err(Failure::usage(format!(
            "{name}: the number of a storage node is at most {}",
            u32::MAX
        )));
    }
    let home = directory.join("nodes").join(name.to_string());
    if home.exists() {
        return Err(Failure::new(format!(
            "{} is there already; take another number, since names are not used twice",
            home.display()
        )));
    }
    let taken = cluster.meta.iter().any(|server| server.address == member.address);
    if taken {
        return Err(Failure::usage(format!(
            "a metadata server has the address {}",
            member.address
        )));
    }
    let credentials = authority(directory)?.issue(name).context("certificate")?;
    let file = node_file(cluster.cluster_id()?, &cluster.meta, name, member.address, data);
    write_node(&home, &credentials, None, &file)?;
    Ok(home)
}

/// The directory of a metadata server's successor, complete when its `node.toml` is there.
pub(crate) fn write_meta(
    home: &Path,
    cluster: &ClusterConfig,
    credentials: &Credentials,
    root: &RootKey,
    member: &Member,
    data: Option<&str>,
) -> Outcome<()> {
    let name = NodeName::new(Role::Meta, member.id);
    let file = node_file(cluster.cluster_id()?, &cluster.meta, name, member.address, data);
    Ok(write_node(home, credentials, Some(root), &file)?)
}

/// `node.toml` last. Metadata servers have a key that is made from the root key.
fn write_node(
    home: &Path,
    credentials: &Credentials,
    root: Option<&RootKey>,
    file: &ClusterConfig,
) -> anyhow::Result<()> {
    let directory = home.join("credentials");
    make_private(&directory)?;
    credentials.save(&directory).context("certificate")?;
    if let Some(root) = root {
        root.meta_key().save(&directory.join("meta.key"))?;
    }
    config::write(&home.join("node.toml"), file)
}

/// The cluster's certificate authority, from the directory that `dfs init` made.
pub(crate) fn authority(directory: &Path) -> Outcome<CertificateAuthority> {
    let loaded = CertificateAuthority::load(&directory.join("ca"));
    Ok(loaded.with_context(|| format!("the certificate authority in {}/ca", directory.display()))?)
}

pub(crate) fn save_authority(authority: &CertificateAuthority, directory: &Path) -> anyhow::Result<()> {
    let ca = directory.join("ca");
    make_private(&ca)?;
    authority.save(&ca).context("certificate authority")
}

/// From the credentials of a client.
pub(crate) fn root_key(credentials: &Path) -> Outcome<RootKey> {
    let path = credentials.join("root.key");
    Ok(RootKey::load(&path).with_context(|| format!("the root key {}", path.display()))?)
}

/// A directory for keys: its owner's alone.
pub(crate) fn make_private(path: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    make_directory(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
        .with_context(|| format!("{} can not be made private", path.display()))
}

fn parse_members(texts: &[String]) -> Outcome<Vec<Member>> {
    let members = texts
        .iter()
        .map(|text| parse_member(text))
        .collect::<Outcome<Vec<_>>>()?;
    let ids: BTreeSet<_> = members.iter().map(|member| member.id).collect();
    if ids.len() != members.len() {
        return Err(Failure::usage(format!(
            "a number is given twice in {}; each node of a role needs its own",
            texts.join(" ")
        )));
    }
    Ok(members)
}

pub(crate) fn parse_member(text: &str) -> Outcome<Member> {
    let wrong = |why: &str| Failure::usage(format!("{text:?} is not ID=HOST:PORT, such as 1=10.0.0.1:7100: {why}"));
    let (id, address) = text.split_once('=').ok_or_else(|| wrong("no ="))?;
    let id: u64 = id.parse().map_err(|_| wrong("the id is not a number"))?;
    if id == 0 {
        return Err(wrong("ids start at 1"));
    }
    let mut found = address.to_socket_addrs().map_err(|error| wrong(&error.to_string()))?;
    let address = found.next().ok_or_else(|| wrong("the host has no address"))?;
    if address.port() == 0 {
        return Err(wrong("the port is 0"));
    }
    Ok(Member { id, address })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_checked() {
        let good = parse_member("2=127.0.0.1:7100").unwrap();
        assert_eq!((good.id, good.address.port()), (2, 7100));
        for bad in [
            "",
            "127.0.0.1:1",
            "x=127.0.0.1:1",
            "0=127.0.0.1:1",
            "1=127.0.0.1",
            "1=127.0.0.1:0",
        ] {
            let failure = parse_member(bad).unwrap_err();
            assert_eq!(failure.code, Code::Usage, "{bad:?}");
        }
        let twice = ["1=127.0.0.1:1".to_owned(), "1=127.0.0.1:2".to_owned()];
        assert!(parse_members(&twice).is_err());
    }
}
