//! `dfs conflicts resolve`: one conflict as its caller says, or every open one as its file's policy says.

use std::collections::BTreeMap;
use std::time::Duration;

use dfs_client::Client;
use dfs_client::conflicts::Choice;
use dfs_common::conflict::ConflictEntry;
use dfs_common::{ConflictId, ConflictPolicy, ConflictState, ErrorCode};
use tokio_util::sync::CancellationToken;

use super::view::readable;
use super::{find, merge, number};
use crate::args::ResolveArgs;
use crate::config;
use crate::failure::{Code, Failure, Outcome};
use crate::mounting;
use crate::output;
use crate::program::block_on;
use crate::serve::on_signal;

/// Between two looks of `--watch`.
const LOOK: Duration = Duration::from_secs(5);

/// What the arguments mean.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Keep(ConflictId, Choice),
    Run(ConflictId, String),
    All { run: Option<String>, watch: bool },
}

fn choice(text: &str) -> Outcome<Choice> {
    match text {
        "current" => Ok(Choice::Current),
        "other" => Ok(Choice::Other),
        "both" => Ok(Choice::Both),
        _ => Err(Failure::usage(format!(
            "--keep {text:?} is none of current, other, both"
        ))),
    }
}

fn wanted(arguments: &ResolveArgs) -> Outcome<Wanted> {
    let ResolveArgs {
        id,
        keep,
        run,
        all,
        watch,
        cluster: _,
    } = arguments;
    let usage = |message: &str| Err(Failure::usage(message));
    let run = run.clone();
    match (id, keep, run) {
        (_, Some(_), Some(_)) => usage("--keep chooses and --run merges: give one of them"),
        (Some(_), _, _) if *all => usage("the number of a conflict and --all do not go together"),
        (_, Some(_), _) if *all => usage("with --all each file's policy says what to keep: leave --keep away"),
        (None, None, run) if *all => Ok(Wanted::All { run, watch: *watch }),
        _ if *watch => usage("--watch goes with --all"),
        (None, _, _) => usage("which conflict? give its number (dfs conflicts list), or --all"),
        (Some(id), Some(keep), None) => Ok(Wanted::Keep(number(id)?, choice(keep)?)),
        (Some(id), None, Some(run)) => Ok(Wanted::Run(number(id)?, run)),
        (Some(_), None, None) => usage("what is to become of it? --keep current|other|both, or --run COMMAND"),
    }
}

pub(super) fn run(arguments: &ResolveArgs) -> Outcome {
    let wanted = wanted(arguments)?;
    let loaded = config::find(&arguments.cluster)?;
    let options = mounting::client_options(&loaded, "dfs conflicts")?;
    block_on(async {
        let client = Client::connect(options).await?;
        let stop = on_signal()?;
        let resolver = Resolver {
            client: client.clone(),
            by: who(),
            stop,
        };
        let done = resolver.run(&wanted).await;
        let closed = client.close().await;
        let code = done?;
        closed?;
        Ok(code)
    })
}

/// Whose word it is: the person, also behind sudo, and the machine.
fn who() -> String {
    let named = |variable| std::env::var(variable).ok().filter(|name| !name.is_empty());
    let user = named("SUDO_USER").or_else(|| named("USER"));
    let user = user.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()));
    format!("{user}@{}", mounting::host_name())
}

struct Resolver {
    client: Client,
    by: String,
    stop: CancellationToken,
}

impl Resolver {
    async fn run(&self, wanted: &Wanted) -> Outcome {
        match wanted {
            Wanted::Keep(id, choice) => {
                let entry = self.entry(*id).await?;
                output::line(&self.keep(&entry, *choice).await?);
                Ok(Code::Ok)
            }
            Wanted::Run(id, command) => {
                let entry = self.entry(*id).await?;
                output::line(&self.merge(&entry, command).await?);
                Ok(Code::Ok)
            }
            Wanted::All { run, watch: false } => Ok(self.all(run.as_deref(), &mut BTreeMap::new()).await?),
            Wanted::All { run, watch: true } => self.watch(run.as_deref()).await,
        }
    }

    /// The conflict with its file's path.
    async fn entry(&self, id: ConflictId) -> Outcome<ConflictEntry> {
        let entry = find(self.client.conflicts().await?, id)?;
        let inode = entry.conflict.divergence.chunk.inode;
        self.client.conflict(inode, id).await.map_err(plain)
    }

