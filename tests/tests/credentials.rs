//! The administrator's certificate is lost, and then the certificate authority itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::time::Duration;

use dfs_tests::{DevCluster, dfs, run_in};

const WAIT: Duration = Duration::from_secs(30);

#[test]
fn lost_certificates_and_a_lost_authority_are_made_anew() {
    let cluster = DevCluster::up();
    let directory = cluster.data.display().to_string();
    let _ = run_in(&cluster.mount, "echo kept > file && sync file").expect_ok("a file");

    // An administrator again, while everything runs.
    fs::remove_dir_all(cluster.data.join("credentials/admin")).unwrap();
    let refused = cluster.admin(&["resync", "pause"]);
    assert!(
        !refused.ok() && refused.stderr.contains("only administrators may"),
        "{refused:?}"
    );
    let renewed = dfs(["credentials", "renew", &directory, "admin-1"]).expect_ok("renew");
    assert!(renewed.stdout.starts_with("admin-1 "), "{renewed:?}");
    for verb in ["pause", "resume"] {
        let _ = cluster.admin(&["resync", verb]).expect_ok(verb);
    }

    // Nothing can be issued without the authority, and the answer says so in one line.
    fs::remove_dir_all(cluster.data.join("ca")).unwrap();
    for arguments in [
        vec!["credentials", "renew", &directory, "storage-1"],
        vec!["node", "add", &directory, "4=127.0.0.1:1"],
    ] {
        let refused = dfs(arguments);
        assert!(
            !refused.ok() && refused.stderr.contains("certificate authority"),
            "{refused:?}"
        );
        assert_eq!(refused.stderr.lines().count(), 1, "{refused:?}");
    }
    let wrong = dfs(["credentials", "renew", &directory, "storage-9"]);
    assert!(wrong.stderr.contains("storage-9"), "{wrong:?}");

    // A stranger's certificates are worth nothing: a client of the old authority is refused.
    let old = cluster.local().join("old");
    let _ = run_in(
        &cluster.data,
        &format!("cp -r credentials {0} && cp cluster.toml {0}.toml", old.display()),
    );
    let _ = cluster.down().expect_ok("dev down");
    let renewed = dfs(["credentials", "renew", &directory, "--new-authority"]).expect_ok("a new authority");
    for name in ["client-1", "admin-1", "meta-3", "storage-3"] {
        let issued = renewed.stdout.lines().any(|line| line.starts_with(name));
        assert!(issued, "{name}: {renewed:?}");
    }
    let _ = cluster.start_all().expect_ok("dev up");
    cluster.wait_healthy(WAIT);
    let kept = run_in(&cluster.mount, "cat file && echo new > new && sync new").expect_ok("everything is there");
    assert_eq!(kept.stdout, "kept\n");
    let text = fs::read_to_string(old.with_extension("toml")).unwrap();
    let now = cluster.data.join("credentials").display().to_string();
    fs::write(
        old.with_extension("toml"),
        text.replace(&now, &old.display().to_string()),
    )
    .unwrap();
    let refused = dfs(["status", "--cluster", &old.with_extension("toml").display().to_string()]);
    assert!(!refused.ok(), "{refused:?}");
    let _ = dfs(["node", "add", &directory, "4=127.0.0.1:1"]).expect_ok("nodes can be added again");
    let _ = cluster.down().expect_ok("dev down");
}
