//! Which addresses of a ServicePort are dialled, and what it is subject to (spec §1.2, §2.1, §2.3, §2.8).

use std::{collections::BTreeSet, net::IpAddr};

use proxy_common::{
    Address, Protocol,
    layout::{FrontendKey, FrontendKind, Policy as Bits},
};

use super::{
    Cidr, Family, HostSource, Node, Policy, Port, Profile, Service, Settings, local, questions::Answers,
};

/// One address that a ServicePort is dialled at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dialled {
    pub(super) key: FrontendKey,
    pub(super) kind: FrontendKind,
    /// The node's own processes are outside the source ranges.
    pub(super) host_denied: bool,
    /// A socket of the node has it instead (see [`super::questions`]).
    pub(super) left_to_socket: bool,
}

/// A Service, as one family sees it: the ServicePorts of a family are nothing but this and their port.
pub(super) struct Face<'a> {
    service: &'a Service,
    family: Family,
    cluster_ip: IpAddr,
    node: &'a Node,
    answers: &'a Answers,
}

impl<'a> Face<'a> {
    /// `None`: the service has no ClusterIP of the family, so it does not exist for it at all, other addresses
    /// included.
    pub(super) fn of(
        service: &'a Service,
        family: Family,
        node: &'a Node,
        answers: &'a Answers,
    ) -> Option<Self> {
        let cluster_ip = service.cluster_ips.iter().copied().find(|ip| Family::of(*ip) == family)?;
        Some(Self { service, family, cluster_ip, node, answers })
    }

    /// Where `port` is dialled.
    pub(super) fn dialled(&self, port: &Port, profile: Profile) -> Vec<Dialled> {
        let mut cluster_ip = dialled(self.cluster_ip, port.port, port.protocol, FrontendKind::ClusterIp);
        cluster_ip.left_to_socket = self.answers.listens(&cluster_ip.key);
        let mut all = vec![cluster_ip];
        all.extend(self.load_balancer_ips().map(|ip| Dialled {
            host_denied: self.is_host_denied(ip),
            ..dialled(ip, port.port, port.protocol, FrontendKind::LoadBalancer)
        }));
        all.extend(
            self.external_ips().map(|ip| dialled(ip, port.port, port.protocol, FrontendKind::ExternalIp)),
        );
        // An unspecified address is nobody's, and its key would be the wildcard's.
        all.retain(|dialled| !dialled.key.address().is_unspecified());
        let vips = all.len();
        let refusing = match profile {
            Profile::Iptables => 0,
            Profile::Nftables => 1,
            // Every VIP stands on a device of that mode, whose filter refuses what no Service declares there.
            Profile::Ipvs => vips,
        };
        for number in 0..refusing {
            let vip = all[number];
            let key = FrontendKey::mark(vip.key.address());
            all.push(Dialled { key, host_denied: false, left_to_socket: false, ..vip });
        }
        if port.protocol == Protocol::Udp {
            // A later fragment has no port: what says that it is a Service's asks for the address alone.
            for number in 0..vips {
                let vip = all[number];
                let key = FrontendKey::fragments(vip.key.address(), port.protocol);
                all.push(Dialled { key, host_denied: false, left_to_socket: false, ..vip });
            }
        }
        if port.node_port != 0 {
            all.push(Dialled {
                key: FrontendKey::new(Address::from(self.cluster_ip).any(), port.node_port, port.protocol),
                kind: FrontendKind::NodePort,
                host_denied: false,
                left_to_socket: false,
            });
        }
        all
    }

    /// Whether `port` has a node port, a load balancer address or an external IP.
    pub(super) fn has_external_destination(&self, port: &Port) -> bool {
        port.node_port != 0
            || self.load_balancer_ips().next().is_some()
            || self.external_ips().next().is_some()
    }

