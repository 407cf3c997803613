//! What stat(2) shows is true at once, and what read(2) shows from open to open: to the mount that made the change, and of
//! files to every other mount.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fs::{self, File, FileTimes, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use dfs_tests::DevCluster;

const ROUNDS: u32 = 60;

#[test]
fn two_mounts_see_each_others_files_as_they_are() {
    let mut cluster = DevCluster::up();
    let (a, b) = (cluster.mount.clone(), cluster.mount_again());
    for round in 0..ROUNDS {
        let name = format!("file-{round}");
        let (here, there) = (a.join(&name), b.join(&name));
        assert!(fs::metadata(&there).is_err());
        fs::write(&here, vec![1; 1000 + round as usize]).unwrap();
        assert_eq!(fs::metadata(&there).unwrap().len(), u64::from(1000 + round));
        let mut more = OpenOptions::new().append(true).open(&there).unwrap();
        more.write_all(&[2; 10]).unwrap();
        drop(more);
        assert_eq!(fs::metadata(&here).unwrap().len(), u64::from(1010 + round));
        fs::set_permissions(&there, Permissions::from_mode(0o600 + round % 8)).unwrap();
        assert_eq!(fs::metadata(&here).unwrap().mode() & 0o777, 0o600 + round % 8);
        // An open file too.
        let open = File::open(&here).unwrap();
        OpenOptions::new().write(true).open(&there).unwrap().set_len(5).unwrap();
        assert_eq!(open.metadata().unwrap().len(), 5);
        fs::hard_link(&there, b.join(format!("{name}-link"))).unwrap();
        assert_eq!(open.metadata().unwrap().nlink(), 2);
        fs::rename(&there, b.join(format!("{name}-moved"))).unwrap();
        assert!(fs::metadata(&here).is_err());
        fs::remove_file(a.join(format!("{name}-moved"))).unwrap();
        assert_eq!(open.metadata().unwrap().nlink(), 1);
    }
}

#[test]
fn one_mount_sees_its_own_directories_as_they_are() {
    let cluster = DevCluster::up();
    let at = cluster.mount.join("dir");
    fs::create_dir(&at).unwrap();
    let mut before = fs::metadata(&at).unwrap();
    for round in 0..ROUNDS {
        let name = |what: &str| at.join(format!("{what}-{round}"));
        let mut step = |what: &str, subdirectories: u64| {
            let now = fs::metadata(&at).unwrap();
            assert_eq!(now.nlink(), before.nlink() + subdirectories, "{what}");
            let times = |of: &fs::Metadata| (of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec());
            assert!(times(&now) > times(&before), "{what} moves the directory's times");
            before = now;
        };
        drop(File::create(name("file")).unwrap());
        step("create", 0);
        fs::create_dir(name("sub")).unwrap();
        step("mkdir", 1);
        fs::rename(name("file"), name("moved")).unwrap();
        step("rename", 0);
        fs::set_permissions(&at, Permissions::from_mode(0o700 + round % 8)).unwrap();
        assert_eq!(fs::metadata(&at).unwrap().mode() & 0o777, 0o700 + round % 8);
        fs::remove_file(name("moved")).unwrap();
        assert_eq!(fs::metadata(&at).unwrap().mode() & 0o777, 0o700 + round % 8);
        // Moving a directory changes it as well.
        let sub = fs::metadata(name("sub")).unwrap();
        drop(File::create(name("sub").join("inner")).unwrap());
        fs::rename(name("sub"), name("sub-moved")).unwrap();
        let moved = fs::metadata(name("sub-moved")).unwrap();
        assert!((moved.ctime(), moved.ctime_nsec()) > (sub.ctime(), sub.ctime_nsec()));
        before = fs::metadata(&at).unwrap();
    }
}

