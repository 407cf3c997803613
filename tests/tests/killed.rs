//! A process or a mount that is killed in the middle of something leaves nothing behind.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::large_stack_arrays,
    reason = "a test fails by panicking"
)]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use dfs_tests::{DevCluster, shell};

const MIB: u64 = 1 << 20;

/// Never zero, and different in every round.
fn pattern(round: u64, length: u64) -> Vec<u8> {
    (0..length)
        .map(|at| 1 + ((at / 512 + round * 31) % 250) as u8)
        .collect()
}

/// The file is as long as it was or as it was to be, its bytes are right, and nothing of the rest
/// comes back when it grows again.
#[test]
fn a_mount_that_is_killed_in_the_middle_of_a_truncation() {
    const LENGTH: u64 = 24 * MIB;
    let mut cluster = DevCluster::up();
    let (dies, lives) = (cluster.mount.clone(), cluster.mount_again());
    let mut unfinished = 0;
    for round in 0..8_u64 {
        let (here, there) = (dies.join(format!("file-{round}")), lives.join(format!("file-{round}")));
        let bytes = pattern(round, LENGTH);
        fs::write(&there, &bytes).unwrap();
        File::open(&there).unwrap().sync_all().unwrap();
        let length = (round % 6) * 4 * MIB + [0, 123, 4096, 5000][round as usize % 4];
        let truncating = thread::spawn(move || {
            let file = OpenOptions::new().write(true).open(here)?;
            file.set_len(length)
        });
        thread::sleep(Duration::from_millis(round * 3));
        cluster.kill("mount");
        let done = truncating.join().unwrap().is_ok();
        unfinished += u32::from(!done);
        let found = fs::metadata(&there).unwrap().len();
        assert!(
            found == length || (!done && found == LENGTH),
            "round {round}: {found} of {length}, done: {done}"
        );
        assert!(
            fs::read(&there).unwrap() == bytes[..found as usize],
            "round {round}: other bytes"
        );
        // Grown over, all that was cut is zeros.
        let file = OpenOptions::new().write(true).read(true).open(&there).unwrap();
        file.set_len(LENGTH).unwrap();
        if found < LENGTH {
            let mut rest = vec![1; (LENGTH - found) as usize];
            file.read_exact_at(&mut rest, found).unwrap();
            assert!(rest.iter().all(|&byte| byte == 0), "round {round}: cut bytes came back");
        }
        cluster.start("mount");
    }
    println!("{unfinished} of 8 truncations were cut short");
}

fn writer(to: &std::path::Path) -> Child {
    Command::new("dd")
        .args(["if=/dev/zero", "bs=1M", "count=64", "status=none"])
        .arg(format!("of={}", to.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Writers that are killed while they wait for room in the mount's buffer take none of it with
/// them.
#[test]
fn killed_writers_take_no_room_with_them() {
    let cluster = DevCluster::up();
    let storage: Vec<u32> = ["storage-1", "storage-2", "storage-3"]
        .map(|node| cluster.pid(node))
        .into();
    let signal = |name: &str| {
        for pid in &storage {
            shell(&format!("kill -{name} {pid}"));
        }
    };
    for round in 0..3 {
        signal("STOP");
        let mut writers: Vec<Child> = (0..24)
            .map(|number| writer(&cluster.mount.join(format!("killed-{round}-{number}"))))
            .collect();
        thread::sleep(Duration::from_millis(700));
        for writer in &mut writers {
            let _ = writer.kill();
        }
        signal("CONT");
        for mut writer in writers {
            let _ = writer.wait();
        }
        cluster.wait_healthy(Duration::from_mins(1));
    }
    let start = Instant::now();
    let file = cluster.mount.join("after");
    // More than the buffer holds.
    shell(&format!(
        "head -c 300000000 /dev/urandom > {0}.sum-of && timeout 100 cp {0}.sum-of {0} && timeout 60 sync {0} && cmp {0}.sum-of {0}",
        file.display()
    ));
    println!("300 MB twice in {:?}", start.elapsed());
    for round in 0..3 {
        for number in 0..24 {
            let name = cluster.mount.join(format!("killed-{round}-{number}"));
            let length = fs::metadata(&name).map_or(0, |metadata| metadata.len());
            assert!(length <= 64 * MIB && fs::read(&name).map_or(true, |bytes| bytes.len() as u64 == length));
        }
    }
    let _ = cluster.down().expect_ok("dev down");
}
