//! What a question is answered from: the pinned tables, or tables made of a cluster's objects the way the agent does.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    path::Path,
};

use anyhow::{Context, Result};
use proxy_common::{
    Address,
    datapath::Tables,
    layout::{
        Affinity, AffinityKey, Backend, Device, Frontend, FrontendKey, LocalAddress, Node, PacketPlane,
        RangeKey, Service, SocketPlane, Timeouts,
    },
    names::LAYOUT_VERSION,
};

use crate::{
    config::{Config, Flags},
    dataplane::{self, probe::Features, sys},
    model::{
        Change, Cidr, Fate, Link, LinkAddress, LocalDetector, LocalRoute, Model, ObjectName, Scope, Source,
    },
    plan::{Actual, Planner, View, need},
    watch::{What, convert::Converter, folder},
};

/// Tables to decide on, and what is known beside them.
pub(super) struct Ground {
    pub(super) actual: Actual,
    pub(super) node: Node,
    /// Devices that have the packet plane's programs, by name; none: it is off.
    pub(super) devices: Vec<(String, Device)>,
    /// The packet plane's settings.
    pub(super) plane: PacketPlane,
    /// Clients that are remembered.
    pub(super) clients: Vec<(AffinityKey, Affinity)>,
    /// Seconds of the clock that clients are remembered by.
    pub(super) now: u32,
    /// The kernel lets a call fail with an error of our choice.
    pub(super) can_refuse: bool,
    /// `None`: the tables are the node's own, and nobody has said what they come from.
    model: Option<Model>,
    /// What was left out or assumed; those with a Service matter only if that is asked for.
    pub(super) notes: Vec<(Option<ObjectName>, String)>,
}

impl Ground {
    /// What is pinned.
    pub(super) fn pinned(pin_path: &Path) -> Result<Self> {
        let (actual, node) = dataplane::read_pinned(pin_path)?;
        Ok(Self {
            devices: named(&actual.devices, &names()),
            actual,
            node,
            plane: dataplane::pinned_packet_plane(pin_path)?,
            clients: dataplane::pinned_affinity(pin_path)?,
            now: sys::monotonic_seconds(),
            can_refuse: Features::probe().set_retval,
            model: None,
            notes: Vec::new(),
        })
    }

    /// What the agent of `node` would write for these objects.
    pub(super) fn of_cluster(cluster: &Path, node: &str, file: Option<&Path>, packets: bool) -> Result<Self> {
        let config = configuration(node, file, packets)?;
        let mut converter = Converter::new(&config.settings.node_name);
        converter.external_ips = config.external_ips;
        let mut model = Model::new(config.settings.clone());
        let mut own = None;
        let warnings = config.warnings.into_iter().filter(|_| file.is_some());
        let mut notes: Vec<_> = warnings.map(|warning| (None, warning)).collect();
        for (source, what) in folder::once(cluster, converter)? {
            match what {
                What::Change { change: Change::Malformed { name, why, .. }, .. } => {
                    let name = name.to_string();
                    notes.push((None, format!("{} is left out: {why}", name.trim_start_matches('/'))));
                }
                What::Change { change, .. } => {
                    if let Change::Node(node) = &change {
                        own.clone_from(node);
                    }
                    model.fold(change);
                }
                What::Note { name, why } => {
                    let text = format!("{name}: {why}");
                    notes.push(((source == Source::Services).then_some(name), text));
                }
                What::Alive | What::Broken { .. } => {}
            }
        }
        if own.is_none() {
            notes.push((None, format!("there is no Node {node}: it has neither zone nor addresses")));
        }
        let addresses = own.map(|node| node.addresses).unwrap_or_default();
        model.fold(Change::LocalRoutes(local_routes(&addresses)));
        for source in model.waiting_for() {
            match source {
                Source::Services => model.fold(Change::Services(Vec::new())),
                Source::Slices => model.fold(Change::Slices(Vec::new())),
                Source::Node => model.give_up_waiting_for_node(),
                Source::Links => {
                    let links = links(&addresses, &config.settings.local_detector);
                    notes.push((
                        None,
                        format!("the node's devices are not known; assumed: {}", all_names(&links)),
                    ));
                    model.fold(Change::Links(links));
                }
                Source::LocalRoutes
                | Source::HostSources
                | Source::Listeners
                | Source::Pods
                | Source::Groups
                | Source::ApiServers
                | Source::ServiceCidrs => {}
            }
        }
        model.update().context("the cluster has not told everything")?;
        let desired = model.desired();
        let mut planner = Planner::new(Actual::default(), need(desired));
        let steps = planner.plan(desired, None)?;
        planner.done(&steps);
        let names = desired.devices.iter().map(|(index, device)| (*index, device.name.to_string())).collect();
        Ok(Self {
            devices: named(&planner.actual().devices, &names),
            plane: PLANE,
            actual: planner.actual().clone(),
            node: node_settings(config.socket_plane, config.settings.guards()),
            clients: Vec::new(),
            now: 0,
            can_refuse: true,
            model: Some(model),
            notes,
        })
    }

    /// What becomes of each endpoint of the service with this name; `None`: only the cluster's objects tell.
    pub(super) fn fates(&self, service: &str) -> Option<Vec<Fate>> {
        let model = self.model.as_ref()?;
        let name = model.desired().services.keys().find(|name| name.to_string() == service);
        Some(name.map_or_else(Vec::new, |name| model.fates(name)))
    }

