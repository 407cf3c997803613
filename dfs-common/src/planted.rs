//! Known bugs that can be planted, to see that they are found: in the cores by the simulator, in the client by its model test.
//!
//! Without the feature `planted` (which only the builds of these two turn on) [`is`] is a constant `false`, so the compiler
//! removes every plant: no shipped program holds one.

macro_rules! bugs {
    ($cores:ident { $($bug:ident = $name:literal;)* } $client:ident { $($of_client:ident = $named:literal;)* }) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Bug {
            $($bug,)*
            $($of_client,)*
        }

        impl Bug {
            /// In the cores of the servers.
            pub const $cores: &'static [Self] = &[$(Self::$bug),*];
            /// In the client.
            pub const $client: &'static [Self] = &[$(Self::$of_client),*];

            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$bug => $name,)*
                    $(Self::$of_client => $named,)*
                }
            }
        }
    };
}

bugs! {
    EVERY {
        SkipFsync = "skip an fsync";
        FsyncRetried = "fsync again after EIO, and believe it";
        PoisonIgnored = "a poisoned store goes on";
        EmptiesTheLastCopy = "a condemned store is emptied whoever else has what is in it";
        TornTailAccepted = "records are not checked when the log is read back";
        ChecksumIgnored = "blocks are not checked when they are read";
        StaleEpochServed = "an old epoch's request is served";
        EpochNotRaised = "a death does not raise the epoch";
        EarlyAck = "acknowledged before it is on every member";
        QuorumOffByOne = "quorum is one less";
        StaleTailServes = "a read is answered without a look at the lease";
        ReadUncommitted = "a read does not wait for the commit";
        AnswerWithoutLease = "the lease is not checked at the answer";
        FenceTooLate = "a node believes in its lease for too long";
        ConditionIgnored = "the condition of a write is not checked";
        ChunkDedupeForgets = "a chunk does not look up what it remembers";
        CopyWithoutMemory = "a copy leaves out the remembered requests";
        ResyncMissesTruncate = "a truncate during a resync is not forwarded";
        ResyncMissesRemove = "a remove during a resync is not forwarded";
        ResyncSkipsChunk = "the list of a resync skips a chunk";
        CopyNotHeld = "a chunk changes while it is copied";
        OlderCopyAccepted = "a late older copy replaces a newer chunk";
        StaleServerServes = "any returning member may bring a chain back";
        StaleResyncAccepted = "the end of a resync of an older epoch is believed";
        UnsettledServes = "a second member counts as complete before it is";
        SettledUnheard = "a chain is called settled before its second member has caught up";
        SettledUnflushed = "a chain is called settled before its second member's disk has caught up";
        VouchIgnored = "a sync does not ask whether what it means was lost";
        BehindServed = "a read at ONE may be older than what its client saw";
        PendingAllShown = "a read at ONE shows a write at ALL before it is everywhere";
        StableEarly = "a member forgets what those after the next one do not have";
        SyncAlone = "a sync at QUORUM reaches one disk";
        RestUnheeded = "a head forgets that its chain rests";
        RestUnflushed = "a chain rests before its disks have everything";
        CutUnchecked = "a chunk takes what comes from before its newest cut";
        LateRangeTakesAll = "a late removal of a range takes what is newer";
        CopyWithoutCut = "a copy leaves out the truncation epoch";
        RecoveryForgetsCut = "the truncation epoch is not read back from the log";
        NameDedupeForgets = "the answer of a change is not remembered";
        SnapshotWithoutDedupe = "a snapshot leaves out the remembered answers";
    }
    CLIENT {
        DebtDropped = "a commit pays what was written while it was under way";
        LengthUntold = "a write's length is not told";
        OldestWins = "of what is written again the oldest is on top";
        ReplayUnsynced = "what is written again is not synced";
        SyncSkipped = "fsync leaves a chain out";
        ForeignSyncSkipped = "fsync does not sync what others wrote";
        StaleAheadKept = "what was read ahead outlives another mount's close";
        PagesKept = "the kernel may always keep its pages";
        ErrorForgotten = "the error of a late write is not told";
        GapNotCleared = "a file grows over what a dead mount left";
        StaleCutIgnored = "a write that another's truncation refused counts as written";
        ConditionDropped = "a half-written block is sent without its condition";
        LeaseUnheeded = "a mount that the group has given up goes on";
        ArrivalUnwaited = "fsync does not wait for what is on its way";
    }
}

#[cfg(feature = "planted")]
mod active {
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::Bug;

    const NONE: u8 = u8::MAX;
    static PLANTED: AtomicU8 = AtomicU8::new(NONE);

    /// Plants a bug (or none) for the whole process.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.store(bug.map_or(NONE, |bug| bug as u8), Ordering::SeqCst);
    }

    /// Whether this bug is planted.
    pub fn is(bug: Bug) -> bool {
        PLANTED.load(Ordering::Relaxed) == bug as u8
    }
}

#[cfg(feature = "planted")]
pub use active::{is, plant};

/// Whether this bug is planted: never, in this build.
#[cfg(not(feature = "planted"))]
#[must_use]
pub const fn is(_: Bug) -> bool {
    false
}

#[cfg(all(test, not(feature = "planted")))]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_planted_in_a_shipped_build() {
        const { assert!(!is(Bug::SkipFsync)) };
        assert!(Bug::EVERY.iter().chain(Bug::CLIENT).all(|&bug| !is(bug)));
    }
}
