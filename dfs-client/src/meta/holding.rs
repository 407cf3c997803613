//! Keeping the right to hold: numbers to give, the lease, and giving all up when somebody wants it.

use std::sync::Arc;
use std::time::Duration;

use dfs_common::wire::meta::{MetaRequest, MetaResponse, Reservation};
use dfs_common::{Error, ErrorCode, Hold, Result, SessionId};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::ahead::{LOW_NUMBERS, PAUSE, TELL_DEADLINE};
use super::session::{Session, unexpected};

/// How long one question for wants waits at the leader. Well below the lease that its answer renews.
const WANTED_WAIT: Duration = Duration::from_millis(250);

/// For its answer besides.
const WANTED_DEADLINE: Duration = Duration::from_millis(600);

/// After this long without an answer to it the mount does without holding.
const PATIENCE: Duration = Duration::from_secs(2);

/// After somebody wanted what this mount held it does not hold anything for so long; twice as long each time.
const REST_MIN: Duration = Duration::from_secs(1);
const REST_MAX: Duration = Duration::from_secs(30);

/// Without a want for this long the next one is the first again.
const QUIET: Duration = Duration::from_mins(1);

/// Why an epoch is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Somebody else wants what is held.
    Wanted,
    /// There is too much of it, or another session.
    Renewed,
    /// The leader does not answer in time, or did not do what was foreseen.
    Trouble,
}

/// For what is told before all is given up. What takes longer is found out by the group itself.
const UNTOLD_TIME: Duration = Duration::from_millis(400);

/// Who knows of files that were written without a word to the group.
pub(crate) trait Untold: Send + Sync + 'static {
    /// Tells the length of each.
    fn tell_all(self: &Arc<Self>, deadline: Instant) -> impl Future<Output = ()> + Send;
}

/// Keeps the right to hold, until told to stop.
pub(super) async fn keep<U: Untold>(session: &Session, untold: &Arc<U>, stop: &CancellationToken) {
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = keep_holding(session, untold) => {}
    }
}

async fn keep_holding<U: Untold>(session: &Session, untold: &Arc<U>) {
    let ahead = &session.ahead;
    let mut rest = REST_MIN;
    let mut last_end: Option<Instant> = None;
    loop {
        let hold = match begin(session).await {
            Ok(hold) => hold,
            Err(error) => {
                tracing::debug!(%error, "nothing can be held now");
                tokio::time::sleep(REST_MIN).await;
                continue;
            }
        };
        let end = hold_on(session, hold).await;
        ahead.start_yielding();
        if end == End::Trouble {
            ahead.clear();
        } else {
            untold.tell_all(Instant::now() + UNTOLD_TIME).await;
        }
        ahead.pause();
        give_up(session, hold).await;
        // What waits is sent now, like anything that is not held.
        ahead.resume();
        if end != End::Renewed {
            if last_end.is_some_and(|last| last.elapsed() > QUIET) {
                rest = REST_MIN;
            }
            last_end = Some(Instant::now());
            tokio::time::sleep(rest).await;
            rest = (rest * 2).min(REST_MAX);
        }
    }
}

/// Numbers to give, and the lease to give them.
async fn begin(session: &Session) -> Result<Hold> {
    let id = session.id();
    let reservation = reserve(session, id).await?;
    let hold = Hold {
        session: id,
        epoch: reservation.epoch,
    };
    // Only this question renews the lease: its answer looks at what others want.
    let sent_ms = session.now_ms();
    if ask_wanted(session, hold, Duration::ZERO).await? {
        // Nothing is held in it, but the want stands until it is over.
        give_up(session, hold).await;
        return Err(Error::new(ErrorCode::HoldLost, "it is wanted already"));
    }
    session.ahead.begin(session, hold, reservation, sent_ms)?;
    Ok(hold)
}

async fn ask_wanted(session: &Session, hold: Hold, wait: Duration) -> Result<bool> {
    let request = MetaRequest::Wanted {
        hold,
        wait_ms: wait.as_millis() as u32,
    };
    let what = || "whether anybody wants what this mount holds".to_owned();
    let deadline = Instant::now() + wait + WANTED_DEADLINE;
    match session.leader.ask(&request, deadline, wait, &what).await? {
        MetaResponse::Wanted(wanted) => Ok(wanted),
        _ => Err(unexpected("a question for wants")),
    }
}

/// Holds until something ends it.
async fn hold_on(session: &Session, hold: Hold) -> End {
    let ahead = &session.ahead;
    let mut good = Instant::now();
    loop {
        if session.id() != hold.session {
            return End::Renewed;
        }
        let (epoch, is_full, left) = ahead.state();
        if epoch != Some(hold.epoch) {
            return End::Trouble;
        }
        if is_full {
            return End::Renewed;
        }
        if left <= LOW_NUMBERS && !more_numbers(session, hold).await {
            return End::Renewed;
        }
        let sent_ms = session.now_ms();
        let answer = tokio::select! {
            biased;
            answer = ask_wanted(session, hold, WANTED_WAIT) => answer,
            () = ahead.attention.notified() => continue,
        };
        match answer {
            Ok(false) => {
                good = Instant::now();
                ahead.renew(sent_ms);
            }
            Ok(true) => return End::Wanted,
            Err(error) if good.elapsed() > PATIENCE => {
                tracing::info!(%error, "what this mount holds is given up: the leader does not answer in time");
                return End::Trouble;
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Numbers of an old reservation end with the new one, so those that were shown are told first.
async fn more_numbers(session: &Session, hold: Hold) -> bool {
    let ahead = &session.ahead;
    ahead.pause();
    all_told(session, hold.session).await;
    let same = match reserve(session, hold.session).await {
        Ok(reservation) => ahead.more(hold.epoch, reservation),
        Err(_) => false,
    };
    if same {
        ahead.resume();
    }
    same
}

/// Everything that was queued is answered, however long that takes: nothing that ends it may overtake it.
async fn all_told(session: &Session, id: SessionId) {
    while session.id() == id {
        match session.ahead.settled(Instant::now() + TELL_DEADLINE).await {
            Ok(()) => return,
            Err(error) => tracing::warn!("{error}"),
        }
    }
}

async fn reserve(session: &Session, id: SessionId) -> Result<Reservation> {
    let request = MetaRequest::Reserve {
        session: id,
        known: session.ahead.known_end(),
    };
    let what = || "inode numbers for this mount".to_owned();
    let deadline = Instant::now() + TELL_DEADLINE;
    match session.leader.ask(&request, deadline, Duration::ZERO, &what).await? {
        MetaResponse::Reserved(reservation) => Ok(reservation),
        _ => Err(unexpected("a reservation")),
    }
}

/// Tells what is queued, then ends the epoch; not before the group has confirmed that, since a new beginning in the same epoch
/// would bring back what this mount no longer knows anything of.
async fn give_up(session: &Session, hold: Hold) {
    all_told(session, hold.session).await;
    session.ahead.clear();
    while session.id() == hold.session {
        let request = MetaRequest::Release(hold);
        let what = || "giving up what this mount holds".to_owned();
        let deadline = Instant::now() + TELL_DEADLINE;
        match session.leader.ask(&request, deadline, Duration::ZERO, &what).await {
            Ok(_) => return,
            Err(error) => {
                tracing::debug!(%error, "what this mount held is not given up yet");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
