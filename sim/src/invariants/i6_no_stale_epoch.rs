//! I6: no request of a stale epoch is served. Whoever answers a client with success is a serving member by the group's latest
//! decision (its lease outlives no removal), and answers in the epoch that it was asked in.

use dfs_common::{Level, MemberState};

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
            // A third member that is there when the first two go has kept its lease. Until it hears that it has to wait it goes on reading at
            // ONE what it has, as a replica that is behind may.
            let waits = table
                .chain(chain)
                .is_some_and(|chain| chain.state_of(self.nodes[at].id) == Some(MemberState::Waiting));
            let excused = waits && matches!(request, Request::Read { level: Level::One, .. });
            if !excused && !Self::is_serving(&table, chain, self.nodes[at].id) {
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
