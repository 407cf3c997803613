//! The quick judge for reads and writes of values that are written once.
//!
//! Then each read names its write, and an order of all operations is one of *clusters* (a write and the reads of its
//! value), since nothing may come between them. Cluster A comes before B if some operation of A ended before some operation
//! of B was called. An order exists if no two clusters come before each other (longer circles contain such a pair), and no
//! read ended before its write was called. So only the earliest end and the latest call of each cluster matter.
//!
//! Source: Gibbons and Korach, *Testing Shared Memories* (1997).

use std::collections::BTreeMap;

use crate::Value;
use crate::linearizable::Search;
use crate::operation::{Action, Operation};

/// Times are counted from 1 here: the first value was written at 0.
struct Cluster {
    written: Option<u64>,
    first_end: u64,
    last_call: u64,
}

/// `None` if there is a CAS, or a value that was written twice: that is for the search.
pub(crate) fn judge<V: Value>(operations: &[Operation<V>], initial: &V) -> Option<Search> {
    let mut clusters: BTreeMap<&V, Cluster> = BTreeMap::new();
    let beginning = Cluster {
        written: Some(0),
        first_end: 0,
        last_call: 0,
    };
    clusters.insert(initial, beginning);
    for operation in operations {
        let (Action::Read(value) | Action::Write(value)) = &operation.action else {
            return None;
        };
        let called = operation.called.saturating_add(1);
        let returned = operation.returned.map_or(u64::MAX, |at| at.saturating_add(1));
        let cluster = clusters.entry(value).or_insert(Cluster {
            written: None,
            first_end: u64::MAX,
            last_call: 0,
        });
        if matches!(operation.action, Action::Write(_)) && cluster.written.replace(called).is_some() {
            return None;
        }
        cluster.first_end = cluster.first_end.min(returned);
        cluster.last_call = cluster.last_call.max(called);
    }
    let from_nowhere = |cluster: &Cluster| cluster.written.is_none_or(|called| called > cluster.first_end);
    if clusters.values().any(from_nowhere) {
        return Some(Search::None);
    }
    let mut clusters: Vec<Cluster> = clusters.into_values().collect();
    clusters.sort_by_key(|cluster| cluster.first_end);
    // Of those that ended before j was last called (all of them end before j does), the latest call decides.
    let mut latest_call = vec![0];
    for (at, cluster) in clusters.iter().enumerate() {
        let before = clusters
            .partition_point(|other| other.first_end < cluster.last_call)
            .min(at);
        if latest_call[before] > cluster.first_end {
            return Some(Search::None);
        }
        latest_call.push(latest_call[at].max(cluster.last_call));
    }
    Some(Search::Order)
}
