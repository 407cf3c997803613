//! One small value that must survive anything: the vote, the purge mark.
//!
//! A file of two sectors, each with the value, a counter and a checksum. A write goes to one sector, is synced, then to the
//! other and is synced again: once `write` returned, both hold the value, so a torn write is always told from rot (one
//! bad sector is harmless, two are an error) and an acknowledged vote can not silently become an older one.
//!
//! ```text
//! sector   0 magic "DFSMVAL1" | 8 counter u64 | 16 length u32 | 20 zero u32 | 24 cluster [16] | 40 value | 508 crc32c u32
//! ```

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use dfs_common::{ClusterId, DiskCall};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::LogError;
use super::log::sync_directory;
use super::patience::patiently;

const SECTOR_BYTES: usize = 512;
const VALUE_AT: usize = 40;
const MAGIC: [u8; 8] = *b"DFSMVAL1";

/// A durable value of one type in one file.
#[derive(Debug)]
pub(super) struct SmallFile<T> {
    path: PathBuf,
    file: File,
    cluster: ClusterId,
    counter: u64,
    value: Option<T>,
    poisoned: bool,
}

fn sector(cluster: ClusterId, counter: u64, value: &[u8]) -> [u8; SECTOR_BYTES] {
    let mut out = [0; SECTOR_BYTES];
    out[..8].copy_from_slice(&MAGIC);
    out[8..16].copy_from_slice(&counter.to_le_bytes());
    out[16..20].copy_from_slice(&(value.len() as u32).to_le_bytes());
    out[24..40].copy_from_slice(&cluster.0);
    out[VALUE_AT..VALUE_AT + value.len()].copy_from_slice(value);
    let crc = crc32c::crc32c(&out[..508]);
    out[508..].copy_from_slice(&crc.to_le_bytes());
    out
}

/// Counter, cluster and value, if the sector is sound.
fn parse(sector: &[u8]) -> Option<(u64, ClusterId, &[u8])> {
    let word = |at: usize| Some(u32::from_le_bytes(sector.get(at..at + 4)?.try_into().ok()?));
    if sector.get(..8)? != MAGIC || crc32c::crc32c(sector.get(..508)?) != word(508)? {
        return None;
    }
    let counter = u64::from_le_bytes(sector.get(8..16)?.try_into().ok()?);
    let cluster = ClusterId(sector.get(24..40)?.try_into().ok()?);
    let length = word(16)? as usize;
    Some((counter, cluster, sector.get(VALUE_AT..VALUE_AT + length)?))
}

impl<T: Serialize + DeserializeOwned + Clone> SmallFile<T> {
    /// Opens or creates it. A new file is durable, but holds no value.
    pub(super) fn open(path: PathBuf, cluster: ClusterId) -> Result<Self, LogError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(LogError::io("opening", &path))?;
        let mut bytes = vec![0; SECTOR_BYTES * 2];
        let mut have = 0;
        while have < bytes.len() {
            match file
                .read_at(&mut bytes[have..], have as u64)
                .map_err(LogError::io("reading", &path))?
            {
                0 => break,
                some => have += some,
            }
        }
        let sound = bytes
            .chunks(SECTOR_BYTES)
            .filter_map(parse)
            .max_by_key(|(counter, ..)| *counter);
        let mut this = Self {
            path,
            file,
            cluster,
            counter: 0,
            value: None,
            poisoned: false,
        };
        match sound {
            Some((counter, found, _)) if found != cluster => {
                let _ = counter;
                return Err(LogError::ForeignCluster {
                    path: this.path,
                    found,
                    expected: cluster,
                });
            }
            Some((counter, _, value)) => {
                this.counter = counter;
                this.value = Some(dfs_common::codec::decode(value).map_err(|error| LogError::Rot {
                    path: this.path.clone(),
                    offset: 0,
                    detail: error.to_string(),
                })?);
                // One sector may be torn or rotten: make both sound again before anybody relies on it.
                this.write_sectors()?;
            }
            // The first write ever was torn in its first sector: nothing was acknowledged. Anything in both sectors is rot.
            None if bytes[SECTOR_BYTES..].iter().all(|&byte| byte == 0) => {
                this.file
                    .set_len(2 * SECTOR_BYTES as u64)
                    .map_err(LogError::io("extending", &this.path))?;
                this.file.sync_all().map_err(LogError::io("syncing", &this.path))?;
                if let Some(directory) = this.path.parent() {
                    sync_directory(directory)?;
                }
            }
            None => {
                return Err(LogError::Rot {
                    path: this.path,
                    offset: 0,
                    detail: "neither copy of the value is sound".into(),
                });
            }
        }
        Ok(this)
    }

    pub(super) fn get(&self) -> Option<&T> {
        self.value.as_ref()
    }

    /// Returns when both copies are durable. After an error nothing more is written.
    pub(super) fn set(&mut self, value: &T) -> Result<(), LogError> {
        self.counter += 1;
        self.value = Some(value.clone());
        self.write_sectors()
    }

    fn write_sectors(&mut self) -> Result<(), LogError> {
        if self.poisoned {
            return Err(LogError::Poisoned(self.path.display().to_string()));
        }
        let too_big = |_| LogError::TooBig(SECTOR_BYTES);
        let bytes = match &self.value {
            Some(value) => dfs_common::codec::encode(value).map_err(too_big)?,
            None => return Ok(()),
        };
        if bytes.len() > 508 - VALUE_AT {
            return Err(LogError::TooBig(bytes.len()));
        }
        let sector = sector(self.cluster, self.counter, &bytes);
        self.poisoned = true;
        for at in [0, SECTOR_BYTES as u64] {
            patiently(DiskCall::Write, || self.file.write_all_at(&sector, at))
                .map_err(LogError::io("writing", &self.path))?;
            self.file.sync_data().map_err(LogError::io("syncing", &self.path))?;
        }
        self.poisoned = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId([1; 16]);

    #[test]
    fn one_bad_copy_is_healed_and_two_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vote");
        let mut file = SmallFile::<u64>::open(path.clone(), CLUSTER).unwrap();
        assert_eq!(file.get(), None);
        file.set(&7).unwrap();
        file.set(&8).unwrap();
        for at in [20, 600] {
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!(SmallFile::<u64>::open(path.clone(), CLUSTER).unwrap().get(), Some(&8));
        }
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[20] ^= 1;
        bytes[600] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(matches!(
            SmallFile::<u64>::open(path.clone(), CLUSTER),
            Err(LogError::Rot { .. })
        ));
    }

    #[test]
    fn a_torn_first_write_is_no_value() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vote");
        SmallFile::<u64>::open(path.clone(), CLUSTER).unwrap().set(&7).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[30..].fill(0);
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(SmallFile::<u64>::open(path, CLUSTER).unwrap().get(), None);
    }

    #[test]
    fn another_cluster_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vote");
        SmallFile::<u64>::open(path.clone(), CLUSTER).unwrap().set(&7).unwrap();
        assert!(matches!(
            SmallFile::<u64>::open(path, ClusterId([2; 16])),
            Err(LogError::ForeignCluster { .. })
        ));
    }
}
