//! What is measured on packets and sockets, and what each figure must reach.

use crate::ground::From;
use crate::load::Load;

/// One figure of the paths.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    /// In the results.
    pub(crate) name: &'static str,
    /// For people.
    pub(crate) title: &'static str,
    pub(crate) from: From,
    pub(crate) load: Load,
    /// Dials each of the Services in turn, not one.
    pub(crate) spread: bool,
}

/// All of them, in the order of a round.
pub(crate) const FIGURES: &[Figure] = &[
    figure("connections", "TCP connections via ClusterIP", From::Pod, Load::Connections),
    figure("requests", "TCP request/response via ClusterIP", From::Pod, Load::Requests),
    figure("datagrams", "UDP from new sockets via ClusterIP", From::Pod, Load::Datagrams),
    figure("http-short", "HTTP, a connection each, via ClusterIP", From::Pod, Load::HttpShort),
    figure("http-keep", "HTTP, kept alive, via ClusterIP", From::Pod, Load::HttpKeep),
    figure("stream", "throughput via ClusterIP", From::Pod, Load::Stream),
    figure(
        "outside-connections",
        "TCP connections from outside via NodePort",
        From::Outside,
        Load::Connections,
    ),
    figure(
        "outside-requests",
        "TCP request/response from outside via NodePort",
        From::Outside,
        Load::Requests,
    ),
    figure("connect", "connect() of a new UDP socket", From::Pod, Load::Connect),
    figure("reconnect", "connect() of one UDP socket again", From::Pod, Load::Reconnect),
    Figure {
        spread: true,
        ..figure(
            "connect-cold",
            "connect() of a new UDP socket to each Service in turn",
            From::Pod,
            Load::Connect,
        )
    },
    Figure {
        spread: true,
        ..figure(
            "reconnect-cold",
            "connect() of one UDP socket to each Service in turn",
            From::Pod,
            Load::Reconnect,
        )
    },
];

const fn figure(name: &'static str, title: &'static str, from: From, load: Load) -> Figure {
    Figure { name, title, from, load, spread: false }
}

impl Figure {
    /// Nanoseconds in a call, not a rate: what is added counts, and less is better.
    pub(crate) fn is_time(&self) -> bool {
        matches!(self.load, Load::Connect | Load::Reconnect)
    }

    /// Whether it says something about a node whose sockets are not served.
    pub(crate) fn is_of_packets(&self) -> bool {
        !self.is_time() && !matches!(self.load, Load::HttpShort | Load::HttpKeep)
    }
}
