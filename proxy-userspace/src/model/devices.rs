//! Which of the node's devices get the packet plane's programs, and what these are told of each.
//!
//! A packet is met where netfilter's PREROUTING and POSTROUTING meet it: at the device whose addresses and routes count,
//! and at the ports of a bridge besides, where br_netfilter runs them. What only carries another device's packets (slaves
//! of bonds and teams, ports of a virtual switch) is left alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use proxy_common::{
    Address,
    layout::{Device, DeviceRole, MasqueradeAddress, MasqueradeKey, Pods},
};

use super::{
    Attachment, Cidr, Link, LocalDetector, Node, Settings, local,
    masquerade::{self, Sources},
};

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

    /// With what else than their first address those masquerade.
    pub(super) fn masquerade(
        &self,
        attachments: &BTreeMap<u32, Attachment>,
    ) -> BTreeMap<MasqueradeKey, MasqueradeAddress> {
        let several = attachments.values().filter(|attachment| attachment.device.choices != 0);
        let hosts: BTreeSet<u32> = several.map(|attachment| attachment.device.host).collect();
        let sources = Sources { links: self.links };
        hosts.into_iter().flat_map(|host| masquerade::entries(host, sources.of(host))).collect()
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
        let choices = Sources { links: self.links }.of(host);
        let device = Device {
            mac: bridge.map_or([0; 3], |_| words(link.mac)),
            bridge_mac: bridge.map_or([0; 3], |bridge| words(bridge.mac)),
            header,
            role: if bridge.is_some() { DeviceRole::BridgePort } else { DeviceRole::Single },
            pods: self.pods(&logical.name),
            version: Device::VERSION,
            masquerade_v4: octets(choices.v4.address()),
            masquerade_v6: octets(choices.v6.address()),
            host,
            choices: choices.bits(),
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