    async fn watch(&self, run: Option<&str>) -> Outcome {
        let mut said = BTreeMap::new();
        loop {
            // A cluster that does not answer now may do so the next time.
            if let Err(failure) = self.all(run, &mut said).await
                && !self.stop.is_cancelled()
            {
                output::complain(&failure.line());
            }
            tokio::select! {
                () = self.stop.cancelled() => return Ok(Code::Ok),
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Every open one. What is said of one that stays open is said again only when it changes.
    async fn all(&self, run: Option<&str>, said: &mut BTreeMap<ConflictId, String>) -> Outcome {
        let mut entries = self.client.conflicts().await?;
        entries.retain(|entry| entry.conflict.state == ConflictState::Open);
        said.retain(|&id, _| entries.iter().any(|entry| entry.conflict.id == id));
        let mut code = Code::Ok;
        for entry in &entries {
            if self.stop.is_cancelled() {
                return Err(Failure::new("interrupted; the rest stays open"));
            }
            let id = entry.conflict.id;
            // Only now is its path worth the group's looking for it.
            let resolved = match self.client.conflict(entry.conflict.divergence.chunk.inode, id).await {
                Ok(entry) if entry.path.is_some() => self.by_policy(&entry, run).await,
                // Its file is gone, or has no name any more, and it goes with it.
                Ok(_) => continue,
                Err(error) if error.code == ErrorCode::NotFound => continue,
                Err(error) => Err(plain(error)),
            };
            match resolved {
                Ok(line) => output::line(&line),
                // A mount was quicker.
                Err(_) if self.is_over(entry).await => {}
                Err(failure) => {
                    code = Code::Failed;
                    let line = failure.line();
                    if said.get(&id) != Some(&line) {
                        output::complain(&line);
                        said.insert(id, line);
                    }
                }
            }
        }
        Ok(code)
    }

    async fn is_over(&self, entry: &ConflictEntry) -> bool {
        let inode = entry.conflict.divergence.chunk.inode;
        let now = self.client.conflict(inode, entry.conflict.id).await;
        now.is_ok_and(|now| now.conflict.state.is_settled())
    }

    async fn by_policy(&self, entry: &ConflictEntry, run: Option<&str>) -> Outcome<String> {
        let id = entry.conflict.id;
        match (entry.conflict.policy, run) {
            (ConflictPolicy::KeepBoth, _) => self.keep(entry, Choice::Both).await,
            (ConflictPolicy::Application, Some(command)) => self.merge(entry, command).await,
            (ConflictPolicy::Application, None) => Err(Failure::new(format!(
                "conflict {id}: {} is merged by a program: give it with --run COMMAND",
                file(entry)
            ))),
            (ConflictPolicy::LastWriteWins, _) => Err(Failure::new(format!(
                "conflict {id}: {}: its policy says nothing of this; choose: dfs conflicts resolve {id} --keep current|other|both",
                file(entry)
            ))),
        }
    }

    async fn keep(&self, entry: &ConflictEntry, choice: Choice) -> Outcome<String> {
        let id = entry.conflict.id;
        let sibling = tokio::select! {
            () = self.stop.cancelled() => Err(interrupted(id)),
            done = self.client.resolve(entry, choice, &self.by) => done.map_err(plain),
        }?;
        let file = file(entry);
        Ok(match (choice, sibling) {
            (Choice::Both, Some(path)) => {
                format!("conflict {id}: {file} stays, the other version is {}", readable(&path))
            }
            (Choice::Other, _) => format!("conflict {id}: {file} has the other version now"),
            _ => format!("conflict {id}: {file} stays as it is"),
        })
    }

    async fn merge(&self, entry: &ConflictEntry, command: &str) -> Outcome<String> {
        merge::run(&self.client, entry, command, &self.by, &self.stop).await?;
        Ok(format!(
            "conflict {}: {} is what the program made of the two",
            entry.conflict.id,
            file(entry)
        ))
    }
}

fn file(entry: &ConflictEntry) -> String {
    let path = entry.path.as_deref().map(readable);
    path.unwrap_or_else(|| format!("inode {}", entry.conflict.divergence.chunk.inode))
}

pub(super) fn interrupted(id: ConflictId) -> Failure {
    Failure::new(format!("conflict {id}: interrupted; it stays open"))
}

/// A refusal as it is said to a person: its code is of no use to them. One of the network keeps its exit code.
pub(super) fn plain(error: dfs_common::Error) -> Failure {
    let detail = error.detail.clone();
    Failure {
        code: Failure::from(error).code,
        ..Failure::new(detail)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, ConflictsVerb, Verb};

    fn parse(line: &str) -> Outcome<Wanted> {
        let line = format!("dfs conflicts resolve {line}");
        let words = line.split(' ').filter(|word| !word.is_empty());
        match Cli::try_parse_from(words).unwrap().verb {
            Verb::Conflicts(ConflictsVerb::Resolve(arguments)) => wanted(&arguments),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn arguments_say_one_thing() {
        let id = ConflictId(12);
        let every = |run: Option<&str>, watch| Wanted::All {
            run: run.map(str::to_owned),
            watch,
        };
        for (line, expected) in [
            ("12 --keep current", Wanted::Keep(id, Choice::Current)),
            ("12 --keep other", Wanted::Keep(id, Choice::Other)),
            ("--keep both 12", Wanted::Keep(id, Choice::Both)),
            ("12 --run merge", Wanted::Run(id, "merge".into())),
            ("--all", every(None, false)),
            ("--all --run merge --watch", every(Some("merge"), true)),
        ] {
            assert_eq!(parse(line).unwrap(), expected, "{line}");
        }
    }

    #[test]
    fn what_does_not_go_together_is_said_in_a_line() {
        for (line, says) in [
            ("", "which conflict?"),
            ("12", "what is to become of it?"),
            ("x12 --keep both", "\"x12\" is not the number of a conflict"),
            ("12 --keep mine", "--keep \"mine\" is none of current, other, both"),
            ("12 --keep both --run merge", "give one of them"),
            ("12 --all", "do not go together"),
            ("--all --keep both", "leave --keep away"),
            ("--watch 12 --keep both", "--watch goes with --all"),
            ("--keep both", "which conflict?"),
        ] {
            let failure = parse(line).unwrap_err();
            assert_eq!(failure.code, Code::Usage, "{line}");
            assert!(failure.line().contains(says), "{line}: {}", failure.line());
        }
    }
}
