//! What `statfs` says: how much files can really take, pure.

use dfs_common::level::REPLICATION_TARGET;
use dfs_common::wire::namespace::StatFs;

/// Total and used bytes of each storage node, to what files see.
///
/// Every node is in as many chains as any other, so all fill alike and the smallest one ends it: neither figure may
/// promise more than the smallest node times their number allows, after replication. (`inodes` is the state's to fill.)
pub(in crate::service) fn stat_fs(nodes: impl IntoIterator<Item = (u64, u64)>) -> StatFs {
    let (mut count, mut total, mut free) = (0_u64, 0_u64, 0_u64);
    let (mut least_total, mut least_free) = (u64::MAX, u64::MAX);
    for (node_total, node_used) in nodes {
        let node_free = node_total.saturating_sub(node_used);
        count += 1;
        total = total.saturating_add(node_total);
        free = free.saturating_add(node_free);
        least_total = least_total.min(node_total);
        least_free = least_free.min(node_free);
    }
    let replicas = REPLICATION_TARGET as u64;
    StatFs {
        total_bytes: total.min(least_total.saturating_mul(count)) / replicas,
        free_bytes: free.min(least_free.saturating_mul(count)) / replicas,
        inodes: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_node_ends_it() {
        let none = stat_fs([]);
        assert_eq!((none.total_bytes, none.free_bytes), (0, 0));
        let even = stat_fs([(300, 30), (300, 30), (300, 30)]);
        assert_eq!((even.total_bytes, even.free_bytes), (300, 270));
        let uneven = stat_fs([(300, 0), (300, 290), (900, 0)]);
        assert_eq!((uneven.total_bytes, uneven.free_bytes), (300, 10));
        let many = stat_fs((0..6).map(|_| (300, 0)));
        assert_eq!(many.total_bytes, 600);
    }
}
