//! Which metadata server to ask next. Pure.
//!
//! Invariant: a server that just failed is not asked again on another's hint until a while has passed, so that the hints of
//! followers that still believe in a dead leader cost no timeouts.

#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use std::collections::BTreeMap;
use std::net::SocketAddr;

use dfs_common::{MetaId, Whereabouts};

/// How long hints to a server that failed are not believed.
const SUSPECT_MS: u64 = 600;

/// Between two rounds without a leader; an election takes half a second or more.
const NO_LEADER_PAUSE_MS: u64 = 25;

#[derive(Debug)]
struct Server {
    id: MetaId,
    at: Whereabouts,
    /// It did not answer; hints to it are not believed until then.
    suspect_until_ms: u64,
    /// It said that it does not lead. If others say until then that it does, elsewhere, then who
    /// answered has lost its place to another machine.
    denied_until_ms: u64,
}

#[derive(Debug)]
pub(crate) struct LeaderSearch {
    servers: Vec<Server>,
    guess: usize,
    configured: BTreeMap<MetaId, SocketAddr>,
}

impl LeaderSearch {
    pub(crate) fn new(servers: impl IntoIterator<Item = (MetaId, SocketAddr)>) -> Self {
        let configured: BTreeMap<_, _> = servers.into_iter().collect();
        let servers = configured.iter().map(|(&id, &address)| Server {
            id,
            at: Whereabouts::new(address),
            suspect_until_ms: 0,
            denied_until_ms: 0,
        });
        Self {
            servers: servers.collect(),
            guess: 0,
            configured,
        }
    }

    /// Where the configuration has the servers.
    pub(crate) const fn configured(&self) -> &BTreeMap<MetaId, SocketAddr> {
        &self.configured
    }

    /// Where the group says that its servers are.
    pub(crate) fn hear(&mut self, meta: &BTreeMap<MetaId, SocketAddr>) {
        for server in &mut self.servers {
            if let Some(&address) = meta.get(&server.id) {
                server.at.hear(address);
            }
        }
    }

    /// The group says that a server leads there. If it has just failed where it was looked for, or
    /// what answers there says that it does not lead, the other address is worth a try.
    pub(crate) fn learn(&mut self, id: MetaId, address: SocketAddr, now_ms: u64) {
        let server = self.servers.iter_mut().find(|server| server.id == id);
        if let Some(server) = server.filter(|server| server.suspect_until_ms.max(server.denied_until_ms) > now_ms)
            && server.at.learn(address)
        {
            (server.suspect_until_ms, server.denied_until_ms) = (0, 0);
        }
    }

    pub(crate) fn current(&self) -> Option<(MetaId, SocketAddr)> {
        self.servers
            .get(self.guess)
            .map(|server| (server.id, server.at.address()))
    }

    /// `asked` is not the leader. Returns the pause before the next attempt.
    pub(crate) fn not_leader(&mut self, asked: MetaId, hint: Option<(MetaId, SocketAddr)>, now_ms: u64) -> u64 {
        if let Some(server) = self.servers.iter_mut().find(|server| server.id == asked) {
            server.denied_until_ms = now_ms + SUSPECT_MS;
        }
        if let Some((id, address)) = hint {
            self.learn(id, address, now_ms);
        }
        if self.current().is_none_or(|(id, _)| id != asked) {
            return 0;
        }
        let hinted = hint
            .filter(|(id, _)| *id != asked)
            .and_then(|(id, _)| self.servers.iter().position(|server| server.id == id))
            .filter(|&at| self.servers[at].suspect_until_ms <= now_ms);
        if let Some(at) = hinted {
            self.guess = at;
            return 0;
        }
        self.rotate(now_ms);
        NO_LEADER_PAUSE_MS
    }

    /// Whom else to ask when `first` does not answer.
    pub(crate) fn others(&self, first: MetaId) -> Vec<(MetaId, SocketAddr)> {
        let at = self.servers.iter().position(|server| server.id == first).unwrap_or(0);
        let after = self.servers.iter().cycle().skip(at + 1).take(self.servers.len());
        let others = after.filter(|server| server.id != first);
        others.map(|server| (server.id, server.at.address())).collect()
    }

    /// Another than was asked leads.
    pub(crate) fn leads(&mut self, leader: MetaId) {
        if let Some(at) = self.servers.iter().position(|server| server.id == leader) {
            self.guess = at;
            self.servers[at].suspect_until_ms = 0;
        }
    }

