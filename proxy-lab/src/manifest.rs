//! YAML for `vipr run --manifests`: a folder that is written as an API server would be, object by object.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::lab::Lab;
use crate::place::Place;
use crate::topology::{Dual, Family};

/// A folder of objects, one a file. Each file is replaced as a whole, and only if its object changed.
#[derive(Debug)]
pub struct Manifests {
    folder: PathBuf,
}

impl Manifests {
    /// A folder of the lab, with an object for each of its nodes.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn new(lab: &Lab) -> Result<Self> {
        Self::named(lab, "manifests")
    }

    /// The same of a name of its own: another cluster's.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn named(lab: &Lab, name: &str) -> Result<Self> {
        let manifests = Self { folder: lab.folder().join(name) };
        fs::create_dir_all(&manifests.folder)?;
        for node in lab.nodes() {
            manifests.write(&format!("{}.node", node.name()), &node_object(node))?;
        }
        Ok(manifests)
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Creates or changes a Service and its slices.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn apply(&self, service: &Service) -> Result<()> {
        // Slices first: a Service whose endpoints are still unknown would refuse for a moment.
        for (name, object) in service.slices() {
            self.write(&format!("{name}.endpointslice"), &object)?;
        }
        self.write(&format!("{}.service", service.name), &service.object())
    }

    /// Deletes a Service and its slices.
    ///
    /// # Errors
    /// They are not there.
    pub fn delete(&self, service: &Service) -> Result<()> {
        self.remove(&format!("{}.service", service.name))?;
        service.slices().into_iter().try_for_each(|(name, _)| self.remove(&format!("{name}.endpointslice")))
    }

    /// Creates or replaces one object.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, name: &str, object: &Value) -> Result<()> {
        let path = self.folder.join(format!("{name}.yaml"));
        let text = serde_yaml_ng::to_string(object)?;
        if fs::read_to_string(&path).is_ok_and(|old| old == text) {
            return Ok(());
        }
        // Not a name that a reader of the folder takes for an object's.
        let new = self.folder.join(format!(".{name}.new"));
        fs::write(&new, text).with_context(|| format!("writing {}", new.display()))?;
        fs::rename(&new, &path).with_context(|| format!("replacing {}", path.display()))
    }

    /// Deletes one object.
    ///
    /// # Errors
    /// It is not there.
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.folder.join(format!("{name}.yaml"));
        fs::remove_file(&path).with_context(|| format!("deleting {}", path.display()))
    }
}

/// A Service in the namespace `default` and its endpoints. Families are those of its cluster IPs.
#[derive(Clone, Debug)]
pub struct Service {
    name: String,
    cluster_ips: Vec<IpAddr>,
    ports: Vec<Port>,
    endpoints: Vec<Endpoint>,
    spec: Value,
    load_balancer_ips: Vec<IpAddr>,
}

#[derive(Clone, Debug)]
struct Port {
    name: String,
    protocol: &'static str,
    port: u16,
    target: u16,
    node_port: Option<u16>,
}

/// One endpoint of a Service, in both families.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Where it listens.
    pub address: Dual,
    /// The node it is on.
    pub node: Option<String>,
    /// `conditions.ready`.
    pub ready: bool,
    /// `conditions.serving`.
    pub serving: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
}

impl From<&Place> for Endpoint {
    fn from(place: &Place) -> Self {
        let node = place.node().map(str::to_owned);
        Self { address: place.duals()[0], node, ready: true, serving: true, terminating: false }
    }
}

