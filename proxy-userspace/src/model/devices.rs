//! Which of the node's devices get the packet plane's programs, and what these are told of each.
//!
//! A packet is met where netfilter's PREROUTING and POSTROUTING meet it: at the device whose addresses and routes count,
//! and at the ports of a bridge besides, where br_netfilter runs them. What only carries another device's packets (slaves
//! of bonds and teams, ports of a virtual switch) is left alone.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use proxy_common::{
    Address,
    layout::{Device, DeviceRole, Pods},
};

use super::{Attachment, Cidr, Family, Link, LinkAddress, LocalDetector, Node, Scope, Settings, local};

/// Kinds that packets only pass through in one direction, or in copy.
const NO_ROADS: [&str; 2] = ["ifb", "nlmon"];
const ETHERNET: u8 = 14;

/// All devices of the node.
pub(super) struct Devices<'a> {
    pub(super) links: &'a BTreeMap<u32, Link>,
    pub(super) settings: &'a Settings,
    pub(super) node: &'a Node,
}

impl Devices<'_> {
    /// Those that get programs, by ifindex; none without a packet plane.
    pub(super) fn attachments(&self) -> BTreeMap<u32, Attachment> {
        let all = self.links.iter().filter(|_| self.settings.packet_plane);
        all.filter_map(|(&index, link)| Some((index, self.attachment(index, link)?))).collect()
    }

    /// The ranges by which [`Pods::InRange`] is judged.
    pub(super) fn pod_ranges(&self) -> BTreeSet<Cidr> {
        let ranges = self.settings.local_detector.ranges(self.node).filter(|_| self.settings.packet_plane);
        ranges.into_iter().flatten().copied().collect()
    }

    fn attachment(&self, index: u32, link: &Link) -> Option<Attachment> {
        let header = link.header.filter(|_| !link.loopback)?;
        let is_road = !link.kind.as_deref().is_some_and(|kind| NO_ROADS.contains(&kind));
        if !is_road || &*link.name == local::IPVS_DEVICE || self.is_excluded(&link.name) {
            return None;
        }
        let bridge = match link.master.map(|master| self.links.get(&master)) {
            None => None,
            Some(master) => match master?.kind.as_deref()? {
                "bridge" if header == ETHERNET => master,
                "vrf" => None,
                _ => return None,
            },
        };
        // What netfilter calls the device: of a port, the bridge.
        let (logical, host) = match bridge {
            Some(bridge) => (bridge, link.master.unwrap_or(index)),
            None => (link, index),
        };
        let device = Device {
            mac: bridge.map_or([0; 3], |_| words(link.mac)),
            bridge_mac: bridge.map_or([0; 3], |bridge| words(bridge.mac)),
            header,
            role: if bridge.is_some() { DeviceRole::BridgePort } else { DeviceRole::Single },
            pods: self.pods(&logical.name),
            version: Device::VERSION,
            masquerade_v4: octets(self.masquerade_v4(host)),
            masquerade_v6: octets(self.masquerade_v6(host)),
        };
        Some(Attachment { name: link.name.clone(), device })
    }

    fn is_excluded(&self, name: &str) -> bool {
        self.settings.excluded_devices.iter().any(|excluded| match excluded.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => **excluded == *name,
        })
    }

    /// Spec §2.2.
    fn pods(&self, name: &str) -> Pods {
        match &self.settings.local_detector {
            LocalDetector::BridgeInterface(bridge) if **bridge == *name => Pods::All,
            LocalDetector::InterfaceNamePrefix(prefix) if name.starts_with(&**prefix) => Pods::All,
            LocalDetector::BridgeInterface(_) | LocalDetector::InterfaceNamePrefix(_) => Pods::None,
            LocalDetector::ClusterCidr(_) | LocalDetector::NodeCidr if self.pod_ranges().is_empty() => {
                Pods::None
            }
            LocalDetector::ClusterCidr(_) | LocalDetector::NodeCidr => Pods::InRange,
        }
    }

    /// As MASQUERADE does (kernel: `inet_select_addr`): the device's first primary global address, else the first one of
    /// its VRF, else of any device that routes together with it. A device with several subnets has one address here,
    /// where the kernel picks the one in the next hop's subnet.
    fn masquerade_v4(&self, index: u32) -> Option<IpAddr> {
        let vrf = self.vrf(index);
        let near = [Some(index), vrf].into_iter().flatten();
        let far = self.links.keys().copied().filter(|other| self.vrf(*other) == vrf);
        let good = |address: &&LinkAddress| address.scope == Scope::Global && !address.secondary;
        let first = |index: u32| self.addresses(index, Family::V4).find(good);
        near.chain(far).find_map(first).map(|address| address.address)
    }

    /// As MASQUERADE does (kernel: `ipv6_dev_get_saddr`, RFC 6724) towards a global address: a global source before
    /// others, then one that is not deprecated, then the device's own, then a public one. What depends on the peer
    /// (labels, the longest common prefix) does not count: there is one address for all of them.
    fn masquerade_v6(&self, index: u32) -> Option<IpAddr> {
        let vrf = self.vrf(index);
        let together = self.links.keys().copied().filter(|other| self.vrf(*other) == vrf);
        let candidates = together.flat_map(|other| {
            self.addresses(other, Family::V6).map(move |address| (other == index, address))
        });
        let usable = |(own, address): &(bool, &LinkAddress)| {
            let scope = address.scope;
            !address.tentative && (scope == Scope::Global || scope == Scope::Link && *own)
        };
        let best = candidates.filter(usable).min_by_key(|(own, address)| {
            let global = address.scope == Scope::Global;
            Reverse((global, !address.deprecated, *own, !address.secondary))
        });
        best.map(|(_, address)| address.address)
    }

    fn addresses(&self, index: u32, family: Family) -> impl Iterator<Item = &LinkAddress> {
        let link = self.links.get(&index).into_iter();
        link.flat_map(|link| &link.addresses).filter(move |address| Family::of(address.address) == family)
    }

    /// The VRF that a device routes in, which is itself one, or none.
    fn vrf(&self, index: u32) -> Option<u32> {
        let is_vrf =
            |index: &u32| self.links.get(index).is_some_and(|link| link.kind.as_deref() == Some("vrf"));
        let master = || self.links.get(&index)?.master;
        Some(index).filter(is_vrf).or_else(|| master().filter(is_vrf))
    }
}

fn words(mac: [u8; 6]) -> [u16; 3] {
    let [a, b, c, d, e, f] = mac;
    [[a, b], [c, d], [e, f]].map(u16::from_ne_bytes)
}

fn octets(address: Option<IpAddr>) -> [u8; 16] {
    address.map_or([0; 16], |address| Address::from(address).octets())
}

#[cfg(test)]
mod tests;
