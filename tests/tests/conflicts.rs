//! Divergence over real processes: a head is cut off, acknowledges at ONE, and comes back when its chain has gone on without it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use dfs_tests::hosts::address;
use dfs_tests::{HostCluster, dfs};
use serde_json::Value;

const BLOCK: usize = 4096;
const HEALED_WITHIN: Duration = Duration::from_mins(1);

/// Blocks of a file at the beginning.
const BLOCKS: u64 = 8;

/// What both write; what only the head that is cut off writes: over what everybody has, and behind the end.
const BOTH: u64 = 0;
const AHEAD: [u64; 2] = [5, BLOCKS];

const BEFORE: u8 = b'.';
const OLD_HEAD: u8 = b'o';
const NEW_HEAD: u8 = b'n';

/// A file and what is to be done about its conflict.
struct Case {
    name: &'static str,
    policy: &'static str,
    /// Whether the new head writes as well.
    conflicts: bool,
}

const CASES: [Case; 7] = [
    case("lww", "lww", true),
    case("keep-both", "keep-both", true),
    case("merged", "app", true),
    case("other", "app", true),
    case("current", "app", true),
    case("by-hand", "app", true),
    case("ahead", "keep-both", false),
];

const fn case(name: &'static str, policy: &'static str, conflicts: bool) -> Case {
    Case {
        name,
        policy,
        conflicts,
    }
}

fn place(cluster: &HostCluster, at: &Path) -> Value {
    let place = cluster
        .admin(&["where", at.to_str().unwrap(), "-o", "json"])
        .expect_ok("where");
    serde_json::from_str(&place.stdout).unwrap()
}

fn head_of(place: &Value) -> String {
    let members = &place["chunks"][0]["chain"]["members"];
    members[0]["name"].as_str().unwrap().to_owned()
}

fn write_block(file: &File, block: u64, byte: u8) {
    file.write_all_at(&[byte; BLOCK], block * BLOCK as u64).unwrap();
}

fn content(at: &Path) -> String {
    let bytes = fs::read(at).unwrap();
    let blocks = bytes.chunks(BLOCK).map(|block| {
        assert!(
            block.iter().all(|byte| *byte == block[0]),
            "{}: a torn block",
            at.display()
        );
        char::from(block[0])
    });
    blocks.collect()
}

fn expected(both: u8) -> String {
    (0..=BLOCKS)
        .map(|block| match block {
            BOTH => char::from(both),
            block if AHEAD.contains(&block) => char::from(OLD_HEAD),
            _ => char::from(BEFORE),
        })
        .collect()
}

fn conflicts(cluster: &HostCluster) -> Vec<Value> {
    let listed = cluster
        .admin(&["conflicts", "list", "--all", "-o", "json"])
        .expect_ok("conflicts list");
    let listed: Value = serde_json::from_str(&listed.stdout).unwrap();
    listed.as_array().unwrap().clone()
}

/// The conflict of this file, once it is as wanted.
#[track_caller]
fn conflict(cluster: &HostCluster, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let start = Instant::now();
    loop {
        let all = conflicts(cluster);
        let found = all.iter().find(|found| {
            found["path"]
                .as_str()
                .is_some_and(|path| path.ends_with(&format!("/{name}/file")))
        });
        match found {
            Some(found) if wanted(found) => return found.clone(),
            _ if start.elapsed() > Duration::from_secs(20) => panic!("{name}: {all:#?}\n{}", cluster.logs()),
            _ => thread::sleep(Duration::from_millis(200)),
        }
    }
}

#[test]
fn a_head_that_was_cut_off_and_comes_back_loses_nothing() {
    divergence(|_, _| {});
}

#[test]
fn a_head_that_was_cut_off_and_died_loses_nothing() {
    divergence(|cluster, head| {
        cluster.kill(head);
        cluster.start(head);
    });
}

