//! Hosts of one test: a network namespace each, joined by a bridge. Gone when it ends.

use std::ffi::OsStr;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::process::{Finished, dfs_binary, run, shell};

/// One rule set a host for all network faults, so that undoing is one command.
const TABLE: &str = "dfsfault";

#[derive(Debug)]
pub struct Hosts {
    tag: String,
    names: Vec<String>,
}

impl Hosts {
    /// Hosts number 1 to `count`, with the addresses 10.99.0.1 and so on.
    #[must_use]
    pub fn new(count: usize) -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let tag = format!("dt{}x{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let mut hosts = Self { tag, names: Vec::new() };
        let bridge = hosts.bridge();
        shell(&format!(
            "ip netns add {bridge} && ip -n {bridge} link add br0 type bridge && ip -n {bridge} link set br0 up"
        ));
        for number in 1..=count {
            let name = format!("{}n{number}", hosts.tag);
            hosts.names.push(name.clone());
            shell(&format!(
                "ip netns add {name} && ip link add eth0 netns {name} type veth peer name p{number} netns {bridge} \
                 && ip -n {bridge} link set p{number} master br0 up && ip -n {name} addr add {}/24 dev eth0 \
                 && ip -n {name} link set eth0 up && ip -n {name} link set lo up",
                address(number)
            ));
        }
        hosts
    }

    fn bridge(&self) -> String {
        format!("{}b", self.tag)
    }

    /// The `dfs` binary on that host.
    #[must_use]
    pub fn command(&self, number: usize) -> Command {
        self.program(number, dfs_binary())
    }

    fn program(&self, number: usize, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            // Not `ip netns exec`: that would hide the mount in a mount namespace of its own.
            .arg(format!("--net=/run/netns/{}", self.names[number - 1]))
            .arg(program);
        command
    }

    /// Rules for what comes in and what goes out, such as `ip daddr 10.99.0.2 counter drop`, in place of earlier ones.
    #[track_caller]
    pub fn set_rules(&self, number: usize, incoming: &[String], outgoing: &[String]) {
        let chain = |hook: &str, loopback: &str, rules: &[String]| {
            let rules = rules.join("\n");
            format!("chain {hook} {{\n type filter hook {hook} priority 0\n {loopback} \"lo\" accept\n {rules}\n}}\n")
        };
        self.clear_rules(number);
        let rules = format!(
            "table inet {TABLE} {{\n{}{}}}\n",
            chain("input", "iifname", incoming),
            chain("output", "oifname", outgoing)
        );
        let _ = run(self.program(number, "nft").arg(rules)).expect_ok("nft");
    }

    /// How many packets the counters of the rules have seen.
    #[must_use]
    pub fn counted(&self, number: usize) -> u64 {
        let listed = self.nft(number, &["list", "table", "inet", TABLE]);
        let counts = listed.stdout.split("counter packets ").skip(1);
        counts
            .filter_map(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
            .sum()
    }

    pub fn clear_rules(&self, number: usize) {
        // There may be none.
        let _ = self.nft(number, &["delete", "table", "inet", TABLE]);
    }

    fn nft(&self, number: usize, arguments: &[&str]) -> Finished {
        run(self.program(number, "nft").args(arguments))
    }
}

/// Address of a host.
#[must_use]
pub fn address(number: usize) -> String {
    format!("10.99.0.{number}")
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in self.names.iter().chain([&self.bridge()]) {
            let _ = run(Command::new("ip").args(["netns", "del", name]));
        }
    }
}
