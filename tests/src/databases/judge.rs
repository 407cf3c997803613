//! What a database may hold after it recovered, given what its clients were told. Pure.
//!
//! A client's transaction `n` adds the row `n` and sets the client's counter to `n`. It begins when `n - 1` was acknowledged, or was
//! found after a recovery. So a database always holds the rows from 1 to some number, and the counter is that number.

use std::fmt::Write as _;

/// What a client was told, and asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// The last transaction that was acknowledged.
    pub acknowledged: u64,
    /// The last one that was begun.
    pub tried: u64,
}

/// What the database holds of a client.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// By number; in any order.
    pub rows: Vec<(u64, String)>,
    pub counter: u64,
}

/// What is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Acknowledged, and not there.
    pub lost: u64,
    pub wrong: Vec<String>,
    /// Where the client goes on.
    pub last: u64,
}

/// The text of a row: long enough that pages fill, and nobody else's.
#[must_use]
pub fn text(session: u32, number: u64) -> String {
    let mut state = (u64::from(session) << 40 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut text = format!("{session}-{number}-");
    for _ in 0..10 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let _ = write!(text, "{state:016x}");
    }
    text
}

#[must_use]
pub fn judge(number: u32, session: Session, found: &Found) -> Verdict {
    let mut rows: Vec<&(u64, String)> = found.rows.iter().collect();
    rows.sort_unstable();
    let mut verdict = Verdict::default();
    let present = |wanted: u64| rows.binary_search_by_key(&wanted, |row| row.0).is_ok();
    let missing: Vec<u64> = (1..=session.acknowledged).filter(|wanted| !present(*wanted)).collect();
    verdict.lost = missing.len() as u64;
    if let (Some(first), Some(last)) = (missing.first(), missing.last()) {
        verdict.wrong.push(format!(
            "client {number}: {} acknowledged transactions are lost, from {first} to {last} of {}",
            missing.len(),
            session.acknowledged
        ));
    }
    verdict.last = rows.last().map_or(0, |row| row.0);
    if verdict.last > session.tried {
        let said = format!(
            "client {number}: row {} was never tried ({})",
            verdict.last, session.tried
        );
        verdict.wrong.push(said);
    }
    if rows.len() as u64 != verdict.last {
        let said = format!(
            "client {number}: {} rows, the last of which is {}",
            rows.len(),
            verdict.last
        );
        verdict.wrong.push(said);
    }
    if let Some(row) = rows.iter().find(|row| row.1 != text(number, row.0)) {
        let said = format!("client {number}: row {} holds {:?}", row.0, row.1);
        verdict.wrong.push(said);
    }
    if found.counter != verdict.last {
        let said = format!(
            "client {number}: the counter is {}, the last row {}: half a transaction",
            found.counter, verdict.last
        );
        verdict.wrong.push(said);
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(rows: impl IntoIterator<Item = u64>, counter: u64) -> Found {
        Found {
            rows: rows.into_iter().map(|number| (number, text(3, number))).collect(),
            counter,
        }
    }

    const SESSION: Session = Session {
        acknowledged: 4,
        tried: 5,
    };

    #[test]
    fn all_that_was_acknowledged_with_or_without_the_last_try_is_right() {
        for last in 4..=5 {
            let verdict = judge(3, SESSION, &found(1..=last, last));
            assert_eq!(
                verdict,
                Verdict {
                    last,
                    ..Verdict::default()
                }
            );
        }
        let nothing = judge(3, Session::default(), &Found::default());
        assert_eq!(nothing, Verdict::default());
    }

    #[test]
    fn a_lost_end_a_hole_and_an_empty_database_are_counted() {
        for (rows, counter, lost) in [(vec![1, 2], 2, 2), (vec![1, 3, 4], 4, 1), (vec![], 0, 4)] {
            let verdict = judge(3, SESSION, &found(rows.clone(), counter));
            assert_eq!(verdict.lost, lost, "{rows:?}");
            assert!(!verdict.wrong.is_empty(), "{rows:?}");
        }
    }

    #[test]
    fn what_was_never_tried_stands_twice_is_changed_or_half_done_is_wrong() {
        let twice = found([1, 2, 3, 4, 4], 4);
        let mut changed = found(1..=4, 4);
        changed.rows[1].1 = text(3, 1);
        for wrong in [found(1..=6, 6), twice, changed, found(1..=4, 5), found(1..=5, 4)] {
            let verdict = judge(3, SESSION, &wrong);
            assert_eq!((verdict.lost, verdict.wrong.len()), (0, 1), "{wrong:?}: {verdict:?}");
        }
    }
}
