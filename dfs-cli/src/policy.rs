//! `dfs policy`: through the mount, as the caller, by the extended attributes that are the policy.

use std::path::{Path, PathBuf};

use dfs_common::policy::ATTRIBUTE_PREFIX;
use dfs_common::{ConflictPolicy, Level, Policy, Profile};
use rustix::fs::{XattrFlags, lgetxattr, lsetxattr};
use rustix::io::Errno;
use serde::Serialize;

use crate::args::PolicyVerb;
use crate::failure::{Code, Failure, Outcome};
use crate::output;
use crate::place::on_a_mount;

/// Longer than any value.
const MAX_VALUE_BYTES: usize = 64;

#[derive(Debug, Serialize)]
struct PolicyView {
    path: String,
    read: Level,
    write: Level,
    profile: Option<&'static str>,
    conflict: String,
}

pub(crate) fn run(verb: &PolicyVerb) -> Outcome {
    match verb {
        PolicyVerb::Get { path, output } => {
            let (path, _) = on_a_mount(path)?;
            let policy = Policy {
                read: get(&path, "read_level")?,
                write: get(&path, "write_level")?,
                conflict: get(&path, "conflict")?,
            };
            let view = PolicyView {
                path: path.display().to_string(),
                read: policy.read,
                write: policy.write,
                profile: policy.profile().map(Profile::name),
                conflict: policy.conflict.to_string(),
            };
            output::print(*output, &view, || print(&view))
        }
        PolicyVerb::Set {
            path,
            read,
            write,
            profile,
            conflict,
            recursive,
        } => {
            let (path, _) = on_a_mount(path)?;
            set_all(&path, &attributes(*read, *write, *profile, *conflict), *recursive)?;
            Ok(Code::Ok)
        }
    }
}

fn attributes(
    read: Option<Level>,
    write: Option<Level>,
    profile: Option<Profile>,
    conflict: Option<ConflictPolicy>,
) -> Vec<(&'static str, String)> {
    [
        ("read_level", read.map(|level| level.to_string())),
        ("write_level", write.map(|level| level.to_string())),
        ("profile", profile.map(|profile| profile.name().to_owned())),
        ("conflict", conflict.map(|conflict| conflict.to_string())),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?)))
    .collect()
}

fn print(view: &PolicyView) {
    let profile = view.profile.map_or(String::new(), |name| format!(" ({name})"));
    output::line(&format!(
        "{}: read {}, write {}{profile}; conflicts: {}",
        view.path, view.read, view.write, view.conflict
    ));
}

fn failed(path: &Path, error: Errno) -> Failure {
    let why = match error {
        // Extended attributes of users are for files and directories only.
        Errno::PERM => {
            "only regular files and directories have a policy, and only who may write to them changes it".to_owned()
        }
        error => error.to_string(),
    };
    Failure::new(format!("{}: {why}", path.display()))
}

fn get<T: std::str::FromStr<Err = dfs_common::Error>>(path: &Path, name: &str) -> Outcome<T> {
    let mut value = [0; MAX_VALUE_BYTES];
    let length = lgetxattr(path, format!("{ATTRIBUTE_PREFIX}{name}"), &mut value[..]).map_err(|e| failed(path, e))?;
    let text = String::from_utf8_lossy(&value[..length]);
    text.parse()
        .map_err(|error: dfs_common::Error| Failure::new(format!("{}: {}", path.display(), error.detail)))
}

/// The path itself, and what is below it if asked for. Symlinks and special files have no policy of their own.
fn set_all(path: &Path, attributes: &[(&str, String)], recursive: bool) -> Outcome<()> {
    let mut left: Vec<(PathBuf, bool)> = vec![(path.to_path_buf(), true)];
    while let Some((path, named)) = left.pop() {
        let io = |error: std::io::Error| Failure::new(format!("{}: {error}", path.display()));
        let kind = std::fs::symlink_metadata(&path).map_err(io)?.file_type();
        if !named && !kind.is_file() && !kind.is_dir() {
            continue;
        }
        for (name, value) in attributes {
            lsetxattr(
                &path,
                format!("{ATTRIBUTE_PREFIX}{name}"),
                value.as_bytes(),
                XattrFlags::empty(),
            )
            .map_err(|error| failed(&path, error))?;
        }
        if recursive && kind.is_dir() {
            for entry in std::fs::read_dir(&path).map_err(io)? {
                left.push((entry.map_err(io)?.path(), false));
            }
        }
    }
    Ok(())
}
