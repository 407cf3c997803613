//! `dfs credentials renew`: certificates are issued anew, when some are lost or known to others, or
//! the authority itself is.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use dfs_common::{CertificateIssue, NodeName, Role};
use dfs_crypto::certificate::{CertificateAuthority, Credentials};

use crate::args::CredentialsVerb;
use crate::config::{self, ADMIN_CREDENTIALS};
use crate::failure::{Code, Failure, Outcome};
use crate::init;
use crate::output;

/// Where one member's credentials are kept in the directory that `dfs init` made.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    name: NodeName,
    at: PathBuf,
}

pub(crate) fn run(verb: &CredentialsVerb) -> Outcome {
    match verb {
        CredentialsVerb::Renew {
            directory,
            names,
            new_authority,
        } => renew(directory, names, *new_authority),
    }
}

fn renew(directory: &Path, names: &[String], new_authority: bool) -> Outcome {
    let directory = std::path::absolute(directory)?;
    let cluster = config::read(&directory.join("cluster.toml"))?.config;
    let every = members(&directory, &cluster.credentials)?;
    let chosen = if new_authority { every } else { choose(every, names)? };
    let root = init::root_key(&cluster.credentials)?;
    let authority = if new_authority {
        put_aside(&directory)?;
        let authority = CertificateAuthority::generate(cluster.cluster_id()?).context("certificate authority")?;
        init::save_authority(&authority, &directory)?;
        authority
    } else {
        init::authority(&directory)?
    };
    for member in &chosen {
        // A machine that took another's place keeps its issue; the group refuses a lower one.
        let issue = match Credentials::load(&member.at) {
            Ok(before) if before.name() == member.name => before.issue(),
            _ => CertificateIssue::default(),
        };
        let credentials = authority.issue_again(member.name, issue).context("certificate")?;
        init::make_private(&member.at)?;
        credentials.save(&member.at).context("certificate")?;
        match member.name.role {
            Role::Client | Role::Admin => root.save(&member.at.join("root.key")).context("root key")?,
            Role::Meta => root.meta_key().save(&member.at.join("meta.key")).context("meta.key")?,
            Role::Storage => {}
        }
        output::line(&format!("{:<12} {}", member.name.to_string(), member.at.display()));
    }
    output::line("Copy each to its machine, and keep it readable by its owner alone.");
    if new_authority {
        output::line("Certificates of the authority before are worth nothing to those of the new one, so then:");
        output::line("  1. unmount everywhere, and stop every server");
        output::line("  2. start every server with its new credentials, and mount again");
    } else {
        output::line(
            "A process reads its credentials when it starts. Certificates that were issued before stay good: if others may have \
             them, make a new authority (--new-authority).",
        );
    }
    Ok(Code::Ok)
}

/// The client, the administrator, and whoever has a directory under `nodes`.
fn members(directory: &Path, client: &Path) -> Outcome<Vec<Member>> {
    let mut members = vec![
        Member {
            name: NodeName::new(Role::Client, 1),
            at: client.to_path_buf(),
        },
        Member {
            name: NodeName::new(Role::Admin, 1),
            at: client.join(ADMIN_CREDENTIALS),
        },
    ];
    let nodes = directory.join("nodes");
    let entries = fs::read_dir(&nodes).with_context(|| format!("{} can not be read", nodes.display()))?;
    let mut homes: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    homes.sort();
    for home in homes {
        let name = home.file_name().and_then(|name| name.to_str()?.parse().ok());
        if let Some(name) = name.filter(|_| home.join("node.toml").exists()) {
            members.push(Member {
                name,
                at: home.join("credentials"),
            });
        }
    }
    Ok(members)
}

fn choose(every: Vec<Member>, names: &[String]) -> Outcome<Vec<Member>> {
    for name in names {
        if !every.iter().any(|member| member.name.to_string() == *name) {
            let known: Vec<_> = every.iter().map(|member| member.name.to_string()).collect();
            return Err(Failure::usage(format!(
                "{name:?} has no place in this directory; there are {}",
                known.join(", ")
            )));
        }
    }
    let chosen = every.into_iter();
    Ok(chosen
        .filter(|member| names.is_empty() || names.contains(&member.name.to_string()))
        .collect())
}

/// What is left of the old authority.
fn put_aside(directory: &Path) -> anyhow::Result<()> {
    let ca = directory.join("ca");
    if !ca.exists() {
        return Ok(());
    }
    let free = (1..1_000)
        .map(|number| directory.join(format!("ca.replaced-{number}")))
        .find(|aside| !aside.exists())
        .ok_or_else(|| anyhow!("{} has too many old authorities", directory.display()))?;
    fs::rename(&ca, &free).with_context(|| format!("{} can not be put aside", ca.display()))
}
