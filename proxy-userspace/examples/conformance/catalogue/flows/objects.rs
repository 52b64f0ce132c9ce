//! The objects of a case, through the converter that reads the API server's, into the model.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};
use vipr::{
    model::{
        Change, Cidr, Link, LinkAddress, LocalDetector, LocalRoute, Model, NodePortAddresses, Profile,
        Reserved, Scope, Settings,
    },
    watch::convert::{self, Converter, Kind},
};

/// Index of the device that all packets come in by and leave by.
pub(super) const DEVICE: u32 = 2;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Objects {
    backend: Backend,
    node: Node,
    proxy_config: ProxyConfig,
    services: Vec<Value>,
    endpoints: Vec<Endpoint>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Backend {
    Iptables,
    Nftables,
    Ipvs,
}

#[derive(Deserialize)]
struct Node {
    name: String,
    zone: Option<String>,
    #[serde(rename = "primaryIP")]
    primary_ip: IpAddr,
    #[serde(rename = "nodeIPs")]
    node_ips: Vec<IpAddr>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProxyConfig {
    detect_local: Option<DetectLocal>,
    masquerade_all: bool,
    node_port_addresses: Vec<String>,
    localhost_node_ports: bool,
    #[serde(default, rename = "serviceCIDRs")]
    service_cidrs: Vec<String>,
}

#[derive(Deserialize)]
struct DetectLocal {
    mode: String,
    cidr: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint {
    service: String,
    port_name: String,
    protocol: String,
    ip: IpAddr,
    port: u16,
    node_name: Option<String>,
    zone: Option<String>,
    ready: bool,
    serving: bool,
    terminating: bool,
    hints: Option<Hints>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Hints {
    #[serde(default)]
    for_zones: Vec<String>,
    #[serde(default)]
    for_nodes: Vec<String>,
}

impl Objects {
    /// Whether it is an address of the node.
    pub(super) fn is_own(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.node.node_ips.contains(&address)
    }

    /// The model of a node that has heard of all of it.
    pub(super) fn model(&self) -> Result<Model> {
        let converter = Converter::new(&self.node.name);
        let mut model = Model::new(self.settings()?);
        let (mut services, mut slices) = (Vec::new(), Vec::new());
        let slice = |(number, endpoint): (usize, &Endpoint)| Ok((Kind::Slice, endpoint.slice(number)?));
        let mut objects = vec![(Kind::Node, self.node.object())];
        objects.extend(self.services.iter().map(|service| (Kind::Service, service.clone())));
        objects.extend(self.endpoints.iter().enumerate().map(slice).collect::<Result<Vec<_>>>()?);
        let ranges = &self.proxy_config.service_cidrs;
        objects.extend((!ranges.is_empty()).then(|| {
            (Kind::ServiceCidr, json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ranges}}))
        }));
        for (kind, object) in objects {
            let converted = converter.convert(kind, &serde_json::to_vec(&object)?);
            match converted {
                Ok(converted) => match converted.value {
                    Some(convert::Value::Service(service)) => services.push(service),
                    Some(convert::Value::Slice(slice)) => slices.push(slice),
                    Some(convert::Value::Node(node)) => model.fold(Change::Node(Some(*node))),
                    Some(convert::Value::ServiceCidr(ranges)) => {
                        model.fold(Change::ServiceCidr(converted.name, Some(ranges)));
                    }
                    Some(convert::Value::LeftPod(_)) | None => {}
                },
                Err(malformed) => bail!("{}: {}", malformed.name, malformed.why),
            }
        }
        model.fold(Change::Services(services));
        model.fold(Change::Slices(slices));
        model.fold(Change::LocalRoutes(self.node.routes()));
        model.fold(Change::Links(BTreeMap::from([(DEVICE, self.node.link())])));
        model.update().context("the model waits for more")?;
        Ok(model)
    }

    /// What the configuration says.
    pub(super) fn settings(&self) -> Result<Settings> {
        let config = &self.proxy_config;
        let ranges = match &config.detect_local {
            None => Vec::new(),
            Some(detect) if detect.mode == "ClusterCIDR" => vec![cidr(&detect.cidr)?],
            Some(detect) => bail!("the mode {:?} of detectLocal", detect.mode),
        };
        let addresses: Vec<_> =
            config.node_port_addresses.iter().map(|text| cidr(text)).collect::<Result<_>>()?;
        Ok(Settings {
            node_name: Arc::from(&*self.node.name),
            profile: match self.backend {
                Backend::Iptables => Profile::Iptables,
                Backend::Nftables => Profile::Nftables,
                Backend::Ipvs => Profile::Ipvs,
            },
            local_detector: LocalDetector::ClusterCidr(ranges),
            masquerade_all: config.masquerade_all,
            node_port_addresses: match addresses.is_empty() {
                true => NodePortAddresses::Unset,
                false => NodePortAddresses::Ranges(addresses),
            },
            localhost_node_ports: config.localhost_node_ports,
            packet_plane: true,
            pod_opt_out: false,
            reserved: Reserved::default(),
            excluded_devices: Vec::new(),
        })
    }
}

impl Node {
    fn object(&self) -> Value {
        let addresses: Vec<_> = [&self.primary_ip]
            .into_iter()
            .chain(&self.node_ips)
            .map(|address| json!({"type": "InternalIP", "address": address}))
            .collect();
        let labels = match &self.zone {
            Some(zone) => json!({"topology.kubernetes.io/zone": zone}),
            None => json!({}),
        };
        json!({"metadata": {"name": self.name, "labels": labels}, "status": {"addresses": addresses}})
    }

    fn routes(&self) -> BTreeSet<LocalRoute> {
        let own = self.node_ips.iter().map(|address| (host(*address), "eth0"));
        let loopback = [
            (Cidr { address: Ipv4Addr::new(127, 0, 0, 0).into(), length: 8 }, "lo"),
            (host(Ipv6Addr::LOCALHOST.into()), "lo"),
        ];
        let routes = own.chain(loopback);
        routes.map(|(prefix, device)| LocalRoute { prefix, device: device.into() }).collect()
    }

    fn link(&self) -> Link {
        let address = |address: &IpAddr| LinkAddress {
            address: *address,
            subnet: host(*address),
            scope: Scope::Global,
            secondary: false,
            deprecated: false,
            tentative: false,
        };
        Link {
            name: "eth0".into(),
            kind: None,
            master: None,
            header: Some(14),
            mac: [2, 0, 0, 0, 0, 1],
            loopback: false,
            addresses: self.node_ips.iter().map(address).collect(),
        }
    }
}

impl Endpoint {
    /// A slice of its own.
    fn slice(&self, number: usize) -> Result<Value> {
        let (namespace, name) =
            self.service.split_once('/').context("endpoints[].service has no namespace")?;
        let named = |names: &[String]| names.iter().map(|name| json!({"name": name})).collect::<Vec<_>>();
        let hints = self
            .hints
            .as_ref()
            .map(|hints| json!({"forZones": named(&hints.for_zones), "forNodes": named(&hints.for_nodes)}));
        Ok(json!({
            "metadata": {
                "namespace": namespace,
                "name": format!("{name}-{number}"),
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": if self.ip.is_ipv4() { "IPv4" } else { "IPv6" },
            "ports": [{"name": self.port_name, "protocol": self.protocol, "port": self.port}],
            "endpoints": [{
                "addresses": [self.ip],
                "conditions": {
                    "ready": self.ready, "serving": self.serving, "terminating": self.terminating,
                },
                "nodeName": self.node_name,
                "zone": self.zone,
                "hints": hints,
            }],
        }))
    }
}

fn host(address: IpAddr) -> Cidr {
    Cidr { address, length: if address.is_ipv4() { 32 } else { 128 } }
}

fn cidr(text: &str) -> Result<Cidr> {
    let split = text.split_once('/').and_then(|(address, length)| {
        Some(Cidr { address: address.parse().ok()?, length: length.parse().ok()? })
    });
    split.with_context(|| format!("{text:?} is no range"))
}
