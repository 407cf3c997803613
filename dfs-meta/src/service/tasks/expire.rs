//! Ends sessions whose clients did not renew them.

use std::sync::Arc;
use std::time::Duration;

use dfs_common::{Result, SessionId};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Task;
use crate::command::CommandKind;
use crate::service::owner::Ask;
use crate::service::shared::Shared;

/// Small against the lease of a session.
const EVERY: Duration = Duration::from_secs(1);

const PROPOSE_DEADLINE: Duration = Duration::from_secs(5);

/// Sessions in one command.
const BATCH_MAX: usize = 256;

#[derive(Debug)]
pub(in crate::service) struct Expire;

impl Task for Expire {
    const NAME: &'static str = "expire";

    async fn run(self, shared: Arc<Shared>, shutdown: CancellationToken) {
        let work = async {
            loop {
                tokio::time::sleep(EVERY).await;
                if let Err(e) = once(&shared).await {
                    warn!(error = %e, "expired sessions could not be ended; tried again");
                }
            }
        };
        shutdown.run_until_cancelled(work).await;
    }
}

async fn once(shared: &Shared) -> Result<()> {
    if !shared.leads() {
        return Ok(());
    }
    let expired: Vec<SessionId> = shared.ask(Ask::ExpiredSessions).await?;
    for sessions in expired.chunks(BATCH_MAX) {
        info!(?sessions, "sessions end: their clients did not renew them");
        let sessions = sessions.to_vec();
        let command = CommandKind::EndSessions {
            sessions: sessions.clone(),
        };
        shared.propose(command, PROPOSE_DEADLINE).await?;
        shared.ask(|reply| Ask::SessionsEnded(sessions, reply)).await?;
    }
    Ok(())
}
