//! The log against a vector, against cuts at every byte, and against flipped bits.

use std::path::Path;
use std::sync::mpsc::channel;

use openraft::{CommittedLeaderId, EntryPayload};
use proptest::prelude::*;

use super::*;
use crate::consensus::tests::ToySeal;
use crate::consensus::types::CommandBatch;

fn options(directory: &Path) -> LogOptions {
    LogOptions {
        room: Arc::new(crate::room::Room::open(directory)),
        directory: directory.to_path_buf(),
        cluster: ClusterId([7; 16]),
        sealer: Arc::new(ToySeal),
        segment_size_bytes: 2048,
    }
}

fn id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term, 1), index)
}

fn entry(term: u64, index: u64, size: usize) -> Entry {
    Entry {
        log_id: id(term, index),
        payload: EntryPayload::Normal(CommandBatch(vec![vec![index as u8; size].into()])),
    }
}

fn append(log: &Log, entries: Vec<Entry>) {
    let (sender, receiver) = channel();
    log.append(
        entries,
        Box::new(move |result| {
            let _ = sender.send(result);
        }),
    )
    .unwrap();
    receiver.recv().unwrap().unwrap();
}

fn all(log: &Log) -> Vec<(LogId, usize)> {
    log.read(0, u64::MAX)
        .unwrap()
        .into_iter()
        .map(|entry| match entry.payload {
            EntryPayload::Normal(batch) => (entry.log_id, batch.0[0].len()),
            _ => (entry.log_id, 0),
        })
        .collect()
}

fn last_segment(directory: &Path) -> PathBuf {
    list_segments(directory).unwrap().into_values().next_back().unwrap()
}

/// A log of one segment with five batches of one entry each, and where its records end.
fn sample(directory: &Path) -> (PathBuf, Vec<u8>, Vec<usize>) {
    let log = Log::open(&options(directory)).unwrap();
    let mut ends = vec![SEGMENT_HEADER_BYTES];
    for index in 0..5 {
        append(&log, vec![entry(1, index, 40)]);
        let slot = log.shared.table.lock().slot(index).unwrap().location.unwrap();
        ends.push(slot.offset as usize + slot.record_bytes);
    }
    log.close();
    let path = last_segment(directory);
    let bytes = std::fs::read(&path).unwrap();
    (path, bytes, ends)
}

#[test]
fn a_cut_at_any_byte_leaves_a_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let (path, bytes, ends) = sample(dir.path());
    for cut in ends[3]..=ends[5] {
        for shorten in [false, true] {
            let mut torn = bytes.clone();
            torn[cut..].fill(0);
            if shorten {
                torn.truncate(cut);
            }
            std::fs::write(&path, &torn).unwrap();
            let log = Log::open(&options(dir.path())).unwrap();
            // What is cut inside the padding of a record leaves the record whole.
            let whole = ends[1..].iter().filter(|&&end| end <= cut.next_multiple_of(8)).count();
            let found = all(&log).len();
            assert!(found == whole || found + 1 == whole, "cut {cut}: {found} of {whole}");
            append(&log, vec![entry(2, found as u64, 9)]);
            log.close();
            let log = Log::open(&options(dir.path())).unwrap();
            assert_eq!(all(&log).last(), Some(&(id(2, found as u64), 9)));
            log.close();
        }
    }
}

#[test]
fn a_flipped_bit_before_the_last_batch_is_rot() {
    let dir = tempfile::tempdir().unwrap();
    let (path, bytes, ends) = sample(dir.path());
    for at in (0..ends[4] - 8).step_by(3) {
        let mut bad = bytes.clone();
        bad[at] ^= 4;
        std::fs::write(&path, &bad).unwrap();
        match Log::open(&options(dir.path())) {
            Err(LogError::Rot { path: named, .. }) => assert_eq!(named, path),
            Err(other) => panic!("byte {at}: {other}"),
            // Padding is not covered, and holds nothing.
            Ok(log) => {
                assert_eq!(all(&log).len(), 5, "byte {at}");
                log.close();
            }
        }
    }
}

#[test]
fn a_missing_segment_and_a_foreign_log_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(&options(dir.path())).unwrap();
    for index in 0..40 {
        append(&log, vec![entry(1, index, 200)]);
    }
    log.close();
    let mut foreign = options(dir.path());
    foreign.cluster = ClusterId([8; 16]);
    assert!(matches!(Log::open(&foreign), Err(LogError::ForeignCluster { .. })));
    let files = list_segments(dir.path()).unwrap();
    assert!(files.len() > 3);
    std::fs::remove_file(&files[&2]).unwrap();
    assert!(matches!(Log::open(&options(dir.path())), Err(LogError::Rot { .. })));
}

