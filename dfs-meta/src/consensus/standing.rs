//! Standing for election: the shell around `elections`.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dfs_common::{MetaId, Timestamp, codec};
use dfs_net::BootInstant;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::clocks::Clocks;
use super::elections::Elections;
use super::joining::Joining;
use super::log::Log;
use super::network::{ASK_DEADLINE, KIND_MAY_I_STAND};
use super::types::Raft;
use super::{Leadership, Transport};

/// How finely time is looked at.
const TICK: Duration = Duration::from_millis(10);

/// Longest pause that the others may ask for; their leases are shorter.
const PAUSE_MAX_MS: u32 = 1_000;

pub(super) struct Standing {
    pub(super) raft: Raft,
    pub(super) me: MetaId,
    pub(super) members: BTreeSet<MetaId>,
    pub(super) log: Log,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) joining: Arc<Joining>,
    pub(super) elections: Arc<Mutex<Elections>>,
    pub(super) clocks: Arc<Mutex<Clocks>>,
    pub(super) leadership: watch::Receiver<Leadership>,
}

impl Standing {
    pub(super) async fn run(self) {
        tokio::join!(self.watch_leader(), self.stand());
    }

    /// Hears of the leader's death from its kernel.
    async fn watch_leader(&self) {
        let mut leadership = self.leadership.clone();
        loop {
            let leader = leadership
                .borrow_and_update()
                .leader
                .filter(|&leader| leader != self.me);
            let death = async {
                match leader {
                    Some(leader) => self.transport.death(leader).await,
                    None => std::future::pending().await,
                }
            };
            let other = async {
                let changed = leadership.wait_for(|now| now.leader.filter(|&leader| leader != self.me) != leader);
                changed.await.is_ok()
            };
            tokio::select! {
                () = death => {
                    if let Some(leader) = leader {
                        tracing::info!(%leader, "its kernel says that the leader's process is dead");
                        self.elections.lock().died(leader.0);
                    }
                }
                goes_on = other => if !goes_on {
                    return;
                },
            }
        }
    }

    async fn stand(&self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut chance = self.chance();
        loop {
            ticks.tick().await;
            {
                let metrics = self.raft.metrics();
                let metrics = metrics.borrow();
                if metrics.running_state.is_err() {
                    return;
                }
                if metrics.state == openraft::ServerState::Leader {
                    continue;
                }
            }
            if Instant::now() < self.elections.lock().due(chance) {
                continue;
            }
            let heard = self.elections.lock().last_heard();
            let pause_ms = self.ask_others().await;
            let now = Instant::now();
            chance = self.chance();
            self.elections.lock().tried(chance, now);
            let Some(pause_ms) = pause_ms else {
                continue;
            };
            if pause_ms > 0 {
                tokio::time::sleep(Duration::from_millis(u64::from(pause_ms.min(PAUSE_MAX_MS)))).await;
                // Somebody may lead by now, or have got this server's vote.
                if self.elections.lock().last_heard() != heard {
                    continue;
                }
            }
            // Last, so that nothing is committed between the others' answers and the candidacy.
            if !self.has_history().await {
                tracing::info!(
                    "this server has no history yet and waits for a leader; in a new cluster, for all metadata servers to be up"
                );
                continue;
            }
            tracing::info!("stands for election");
            if self.raft.trigger().elect().await.is_err() {
                return;
            }
        }
    }

    /// See `joining`: a candidate votes for itself first.
    async fn has_history(&self) -> bool {
        let (_, last) = self.log.state();
        let group = (self.me, &self.members);
        self.joining.may_vote_for(self.me, last, group, &self.transport).await
    }

    /// When a majority, this server included, would vote, in milliseconds from now; `None`: it hears a leader.
    async fn ask_others(&self) -> Option<u32> {
        let mut asked = JoinSet::new();
        for &member in self.members.iter().filter(|&&member| member != self.me) {
            let (transport, clocks) = (Arc::clone(&self.transport), Arc::clone(&self.clocks));
            asked.spawn(async move {
                let began = BootInstant::now();
                let answer = transport
                    .send(member, KIND_MAY_I_STAND, Vec::new(), ASK_DEADLINE)
                    .await
                    .ok()?;
                let (pause_ms, wall) = codec::decode::<(Option<u32>, Timestamp)>(&answer).ok()?;
                clocks.lock().heard(member, wall, (began, BootInstant::now()));
                pause_ms
            });
        }
        let needed = self.members.len() / 2;
        let mut pauses = Vec::new();
        while pauses.len() < needed
            && let Some(answer) = asked.join_next().await
        {
            pauses.extend(answer.ok().flatten());
        }
        if pauses.len() < needed {
            return None;
        }
        let own = self.elections.lock().may_stand_in_ms(Instant::now())?;
        Some(pauses.into_iter().fold(own, u32::max))
    }

    /// Different at each server and each time; nothing depends on its quality.
    fn chance(&self) -> u64 {
        use std::hash::{BuildHasher, Hasher};
        let mut hasher = std::hash::RandomState::new().build_hasher();
        hasher.write_u64(self.me.0);
        hasher.finish()
    }
}
