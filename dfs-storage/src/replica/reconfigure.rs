//! A new configuration: who stands where, and what becomes of what is under way.

use dfs_common::{ChainInfo, Error, MemberState, StorageId};

use super::pending::{Downstream, Local, Waiter};
use super::rest::Resting;
use super::session::Session;
use super::types::{Effect, Now, StoreView};
use super::{Purpose, ReplicaCore, Role, Successor};

impl ReplicaCore {
    fn role_in(&self, config: &ChainInfo) -> Role {
        let predecessor = config.predecessor(self.node);
        match config.state_of(self.node) {
            Some(MemberState::Serving) => Role::Serving {
                predecessor,
                successor: match config.successor(self.node) {
                    None => Successor::Nobody,
                    Some(node) if config.state_of(node) == Some(MemberState::Serving) => Successor::Serving(node),
                    Some(node) => Successor::Syncing(node),
                },
            },
            Some(MemberState::Syncing) => Role::Syncing { predecessor },
            _ => Role::Outside,
        }
    }

    pub(super) fn configure(&mut self, now: Now, config: ChainInfo, store: &dyn StoreView) {
        if config.id != self.chain || (self.config.is_some() && config.epoch <= self.epoch()) {
            // Within an epoch two things change.
            if let Some(known) = &mut self.config
                && config.id == self.chain
                && config.epoch == known.epoch
            {
                known.settled |= config.settled;
                known.rest = known.rest.max(config.rest);
            }
            return;
        }
        let old = self.role;
        let stale = self.stale(self.epoch());
        self.role = self.role_in(&config);
        self.config = Some(config);
        self.refuse_early(&stale);
        self.refuse_reads(&stale);
        self.refuse_syncs(&stale);
        self.refuse_ranges(&stale);
        self.session = None;
        self.settling = None;
        self.resting = Resting::begin(now);
        self.forgetting.begin_anew(now);
        self.untold.clear();
        self.intake.clear();
        let orphans = &mut self.orphans;
        self.under_way.retain(|&ticket, purpose| match purpose {
            Purpose::Apply(..) | Purpose::SyncMutation(..) => true,
            // Changes to the store that end at an unknown time: nothing may build on it before they have.
            Purpose::Install(..) | Purpose::DropForPredecessor(..) | Purpose::Forget(_) => {
                orphans.insert(ticket);
                false
            }
            _ => false,
        });
        if old == Role::Outside || !matches!(self.role, Role::Serving { .. }) {
            // Out, or a copy that is compared anew: what was pending is settled by those who serve. Who comes back to
            // serve from outside is the last server: what it has counts as committed.
            self.forget_all(&stale);
        }
        if matches!(self.role, Role::Serving { .. }) {
            self.keep_going(now, &stale, store);
        }
    }

    /// A serving member carries its uncommitted mutations into the new configuration.
    fn keep_going(&mut self, now: Now, stale: &Error, store: &dyn StoreView) {
        if let Role::Serving {
            successor: Successor::Syncing(to),
            ..
        } = self.role
        {
            self.start_session(to);
        }
        let head = self.is_head();
        let sends = matches!(
            self.role,
            Role::Serving {
                successor: Successor::Serving(_),
                ..
            }
        );
        let mut send = Vec::new();
        let mut refuse = Vec::new();
        for (&chunk, queue) in &mut self.queues {
            for entry in &mut queue.entries {
                entry.downstream = Downstream::NotNeeded;
                entry.answered_early = false;
                if sends {
                    send.push((chunk, entry.version));
                }
                entry.waiters.retain(|waiter| match *waiter {
                    // The client's request is this very mutation, and the epoch it commits in is ours.
                    Waiter::Client(_) if head => true,
                    Waiter::Client(waiter) | Waiter::Predecessor(waiter) => {
                        refuse.push(waiter);
                        false
                    }
                    Waiter::Range(_) => false,
                });
            }
        }
        for waiter in refuse {
            self.refuse(waiter, stale.clone());
        }
        for (chunk, version) in send {
            self.send(chunk, version, 0);
        }
        let chunks: Vec<_> = self.queues.keys().copied().collect();
        for chunk in chunks {
            self.pump(chunk);
            self.commit(now, chunk, store);
        }
        self.start_settling();
        self.schedule_session(now, store);
    }

    fn start_session(&mut self, to: StorageId) {
        self.session = Some(Session::new(to));
        self.fetch_inventory(None, 0);
    }

    /// Drops all that is pending, and tells who waits for it.
    pub(super) fn forget_all(&mut self, error: &Error) {
        for queue in std::mem::take(&mut self.queues).into_values() {
            for entry in queue.entries {
                if let Local::Applying(ticket) = entry.local {
                    self.orphans.insert(ticket);
                }
                for waiter in entry.waiters {
                    if let Waiter::Client(waiter) | Waiter::Predecessor(waiter) = waiter {
                        self.effects.push(Effect::Answer {
                            waiter,
                            answer: Err(error.clone()),
                        });
                    }
                }
            }
        }
        self.under_way.clear();
        self.pending_count = 0;
        self.pending_bytes = 0;
        self.session = None;
        self.settling = None;
        self.untold.clear();
        self.refuse_early(error);
        self.refuse_reads(error);
        self.refuse_syncs(error);
        self.refuse_ranges(error);
    }
}
