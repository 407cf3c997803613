//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use dfs_common::{ConflictPolicy, Level, Profile};

const EXIT_CODES: &str =
    "Exit codes: 0 done (health: ok), 1 failed (chain verify: replicas differ), 2 called wrongly, \
    3 the cluster is not healthy, 4 no metadata server answers.

A cluster is found by --cluster FILE, else DFS_CLUSTER, else the last development cluster, else /etc/dfs/cluster.toml.";

/// dfs, a distributed file system
#[derive(Debug, Parser)]
#[command(name = "dfs", version, about, after_help = EXIT_CODES, propagate_version = false, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// What to log: error, warn, info, debug, or as RUST_LOG [default: info for servers, error for
    /// verbs]
    #[arg(long, global = true, value_name = "FILTER", help_heading = "Logging")]
    pub(crate) log: Option<String>,
    /// Log as JSON, one object a line
    #[arg(long, global = true, help_heading = "Logging")]
    pub(crate) log_json: bool,
    /// Log to this file. At 16 MiB it becomes FILE.1, and three earlier ones stay [default: stderr;
    /// of a mount in the background ~/.local/state/dfs/mount-PATH.log]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Logging")]
    pub(crate) log_file: Option<PathBuf>,
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// A whole cluster on this machine: start, look, break, repair, stop
    #[command(subcommand, display_order = 1)]
    Dev(DevVerb),
    /// Mount a cluster on a directory
    #[command(display_order = 2)]
    Mount(MountArgs),
    /// Unmount it
    #[command(display_order = 3)]
    Umount(UmountArgs),
    /// Make a new cluster: keys, certificates and one configuration a node
    #[command(display_order = 10)]
    Init(InitArgs),
    /// Run a metadata server; or give one another address, or another machine
    #[command(display_order = 11)]
    Meta(MetaArgs),
    /// Run a storage node
    #[command(display_order = 12)]
    Storage(ServeArgs),
    /// Leader, members, nodes, capacity and chains
    #[command(display_order = 20)]
    Status(ShowArgs),
    /// Is everything well? (exit code 0 only if it is)
    #[command(display_order = 21)]
    Health(HealthArgs),
    /// Replication chains: list, show, watch, verify
    #[command(subcommand, display_order = 22)]
    Chain(ChainVerb),
    /// Check everything stored against its checksums: start a round, follow it, list what was found
    #[command(subcommand, display_order = 24)]
    Scrub(ScrubVerb),
    /// Storage nodes: add, drain, look after, remove
    #[command(subcommand, display_order = 25)]
    Node(NodeVerb),
    /// Certificates: issue them anew
    #[command(subcommand, display_order = 28)]
    Credentials(CredentialsVerb),
    /// Copying to replicas that are out of sync: status, pause, resume
    #[command(subcommand, display_order = 26)]
    Resync(ResyncVerb),
    /// Where the chunks of a file live
    #[command(display_order = 23)]
    Where(WhereArgs),
    /// Read every block of a file on every replica, and open it
    #[command(display_order = 24)]
    Verify(VerifyArgs),
    /// Levels of reads and writes, and what settles conflicts: of a file, or of what is made in a directory
    #[command(subcommand, display_order = 24)]
    Policy(PolicyVerb),
    /// Make everything that was written through a mount durable now, as sync(1) does on a local disk
    #[command(display_order = 24)]
    Sync(SyncArgs),
    /// Two versions of one file that did not know of each other: list, show, resolve
    #[command(subcommand, display_order = 27)]
    Conflicts(ConflictsVerb),
    /// Print the version
    #[command(display_order = 30)]
    Version,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ClusterArgs {
    /// The cluster's file [default: the last development cluster's, or /etc/dfs/cluster.toml]
    #[arg(long, value_name = "FILE", env = "DFS_CLUSTER")]
    pub(crate) cluster: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    /// How to print
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub(crate) output: Format,
}

