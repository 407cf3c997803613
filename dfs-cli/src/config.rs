//! Finding and reading the one TOML file.
//!
//! Paths in it are relative to its own directory, so that a node's directory can be carried to its machine as it is.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use dfs_client::AdminClient;
use dfs_common::config::{ClusterConfig, NodeSection};
use dfs_common::{MetaId, NodeName};
use dfs_crypto::certificate::Credentials;

use crate::args::ClusterArgs;
use crate::dev;
use crate::failure::{Failure, Outcome};

/// How long an admin verb looks for somebody who answers: an election and a half.
const ADMIN_DEADLINE: Duration = Duration::from_secs(5);

const SYSTEM_CONFIG: &str = "/etc/dfs/cluster.toml";

/// Subdirectory of a client's credentials with an administrator's, used by admin verbs if it is there.
pub(crate) const ADMIN_CREDENTIALS: &str = "admin";

/// A configuration with absolute paths, and where it came from.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    pub(crate) path: PathBuf,
    pub(crate) config: ClusterConfig,
}

impl Loaded {
    pub(crate) fn credentials(&self) -> Outcome<Credentials> {
        load_credentials(&self.config.credentials)
    }

    /// A connection as an administrator, if there are credentials of one; else as the client.
    pub(crate) async fn connect_admin(&self) -> Outcome<AdminClient> {
        let admin = self.config.credentials.join(ADMIN_CREDENTIALS);
        let credentials = if admin.join("cert.pem").exists() {
            load_credentials(&admin)?
        } else {
            self.credentials()?
        };
        Ok(AdminClient::connect(self.config.clone(), credentials, ADMIN_DEADLINE).await?)
    }
}

fn load_credentials(directory: &Path) -> Outcome<Credentials> {
    let loaded = Credentials::load(directory);
    Ok(loaded.with_context(|| format!("credentials in {}", directory.display()))?)
}

/// The cluster that the arguments mean.
pub(crate) fn find(arguments: &ClusterArgs) -> Outcome<Loaded> {
    if let Some(path) = &arguments.cluster {
        return read(path);
    }
    let development = dev::known_directories()
        .into_iter()
        .map(|directory| directory.join(dev::CLUSTER_FILE));
    let found = development
        .chain([PathBuf::from(SYSTEM_CONFIG)])
        .find(|path| path.exists());
    match found {
        Some(path) => read(&path),
        None => Err(Failure::usage(format!(
            "no cluster is known here; name its file with --cluster FILE or DFS_CLUSTER, put it at {SYSTEM_CONFIG}, or start one: dfs dev up MOUNTPOINT"
        ))),
    }
}

/// Reads one file and checks all that can be checked without the network.
pub(crate) fn read(path: &Path) -> Outcome<Loaded> {
    let failed = |why: String| Failure::new(format!("{}: {why}", path.display()));
    let absolute = std::path::absolute(path).map_err(|error| failed(error.to_string()))?;
    let text = fs::read_to_string(&absolute).map_err(|error| failed(format!("can not be read: {error}")))?;
    let mut config: ClusterConfig = toml::from_str(&text).map_err(|error| failed(explain(&error, &text)))?;
    config.cluster_id().map_err(|error| failed(error.detail))?;
    if config.meta.is_empty() {
        return Err(failed("names no metadata server ([[meta]] with id and address)".into()));
    }
    let directory = absolute.parent().unwrap_or(Path::new("/"));
    config.credentials = directory.join(&config.credentials);
    if let Some(node) = &mut config.node {
        node.data = directory.join(&node.data);
    }
    Ok(Loaded { path: absolute, config })
}

/// What a file says of its node, paths as they stand in it; `None` if there is no such file, or
/// nothing sound in it.
pub(crate) fn node_as_written(path: &Path) -> Option<NodeSection> {
    let config: ClusterConfig = toml::from_str(&fs::read_to_string(path).ok()?).ok()?;
    config.node
}

/// The node that a server's file describes.
pub(crate) fn node_of(loaded: &Loaded) -> Outcome<&NodeSection> {
    loaded.config.node.as_ref().ok_or_else(|| {
        Failure::new(format!(
            "{}: has no [node]; a server needs its own node.toml, as dfs init writes it",
            loaded.path.display()
        ))
    })
}

/// One line with the line number in the file; toml's own message has several.
fn explain(error: &toml::de::Error, text: &str) -> String {
    let line = error
        .span()
        .map(|span| text.get(..span.start).unwrap_or(text).matches('\n').count() + 1);
    let place = line.map_or(String::new(), |line| format!("line {line}: "));
    format!("{place}{}", error.message().replace('\n', " "))
}

