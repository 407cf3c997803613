//! What comes to pass at a moment of virtual time.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use dfs_common::{ChainId, Error, RoutingTable, StorageId};
use dfs_storage::replica::Effect;

use crate::messages::{Reply, Request};

#[derive(Debug)]
pub(crate) enum Event {
    /// A request reaches a node.
    Deliver {
        to: usize,
        from: usize,
        call: u64,
        request: Rc<Request>,
        tries: u32,
    },
    /// An answer, or a deadline, reaches who asked.
    Answer {
        call: u64,
        result: Box<Result<Reply, Error>>,
    },
    Carry {
        node: usize,
        incarnation: u64,
        chain: ChainId,
        effect: Box<Effect>,
    },
    CopyOn {
        node: usize,
        incarnation: u64,
        copy: u64,
    },
    ReadNow {
        node: usize,
        incarnation: u64,
        chain: ChainId,
        call: u64,
        request: Rc<Request>,
    },
    Beat {
        node: usize,
        incarnation: u64,
    },
    BeatHeard {
        node: usize,
        incarnation: u64,
        heartbeat: Box<dfs_common::wire::meta::Heartbeat>,
        sent_ms: u64,
    },
    BeatAnswered {
        node: usize,
        incarnation: u64,
        lease: bool,
        full: BTreeSet<StorageId>,
        table: Option<Arc<RoutingTable>>,
        sent_ms: u64,
    },
    Table {
        node: usize,
        incarnation: u64,
        table: Arc<RoutingTable>,
    },
    Resynced {
        node: usize,
        incarnation: u64,
        chain: ChainId,
        to: StorageId,
        epoch: dfs_common::Epoch,
    },
    Died {
        node: usize,
        incarnation: u64,
    },
    Ticks,
    Upkeep,
    GroupTick,
    Commit {
        term: u64,
        proposal: u64,
    },
    Apply {
        server: usize,
        generation: u64,
    },
    Elected {
        term: u64,
    },
    MetaUp {
        server: usize,
    },
    Restart {
        node: usize,
        incarnation: u64,
    },
    Client {
        client: usize,
    },
    ClientDeadline {
        client: usize,
        attempt: u64,
    },
    Resend {
        client: usize,
        attempt: u64,
    },
    Namer {
        namer: usize,
        attempt: u64,
    },
    NameAnswer {
        namer: usize,
        attempt: u64,
        outcome: Box<dfs_meta::command::Outcome>,
    },
    Step(usize),
    Undo(Undo),
}

/// The end of a fault.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Undo {
    Disk(usize),
    Scarce(usize),
    /// A fault goes on.
    Strike(crate::schedule::Fault),
    Stale {
        node: usize,
        apart_ms: u64,
    },
    /// A node whose store gave up is looked after.
    Replace {
        node: usize,
        incarnation: u64,
        down_ms: u64,
    },
}
