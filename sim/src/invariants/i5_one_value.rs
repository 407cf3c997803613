//! I5: one value for each (chunk, version), one head and one configuration for each epoch, one state for each position of the
//! metadata group's log.

use bytes::Bytes;
use dfs_common::wire::storage::Mutation;
use dfs_common::{ChainInfo, ChunkId, ChunkVersion, MemberState, RequestId, RoutingTable};

use crate::world::World;

impl World {
    /// A node is about to carry out this mutation.
    pub(crate) fn watch_apply(
        &mut self,
        at: usize,
        chunk: ChunkId,
        version: ChunkVersion,
        id: RequestId,
        mutation: &Mutation,
        payload: &Bytes,
    ) {
        let (kind, first, blocks) = match mutation {
            Mutation::Write { first, blocks, .. } => (1, first.0, *blocks),
            Mutation::Truncate { blocks } => (2, *blocks, 0),
            Mutation::Remove => (3, 0, 0),
        };
        let value = payload
            .get(..8)
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(0, u64::from_le_bytes);
        let mut hash = 0x51_7c_c1_b7_u64;
        for word in [
            kind,
            u64::from(first),
            u64::from(blocks),
            value,
            id.session.0,
            id.sequence.0,
        ] {
            hash = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31);
        }
        let before = *self.watch.versions.entry((chunk, version)).or_insert(hash);
        if before != hash {
            self.fail(
                "I5",
                format!(
                    "storage-{} applies another mutation as version {version} of {chunk} than was applied before",
                    at + 1
                ),
            );
        }
    }

    pub(crate) fn watch_config(&mut self, at: usize, config: &ChainInfo) {
        let known = self
            .watch
            .configs
            .entry((config.id, config.epoch))
            .or_insert_with(|| config.clone())
            .clone();
        // Only whether it is settled, and rests, changes within an epoch.
        let known = ChainInfo {
            settled: config.settled,
            rest: config.rest,
            ..known
        };
        if known != *config {
            self.fail(
                "I5",
                format!(
                    "storage-{} got another configuration of epoch {} than others: {config:?}, {known:?}",
                    at + 1,
                    config.epoch
                ),
            );
        }
    }

    /// The group decided on a new table.
    pub(crate) fn watch_table(&mut self, before: &RoutingTable, table: &RoutingTable) {
        for chain in table.chains.values() {
            if let Some(old) = before.chain(chain.id) {
                if old.members == chain.members && old.epoch == chain.epoch {
                    // A new process of a serving member without a new epoch would go on with what it forgot.
                    let replaced = chain.serving().find(|node| {
                        let incarnation = |table: &RoutingTable| table.nodes.get(node).map(|info| info.incarnation);
                        incarnation(before) != incarnation(table)
                    });
                    if let Some(node) = replaced {
                        self.fail(
                            "I5",
                            format!(
                                "storage-{node} restarted and serves chain {} in the same epoch {}",
                                chain.id, chain.epoch
                            ),
                        );
                    }
                } else if old.epoch >= chain.epoch {
                    self.fail(
                        "I5",
                        format!(
                            "two configurations of chain {} in epoch {}: {old:?}, {chain:?}",
                            chain.id, chain.epoch
                        ),
                    );
                }
                if old.head() != chain.head() {
                    self.watch.head_left.insert(chain.id);
                }
                if chain.revived > old.revived {
                    self.watch.revived.insert(chain.id);
                }
            }
            if let Some(head) = chain.head() {
                let known = *self.watch.heads.entry((chain.id, chain.epoch)).or_insert(head);
                if known != head {
                    self.fail(
                        "I5",
                        format!(
                            "chain {} has two heads in epoch {}: {known}, {head}",
                            chain.id, chain.epoch
                        ),
                    );
                }
            }
            for at in 0..self.nodes.len() {
                let Some(&lost_in) = self.nodes[at].lossy.get(&chain.id) else {
                    continue;
                };
                let id = self.nodes[at].id;
                match chain.state_of(id) {
                    Some(MemberState::Serving) => {
                        let newer = table
                            .nodes
                            .get(&id)
                            .is_some_and(|info| info.incarnation > Self::incarnation_of(at, lost_in));
                        if newer {
                            // It is the last server, and what it had not synced is gone.
                            self.watch.amnesty.insert(chain.id);
                        }
                    }
                    Some(MemberState::Syncing) => {
                        self.nodes[at].lossy.remove(&chain.id);
                    }
                    _ => {}
                }
            }
        }
    }

    /// Every server of the group has the same rows.
    pub(crate) fn judge_group(&mut self) {
        let all = self.group.settle();
        if let Some(other) = all.iter().position(|rows| *rows != all[0]) {
            self.fail(
                "I5",
                format!("metadata servers 1 and {} differ after the same log", other + 1),
            );
        }
    }
}
