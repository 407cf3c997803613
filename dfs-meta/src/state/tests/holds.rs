//! Holds, fencing, and files that were left growing.

use dfs_common::wire::meta::{ChangeRequest, Reservation, Shown};
use dfs_common::wire::namespace::{
    NamespaceAnswer, NamespaceChange, NamespaceOp, NamespaceRead, SetAttributes, StatFs, WriteCommit,
};
use dfs_common::{ErrorCode, Hold, HoldEpoch, InodeId, Layout, Timestamp};

use super::super::testing::{Bench, create_op, name};
use super::TOP;
use crate::command::{CommandKind, Outcome};
use crate::namespace::{Growing, Obstacle};
use crate::store::Store;

impl<S: Store> Bench<S> {
    fn reserve(&mut self, known: InodeId) -> Reservation {
        let session = self.session;
        match self.submit(CommandKind::Reserve {
            session,
            known,
            count: 10,
        }) {
            Outcome::Reserved(reserved) => reserved.unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn told(&mut self, op: NamespaceOp, epoch: HoldEpoch, inode: Option<InodeId>) -> ChangeRequest {
        ChangeRequest {
            hold: Some(epoch),
            shown: Some(Shown {
                time: self.now(),
                inode,
            }),
            ..self.request(op)
        }
    }
}

fn chmod_op(inode: InodeId) -> NamespaceOp {
    NamespaceOp::SetAttributes {
        inode,
        set: SetAttributes {
            mode: Some(0o600),
            ..SetAttributes::default()
        },
        commit: None,
    }
}

#[test]
fn what_a_session_holds_is_nobody_elses_until_its_epoch_ends() {
    let mut bench = Bench::new();
    let holder = bench.session;
    let reserved = bench.reserve(InodeId(0));
    assert_eq!(bench.reserve(InodeId(0)), reserved, "a late copy of the question");
    let hold = Hold {
        session: holder,
        epoch: reserved.epoch,
    };
    let create = bench.told(create_op(TOP, "held"), hold.epoch, Some(reserved.first));
    assert!(matches!(
        bench.send(create),
        Ok(NamespaceChange::Entry { held: true, ref attributes, .. }) if attributes.inode == reserved.first
    ));
    let again = bench.told(create_op(TOP, "again"), hold.epoch, Some(reserved.first));
    assert_eq!(bench.send(again), Err(ErrorCode::InvalidArgument), "no number twice");
    assert!(bench.state.is_held(hold).unwrap());

    // Another session meets the hold, by name and by number, in questions and changes.
    let Outcome::SessionOpened(other) = bench.submit(CommandKind::OpenSession { label: "b".into() }) else {
        panic!("no session");
    };
    let look = NamespaceRead::Lookup {
        parent: TOP,
        name: name("held"),
    };
    let list = NamespaceRead::ReadDirectory {
        inode: TOP,
        cookie: 0,
        limit: 10,
    };
    for read in [look.clone(), list] {
        let answer = bench.state.read(other, std::slice::from_ref(&read), StatFs::default());
        assert_eq!(answer.unwrap_err(), Obstacle::Held(hold), "{read:?}");
        assert!(bench.state.read(holder, &[read], StatFs::default()).is_ok());
    }
    bench.session = other;
    let unlink = bench.request(NamespaceOp::Unlink {
        parent: TOP,
        name: name("held"),
    });
    let fine = bench.request(create_op(TOP, "fine"));
    let mut chmod = bench.request(chmod_op(reserved.first));
    chmod.answered_below = fine.sequence;
    for request in [unlink, chmod.clone()] {
        assert_eq!(
            bench.submit(CommandKind::Change(request)),
            Outcome::Obstructed(Obstacle::Held(hold))
        );
    }
    // Of several, those before it are done, once.
    let several = CommandKind::Changes(vec![fine, chmod]);
    assert_eq!(bench.submit(several.clone()), Outcome::Obstructed(Obstacle::Held(hold)));

    assert_eq!(
        bench.submit(CommandKind::Release(hold)),
        Outcome::Released(hold.epoch.next())
    );
    assert!(!bench.state.is_held(hold).unwrap());
    match bench.submit(several) {
        Outcome::Changes(answers) => assert!(answers.iter().all(Result::is_ok), "{answers:?}"),
        other => panic!("{other:?}"),
    }

    // What the holder tells now comes too late, but a new name does no harm.
    bench.session = holder;
    let late = bench.told(chmod_op(reserved.first), hold.epoch, None);
    assert_eq!(bench.send(late.clone()), Err(ErrorCode::HoldLost));
    assert_eq!(bench.send(late), Err(ErrorCode::HoldLost));
    let late = bench.told(create_op(TOP, "late"), hold.epoch, Some(reserved.first.next()));
    assert!(matches!(
        bench.send(late),
        Ok(NamespaceChange::Entry { held: false, .. })
    ));
    assert_eq!(
        bench.submit(CommandKind::Release(hold)),
        Outcome::Released(hold.epoch.next())
    );
    let more = bench.reserve(reserved.end);
    assert_eq!(more.epoch, hold.epoch.next());
    assert!(more.first >= reserved.end);
    let sessions = vec![holder];
    bench.submit(CommandKind::EndSessions { sessions });
    let gone = Hold {
        session: holder,
        epoch: more.epoch,
    };
    assert!(!bench.state.is_held(gone).unwrap());
}

#[test]
fn what_was_left_growing_is_not_looked_at_before_its_length_is_found() {
    let mut bench = Bench::new();
    let holder = bench.session;
    let reserved = bench.reserve(InodeId(0));
    let hold = Hold {
        session: holder,
        epoch: reserved.epoch,
    };
    let create = bench.told(create_op(TOP, "log"), hold.epoch, Some(reserved.first));
    bench.send(create).unwrap();
    let inode = reserved.first;
    let commit = |to, growing| NamespaceOp::CommitWrite {
        inode,
        commit: WriteCommit {
            sparse: false,
            extend_to_bytes: to,
            mtime: to.map(|_| Timestamp::from_nanos(5)),
            clear_suid: false,
            growing,
            cut: dfs_common::CutEpoch::NONE,
        },
    };
    let growing = bench.told(commit(Some(100), true), hold.epoch, None);
    bench.send(growing).unwrap();
    let read = [NamespaceRead::GetAttributes { inode }];
    let look = |bench: &Bench, asker| bench.state.read(asker, &read, StatFs::default());
    let Outcome::SessionOpened(other) = bench.submit(CommandKind::OpenSession { label: "b".into() }) else {
        panic!("no session");
    };
    // The holder knows; others meet the hold first.
    assert!(look(&bench, holder).is_ok());
    assert_eq!(look(&bench, other).unwrap_err(), Obstacle::Held(hold));

    // The hold is over, so even who held it knows no more than anybody.
    bench.submit(CommandKind::Release(hold));
    let Obstacle::Growing(left) = look(&bench, other).unwrap_err() else {
        panic!("it is held");
    };
    assert_eq!((left.inode, left.hold, left.length_bytes), (inode, hold, 100));
    assert_eq!(look(&bench, holder).unwrap_err(), Obstacle::Growing(left));
    let unlink = bench.request(NamespaceOp::Unlink {
        parent: TOP,
        name: name("log"),
    });
    assert_eq!(
        bench.submit(CommandKind::Change(unlink)),
        Outcome::Obstructed(Obstacle::Growing(left))
    );

    let find = |bench: &mut Bench, length_bytes| {
        bench.submit(CommandKind::FoundLength(Growing { length_bytes, ..left }));
        match look(bench, other).map(|mut answers| answers.remove(0)) {
            Ok(Ok(NamespaceAnswer::Attributes(found))) => (found.length_bytes, found.mtime.nanos, found.change),
            other => panic!("{other:?}"),
        }
    };
    let found = find(&mut bench, 8_192);
    assert_eq!((found.0, found.1), (8_192, 5));
    assert_eq!(find(&mut bench, 9_000), found, "the second to find it changes nothing");

    // It grows no more for who does not hold it, whatever it says; and a bare word moves no time.
    bench.session = other;
    let request = bench.request(commit(None, true));
    bench.send(request).unwrap();
    assert_eq!(find(&mut bench, 9_000), found);
    // The old holder's late word is refused.
    bench.session = holder;
    let late = bench.told(commit(Some(20_000), false), hold.epoch, None);
    assert_eq!(bench.send(late), Err(ErrorCode::HoldLost));
}

#[test]
fn a_length_is_not_found_while_the_hold_lasts() {
    let mut bench = Bench::new();
    let reserved = bench.reserve(InodeId(0));
    let (session, inode) = (bench.session, reserved.first);
    let hold = Hold {
        session,
        epoch: reserved.epoch,
    };
    let create = bench.told(create_op(TOP, "log"), hold.epoch, Some(inode));
    bench.send(create).unwrap();
    let grow = |growing| NamespaceOp::CommitWrite {
        inode,
        commit: WriteCommit {
            sparse: false,
            extend_to_bytes: Some(100),
            mtime: None,
            clear_suid: false,
            growing,
            cut: dfs_common::CutEpoch::NONE,
        },
    };
    let length = |bench: &Bench| bench.stat(inode).unwrap().length_bytes;
    let growing = Growing {
        inode,
        hold,
        layout: Layout::new(bench.state.routing().default_table.unwrap(), inode.0 as u32),
        length_bytes: 5_000,
    };
    let request = bench.told(grow(true), hold.epoch, None);
    bench.send(request).unwrap();
    bench.submit(CommandKind::FoundLength(growing));
    assert_eq!(length(&bench), 100, "it is still held");
    // The last word was said before the hold ended: there is nothing to find.
    let request = bench.told(grow(false), hold.epoch, None);
    bench.send(request).unwrap();
    bench.submit(CommandKind::Release(hold));
    assert_eq!(length(&bench), 100);
    bench.submit(CommandKind::FoundLength(growing));
    assert_eq!(length(&bench), 100);
}
