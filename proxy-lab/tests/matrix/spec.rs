//! What kube-proxy does with a connection, stated by itself: the rows of its rules (spec §2.3 to §2.6), no code of vipr's.
//! Where a socket is served when it connects it is seen as itself, whatever row it is (docs/parity.md).

use std::fmt;

use proxy_lab::Family;

/// Whose observable differences are asked for (`--proxy-mode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    Iptables,
    Nftables,
    Ipvs,
}

impl Profile {
    pub(crate) const ALL: [Self; 3] = [Self::Iptables, Self::Nftables, Self::Ipvs];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
            Self::Ipvs => "ipvs",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// Who dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    /// A pod of node `a`.
    Pod,
    /// A process of node `a`.
    Node,
    /// Somebody outside the cluster whose packets node `a` gets.
    Outside,
}

/// What is dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    ClusterIp,
    /// At the node's primary address.
    NodePort,
    /// At another address of the node.
    OtherNodePort,
    /// At 127.0.0.1.
    LoopbackNodePort,
    LoadBalancerIp,
    ExternalIp,
}

impl Door {
    pub(crate) const ALL: [Self; 6] = [
        Self::ClusterIp,
        Self::NodePort,
        Self::OtherNodePort,
        Self::LoopbackNodePort,
        Self::LoadBalancerIp,
        Self::ExternalIp,
    ];
}

/// A Service, by its endpoints and by what its spec says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One endpoint, another pod of node `a`.
    Near,
    /// One endpoint, a pod of node `b`.
    Far,
    /// One endpoint, a hostNetwork pod of node `a`.
    Host,
    /// One endpoint, a hostNetwork pod of node `b`.
    FarHost,
    /// One endpoint: the pod that dials.
    Hairpin,
    /// `externalTrafficPolicy: Local`, endpoints on both nodes.
    ExternalLocal,
    /// The same with endpoints on node `b` alone.
    ExternalElsewhere,
    /// `internalTrafficPolicy: Local`, endpoints on both nodes.
    InternalLocal,
    /// The same with endpoints on node `b` alone.
    InternalElsewhere,
    /// `sessionAffinity: ClientIP`, endpoints on both nodes.
    Affinity,
    /// No endpoint.
    Empty,
}

impl Kind {
    pub(crate) const ALL: [Self; 11] = [
        Self::Near,
        Self::Far,
        Self::Host,
        Self::FarHost,
        Self::Hairpin,
        Self::ExternalLocal,
        Self::ExternalElsewhere,
        Self::InternalLocal,
        Self::InternalElsewhere,
        Self::Affinity,
        Self::Empty,
    ];

    /// The places of its endpoints.
    pub(crate) fn endpoints(self) -> &'static [&'static str] {
        match self {
            Self::Near => &["near"],
            Self::Far | Self::ExternalElsewhere | Self::InternalElsewhere => &["far"],
            Self::Host => &["a"],
            Self::FarHost => &["b"],
            Self::Hairpin => &["pod"],
            Self::ExternalLocal | Self::InternalLocal | Self::Affinity => &["near", "far"],
            Self::Empty => &[],
        }
    }

    /// Those of node `a`.
    fn local(self) -> &'static [&'static str] {
        match self {
            Self::ExternalLocal | Self::InternalLocal => &["near"],
            Self::ExternalElsewhere | Self::InternalElsewhere => &[],
            _ => self.endpoints(),
        }
    }

    pub(crate) fn external_is_local(self) -> bool {
        matches!(self, Self::ExternalLocal | Self::ExternalElsewhere)
    }

    pub(crate) fn internal_is_local(self) -> bool {
        matches!(self, Self::InternalLocal | Self::InternalElsewhere)
    }
}

/// How an agent runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pass {
    pub(crate) name: &'static str,
    /// Sockets of pods and the node are served when they connect; else nobody's are.
    pub(crate) sockets: bool,
    pub(crate) packets: bool,
    /// `--cluster-cidr` says who is a pod.
    pub(crate) detector: bool,
    pub(crate) masquerade_all: bool,
}

