//! Machines that were replaced: this server neither listens to them nor believes their answers.
//!
//! The group's word on it is a row of the applied state, and that may be a little older at a start
//! than it was before. A replaced machine and the one in its place must never both vote. So what is
//! required is kept in a file of its own, and the leader is told of it only when that is synced.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dfs_common::{CertificateIssue, MetaId, MetaPlace, NodeName};
use dfs_net::Endpoint;
use parking_lot::Mutex;
use tracing::{error, info, warn};

use super::data_directory;
use super::error::StartError;
use crate::consensus::ServiceReport;

/// Issues that are required of metadata servers.
#[derive(Debug, Default)]
pub(super) struct Replaced {
    /// `None`: nothing is kept.
    file: Option<PathBuf>,
    endpoint: Option<Endpoint>,
    /// What stands in the file is said there.
    report: Arc<Mutex<ServiceReport>>,
}

impl Replaced {
    /// Requires what is in the file, if it is there. One that is damaged is told of, and written
    /// anew when the group's word comes.
    pub(super) fn open(
        file: PathBuf,
        endpoint: Endpoint,
        report: Arc<Mutex<ServiceReport>>,
    ) -> Result<Self, StartError> {
        let required = match read(&file) {
            Ok(required) => required,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                warn!(path = %file.display(), %error, "the list of replaced machines is damaged; the others tell it anew");
                BTreeMap::new()
            }
            Err(error) => return Err(StartError::io("read", &file)(error)),
        };
        let replaced = Self {
            file: Some(file),
            endpoint: Some(endpoint),
            report,
        };
        replaced.require(&required);
        replaced.report.lock().requires = required;
        Ok(replaced)
    }

    /// The group's word.
    pub(super) fn learn(&self, moved: &BTreeMap<MetaId, MetaPlace>) {
        let before = self.report.lock().requires.clone();
        let mut required = before.clone();
        for (&server, place) in moved.iter().filter(|(_, place)| place.issue > CertificateIssue(0)) {
            let issue = required.entry(server).or_default();
            *issue = place.issue.max(*issue);
        }
        if required == before {
            return;
        }
        info!(?required, "another machine takes a metadata server's place");
        self.require(&required);
        let write = |file| data_directory::replace(file, &required);
        match self.file.as_deref().map_or(Ok(()), write) {
            Ok(()) => self.report.lock().requires = required,
            // This process refuses it, and says nothing of it: after a restart it might not. Tried
            // again with the next table.
            Err(error) => error!(%error, "which machines are refused is not on the disk"),
        }
    }

    fn require(&self, required: &BTreeMap<MetaId, CertificateIssue>) {
        let Some(endpoint) = &self.endpoint else { return };
        for (&server, &issue) in required {
            endpoint.require(NodeName::from(server), issue);
        }
    }
}

fn read(path: &Path) -> io::Result<BTreeMap<MetaId, CertificateIssue>> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leader_is_told_only_of_what_is_on_the_disk() {
        let scratch = tempfile::tempdir().unwrap();
        // Nothing can be written there yet.
        let file = scratch.path().join("data").join("replaced.json");
        let replaced = Replaced {
            file: Some(file.clone()),
            ..Replaced::default()
        };
        let requires = || replaced.report.lock().requires.clone();
        let place = |issue| MetaPlace {
            address: "10.0.0.9:7".parse().unwrap(),
            issue: CertificateIssue(issue),
        };
        let moved = [(MetaId(1), place(0)), (MetaId(2), place(1))].into();
        replaced.learn(&moved);
        assert_eq!(requires(), BTreeMap::new());
        std::fs::create_dir(scratch.path().join("data")).unwrap();
        replaced.learn(&moved);
        let expected = BTreeMap::from([(MetaId(2), CertificateIssue(1))]);
        assert_eq!((requires(), read(&file).unwrap()), (expected.clone(), expected.clone()));
        // An older row takes nothing back.
        replaced.learn(&[(MetaId(2), place(0))].into());
        assert_eq!((requires(), read(&file).unwrap()), (expected.clone(), expected));
        std::fs::write(&file, b"{\"2\":").unwrap();
        assert_eq!(read(&file).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
