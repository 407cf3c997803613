//! Who is in a chain, in which state and order: pure functions from (old configuration, events) to the new one.
//!
//! Invariants, tested over every chain of three members and every event:
//! - a member serves only because it was in sync: it finished a resync, or it is one of the last servers;
//! - at most one member syncs at a time, and only while another one serves;
//! - when the last serving member goes, it stays recorded as a last server, and nobody else may bring the chain back, nor may the
//!   same node with another disk;
//! - a member leaves only while three others serve;
//! - the epoch rises with every change, so no two configurations share one.
//!
//! All that happens in one batch is judged together: who goes down together was in sync together.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod apply;
mod duty;
mod members;
mod moves;
mod next;
mod plan;
mod reports;
mod servers;
mod table;
mod way_out;

pub use apply::{apply, refused};
pub use duty::administer;
pub use moves::{Move, plan_moves, plan_rotation};
pub use next::{ChainEvent, next_chain};
pub use plan::plan_chains;
pub use reports::complete_reports;
pub use servers::{check_place, move_meta};
pub use table::table_markdown;
pub use way_out::{Heir, WayOut, way_out};

/// Every head has brought its second member up to date.
#[cfg(test)]
pub(crate) fn settle_all(routing: &mut dfs_common::RoutingTable) -> bool {
    let unsettled = routing.chains.values().filter(|chain| !chain.settled);
    let events: Vec<_> = unsettled
        .map(|chain| crate::command::ClusterEvent::Settled {
            chain: chain.id,
            epoch: chain.epoch,
        })
        .collect();
    apply(routing, &events)
}

#[cfg(test)]
mod moving_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod way_out_tests;
