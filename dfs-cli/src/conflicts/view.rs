//! What is printed of conflicts. Pure.

use dfs_common::conflict::ConflictEntry;
use dfs_common::units::BLOCK_SIZE_BYTES;
use dfs_common::{ChunkVector, ConflictPolicy, ConflictState, HybridClock, Layout, Settlement};
use serde::Serialize;

use crate::output::{self, Table, utc};
use crate::status::storage_name;

#[derive(Debug, Serialize)]
pub(super) struct ConflictView {
    id: u64,
    /// `null`: the file has no name any more.
    path: Option<String>,
    inode: u64,
    policy: String,
    /// found (the other version is being brought in), open, settled
    state: &'static str,
    found: String,
    differing_bytes: u64,
    chain: u32,
    chunk: u32,
    /// Who came back with the other version.
    node: String,
    current: VersionView,
    other: VersionView,
    /// Where the ranges start: of the file, or of the chunk if the file is not there to say how long its chunks are.
    ranges_of: &'static str,
    ranges: Vec<RangeView>,
    settled: Option<SettledView>,
    next: String,
}

/// One of the two.
#[derive(Debug, Serialize)]
struct VersionView {
    /// Version vector: the last version of each epoch.
    vector: String,
    written: String,
    /// Counts what was written at one wall-clock time.
    logical: u32,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct RangeView {
    offset: u64,
    length: u64,
}

#[derive(Debug, Serialize)]
struct SettledView {
    how: Settlement,
    by: String,
    at: String,
}

/// A name may hold what would break a line.
pub(super) fn readable(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    let characters = text.chars().map(|character| {
        if character.is_control() {
            character.escape_default().to_string()
        } else {
            character.to_string()
        }
    });
    characters.collect()
}

fn version_view(vector: &ChunkVector, at: HybridClock) -> VersionView {
    VersionView {
        vector: vector.to_string(),
        written: utc(at.wall),
        logical: at.logical,
    }
}

/// `layout`: the file's, if it is known.
pub(super) fn view(entry: &ConflictEntry, layout: Option<&Layout>) -> ConflictView {
    let conflict = &entry.conflict;
    let divergence = &conflict.divergence;
    let start = layout.map_or(0, |layout| layout.chunk_start(divergence.chunk.index));
    let block = BLOCK_SIZE_BYTES as u64;
    let ranges: Vec<_> = divergence
        .blocks
        .iter()
        .map(|&(first, count)| RangeView {
            offset: start + u64::from(first.0) * block,
            length: u64::from(count) * block,
        })
        .collect();
    let settled = match &conflict.state {
        ConflictState::Found | ConflictState::Open => None,
        ConflictState::Settled { at, how, by } => Some(SettledView {
            how: *how,
            by: by.clone(),
            at: utc(*at),
        }),
    };
    ConflictView {
        id: conflict.id.0,
        path: entry.path.as_deref().map(readable),
        inode: divergence.chunk.inode.get(),
        policy: conflict.policy.to_string(),
        state: match conflict.state {
            ConflictState::Found => "found",
            ConflictState::Open => "open",
            ConflictState::Settled { .. } => "settled",
        },
        found: utc(conflict.found_at),
        differing_bytes: ranges.iter().map(|range| range.length).sum(),
        chain: divergence.chain.get(),
        chunk: divergence.chunk.index.get(),
        node: storage_name(divergence.node),
        current: version_view(&divergence.chains, divergence.chains_at),
        other: version_view(&divergence.theirs, divergence.theirs_at),
        ranges_of: if layout.is_some() { "file" } else { "chunk" },
        ranges,
        settled,
        next: next(entry),
    }
}

/// What is to be done now.
fn next(entry: &ConflictEntry) -> String {
    let id = entry.conflict.id;
    let by_hand = format!("dfs conflicts resolve {id} --keep current|other|both");
    match (&entry.conflict.state, entry.conflict.policy) {
        (ConflictState::Settled { .. }, _) => "nothing: it is settled".into(),
        _ if entry.path.is_none() => "nothing: the file is gone".into(),
        (ConflictState::Found, _) => "wait: the other version is being brought in".into(),
        (ConflictState::Open, ConflictPolicy::KeepBoth) => {
            format!("a mount keeps both within seconds; without one: dfs conflicts resolve {id} --keep both")
        }
        (ConflictState::Open, ConflictPolicy::Application) => {
            format!("merge them: dfs conflicts resolve {id} --run COMMAND; or choose: {by_hand}")
        }
        (ConflictState::Open, ConflictPolicy::LastWriteWins) => format!("choose: {by_hand}"),
    }
}

impl ConflictView {
    fn file(&self) -> String {
        let path = self.path.clone();
        path.unwrap_or_else(|| format!("inode {} (gone)", self.inode))
    }

