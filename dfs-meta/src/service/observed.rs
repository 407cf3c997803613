//! The state as consensus sees it: bytes in, bytes out. And an eye on it: whatever is applied, those who wait for a routing
//! table hear of it at once.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use dfs_common::{MetaId, RoutingTable, codec};
use tokio::sync::watch;

use super::clock::Clock;
use super::replaced::Replaced;
use crate::command::Command;
use crate::consensus::{MachineError, RowSink, RowSource, StateMachine};
use crate::state::State;
use crate::store::Store;

#[derive(Debug)]
pub(super) struct Observed<S: Store> {
    state: Arc<State<S>>,
    clock: Arc<Clock>,
    members: BTreeMap<MetaId, SocketAddr>,
    replaced: Replaced,
    routing: watch::Sender<Arc<RoutingTable>>,
}

impl<S: Store> Observed<S> {
    pub(super) fn new(
        state: Arc<State<S>>,
        clock: Arc<Clock>,
        members: BTreeMap<MetaId, SocketAddr>,
        replaced: Replaced,
    ) -> Self {
        let observed = Self {
            state,
            clock,
            members,
            replaced,
            routing: watch::Sender::new(Arc::default()),
        };
        observed.publish(true);
        observed
    }

    pub(super) fn routing(&self) -> watch::Receiver<Arc<RoutingTable>> {
        self.routing.subscribe()
    }

    fn publish(&self, always: bool) {
        let table = self.state.routing();
        if !always && self.routing.borrow().version == table.version {
            return;
        }
        let mut table = table.as_ref().clone();
        self.replaced.learn(&table.moved);
        let mut moved = table.moved.clone();
        moved.retain(|id, _| self.members.contains_key(id));
        table.meta.clone_from(&self.members);
        table
            .meta
            .extend(moved.into_iter().map(|(id, place)| (id, place.address)));
        self.routing.send_replace(Arc::new(table));
    }
}

impl<S: Store> StateMachine for Observed<S> {
    fn apply(&self, commands: &[&[u8]], position: &[u8]) -> Result<Vec<Vec<u8>>, MachineError> {
        // Bytes that are no command were made by another version of this program: to skip what another server applies
        // would split the state, so that is the end.
        let commands = commands
            .iter()
            .map(|bytes| codec::decode::<Command>(bytes))
            .collect::<Result<Vec<_>, _>>()?;
        let outcomes = self.state.apply(&commands, position)?;
        if let Some(command) = commands.last() {
            self.clock.saw(command.time);
        }
        self.publish(false);
        let outcomes = outcomes.iter().map(codec::encode).collect::<Result<Vec<_>, _>>()?;
        Ok(outcomes)
    }

    fn position(&self) -> Result<Option<Vec<u8>>, MachineError> {
        Ok(self.state.position()?)
    }

    fn export(&self, sink: &mut RowSink<'_>) -> Result<Vec<u8>, MachineError> {
        let position = self.state.export::<MachineError>(&mut |key, value| sink(key, value))?;
        Ok(position.unwrap_or_default())
    }

    fn import(&self, rows: &mut RowSource<'_>, position: &[u8]) -> Result<(), MachineError> {
        self.state.import::<MachineError>(rows, position)?;
        self.publish(true);
        Ok(())
    }
}
