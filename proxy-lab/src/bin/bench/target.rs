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
}

const fn target(title: &'static str, figure: &'static str, contestant: &'static str, of: Of) -> Target {
    Target { title, figure, contestant, of }
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
