//! The state machine with an eye on it: whatever consensus applies, those who wait for a routing table hear of it at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use dfs_common::{MetaId, RoutingTable, Timestamp};
use tokio::sync::watch;

use super::clock::Clock;
use super::shared::Applied;
use crate::consensus::{MachineError, RowSink, RowSource, StateMachine};

pub(super) struct Observed {
    machine: Arc<dyn StateMachine>,
    state: Arc<dyn Applied>,
    clock: Arc<Clock>,
    members: BTreeMap<MetaId, SocketAddr>,
    routing: watch::Sender<Arc<RoutingTable>>,
}

impl Observed {
    pub(super) fn new(
        machine: Arc<dyn StateMachine>,
        state: Arc<dyn Applied>,
        clock: Arc<Clock>,
        members: BTreeMap<MetaId, SocketAddr>,
    ) -> Self {
        let observed = Self {
            machine,
            state,
            clock,
            members,
            routing: watch::Sender::new(Arc::default()),
        };
        observed.publish();
        observed
    }

    pub(super) fn routing(&self) -> watch::Receiver<Arc<RoutingTable>> {
        self.routing.subscribe()
    }

    fn publish(&self) {
        let table = self.state.routing();
        if self.routing.borrow().version == table.version && !self.routing.borrow().meta.is_empty() {
            return;
        }
        let mut table = table.as_ref().clone();
        table.meta.clone_from(&self.members);
        self.routing.send_replace(Arc::new(table));
    }
}

impl StateMachine for Observed {
    fn apply(&self, commands: &[&[u8]], position: &[u8]) -> Result<Vec<Vec<u8>>, MachineError> {
        let outcomes = self.machine.apply(commands, position)?;
        if let Some(time) = commands.last().and_then(|command| time_of(command)) {
            self.clock.saw(time);
        }
        self.publish();
        Ok(outcomes)
    }

    fn position(&self) -> Result<Option<Vec<u8>>, MachineError> {
        self.machine.position()
    }

    fn export(&self, sink: &mut RowSink<'_>) -> Result<Vec<u8>, MachineError> {
        self.machine.export(sink)
    }

    fn import(&self, rows: &mut RowSource<'_>, position: &[u8]) -> Result<(), MachineError> {
        self.machine.import(rows, position)?;
        self.publish();
        Ok(())
    }
}

/// The first field of an encoded command, without decoding the rest a second time.
fn time_of(command: &[u8]) -> Option<Timestamp> {
    let nanos = command.first_chunk::<8>()?;
    Some(Timestamp::from_nanos(i64::from_le_bytes(*nanos)))
}

#[cfg(test)]
mod tests {
    use dfs_common::codec;

    use super::*;
    use crate::command::{Command, CommandKind};

    #[test]
    fn a_command_begins_with_its_time() {
        for nanos in [0, -5, i64::MAX] {
            let time = Timestamp::from_nanos(nanos);
            let kind = CommandKind::OpenSession { label: "x".into() };
            let bytes = codec::encode(&Command { time, kind }).unwrap();
            assert_eq!(time_of(&bytes), Some(time));
        }
        assert_eq!(time_of(&[1, 2]), None);
    }
}
