//! The number of this start of this node (its incarnation). It rises with every start, so that the metadata group can tell an
//! earlier process, whose words may come late, from a later one.
//!
//! It is the time in milliseconds, or one more than the last if that is later (a clock that went back), and 20 bits by lot: two
//! copies of one directory that run at once must not pass for one process. A new disk under an old name has no last number; there the clock
//! alone has to be right.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use dfs_common::{Error, ErrorCode, Incarnation, Result};

const LOT_BITS: u32 = 20;

/// A line of fixed length, so that it is replaced in place also when the disk is full: `dfs-starts 1 MILLISECONDS CRC`.
const HEAD: &str = "dfs-starts 1";

fn line(start_ms: u64) -> String {
    let what = format!("{HEAD} {start_ms:020}");
    let crc = crc32c::crc32c(what.as_bytes());
    format!("{what} {crc:08x}\n")
}

/// The number in a line; none if it is not one of ours, or torn.
fn parse(text: &str) -> Option<u64> {
    let start_ms = text.strip_prefix(HEAD)?.strip_prefix(' ')?.get(..20)?.parse().ok()?;
    (line(start_ms) == text).then_some(start_ms)
}

/// The next start after `last_ms`.
fn next(last_ms: Option<u64>, clock_ms: u64, lot: u32) -> (u64, Incarnation) {
    let start_ms = clock_ms.max(last_ms.map_or(0, |last| last.saturating_add(1)));
    let lot = u64::from(lot) & ((1 << LOT_BITS) - 1);
    (start_ms, Incarnation(start_ms << LOT_BITS | lot))
}

/// Takes a number and writes it down before anybody hears of it. The caller holds the directory.
pub(super) fn begin(directory: &Path) -> Result<Incarnation> {
    let at = directory.join("starts");
    let trouble = |error: &std::io::Error| {
        Error::new(
            ErrorCode::Internal,
            format!("{} can not be written: {error}; check its owner and mode", at.display()),
        )
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&at)
        .map_err(|e| trouble(&e))?;
    let mut text = String::new();
    let read = file.read_to_string(&mut text);
    let last_ms = read.ok().and_then(|_| parse(&text));
    if last_ms.is_none() && !text.is_empty() {
        tracing::warn!(file = %at.display(), "the number of the last start is damaged; the clock counts");
    }
    let clock_ms = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(0));
    let mut lot = [0; 4];
    getrandom::fill(&mut lot).map_err(|e| Error::new(ErrorCode::Internal, format!("no randomness: {e}")))?;
    let (start_ms, incarnation) = next(last_ms, clock_ms, u32::from_le_bytes(lot));
    let written = file
        .rewind()
        .and_then(|()| file.write_all(line(start_ms).as_bytes()))
        .and_then(|()| file.sync_all())
        .and_then(|()| File::open(directory)?.sync_all());
    match written {
        Ok(()) => {}
        // Its first start, on a full disk. The clock counts next time.
        Err(error) if error.kind() == ErrorKind::StorageFull => {
            tracing::warn!(file = %at.display(), "no room for the number of this start");
        }
        Err(error) => return Err(trouble(&error)),
    }
    Ok(incarnation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_numbered_in_order_also_when_the_clock_goes_back() {
        let (first, a) = next(None, 1_000, u32::MAX);
        let (second, b) = next(Some(first), 1_000, 0);
        let (third, c) = next(Some(second), 5, u32::MAX);
        let (_, d) = next(Some(third), 9_000, 0);
        assert!(a < b && b < c && c < d, "{a} {b} {c} {d}");
    }

    #[test]
    fn the_number_outlives_the_process_and_damage_costs_no_start() {
        let directory = tempfile::tempdir().unwrap();
        let first = begin(directory.path()).unwrap();
        let second = begin(directory.path()).unwrap();
        assert!(second > first);
        // As if the clock had been far ahead.
        let ahead = 1 << 43;
        std::fs::write(directory.path().join("starts"), line(ahead)).unwrap();
        assert!(begin(directory.path()).unwrap().0 >> LOT_BITS > ahead);
        // Then the clock counts. Not compared with `second`: its millisecond may be the present one, where the lot decides.
        let clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        for damage in [&b"dfs-starts 1 0000000000000000"[..], &[0xff; 34], b""] {
            std::fs::write(directory.path().join("starts"), damage).unwrap();
            let before = clock();
            let start_ms = u128::from(begin(directory.path()).unwrap().0 >> LOT_BITS);
            assert!((before..=clock()).contains(&start_ms), "{start_ms} from {before}");
        }
    }

    #[test]
    fn a_line_has_its_golden_form() {
        let text = line(1_764_122_222_333);
        assert_eq!(parse(&text), Some(1_764_122_222_333));
        assert_eq!(text, line(parse(&text).unwrap()));
        assert!(text.starts_with("dfs-starts 1 00000001764122222333 "));
        assert_eq!(parse(&text.replace("333", "334")), None);
    }
}
