//! What a mount has just made it answers for itself; nobody ever sees that it does.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dfs_tests::tree::{difference, fingerprint};
use dfs_tests::{DevCluster, shell};

/// For a holder to give up what another mount wants, with everything that it still has to tell. Milliseconds, on a quiet machine.
const GIVES_UP_WITHIN: Duration = Duration::from_secs(1);

/// A directory with files as an archiver leaves them.
fn unpack(at: &Path, files: usize) {
    fs::create_dir(at).unwrap();
    for number in 0..files {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(at.join(format!("file-{number}")))
            .unwrap();
        file.write_all(&vec![number as u8; 100 * number + 1]).unwrap();
        file.set_permissions(Permissions::from_mode(0o600 + number as u32 % 8))
            .unwrap();
        std::os::unix::fs::fchown(&file, Some(number as u32), Some(7)).unwrap();
    }
    std::os::unix::fs::symlink("file-0", at.join("link")).unwrap();
    fs::set_permissions(at, Permissions::from_mode(0o750)).unwrap();
}

/// Names of directories may be remembered for a second (see SEMANTICS, "Several mounts").
fn gone(path: &Path) {
    let start = Instant::now();
    while fs::metadata(path).is_ok() {
        assert!(start.elapsed() < Duration::from_millis(1_500), "{}", path.display());
        thread::sleep(Duration::from_millis(20));
    }
}

fn log_says(cluster: &DevCluster, what: &str) -> String {
    shell(&format!(
        "grep -h '{what}' {}/log/*.log || true",
        cluster.data.display()
    ))
}