    /// Bits of [`Bits`], without [`Bits::ANY_ENDPOINTS`].
    pub(super) fn policy(&self, port: &Port, settings: &Settings) -> u16 {
        let detector = settings.local_detector.is_there(self.family, self.node);
        let external_local =
            self.service.external_policy == Policy::Local && self.has_external_destination(port);
        let packets = settings.packet_plane;
        [
            (Bits::INTERNAL_LOCAL, self.service.internal_policy == Policy::Local),
            (Bits::EXTERNAL_LOCAL, external_local),
            (Bits::POD_DETECTOR, detector),
            // Rows 1 and 13: the source is masqueraded, which a socket can't do.
            (Bits::LEAVE_INTERNAL, packets && settings.masquerade_all),
            // Rows 7 and 8: which set serves depends on whether the detector knows the client's address.
            (Bits::LEAVE_EXTERNAL, packets && external_local && detector),
            (Bits::SOURCE_RANGES, packets && self.is_filtered()),
            (Bits::HOST_REJECT_LEFT, settings.profile == Profile::Iptables),
        ]
        .into_iter()
        .filter(|(_, is_set)| *is_set)
        .fold(0, |bits, (bit, _)| bits | bit)
    }

    /// Whose packets the load balancer's addresses take, sorted; empty: everybody's. A node whose address is in the
    /// ranges dials a VIP that is bound here with the VIP as its source (spec §2.8).
    pub(super) fn source_ranges(&self, settings: &Settings) -> Vec<Cidr> {
        if !settings.packet_plane || !self.is_filtered() {
            return Vec::new();
        }
        let own = self.service.source_ranges.iter().filter(|range| Family::of(range.address) == self.family);
        let mut ranges: BTreeSet<Cidr> = own.copied().collect();
        if self.is_node_in_source_ranges() {
            let length = if self.family == Family::V4 { 32 } else { 128 };
            ranges.extend(self.load_balancer_ips().map(|address| Cidr { address, length }));
        }
        ranges.into_iter().collect()
    }

    fn is_filtered(&self) -> bool {
        self.has_source_ranges() && self.load_balancer_ips().next().is_some()
    }

    fn load_balancer_ips(&self) -> impl Iterator<Item = IpAddr> {
        self.service.load_balancer_ips.iter().copied().filter(|ip| Family::of(*ip) == self.family)
    }

    fn external_ips(&self) -> impl Iterator<Item = IpAddr> {
        self.service.external_ips.iter().copied().filter(|ip| Family::of(*ip) == self.family)
    }

    /// Ranges of the other family alone filter nothing.
    fn has_source_ranges(&self) -> bool {
        self.service.source_ranges.iter().any(|range| Family::of(range.address) == self.family)
    }

    /// Whether processes of the node are outside the source ranges when they dial `vip`: by the address that they dial it
    /// from. A VIP that the node has itself is dialled from itself, and allowed along with the node (spec §2.8). What
    /// can't be reached is left alone, so that who dials it is told so. As long as nothing is known, the node's first
    /// address decides.
    fn is_host_denied(&self, vip: IpAddr) -> bool {
        if !self.has_source_ranges() {
            return false;
        }
        let allows_node = self.is_node_in_source_ranges();
        match self.answers.source(vip) {
            None => !allows_node,
            Some(HostSource::NoRoute) => true,
            Some(HostSource::Address(source)) => {
                let of_vip = allows_node && self.load_balancer_ips().any(|vip| vip == source);
                !of_vip && !self.service.source_ranges.iter().any(|range| range.contains(source))
            }
        }
    }

    /// By the node's first address of the family; a node without one counts as loopback (spec §1.6).
    fn is_node_in_source_ranges(&self) -> bool {
        let address = local::primary(self.node, self.family);
        let address = address.unwrap_or_else(|| Address::from(self.cluster_ip).loopback().ip());
        self.service.source_ranges.iter().any(|range| range.contains(address))
    }
}