    fn view(&self) -> View<'_> {
        View { actual: &self.actual, node: Some(self.node) }
    }
}

/// The agent's configuration: what the file says, and the node's name. This shell's environment is not the agent's.
fn configuration(node: &str, file: Option<&Path>, packets: bool) -> Result<Config> {
    let file = file.map(|path| path.to_string_lossy().into_owned());
    let environment = |name: &str| match name {
        "VIPR_CONFIG" => file.clone(),
        "VIPR_HOSTNAME_OVERRIDE" => Some(node.to_owned()),
        "VIPR_PACKET_PLANE" => Some(if packets { "on" } else { "off" }.to_owned()),
        _ => None,
    };
    Config::resolve(Flags::default(), environment, |path| fs::read_to_string(path), node)
}

/// The local routing table of a node that has the addresses of its Node object, and loopback.
fn local_routes(addresses: &[IpAddr]) -> BTreeSet<LocalRoute> {
    let host =
        |address: &IpAddr| Cidr { address: *address, length: if address.is_ipv4() { 32 } else { 128 } };
    let loopback = [
        Cidr { address: IpAddr::from([127, 0, 0, 0]), length: 8 },
        Cidr { address: IpAddr::from(std::net::Ipv6Addr::LOCALHOST), length: 128 },
    ];
    let route = |device: &'static str| move |prefix| LocalRoute { prefix, device: device.into() };
    addresses.iter().map(host).map(route("eth0")).chain(loopback.map(route("lo"))).collect()
}

/// Devices of a node that has the addresses of its Node object: one for them all, and one for pods where these are told by
/// their device.
fn links(addresses: &[IpAddr], detector: &LocalDetector) -> BTreeMap<u32, Link> {
    let link = |name: &str, addresses: &[IpAddr]| Link {
        name: name.into(),
        kind: None,
        master: None,
        header: Some(14),
        mac: [0; 6],
        loopback: false,
        addresses: addresses.iter().map(|address| link_address(*address)).collect(),
    };
    let mut links = BTreeMap::from([(2, link("eth0", addresses))]);
    match detector {
        LocalDetector::BridgeInterface(name) => drop(links.insert(3, link(name, &[]))),
        LocalDetector::InterfaceNamePrefix(prefix) => drop(links.insert(3, link(&format!("{prefix}0"), &[]))),
        LocalDetector::ClusterCidr(_) | LocalDetector::NodeCidr => {}
    }
    links
}

fn link_address(address: IpAddr) -> LinkAddress {
    let subnet = Cidr::around(address, if address.is_ipv4() { 32 } else { 128 });
    LinkAddress {
        address,
        subnet,
        scope: Scope::Global,
        secondary: false,
        deprecated: false,
        tentative: false,
    }
}

fn all_names(links: &BTreeMap<u32, Link>) -> String {
    let names: Vec<_> = links.values().map(|link| &*link.name).collect();
    names.join(", ")
}

/// The names of this namespace's devices.
fn names() -> BTreeMap<u32, String> {
    let all = nix::net::if_::if_nameindex();
    let all = all.iter().flat_map(|all| all.iter());
    all.map(|device| (device.index(), device.name().to_string_lossy().into_owned())).collect()
}

fn named(devices: &BTreeMap<u32, Device>, names: &BTreeMap<u32, String>) -> Vec<(String, Device)> {
    let name = |index: &u32| names.get(index).cloned().unwrap_or_else(|| format!("ifindex {index}"));
    devices.iter().map(|(index, device)| (name(index), *device)).collect()
}

/// A packet plane that nothing was chosen with yet.
const PLANE: PacketPlane = PacketPlane {
    seed: 0,
    version: PacketPlane::VERSION,
    handover: 0,
    first_port: 61_000,
    last_port: u16::MAX,
    more_first_port: 0,
    more_last_port: 0,
    timeouts: Timeouts::DEFAULT,
};

fn node_settings(socket_plane: SocketPlane, guards: u32) -> Node {
    Node {
        netns_cookie: 1,
        layout_version: LAYOUT_VERSION,
        socket_plane,
        udp_timeout_seconds: 0,
        owner: 0,
        probe_address: 0,
        probe_port: 0,
        left_levels: 0,
        guards,
    }
}

impl Tables for Ground {
    fn node(&self) -> Option<Node> {
        Some(self.node)
    }
    fn port_in_use(&self, port: u16) -> bool {
        self.view().port_in_use(port)
    }
    fn address_in_use(&self, address: &Address) -> bool {
        self.view().address_in_use(address)
    }
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend> {
        self.view().frontend(key)
    }
    fn service(&self, index: u32) -> Option<Service> {
        self.view().service(index)
    }
    fn backend(&self, slot: u32) -> Option<Backend> {
        self.view().backend(slot)
    }
    fn local_address(&self, address: &Address) -> Option<LocalAddress> {
        self.view().local_address(address)
    }
    fn in_range(&self, key: &RangeKey) -> bool {
        self.view().in_range(key)
    }
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.clients.iter().find(|(client, _)| client == key).map(|(_, last)| *last)
    }
    /// A question leaves nothing behind.
    fn set_affinity(&self, _: &AffinityKey, _: &Affinity) {}
}
