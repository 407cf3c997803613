//! Finding out whether a leader hears the others, and whether it should make way: the shell around
//! [`hearing`](super::hearing).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dfs_common::MetaId;
use dfs_net::BootInstant;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::clocks::Clocks;
use super::elections::Elections;
use super::hearing::{ASK_EVERY_MS, DEAF_MS, Hearing, News};
use super::network::{KIND_HELLO, KIND_RESIGN};
use super::{Leadership, SelfReport, Transport};
use crate::room::{Room, RoomLeft};

/// What the others said of themselves, and when.
pub(super) type Told = Arc<Mutex<BTreeMap<MetaId, (SelfReport, Instant)>>>;

/// What a server said of its disk longer ago is no reason to make way for it.
const ROOM_HOLDS: Duration = Duration::from_secs(1);

/// Asks the others, at a steady pace, while this server leads.
pub(super) struct Listening {
    pub(super) me: MetaId,
    pub(super) members: BTreeSet<MetaId>,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) hearing: Arc<Mutex<Hearing>>,
    pub(super) clocks: Arc<Mutex<Clocks>>,
    pub(super) elections: Arc<Mutex<Elections>>,
    pub(super) room: Arc<Room>,
    pub(super) told: Told,
    pub(super) leadership: watch::Receiver<Leadership>,
}

impl Listening {
    pub(super) async fn run(self) {
        let mut ticks = tokio::time::interval(Duration::from_millis(ASK_EVERY_MS));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let leadership = *self.leadership.borrow();
            let is_short = self.room.left() != RoomLeft::Ample;
            self.elections.lock().let_others_stand(is_short);
            if !leadership.is_self {
                continue;
            }
            let now = Instant::now();
            let (deaf, news) = {
                let mut hearing = self.hearing.lock();
                (hearing.ask(leadership.term, now), hearing.take_news())
            };
            let resigns = !deaf && is_short && self.somebody_has_room() && self.hearing.lock().make_way(now);
            for news in news {
                match news {
                    News::IsSilent(id) => tracing::warn!("metadata server {id} does not answer this leader"),
                    News::AnswersAgain(id) => tracing::info!("metadata server {id} answers again"),
                }
            }
            if deaf {
                tracing::warn!(
                    term = leadership.term,
                    "no quorum answers this leader: it falls silent so that another can be elected"
                );
            }
            if resigns {
                tracing::warn!(
                    term = leadership.term,
                    "this leader's disk is nearly full: it falls silent so that a server with room can be elected"
                );
            }
            for &member in self.members.iter().filter(|&&member| member != self.me) {
                let (transport, hearing) = (Arc::clone(&self.transport), Arc::clone(&self.hearing));
                let (clocks, told) = (Arc::clone(&self.clocks), Arc::clone(&self.told));
                // At most DEAF_MS / ASK_EVERY_MS under way to each.
                tokio::spawn(async move {
                    let deadline = Duration::from_millis(DEAF_MS);
                    if (deaf || resigns)
                        && let Ok(term) = dfs_common::codec::encode(&leadership.term)
                    {
                        let _ = transport.send(member, KIND_RESIGN, term, deadline).await;
                        return;
                    }
                    let asked = BootInstant::now();
                    if let Ok(answer) = transport.send(member, KIND_HELLO, Vec::new(), deadline).await {
                        hearing.lock().answered(member.0, now);
                        if let Ok((wall, report)) = dfs_common::codec::decode(&answer) {
                            told.lock().insert(member, (report, Instant::now()));
                            clocks.lock().heard(member, wall, (asked, BootInstant::now()));
                        }
                    }
                });
            }
        }
    }

    fn somebody_has_room(&self) -> bool {
        let told = self.told.lock();
        let mut others = told.values();
        others.any(|(report, heard)| !report.room.is_short() && heard.elapsed() < ROOM_HOLDS)
    }
}
