//! `dfs meta move` and `dfs meta replace`, as the leader carries them out.

use std::sync::Arc;
use std::time::Duration;

use dfs_common::{CertificateIssue, Error, ErrorCode, MetaId, MetaPlace, NodeName, Result};
use tokio::time::Instant;

use super::shared::Shared;
use super::status::ALIVE_WITHIN_MS;
use crate::chains;
use crate::command::{CommandKind, Outcome};

/// How often the leader looks what the others have said.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Proposes it. A replaced machine and the one in its place must never both vote, so a replacement
/// is answered only when every other server refuses the machine before, also after a restart.
///
/// # Errors
/// `NotFound` for a server that is none of the group, `InvalidArgument` for an address that is no
/// good, `Busy` for a replacement of a server that answers, `Unreachable` when not all others have
/// said in time that they refuse it.
pub(super) async fn move_meta(shared: &Arc<Shared>, server: MetaId, place: MetaPlace, time: Duration) -> Result<()> {
    let until = Instant::now() + time;
    let name = NodeName::from(server);
    let routing = Arc::clone(&shared.routing.borrow());
    if !routing.meta.contains_key(&server) {
        return Err(Error::new(
            ErrorCode::NotFound,
            format!("{name} is none of the metadata servers; see: dfs status"),
        ));
    }
    chains::check_place(&routing, server, place)?;
    let issue = routing
        .moved
        .get(&server)
        .map(|before| before.issue)
        .unwrap_or_default();
    let replaces = place.issue > issue;
    if replaces {
        check_replaceable(shared, server)?;
    }
    let done = shared.propose(CommandKind::MoveMeta { server, place }, time).await?;
    match done {
        Outcome::Administered(done) => done?,
        _ => return Err(Error::from(ErrorCode::Internal)),
    }
    // A request that was sent again finds its row there already, and still has to wait.
    if place.issue == CertificateIssue::default() {
        return Ok(());
    }
    let others: Vec<MetaId> = routing.meta.keys().copied().filter(|&id| id != server).collect();
    loop {
        let told = shared.consensus.status().told;
        let refuses = |id: &MetaId| {
            let required = told.get(id).and_then(|told| told.service.requires.get(&server));
            required.is_some_and(|&required| required >= place.issue)
        };
        match others.iter().find(|id| !refuses(id)) {
            None => return Ok(()),
            Some(_) if Instant::now() < until => tokio::time::sleep(LOOK_EVERY).await,
            Some(&id) => {
                return Err(Error::new(
                    ErrorCode::Unreachable,
                    format!(
                        "{late} does not say yet that it refuses the machine that was {name}: see that it runs \
                         and has room on its disk, and run this again",
                        late = NodeName::from(id)
                    ),
                ));
            }
        }
    }
}

fn check_replaceable(shared: &Shared, server: MetaId) -> Result<()> {
    let name = NodeName::from(server);
    let answered = shared.consensus.status().answered_ms_ago.get(&server).copied();
    if server == shared.me || answered.is_some_and(|ms| ms < ALIVE_WITHIN_MS) {
        return Err(Error::new(
            ErrorCode::Busy,
            format!("{name} runs and answers: stop it first, or only give it another address (dfs meta move)"),
        ));
    }
    Ok(())
}