#[test]
fn vote_and_committed_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(&options(dir.path())).unwrap();
    let vote = Vote::new_committed(3, 2);
    log.save_vote(vote).unwrap();
    append(&log, vec![entry(1, 0, 9), entry(1, 1, 9)]);
    log.set_committed(Some(id(1, 1)));
    log.close();
    let log = Log::open(&options(dir.path())).unwrap();
    assert_eq!(log.vote(), Some(vote));
    assert_eq!(log.committed(), Some(id(1, 1)));
    log.close();
}

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<usize>),
    Truncate(u64),
    Purge(u64),
    /// As after an installed snapshot: beyond the end.
    Jump(u64),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::collection::vec(0..700_usize, 1..6).prop_map(Step::Append),
        2 => (1..8_u64).prop_map(Step::Truncate),
        2 => (1..8_u64).prop_map(Step::Purge),
        1 => (1..8_u64).prop_map(Step::Jump),
        2 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn behaves_like_a_vector(steps in prop::collection::vec(step(), 1..30)) {
        let dir = tempfile::tempdir().unwrap();
        let mut log = Log::open(&options(dir.path())).unwrap();
        let mut oracle: Vec<(LogId, usize)> = Vec::new();
        let mut next = 0;
        let mut purged = None;
        for (term, step) in (1..).zip(steps) {
            match step {
                Step::Append(sizes) => {
                    let entries = sizes.iter().zip(next..).map(|(&size, index)| entry(term, index, size)).collect();
                    oracle.extend(sizes.iter().zip(next..).map(|(&size, index)| (id(term, index), size)));
                    next += sizes.len() as u64;
                    append(&log, entries);
                }
                Step::Truncate(back) => {
                    let Some(at) = oracle.len().checked_sub(back as usize) else { continue };
                    let since = oracle[at].0;
                    oracle.truncate(at);
                    next = since.index;
                    log.truncate(since).unwrap();
                }
                Step::Purge(count) => {
                    let Some(upto) = oracle.get(count as usize - 1).map(|(id, _)| *id) else { continue };
                    oracle.drain(..count as usize);
                    purged = Some(upto);
                    log.purge(upto).unwrap();
                }
                Step::Jump(ahead) => {
                    let upto = id(term, next + ahead);
                    oracle.clear();
                    next = upto.index + 1;
                    purged = Some(upto);
                    log.purge(upto).unwrap();
                }
                Step::Reopen => {
                    log.close();
                    log = Log::open(&options(dir.path())).unwrap();
                }
            }
            prop_assert_eq!(&all(&log), &oracle);
            prop_assert_eq!(log.state(), (purged, oracle.last().map(|(id, _)| *id).or(purged)));
        }
        log.close();
    }
}

/// The engine believes in a commit as soon as others have an entry, which may be before it is on this disk.
#[test]
fn a_commit_is_not_remembered_before_its_entry_is() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(&options(dir.path())).unwrap();
    append(&log, vec![entry(1, 0, 40)]);
    log.set_committed(Some(id(1, 1)));
    append(&log, vec![entry(1, 1, 40)]);
    // Power goes before that write; another leader fills the place.
    let before = std::fs::read(last_segment(dir.path())).unwrap();
    let slot = log.shared.table.lock().slot(1).unwrap().location.unwrap();
    log.close();
    let path = last_segment(dir.path());
    let mut image = before.clone();
    image[slot.offset as usize..].fill(0);
    std::fs::write(&path, image).unwrap();
    let log = Log::open(&options(dir.path())).unwrap();
    append(&log, vec![entry(2, 1, 40), entry(2, 2, 40)]);
    assert!(log.committed() <= Some(id(1, 0)), "{:?}", log.committed());
    log.close();
}

#[tokio::test]
async fn those_who_speak_for_this_server_wait_for_its_disk() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(&options(dir.path())).unwrap();
    assert_eq!(log.last_durable(), None);
    let entries = (0..50).map(|index| entry(1, index, 400)).collect();
    log.append(entries, Box::new(drop)).unwrap();
    log.durable(id(1, 49)).await.unwrap();
    assert_eq!(log.last_durable(), Some(id(1, 49)));
    assert_eq!(log.stalled_for(), Duration::ZERO);
    // Another leader's entry of the same index, and one that is not here.
    assert!(log.durable(id(2, 49)).await.is_err());
    assert!(log.durable(id(1, 50)).await.is_err());
    log.purge(id(1, 20)).unwrap();
    log.durable(id(1, 7)).await.unwrap();
    // Whoever waits for what is removed hears of it.
    let waiting = log.clone();
    log.append(vec![entry(1, 50, 400)], Box::new(drop)).unwrap();
    let waiter = tokio::spawn(async move { waiting.durable(id(1, 50)).await });
    let cutting = log.clone();
    tokio::task::spawn_blocking(move || cutting.truncate(id(1, 50)))
        .await
        .unwrap()
        .unwrap();
    let _ = tokio::time::timeout(Duration::from_secs(5), waiter)
        .await
        .expect("it must not hang");
    log.close();
}
