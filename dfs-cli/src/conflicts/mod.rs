//! `dfs conflicts`: two versions of one file, and what is to become of them.
//!
//! Looking needs no keys and goes through the admin connection; resolving reads and writes files, and is a client of its own.

mod merge;
mod resolve;
mod view;

use dfs_common::conflict::ConflictEntry;
use dfs_common::{ConflictId, ErrorCode};

use crate::args::{ConflictsVerb, Format, ShowArgs};
use crate::failure::{Failure, Outcome};
use crate::output;
use crate::program::block_on;
use crate::status;

pub(crate) fn run(verb: &ConflictsVerb) -> Outcome {
    match verb {
        ConflictsVerb::List { all, json, show } => block_on(list(*all, *json, show)),
        ConflictsVerb::Show { id, json, show } => block_on(show_one(number(id)?, *json, show)),
        ConflictsVerb::Resolve(arguments) => resolve::run(arguments),
    }
}

fn number(text: &str) -> Outcome<ConflictId> {
    text.parse()
        .map_err(|error: dfs_common::Error| Failure::usage(error.detail))
}

fn format(json: bool, show: &ShowArgs) -> Format {
    if json { Format::Json } else { show.output }
}

/// The one with this number.
fn find(conflicts: Vec<ConflictEntry>, id: ConflictId) -> Outcome<ConflictEntry> {
    let found = conflicts.into_iter().find(|entry| entry.conflict.id == id);
    found.ok_or_else(|| {
        Failure::new(format!(
            "there is no conflict {id}, or no more: those of removed files go, and old settled ones; see: dfs conflicts list --all"
        ))
    })
}

async fn list(all: bool, json: bool, show: &ShowArgs) -> Outcome {
    let client = status::connect(&show.cluster).await?;
    let listed = client.conflicts().await;
    client.close().await;
    let mut listed = listed?;
    listed.retain(|entry| all || !entry.conflict.state.is_settled());
    let views: Vec<_> = listed.iter().map(|entry| view::view(entry, None)).collect();
    output::print(format(json, show), &views, || {
        for line in view::list_lines(&views) {
            output::line(&line);
        }
    })
}

async fn show_one(id: ConflictId, json: bool, show: &ShowArgs) -> Outcome {
    let client = status::connect(&show.cluster).await?;
    let looked = async {
        let entry = find(client.conflicts().await?, id)?;
        let file = match &entry.path {
            Some(path) => client.resolve(path).await.map(Some),
            None => Ok(None),
        };
        let layout = match file {
            Ok(file) => file.and_then(|attributes| attributes.file).map(|file| file.layout),
            // It was moved or removed meanwhile: ranges are given within the chunk then.
            Err(error) if error.code == ErrorCode::NotFound => None,
            Err(error) => return Err(error.into()),
        };
        Ok::<_, Failure>(view::view(&entry, layout.as_ref()))
    };
    let looked = looked.await;
    client.close().await;
    let view = looked?;
    output::print(format(json, show), &view, || {
        for line in view::show_lines(&view) {
            output::line(&line);
        }
    })
}
