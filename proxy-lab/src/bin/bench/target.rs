//! What must be reached, and whether it is.

use crate::sample::{Rows, Spread};

/// How a figure is judged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Of {
    /// Ratio to another contestant: at least so much.
    Ratio(&'static str, f64),
    /// More than another by at most so much (nanoseconds).
    Added(&'static str, f64),
    /// The median: at most so much.
    AtMost(f64),
    /// Every value: at most so much.
    Worst(f64),
}

/// One row of the table of targets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) title: &'static str,
    pub(crate) figure: &'static str,
    pub(crate) contestant: &'static str,
    pub(crate) of: Of,
    /// Only with so many Services.
    at: Option<u32>,
}

const fn target(title: &'static str, figure: &'static str, contestant: &'static str, of: Of) -> Target {
    Target { title, figure, contestant, of, at: None }
}

/// Of the agent, or of its programs, with so many Services.
const fn at(
    services: u32,
    title: &'static str,
    figure: &'static str,
    contestant: &'static str,
    most: f64,
) -> Target {
    Target { at: Some(services), ..target(title, figure, contestant, Of::AtMost(most)) }
}

/// All, in the page's order.
pub(crate) const TARGETS: &[Target] = &[
    target("TCP connections via ClusterIP ÷ direct", "connections", "vipr", Of::Ratio("direct", 0.97)),
    target(
        "TCP connections via ClusterIP ÷ kube-proxy nftables",
        "connections",
        "vipr",
        Of::Ratio("nftables", 1.10),
    ),
    target("HTTP, a connection each ÷ direct", "http-short", "vipr", Of::Ratio("direct", 0.97)),
    target("HTTP, kept alive ÷ direct", "http-keep", "vipr", Of::Ratio("direct", 0.99)),
    target("TCP request/response ÷ direct", "requests", "vipr", Of::Ratio("direct", 0.99)),
    target("UDP from new sockets ÷ direct", "datagrams", "vipr", Of::Ratio("direct", 0.95)),
    target("throughput ÷ direct", "stream", "vipr", Of::Ratio("direct", 0.99)),
    target(
        "NodePort from outside, connections ÷ direct",
        "outside-connections",
        "vipr",
        Of::Ratio("direct", 0.95),
    ),
    target(
        "NodePort from outside, request/response ÷ direct",
        "outside-requests",
        "vipr",
        Of::Ratio("direct", 0.96),
    ),
    target(
        "packet plane, ClusterIP, connections ÷ direct",
        "connections",
        "packets",
        Of::Ratio("direct", 0.93),
    ),
    target(
        "packet plane, ClusterIP, request/response ÷ direct",
        "requests",
        "packets",
        Of::Ratio("direct", 0.95),
    ),
    target("endpoint change as a client sees it, ms, median", "switch", "vipr", Of::AtMost(5.0)),
    target("the same, ms, worst", "switch", "vipr", Of::Worst(25.0)),
    target("connect() added: lookup and choice, ns", "reconnect", "vipr", Of::Added("direct", 400.0)),
    target("the same, each Service in turn, ns", "reconnect-cold", "vipr", Of::Added("direct", 400.0)),
    target("connect() added with the reverse record, ns", "connect", "vipr", Of::Added("direct", 1200.0)),
    target("the same, each Service in turn, ns", "connect-cold", "vipr", Of::Added("direct", 1200.0)),
    target(
        "a packet of no Service, ingress and egress, warm, ns",
        "packet: no Service, both, warm",
        "programs",
        Of::AtMost(60.0),
    ),
    target(
        "the same, on a port that Services use",
        "packet: no Service, on a port that Services use, both, warm",
        "programs",
        Of::AtMost(60.0),
    ),
    target(
        "the same, on a port that endpoints use",
        "packet: no Service, on a port that endpoints use, both, warm",
        "programs",
        Of::AtMost(60.0),
    ),
    target(
        "VXLAN outer packet, ingress and egress, warm, ns",
        "packet: VXLAN outer packet, both, warm",
        "programs",
        Of::AtMost(60.0),
    ),
    at(10_000, "10 000 × 20: end of the last list → all in the tables, ms", "agent-fill", "vipr", 100.0),
    at(10_000, "10 000 × 20: whole start, ms", "agent-start", "vipr", 2000.0),
    target(
        "an endpoint's change → tables, alone, ms, median",
        "agent-change-idle-p50",
        "vipr",
        Of::AtMost(1.0),
    ),
    target("the same, 99 of 100", "agent-change-idle-p99", "vipr", Of::AtMost(5.0)),
    target("the same, among 100 a second, ms, median", "agent-change-busy-p50", "vipr", Of::AtMost(1.0)),
    target("the same, 99 of 100", "agent-change-busy-p99", "vipr", Of::AtMost(5.0)),
    target("the agent at 100 changes a second, % of a core", "agent-change-cpu", "vipr", Of::AtMost(5.0)),
    at(1, "the agent's resident memory, MB", "agent-rss", "vipr", 20.0),
    at(1000, "the same, 1 000 × 20", "agent-rss", "vipr", 25.0),
    at(10_000, "the same, 10 000 × 20", "agent-rss", "vipr", 100.0),
    at(50_000, "the same, 50 000 × 5", "agent-rss", "vipr", 120.0),
];

/// What a target got.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reached {
    pub(crate) spread: Spread,
    pub(crate) reached: bool,
}

impl Target {
    /// With so many Services; `None` where it was not measured.
    pub(crate) fn judge(&self, rows: &Rows, services: u32) -> Option<Reached> {
        if self.at.is_some_and(|at| at != services) {
            return None;
        }
        let (figure, one) = (self.figure, self.contestant);
        let (spread, reached) = match self.of {
            Of::Ratio(to, least) => {
                let spread = rows.ratio(services, figure, one, to)?;
                // As precise as it is printed.
                (spread, (spread.median * 1000.0).round() >= (least * 1000.0).round())
            }
            Of::Added(to, most) => {
                let spread = rows.added(services, figure, one, to)?;
                (spread, spread.median <= most)
            }
            Of::AtMost(most) => {
                let spread = rows.values(services, figure, one)?;
                (spread, spread.median <= most)
            }
            Of::Worst(most) => {
                let spread = rows.values(services, figure, one)?;
                (Spread { median: spread.worst, ..spread }, spread.worst <= most)
            }
        };
        Some(Reached { spread, reached })
    }

    /// What must be reached, for people.
    pub(crate) fn wanted(&self) -> String {
        match self.of {
            Of::Ratio(_, least) => format!("≥ {least:.2}"),
            Of::Added(_, most) | Of::AtMost(most) | Of::Worst(most) => format!("≤ {most}"),
        }
    }
}