/// `before_it_returns`: what else befalls the head before its cable is mended.
fn divergence(before_it_returns: impl FnOnce(&mut HostCluster, usize)) {
    let mut cluster = HostCluster::up(2, false);
    let mounts = cluster.mount_points();
    let mut head = None;
    let files: Vec<(PathBuf, File)> = CASES
        .iter()
        .map(|case| {
            let directory = mounts[0].join(case.name);
            fs::create_dir(&directory).unwrap();
            let policy = ["--write", "ONE", "--conflict", case.policy];
            let at = directory.to_str().unwrap();
            let _ = dfs(["policy", "set", at].iter().chain(&policy)).expect_ok("policy set");
            // All at the head that the first one has: it is tried until one lies there.
            let found = (0..200)
                .find_map(|attempt| {
                    let at = directory.join(format!("attempt-{attempt}"));
                    fs::write(&at, vec![BEFORE; BLOCK * BLOCKS as usize]).unwrap();
                    let its_head = head_of(&place(&cluster, &at));
                    if head.get_or_insert_with(|| its_head.clone()) == &its_head {
                        return Some(at);
                    }
                    fs::remove_file(&at).unwrap();
                    None
                })
                .expect("of so many files one lies there");
            let at = directory.join("file");
            fs::rename(found, &at).unwrap();
            let file = OpenOptions::new().write(true).open(&at).unwrap();
            file.sync_all().unwrap();
            (at, file)
        })
        .collect();
    let head = cluster.index(&head.unwrap());
    thread::sleep(Duration::from_millis(500));

    // Nobody but the mounts hears it, and for half a second it does not know.
    let host = cluster.servers[head].host;
    let others = (1..=6).filter(|other| *other != host).map(address);
    let (incoming, outgoing) = others
        .map(|other| {
            (
                format!("ip saddr {other} counter drop"),
                format!("ip daddr {other} counter drop"),
            )
        })
        .unzip::<_, _, Vec<_>, Vec<_>>();
    cluster.hosts.set_rules(host, &incoming, &outgoing);
    let cut = Instant::now();
    for (_, file) in &files {
        for block in AHEAD.into_iter().chain([BOTH]) {
            write_block(file, block, OLD_HEAD);
        }
        file.sync_all().unwrap();
    }
    // Before its lease ended, or nobody would have acknowledged anything.
    assert!(cut.elapsed() < Duration::from_secs(1), "{:?}", cut.elapsed());

    // The chain goes on without it, and the other mount writes there.
    let moved = Instant::now();
    while head_of(&place(&cluster, &files[0].0)) == cluster.servers[head].name {
        assert!(moved.elapsed() < HEALED_WITHIN, "{}", cluster.logs());
        thread::sleep(Duration::from_millis(50));
    }
    for ((at, _), case) in files.iter().zip(&CASES) {
        let there = mounts[1].join(at.strip_prefix(&mounts[0]).unwrap());
        if case.conflicts {
            let file = OpenOptions::new().write(true).open(there).unwrap();
            write_block(&file, BOTH, NEW_HEAD);
            file.sync_all().unwrap();
        } else {
            assert_ne!(
                content(&there),
                expected(OLD_HEAD),
                "it had not gone out alone: nothing is shown"
            );
        }
    }
    drop(files);

    before_it_returns(&mut cluster, head);
    cluster.hosts.clear_rules(host);
    cluster.wait_healthy(HEALED_WITHIN).unwrap();
    check(&cluster);
}

fn check(cluster: &HostCluster) {
    let mounts = cluster.mount_points();
    let at = |name: &str| mounts[1].join(name).join("file");
    for case in &CASES {
        let both = if case.conflicts { NEW_HEAD } else { OLD_HEAD };
        assert_eq!(content(&at(case.name)), expected(both), "{}", case.name);
    }
    assert!(
        !conflicts(cluster)
            .iter()
            .any(|found| found["path"].as_str().is_some_and(|path| path.contains("/ahead/"))),
        "what is merely ahead is no conflict"
    );

    let lww = conflict(cluster, "lww", |found| found["state"] == "settled");
    assert_eq!(lww["settled"]["how"], "current");
    assert_eq!(lww["ranges"][0]["length"], BLOCK);

    // A mount does that by itself.
    let both = conflict(cluster, "keep-both", |found| found["state"] == "settled");
    assert_eq!(both["settled"]["how"], "both");
    let sibling = mounts[0]
        .join("keep-both")
        .join(format!("file.conflict-{}", both["id"]));
    assert_eq!(content(&sibling), expected(OLD_HEAD));
    assert_eq!(content(&at("keep-both")), expected(NEW_HEAD));

    let id = |name: &str| conflict(cluster, name, |found| found["state"] == "open")["id"].to_string();
    let resolve = |name: &str, arguments: &[&str]| {
        let id = id(name);
        let arguments: Vec<&str> = ["conflicts", "resolve", &id]
            .into_iter()
            .chain(arguments.iter().copied())
            .collect();
        (cluster.admin(&arguments), id)
    };
    let refused = resolve("merged", &["--run", "false"]).0;
    assert!(!refused.ok() && refused.stderr.contains("exit"), "{}", refused.stderr);
    let merge = "merge() { cat \"$1\" \"$2\" > \"$3\"; }; merge";
    let _ = resolve("merged", &["--run", merge]).0.expect_ok("resolve --run");
    assert_eq!(content(&at("merged")), expected(NEW_HEAD) + &expected(OLD_HEAD));
    let _ = resolve("other", &["--keep", "other"])
        .0
        .expect_ok("resolve --keep other");
    assert_eq!(content(&at("other")), expected(OLD_HEAD));
    let _ = resolve("current", &["--keep", "current"])
        .0
        .expect_ok("resolve --keep current");
    assert_eq!(content(&at("current")), expected(NEW_HEAD));
    let (kept, number) = resolve("by-hand", &["--keep", "both"]);
    let _ = kept.expect_ok("resolve --keep both");
    let sibling = mounts[1].join("by-hand").join(format!("file.conflict-{number}"));
    assert_eq!(content(&sibling), expected(OLD_HEAD));
    let again = cluster.admin(&["conflicts", "resolve", &number, "--keep", "other"]);
    assert!(!again.ok() && again.stderr.contains("settled"), "{}", again.stderr);
    for found in conflicts(cluster) {
        assert_eq!(found["state"], "settled", "{found:#?}");
    }
    let everywhere = mounts[0].to_str().unwrap();
    let _ = cluster.admin(&["verify", everywhere]).expect_ok("dfs verify");
    let verified = cluster.admin(&["chain", "verify", "--deep"]);
    assert!(verified.ok(), "{}{}", verified.stdout, verified.stderr);
}