    fn state_text(&self) -> String {
        let settled = self.settled.as_ref().map(|settled| settled.how.to_string());
        settled.unwrap_or_else(|| self.state.to_owned())
    }
}

pub(super) fn list_lines(views: &[ConflictView]) -> Vec<String> {
    if views.is_empty() {
        return vec!["no conflicts".into()];
    }
    let mut table = Table::new(&["ID", "FILE", "POLICY", "STATE", "FOUND", "DIFFERS"]);
    for view in views {
        table.row([
            view.id.to_string(),
            view.file(),
            view.policy.clone(),
            view.state_text(),
            view.found.clone(),
            output::bytes(view.differing_bytes),
        ]);
    }
    table.render()
}

pub(super) fn show_lines(view: &ConflictView) -> Vec<String> {
    let mut lines = vec![
        format!("conflict {}: {}", view.id, view.file()),
        format!(
            "  inode {}, chunk {}, on chain {}; policy {}",
            view.inode, view.chunk, view.chain, view.policy
        ),
        format!(
            "  found {}, when {} came back with the other version",
            view.found, view.node
        ),
    ];
    for (name, version) in [("current", &view.current), ("other", &view.other)] {
        let VersionView {
            vector,
            written,
            logical,
        } = version;
        lines.push(format!("  {name:<8} {vector}, last written {written} +{logical}"));
    }
    lines.push(format!(
        "  they differ in {} of the {}:",
        output::bytes(view.differing_bytes),
        view.ranges_of
    ));
    let ranges = view.ranges.iter();
    lines.extend(ranges.map(|range| {
        format!(
            "    bytes {} to {}",
            range.offset,
            (range.offset + range.length).saturating_sub(1)
        )
    }));
    lines.push(match &view.settled {
        Some(settled) => format!("  settled {}, by {}: {}", settled.at, settled.by, settled.how),
        None => format!("  {}", view.state),
    });
    lines.push(format!("next: {}", view.next));
    lines
}

#[cfg(test)]
mod tests {
    use dfs_common::*;

    use super::*;

    fn entry(policy: ConflictPolicy, state: ConflictState) -> ConflictEntry {
        let version = |epoch, counter| ChunkVersion {
            epoch: Epoch(epoch),
            counter,
        };
        let at = |seconds, logical| HybridClock {
            wall: Timestamp::from_parts(seconds, 0),
            logical,
        };
        ConflictEntry {
            conflict: Conflict {
                id: ConflictId(71),
                found_at: Timestamp::from_parts(951_782_400, 0),
                policy,
                divergence: Divergence {
                    node: StorageId(2),
                    chain: ChainId(5),
                    chunk: ChunkId::new(InodeId(44), ChunkIndex(1)),
                    theirs: ChunkVector::new(&[version(1, 5)], version(2, 9)),
                    chains: ChunkVector::new(&[version(1, 5)], version(3, 7)),
                    theirs_at: at(60, 1),
                    chains_at: at(120, 0),
                    blocks: vec![(BlockIndex(0), 1), (BlockIndex(3), 2)],
                },
                state,
            },
            path: Some(b"/logs/a\nb".to_vec()),
        }
    }

    fn settled() -> ConflictState {
        ConflictState::Settled {
            at: Timestamp::from_parts(0, 0),
            how: Settlement::Both,
            by: "mount host:/mnt".into(),
        }
    }

    #[test]
    fn a_list_is_a_table_or_says_that_there_is_nothing() {
        assert_eq!(list_lines(&[]), ["no conflicts"]);
        let mut nameless = entry(ConflictPolicy::LastWriteWins, settled());
        nameless.path = None;
        let open = entry(ConflictPolicy::Application, ConflictState::Open);
        let views = [view(&open, None), view(&nameless, None)];
        assert_eq!(
            list_lines(&views),
            [
                "ID  FILE             POLICY  STATE      FOUND                 DIFFERS",
                "71  /logs/a\\nb       app     open       2000-02-29T00:00:00Z  12.0 KiB",
                "71  inode 44 (gone)  lww     both kept  2000-02-29T00:00:00Z  12.0 KiB",
            ]
        );
    }

    #[test]
    fn one_is_shown_with_both_histories_and_what_to_do() {
        let layout = Layout {
            chunk_size_bytes: 65_536,
            table: ChainTableId(1),
            seed: 0,
        };
        let open = view(&entry(ConflictPolicy::Application, ConflictState::Open), Some(&layout));
        assert_eq!(
            show_lines(&open),
            [
                "conflict 71: /logs/a\\nb",
                "  inode 44, chunk 1, on chain 5; policy app",
                "  found 2000-02-29T00:00:00Z, when storage-2 came back with the other version",
                "  current  [1:5 3:7], last written 1970-01-01T00:02:00Z +0",
                "  other    [1:5 2:9], last written 1970-01-01T00:01:00Z +1",
                "  they differ in 12.0 KiB of the file:",
                "    bytes 65536 to 69631",
                "    bytes 77824 to 86015",
                "  open",
                "next: merge them: dfs conflicts resolve 71 --run COMMAND; or choose: dfs conflicts resolve 71 --keep current|other|both",
            ]
        );
        let over = show_lines(&view(&entry(ConflictPolicy::KeepBoth, settled()), None));
        assert!(over.contains(&"    bytes 0 to 4095".to_owned()), "{over:?}");
        assert!(over.contains(&"  settled 1970-01-01T00:00:00Z, by mount host:/mnt: both kept".to_owned()));
        assert_eq!(over.last().unwrap(), "next: nothing: it is settled");
    }
}