/// One connection.
#[derive(Clone, Copy)]
pub(crate) struct Cell {
    pub(crate) pass: Pass,
    pub(crate) profile: Profile,
    pub(crate) family: Family,
    pub(crate) protocol: Protocol,
    pub(crate) client: Client,
    pub(crate) door: Door,
    pub(crate) kind: Kind,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pass, profile, family, protocol, client, door, kind } = self;
        let profile = profile.name();
        write!(f, "[{profile}, {}, {family:?} {protocol:?}, {client:?} to {door:?} of {kind:?}]", pass.name)
    }
}

/// As whom the server sees the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Client,
    /// By the address of node `a` on the device that leads to the server.
    Node,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// One of these places answers.
    Answer(&'static [&'static str]),
    /// ECONNREFUSED by port unreachable.
    Refusal,
    /// Silence.
    Drop,
    /// Left alone: the address means what it means without a proxy.
    Pass,
}

impl Cell {
    /// Whether anybody could make this connection.
    pub(crate) fn exists(&self) -> bool {
        let loopback =
            self.door != Door::LoopbackNodePort || self.client == Client::Node && self.family == Family::V4;
        // No cgroup program sees the node's SCTP: nothing is promised but that it does not leave (docs/parity.md).
        loopback && (self.client != Client::Node || self.protocol != Protocol::Sctp)
    }

    /// Whether it is the client's socket that is given an endpoint.
    pub(crate) fn by_socket(&self) -> bool {
        let served = match self.client {
            Client::Outside => false,
            Client::Node => self.pass.sockets,
            // What depends on the client's address is left to packets.
            Client::Pod => {
                let left = if self.door == Door::ClusterIp {
                    self.pass.masquerade_all
                } else {
                    self.kind.external_is_local() && self.pass.detector && !self.holds_everybody()
                };
                self.pass.sockets && !(left && self.pass.packets)
            }
        };
        served && self.protocol != Protocol::Sctp && self.expected() != Expected::Drop
    }

    pub(crate) fn expected(&self) -> Expected {
        // Spec §2.4: which addresses have NodePorts.
        match (self.door, self.profile) {
            (Door::OtherNodePort, Profile::Nftables)
            | (Door::LoopbackNodePort, Profile::Nftables | Profile::Ipvs) => return Expected::Pass,
            _ => {}
        }
        let served = self.set();
        let (at_balancer, at_host) = (
            matches!(self.door, Door::LoadBalancerIp | Door::ExternalIp),
            self.client == Client::Node && self.profile == Profile::Iptables,
        );
        match (served, self.kind.endpoints()) {
            // Spec §2.5: iptables has no REJECT in OUTPUT for these.
            ([], []) if at_balancer && at_host => Expected::Pass,
            ([], []) => Expected::Refusal,
            ([], _) => Expected::Drop,
            _ => Expected::Answer(served),
        }
    }

