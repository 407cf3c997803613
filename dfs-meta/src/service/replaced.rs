//! Machines that were replaced: this server neither listens to them nor believes their answers.
//!
//! The group's word on it is a row of the applied state, and that may be a little older at a start than it was before. A
//! replaced machine and the one in its place must never both vote, so what was learned is kept in a file of its own,
//! which is synced before this server tells anybody that it has applied the row.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use dfs_common::{CertificateIssue, MetaId, MetaPlace, NodeName};
use dfs_net::Endpoint;
use parking_lot::Mutex;
use tracing::{error, info, warn};

use super::data_directory;
use super::error::StartError;

/// Issues that are required of metadata servers, here and in the file.
#[derive(Debug, Default)]
pub(super) struct Replaced {
    kept: Option<(PathBuf, Endpoint)>,
    required: Mutex<BTreeMap<MetaId, CertificateIssue>>,
}

impl Replaced {
    /// Requires what is in the file, if it is there. One that is damaged is told of and written anew when the group's word
    /// comes.
    pub(super) fn open(path: PathBuf, endpoint: Endpoint) -> Result<Self, StartError> {
        let required = match read(&path) {
            Ok(required) => required,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                warn!(path = %path.display(), %error, "the list of replaced machines is damaged; the others tell it anew");
                BTreeMap::new()
            }
            Err(error) => return Err(StartError::io("read", &path)(error)),
        };
        require(&endpoint, &required);
        Ok(Self {
            kept: Some((path, endpoint)),
            required: Mutex::new(required),
        })
    }

    /// The group's word.
    pub(super) fn learn(&self, moved: &BTreeMap<MetaId, MetaPlace>) {
        let mut required = self.required.lock();
        let mut now = required.clone();
        for (&server, place) in moved.iter().filter(|(_, place)| place.issue > CertificateIssue(0)) {
            let issue = now.entry(server).or_default();
            *issue = place.issue.max(*issue);
        }
        if *required == now {
            return;
        }
        if let Some((path, endpoint)) = &self.kept {
            require(endpoint, &now);
            info!(required = ?now, "another machine takes a metadata server's place");
            if let Err(error) = data_directory::replace(path, &now) {
                // Tried again with the next table; until then this process knows.
                error!(%error, "what machines are refused is not on the disk");
                return;
            }
        }
        *required = now;
    }
}

fn require(endpoint: &Endpoint, required: &BTreeMap<MetaId, CertificateIssue>) {
    for (&server, &issue) in required {
        endpoint.require(NodeName::from(server), issue);
    }
}

fn read(path: &Path) -> io::Result<BTreeMap<MetaId, CertificateIssue>> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(error),
    }
}