#[derive(Debug, Args)]
pub(crate) struct HealthArgs {
    /// Also say what is wrong, or that nothing is
    #[arg(value_parser = ["detail"])]
    pub(crate) detail: Option<String>,
    #[command(flatten)]
    pub(crate) show: ShowArgs,
}

#[derive(Debug, Args)]
pub(crate) struct SyncArgs {
    /// Anything on the mount
    #[arg(value_name = "PATH")]
    pub(crate) path: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ChainVerb {
    /// Every chain with its epoch and members
    List(ShowArgs),
    /// One chain
    Show {
        /// Number of the chain
        id: u32,
        #[command(flatten)]
        show: ShowArgs,
    },
    /// Chains and resyncs as they change, until interrupted
    Watch {
        /// Print once and end
        #[arg(long)]
        once: bool,
        /// End when the cluster is healthy
        #[arg(long)]
        until_healthy: bool,
        /// Seconds between two looks
        #[arg(long, default_value_t = 1.0, value_name = "SECONDS")]
        interval: f64,
        #[command(flatten)]
        show: ShowArgs,
    },
    /// Compare all replicas by version and digest
    Verify {
        /// Chains to compare [default: all]
        ids: Vec<u32>,
        /// Read and hash the stored data too, not only what is recorded about it
        #[arg(long)]
        deep: bool,
        #[command(flatten)]
        show: ShowArgs,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ScrubVerb {
    /// Begin a round now, quicker than the one that always runs
    Start {
        /// Come back when it is through (exit code 1 if something is damaged and not mended)
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        of: ScrubArgs,
    },
    /// How far it is, and how much was found and mended
    Status {
        #[command(flatten)]
        of: ScrubArgs,
    },
    /// What was damaged, when, where, and what became of it; on metadata servers too
    Errors {
        #[command(flatten)]
        of: ScrubArgs,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ScrubArgs {
    /// One storage node [default: all]
    #[arg(long, value_name = "N")]
    pub(crate) node: Option<u32>,
    #[command(flatten)]
    pub(crate) show: ShowArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeVerb {
    /// Prepare a directory for another storage node of a cluster that `dfs init` or `dfs dev up` made
    Add {
        /// The directory that `dfs init` made
        directory: PathBuf,
        /// Its number, and where the others reach it
        #[arg(value_name = "ID=HOST:PORT")]
        node: String,
        /// Its data directory; `{}` becomes the node's name [default: data beside its node.toml]
        #[arg(long, value_name = "DIR")]
        data: Option<String>,
    },
    /// Duty, space and chains of one
    Show {
        /// Such as storage-4
        name: String,
        #[command(flatten)]
        show: ShowArgs,
    },
    /// Have its chains taken over by others, so that it can be removed
    Drain {
        /// Such as storage-4
        name: String,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// It keeps its chains after all
    Undrain {
        /// Such as storage-4
        name: String,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// It may be away for long: nobody takes its place meanwhile
    Maintenance {
        /// Such as storage-4
        name: String,
        /// It is back
        #[arg(long)]
        end: bool,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Forget one that is stopped and in no chain
    Remove {
        /// Such as storage-4
        name: String,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Could these be stopped now, all together? (exit code 3 if not)
    OkToStop {
        /// Such as storage-4
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        show: ShowArgs,
    },
    /// Its disk is well, whatever it reported: it opens the store that it has condemned, with all that is sound in it
    Trust {
        /// Such as storage-4
        name: String,
        /// I know that its disk is well again: what its last writes left there is believed as far as checksums go
        #[arg(long)]
        i_know: bool,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Give up what only the lost disk of this node has: its chains go on with copies that are out of date
    AcceptDataLoss {
        /// Such as storage-4
        name: String,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct MetaArgs {
    #[command(subcommand)]
    pub(crate) verb: Option<MetaVerb>,
    #[command(flatten)]
    pub(crate) serve: Option<ServeArgs>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CredentialsVerb {
    /// Issue certificates anew, of those named or of all
    Renew {
        /// The directory that `dfs init` made
        directory: PathBuf,
        /// Such as admin-1, client-1 or storage-2 [default: all]
        #[arg(conflicts_with = "new_authority")]
        names: Vec<String>,
        /// With a new certificate authority, when the old one is lost, or known to others
        #[arg(long)]
        new_authority: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum MetaVerb {
    /// It is at another address; clients and servers that run hear of it
    Move {
        /// Such as meta-2
        name: String,
        /// Where the others reach it
        #[arg(value_name = "HOST:PORT")]
        address: String,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Another machine takes its place, for good: the one before is refused, should it come back
    Replace {
        /// The directory that `dfs init` made
        directory: PathBuf,
        /// Such as meta-2
        name: String,
        /// Where the others reach the new machine
        #[arg(value_name = "HOST:PORT")]
        address: String,
        /// Its data directory; `{}` becomes the server's name [default: as it was]
        #[arg(long, value_name = "DIR")]
        data: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ResyncVerb {
    /// How far it is, how fast, and how long it takes still
    Status(ShowArgs),
    /// Copy nothing until `resume`
    Pause(ClusterArgs),
    /// Go on
    Resume(ClusterArgs),
}

#[derive(Debug, Args)]
pub(crate) struct WhereArgs {
    /// A file or directory on a mount
    pub(crate) path: PathBuf,
    #[command(flatten)]
    pub(crate) show: ShowArgs,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    /// A file on a mount, or a directory: then every regular file below it
    pub(crate) path: PathBuf,
    #[command(flatten)]
    pub(crate) show: ShowArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyVerb {
    /// Print it
    Get {
        /// A file or directory on a mount
        path: PathBuf,
        /// How to print
        #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
        output: Format,
    },
    /// Change it: of a file for those who open it from now on, of a directory for what is made in it from now on
    #[command(group = clap::ArgGroup::new("what").args(["read", "write", "profile", "conflict"]).required(true).multiple(true))]
    Set {
        /// A file or directory on a mount
        path: PathBuf,
        /// What a read has to see: ONE (one replica), QUORUM (all that was written at QUORUM or ALL), ALL
        #[arg(long, value_name = "LEVEL")]
        read: Option<Level>,
        /// How many replicas have a write before it is acknowledged: ONE, QUORUM, ALL
        #[arg(long, value_name = "LEVEL")]
        write: Option<Level>,
        /// Both levels: billing (QUORUM, QUORUM), call-records (read ONE, write QUORUM), analytics (ONE, ONE)
        #[arg(long, value_name = "NAME", conflicts_with_all = ["read", "write"])]
        profile: Option<Profile>,
        /// What settles two versions that did not know of each other: lww (the last write wins), keep-both, app
        #[arg(long, value_name = "POLICY")]
        conflict: Option<ConflictPolicy>,
        /// Also everything that is below the directory
        #[arg(long, short = 'R')]
        recursive: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConflictsVerb {
    /// Those that are not settled
    List {
        /// Settled ones too, as far as they are remembered
        #[arg(long)]
        all: bool,
        /// The same as --output json
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        show: ShowArgs,
    },
    /// One: who came back with what, where the versions differ, and what to do about it
    Show {
        /// As `dfs conflicts list` numbers it
        id: String,
        /// The same as --output json
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        show: ShowArgs,
    },
    /// Settle one, or every open one as its file's policy says
    Resolve(ResolveArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ResolveArgs {
    /// As `dfs conflicts list` numbers it
    pub(crate) id: Option<String>,
    /// What stays: current (the file as it is), other (takes its place), both (the other as NAME.conflict-ID beside it)
    #[arg(long, value_name = "VERSION")]
    pub(crate) keep: Option<String>,
    /// Have a program make one of the two: sh runs it with the paths of the current version, of the other, and of the result that it
    /// is to write (also $DFS_CURRENT, $DFS_OTHER, $DFS_RESULT; and $DFS_PATH, $DFS_CONFLICT)
    #[arg(long, value_name = "COMMAND")]
    pub(crate) run: Option<String>,
    /// Every open one: keep-both keeps both, app is merged by --run
    #[arg(long)]
    pub(crate) all: bool,
    /// With --all: go on with those that come, until interrupted
    #[arg(long)]
    pub(crate) watch: bool,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Directory to make; must not exist or be empty
    pub(crate) directory: PathBuf,
    /// A metadata server and where the others reach it (repeat; usually three)
    #[arg(long, value_name = "ID=HOST:PORT", required = true)]
    pub(crate) meta: Vec<String>,
    /// A storage node and where the others reach it (repeat; at least three)
    #[arg(long, value_name = "ID=HOST:PORT", required = true)]
    pub(crate) storage: Vec<String>,
    /// Data directory of every node; `{}` becomes the node's name [default: data beside its node.toml]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// The node's configuration, as `dfs init` wrote it
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Local address to bind, if not the configuration's
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) listen: Option<SocketAddr>,
    /// Leave the caller's session: how the development cluster's servers outlive it
    #[arg(long, hide = true)]
    pub(crate) own_session: bool,
}

#[derive(Debug, Args)]
pub(crate) struct MountArgs {
    /// An empty directory
    pub(crate) mount_point: PathBuf,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    /// Stay in the foreground
    #[arg(long, short)]
    pub(crate) foreground: bool,
    /// ro, rw, dev, nodev, suid, nosuid, exec, noexec, atime, noatime, allow_other, noallow_other; read=LEVEL, write=LEVEL (ONE,
    /// QUORUM, ALL) or profile=NAME instead of every file's policy (comma-separated)
    #[arg(short = 'o', value_name = "OPTIONS", value_delimiter = ',')]
    pub(crate) options: Vec<String>,
    #[arg(long, hide = true)]
    pub(crate) own_session: bool,
}

#[derive(Debug, Args)]
pub(crate) struct UmountArgs {
    /// Where it is mounted
    pub(crate) mount_point: PathBuf,
    /// Also if it is busy or its cluster is dead: abort what is in progress and detach
    #[arg(long, short)]
    pub(crate) force: bool,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct DataArgs {
    /// The cluster's directory [default: the last one used, else $XDG_DATA_HOME/dfs/dev or ~/.local/share/dfs/dev]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DevVerb {
    /// Start a cluster and mount it; returns when it is healthy and mounted
    Up {
        /// An existing empty directory
        mount_point: PathBuf,
        /// The cluster's directory [default: $XDG_DATA_HOME/dfs/dev or ~/.local/share/dfs/dev]
        #[arg(long, value_name = "DIR")]
        data: Option<PathBuf>,
        /// Metadata servers of a new cluster [default: 3]
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=9), value_name = "COUNT")]
        meta: Option<u32>,
        /// Storage nodes of a new cluster [default: 3]
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64), value_name = "COUNT")]
        storage: Option<u32>,
    },
    /// Its processes
    Ps {
        #[command(flatten)]
        data: DataArgs,
        /// How to print
        #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
        output: Format,
    },
    /// kill -9 one of them: meta-1, storage-2, mount
    Kill {
        /// As `dfs dev ps` lists it
        name: String,
        #[command(flatten)]
        data: DataArgs,
    },
    /// Start one of them again
    Start {
        /// As `dfs dev ps` lists it
        name: String,
        #[command(flatten)]
        data: DataArgs,
    },
    /// Unmount and stop everything; the files stay for the next `up`
    Down {
        /// Also if the mount is busy
        #[arg(long, short)]
        force: bool,
        #[command(flatten)]
        data: DataArgs,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_verb_has_help() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }
}