    /// Who may serve, rows 1 to 13.
    fn set(&self) -> &'static [&'static str] {
        let policy_is_local = if self.door == Door::ClusterIp {
            self.kind.internal_is_local()
        } else {
            // Rows 8 and 10: those known to be of the cluster are short-circuited.
            let circuit = self.client == Client::Node || self.client == Client::Pod && self.detects_pods();
            self.kind.external_is_local() && (!circuit || self.holds_everybody())
        };
        if policy_is_local { self.kind.local() } else { self.kind.endpoints() }
    }

    /// ipvs has one list of endpoints for an address, whoever dials it: those here if there are any.
    fn holds_everybody(&self) -> bool {
        self.profile == Profile::Ipvs && !self.kind.local().is_empty()
    }

    fn detects_pods(&self) -> bool {
        self.pass.detector
    }

    /// As whom `server`, which serves, sees the client.
    pub(crate) fn source(&self, server: &str) -> Source {
        let hairpin = self.client == Client::Pod && server == "pod";
        let masqueraded = if self.by_socket() {
            // A socket that has its endpoint before it has a source takes one that the endpoint can answer.
            false
        } else if self.door == Door::ClusterIp {
            // Rows 1 and 3.
            self.pass.masquerade_all || self.client == Client::Outside && self.detects_pods()
        } else {
            // Rows 4, 5, 7 to 9.
            !self.kind.external_is_local()
        };
        // POSTROUTING is not passed on the way to the node itself.
        let delivered_here = server == "a";
        match self.client {
            Client::Node => Source::Node,
            _ if delivered_here => Source::Client,
            _ if masqueraded || hairpin && !self.by_socket() => Source::Node,
            _ => Source::Client,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKETS: Pass =
        Pass { name: "packets", sockets: false, packets: true, detector: true, masquerade_all: false };

    fn cell(client: Client, door: Door, kind: Kind) -> Cell {
        let (profile, protocol) = (Profile::Iptables, Protocol::Tcp);
        Cell { pass: PACKETS, profile, family: Family::V4, protocol, client, door, kind }
    }

    #[test]
    fn the_master_table_is_stated_row_by_row() {
        use Client::{Node, Outside, Pod};
        use Door::{ClusterIp, ExternalIp, LoadBalancerIp, NodePort};
        let both = Expected::Answer(&["near", "far"]);
        for (client, door, kind, expected, source) in [
            (Pod, ClusterIp, Kind::Near, Expected::Answer(&["near"]), Source::Client),
            (Pod, ClusterIp, Kind::InternalLocal, Expected::Answer(&["near"]), Source::Client),
            (Outside, ClusterIp, Kind::Near, Expected::Answer(&["near"]), Source::Node),
            (Outside, NodePort, Kind::Affinity, both, Source::Node),
            (Pod, LoadBalancerIp, Kind::Affinity, both, Source::Node),
            (Outside, ExternalIp, Kind::ExternalLocal, Expected::Answer(&["near"]), Source::Client),
            (Pod, NodePort, Kind::ExternalLocal, both, Source::Client),
            (Node, NodePort, Kind::ExternalLocal, both, Source::Node),
            (Outside, NodePort, Kind::ExternalElsewhere, Expected::Drop, Source::Client),
            (Pod, ClusterIp, Kind::InternalElsewhere, Expected::Drop, Source::Client),
            (Node, ExternalIp, Kind::Empty, Expected::Pass, Source::Node),
            (Pod, ExternalIp, Kind::Empty, Expected::Refusal, Source::Node),
        ] {
            let cell = cell(client, door, kind);
            assert_eq!((cell.expected(), cell.source("near")), (expected, source), "{cell}");
        }
        assert_eq!(cell(Pod, ClusterIp, Kind::Hairpin).source("pod"), Source::Node);
        assert_eq!(cell(Outside, NodePort, Kind::Host).source("a"), Source::Client);
    }

    #[test]
    fn in_mode_ipvs_endpoints_here_serve_everybody_under_a_local_policy() {
        for client in [Client::Pod, Client::Node, Client::Outside] {
            let of =
                |kind| Cell { profile: Profile::Ipvs, ..cell(client, Door::LoadBalancerIp, kind) }.expected();
            assert_eq!(of(Kind::ExternalLocal), Expected::Answer(&["near"]));
            let far = if client == Client::Outside { Expected::Drop } else { Expected::Answer(&["far"]) };
            assert_eq!(of(Kind::ExternalElsewhere), far);
        }
    }

    #[test]
    fn without_a_detector_pods_are_strangers_to_local_policies() {
        let undetected = Pass { detector: false, ..PACKETS };
        let of = |door, kind| Cell { pass: undetected, ..cell(Client::Pod, door, kind) };
        assert_eq!(of(Door::NodePort, Kind::ExternalLocal).expected(), Expected::Answer(&["near"]));
        assert_eq!(of(Door::NodePort, Kind::ExternalElsewhere).expected(), Expected::Drop);
        let outside = Cell { client: Client::Outside, ..of(Door::ClusterIp, Kind::Near) };
        assert_eq!(outside.source("near"), Source::Client);
        let all = Pass { masquerade_all: true, ..undetected };
        assert_eq!(Cell { pass: all, ..outside }.source("near"), Source::Node);
    }
}
