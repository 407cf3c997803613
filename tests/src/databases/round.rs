//! What happens to a database in which round. Pure.

/// What happens in one round, when the clients have worked for some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// Power is cut.
    Cut,
    /// And once more as soon as the database has recovered.
    CutTwice,
    /// Only database and mount die; power is cut when it has recovered. What recovery found written and not synced, and synced
    /// as a stranger, is then all that stands between the database and a loss.
    RemountThenCut,
    /// Power is cut and comes back while the database runs, and its mount writes again what the disks have lost; some time later
    /// it is cut once more, and they die.
    OutliveThenCut,
}

impl Round {
    #[must_use]
    pub fn of(number: u64) -> Self {
        match number % 4 {
            1 => Self::OutliveThenCut,
            2 => Self::RemountThenCut,
            3 => Self::CutTwice,
            _ => Self::Cut,
        }
    }

    /// What happens, one after the other.
    #[must_use]
    pub fn events(self) -> &'static [Event] {
        match self {
            Self::Cut => &[Event::PowerCut],
            Self::CutTwice => &[Event::PowerCut, Event::PowerCut],
            Self::RemountThenCut => &[Event::MountKilled, Event::PowerCut],
            Self::OutliveThenCut => &[Event::PowerCutOnly, Event::PowerCut],
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Of all servers at once; databases and mount are killed then.
    PowerCut,
    /// Of all servers at once; databases and mount live.
    PowerCutOnly,
    /// Databases and mount are killed.
    MountKilled,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_rounds_have_every_kind_and_each_ends_with_a_cut_that_kills() {
        for wanted in [
            Round::Cut,
            Round::CutTwice,
            Round::RemountThenCut,
            Round::OutliveThenCut,
        ] {
            assert!((1..=10).any(|number| Round::of(number) == wanted), "{wanted:?}");
            assert_eq!(wanted.events().last(), Some(&Event::PowerCut));
        }
    }
}