/// The text of a file for `config`.
pub(crate) fn write(path: &Path, config: &ClusterConfig) -> anyhow::Result<()> {
    crate::files::replace(path, &toml::to_string(config)?)
}

/// Changes a metadata server's address in a file, and in that server's own file where it listens,
/// and leaves the rest as people wrote it. Whether there was something to change.
pub(crate) fn move_server(path: &Path, server: MetaId, address: SocketAddr) -> anyhow::Result<bool> {
    let text = fs::read_to_string(path).with_context(|| format!("{} can not be read", path.display()))?;
    let mut file: toml_edit::DocumentMut = text.parse().with_context(|| path.display().to_string())?;
    let address = address.to_string();
    let mut changed = false;
    let mut set = |table: &mut toml_edit::Table, key: &str| {
        if let Some(value) = table.get_mut(key).and_then(toml_edit::Item::as_value_mut)
            && value.as_str() != Some(address.as_str())
        {
            let decor = value.decor().clone();
            *value = toml_edit::Value::from(address.as_str());
            *value.decor_mut() = decor;
            changed = true;
        }
    };
    let servers = file.get_mut("meta").and_then(toml_edit::Item::as_array_of_tables_mut);
    for table in servers.into_iter().flat_map(toml_edit::ArrayOfTables::iter_mut) {
        let id = table.get("id").and_then(toml_edit::Item::as_integer);
        if id.and_then(|id| u64::try_from(id).ok()) == Some(server.get()) {
            set(table, "address");
        }
    }
    if let Some(node) = file.get_mut("node").and_then(toml_edit::Item::as_table_mut) {
        let name = node.get("name").and_then(toml_edit::Item::as_str);
        if name == Some(NodeName::from(server).to_string().as_str()) {
            set(node, "listen");
        }
    }
    if changed {
        crate::files::replace(path, &file.to_string())?;
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dfs_common::config::MetaServer;

    #[test]
    fn a_moved_server_is_changed_and_nothing_else() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("node.toml");
        let text = "# ours\n[node]\nname = \"meta-2\" # rack 4\nlisten = \"10.0.0.2:7\"  # here\n\n[[meta]]\nid = 1\naddress = \"10.0.0.1:7\"\n\n\
                    [[meta]]\nid = 2\naddress = \"10.0.0.2:7\"\n";
        fs::write(&path, text).unwrap();
        let to: SocketAddr = "10.0.0.9:8".parse().unwrap();
        assert!(move_server(&path, MetaId(2), to).unwrap());
        assert_eq!(
            fs::read_to_string(&path).unwrap(),
            text.replace("10.0.0.2:7", "10.0.0.9:8")
        );
        assert!(!move_server(&path, MetaId(2), to).unwrap());
        assert!(move_server(&path, MetaId(1), "10.0.0.7:7".parse().unwrap()).unwrap());
        let now = fs::read_to_string(&path).unwrap();
        assert!(
            now.contains("listen = \"10.0.0.9:8\"") && now.contains("\"10.0.0.7:7\""),
            "{now}"
        );
    }

    #[test]
    fn paths_are_relative_to_the_file_and_wrong_keys_are_named() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("node.toml");
        let config = ClusterConfig {
            cluster: "ab".repeat(16),
            credentials: "credentials".into(),
            node: Some(NodeSection {
                name: "storage-1".into(),
                listen: "127.0.0.1:7200".parse().unwrap(),
                advertise: None,
                data: "data".into(),
                capacity_bytes: None,
                scrub_mib_per_s: None,
                snapshot_every: None,
            }),
            meta: vec![MetaServer {
                id: 1,
                address: "127.0.0.1:7100".parse().unwrap(),
            }],
        };
        write(&path, &config).unwrap();
        let loaded = read(&path).unwrap();
        assert_eq!(loaded.config.credentials, scratch.path().join("credentials"));
        assert_eq!(node_of(&loaded).unwrap().data, scratch.path().join("data"));
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.lines().any(|line| line == "name = \"storage-1\""), "{text}");
        assert!(text.lines().any(|line| line.starts_with("credentials = ")), "{text}");

        fs::write(&path, format!("{text}\ncolour = 1\n")).unwrap();
        let line = read(&path).unwrap_err().line();
        assert!(line.contains("colour") && line.contains("node.toml"), "{line}");
        assert!(read(&scratch.path().join("none")).unwrap_err().line().contains("none"));
    }
}
