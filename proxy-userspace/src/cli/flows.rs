//! `vipr flows`: the connections that the packet plane remembers now, whether or not an agent runs.

use std::{
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    str::FromStr,
};

use anyhow::{Result, ensure};
use clap::ValueEnum;

use super::output::{Output, Pins};
use crate::{
    dataplane::{self, PinnedFlow, sys},
    text::{self, FlowEntry, FlowList, FlowRow},
};

/// Arguments of `vipr flows`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vipr flows --client 203.0.113.2
  vipr flows --dialled 10.96.0.10:80 --protocol tcp -o json
  vipr flows --count

A connection is here from its first packet through the packet plane until it is over, or silent for longer than netfilter
would remember it. What sockets of this node and its pods dialled by the socket plane has no flow. Only root may look.")]
pub struct Args {
    /// Only those of this client
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    client: Option<End>,
    /// Only those to what was dialled here
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    dialled: Option<End>,
    /// Only those that this endpoint serves
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    backend: Option<End>,
    /// Only those of this protocol
    #[arg(long, value_enum, ignore_case = true)]
    protocol: Option<Protocol>,
    /// Say only how many there are
    #[arg(long)]
    count: bool,
    #[command(flatten)]
    pins: Pins,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// An address, with a port or with any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    address: IpAddr,
    port: Option<u16>,
}

impl FromStr for End {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(at) = text.parse::<SocketAddr>() {
            return Ok(Self { address: at.ip(), port: Some(at.port()) });
        }
        match text.parse() {
            Ok(address) => Ok(Self { address, port: None }),
            Err(_) => Err("write it like 10.96.0.1, 10.96.0.1:80 or [fd00:96::a]:53".into()),
        }
    }
}

impl End {
    fn is(self, at: SocketAddr) -> bool {
        self.address == at.ip() && self.port.is_none_or(|port| port == at.port())
    }
}

impl Args {
    fn wants(&self, row: &FlowRow) -> bool {
        let protocol = self.protocol.is_none_or(|protocol| match protocol {
            Protocol::Tcp => row.protocol == "TCP",
            Protocol::Udp => row.protocol == "UDP",
            Protocol::Sctp => row.protocol == "SCTP",
        });
        protocol
            && self.client.is_none_or(|end| end.is(row.client))
            && self.dialled.is_none_or(|end| end.is(row.dialled))
            && self.backend.is_none_or(|end| end.is(row.backend))
    }
}

/// List the flows.
pub fn run(args: Args) -> Result<ExitCode> {
    let pin_path = &args.pins.pin_path;
    let (actual, _) = dataplane::read_pinned(pin_path)?;
    ensure!(
        !actual.devices.is_empty(),
        "the packet plane is off: no device of this node has its programs, so there are no flows (`vipr run --packet-plane=on`)"
    );
    let plane = dataplane::pinned_packet_plane(pin_path)?;
    let entries = dataplane::pinned_flows(pin_path)?;
    let entry = |PinnedFlow { key, flow, confirmed }| FlowEntry { key, flow, confirmed };
    let entries: Vec<_> = entries.into_iter().map(entry).collect();
    let all = text::flows(&entries, &plane.timeouts, sys::monotonic_seconds());
    let list = FlowList::new(all, |row| args.wants(row), !args.count);
    args.output.answer(&list, FlowList::text)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn wants(line: &str) -> bool {
        let row = FlowRow {
            protocol: "TCP".into(),
            client: "203.0.113.2:40000".parse().unwrap(),
            dialled: "[fd00:96::1]:80".parse().unwrap(),
            backend: "10.0.0.7:8080".parse().unwrap(),
            masquerade: None,
            moved: false,
            own: false,
            shown_port: None,
            confirmed: true,
            state: "open",
            client_said: "talks",
            backend_said: "talks",
            idle_seconds: 0,
            left_seconds: 1,
        };
        Line::try_parse_from(format!("flows {line}").split_whitespace()).unwrap().args.wants(&row)
    }

    #[test]
    fn a_flow_is_listed_if_all_that_is_asked_for_holds() {
        for line in [
            "",
            "--client 203.0.113.2",
            "--client 203.0.113.2:40000 --protocol TCP",
            "--dialled fd00:96::1 --backend 10.0.0.7:8080 --protocol tcp",
            "--dialled [fd00:96::1]:80",
        ] {
            assert!(wants(line), "{line}");
        }
        for line in [
            "--client 203.0.113.3",
            "--client 203.0.113.2:40001",
            "--dialled [fd00:96::1]:81 --backend 10.0.0.7",
            "--backend 10.0.0.7 --protocol udp",
            "--backend 203.0.113.2",
        ] {
            assert!(!wants(line), "{line}");
        }
    }

    #[test]
    fn an_end_that_is_none_is_a_wrong_command_line() {
        let error = Line::try_parse_from(["flows", "--client", "web:80"]).err().unwrap().to_string();
        assert!(error.contains("write it like 10.96.0.1, 10.96.0.1:80 or [fd00:96::a]:53"), "{error}");
    }
}