/// Times that were set on a file being written are kept by the mount, told to the others, and survive both.
#[test]
fn times_of_a_file_being_written_stand() {
    let mut cluster = DevCluster::up();
    let (a, b) = (cluster.mount.clone(), cluster.mount_again());
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    for round in 0..20 {
        let name = format!("timed-{round}");
        let mut file = File::create(a.join(&name)).unwrap();
        file.write_all(&[7; 5000]).unwrap();
        file.set_times(FileTimes::new().set_modified(at(1_000)).set_accessed(at(2_000)))
            .unwrap();
        let shown = |metadata: fs::Metadata| (metadata.len(), metadata.mtime(), metadata.atime());
        assert_eq!(shown(file.metadata().unwrap()), (5000, 1_000, 2_000));
        file.set_permissions(Permissions::from_mode(0o640)).unwrap();
        assert_eq!(shown(file.metadata().unwrap()), (5000, 1_000, 2_000));
        if round % 2 == 0 {
            file.sync_all().unwrap();
        }
        drop(file);
        assert_eq!(shown(fs::metadata(a.join(&name)).unwrap()), (5000, 1_000, 2_000));
        assert_eq!(shown(fs::metadata(b.join(&name)).unwrap()), (5000, 1_000, 2_000));
        // A later write is a later write.
        let mut file = OpenOptions::new().append(true).open(a.join(&name)).unwrap();
        file.write_all(b"more").unwrap();
        file.set_times(FileTimes::new().set_accessed(at(3_000))).unwrap();
        drop(file);
        let metadata = fs::metadata(b.join(&name)).unwrap();
        assert_eq!((metadata.len(), metadata.atime()), (5004, 3_000));
        assert!(metadata.mtime() > 1_000_000);
        assert_eq!(metadata.mode() & 0o777, 0o640);
    }
}

/// Backup programs and git take a new ctime for a change.
#[test]
fn a_plain_write_gives_one_time_and_keeps_it() {
    let mut cluster = DevCluster::up();
    let (a, b) = (cluster.mount.clone(), cluster.mount_again());
    let times = |at: &Path| {
        let found = fs::metadata(at).unwrap();
        let modified = (found.mtime(), found.mtime_nsec());
        assert_eq!(modified, (found.ctime(), found.ctime_nsec()), "{}", at.display());
        modified
    };
    let names = ["closed", "synced", "open"];
    let mut files = names.map(|name| File::create(a.join(name)).unwrap());
    for (file, name) in files.iter_mut().zip(names) {
        file.write_all(b"once").unwrap();
        if name == "synced" {
            file.sync_all().unwrap();
        }
    }
    let [closed, _synced, _open] = files;
    drop(closed);
    let seen = names.map(|name| times(&a.join(name)));
    for _ in 0..6 {
        std::thread::sleep(Duration::from_millis(400));
        assert_eq!(names.map(|name| times(&a.join(name))), seen);
    }
    assert_eq!(names.map(|name| times(&b.join(name))), seen);
}

/// As on other file systems, whichever mount removed it.
#[test]
fn a_directory_that_is_removed_while_it_is_open_is_empty() {
    let mut cluster = DevCluster::up();
    let (a, b) = (cluster.mount.clone(), cluster.mount_again());
    for (round, remover) in [&a, &b].into_iter().enumerate() {
        let name = format!("dir-{round}");
        fs::create_dir(a.join(&name)).unwrap();
        fs::write(a.join(&name).join("entry"), b"").unwrap();
        let opened = File::open(a.join(&name)).unwrap();
        assert_eq!(opened.metadata().unwrap().nlink(), 2);
        fs::remove_dir_all(remover.join(&name)).unwrap();
        if remover == &b {
            // What the kernel knows of a directory that another mount changes may be a second old.
            std::thread::sleep(Duration::from_millis(1_100));
        }
        let found = opened.metadata().unwrap();
        assert_eq!((found.nlink(), found.is_dir()), (0, true), "round {round}");
        let entries = rustix::fs::Dir::read_from(&opened).unwrap();
        let names: Result<Vec<_>, _> = entries
            .map(|entry| entry.map(|entry| entry.file_name().to_owned()))
            .collect();
        match names {
            Ok(names) => assert!(names.iter().all(|name| name.to_bytes().starts_with(b".")), "{names:?}"),
            // readdir(3) ends there.
            Err(error) => assert_eq!(error, rustix::io::Errno::NOENT, "round {round}"),
        }
        assert!(fs::metadata(a.join(&name)).is_err());
    }
}

/// The client's own read-ahead, which works where the kernel was told to do without, must not outlive another mount's close:
/// it would go into the page cache that the next open keeps.
#[test]
fn what_another_mount_closed_is_read_through_every_handle_after_an_open() {
    const STEP: usize = 64 << 10;
    const MIDDLE: usize = 4 << 20;
    let mut cluster = DevCluster::up();
    let (a, b) = (cluster.mount.clone(), cluster.mount_again());
    for round in 0..10 {
        let (here, there) = (a.join(format!("pages-{round}")), b.join(format!("pages-{round}")));
        fs::write(&here, vec![1; 2 * MIDDLE]).unwrap();
        let mut first = File::open(&there).unwrap();
        rustix::fs::fadvise(&first, 0, None, rustix::fs::Advice::Random).unwrap();
        let mut part = vec![0; STEP];
        for _ in 0..MIDDLE / STEP {
            first.read_exact(&mut part).unwrap();
            assert!(part == vec![1; STEP], "round {round}");
        }
        let writer = OpenOptions::new().write(true).open(&here).unwrap();
        writer.write_all_at(&vec![2; 4 * STEP], MIDDLE as u64).unwrap();
        drop(writer);
        let second = File::open(&there).unwrap();
        let mut old = [0, 0];
        for step in 0..4 {
            first.read_exact(&mut part).unwrap();
            old[0] += part.iter().filter(|&&byte| byte != 2).count();
            second.read_exact_at(&mut part, (MIDDLE + step * STEP) as u64).unwrap();
            old[1] += part.iter().filter(|&&byte| byte != 2).count();
        }
        assert_eq!(
            old,
            [0, 0],
            "round {round}: old bytes through the first handle and the second"
        );
    }
}