#[test]
fn another_mount_sees_at_once_what_this_one_has_shown() {
    let mut cluster = DevCluster::up();
    let (a, b) = (cluster.mount.clone(), cluster.mount_again());
    let mut longest = Duration::ZERO;
    for round in 0..6 {
        let name = format!("tree-{round}");
        unpack(&a.join(&name), 30);
        for inner in 0..3 {
            unpack(&a.join(&name).join(format!("inner-{inner}")), 10);
        }
        let start = Instant::now();
        assert!(fs::metadata(b.join(&name).join("inner-2/file-9")).is_ok());
        longest = longest.max(start.elapsed());
        if let Some(different) = difference(&fingerprint(&a.join(&name)), &fingerprint(&b.join(&name))) {
            panic!("round {round}: {different}");
        }
        // Both go on in the same place.
        for number in 0..10 {
            let at = if number % 2 == 0 { &a } else { &b };
            let path = |root: &Path| root.join(&name).join(format!("both-{number}"));
            fs::write(path(at), vec![3; number + 1]).unwrap();
            for root in [&a, &b] {
                assert_eq!(fs::metadata(path(root)).unwrap().len(), number as u64 + 1);
            }
            let again = OpenOptions::new().write(true).create_new(true).open(path(&b));
            assert_eq!(again.unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
        }
        fs::rename(b.join(&name).join("inner-0"), b.join(&name).join("moved")).unwrap();
        gone(&a.join(&name).join("inner-0"));
        fs::remove_dir_all(b.join(&name).join("inner-1")).unwrap();
        gone(&a.join(&name).join("inner-1"));
        // Long enough for the first mount to hold again.
        thread::sleep(Duration::from_millis(1_200));
    }
    assert!(longest < GIVES_UP_WITHIN, "{longest:?}");
    assert_eq!(log_says(&cluster, "otherwise than"), "");
    assert_eq!(log_says(&cluster, "then refused it"), "");
}

#[test]
fn a_mount_that_stands_still_loses_what_it_holds_and_nothing_else() {
    let mut cluster = DevCluster::up();
    let (a, b) = (cluster.mount.clone(), cluster.mount_again());
    unpack(&a.join("tree"), 20);
    let mut synced = File::create(a.join("tree/synced")).unwrap();
    synced.write_all(b"kept").unwrap();
    synced.sync_all().unwrap();
    // Not open any more: a process that this test starts would wait for the mount when it closes its copy.
    drop(synced);
    let pid = cluster.pid("mount");
    shell(&format!("kill -STOP {pid}"));
    let start = Instant::now();
    let seen = fs::read(b.join("tree/synced"));
    let waited = start.elapsed();
    fs::write(b.join("tree/by-the-other"), b"x").unwrap();
    shell(&format!("kill -CONT {pid}"));
    assert_eq!(seen.unwrap(), b"kept");
    assert!(waited < Duration::from_secs(4), "{waited:?}");
    assert_eq!(fs::read(a.join("tree/by-the-other")).unwrap(), b"x");
    unpack(&a.join("tree/later"), 10);
    if let Some(different) = difference(&fingerprint(&a), &fingerprint(&b)) {
        panic!("{different}");
    }
}

/// Creates files in each directory in turn until one is refused, or until it has to end; the last of them, still open.
fn create_until_refused(directories: [&Path; 2], end: &AtomicBool) -> VecDeque<File> {
    let mut last = VecDeque::new();
    for number in 0.. {
        for directory in directories {
            if end.load(Ordering::Relaxed) {
                return last;
            }
            match File::create_new(directory.join(format!("file-{number:06}"))) {
                Ok(file) => last.push_back(file),
                Err(_) => return last,
            }
            if last.len() > 500 {
                last.pop_front();
            }
        }
    }
    last
}

/// Takes the next names of a directory away from whoever is creating files there: more of them than a mount acknowledges
/// before it has told, or the creator would go on behind them.
fn take_names(directory: &Path) {
    let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
    let last = names.max().unwrap().into_string().unwrap();
    let last: u32 = last.trim_start_matches("file-").parse().unwrap();
    for number in last..last + 600 {
        let _ = File::create_new(directory.join(format!("file-{number:06}")));
    }
}

/// A creation that was shown and then refused is an error of its directory's fsync: of every handle once, and of no other
/// directory.
#[test]
fn a_refused_creation_is_told_by_fsync_of_its_directory_to_every_handle() {
    let mut cluster = DevCluster::up();
    let (a, b) = (cluster.mount.clone(), cluster.mount_again());
    let pid = cluster.pid("mount");
    for round in 0..5 {
        let [one, two, bystander] = ["one", "two", "bystander"].map(|name| format!("{name}-{round}"));
        for name in [&one, &two, &bystander] {
            fs::create_dir(a.join(name)).unwrap();
        }
        let open = |name: &str| File::open(a.join(name)).unwrap();
        let [other, first, again, second] = [&bystander, &one, &one, &two].map(|name| open(name));
        // In one process: what this one starts while the mount stands still could wait for the mount.
        let pause = thread::spawn(move || shell(&format!("sleep 0.3; kill -STOP {pid}; sleep 5; kill -CONT {pid}")));
        let end = Arc::new(AtomicBool::new(false));
        let creator = thread::spawn({
            let (one, two, end) = (a.join(&one), a.join(&two), end.clone());
            move || create_until_refused([&one, &two], &end)
        });
        thread::sleep(Duration::from_millis(600));
        for name in [&one, &two] {
            take_names(&b.join(name));
        }
        let _ = pause.join().unwrap();
        // By now it was refused, or all was told before the mount stood still.
        thread::sleep(Duration::from_secs(1));
        end.store(true, Ordering::Relaxed);
        let files = creator.join().unwrap();
        assert!(other.sync_all().is_ok(), "nothing was refused in this directory");
        let refused = |name: &str| {
            let inode = fs::metadata(a.join(name)).unwrap().ino();
            !log_says(
                &cluster,
                &format!("in inode {inode}: it was acknowledged.*then refused it"),
            )
            .is_empty()
        };
        if !refused(&one) || !refused(&two) {
            // All was told before it stood still.
            continue;
        }
        assert!(second.sync_all().is_err(), "the second directory's refusal");
        assert!(first.sync_all().is_err(), "the first directory's refusal");
        assert!(again.sync_all().is_err(), "another handle of it");
        for handle in [&first, &again, &second, &other] {
            assert!(handle.sync_all().is_ok(), "once for each handle");
        }
        assert!(open(&one).sync_all().is_ok(), "it was told before this one was opened");
        let lost = |files: &VecDeque<File>| files.iter().filter(|file| file.sync_all().is_err()).count();
        assert!(lost(&files) >= 2, "the files themselves");
        assert!(lost(&files) >= 2, "a file that was never made cannot become durable");
        return;
    }
    panic!("nothing was refused in five rounds");
}

#[test]
fn what_is_fsynced_in_a_new_directory_survives_its_mount() {
    let cluster = DevCluster::up();
    let mut expected = Vec::new();
    for round in 0..40 {
        let directory = cluster.mount.join(format!("new-{round}")).join("deep").join("deeper");
        fs::create_dir_all(&directory).unwrap();
        let mut file = File::create(directory.join("file")).unwrap();
        file.write_all(&[5; 3000]).unwrap();
        file.set_permissions(Permissions::from_mode(0o444)).unwrap();
        file.sync_all().unwrap();
        expected.push(directory.join("file"));
        let empty = directory.join("empty");
        drop(File::create(&empty).unwrap());
        File::open(&directory).unwrap().sync_all().unwrap();
        expected.push(empty);
    }
    cluster.kill("mount");
    cluster.start("mount");
    for path in expected {
        let metadata = fs::metadata(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        if path.ends_with("file") {
            assert_eq!((metadata.len(), metadata.mode() & 0o777), (3000, 0o444));
            let mut content = Vec::new();
            File::open(&path).unwrap().read_to_end(&mut content).unwrap();
            assert_eq!(content, vec![5; 3000]);
        }
    }
}

#[test]
fn a_new_leader_gets_every_change_once() {
    let mut cluster = DevCluster::up();
    let (a, b) = (cluster.mount.clone(), cluster.mount_again());
    let writer = thread::spawn({
        let a = a.clone();
        move || {
            for round in 0..40 {
                unpack(&a.join(format!("tree-{round}")), 40);
            }
        }
    });
    thread::sleep(Duration::from_millis(300));
    for _ in 0..2 {
        let leader = cluster.leader();
        cluster.kill(&leader);
        thread::sleep(Duration::from_secs(2));
        cluster.start(&leader);
        cluster.wait_healthy(Duration::from_secs(30));
    }
    writer.join().unwrap();
    if let Some(different) = difference(&fingerprint(&a), &fingerprint(&b)) {
        panic!("{different}");
    }
    assert_eq!(fs::read_dir(&b).unwrap().count(), 40);
    assert_eq!(log_says(&cluster, "otherwise than"), "");
    assert_eq!(log_says(&cluster, "then refused it"), "");
}
