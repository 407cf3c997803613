//! Which machines may still speak under a name. A certificate of a lower issue than is required
//! belongs to a machine that was replaced, and both ends of a connection refuse it.

use std::collections::BTreeMap;
use std::sync::Arc;

use dfs_common::{CertificateIssue, NodeName};
use dfs_crypto::certificate::PeerIdentity;
use tokio::sync::watch;

/// The lowest issue that is accepted of each name; 0 unless more was required. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct RequiredIssues(Arc<watch::Sender<BTreeMap<NodeName, CertificateIssue>>>);

impl RequiredIssues {
    /// Whether more is required of `name` now than before.
    pub(crate) fn raise(&self, name: NodeName, issue: CertificateIssue) -> bool {
        self.0.send_if_modified(|required| {
            let least = required.entry(name).or_default();
            let rises = issue > *least;
            *least = issue.max(*least);
            rises
        })
    }

    /// # Errors
    /// Why a machine with this certificate is refused.
    pub(crate) fn check(&self, identity: &PeerIdentity) -> Result<(), String> {
        check(&self.0.borrow(), identity)
    }

    /// Returns when that machine is refused; mostly never.
    pub(crate) async fn refused(&self, identity: &PeerIdentity) -> String {
        let mut required = self.0.subscribe();
        loop {
            if let Err(reason) = check(&required.borrow_and_update(), identity) {
                return reason;
            }
            // It can not close: `self` has the sender.
            if required.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

fn check(required: &BTreeMap<NodeName, CertificateIssue>, identity: &PeerIdentity) -> Result<(), String> {
    match required.get(&identity.name) {
        Some(&least) if identity.issue < least => Err(format!(
            "another machine has taken the place of {name}: its certificate is of issue {issue}, {least} is required; stop it for good",
            name = identity.name,
            issue = identity.issue
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use dfs_common::{ClusterId, Role};

    use super::*;

    #[tokio::test]
    async fn a_replaced_machine_is_refused_and_nobody_else() {
        let identity = |number, issue| PeerIdentity {
            cluster: ClusterId([1; 16]),
            name: NodeName::new(Role::Meta, number),
            issue: CertificateIssue(issue),
        };
        let required = RequiredIssues::default();
        assert_eq!(required.check(&identity(2, 0)), Ok(()));
        let waiting = tokio::spawn({
            let required = required.clone();
            async move { required.refused(&identity(2, 0)).await }
        });
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(!waiting.is_finished());
        assert!(required.raise(identity(2, 1).name, CertificateIssue(1)));
        assert!(!required.raise(identity(2, 1).name, CertificateIssue(0)));
        assert!(waiting.await.unwrap().contains("meta-2"));
        assert!(required.check(&identity(2, 0)).is_err());
        assert_eq!(required.check(&identity(2, 1)), Ok(()));
        assert_eq!(required.check(&identity(2, 2)), Ok(()));
        assert_eq!(required.check(&identity(1, 0)), Ok(()));
    }
}
