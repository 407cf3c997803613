//! A log that is appended to and synced costs no word to the metadata group; its length is right all the same, whoever
//! looks and whoever dies.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dfs_tests::{DevCluster, dfs, shell};
use rustix::process::{Pid, Signal, kill_process};

/// Record `number` of a log: it says which one it is, all the way.
fn record(number: usize, size: usize) -> Vec<u8> {
    vec![(number % 251) as u8; size]
}

fn append(file: &mut File, records: std::ops::Range<usize>, size: usize) {
    for number in records {
        file.write_all(&record(number, size)).unwrap();
        file.sync_data().unwrap();
    }
}

/// At least `count` records, and nothing but records.
#[track_caller]
fn check(path: &Path, count: usize, size: usize) {
    let content = fs::read(path).unwrap();
    assert!(
        content.len() >= count * size,
        "{}: {} bytes of {}",
        path.display(),
        content.len(),
        count * size
    );
    for (number, found) in content.chunks(size).enumerate().take(count) {
        assert!(found == record(number, size), "{}: record {number}", path.display());
    }
}

fn mount_of(cluster: &DevCluster) -> Pid {
    Pid::from_raw(cluster.pid("mount").cast_signed()).unwrap()
}

fn lengths_found(cluster: &DevCluster) -> usize {
    shell(&format!(
        "cat {}/log/meta-*.log | grep -c 'writer went without a word is found' || true",
        cluster.data.display()
    ))
    .trim()
    .parse()
    .unwrap()
}

#[test]
fn what_was_synced_without_a_word_survives_its_mount() {
    let cluster = DevCluster::up();
    // No process is started below: it would close its copies of the files, which is a last word about each.
    let pid = mount_of(&cluster);
    // Small records, records over several blocks, over several chunks, and one log with a hole.
    let sizes = [100, 4_096, 70_001, 1_500_000];
    let mut files: Vec<File> = Vec::new();
    for size in sizes {
        let mut file = File::create(cluster.mount.join(format!("log-{size}"))).unwrap();
        append(&mut file, 0..12, size);
        files.push(file);
    }
    let mut sparse = File::create(cluster.mount.join("sparse")).unwrap();
    append(&mut sparse, 0..4, 10);
    sparse.seek(SeekFrom::Start(900_000_000)).unwrap();
    append(&mut sparse, 4..6, 10);
    // One that was cut before its last records.
    let mut cut = File::create(cluster.mount.join("cut")).unwrap();
    append(&mut cut, 0..40, 100_000);
    cut.set_len(150_000).unwrap();
    cut.seek(SeekFrom::End(0)).unwrap();
    append(&mut cut, 7..12, 10);
    // And one that was closed in order: nothing is to be found of it.
    let mut closed = File::create(cluster.mount.join("closed")).unwrap();
    append(&mut closed, 0..12, 1_000);
    drop(closed);
    // Its last word is on its way for some milliseconds.
    thread::sleep(Duration::from_millis(100));

    kill_process(pid, Signal::KILL).unwrap();
    drop((files, sparse, cut));
    // A killed process takes a moment to end, longer on a busy machine.
    let (killed, data) = (Instant::now(), cluster.data.display().to_string());
    let _ = loop {
        let started = dfs(["dev", "start", "mount", "--data", &data]);
        let still_ends = !started.ok() && started.stderr.contains("is running already");
        if !still_ends || killed.elapsed() > Duration::from_secs(10) {
            break started.expect_ok("the mount starts again");
        }
        thread::sleep(Duration::from_millis(20));
    };
    for size in sizes {
        check(&cluster.mount.join(format!("log-{size}")), 12, size);
        assert_eq!(
            fs::metadata(cluster.mount.join(format!("log-{size}"))).unwrap().len(),
            12 * size as u64
        );
    }
    assert_eq!(fs::metadata(cluster.mount.join("sparse")).unwrap().len(), 900_000_020);
    assert_eq!(fs::metadata(cluster.mount.join("cut")).unwrap().len(), 150_050);
    assert_eq!(fs::metadata(cluster.mount.join("closed")).unwrap().len(), 12_000);
    // A truncation goes through the group, so the length of the one that was cut was told.
    assert_eq!(lengths_found(&cluster), 5, "of those that were open");
    // They are files like any other now.
    for size in sizes {
        let path = cluster.mount.join(format!("log-{size}"));
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        append(&mut file, 12..15, size);
        check(&path, 15, size);
    }
    assert_eq!(lengths_found(&cluster), 5);
    cluster.verify_replicas();
}

