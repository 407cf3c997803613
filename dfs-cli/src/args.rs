//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

const EXIT_CODES: &str =
    "Exit codes: 0 done (health: ok), 1 failed (chain verify: replicas differ), 2 called wrongly, \
    3 the cluster is not healthy, 4 no metadata server answers.

A cluster is found by --cluster FILE, else DFS_CLUSTER, else the last development cluster, else /etc/dfs/cluster.toml.";

/// dfs, a distributed file system
#[derive(Debug, Parser)]
#[command(name = "dfs", version, about, after_help = EXIT_CODES, propagate_version = false, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// What to log to stderr: error, warn, info, debug, or as RUST_LOG [default: info for servers, error for verbs]
    #[arg(long, global = true, value_name = "FILTER", help_heading = "Logging")]
    pub(crate) log: Option<String>,
    /// Log as JSON, one object a line
    #[arg(long, global = true, help_heading = "Logging")]
    pub(crate) log_json: bool,
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
    /// Run a metadata server
    #[command(display_order = 11)]
    Meta(ServeArgs),
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
    /// Where the chunks of a file live
    #[command(display_order = 23)]
    Where(WhereArgs),
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

#[derive(Debug, Args)]
pub(crate) struct WhereArgs {
    /// A file or directory on a mount
    pub(crate) path: PathBuf,
    #[command(flatten)]
    pub(crate) show: ShowArgs,
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
    /// ro, rw, dev, nodev, suid, nosuid, exec, noexec, atime, noatime, allow_other, noallow_other (comma-separated)
    #[arg(short = 'o', value_name = "OPTIONS", value_delimiter = ',')]
    pub(crate) options: Vec<String>,
    /// Where the mount's process logs to when it is in the background [default: ~/.local/state/dfs/mount-PATH.log]
    #[arg(long, value_name = "FILE")]
    pub(crate) log_file: Option<PathBuf>,
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
