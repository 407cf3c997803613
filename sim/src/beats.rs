//! A storage node and the metadata group: heartbeats one way, routing tables the other. Mirrors `dfs_storage::service` (membership, node).

use std::sync::Arc;

use dfs_common::wire::meta::{HEARTBEAT_MS, Heartbeat};
use dfs_common::{Epoch, Rest, RoutingTable};
use dfs_storage::replica::{Input, ReplicaCore};

use crate::event::Event;
use crate::network::GROUP;
use crate::node::Member;
use crate::world::World;

/// Of tombstones: a simulated cluster does not live for long.
const FORGET_EVERY_MS: u64 = 300;

impl World {
    pub(crate) fn beat(&mut self, at: usize) {
        let now = self.now;
        if let Some(reason) = self.nodes[at]
            .store
            .as_ref()
            .and_then(dfs_storage::store::ChunkStore::fault)
        {
            self.set_fault(at, &reason);
        }
        let node = &self.nodes[at];
        let Some(store) = &node.store else { return };
        let usage = store.usage();
        let sent_ms = node.clock_ms(now);
        let incarnation = node.incarnation;
        let heartbeat = Heartbeat {
            configured: std::collections::BTreeMap::new(),
            sessions: 0,
            node: node.id,
            incarnation: Self::incarnation_of(at, incarnation),
            store: store.id(),
            address: ([127, 0, 0, 1], 7_000 + at as u16).into(),
            routing: node.table.version,
            total_bytes: usage.total_bytes,
            used_bytes: usage.used_bytes,
            fault: node.fault.clone(),
            resyncs: Vec::new(),
            settled: node
                .table
                .chains
                .values()
                .filter(|config| !config.settled)
                .filter(|config| {
                    let member = node.chains.get(&config.id);
                    member.is_some_and(|member| member.settled == config.epoch)
                })
                .map(|config| (config.id, config.epoch))
                .collect(),
            rests: node
                .table
                .chains
                .values()
                .filter_map(|config| {
                    let (epoch, rest) = node.chains.get(&config.id)?.rest;
                    (epoch == config.epoch && rest > config.rest).then_some((config.id, epoch, rest))
                })
                .collect(),
            retired: Vec::new(),
            signs: dfs_common::wire::meta::Signs::default(),
        };
        if !self.lost(at, GROUP) {
            let delay = self.delay_ms();
            self.after(
                delay,
                Event::BeatHeard {
                    node: at,
                    incarnation,
                    heartbeat: Box::new(heartbeat),
                    sent_ms,
                },
            );
        }
        // Its own clock says when the next one is due.
        let rate = self.nodes[at].clock.2;
        self.after(HEARTBEAT_MS * 1_000 / rate, Event::Beat { node: at, incarnation });
    }

    /// As `Node::learn`.
    pub(crate) fn learn(&mut self, at: usize, table: &Arc<RoutingTable>) {
        let node = &mut self.nodes[at];
        if table.version <= node.table.version {
            return;
        }
        let me = Self::incarnation_of(at, node.incarnation);
        let known = table.nodes.get(&node.id).is_some_and(|info| info.incarnation == me);
        node.table = Arc::clone(table);
        if !known {
            return;
        }
        for (&id, config) in &table.chains {
            let node = &mut self.nodes[at];
            if !node.chains.contains_key(&id) && config.state_of(node.id).is_none() {
                continue;
            }
            let this = node.id;
            let member = node.chains.entry(id).or_insert_with(|| Member {
                core: ReplicaCore::new(id, this).forgetting_every(FORGET_EVERY_MS),
                settled: Epoch(0),
                rest: (Epoch(0), Rest::default()),
                next_waiter: 1,
                waiting: std::collections::BTreeMap::new(),
            });
            if member.core.epoch() < config.epoch {
                self.watch_config(at, config);
                self.feed(at, id, Input::Configure(config.clone()));
            } else if member.core.epoch() == config.epoch && (config.settled || config.rest > Rest::default()) {
                self.feed(at, id, Input::Configure(config.clone()));
            }
        }
    }
}
