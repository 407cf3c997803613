//! I6: no request of a stale epoch is served. Whoever answers a client with success is a serving member by the group's latest
//! decision (its lease outlives no removal), and answers in the epoch that it was asked in.
//!
//! But one: a member that is well, and no complete one is left. It may answer reads at ONE until it hears of that, as long as the chain stands still:
//! nothing was acknowledged that it could lack.

use dfs_common::{ChainId, Epoch, Level, MemberState, RoutingTable, StorageId};

use crate::messages::Request;
use crate::world::World;

impl World {
    /// A node answers with success.
    pub(crate) fn watch_answer(&mut self, at: usize, request: &Request) {
        self.watch.answers += 1;
        self.watch_word(at);
        let (chain, epoch) = request.target();
        let own = self.nodes[at].chains.get(&chain).map(|member| member.core.epoch());
        let mine = own.is_some_and(|own| own == epoch || matches!(request, Request::Mutate(..)) && own > epoch);
        if !mine {
            self.fail(
                "I6",
                format!(
                    "storage-{} in epoch {own:?} answers a request of epoch {epoch}: {request:?}",
                    at + 1
                ),
            );
        }
        if request.is_clients() {
            let table = self.group.decided();
            let id = self.nodes[at].id;
            let at_one = matches!(request, Request::Read { level: Level::One, .. });
            if !(Self::is_serving(&table, chain, id) || at_one && stands_still(&table, chain, id, epoch)) {
                self.fail(
                    "I6",
                    format!(
                        "storage-{} is no serving member of chain {chain} any more and answers {request:?}",
                        at + 1
                    ),
                );
            }
        }
    }
}

/// Whether the chain stopped after `epoch`, in which this member served, and was not brought back since.
fn stands_still(table: &RoutingTable, chain: ChainId, member: StorageId, epoch: Epoch) -> bool {
    table.chain(chain).is_some_and(|chain| {
        chain.head().is_none() && chain.revived <= epoch && chain.state_of(member) == Some(MemberState::Waiting)
    })
}
