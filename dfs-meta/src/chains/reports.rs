//! What heads say of who is complete in their chains.

use dfs_common::RoutingTable;
use dfs_common::wire::meta::Heartbeat;

use crate::command::ClusterEvent;

/// What a heartbeat says of chains that the table does not show yet, as far as the sender is their head, in the process that the
/// table knows.
#[must_use]
pub fn complete_reports(routing: &RoutingTable, heartbeat: &Heartbeat) -> Vec<ClusterEvent> {
    let known = routing
        .nodes
        .get(&heartbeat.node)
        .is_some_and(|info| info.incarnation == heartbeat.incarnation);
    if !known {
        return Vec::new();
    }
    let heads = |chain, epoch| {
        let info = routing.chain(chain)?;
        (info.epoch == epoch && info.head() == Some(heartbeat.node)).then_some(info)
    };
    let settled = heartbeat.settled.iter().filter_map(|&(chain, epoch)| {
        let news = heads(chain, epoch).is_some_and(|info| !info.settled);
        news.then_some(ClusterEvent::Settled { chain, epoch })
    });
    let rests = heartbeat.rests.iter().filter_map(|&(chain, epoch, rest)| {
        let news = heads(chain, epoch).is_some_and(|info| info.rest < rest);
        news.then_some(ClusterEvent::Rest { chain, epoch, rest })
    });
    settled.chain(rests).collect()
}
