//! `dfs node`: storage nodes come, are looked after, and go.

use std::collections::BTreeSet;
use std::path::Path;

use dfs_client::AdminClient;
use dfs_common::wire::meta::{ClusterStatus, NodeAction};
use dfs_common::{ChainId, ChainInfo, Level, NodeName, Role, StorageId};
use dfs_meta::chains::{ChainEvent, next_chain, way_out};
use serde::Serialize;

use crate::args::{ClusterArgs, NodeVerb, ShowArgs};
use crate::failure::{Code, Failure, Outcome};
use crate::init;
use crate::output::{self, Table};
use crate::program::block_on;
use crate::status::{self, chain_list, storage_name};

pub(crate) fn run(verb: &NodeVerb) -> Outcome {
    match verb {
        NodeVerb::Add { directory, node, data } => add(directory, node, data.as_deref()),
        NodeVerb::Show { name, show } => block_on(show_one(storage(name)?, show)),
        NodeVerb::Drain { name, cluster } => block_on(drain(storage(name)?, cluster)),
        NodeVerb::Undrain { name, cluster } => {
            let said = format!("{name} keeps its chains, and takes new ones");
            block_on(tell(storage(name)?, NodeAction::Undrain, cluster, &said))
        }
        NodeVerb::Maintenance { name, end, cluster } => {
            let (action, said) = if *end {
                (
                    NodeAction::EndMaintenance,
                    format!("{name} counts like any other again"),
                )
            } else {
                let said = format!(
                    "nobody takes {name}'s place while it is away; when it is back: dfs node maintenance {name} --end"
                );
                (NodeAction::BeginMaintenance, said)
            };
            block_on(tell(storage(name)?, action, cluster, &said))
        }
        NodeVerb::Remove { name, cluster } => {
            let said = format!("{name} is forgotten; delete its directory and its certificate's key");
            block_on(tell(storage(name)?, NodeAction::Remove, cluster, &said))
        }
        NodeVerb::AcceptDataLoss { name, cluster } => block_on(accept_data_loss(storage(name)?, cluster)),
        NodeVerb::Trust { name, i_know, cluster } => {
            let node = storage(name)?;
            if !i_know {
                return Err(Failure::usage(format!(
                    "after a failed write or sync nobody knows what is on a disk, so {name} waits to be filled anew by its peers. If its disk is \
                     well (look at the kernel's log), or no other copy is left, have it open its store as it is: \
                     dfs node trust {name} --i-know"
                )));
            }
            let said = format!(
                "{name} opens its store again; what of it is not sound is mended by its peers: dfs health detail"
            );
            block_on(tell(node, NodeAction::Trust, cluster, &said))
        }
        NodeVerb::OkToStop { names, show } => {
            let nodes = names
                .iter()
                .map(|name| storage(name))
                .collect::<Outcome<BTreeSet<_>>>()?;
            block_on(ok_to_stop(&nodes, show))
        }
    }
}

fn storage(name: &str) -> Outcome<StorageId> {
    let wrong = || {
        Failure::usage(format!(
            "{name:?} is no storage node; one is called storage-4, say (dfs status)"
        ))
    };
    let parsed: NodeName = name.parse().map_err(|_| wrong())?;
    match (parsed.role, u32::try_from(parsed.number)) {
        (Role::Storage, Ok(number)) => Ok(StorageId(number)),
        _ => Err(wrong()),
    }
}

fn add(directory: &Path, node: &str, data: Option<&str>) -> Outcome {
    let directory = std::path::absolute(directory)?;
    let member = init::parse_member(node)?;
    let home = init::add_storage(&directory, &member, data)?;
    output::line(&format!("{} is ready. Next:", home.display()));
    output::line("  1. copy it to its machine, keep its files readable by the server alone");
    output::line("  2. there: dfs storage --config node.toml");
    output::line("It joins, and chains move to it by themselves: dfs chain watch");
    Ok(Code::Ok)
}

async fn tell(node: StorageId, action: NodeAction, cluster: &ClusterArgs, said: &str) -> Outcome {
    let client = status::connect(cluster).await?;
    let told = client.administer(node, action).await;
    client.close().await;
    told?;
    output::line(said);
    Ok(Code::Ok)
}

/// Gives it up, and says what its chains still wait for.
async fn accept_data_loss(node: StorageId, cluster: &ClusterArgs) -> Outcome {
    let client = status::connect(cluster).await?;
    client.administer(node, NodeAction::AcceptDataLoss).await?;
    let known = client.status().await?;
    client.close().await;
    let name = storage_name(node);
    output::line(&format!(
        "what only {name} had is given up; its chains go on with the copies that left before it"
    ));
    let member = |chain: &&ChainInfo| chain.state_of(node).is_some();
    for chain in known.routing.chains.values().filter(member) {
        if let Some(out) = way_out(chain) {
            output::line(&format!("chain {} comes back when {out}", chain.id));
        }
    }
    Ok(Code::Ok)
}

async fn drain(node: StorageId, cluster: &ClusterArgs) -> Outcome {
    let client = status::connect(cluster).await?;
    client.administer(node, NodeAction::Drain).await?;
    let name = storage_name(node);
    let chains = member_of(&client.status().await?, node);
    client.close().await;
    output::line(&format!(
        "{name} is in {} chains, which go to others now; see: dfs node show {name}. When it is in none: stop it, then dfs node remove {name}",
        chains.len()
    ));
    Ok(Code::Ok)
}

