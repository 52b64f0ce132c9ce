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
mod tests;
