//! `dfs status` and `dfs health`: what the metadata leader knows, judged.

use std::fmt;

use dfs_client::AdminClient;
use dfs_common::level::REPLICATION_TARGET;
use dfs_common::wire::meta::{ClusterStatus, DiskRoom, ResyncProgress};
use dfs_common::{ChainId, ChainInfo, Duty, ErrorCode, Level, MetaId, NodeName, StorageId};
use dfs_meta::chains::{WayOut, way_out};
use serde::Serialize;

use crate::args::{ClusterArgs, HealthArgs, ShowArgs};
use crate::failure::{Code, Outcome};
use crate::output::{self, Table};
use crate::{config, program};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Health {
    /// Everybody is there and in sync.
    Ok,
    /// All data can be read and written; something is missing.
    Degraded,
    /// Something can not be read or written.
    Failed,
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Failed => "failed",
        })
    }
}

/// One reason why health is not `ok`; or, with the severity `ok`, something that is to be done in
/// time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) severity: Health,
    pub(crate) what: String,
}

/// What `-o json` prints. Names are an interface.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct StatusView {
    pub(crate) health: Health,
    pub(crate) cluster: String,
    pub(crate) meta: MetaView,
    pub(crate) storage: Vec<StorageView>,
    pub(crate) chains: Vec<ChainView>,
    pub(crate) resyncs: Vec<ResyncView>,
    pub(crate) sessions: u64,
    pub(crate) inodes: u64,
    pub(crate) orphans: u64,
    pub(crate) findings: Vec<Finding>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct MetaView {
    pub(crate) leader: Option<String>,
    pub(crate) term: u64,
    pub(crate) log_index: u64,
    pub(crate) members: Vec<MetaMemberView>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct MetaMemberView {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) state: &'static str,
    pub(crate) log_index: Option<u64>,
    /// Of its disk, whatever lies there.
    pub(crate) used_bytes: Option<u64>,
    pub(crate) total_bytes: Option<u64>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct StorageView {
    pub(crate) name: String,
    pub(crate) address: String,
    pub(crate) state: &'static str,
    pub(crate) used_bytes: u64,
    pub(crate) total_bytes: u64,
    /// What an administrator wants of it: `active`, `draining`, `maintenance`.
    pub(crate) duty: &'static str,
    pub(crate) fault: Option<String>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct ChainView {
    pub(crate) id: u32,
    pub(crate) epoch: u64,
    pub(crate) members: Vec<ChainMemberView>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct ChainMemberView {
    pub(crate) name: String,
    pub(crate) state: String,
    /// Has all that was acknowledged at QUORUM, so that it may carry the chain on alone.
    pub(crate) complete: bool,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct ResyncView {
    pub(crate) chain: u32,
    pub(crate) to: String,
    pub(crate) chunks_done: u64,
    pub(crate) chunks_total: u64,
    pub(crate) bytes_done: u64,
    pub(crate) bytes_total: u64,
}

impl ResyncView {
    /// Of bytes where there are any, else of chunks.
    pub(crate) fn percent(&self) -> u64 {
        let of = |done: u64, total: u64| (u128::from(done.min(total)) * 100 / u128::from(total.max(1))) as u64;
        match (self.bytes_total, self.chunks_total) {
            (0, 0) => 100,
            (0, chunks) => of(self.chunks_done, chunks),
            (bytes, _) => of(self.bytes_done, bytes),
        }
    }
}

pub(crate) fn storage_name(id: StorageId) -> String {
    NodeName::from(id).to_string()
}

pub(crate) const fn duty(duty: Duty) -> &'static str {
    match duty {
        Duty::Active => "active",
        Duty::Draining => "draining",
        Duty::Maintenance => "maintenance",
    }
}

/// `chain 4`, `chains 1, 2, 5`.
pub(crate) fn chain_list(chains: &[ChainId]) -> String {
    let numbers: Vec<_> = chains.iter().map(ToString::to_string).collect();
    let s = if chains.len() == 1 { "" } else { "s" };
    format!("chain{s} {}", numbers.join(", "))
}

pub(crate) fn meta_name(id: MetaId) -> String {
    NodeName::from(id).to_string()
}

/// For last servers that are there, but have condemned their stores.
fn trust_hint(status: &ClusterStatus, out: &WayOut) -> String {
    let faulty = |node: &&StorageId| status.storage.get(node).is_some_and(|node| node.fault.is_some());
    let verbs: Vec<_> = out
        .last_servers
        .iter()
        .filter(faulty)
        .map(|&node| format!("dfs node trust {} --i-know", storage_name(node)))
        .collect();
    if verbs.is_empty() {
        return String::new();
    }
    format!("; or at once, if that disk is well: {}", verbs.join(" or "))
}

/// `40 s behind`, `3 days ahead of`.
fn distance(ahead_ms: i64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    let seconds = ahead_ms.unsigned_abs() / 1_000;
    let (unit_seconds, unit) = match seconds {
        0..600 => (1, "s"),
        600..36_000 => (MINUTE, "min"),
        36_000..172_800 => (HOUR, "h"),
        _ => (DAY, "days"),
    };
    let side = if ahead_ms < 0 { "behind" } else { "ahead of" };
    format!("{} {unit} {side}", seconds / unit_seconds)
}

/// What keeps a cluster from being well, worst first.
pub(crate) fn findings(status: &ClusterStatus) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut find = |severity, what: String| found.push(Finding { severity, what });
    if status.leader.is_none() {
        find(Health::Failed, "the metadata servers have no leader".into());
    }
    for (&id, member) in &status.meta {
        if !member.alive {
            find(
                Health::Degraded,
                format!("{} ({}) does not answer", meta_name(id), member.address),
            );
        }
        if let Some(room) = member.room.filter(DiskRoom::is_low) {
            let consequence = if room.is_short() {
                "while it leads, nothing new is made; make room, or remove files"
            } else {
                "make room before it is full"
            };
            find(
                Health::Degraded,
                format!(
                    "{}: its disk is nearly full ({} of {} free): {consequence}",
                    meta_name(id),
                    output::bytes(room.free_bytes),
                    output::bytes(room.total_bytes)
                ),
            );
        }
    }
    for (&id, node) in &status.storage {
        if !node.replaced.is_empty() {
            find(
                Health::Failed,
                format!(
                    "{name} came with another disk than the one that has the only complete copy of {}; it is not taken in, \
                     so that nothing is lost: bring that disk back and restart {name}; if it is gone for good: dfs node accept-data-loss {name}",
                    chain_list(&node.replaced),
                    name = storage_name(id),
                ),
            );
        } else if let Some(fault) = &node.fault {
            find(Health::Degraded, format!("{} has a fault: {fault}", storage_name(id)));
        } else if let Some(reason) = &node.aside {
            find(Health::Degraded, format!("{} stands aside: {reason}", storage_name(id)));
        } else if !node.alive {
            let what = match status.routing.nodes.get(&id).map(|info| info.duty) {
                Some(Duty::Maintenance) => "is away for maintenance",
                _ => "does not answer",
            };
            find(
                Health::Degraded,
                format!("{} ({}) {what}", storage_name(id), node.address),
            );
        }
    }
    for (&id, node) in &status.storage {
        let name = storage_name(id);
        if let Some(short) = node.short.filter(|_| node.fault.is_none()) {
            find(Health::Degraded, format!("{name} has run out of {short}"));
        }
        if node.damage.lost > 0 {
            let lost = node.damage.lost;
            find(
                Health::Failed,
                format!("{name}: {lost} chunks are damaged and nobody has a sound copy: dfs scrub errors"),
            );
        } else if node.damage.open > 0 {
            let open = node.damage.open;
            find(
                Health::Degraded,
                format!("{name}: {open} chunks or stores are damaged and being mended: dfs scrub errors"),
            );
        }
    }
    for clock in &status.clocks {
        find(
            Health::Degraded,
            format!(
                "{}: its clock is {} the cluster's: set it, best by a time service; files get the cluster's time",
                clock.whose,
                distance(clock.ahead_ms)
            ),
        );
    }
    for old in &status.old_addresses {
        find(
            Health::Ok,
            format!(
                "{}: its configuration names an address that {} has left; it runs on, and is to be changed before its next start",
                old.whose,
                meta_name(old.server)
            ),
        );
    }
    if status.routing.resyncs_paused {
        find(
            Health::Degraded,
            "resyncs are paused: what is out of sync stays so until: dfs resync resume".into(),
        );
    }
    if status.routing.default_table.is_none() {
        find(
            Health::Failed,
            "no chains yet: too few storage nodes have joined".into(),
        );
    }
    for chain in status.routing.chains.values() {
        let serving = chain.serving().count();
        if serving < Level::Quorum.min_in_sync() {
            let consequence = match way_out(chain) {
                Some(out) => format!(
                    "it can be neither read nor written; it comes back when {out}{}",
                    trust_hint(status, &out)
                ),
                None => "writes wait".to_owned(),
            };
            find(
                Health::Failed,
                format!("chain {}: {serving} replicas in sync, {consequence}", chain.id),
            );
        } else if serving < REPLICATION_TARGET.min(chain.members.len()) {
            find(
                Health::Degraded,
                format!(
                    "chain {}: {serving} of {} replicas in sync",
                    chain.id,
                    REPLICATION_TARGET.min(chain.members.len())
                ),
            );
        }
    }
    found.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    found
}

pub(crate) fn chain_view(chain: &ChainInfo) -> ChainView {
    ChainView {
        id: chain.id.get(),
        epoch: chain.epoch.get(),
        members: chain
            .members
            .iter()
            .map(|member| ChainMemberView {
                name: storage_name(member.node),
                state: member.state.to_string(),
                complete: chain.complete().any(|node| node == member.node),
            })
            .collect(),
    }
}

pub(crate) fn resync_view(resync: &ResyncProgress) -> ResyncView {
    ResyncView {
        chain: resync.chain.get(),
        to: storage_name(resync.to),
        chunks_done: resync.chunks_done,
        chunks_total: resync.chunks_total,
        bytes_done: resync.bytes_done,
        bytes_total: resync.bytes_total,
    }
}

pub(crate) fn view(status: &ClusterStatus) -> StatusView {
    let findings = findings(status);
    StatusView {
        health: findings.first().map_or(Health::Ok, |worst| worst.severity),
        cluster: status.cluster.to_string(),
        meta: MetaView {
            leader: status.leader.map(meta_name),
            term: status.term,
            log_index: status.log_index,
            members: status
                .meta
                .iter()
                .map(|(&id, member)| MetaMemberView {
                    name: meta_name(id),
                    address: member.address.to_string(),
                    state: match (member.alive, status.leader == Some(id)) {
                        (_, true) => "leader",
                        (true, false) => "follower",
                        (false, false) => "down",
                    },
                    log_index: member.matched_log_index,
                    used_bytes: member.room.map(|room| room.total_bytes.saturating_sub(room.free_bytes)),
                    total_bytes: member.room.map(|room| room.total_bytes),
                })
                .collect(),
        },
        storage: status
            .storage
            .iter()
            .map(|(&id, node)| StorageView {
                name: storage_name(id),
                address: node.address.to_string(),
                state: match (&node.fault, &node.aside, node.alive) {
                    _ if !node.replaced.is_empty() => "replaced",
                    (Some(_), _, _) => "faulty",
                    (None, Some(_), _) => "aside",
                    (None, None, true) => "up",
                    (None, None, false) => "down",
                },
                used_bytes: node.used_bytes,
                total_bytes: node.total_bytes,
                duty: duty(status.routing.nodes.get(&id).map_or(Duty::Active, |info| info.duty)),
                fault: node.fault.clone().or_else(|| node.aside.clone()),
            })
            .collect(),
        chains: status.routing.chains.values().map(chain_view).collect(),
        resyncs: status.resyncs.iter().map(resync_view).collect(),
        sessions: status.sessions,
        inodes: status.inodes,
        orphans: status.orphans,
        findings,
    }
}

/// Whether files can be made and written: what a mount needs, if not all that one may wish for.
pub(crate) fn usable(status: &ClusterStatus) -> bool {
    findings(status).iter().all(|finding| finding.severity < Health::Failed)
}

pub(crate) async fn connect(arguments: &ClusterArgs) -> Outcome<AdminClient> {
    config::find(arguments)?.connect_admin().await
}

/// The status; without a leader what can be said without one.
async fn fetch(arguments: &ClusterArgs) -> Outcome<StatusView> {
    let loaded = config::find(arguments)?;
    let client = loaded.connect_admin().await?;
    let status = client.status().await;
    client.close().await;
    match status {
        Err(error) if error.code == ErrorCode::NotLeader => {
            let what = "the metadata servers have no leader".to_owned();
            Ok(StatusView {
                health: Health::Failed,
                cluster: loaded.config.cluster.clone(),
                meta: MetaView {
                    leader: None,
                    term: 0,
                    log_index: 0,
                    members: loaded
                        .config
                        .meta_addresses()
                        .map(|(id, address)| MetaMemberView {
                            name: meta_name(id),
                            address: address.to_string(),
                            state: "unknown",
                            log_index: None,
                            used_bytes: None,
                            total_bytes: None,
                        })
                        .collect(),
                },
                storage: Vec::new(),
                chains: Vec::new(),
                resyncs: Vec::new(),
                sessions: 0,
                inodes: 0,
                orphans: 0,
                findings: vec![Finding {
                    severity: Health::Failed,
                    what,
                }],
            })
        }
        other => Ok(view(&other?)),
    }
}

pub(crate) fn show(arguments: &ShowArgs) -> Outcome {
    let view = program::block_on(fetch(&arguments.cluster))?;
    output::print(arguments.output, &view, || print_tables(&view))
}

#[derive(Debug, Serialize)]
struct HealthView<'a> {
    health: Health,
    findings: &'a [Finding],
}

pub(crate) fn health(arguments: &HealthArgs) -> Outcome {
    let view = program::block_on(fetch(&arguments.show.cluster))?;
    let short = HealthView {
        health: view.health,
        findings: &view.findings,
    };
    output::print(arguments.show.output, &short, || {
        output::line(&output::coloured(&view.health.to_string()));
        if arguments.detail.is_some() {
            for finding in &view.findings {
                output::line(&format!("  {}", finding.what));
            }
            for resync in &view.resyncs {
                output::line(&format!("  {}", resync_line(resync)));
            }
            if view.health == Health::Ok {
                let (members, nodes, chains) = (view.meta.members.len(), view.storage.len(), view.chains.len());
                output::line(&format!(
                    "  leader {}, {members} metadata servers, {nodes} storage nodes, {chains} chains, every replica in sync",
                    view.meta.leader.as_deref().unwrap_or("none")
                ));
            }
        }
    })?;
    Ok(match view.health {
        Health::Ok => Code::Ok,
        Health::Degraded | Health::Failed => Code::Degraded,
    })
}

pub(crate) fn resync_line(resync: &ResyncView) -> String {
    format!(
        "resync of chain {} to {}: {} of {} chunks, {} of {}, {} %",
        resync.chain,
        resync.to,
        resync.chunks_done,
        resync.chunks_total,
        output::bytes(resync.bytes_done),
        output::bytes(resync.bytes_total),
        resync.percent()
    )
}

fn print_tables(view: &StatusView) {
    output::line(&format!(
        "cluster {}   health {}   leader {}   term {}",
        view.cluster,
        output::coloured(&view.health.to_string()),
        view.meta.leader.as_deref().unwrap_or("none"),
        view.meta.term
    ));
    output::line(&format!(
        "{} inodes, {} orphans, {} sessions\n",
        view.inodes, view.orphans, view.sessions
    ));
    let mut meta = Table::new(&["METADATA", "STATE", "ADDRESS", "LOG INDEX", "USED", "TOTAL"]);
    for member in &view.meta.members {
        meta.row([
            member.name.clone(),
            output::coloured(member.state),
            member.address.clone(),
            member
                .log_index
                .map_or_else(|| "-".to_owned(), |index| index.to_string()),
            member.used_bytes.map_or_else(|| "-".to_owned(), output::bytes),
            member.total_bytes.map_or_else(|| "-".to_owned(), output::bytes),
        ]);
    }
    meta.print();
    output::line("");
    let mut storage = Table::new(&["STORAGE", "STATE", "DUTY", "ADDRESS", "USED", "TOTAL"]);
    for node in &view.storage {
        storage.row([
            node.name.clone(),
            output::coloured(node.state),
            node.duty.to_owned(),
            node.address.clone(),
            output::bytes(node.used_bytes),
            output::bytes(node.total_bytes),
        ]);
    }
    storage.print();
    output::line("");
    print_chains(&view.chains);
    for resync in &view.resyncs {
        output::line(&resync_line(resync));
    }
    for finding in &view.findings {
        output::line(&format!("! {}", finding.what));
    }
}

pub(crate) fn print_chains(chains: &[ChainView]) {
    let mut table = Table::new(&["CHAIN", "EPOCH", "MEMBERS, HEAD FIRST"]);
    for chain in chains {
        let members = chain
            .members
            .iter()
            .map(|member| format!("{} {}", member.name, output::coloured(&member.state)));
        table.row([
            chain.id.to_string(),
            chain.epoch.to_string(),
            members.collect::<Vec<_>>().join(", "),
        ]);
    }
    table.print();
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use dfs_common::wire::meta::{DamageCount, MetaStatus, StorageStatus, WrongClock};
    use dfs_common::{ChainMember, ChainTableId, ClusterId, Epoch, MemberState, RoutingTable};

    pub(crate) fn healthy() -> ClusterStatus {
        let address = "127.0.0.1:1".parse().unwrap();
        let members = (1..=3).map(|node| ChainMember::new(StorageId(node), MemberState::Serving));
        let chain = ChainInfo {
            id: ChainId(1),
            epoch: Epoch(4),
            settled: true,
            rest: dfs_common::Rest::default(),
            headed: Epoch(1),
            revived: Epoch(1),
            members: members.collect(),
        };
        let meta = MetaStatus {
            address,
            matched_log_index: Some(9),
            alive: true,
            room: None,
        };
        let node = StorageStatus {
            address,
            alive: true,
            total_bytes: 10,
            used_bytes: 1,
            fault: None,
            aside: None,
            short: None,
            damage: DamageCount::default(),
            replaced: Vec::new(),
        };
        ClusterStatus {
            cluster: ClusterId([1; 16]),
            leader: Some(MetaId(2)),
            term: 3,
            log_index: 9,
            meta: (1..=3).map(|id| (MetaId(id), meta.clone())).collect(),
            storage: (1..=3).map(|id| (StorageId(id), node.clone())).collect(),
            routing: RoutingTable {
                chains: [(ChainId(1), chain)].into(),
                default_table: Some(ChainTableId(1)),
                ..RoutingTable::default()
            },
            resyncs: Vec::new(),
            sessions: 1,
            inodes: 2,
            orphans: 0,
            clocks: Vec::new(),
            old_addresses: Vec::new(),
        }
    }

    fn with_states(states: [MemberState; 3]) -> ClusterStatus {
        let mut status = healthy();
        for chain in status.routing.chains.values_mut() {
            for (member, state) in chain.members.iter_mut().zip(states) {
                member.state = state;
            }
        }
        status
    }

    #[test]
    fn health_is_the_worst_finding() {
        use MemberState::{Offline, Serving, Syncing, Waiting};
        let health = |status: &ClusterStatus| view(status).health;
        assert_eq!(health(&healthy()), Health::Ok);
        assert_eq!(health(&with_states([Serving, Serving, Syncing])), Health::Degraded);
        assert!(usable(&with_states([Serving, Serving, Offline])));
        assert_eq!(health(&with_states([Serving, Offline, Offline])), Health::Failed);
        assert_eq!(health(&with_states([Waiting, Waiting, Offline])), Health::Failed);
        let mut leaderless = healthy();
        leaderless.leader = None;
        assert_eq!(health(&leaderless), Health::Failed);
        let mut one_away = healthy();
        one_away
            .meta
            .values_mut()
            .for_each(|member| member.alive = member.address.port() == 0);
        assert_eq!(health(&one_away), Health::Degraded);
        let mut faulty = healthy();
        faulty
            .storage
            .values_mut()
            .for_each(|node| node.fault = Some("EIO".into()));
        assert_eq!(health(&faulty), Health::Degraded);
        let mut rotten = healthy();
        rotten.storage.values_mut().for_each(|node| node.damage.open = 1);
        assert_eq!(health(&rotten), Health::Degraded);
        rotten.storage.values_mut().for_each(|node| node.damage.lost = 1);
        assert_eq!(health(&rotten), Health::Failed);
        let mut new = healthy();
        new.routing.default_table = None;
        assert_eq!(health(&new), Health::Failed);
        assert!(!usable(&new));
    }

    #[test]
    fn a_metadata_disk_that_fills_up_is_named_before_it_is_full() {
        let mut status = healthy();
        for (free_bytes, consequence) in [
            (200 << 20, None),
            (140 << 20, Some("before it is full")),
            (90 << 20, Some("nothing new")),
        ] {
            let room = DiskRoom {
                total_bytes: 10 << 30,
                free_bytes,
                kept_bytes: 100 << 20,
            };
            status.meta.get_mut(&MetaId(3)).unwrap().room = Some(room);
            let found = findings(&status);
            assert_eq!(
                found
                    .first()
                    .is_some_and(|found| found.what.contains(consequence.unwrap_or_default())),
                consequence.is_some()
            );
        }
    }

    #[test]
    fn a_clock_that_is_off_is_named_with_how_far() {
        const DAY_MS: i64 = 86_400_000;
        let mut status = healthy();
        let wrong = [("meta-1", 3_650 * DAY_MS), ("vm:/mnt", -40_000)];
        status.clocks = wrong
            .map(|(whose, ahead_ms)| WrongClock {
                whose: whose.to_owned(),
                ahead_ms,
            })
            .to_vec();
        let found = findings(&status);
        assert_eq!(found.len(), 2);
        assert!(
            found[0]
                .what
                .starts_with("meta-1: its clock is 3650 days ahead of the cluster's")
        );
        assert!(
            found[1]
                .what
                .starts_with("vm:/mnt: its clock is 40 s behind the cluster's")
        );
        assert_eq!(view(&status).health, Health::Degraded);
    }

    #[test]
    fn a_chain_that_nobody_serves_is_shown_with_its_way_out() {
        use MemberState::{LastServer, Waiting};
        let what = |status: &ClusterStatus| view(status).findings[0].what.clone();
        let mut stopped = with_states([LastServer, LastServer, Waiting]);
        assert_eq!(
            what(&stopped),
            "chain 1: 0 replicas in sync, it can be neither read nor written; it comes back when storage-1 or storage-2 returns with its disk; \
             if both storage-1 and storage-2 are gone for good: dfs node accept-data-loss storage-1, then dfs node accept-data-loss storage-2; \
             then storage-3 brings it back with what it has"
        );
        if let Some(node) = stopped.storage.get_mut(&StorageId(2)) {
            node.fault = Some("EIO".into());
        }
        assert!(
            what(&stopped).ends_with("; or at once, if that disk is well: dfs node trust storage-2 --i-know"),
            "{}",
            what(&stopped)
        );
    }

    #[test]
    fn the_json_has_the_promised_names() {
        let json = serde_json::to_value(view(&healthy())).unwrap();
        assert_eq!(json["health"], "ok");
        assert_eq!(json["meta"]["leader"], "meta-2");
        assert_eq!(json["meta"]["members"][0]["name"], "meta-1");
        assert_eq!(json["storage"][0]["name"], "storage-1");
        assert_eq!(json["storage"][0]["state"], "up");
        assert_eq!(json["storage"][0]["used_bytes"], 1);
        assert_eq!(json["storage"][0]["total_bytes"], 10);
        assert_eq!(json["chains"][0]["id"], 1);
        assert_eq!(json["chains"][0]["epoch"], 4);
        assert_eq!(json["chains"][0]["members"][2]["name"], "storage-3");
        assert_eq!(json["chains"][0]["members"][2]["state"], "serving");
    }

    #[test]
    fn progress_in_percent() {
        let resync = |chunks: (u64, u64), bytes: (u64, u64)| ResyncView {
            chain: 1,
            to: "storage-1".into(),
            chunks_done: chunks.0,
            chunks_total: chunks.1,
            bytes_done: bytes.0,
            bytes_total: bytes.1,
        };
        assert_eq!(resync((0, 0), (0, 0)).percent(), 100);
        assert_eq!(resync((1, 4), (0, 0)).percent(), 25);
        assert_eq!(resync((1, 4), (50, 100)).percent(), 50);
        assert_eq!(resync((1, 4), (200, 100)).percent(), 100);
    }
}