fn dialled(address: IpAddr, port: u16, protocol: Protocol, kind: FrontendKind) -> Dialled {
    Dialled {
        key: FrontendKey::new(address.into(), port, protocol),
        kind,
        host_denied: false,
        left_to_socket: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LocalDetector, ObjectName};

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn cidr(text: &str) -> Cidr {
        let (address, length) = text.split_once('/').unwrap();
        Cidr { address: ip(address), length: length.parse().unwrap() }
    }

    const PORT: u16 = 80;

    fn port() -> Port {
        Port { name: "http".into(), protocol: Protocol::Tcp, port: PORT, node_port: 0 }
    }

    /// Dual-stack, with a load balancer address and an external IP of each family.
    fn service() -> Service {
        Service {
            name: ObjectName::new("shop", "web"),
            cluster_ips: vec![ip("10.96.0.1"), ip("fd00:96::1")],
            ports: vec![port()],
            external_ips: vec![ip("198.51.100.1"), ip("2001:db8::1")],
            load_balancer_ips: vec![ip("203.0.113.1"), ip("2001:db8::2")],
            source_ranges: Vec::new(),
            internal_policy: Policy::Cluster,
            external_policy: Policy::Cluster,
            affinity_seconds: None,
            health_check_node_port: None,
        }
    }

    /// With only a ClusterIP.
    fn internal() -> Service {
        Service { external_ips: Vec::new(), load_balancer_ips: Vec::new(), ..service() }
    }

    fn node() -> Node {
        Node { addresses: vec![ip("192.168.0.2"), ip("fd00::2")], ..Node::default() }
    }

    fn dialled_text(service: &Service, family: Family, port: &Port) -> Vec<String> {
        let node = node();
        let all =
            Face::of(service, family, &node, &Answers::default()).unwrap().dialled(port, Profile::Iptables);
        let text = |d: &Dialled| {
            let denied = if d.host_denied { " (not the host)" } else { "" };
            format!("{:?} {}:{}/{}{denied}", d.kind, d.key.address(), d.key.port, d.key.protocol)
        };
        all.iter().map(text).collect()
    }

    #[test]
    fn every_address_of_the_family_is_dialled_and_node_ports_at_the_wildcard() {
        let port = Port { node_port: 30080, ..port() };
        assert_eq!(
            dialled_text(&service(), Family::V4, &port),
            [
                "ClusterIp 10.96.0.1:80/TCP",
                "LoadBalancer 203.0.113.1:80/TCP",
                "ExternalIp 198.51.100.1:80/TCP",
                "NodePort 0.0.0.0:30080/TCP",
            ]
        );
        assert_eq!(
            dialled_text(&service(), Family::V6, &port),
            [
                "ClusterIp fd00:96::1:80/TCP",
                "LoadBalancer 2001:db8::2:80/TCP",
                "ExternalIp 2001:db8::1:80/TCP",
                "NodePort :::30080/TCP",
            ]
        );
    }

    #[test]
    fn every_address_that_udp_is_dialled_at_has_a_mark_for_fragments_and_no_node_port_has_one() {
        let port = Port { node_port: 30080, protocol: Protocol::Udp, ..port() };
        let all = dialled_text(&service(), Family::V4, &port);
        let marks: Vec<_> = all.iter().filter(|text| text.ends_with(":0/UDP")).collect();
        assert_eq!(
            marks,
            ["ClusterIp 10.96.0.1:0/UDP", "LoadBalancer 203.0.113.1:0/UDP", "ExternalIp 198.51.100.1:0/UDP"]
        );
    }

    #[test]
    fn a_family_without_cluster_ip_does_not_exist() {
        let v4 = Service { cluster_ips: vec![ip("10.96.0.1")], ..service() };
        assert!(Face::of(&v4, Family::V6, &node(), &Answers::default()).is_none());
    }

    #[test]
    fn an_unspecified_address_never_claims_the_wildcard_of_node_ports() {
        let odd = Service { external_ips: vec![ip("0.0.0.0"), ip("::")], ..internal() };
        assert_eq!(dialled_text(&odd, Family::V4, &port()), ["ClusterIp 10.96.0.1:80/TCP"]);
        assert_eq!(dialled_text(&odd, Family::V6, &port()), ["ClusterIp fd00:96::1:80/TCP"]);
    }

    fn denied(ranges: &[&str], family: Family, node: &Node) -> Vec<FrontendKind> {
        let source_ranges = ranges.iter().map(|text| cidr(text)).collect();
        let filtered = Service { source_ranges, ..service() };
        let port = Port { node_port: 30080, ..port() };
        let answers = Answers::default();
        let face = Face::of(&filtered, family, node, &answers).unwrap();
        let all = face.dialled(&port, Profile::Iptables);
        all.into_iter().filter(|d| d.host_denied).map(|d| d.kind).collect()
    }

    #[test]
    fn source_ranges_deny_the_host_at_load_balancer_addresses_unless_its_address_is_inside() {
        assert_eq!(denied(&["10.0.0.0/8"], Family::V4, &node()), [FrontendKind::LoadBalancer]);
        assert!(denied(&["10.0.0.0/8", "192.168.0.0/16"], Family::V4, &node()).is_empty());
        // Of the other family, or none: no filter.
        assert!(denied(&["10.0.0.0/8"], Family::V6, &node()).is_empty());
        assert!(denied(&[], Family::V4, &node()).is_empty());
        // Only the first address of the family is the node's primary one.
        let second = Node { addresses: vec![ip("192.168.0.2"), ip("10.0.0.2")], ..Node::default() };
        assert_eq!(denied(&["10.0.0.0/8"], Family::V4, &second), [FrontendKind::LoadBalancer]);
        assert_eq!(denied(&["10.0.0.0/8"], Family::V4, &Node::default()), [FrontendKind::LoadBalancer]);
    }

    fn policy(service: &Service, settings: &Settings, family: Family) -> u16 {
        Face::of(service, family, &node(), &Answers::default()).unwrap().policy(&port(), settings)
    }

    fn pods() -> LocalDetector {
        LocalDetector::ClusterCidr(vec![cidr("10.0.0.0/8")])
    }

    fn quiet() -> Settings {
        Settings { profile: Profile::Nftables, ..Settings::default() }
    }

    #[test]
    fn an_external_policy_counts_only_where_there_is_something_external() {
        let local = Service { internal_policy: Policy::Local, external_policy: Policy::Local, ..internal() };
        assert_eq!(policy(&local, &quiet(), Family::V4), Bits::INTERNAL_LOCAL);
        let v6_only = Service { load_balancer_ips: vec![ip("2001:db8::2")], ..local };
        assert_eq!(policy(&v6_only, &quiet(), Family::V4), Bits::INTERNAL_LOCAL);
        assert_eq!(policy(&v6_only, &quiet(), Family::V6), Bits::INTERNAL_LOCAL | Bits::EXTERNAL_LOCAL);
        let node = node();
        let answers = Answers::default();
        let face = Face::of(&v6_only, Family::V4, &node, &answers).unwrap();
        assert!(face.has_external_destination(&Port { node_port: 30080, ..port() }));
    }

    #[test]
    fn the_detector_and_the_refusals_follow_the_settings() {
        let v4_pods = Settings { local_detector: pods(), ..quiet() };
        assert_eq!(policy(&internal(), &v4_pods, Family::V4), Bits::POD_DETECTOR);
        assert_eq!(policy(&internal(), &v4_pods, Family::V6), 0);
        assert_eq!(policy(&internal(), &Settings::default(), Family::V4), Bits::HOST_REJECT_LEFT);
        assert_eq!(
            policy(&internal(), &Settings { profile: Profile::Ipvs, ..quiet() }, Family::V4),
            0,
            "only the iptables mode has no REJECT in OUTPUT"
        );
    }

    #[test]
    fn pods_are_told_apart_by_the_nodes_ranges_or_by_where_they_arrive() {
        let seen = |local_detector: LocalDetector, pod_cidrs: &[&str], family| {
            let node =
                Node { pod_cidrs: pod_cidrs.iter().map(|text| cidr(text)).collect(), ..Node::default() };
            let settings = Settings { local_detector, ..quiet() };
            let (service, port) = (internal(), port());
            Face::of(&service, family, &node, &Answers::default()).unwrap().policy(&port, &settings)
                & Bits::POD_DETECTOR
                != 0
        };
        assert!(seen(LocalDetector::NodeCidr, &["10.1.0.0/24"], Family::V4));
        assert!(!seen(LocalDetector::NodeCidr, &["10.1.0.0/24"], Family::V6));
        assert!(!seen(LocalDetector::NodeCidr, &[], Family::V4));
        for family in [Family::V4, Family::V6] {
            assert!(seen(LocalDetector::BridgeInterface("cni0".into()), &[], family));
            assert!(seen(LocalDetector::InterfaceNamePrefix("veth".into()), &[], family));
        }
    }

    fn ranges(of: &Service, packet_plane: bool, family: Family) -> Vec<String> {
        let (node, settings) = (node(), Settings { packet_plane, ..quiet() });
        let ranges = Face::of(of, family, &node, &Answers::default()).unwrap().source_ranges(&settings);
        ranges.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn source_ranges_are_told_to_the_packet_plane_with_the_vip_where_the_node_is_inside() {
        let with = |texts: &[&str]| Service {
            source_ranges: texts.iter().map(|text| cidr(text)).collect(),
            ..service()
        };
        let outside = with(&["172.16.0.0/12", "10.0.0.0/8", "2001:db8:9::/48"]);
        assert_eq!(ranges(&outside, true, Family::V4), ["10.0.0.0/8", "172.16.0.0/12"]);
        assert_eq!(ranges(&outside, true, Family::V6), ["2001:db8:9::/48"]);
        assert!(ranges(&outside, false, Family::V4).is_empty(), "nobody would read them");
        let inside = with(&["192.168.0.0/24"]);
        assert_eq!(ranges(&inside, true, Family::V4), ["192.168.0.0/24", "203.0.113.1/32"]);
        assert!(ranges(&inside, true, Family::V6).is_empty(), "of the other family");
        let no_vip = Service { load_balancer_ips: Vec::new(), ..inside };
        assert!(ranges(&no_vip, true, Family::V4).is_empty(), "nothing is filtered");
    }

    #[test]
    fn nothing_is_left_to_a_packet_plane_that_does_not_run() {
        let busy =
            Service { source_ranges: vec![cidr("10.0.0.0/8")], external_policy: Policy::Local, ..service() };
        let mut settings = Settings { masquerade_all: true, local_detector: pods(), ..quiet() };
        let plain = Bits::EXTERNAL_LOCAL | Bits::POD_DETECTOR;
        assert_eq!(policy(&busy, &settings, Family::V4), plain);
        settings.packet_plane = true;
        let left = Bits::LEAVE_INTERNAL | Bits::LEAVE_EXTERNAL | Bits::SOURCE_RANGES;
        assert_eq!(policy(&busy, &settings, Family::V4), plain | left);
        let v6_left = policy(&busy, &settings, Family::V6);
        assert_eq!(
            v6_left,
            Bits::EXTERNAL_LOCAL | Bits::LEAVE_INTERNAL,
            "without a detector all pods are outside, and the ranges are of the other family"
        );
        let no_addresses = Service { load_balancer_ips: Vec::new(), ..busy };
        assert_eq!(
            policy(&no_addresses, &settings, Family::V4),
            plain | Bits::LEAVE_INTERNAL | Bits::LEAVE_EXTERNAL
        );
    }
}
