//! Mounts that change names: every change exactly once, whatever is retried, and of two that want one name one gets it.

use dfs_common::wire::meta::ChangeRequest;
use dfs_common::wire::namespace::{Caller, NamespaceChange, NamespaceOp, NamespaceRead};
use dfs_common::{Error, ErrorCode, InodeId, SequenceNumber, SessionId, ValidName};
use dfs_meta::command::{CommandKind, Outcome};

use crate::event::Event;
use crate::group::Asker;
use crate::network::GROUP;
use crate::world::World;

const DEADLINE_MS: u64 = 400;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Doing {
    OpenSession,
    /// A name that nobody else uses.
    Create(String),
    /// One that all want; whether this one got it comes with the answer.
    Want(String),
    Unlink(String),
}

#[derive(Debug)]
pub(crate) struct Namer {
    number: usize,
    pub(crate) wanted: u64,
    attempt: u64,
    session: Option<SessionId>,
    sequence: u64,
    doing: Option<Doing>,
    /// Names that must be there at the end.
    has: Vec<String>,
    made: u64,
    opened: u64,
}

impl Namer {
    pub(crate) const fn new(number: usize) -> Self {
        Self {
            number,
            wanted: 0,
            attempt: 0,
            session: None,
            sequence: 0,
            doing: None,
            has: Vec::new(),
            made: 0,
            opened: 0,
        }
    }

    pub(crate) const fn is_idle(&self) -> bool {
        self.doing.is_none() && self.wanted == 0
    }
}

fn name(text: &str) -> ValidName {
    match ValidName::new(text.as_bytes()) {
        Ok(name) => name,
        Err(error) => panic!("{text}: {error}"),
    }
}

impl World {
    /// Something to do, or (with the attempt that is waited for) a deadline.
    pub(crate) fn namer(&mut self, at: usize, attempt: u64) {
        if self.namers[at].doing.is_some() && self.namers[at].attempt != attempt {
            return;
        }
        if self.namers[at].doing.is_none() {
            let draw = self.random.below(10);
            let namer = &mut self.namers[at];
            let next = if namer.session.is_none() {
                Doing::OpenSession
            } else if namer.wanted == 0 {
                return;
            } else {
                namer.wanted -= 1;
                namer.sequence += 1;
                match draw {
                    0..=2 if !namer.has.is_empty() => {
                        let place = (namer.sequence % namer.has.len() as u64) as usize;
                        Doing::Unlink(namer.has.remove(place))
                    }
                    3..=4 => Doing::Want(format!("all-{}", namer.sequence / 2)),
                    _ => {
                        namer.made += 1;
                        Doing::Create(format!("mine-{}-{}", namer.number, namer.made))
                    }
                }
            };
            namer.doing = Some(next);
        }
        self.namers[at].attempt += 1;
        let attempt = self.namers[at].attempt;
        self.after(DEADLINE_MS, Event::Namer { namer: at, attempt });
        if self.group.leader.is_none() || self.lost(Self::client_place(), GROUP) {
            return;
        }
        let namer = &mut self.namers[at];
        let Some(doing) = &namer.doing else { return };
        let kind = match doing {
            Doing::OpenSession => {
                namer.opened += 1;
                CommandKind::OpenSession {
                    label: format!("mount-{at}"),
                }
            }
            Doing::Create(text) | Doing::Want(text) | Doing::Unlink(text) => {
                let parent = InodeId::ROOT;
                let op = if matches!(doing, Doing::Unlink(_)) {
                    NamespaceOp::Unlink {
                        parent,
                        name: name(text),
                    }
                } else {
                    NamespaceOp::Symlink {
                        parent,
                        name: name(text),
                        target: vec![b'x'],
                    }
                };
                CommandKind::Change(ChangeRequest {
                    session: namer.session.unwrap_or_default(),
                    sequence: SequenceNumber(namer.sequence),
                    answered_below: SequenceNumber(namer.sequence),
                    caller: Caller { uid: 0, gid: 0 },
                    op,
                    hold: None,
                    shown: None,
                })
            }
        };
        self.propose(kind, Asker::Namer { namer: at, attempt });
    }

    pub(crate) fn name_answered(&mut self, at: usize, attempt: u64, outcome: Outcome) {
        // A late answer to an earlier try of the same change is the same answer.
        if self.namers[at].attempt < attempt {
            return;
        }
        if self.namers[at].attempt != attempt {
            return;
        }
        let Some(doing) = self.namers[at].doing.take() else {
            return;
        };
        self.namers[at].attempt += 1;
        match (doing, outcome) {
            (Doing::OpenSession, Outcome::SessionOpened(session)) => self.namers[at].session = Some(session),
            (doing, Outcome::Change(answer)) => self.name_changed(at, doing, answer),
            (doing, outcome) => self.fail("I13", format!("{doing:?} was answered with {outcome:?}")),
        }
        let gap = 1 + self.random.below(10);
        self.after(
            gap,
            Event::Namer {
                namer: at,
                attempt: u64::MAX,
            },
        );
    }

    fn name_changed(&mut self, at: usize, doing: Doing, answer: Result<NamespaceChange, Error>) {
        match (doing, answer) {
            (Doing::Create(text) | Doing::Want(text), Ok(_)) => self.namers[at].has.push(text),
            (Doing::Want(_), Err(error)) if error.code == ErrorCode::Exists => {}
            (Doing::Unlink(_), Ok(_)) => {}
            (doing, Err(error)) => self.fail(
                "I13",
                format!("{doing:?}, which nobody else touches, was answered with {error}"),
            ),
            (Doing::OpenSession, Ok(_)) => {}
        }
    }

    /// What was answered is there, what was unlinked is not, and nobody else got a name that was given.
    pub(crate) fn judge_names(&mut self) {
        let mut wrong = Vec::new();
        if let Some(state) = self.group.leader_state() {
            let mut all = std::collections::BTreeSet::new();
            for namer in &self.namers {
                for text in &namer.has {
                    if !all.insert(text.clone()) {
                        wrong.push(format!("{text} was given to two mounts"));
                    }
                    let read = NamespaceRead::Lookup {
                        parent: InodeId::ROOT,
                        name: name(text),
                    };
                    let found = state.read(SessionId(1), &[read], dfs_common::wire::namespace::StatFs::default());
                    if !matches!(found.as_deref(), Ok([Ok(_)])) {
                        wrong.push(format!("{text} was made and is not there"));
                    }
                }
            }
            let counts = state.counts().inodes;
            // The root, and what is named.
            if counts != all.len() as u64 + 1 {
                wrong.push(format!("{counts} inodes, {} names were answered", all.len()));
            }
        }
        for detail in wrong {
            self.fail("I13", detail);
        }
    }
}
