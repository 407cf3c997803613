//! Requests to whoever leads the metadata group, until an answer or the deadline.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use dfs_common::wire::meta::{MetaRequest, MetaResponse};
use dfs_common::{Error, ErrorCode, MetaId, Result, RetryClass};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::search::LeaderSearch;
use crate::network::Network;

/// One server's time to answer before another is asked who leads. Above any healthy answer, below a person's patience.
const ATTEMPT: Duration = Duration::from_millis(700);

/// Without an answer for this long the others are asked too: silence may be a cut cable, and they know when there is a new leader.
const HEDGE_AFTER: Duration = Duration::from_millis(250);

/// Between two such questions, and the time for each.
const HEDGE_EVERY: Duration = Duration::from_millis(60);
const HEDGE_TIME: Duration = Duration::from_millis(300);

/// A slow leader gets more time with each attempt, up to this.
const MAX_ATTEMPT: Duration = Duration::from_millis(5_600);

/// Finds the leader and remembers it.
pub(crate) struct Leader {
    network: Network,
    search: Mutex<LeaderSearch>,
    started: Instant,
}

/// An answer, and whether an earlier attempt may have taken effect without being answered.
pub(crate) struct Answer {
    pub(crate) response: MetaResponse,
    pub(crate) repeated: bool,
}

impl Leader {
    pub(crate) fn new(network: Network, search: LeaderSearch) -> Self {
        Self {
            network,
            search: Mutex::new(search),
            started: Instant::now(),
        }
    }

    /// See [`Network::lease_now_ms`].
    pub(super) fn lease_now_ms(&self) -> u64 {
        self.network.lease_now_ms()
    }

    /// Where the configuration has the metadata servers.
    pub(super) fn configured(&self) -> BTreeMap<MetaId, SocketAddr> {
        self.search.lock().configured().clone()
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Sends the same request until somebody who leads answers it. `patience` is added to every attempt, for requests that
    /// wait at the server.
    pub(crate) async fn ask(
        &self,
        request: &MetaRequest,
        deadline: Instant,
        patience: Duration,
        what: &(dyn Fn() -> String + Sync),
    ) -> Result<MetaResponse> {
        match self
            .ask_noting_repeats(request, deadline, patience, what)
            .await?
            .response
        {
            MetaResponse::Failed(error) => Err(error),
            response => Ok(response),
        }
    }

    /// The same; a final refusal is an answer too (`Failed`), so that it is known whether it was the first attempt's.
    pub(crate) async fn ask_noting_repeats(
        &self,
        request: &MetaRequest,
        deadline: Instant,
        patience: Duration,
        what: &(dyn Fn() -> String + Sync),
    ) -> Result<Answer> {
        let mut attempt_time = ATTEMPT;
        let mut repeated = false;
        let mut last: Option<(MetaId, Error)> = None;
        loop {
            let remaining = deadline.saturating_duration_since(Instant::now());
            if remaining.is_zero() {
                return Err(give_up(what, last));
            }
            let Some(server) = self.search.lock().current() else {
                return Err(Error::new(
                    ErrorCode::InvalidArgument,
                    "the configuration names no metadata server; add [[meta]] sections to it",
                ));
            };
            let time = (attempt_time + patience).min(remaining);
            let answer = match self.ask_with_hedge(server, request, time, patience).await {
                Heard::First(answer) => answer,
                Heard::Other(by, answer) => {
                    // Nobody knows what became of the first.
                    repeated = true;
                    self.search.lock().leads(by);
                    answer
                }
                Heard::Leads(leader, address) => {
                    repeated = true;
                    let (now_ms, mut search) = (self.now_ms(), self.search.lock());
                    search.failed(server.0, now_ms);
                    search.learn(leader, address, now_ms);
                    search.leads(leader);
                    continue;
                }
            };
            let pause_ms = match answer {
                Ok(MetaResponse::NotLeader { leader }) => {
                    last = Some((
                        server.0,
                        Error::new(ErrorCode::NotLeader, format!("{} is not the leader", name(server.0))),
                    ));
                    let now_ms = self.now_ms();
                    self.search.lock().not_leader(server.0, leader, now_ms)
                }
                Ok(response) => {
                    if let Some(table) = response.routing() {
                        self.search.lock().hear(&table.meta);
                    }
                    return Ok(Answer { response, repeated });
                }
                Err(error) if error.retry_class() == RetryClass::Fatal => {
                    let response = MetaResponse::Failed(error);
                    return Ok(Answer { response, repeated });
                }
                Err(error) => {
                    repeated = true;
                    if error.code == ErrorCode::Timeout {
                        attempt_time = (attempt_time * 2).min(MAX_ATTEMPT);
                    }
                    let overloaded = error.code == ErrorCode::Overloaded;
                    last = Some((server.0, error));
                    let now_ms = self.now_ms();
                    if overloaded {
                        50
                    } else {
                        self.search.lock().failed(server.0, now_ms)
                    }
                }
            };
            if pause_ms > 0 {
                tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            }
        }
    }
}

/// What came of asking one server, and then the others about it.
enum Heard {
    First(Result<MetaResponse>),
    /// Another answered as the leader does.
    Other(MetaId, Result<MetaResponse>),
    /// Another says that this one leads, and where it is.
    Leads(MetaId, SocketAddr),
}

impl Leader {
    /// Asks `first`, and while it is silent the others the same: who does not lead does nothing but name the leader, and who leads does
    /// what is asked once, since the request carries its name. A request that waits at the server is silent by intention.
    async fn ask_with_hedge(
        &self,
        first: (MetaId, SocketAddr),
        request: &MetaRequest,
        time: Duration,
        patience: Duration,
    ) -> Heard {
        let preferred = self.network.meta(first, request, time);
        tokio::pin!(preferred);
        let others = self.search.lock().others(first.0);
        let mut pause = HEDGE_AFTER + patience;
        for &other in others.iter().cycle() {
            tokio::select! {
                biased;
                answer = &mut preferred => return Heard::First(answer),
                () = tokio::time::sleep(pause) => {}
            }
            pause = HEDGE_EVERY;
            let answer = tokio::select! {
                biased;
                answer = &mut preferred => return Heard::First(answer),
                answer = self.network.meta(other, request, HEDGE_TIME + patience) => answer,
            };
            match answer {
                Ok(MetaResponse::NotLeader { leader: Some((id, at)) }) if (id, at) != first => {
                    return Heard::Leads(id, at);
                }
                // It believes in the first as well, or there is none.
                Ok(MetaResponse::NotLeader { .. }) => {}
                Ok(response) => return Heard::Other(other.0, Ok(response)),
                // A leader's refusal; one of the server itself says nothing about the first.
                Err(error)
                    if error.retry_class() == RetryClass::Fatal
                        && !matches!(error.code, ErrorCode::Unauthorized | ErrorCode::Incompatible) =>
                {
                    return Heard::Other(other.0, Err(error));
                }
                Err(_) => {}
            }
        }
        Heard::First(preferred.await)
    }
}

fn name(id: MetaId) -> dfs_common::NodeName {
    id.into()
}

fn give_up(what: &(dyn Fn() -> String + Sync), last: Option<(MetaId, Error)>) -> Error {
    let cause = last.map_or_else(
        || "no metadata server was asked in time".to_owned(),
        |(server, error)| format!("{}: {error}", name(server)),
    );
    let detail = format!(
        "{}: no leader of the metadata group answered in time; last: {cause}",
        what()
    );
    tracing::warn!("{detail}");
    Error::new(ErrorCode::Timeout, detail)
}