fn member_of(status: &ClusterStatus, node: StorageId) -> Vec<ChainId> {
    let chains = status.routing.chains.values();
    chains
        .filter(|chain| chain.state_of(node).is_some())
        .map(|chain| chain.id)
        .collect()
}

#[derive(Debug, Serialize)]
struct NodeView {
    name: String,
    address: String,
    alive: bool,
    duty: String,
    used_bytes: u64,
    total_bytes: u64,
    chains: Vec<u32>,
}

async fn show_one(node: StorageId, show: &ShowArgs) -> Outcome {
    let client: AdminClient = status::connect(&show.cluster).await?;
    let known = client.status().await?;
    client.close().await;
    let name = storage_name(node);
    let (Some(info), Some(soft)) = (known.routing.nodes.get(&node), known.storage.get(&node)) else {
        return Err(Failure::new(format!("{name} is not in the cluster; see: dfs status")));
    };
    let chains = member_of(&known, node);
    let view = NodeView {
        name: name.clone(),
        address: info.address.to_string(),
        alive: info.alive,
        duty: status::duty(info.duty).to_owned(),
        used_bytes: soft.used_bytes,
        total_bytes: soft.total_bytes,
        chains: chains.iter().map(|chain| chain.get()).collect(),
    };
    output::print(show.output, &view, || {
        output::line(&format!(
            "{name}   {}   {}   {} of {}",
            view.duty,
            if view.alive { "up" } else { "down" },
            output::bytes(view.used_bytes),
            output::bytes(view.total_bytes)
        ));
        if chains.is_empty() {
            output::line("in no chain");
        } else {
            output::line(&format!("in {}", chain_list(&chains)));
        }
    })
}

/// What stopping nodes would do to one chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Effect {
    chain: u32,
    /// In sync without the nodes.
    left: usize,
    consequence: &'static str,
}

#[derive(Debug, Serialize)]
struct OkToStop {
    ok: bool,
    effects: Vec<Effect>,
}

/// Chains that would not take writes, or not even answer, without these nodes. Pure.
fn effects(status: &ClusterStatus, nodes: &BTreeSet<StorageId>) -> Vec<Effect> {
    let downs: Vec<ChainEvent> = nodes.iter().map(|&node| ChainEvent::Down(node)).collect();
    let chains = status.routing.chains.values();
    let judged = chains.filter_map(|chain| {
        // A chain that none of them is in does not depend on them.
        nodes.iter().find(|&&node| chain.state_of(node).is_some())?;
        let left = next_chain(chain, &downs).as_ref().unwrap_or(chain).serving().count();
        let consequence = match left {
            0 => "no data could be read or written",
            left if left < Level::Quorum.min_in_sync() => "writes would wait",
            _ => return None,
        };
        Some(Effect {
            chain: chain.id.get(),
            left,
            consequence,
        })
    });
    judged.collect()
}

async fn ok_to_stop(nodes: &BTreeSet<StorageId>, show: &ShowArgs) -> Outcome {
    let client = status::connect(&show.cluster).await?;
    let known = client.status().await?;
    client.close().await;
    if let Some(unknown) = nodes.iter().find(|node| !known.routing.nodes.contains_key(node)) {
        let name = storage_name(*unknown);
        return Err(Failure::new(format!("{name} is not in the cluster; see: dfs status")));
    }
    let effects = effects(&known, nodes);
    let view = OkToStop {
        ok: effects.is_empty(),
        effects,
    };
    output::print(show.output, &view, || {
        if view.ok {
            output::line("yes: every chain goes on being read and written without them");
            return;
        }
        let mut table = Table::new(&["CHAIN", "LEFT IN SYNC", "CONSEQUENCE"]);
        for effect in &view.effects {
            table.row([
                effect.chain.to_string(),
                effect.left.to_string(),
                effect.consequence.to_owned(),
            ]);
        }
        table.print();
        output::line("no: wait until more replicas are in sync (dfs health detail), or stop fewer at a time");
    })?;
    Ok(if view.ok { Code::Ok } else { Code::Degraded })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_storage_nodes_are_told_from_others() {
        assert_eq!(storage("storage-4").ok(), Some(StorageId(4)));
        for wrong in ["4", "meta-1", "storage-", "storage-99999999999", ""] {
            assert_eq!(
                storage(wrong).err().map(|failure| failure.code),
                Some(Code::Usage),
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn stopping_too_many_is_seen_before() {
        let status = status::tests::healthy();
        let set = |nodes: &[u32]| nodes.iter().map(|&node| StorageId(node)).collect::<BTreeSet<_>>();
        assert_eq!(effects(&status, &set(&[2])), []);
        assert_eq!(effects(&status, &set(&[4])), [], "in no chain");
        let two = effects(&status, &set(&[1, 2]));
        assert!(two.iter().all(|effect| effect.left < 2) && two.len() == 1, "{two:?}");
        assert_eq!(effects(&status, &set(&[1, 2, 3]))[0].left, 0);
    }
}
