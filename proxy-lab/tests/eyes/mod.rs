//! What can be seen of a connection on a node: by rules at netfilter's hooks, by who listens at a device, by conntrack.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeSet;
use std::io::Read;
use std::net::SocketAddr;
use std::process::{Child, ChildStderr, Stdio};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proxy_lab::{Node, wait};

/// Chains by name, hook and priority; the first is that of the family netdev.
const CHAINS: [(&str, &str, i32); 10] = [
    ("ingress", "ingress", 0),
    ("raw", "prerouting", -300),
    ("mangle", "prerouting", -150),
    ("prerouting", "prerouting", -90),
    ("input", "input", 0),
    ("forward", "forward", 0),
    ("output_raw", "output", -300),
    ("output", "output", 0),
    ("postrouting", "postrouting", 0),
    ("last", "postrouting", 300),
];

/// A way of a TCP packet between two ends, and what it is called.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    pub(crate) name: &'static str,
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
}

/// From one end to the other; port 0: any.
pub(crate) fn way(name: &'static str, from: SocketAddr, to: SocketAddr) -> Way {
    Way { name, from, to }
}

impl Way {
    fn rule(&self) -> String {
        let family = if self.from.is_ipv4() { "ip" } else { "ip6" };
        let port = |what: &str, of: &SocketAddr| match of.port() {
            0 => String::new(),
            port => format!(" tcp {what} {port}"),
        };
        let (sport, dport) = (port("sport", &self.from), port("dport", &self.to));
        format!("{family} saddr {} {family} daddr {}{sport}{dport}", self.from.ip(), self.to.ip())
    }

    fn filter(&self) -> String {
        let port = |what: &str, of: &SocketAddr| match of.port() {
            0 => String::new(),
            port => format!(" and {what} port {port}"),
        };
        let (sport, dport) = (port("src", &self.from), port("dst", &self.to));
        format!("tcp and src host {} and dst host {}{sport}{dport}", self.from.ip(), self.to.ip())
    }
}

/// Rules and listeners.
pub(crate) struct Eyes<'a> {
    node: &'a Node,
    ways: Vec<Way>,
    /// With what they say: who may not say it ends.
    dumps: Vec<(String, Child, ChildStderr)>,
}

impl<'a> Eyes<'a> {
    /// Open on a node: at all hooks, at the ingress of `uplink`, and at these devices.
    pub(crate) fn open(node: &'a Node, ways: Vec<Way>, uplink: &str, devices: &[&str]) -> Result<Self> {
        let mut rules: Vec<_> =
            ways.iter().map(|way| format!("{} counter comment \"{}\"", way.rule(), way.name)).collect();
        rules.push("meta mark & 0x4000 != 0 counter comment \"marked\"".into());
        let rules = rules.join("; ");
        let chain = |(name, hook, priority): &(&str, &str, i32)| {
            let device = if *hook == "ingress" { format!(" device {uplink}") } else { String::new() };
            let tracked =
                if *hook == "forward" { "; ct state invalid counter comment \"invalid\"" } else { "" };
            format!(
                "chain {name} {{ type filter hook {hook}{device} priority {priority}; {rules}{tracked}; }};"
            )
        };
        let chains = |of: &[_]| of.iter().map(chain).collect::<Vec<_>>().join(" ");
        let (first, rest) = CHAINS.split_at(1);
        node.run("nft", &[&format!("table netdev eyes {{ {} }}", chains(first))])?;
        node.run("nft", &[&format!("table inet eyes {{ {} }}", chains(rest))])?;
        let mut eyes = Self { node, ways, dumps: Vec::new() };
        for device in devices {
            let mut child = node
                .command("tcpdump")?
                .args(["-nni", device, "--immediate-mode", "-U", "-w", &eyes.file(device)])
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()?;
            let mut said = child.stderr.take().context("tcpdump's standard error")?;
            let mut text = String::new();
            // It says so when it listens; the first bytes are that line's.
            while !text.contains("listening on") {
                let mut byte = [0];
                said.read_exact(&mut byte).with_context(|| format!("tcpdump of {device}: {text}"))?;
                text.push(char::from(byte[0]));
            }
            eyes.dumps.push(((*device).to_owned(), child, said));
        }
        Ok(eyes)
    }

    fn file(&self, device: &str) -> String {
        self.node.folder().join(format!("{device}.pcap")).display().to_string()
    }

    /// What was seen, as `PLACE: WAY`; the rules are gone then. Waits until the listeners have seen as much as `at_least`
    /// ways.
    pub(crate) fn close(mut self, at_least: usize) -> Result<BTreeSet<String>> {
        let mut seen = BTreeSet::new();
        wait::until("the listeners have seen all", || {
            for (device, ..) in &self.dumps {
                for way in &self.ways {
                    let file = self.file(device);
                    let text = self.node.run("tcpdump", &["-nnr", &file, &way.filter()])?;
                    if !text.trim().is_empty() {
                        seen.insert(format!("{device}: {}", way.name));
                    }
                }
            }
            anyhow::ensure!(seen.len() >= at_least, "{seen:?}");
            Ok(())
        })?;
        for (_, child, _) in &mut self.dumps {
            kill(Pid::from_raw(child.id().try_into()?), Signal::SIGTERM)?;
            child.wait()?;
        }
        for table in ["netdev eyes", "inet eyes"] {
            let text = self.node.run("nft", &[&format!("list table {table}")])?;
            let mut chain = "";
            for line in text.lines().map(str::trim) {
                if let Some(name) = line.strip_prefix("chain ") {
                    chain = name.trim_end_matches(" {");
                } else if line.contains("counter packets") && !line.contains("packets 0 ") {
                    let name = line.split('"').nth(1).unwrap_or(line);
                    seen.insert(format!("{chain}: {name}"));
                }
            }
            self.node.run("nft", &[&format!("delete table {table}")])?;
        }
        Ok(seen)
    }
}

/// What conntrack has of TCP: its lines without counters.
pub(crate) fn conntrack(node: &Node, family: &str) -> Result<Vec<String>> {
    let text = node.run("conntrack", &["-L", "-f", family, "-p", "tcp"])?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// All places of `places` with each of `ways`.
pub(crate) fn all(places: &[&str], ways: &[&str]) -> BTreeSet<String> {
    places.iter().flat_map(|place| ways.iter().map(move |way| format!("{place}: {way}"))).collect()
}
