//! Random operations against a naive file system: a map from paths to what they name.

use std::collections::BTreeMap;

use dfs_common::wire::namespace::{FileKind, NamespaceChange, NamespaceOp, RenameMode};
use dfs_common::{ErrorCode, InodeId};
use proptest::prelude::*;

use crate::state::testing::{BadHash, Bench, TestHash, create_op, name};
use crate::store::MemoryStore;

/// Paths are lists of names; few names and little depth, so that operations meet.
type Path = Vec<&'static str>;

const NAMES: [&str; 3] = ["a", "b", "c"];

#[derive(Clone, Debug)]
enum Step {
    Create(Path),
    Mkdir(Path),
    Symlink(Path),
    Link(Path, Path),
    Unlink(Path),
    Rmdir(Path),
    Rename(Path, Path, RenameMode),
}

fn path() -> impl Strategy<Value = Path> {
    proptest::collection::vec(proptest::sample::select(&NAMES[..]), 1..4)
}

fn step() -> impl Strategy<Value = Step> {
    let mode = proptest::sample::select(vec![
        RenameMode::Replace,
        RenameMode::NoReplace,
        RenameMode::Exchange,
        RenameMode::Whiteout,
        RenameMode::WhiteoutNoReplace,
    ]);
    prop_oneof![
        3 => path().prop_map(Step::Create),
        4 => path().prop_map(Step::Mkdir),
        1 => path().prop_map(Step::Symlink),
        2 => (path(), path()).prop_map(|(from, to)| Step::Link(from, to)),
        2 => path().prop_map(Step::Unlink),
        1 => path().prop_map(Step::Rmdir),
        5 => (path(), path(), mode).prop_map(|(from, to, mode)| Step::Rename(from, to, mode)),
    ]
}

/// The naive file system. Files are told apart by a number, so that hard links can be compared.
#[derive(Clone, Debug, Default)]
struct Oracle {
    paths: BTreeMap<Path, (FileKind, u64)>,
    next: u64,
}