    /// `asked` did not answer. Returns the pause before the next attempt.
    pub(crate) fn failed(&mut self, asked: MetaId, now_ms: u64) -> u64 {
        if let Some(server) = self.servers.iter_mut().find(|server| server.id == asked) {
            server.at.failed();
            server.suspect_until_ms = now_ms + SUSPECT_MS;
        }
        if self.current().is_some_and(|(id, _)| id == asked) {
            self.rotate(now_ms);
        }
        if self.servers.iter().all(|server| server.suspect_until_ms > now_ms) {
            NO_LEADER_PAUSE_MS
        } else {
            0
        }
    }

    fn rotate(&mut self, now_ms: u64) {
        let count = self.servers.len().max(1);
        let next = (1..count)
            .map(|step| (self.guess + step) % count)
            .find(|&at| self.servers[at].suspect_until_ms <= now_ms);
        self.guess = next.unwrap_or((self.guess + 1) % count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn three() -> LeaderSearch {
        LeaderSearch::new((1..=3_u16).map(|n| (MetaId(u64::from(n)), address(n))))
    }

    #[test]
    fn hints_are_followed() {
        let mut search = three();
        assert_eq!(search.not_leader(MetaId(1), Some((MetaId(3), address(3))), 0), 0);
        assert_eq!(search.current(), Some((MetaId(3), address(3))));
    }

    #[test]
    fn a_dead_leader_is_not_asked_again_on_a_hint() {
        let mut search = three();
        search.failed(MetaId(1), 1000);
        assert_eq!(search.current().map(|server| server.0), Some(MetaId(2)));
        assert!(search.not_leader(MetaId(2), Some((MetaId(1), address(1))), 1010) > 0);
        assert_eq!(search.current().map(|server| server.0), Some(MetaId(3)));
        assert!(search.not_leader(MetaId(3), Some((MetaId(1), address(1))), 1030) > 0);
        assert_eq!(search.current().map(|server| server.0), Some(MetaId(2)));
        search.not_leader(MetaId(2), Some((MetaId(1), address(1))), 1000 + SUSPECT_MS);
        assert_eq!(search.current().map(|server| server.0), Some(MetaId(1)));
    }

    #[test]
    fn a_server_that_moved_is_found_through_the_others() {
        let mut search = three();
        search.failed(MetaId(1), 1000);
        assert_eq!(search.not_leader(MetaId(2), Some((MetaId(1), address(9))), 1010), 0);
        assert_eq!(
            search.current(),
            Some((MetaId(1), address(9))),
            "another address, another try"
        );
        // It is looked for at both, in turn.
        search.failed(MetaId(1), 2000);
        assert_eq!(search.not_leader(MetaId(2), Some((MetaId(1), address(9))), 2010), 0);
        assert_eq!(search.current(), Some((MetaId(1), address(9))));
        search.learn(MetaId(7), address(7), 2010);
        assert_eq!(search.others(MetaId(1)).len(), 2, "a server that is not configured");
        search.learn(MetaId(3), address(8), 2010);
        assert_eq!(
            search.others(MetaId(1))[1],
            (MetaId(3), address(3)),
            "nothing speaks against where it is"
        );
    }

    #[test]
    fn a_replaced_machine_that_answers_hides_nobody() {
        let mut search = three();
        // It does not lead; the other machine of its name does.
        assert!(search.not_leader(MetaId(1), None, 1000) > 0);
        assert_eq!(search.not_leader(MetaId(2), Some((MetaId(1), address(9))), 1010), 0);
        assert_eq!(search.current(), Some((MetaId(1), address(9))));
        // Who was not asked is not looked for elsewhere.
        assert_eq!(search.not_leader(MetaId(1), Some((MetaId(3), address(8))), 5000), 0);
        assert_eq!(search.current(), Some((MetaId(3), address(3))));
    }

    #[test]
    fn others_are_asked_in_turn_and_believed() {
        let mut search = three();
        let numbers = |others: Vec<(MetaId, SocketAddr)>| others.into_iter().map(|(id, _)| id.0).collect::<Vec<_>>();
        assert_eq!(numbers(search.others(MetaId(2))), [3, 1]);
        assert_eq!(numbers(search.others(MetaId(3))), [1, 2]);
        search.failed(MetaId(3), 1000);
        search.leads(MetaId(3));
        assert_eq!(search.current(), Some((MetaId(3), address(3))));
        search.leads(MetaId(9));
        assert_eq!(search.current(), Some((MetaId(3), address(3))), "nobody knows that one");
    }

    #[test]
    fn late_news_about_another_server_changes_nothing() {
        let mut search = three();
        search.failed(MetaId(2), 0);
        assert_eq!(search.current().map(|server| server.0), Some(MetaId(1)));
        assert_eq!(search.not_leader(MetaId(3), None, 0), 0);
        assert_eq!(search.current().map(|server| server.0), Some(MetaId(1)));
    }
}
