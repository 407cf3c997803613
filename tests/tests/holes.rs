//! Files with holes: what they take up, and what programs that ask for holes are told.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use dfs_tests::{DevCluster, run_in};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const WAIT: Duration = Duration::from_secs(30);

fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

/// Data from offset to offset, as a program walks it.
fn data(path: &Path) -> Vec<(u64, u64)> {
    let file = File::open(path).unwrap();
    let (mut found, mut at) = (Vec::new(), 0);
    loop {
        match seek(&file, SeekFrom::Data(at)) {
            Ok(start) => {
                let end = seek(&file, SeekFrom::Hole(start)).unwrap();
                found.push((start, end));
                at = end;
            }
            Err(Errno::NXIO) => return found,
            Err(error) => panic!("{}: {error}", path.display()),
        }
    }
}

#[test]
fn holes_take_up_nothing_and_are_found() {
    let mut cluster = DevCluster::up();
    let at = cluster.mount.clone();
    let second = cluster.mount_again();

    // Twelve bytes in 120 GiB.
    let path = at.join("sparse");
    let file = File::create(&path).unwrap();
    file.set_len(120 * GIB).unwrap();
    assert_eq!((allocated(&path), data(&path)), (0, vec![]));
    file.write_all_at(b"twelve bytes", 60 * GIB).unwrap();
    file.sync_all().unwrap();
    drop(file);
    let block = (60 * GIB, 60 * GIB + 4 * KIB);
    for path in [path.clone(), second.join("sparse")] {
        assert_eq!(fs::metadata(&path).unwrap().len(), 120 * GIB);
        assert_eq!(
            (allocated(&path), data(&path)),
            (4 * KIB, vec![block]),
            "{}",
            path.display()
        );
    }
    let file = File::open(&path).unwrap();
    let hole = seek(&file, SeekFrom::Hole(0)).unwrap();
    assert_eq!(
        (hole, seek(&file, SeekFrom::Hole(60 * GIB)).unwrap()),
        (0, 60 * GIB + 4 * KIB)
    );
    assert_eq!(seek(&file, SeekFrom::Data(120 * GIB)), Err(Errno::NXIO));
    drop(file);
    // Programs that ask: a copy is as sparse, and done at once.
    let copied =
        run_in(&at, "timeout 20 cp sparse copy && timeout 20 tar -cSf - sparse | wc -c").expect_ok("cp and tar");
    assert!(copied.stdout.trim().parse::<u64>().unwrap() < 64 * KIB, "{copied:?}");
    assert_eq!(
        (allocated(&at.join("copy")), data(&at.join("copy"))),
        (4 * KIB, vec![block])
    );

    // A hole by a write behind the end, before and after it is told, over a boundary of chunks.
    let path = at.join("gap");
    let file = OpenOptions::new()
        .create_new(true)
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    file.write_all_at(&[1; 8 * KIB as usize], 0).unwrap();
    file.write_all_at(&vec![2; 200 * KIB as usize], 200 * MIB - 100 * KIB)
        .unwrap();
    let runs = vec![(0, 8 * KIB), (200 * MIB - 100 * KIB, 200 * MIB + 100 * KIB)];
    assert_eq!(data(&path), runs, "what is not flushed yet counts");
    file.sync_all().unwrap();
    let again = second.join("gap");
    assert_eq!((data(&again), allocated(&again)), (runs, 208 * KIB));
    // Filled up, it has none left.
    file.write_all_at(&vec![3; 1024 * KIB as usize], 8 * KIB).unwrap();
    assert_eq!(data(&path)[0], (0, 1032 * KIB));
    file.set_len(0).unwrap();
    file.write_all_at(&[4; 5_000], 0).unwrap();
    file.sync_all().unwrap();
    assert_eq!((data(&again), allocated(&again)), (vec![(0, 5_000)], 5_120));

    drop(file);

    // Much data behind a hole, over many chunks of every chain; and many small pieces.
    let path = at.join("large");
    let file = File::create(&path).unwrap();
    file.write_all_at(&vec![6; 64 * MIB as usize], MIB).unwrap();
    let pieces: Vec<(u64, u64)> = (0..300)
        .map(|number| 100 * MIB + number * 12 * KIB)
        .map(|start| (start, start + 4 * KIB))
        .collect();
    for &(start, _) in &pieces {
        file.write_all_at(&[7; 4 * KIB as usize], start).unwrap();
    }
    drop(file);
    let expected: Vec<_> = [(MIB, 65 * MIB)].into_iter().chain(pieces).collect();
    assert_eq!(data(&path), expected);
    assert_eq!(allocated(&path), 64 * MIB + 300 * 4 * KIB);

    // A file without holes is not asked for: all of it is data, also while no chain answers.
    fs::write(at.join("dense"), vec![5; 3 * MIB as usize]).unwrap();
    assert_eq!(
        (data(&at.join("dense")), allocated(&at.join("dense"))),
        (vec![(0, 3 * MIB)], 3 * MIB)
    );
    // With a node away, holes are still found.
    cluster.kill("storage-1");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(
        (data(&at.join("sparse")), allocated(&at.join("sparse"))),
        (vec![block], 4 * KIB)
    );
    cluster.start("storage-1");
    cluster.wait_healthy(WAIT);
    cluster.verify_replicas();
    let _ = cluster.down().expect_ok("dev down");
}