impl Oracle {
    fn kind(&self, path: &[&'static str]) -> Option<FileKind> {
        if path.is_empty() {
            return Some(FileKind::Directory);
        }
        self.paths.get(path).map(|found| found.0)
    }

    /// What walking to the directory of this path meets first.
    fn parent(&self, path: &[&'static str]) -> Result<(), ErrorCode> {
        for depth in 0..path.len() {
            match self.kind(&path[..depth]) {
                None => return Err(ErrorCode::NotFound),
                Some(FileKind::Directory) => {}
                Some(_) => return Err(ErrorCode::NotDirectory),
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, kind: FileKind) -> Result<(), ErrorCode> {
        self.parent(path)?;
        if self.kind(path).is_some() {
            return Err(ErrorCode::Exists);
        }
        self.next += 1;
        self.paths.insert(path.clone(), (kind, self.next));
        Ok(())
    }

    fn has_children(&self, path: &Path) -> bool {
        self.paths
            .keys()
            .any(|other| other.len() > path.len() && other.starts_with(path))
    }

    /// Takes a path and all below it out, with the paths relative to it.
    fn take(&mut self, path: &Path) -> Vec<(Path, (FileKind, u64))> {
        let taken: Vec<_> = self
            .paths
            .keys()
            .filter(|other| other.starts_with(path))
            .cloned()
            .collect();
        taken
            .into_iter()
            .map(|whole| (whole[path.len()..].to_vec(), self.paths.remove(&whole).unwrap()))
            .collect()
    }

    fn put(&mut self, path: &Path, tree: Vec<(Path, (FileKind, u64))>) {
        for (rest, what) in tree {
            self.paths.insert([path.clone(), rest].concat(), what);
        }
    }

    fn run(&mut self, step: &Step) -> Result<(), ErrorCode> {
        match step {
            Step::Create(path) => self.add(path, FileKind::Regular),
            Step::Mkdir(path) => self.add(path, FileKind::Directory),
            Step::Symlink(path) => self.add(path, FileKind::Symlink),
            Step::Link(from, to) => {
                self.parent(from)?;
                let source = *self.paths.get(from).ok_or(ErrorCode::NotFound)?;
                self.parent(to)?;
                if self.kind(to).is_some() {
                    return Err(ErrorCode::Exists);
                }
                if source.0 == FileKind::Directory {
                    return Err(ErrorCode::NotPermitted);
                }
                self.paths.insert(to.clone(), source);
                Ok(())
            }
            Step::Unlink(path) => {
                self.parent(path)?;
                match self.kind(path) {
                    None => Err(ErrorCode::NotFound),
                    Some(FileKind::Directory) => Err(ErrorCode::IsDirectory),
                    Some(_) => {
                        self.paths.remove(path);
                        Ok(())
                    }
                }
            }
            Step::Rmdir(path) => {
                self.parent(path)?;
                match self.kind(path) {
                    None => Err(ErrorCode::NotFound),
                    Some(FileKind::Directory) if self.has_children(path) => Err(ErrorCode::NotEmpty),
                    Some(FileKind::Directory) => {
                        self.paths.remove(path);
                        Ok(())
                    }
                    Some(_) => Err(ErrorCode::NotDirectory),
                }
            }
            Step::Rename(from, to, mode) => self.rename(from, to, *mode),
        }
    }

    fn rename(&mut self, from: &Path, to: &Path, mode: RenameMode) -> Result<(), ErrorCode> {
        self.parent(from)?;
        self.parent(to)?;
        let source = *self.paths.get(from).ok_or(ErrorCode::NotFound)?;
        let target = self.paths.get(to).copied();
        match (mode, target) {
            (RenameMode::NoReplace | RenameMode::WhiteoutNoReplace, Some(_)) => return Err(ErrorCode::Exists),
            (RenameMode::Exchange, None) => return Err(ErrorCode::NotFound),
            _ => {}
        }
        if to.len() > from.len() && to.starts_with(from) {
            return Err(ErrorCode::InvalidArgument);
        }
        if from.len() > to.len() && from.starts_with(to) {
            return Err(if mode == RenameMode::Exchange {
                ErrorCode::InvalidArgument
            } else {
                ErrorCode::NotEmpty
            });
        }
        if let Some(target) = target {
            if source.1 == target.1 {
                return Ok(());
            }
            if mode == RenameMode::Exchange {
                let (one, other) = (self.take(from), self.take(to));
                self.put(to, one);
                self.put(from, other);
                return Ok(());
            }
            match (source.0 == FileKind::Directory, target.0 == FileKind::Directory) {
                (true, false) => return Err(ErrorCode::NotDirectory),
                (false, true) => return Err(ErrorCode::IsDirectory),
                (true, true) if self.has_children(to) => return Err(ErrorCode::NotEmpty),
                _ => {}
            }
            self.paths.remove(to);
        }
        let tree = self.take(from);
        self.put(to, tree);
        if matches!(mode, RenameMode::Whiteout | RenameMode::WhiteoutNoReplace) {
            self.add(from, FileKind::CharDevice)?;
        }
        Ok(())
    }
}

/// Walks to the directory of a path as a client does: one lookup a name, and nothing is looked up in a file.
fn walk(bench: &Bench, path: &[&'static str]) -> Result<InodeId, ErrorCode> {
    path[..path.len() - 1]
        .iter()
        .try_fold(InodeId::ROOT, |directory, text| {
            let found = bench.lookup(directory, text)?;
            if found.kind == FileKind::Directory {
                Ok(found.inode)
            } else {
                Err(ErrorCode::NotDirectory)
            }
        })
}

fn run(bench: &mut Bench, step: &Step) -> Result<(), ErrorCode> {
    let last = |path: &Path| *path.last().unwrap();
    match step {
        Step::Create(path) => {
            let op = create_op(walk(bench, path)?, last(path));
            bench.change(op).map(|_| ())
        }
        Step::Mkdir(path) => {
            let parent = walk(bench, path)?;
            bench.mkdir(parent, last(path)).map(|_| ())
        }
        Step::Symlink(path) => {
            let parent = walk(bench, path)?;
            bench.symlink(parent, last(path), "t").map(|_| ())
        }
        Step::Link(from, to) => {
            let source = bench.lookup(walk(bench, from)?, last(from))?.inode;
            let parent = walk(bench, to)?;
            bench.link(source, parent, last(to)).map(|_| ())
        }
        Step::Unlink(path) => {
            let parent = walk(bench, path)?;
            bench.unlink(parent, last(path)).map(|_| ())
        }
        Step::Rmdir(path) => {
            let parent = walk(bench, path)?;
            bench.rmdir(parent, last(path))
        }
        Step::Rename(from, to, mode) => {
            let op = NamespaceOp::Rename {
                parent: walk(bench, from)?,
                name: name(last(from)),
                new_parent: walk(bench, to)?,
                new_name: name(last(to)),
                mode: *mode,
            };
            bench
                .change(op)
                .map(|change| assert!(matches!(change, NamespaceChange::Renamed { .. })))
        }
    }
}

/// Everything below a directory, and what must hold of each inode seen on the way.
fn collect(bench: &Bench, inode: InodeId, path: &Path, found: &mut BTreeMap<Path, (FileKind, InodeId)>) {
    let entries = bench.list(inode, 2);
    let attributes = bench.stat(inode).unwrap();
    let directories = entries
        .iter()
        .filter(|entry| entry.attributes.kind == FileKind::Directory)
        .count();
    assert_eq!(attributes.nlink as usize, 2 + directories, "{path:?}");
    assert_eq!(attributes.length_bytes, 32 * entries.len() as u64, "{path:?}");
    for entry in entries {
        let text = *NAMES
            .iter()
            .find(|text| text.as_bytes() == entry.name.as_bytes())
            .unwrap();
        let below = [path.clone(), vec![text]].concat();
        found.insert(below.clone(), (entry.attributes.kind, entry.attributes.inode));
        assert_eq!(bench.lookup(inode, text).unwrap(), entry.attributes);
        if entry.attributes.kind == FileKind::Directory {
            collect(bench, entry.attributes.inode, &below, found);
        }
    }
}

fn compare(bench: &Bench, oracle: &Oracle) {
    let mut found = BTreeMap::new();
    collect(bench, InodeId::ROOT, &Path::new(), &mut found);
    let kinds = |kinds: &mut dyn Iterator<Item = (Path, FileKind)>| kinds.collect::<Vec<_>>();
    assert_eq!(
        kinds(&mut found.iter().map(|(path, what)| (path.clone(), what.0))),
        kinds(&mut oracle.paths.iter().map(|(path, what)| (path.clone(), what.0)))
    );
    // The same paths name the same inodes, and link counts are the number of paths.
    let mut partners: BTreeMap<u64, InodeId> = BTreeMap::new();
    for (path, (kind, number)) in &oracle.paths {
        let inode = found[path].1;
        assert_eq!(*partners.entry(*number).or_insert(inode), inode, "{path:?}");
        if *kind != FileKind::Directory {
            let names = oracle.paths.values().filter(|what| what.1 == *number).count();
            assert_eq!(bench.stat(inode).unwrap().nlink as usize, names, "{path:?}");
        }
    }
    assert_eq!(bench.state.counts().inodes as usize, partners.len() + 1);
    let orphans = bench.state.orphans(None, usize::MAX).unwrap();
    assert_eq!(bench.state.counts().orphans as usize, orphans.len());
}

fn check(mut bench: Bench, steps: &[Step]) {
    let mut oracle = Oracle::default();
    for step in steps {
        assert_eq!(run(&mut bench, step), oracle.run(step), "{step:?}");
    }
    compare(&bench, &oracle);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn random_operations_match_the_oracle(steps in proptest::collection::vec(step(), 1..80)) {
        check(Bench::new(), &steps);
    }

    #[test]
    fn and_also_when_hashes_collide(steps in proptest::collection::vec(step(), 1..60)) {
        check(Bench::with_hash(MemoryStore::default(), BadHash), &steps);
    }
}

#[test]
fn the_oracle_is_checked_too() {
    // A comparison that sees nothing would pass anything.
    let mut bench = Bench::with_hash(MemoryStore::default(), TestHash);
    bench.create(InodeId::ROOT, "a").unwrap();
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| compare(&bench, &Oracle::default())));
    assert!(caught.is_err());
}
