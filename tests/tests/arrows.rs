//! The arrows between crates point down only, and what must be pure names no clock, no randomness, no I/O.
//!
//! Read from the sources themselves, so that a shortcut in a manifest or a `use` is caught where it is made.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::large_stack_arrays,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Which crates of the workspace a crate may use. dfs-meta and dfs-storage know neither each other nor dfs-client.
const ARROWS: &[(&str, &[&str])] = &[
    ("dfs-common", &[]),
    ("dfs-crypto", &["dfs-common"]),
    ("dfs-net", &["dfs-common", "dfs-crypto"]),
    ("dfs-meta", &["dfs-common", "dfs-crypto", "dfs-net"]),
    ("dfs-storage", &["dfs-common", "dfs-crypto", "dfs-net"]),
    ("dfs-client", &["dfs-common", "dfs-crypto", "dfs-net"]),
    ("dfs-fuse", &["dfs-common", "dfs-client"]),
    (
        "dfs-cli",
        &[
            "dfs-common",
            "dfs-crypto",
            "dfs-net",
            "dfs-meta",
            "dfs-storage",
            "dfs-client",
            "dfs-fuse",
        ],
    ),
];

/// What the tests inside a crate may use besides.
const TEST_ARROWS: &[(&str, &str)] = &[
    // What a mount foresees is compared with what the metadata group does.
    ("dfs-client", "dfs-meta"),
];

/// Modules that decide: files, or folders with all in them.
const PURE: &[&str] = &[
    "dfs-common/src",
    "dfs-meta/src/chains",
    "dfs-meta/src/command.rs",
    "dfs-meta/src/namespace",
    "dfs-storage/src/replica",
    "dfs-client/src/meta/held.rs",
    "history/src",
];

const IMPURE_WORDS: &[&str] = &[
    "tokio",
    "quinn",
    "std::fs",
    "SystemTime",
    "Instant::now",
    "rand::",
    "getrandom",
    "std::net::UdpSocket",
    "std::thread",
];

/// What somebody believes in who was granted a lease or waits for one to end: none of it may stand still while the machine is suspended,
/// as `std::time::Instant` and tokio's do. (A granter or a voter may: it only waits longer.)
const LEASES: &[&str] = &[
    "dfs-storage/src/service/lease.rs",
    "dfs-meta/src/service/clock.rs",
    "dfs-meta/src/service/leader",
    "dfs-meta/src/consensus/confirm.rs",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ stands in the workspace")
        .to_path_buf()
}

/// Source files under `at`, without the modules that exist for tests only (`#[cfg(test)] mod name;`).
fn rust_files(at: &Path, found: &mut Vec<PathBuf>) {
    if at.is_file() {
        found.push(at.to_path_buf());
        return;
    }
    let entries: Vec<PathBuf> = fs::read_dir(at)
        .unwrap_or_else(|e| panic!("{}: {e}", at.display()))
        .map(|entry| entry.expect("readable").path())
        .collect();
    let mut test_modules = Vec::new();
    for file in entries.iter().filter(|path| path.is_file()) {
        let text = fs::read_to_string(file).expect("readable");
        for after in text.split("#[cfg(test)]").skip(1) {
            let declared = after
                .trim_start()
                .strip_prefix("mod ")
                .and_then(|rest| rest.split_once(';'));
            test_modules.extend(declared.map(|(name, _)| name.to_owned()));
        }
    }
    for path in entries {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let wanted = path.is_dir() || path.extension().is_some_and(|extension| extension == "rs");
        if wanted && !test_modules.contains(&stem) {
            rust_files(&path, found);
        }
    }
}

#[test]
fn crates_use_only_crates_below_them() {
    let allowed: BTreeMap<_, _> = ARROWS.iter().copied().collect();
    for (name, below) in ARROWS {
        let manifest = fs::read_to_string(root().join(name).join("Cargo.toml")).expect(name);
        let manifest: toml::Table = manifest.parse().expect(name);
        for section in ["dependencies", "build-dependencies", "dev-dependencies"] {
            let Some(dependencies) = manifest.get(section).and_then(toml::Value::as_table) else {
                continue;
            };
            for dependency in dependencies
                .keys()
                .filter(|dependency| allowed.contains_key(dependency.as_str()))
            {
                let in_tests = section == "dev-dependencies" && TEST_ARROWS.contains(&(*name, dependency.as_str()));
                assert!(
                    in_tests || below.contains(&dependency.as_str()),
                    "{name} must not use {dependency} ({section})"
                );
            }
        }
    }
}

#[test]
fn leases_are_measured_by_the_clock_that_counts_suspension() {
    for at in LEASES {
        let mut files = Vec::new();
        rust_files(&root().join(at), &mut files);
        assert!(!files.is_empty(), "{at} is empty");
        for file in files {
            let text = fs::read_to_string(&file).expect("readable");
            let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
            let wrong = words.filter(|word| *word == "Instant").count();
            assert_eq!(
                wrong,
                0,
                "{}: Instant stands still while the machine is suspended; use BootInstant",
                file.display()
            );
        }
    }
    let storage = fs::read_to_string(root().join("dfs-storage/src/service/lease.rs")).expect("readable");
    assert!(
        storage.contains("Self::with_clock(BootInstant::now)"),
        "leases in service use another clock"
    );
}

#[test]
fn pure_modules_name_no_io() {
    for pure in PURE {
        let mut files = Vec::new();
        rust_files(&root().join(pure), &mut files);
        assert!(!files.is_empty(), "{pure} is empty");
        for file in files {
            let text = fs::read_to_string(&file).expect("readable");
            // Tests beside the code may do what they like.
            let code = text.split("#[cfg(test)]").next().unwrap_or_default();
            for (number, line) in code
                .lines()
                .enumerate()
                .filter(|(_, line)| !line.trim_start().starts_with("//"))
            {
                for word in IMPURE_WORDS {
                    assert!(
                        !line.contains(word),
                        "{}:{}: {word} in a pure module: {line}",
                        file.display(),
                        number + 1
                    );
                }
            }
        }
    }
}