impl Service {
    /// Without ports, addresses and endpoints.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            cluster_ips: Vec::new(),
            ports: Vec::new(),
            endpoints: Vec::new(),
            spec: json!({}),
            load_balancer_ips: Vec::new(),
        }
    }

    /// With a cluster IP; at most one of each family.
    ///
    /// # Panics
    /// It is no address.
    #[must_use]
    pub fn cluster_ip(mut self, address: &str) -> Self {
        self.cluster_ips.push(parse(address));
        self
    }

    /// With a TCP port that leads to another.
    ///
    /// # Panics
    /// They are the same: then a wrong port in a packet would not be seen.
    #[must_use]
    pub fn tcp(self, port: u16, target: u16) -> Self {
        self.port("TCP", port, target)
    }

    /// With a UDP port that leads to another.
    ///
    /// # Panics
    /// As [`Self::tcp`].
    #[must_use]
    pub fn udp(self, port: u16, target: u16) -> Self {
        self.port("UDP", port, target)
    }

    /// With an SCTP port that leads to another.
    ///
    /// # Panics
    /// As [`Self::tcp`].
    #[must_use]
    pub fn sctp(self, port: u16, target: u16) -> Self {
        self.port("SCTP", port, target)
    }

    fn port(mut self, protocol: &'static str, port: u16, target: u16) -> Self {
        assert_ne!(port, target, "{}: a service port must differ from its target port", self.name);
        let name = format!("{}-{port}", protocol.to_lowercase());
        self.ports.push(Port { name, protocol, port, target, node_port: None });
        self
    }

    /// With this NodePort for the ports added so far that have none.
    ///
    /// # Panics
    /// It is a target port.
    #[must_use]
    pub fn node_port(mut self, number: u16) -> Self {
        for port in self.ports.iter_mut().filter(|port| port.node_port.is_none()) {
            assert_ne!(number, port.target, "{}: a NodePort must differ from its target port", self.name);
            port.node_port = Some(number);
        }
        self
    }

    /// With an external IP.
    ///
    /// # Panics
    /// It is no address.
    #[must_use]
    pub fn external_ip(mut self, address: &str) -> Self {
        let address: IpAddr = parse(address);
        match &mut self.spec["externalIPs"] {
            Value::Array(all) => all.push(json!(address)),
            none => *none = json!([address]),
        }
        self
    }

    /// With a load balancer's address in its status.
    ///
    /// # Panics
    /// It is no address.
    #[must_use]
    pub fn load_balancer_ip(mut self, address: &str) -> Self {
        self.load_balancer_ips.push(parse(address));
        self
    }

    /// With these fields in its spec, for instance `{"internalTrafficPolicy": "Local"}`.
    #[must_use]
    pub fn spec(mut self, fields: &Value) -> Self {
        for (name, value) in fields.as_object().into_iter().flatten() {
            self.spec[name] = value.clone();
        }
        self
    }

    /// With exactly these endpoints.
    #[must_use]
    pub fn endpoints<E: Into<Endpoint>>(mut self, endpoints: impl IntoIterator<Item = E>) -> Self {
        self.endpoints = endpoints.into_iter().map(Into::into).collect();
        self
    }

    /// The name in the namespace `default`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All its objects, slices first.
    pub(crate) fn objects(&self) -> Vec<Value> {
        let slices = self.slices().into_iter().map(|(_, object)| object);
        slices.chain([self.object()]).collect()
    }

    /// The same as one object of the kind List.
    pub(crate) fn list(&self) -> Value {
        json!({ "apiVersion": "v1", "kind": "List", "items": self.objects() })
    }

    fn object(&self) -> Value {
        let ports = self.ports.iter().map(|port| {
            let mut object = json!({
                "name": port.name, "protocol": port.protocol, "port": port.port, "targetPort": port.target,
            });
            if let Some(number) = port.node_port {
                object["nodePort"] = json!(number);
            }
            object
        });
        let kind = match self.ports.iter().any(|port| port.node_port.is_some()) {
            _ if !self.load_balancer_ips.is_empty() => "LoadBalancer",
            true => "NodePort",
            false => "ClusterIP",
        };
        let mut spec = json!({
            "type": kind,
            "clusterIP": self.cluster_ips.first(),
            "clusterIPs": self.cluster_ips,
            "ipFamilyPolicy": if self.cluster_ips.len() > 1 { "RequireDualStack" } else { "SingleStack" },
            "ipFamilies": self.cluster_ips.iter().map(|&address| family_name(address)).collect::<Vec<_>>(),
            "ports": ports.collect::<Vec<_>>(),
        });
        for (name, value) in self.spec.as_object().into_iter().flatten() {
            spec[name] = value.clone();
        }
        let ingress: Vec<Value> = self.load_balancer_ips.iter().map(|ip| json!({ "ip": ip })).collect();
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata(&self.name, &BTreeMap::new()),
            "spec": spec,
            "status": { "loadBalancer": { "ingress": ingress } },
        })
    }

    /// One a family, by its name.
    fn slices(&self) -> Vec<(String, Value)> {
        let slice = |&address: &IpAddr| {
            let family = Family::of(address);
            let name = format!("{}-{}", self.name, family_name(address).to_lowercase());
            let ports = self
                .ports
                .iter()
                .map(|port| json!({ "name": port.name, "protocol": port.protocol, "port": port.target }));
            let endpoints = self.endpoints.iter().map(|endpoint| {
                json!({
                    "addresses": [endpoint.address.of(family)],
                    "nodeName": endpoint.node,
                    "conditions": {
                        "ready": endpoint.ready,
                        "serving": endpoint.serving,
                        "terminating": endpoint.terminating,
                    },
                })
            });
            let labels = [("kubernetes.io/service-name".to_owned(), self.name.clone())].into();
            let object = json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": metadata(&name, &labels),
                "addressType": family_name(address),
                "ports": ports.collect::<Vec<_>>(),
                "endpoints": endpoints.collect::<Vec<_>>(),
            });
            (name, object)
        };
        self.cluster_ips.iter().map(slice).collect()
    }
}

fn metadata(name: &str, labels: &BTreeMap<String, String>) -> Value {
    json!({ "name": name, "namespace": "default", "labels": labels })
}

pub(crate) fn node_object(node: &Place) -> Value {
    let addresses = node.duals()[0].both().map(|address| json!({ "type": "InternalIP", "address": address }));
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": node.name(), "labels": { "kubernetes.io/hostname": node.name() } },
        "status": { "addresses": addresses },
    })
}

fn family_name(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn parse(address: &str) -> IpAddr {
    address.parse().unwrap_or_else(|_| panic!("{address} is no address"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::node_address;

    #[test]
    #[should_panic(expected = "must differ from its target port")]
    fn a_service_port_that_is_its_target_port_is_refused() {
        let _ = Service::new("web").tcp(80, 80);
    }

    #[test]
    fn a_service_has_a_slice_for_each_family_that_belongs_to_it() {
        let endpoint = Endpoint {
            address: node_address(0),
            node: Some("a".into()),
            ready: false,
            serving: true,
            terminating: true,
        };
        let service = Service::new("web").cluster_ip("10.96.0.1").cluster_ip("fd00:96::1");
        let service = service.tcp(80, 8080).udp(53, 5353).node_port(30080).endpoints([endpoint]);
        assert_eq!(service.object()["spec"]["type"], "NodePort");
        let slices = service.slices();
        assert_eq!(
            slices.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
            ["web-ipv4", "web-ipv6"]
        );
        assert_eq!(slices[1].1["endpoints"][0]["addresses"], json!(["fd00:77::b"]));
        assert_eq!(slices[0].1["endpoints"][0]["conditions"]["ready"], json!(false));
        assert_eq!(slices[0].1["metadata"]["labels"]["kubernetes.io/service-name"], "web");
        assert_eq!(slices[0].1["ports"][1], json!({ "name": "udp-53", "protocol": "UDP", "port": 5353 }));
    }
}