#[test]
fn another_mount_sees_every_synced_record_and_its_time() {
    let mut cluster = DevCluster::up();
    let (a, b) = (cluster.mount.clone(), cluster.mount_again());
    for round in 0..3 {
        let name = format!("log-{round}");
        let mut file = File::create(a.join(&name)).unwrap();
        append(&mut file, 0..30, 1_000);
        let seen = fs::metadata(b.join(&name)).unwrap();
        let own = file.metadata().unwrap();
        assert_eq!(
            (seen.len(), seen.mtime(), seen.mtime_nsec()),
            (30_000, own.mtime(), own.mtime_nsec())
        );
        check(&b.join(&name), 30, 1_000);
        // The second mount cuts it, the first goes on at the end that it has now, whatever it had not told.
        append(&mut file, 30..40, 1_000);
        check(&b.join(&name), 40, 1_000);
        OpenOptions::new()
            .write(true)
            .open(b.join(&name))
            .unwrap()
            .set_len(5_000)
            .unwrap();
        thread::sleep(Duration::from_millis(1_300));
        assert_eq!(fs::metadata(b.join(&name)).unwrap().len(), 5_000);
        assert_eq!(file.metadata().unwrap().len(), 5_000);
        fs::remove_file(b.join(&name)).unwrap();
    }
    assert_eq!(lengths_found(&cluster), 0, "who lives says it by himself");
}

#[test]
fn a_writer_that_stands_still_does_not_undo_what_others_did() {
    let mut cluster = DevCluster::up();
    let (a, b) = (cluster.mount.clone(), cluster.mount_again());
    let pid = mount_of(&cluster);
    let mut cut = File::create(a.join("cut")).unwrap();
    append(&mut cut, 0..30, 1_000);
    let mut removed = File::create(a.join("removed")).unwrap();
    append(&mut removed, 0..30, 1_000);
    let mut longer = File::create(a.join("longer")).unwrap();
    append(&mut longer, 0..30, 1_000);
    kill_process(pid, Signal::STOP).unwrap();
    let start = Instant::now();
    let others = thread::spawn(move || {
        check(&b.join("cut"), 30, 1_000);
        fs::write(b.join("cut"), b"anew").unwrap();
        fs::remove_file(b.join("removed")).unwrap();
        let mut more = OpenOptions::new().append(true).open(b.join("longer")).unwrap();
        append(&mut more, 30..40, 1_000);
        b
    });
    while !others.is_finished() && start.elapsed() < Duration::from_secs(20) {
        thread::sleep(Duration::from_millis(20));
    }
    let waited = start.elapsed();
    kill_process(pid, Signal::CONT).unwrap();
    let b = others.join().unwrap();
    assert!(waited < Duration::from_secs(8), "{waited:?}");
    // Time for what the first mount had not told.
    thread::sleep(Duration::from_millis(2_500));
    assert_eq!(fs::read(b.join("cut")).unwrap(), b"anew");
    assert_eq!(fs::read(a.join("cut")).unwrap(), b"anew");
    assert!(fs::metadata(a.join("removed")).is_err());
    check(&a.join("longer"), 40, 1_000);
    // Its open file is where the others left it.
    assert_eq!(longer.metadata().unwrap().len(), 40_000);
    drop((cut, removed, longer));
    assert_eq!(fs::metadata(b.join("longer")).unwrap().len(), 40_000);
    assert_eq!(fs::read(b.join("cut")).unwrap(), b"anew");
}

/// What fsync promised just before or after its mount stood still (as a stunned virtual machine
/// does) is there, though others took the hold that the promise was made under.
#[test]
fn what_was_synced_around_a_standstill_stays() {
    const LOGS: usize = 6;
    let mut cluster = DevCluster::up();
    let (a, b) = (cluster.mount.clone(), cluster.mount_again());
    let pid = mount_of(&cluster);
    let (stop, synced) = (AtomicBool::new(false), [const { AtomicUsize::new(0) }; LOGS]);
    let path = |of: &Path, log: usize| of.join(format!("log-{log}"));
    thread::scope(|scope| {
        for (log, synced) in synced.iter().enumerate() {
            let mut file = File::create(path(&a, log)).unwrap();
            let stop = &stop;
            scope.spawn(move || {
                for number in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    append(&mut file, number..number + 1, 1_000);
                    synced.store(number + 1, Ordering::SeqCst);
                }
            });
        }
        for round in 0..4 {
            thread::sleep(Duration::from_millis(900 + 13 * round));
            kill_process(pid, Signal::STOP).unwrap();
            let before: Vec<usize> = synced.iter().map(|synced| synced.load(Ordering::SeqCst)).collect();
            let from = Instant::now();
            for (log, &synced) in before.iter().enumerate() {
                check(&path(&b, log), synced, 1_000);
            }
            thread::sleep(Duration::from_secs(2).saturating_sub(from.elapsed()));
            kill_process(pid, Signal::CONT).unwrap();
            thread::sleep(Duration::from_millis(5 * round));
            for (log, synced) in synced.iter().enumerate() {
                check(&path(&b, log), synced.load(Ordering::SeqCst), 1_000);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    for (log, synced) in synced.iter().enumerate() {
        let synced = synced.load(Ordering::SeqCst);
        assert!(synced > 20, "log {log}: only {synced} records");
        check(&path(&b, log), synced, 1_000);
    }
}