/// A descriptor that one mount keeps open for appending goes behind what another mount has appended, and to the beginning of what another
/// mount has truncated (`copytruncate` of logrotate).
#[test]
fn an_append_goes_where_the_file_ends_now() {
    let mut cluster = DevCluster::up();
    let (a, b) = (cluster.mount.clone(), cluster.mount_again());
    fs::write(a.join("log"), b"").unwrap();
    let open = |at: &Path| OpenOptions::new().append(true).read(true).open(at.join("log")).unwrap();
    let (mut first, mut second) = (open(&a), open(&b));
    let mut expected = Vec::new();
    for round in 0..20_u8 {
        for (one, letter) in [(&mut first, b'a'), (&mut second, b'b')] {
            let line = vec![letter + round % 2; 700 + usize::from(round)];
            one.write_all(&line).unwrap();
            one.sync_all().unwrap();
            expected.extend(line);
        }
        if round % 5 == 4 {
            assert_eq!(fs::read(a.join("log")).unwrap(), expected, "round {round}");
            assert_eq!(fs::read(b.join("log")).unwrap(), expected, "round {round}");
            let other = if round % 2 == 0 { &a } else { &b };
            OpenOptions::new()
                .write(true)
                .open(other.join("log"))
                .unwrap()
                .set_len(0)
                .unwrap();
            expected.clear();
        }
    }
    // Not synced: what is flushed counts as well.
    first.write_all(b"one ").unwrap();
    std::thread::sleep(Duration::from_secs(3));
    second.write_all(b"two ").unwrap();
    drop((first, second));
    assert_eq!(fs::read(a.join("log")).unwrap(), b"one two ");
    // Through the appending descriptor itself, whatever its kernel had kept of the file.
    let mut reading = open(&b);
    let mut seen = Vec::new();
    reading.read_to_end(&mut seen).unwrap();
    let mut other = open(&a);
    other.write_all(b"three ").unwrap();
    drop(other);
    reading.write_all(b"four").unwrap();
    let mut bytes = [0; 18];
    reading.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"one two three four");
}

#[test]
fn others_see_an_open_files_writes_within_half_a_second_and_its_mounts_death_keeps_them() {
    let mut cluster = DevCluster::up();
    let (a, b) = (cluster.mount.clone(), cluster.mount_again());
    let mut file = File::create(a.join("log")).unwrap();
    file.write_all(b"first").unwrap();
    let mut length = 5;
    let mut waits = Vec::new();
    for round in 0..15_u64 {
        // Every phase of the mount's clock.
        std::thread::sleep(Duration::from_millis(37 * (round % 5)));
        file.write_all(&[round as u8; 1_000]).unwrap();
        length += 1_000;
        let start = Instant::now();
        while fs::read(b.join("log")).unwrap().len() != length {
            assert!(start.elapsed() < Duration::from_secs(10), "round {round}");
            std::thread::sleep(Duration::from_millis(5));
        }
        waits.push(start.elapsed());
    }
    waits.sort_unstable();
    let (median, longest) = (waits[waits.len() / 2], waits[waits.len() - 1]);
    println!("seen by the other mount after {median:?} (median), {longest:?} at most");
    assert!(median < Duration::from_millis(500) && longest < Duration::from_millis(1_500));
    let mut alone = File::create(a.join("alone")).unwrap();
    for (of, name) in [(&mut file, "log"), (&mut alone, "alone")] {
        of.write_all(&[7; 3_000]).unwrap();
        assert!(a.join(name).exists());
    }
    std::thread::sleep(Duration::from_millis(700));
    cluster.kill("mount");
    assert_eq!(fs::read(b.join("log")).unwrap().len(), length + 3_000);
    assert_eq!(fs::read(b.join("alone")).unwrap(), [7; 3_000]);
}
