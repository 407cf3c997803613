//! What detection of failures is tried with: single cables, and who keeps the end of a file.

use std::path::Path;

use serde_json::Value;

use crate::host_cluster::HostCluster;
use crate::hosts::address;

impl HostCluster {
    /// Number of a server's host.
    #[must_use]
    pub fn host(&self, name: &str) -> usize {
        self.servers[self.index(name)].host
    }

    /// The host hears nothing any more; what it says arrives.
    pub fn deafen(&self, host: usize) {
        self.hosts.set_rules(host, &["drop".to_owned()], &[]);
    }

    /// What the host says arrives nowhere; it hears.
    pub fn mute(&self, host: usize) {
        self.hosts.set_rules(host, &[], &["drop".to_owned()]);
    }

    /// Two hosts do not hear each other; all others do.
    pub fn part(&self, one: usize, other: usize) {
        for (host, silent) in [(one, other), (other, one)] {
            let rule = format!("ip saddr {} drop", address(silent));
            self.hosts.set_rules(host, &[rule], &[]);
        }
    }

    fn json(&self, arguments: &[&str]) -> Option<Value> {
        serde_json::from_str(&self.admin(arguments).stdout).ok()
    }

    /// Such as `meta-2`.
    #[must_use]
    pub fn leader(&self) -> String {
        let status = self.json(&["status", "-o", "json"]);
        let leader = |status: Value| status["meta"]["leader"].as_str().map(str::to_owned);
        status.and_then(leader).expect("a cluster with a leader")
    }

    /// The members of the chain that keeps the end of a file, head first.
    #[must_use]
    pub fn chain_of(&self, file: &Path) -> Vec<String> {
        let placed = self.json(&["where", file.to_str().expect("test paths are UTF-8"), "-o", "json"]);
        let placed = placed.expect("where prints JSON");
        let last = placed["chunks"].as_array().and_then(|chunks| chunks.last());
        let members = last.and_then(|chunk| chunk["chain"]["members"].as_array());
        let name = |member: &Value| member["name"].as_str().expect("a name").to_owned();
        members.expect("a chunk with a chain").iter().map(name).collect()
    }
}
