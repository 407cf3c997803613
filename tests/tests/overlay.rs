//! The file system below overlayfs, as container runtimes use it: its upper directory lies here.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use dfs_tests::{DevCluster, run_in, shell};

/// A mounted overlay, unmounted also when the test fails.
struct Overlay(PathBuf);

impl Overlay {
    fn mount(lower: &Path, on_dfs: &Path, at: &Path) -> Self {
        shell(&format!(
            "mount -t overlay overlay -o lowerdir={},upperdir={1}/upper,workdir={1}/work {2}",
            lower.display(),
            on_dfs.display(),
            at.display()
        ));
        Self(at.to_owned())
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn an_upper_directory_of_overlayfs() {
    if !fs::read_to_string("/proc/filesystems").unwrap().contains("overlay") {
        println!("NOT RUN: this kernel has no overlayfs");
        return;
    }
    let mut cluster = DevCluster::up();
    let local = cluster.local();
    let (lower, merged) = (local.join("lower"), local.join("merged"));
    for directory in [&lower, &merged] {
        fs::create_dir_all(directory).unwrap();
    }
    let _ = run_in(
        &lower,
        "mkdir a b c && for f in a/one a/two b/three c/four; do echo $f > $f; done; ln -s one a/link",
    )
    .expect_ok("lower");
    let _ = run_in(&cluster.mount, "mkdir upper work").expect_ok("upper");
    {
        let _overlay = Overlay::mount(&lower, &cluster.mount, &merged);
        let script = "rm a/one && mv a/two b/two && echo more >> b/three && chmod 600 b/three && mkdir d && mv d e
rm -r c && mkdir c && echo new > c/new && cp -a a/link e/ && mv b/two b/three e/ && ln e/two e/also
python3 -c 'import os; os.setxattr(\"e/two\", \"user.a\", b\"value\")'";
        let _ = run_in(&merged, script).expect_ok("a session");
    }
    let upper = cluster.mount.join("upper");
    for whiteout in ["a/one", "a/two", "b/three"] {
        let found = fs::symlink_metadata(upper.join(whiteout)).unwrap();
        assert!(found.file_type().is_char_device() && found.rdev() == 0, "{whiteout}");
    }
    let again = cluster.mount_again();
    let _overlay = Overlay::mount(&lower, &again, &merged);
    let listing = run_in(&merged, "find . -mindepth 1 | sort | tr '\\n' ' '")
        .expect_ok("find")
        .stdout;
    assert_eq!(
        listing.trim(),
        "./a ./a/link ./b ./c ./c/new ./e ./e/also ./e/link ./e/three ./e/two"
    );
    let content = run_in(
        &merged,
        "cat e/two e/three c/new; stat -c %a e/three; stat -c %h e/also",
    )
    .expect_ok("cat");
    assert_eq!(content.stdout, "a/two\nb/three\nmore\nnew\n600\n2\n");
}
