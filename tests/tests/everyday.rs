//! What people do all day with ordinary tools, on the mount and on the local file system, must come out the same, and
//! must still be the same after the whole cluster went down and came back.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::large_stack_arrays,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use dfs_tests::{DevCluster, run_in, shell, tree};

/// Everything that is done twice: once on the mount, once on the local disk.
const WORK: &str = r#"
umask 022
mkdir -p src && for d in $(seq 1 12); do mkdir -p "src/dir $d/deep/er"; for f in $(seq 1 10); do
  head -c $((f * 997 * d)) /dev/zero | tr '\0' "$(printf \\$(printf %03o $((64 + d))))" > "src/dir $d/deep/file-$f"; done; done
: > src/empty
cp -r src copy && tar cf - src | (mkdir untarred && tar xf - -C untarred)
cp "$SHARED_RANDOM" random && dd if=random of=dd bs=64k status=none conv=fsync
mv src/empty renamed && mv "copy/dir 1" moved && mv dd "moved/"
ln random hard && ln -s random soft && ln -s /nonexistent dangling && ln hard moved/hard2
chmod 640 renamed && chmod 4755 hard && chmod 1777 moved && chown 12:34 renamed && chown -h 56:78 soft
mkfifo fifo && mknod device c 1 3 && touch -d '2001-02-03 04:05:06.789012345' renamed "moved/deep/er" && touch -d '1965-01-01' copy
truncate -s 5000 hard && truncate -s 20000000 hard && truncate -s 12345 "copy/dir 2/deep/file-3"
dd if="$SHARED_RANDOM" of=sparse bs=4096 count=3 seek=4000 conv=notrunc status=none && dd if="$SHARED_RANDOM" of=sparse bs=1 count=777 seek=100001 conv=notrunc status=none
for i in $(seq 1 200); do echo "line $i" >> appended; done
dd if="$SHARED_RANDOM" of=patched bs=1M count=8 status=none && for at in 1 4095 4096 4097 65535 1048575 4194303 4194304 5000001; do
  printf 'patch%s' $at | dd of=patched bs=1 seek=$at conv=notrunc status=none; done
