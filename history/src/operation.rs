//! One operation of one client, as its caller saw it.

use std::fmt;

/// Who asked. A client has at most one operation under way at a time, as far as the session checks are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u32);

/// Which register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(pub u32);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action<V> {
    /// What it returned. A read without an answer says nothing: leave it out.
    Read(V),
    Write(V),
    /// Sets `new` if `expected` is there. `swapped` is the answer, `None` if there was none.
    Cas {
        expected: V,
        new: V,
        swapped: Option<bool>,
    },
}

/// An operation and when it ran, on one clock for all clients, in any unit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Operation<V> {
    pub client: ClientId,
    pub key: Key,
    pub action: Action<V>,
    pub called: u64,
    /// `None`: an error or no answer at all. It may have taken effect at any time since, or may yet, or never.
    pub returned: Option<u64>,
}

impl<V> Operation<V> {
    /// Surely over before `other` began. At the same instant they count as concurrent: clocks tick.
    pub(crate) fn precedes(&self, other: &Self) -> bool {
        self.returned.is_some_and(|returned| returned < other.called)
    }

    /// The value that it puts there, or may put there.
    pub(crate) fn puts(&self) -> Option<&V> {
        match &self.action {
            Action::Read(_)
            | Action::Cas {
                swapped: Some(false), ..
            } => None,
            Action::Write(value) | Action::Cas { new: value, .. } => Some(value),
        }
    }

    pub(crate) fn is_refused_cas(&self) -> bool {
        matches!(
            self.action,
            Action::Cas {
                swapped: Some(false),
                ..
            }
        ) && self.returned.is_some()
    }

    /// The value that was surely there at some time during the operation.
    pub(crate) fn finds(&self) -> Option<&V> {
        match &self.action {
            _ if self.returned.is_none() => None,
            Action::Read(value)
            | Action::Cas {
                expected: value,
                swapped: Some(true),
                ..
            } => Some(value),
            Action::Write(_) | Action::Cas { .. } => None,
        }
    }

    /// The value whose presence (or, for a CAS that did not swap, absence) it tells of.
    pub(crate) fn tells_of(&self) -> Option<&V> {
        match &self.action {
            Action::Write(_) => None,
            Action::Read(value) | Action::Cas { expected: value, .. } => Some(value),
        }
    }
}

impl<V: fmt::Debug> fmt::Display for Operation<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{:>12} ", self.called)?;
        match self.returned {
            Some(returned) => write!(f, "{returned:>12}]")?,
            None => write!(f, "{:>12}]", "unknown")?,
        }
        write!(f, " client {} ", self.client.0)?;
        match &self.action {
            Action::Read(value) => write!(f, "read  {value:?}"),
            Action::Write(value) => write!(f, "write {value:?}"),
            Action::Cas { expected, new, swapped } => {
                let answer = match swapped {
                    Some(true) => "swapped",
                    Some(false) => "refused",
                    None => "no answer",
                };
                write!(f, "cas   {expected:?} -> {new:?}: {answer}")
            }
        }
    }
}