rm -rf "copy/dir 3" "untarred/src/dir 4" && mkdir gone && rmdir gone
touch -d '2020-01-01' . src copy moved untarred copy/* untarred/* untarred/src/* moved/* 
"#;

fn work(at: &Path, random: &Path) {
    let line = format!("export SHARED_RANDOM='{}'\n{WORK}", random.display());
    let _ = run_in(at, &line).expect_ok("the everyday work");
}

#[track_caller]
fn assert_same(left: &Path, right: &Path, when: &str) {
    // Times of day differ between the two runs; those that the work set itself are from before this year.
    let (left, right) = (
        mask_recent_times(&tree::fingerprint(left)),
        mask_recent_times(&tree::fingerprint(right)),
    );
    if let Some(difference) = tree::difference(&left, &right) {
        panic!("{when}:\n{difference}");
    }
}

fn mask_recent_times(text: &str) -> String {
    let mask = |word: &str| {
        let seconds = word
            .strip_prefix("mtime=")
            .and_then(|time| time.split('.').next())
            .and_then(|time| time.parse::<i64>().ok());
        if seconds.is_some_and(|seconds| seconds > 1_700_000_000) {
            "mtime=recent".to_owned()
        } else {
            word.to_owned()
        }
    };
    text.lines()
        .map(|line| line.split(' ').map(mask).collect::<Vec<_>>().join(" ") + "\n")
        .collect()
}

#[test]
fn ordinary_tools_see_what_they_see_on_a_local_disk() {
    let cluster = DevCluster::up();
    let local = cluster.local();
    let (here, there, random) = (local.join("same"), cluster.mount.join("same"), local.join("random"));
    fs::create_dir(&here).unwrap();
    fs::create_dir(&there).unwrap();
    shell(&format!("head -c 9000000 /dev/urandom > {}", random.display()));
    work(&there, &random);
    work(&here, &random);
    assert_same(&here, &there, "right after the work");
    let explicit = fs::metadata(there.join("renamed")).unwrap();
    assert_eq!((explicit.mtime(), explicit.mtime_nsec()), (981_173_106, 789_012_345));
    assert_eq!(
        (explicit.uid(), explicit.gid(), explicit.mode() & 0o7777),
        (12, 34, 0o640)
    );

    let tools = cluster.mount.join("tools");
    fs::create_dir(&tools).unwrap();
    let _ = run_in(&tools, "git init -q repo && cd repo && git config user.email a@b && git config user.name a && cp -r ../../same/src . && git add -A && git commit -qm one && cd .. && git clone -q repo clone && cd clone && git fsck --strict && git status --porcelain && test -z \"$(git status --porcelain)\"")
        .expect_ok("git clone and fsck");
    let _ = run_in(
        &tools,
        "sqlite3 base.db 'create table t(a integer primary key, b text);' && for i in $(seq 1 30); do sqlite3 base.db \"begin; insert into t(b) values(hex(randomblob(500))); insert into t(b) values('x$i'); commit;\"; done && test \"$(sqlite3 base.db 'select count(*) from t')\" = 60 && test \"$(sqlite3 base.db 'pragma integrity_check')\" = ok",
    )
    .expect_ok("sqlite");

    let _ = cluster.down().expect_ok("dev down");
    assert!(fs::read_dir(&cluster.mount).unwrap().next().is_none(), "unmounted");
    let up = cluster.start_all().expect_ok("dev up again");
    assert!(up.took < Duration::from_secs(15), "{:?}", up.took);
    let _ = run_in(&tools, "test \"$(sqlite3 base.db 'pragma integrity_check')\" = ok && git -C clone fsck --strict && rm -rf repo clone base.db").expect_ok("after the restart");
    assert_same(&here, &there, "after down and up");
    cluster.verify_replicas();
    let _ = run_in(&cluster.mount, "rm -rf same tools && test -z \"$(ls -A)\"").expect_ok("rm -rf");
}

#[test]
fn names_and_limits_are_those_of_linux() {
    let cluster = DevCluster::up();
    let odd = cluster.mount.join(std::ffi::OsStr::from_bytes(b"caf\xe9 \xff\n'\"\\*"));
    fs::write(&odd, b"odd").unwrap();
    assert_eq!(fs::read(&odd).unwrap(), b"odd");
    let listed: Vec<_> = fs::read_dir(&cluster.mount)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(listed, [odd.file_name().unwrap()]);

    assert!(fs::write(cluster.mount.join("x".repeat(255)), b"").is_ok());
    let too_long = fs::write(cluster.mount.join("x".repeat(256)), b"").unwrap_err();
    assert_eq!(too_long.raw_os_error(), Some(36), "ENAMETOOLONG: {too_long}");
    let loop_errno = |result: std::io::Result<()>| result.unwrap_err().raw_os_error();
    assert_eq!(loop_errno(fs::remove_dir(&odd)), Some(20), "ENOTDIR");
    assert_eq!(loop_errno(fs::create_dir(&odd)), Some(17), "EEXIST");
    assert_eq!(
        loop_errno(fs::File::open(cluster.mount.join("none")).map(drop)),
        Some(2),
        "ENOENT"
    );
    fs::create_dir(cluster.mount.join("full")).unwrap();
    fs::write(cluster.mount.join("full/x"), b"").unwrap();
    assert_eq!(
        loop_errno(fs::remove_dir(cluster.mount.join("full"))),
        Some(39),
        "ENOTEMPTY"
    );
}

#[test]
fn an_unlinked_open_file_lives_until_its_last_close() {
    let cluster = DevCluster::up();
    let path = cluster.mount.join("orphan");
    let file = fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    file.write_all_at(&[7; 100_000], 0).unwrap();
    file.sync_all().unwrap();
    fs::remove_file(&path).unwrap();
    assert!(!path.exists());
    std::thread::sleep(Duration::from_secs(4));
    let mut back = vec![0; 100_000];
    file.read_exact_at(&mut back, 0).unwrap();
    assert!(back.iter().all(|&byte| byte == 7));
    file.write_all_at(&[8; 10], 50_000).unwrap();
    file.sync_all().unwrap();
    drop(file);
    // Its chunks go with the last close: no space leaks.
    let start = std::time::Instant::now();
    loop {
        let status = cluster.status().expect("status");
        if status["orphans"] == 0 {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "orphans stay: {status}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_second_mount_sees_what_the_first_one_closed() {
    let mut cluster = DevCluster::up();
    let other = cluster.mount_again();
    for round in 0..20_u32 {
        let (from, to) = if round % 2 == 0 {
            (&cluster.mount, &other)
        } else {
            (&other, &cluster.mount)
        };
        let text = format!("round {round}: {}", "x".repeat(round as usize * 333));
        fs::write(from.join("shared"), &text).unwrap();
        assert_eq!(
            fs::metadata(to.join("shared")).unwrap().len(),
            text.len() as u64,
            "stat is exact"
        );
        assert_eq!(fs::read_to_string(to.join("shared")).unwrap(), text);
    }
    // Two mounts write different bytes of the same blocks: both must be there.
    fs::write(cluster.mount.join("mixed"), vec![0; 20_000]).unwrap();
    let writer = |mount: &Path, offset: usize, byte: u8| {
        let file = fs::OpenOptions::new().write(true).open(mount.join("mixed")).unwrap();
        std::thread::spawn(move || {
            for at in (offset..20_000).step_by(200) {
                file.write_all_at(&[byte; 100], at as u64).unwrap();
            }
            file.sync_all().unwrap();
        })
    };
    let (a, b) = (writer(&cluster.mount, 0, b'a'), writer(&other, 100, b'b'));
    a.join().unwrap();
    b.join().unwrap();
    let expected: Vec<u8> = (0..20_000).map(|at| if at % 200 < 100 { b'a' } else { b'b' }).collect();
    assert!(
        fs::read(cluster.mount.join("mixed")).unwrap() == expected,
        "seen from the first mount"
    );
    assert!(
        fs::read(other.join("mixed")).unwrap() == expected,
        "seen from the second mount"
    );
}

#[test]
fn nothing_readable_stands_on_the_servers_disks() {
    let cluster = DevCluster::up();
    let canary = "CANARY-5f3a9c-plain-to-see";
    let directory = cluster.mount.join(format!("dir-{canary}"));
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join(format!("file-{canary}")), canary.repeat(1000)).unwrap();
    std::os::unix::fs::symlink(format!("target-{canary}"), directory.join("link")).unwrap();
    let _ = run_in(
        &directory,
        &format!("sync && for i in $(seq 1 50); do echo {canary} > f$i; done; mv f1 {canary}-moved"),
    )
    .expect_ok("write");
    let search = format!("! grep -raql {canary} {}", cluster.data.display());
    shell(&search);
    let _ = cluster.down().expect_ok("dev down");
    shell(&search);
    let _ = cluster.start_all().expect_ok("dev up");
    assert_eq!(
        fs::read_to_string(directory.join(format!("{canary}-moved")))
            .unwrap()
            .trim(),
        canary
    );
}

#[test]
fn room_can_be_asked_for() {
    let mut cluster = DevCluster::up();
    let (a, b) = (cluster.mount.clone(), cluster.mount_again());
    let length = |name: &str| fs::metadata(b.join(name)).unwrap().len();
    fs::write(a.join("file"), b"begins so").unwrap();
    let allocate = |line: &str| run_in(&a, &format!("fallocate {line}"));
    let _ = allocate("-l 3000000 file").expect_ok("plain");
    assert_eq!(length("file"), 3_000_000);
    let _ = allocate("-l 1000 file").expect_ok("within the file");
    let _ = allocate("-n -l 9000000 file").expect_ok("keeping the size");
    assert_eq!(length("file"), 3_000_000);
    let content = fs::read(b.join("file")).unwrap();
    assert!(content.starts_with(b"begins so") && content[9..].iter().all(|&byte| byte == 0));
    for (flags, name) in [
        ("O_WRONLY", "write"),
        ("O_RDWR|os.O_APPEND", "append"),
        ("O_WRONLY|os.O_APPEND", "both"),
    ] {
        let script = format!(
            "import os; fd = os.open('{name}', os.O_CREAT|os.{flags}, 0o600); os.write(fd, b'x' * 5000)
os.posix_fallocate(fd, 0, 7000000); os.posix_fallocate(fd, 10, 20); os.write(fd, b'y')"
        );
        let _ = run_in(&a, &format!("python3 -c \"{script}\"")).expect_ok(name);
        let appended = u64::from(flags.contains("APPEND"));
        assert_eq!(length(name), 7_000_000 + appended, "{name}");
    }
    let refused = |line: &str, why: &str| {
        let refused = allocate(line);
        assert!(
            !refused.ok() && refused.stderr.contains(why),
            "{line}: {}",
            refused.stderr
        );
    };
    refused("-l 1P huge", "No space left on device");
    refused("-o 16P -l 4096 huge", "File too large");
    refused("-n -o 16P -l 4096 file", "File too large");
    refused("-p -o 4096 -l 4096 file", "unsupported");
    assert_eq!(fs::read(b.join("file")).unwrap(), content);
    // What another mount cut off is not taken for there.
    let open = fs::OpenOptions::new().write(true).open(a.join("file")).unwrap();
    fs::OpenOptions::new()
        .write(true)
        .open(b.join("file"))
        .unwrap()
        .set_len(0)
        .unwrap();
    rustix::fs::fallocate(&open, rustix::fs::FallocateFlags::empty(), 0, 5_000).unwrap();
    assert_eq!(length("file"), 5_000);
}
