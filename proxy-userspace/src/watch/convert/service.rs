//! Services (spec §1.2).

use std::{net::IpAddr, sync::Arc};

use super::{Converted, Converter, Kind, Value, port, protocol};
use crate::{
    model::{Cidr, Family, Policy, Port, Service},
    watch::{
        address::{parse_address, parse_cidr},
        object::{Object, ServicePort, ServiceSpec, ServiceStatus},
    },
};

/// The API server's default of `sessionAffinityConfig.clientIP.timeoutSeconds`.
const AFFINITY_SECONDS: u32 = 10_800;
/// The API server's upper bound of it.
const MAX_AFFINITY_SECONDS: u32 = 86_400;

impl Converter {
    pub(super) fn service(&self, object: Object<ServiceSpec, ServiceStatus>) -> Result<Converted, String> {
        let mut converted = self.start(Kind::Service, &object.metadata)?;
        let spec = object.spec.unwrap_or_default();
        let foreign = object.metadata.labels.is_some_and(|labels| labels.proxy_name.is_some());
        if foreign || spec.kind.as_deref() == Some("ExternalName") {
            return Ok(converted);
        }
        let notes = &mut converted.notes;
        let cluster_ips = cluster_ips(&spec, notes);
        if cluster_ips.is_empty() {
            return Ok(converted);
        }

        let external = spec.external_ips.unwrap_or_default();
        let kind = spec.kind.as_deref().unwrap_or("ClusterIP");
        let local_counts = match kind {
            "NodePort" | "LoadBalancer" => true,
            _ => kind == "ClusterIP" && !external.is_empty(),
        };
        let external_policy = match spec.external_traffic_policy.as_deref() {
            Some("Local") if local_counts => Policy::Local,
            _ => Policy::Cluster,
        };
        let health_check_node_port = if kind == "LoadBalancer" && external_policy == Policy::Local {
            let number = port(spec.health_check_node_port);
            let number = number.map_err(|why| format!("spec.healthCheckNodePort: {why}"))?;
            if number.is_none() {
                notes.push("spec.healthCheckNodePort is 0: no health check is served".into());
            }
            number
        } else {
            None
        };
        let affinity_seconds = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
            let seconds = spec.session_affinity_config.and_then(|config| config.client_ip?.timeout_seconds);
            affinity_seconds(seconds, notes)
        });
        let mut load_balancer_ips = Vec::new();
        let load_balancer = object.status.and_then(|status| status.load_balancer).unwrap_or_default();
        for ingress in load_balancer.ingress.unwrap_or_default() {
            if matches!(ingress.ip_mode.as_deref(), None | Some("VIP")) {
                let ip = ingress.ip.iter().map(String::as_str);
                load_balancer_ips.extend(addresses("status.loadBalancer.ingress[].ip", ip, notes));
            }
        }
        let external_ips = if self.external_ips {
            addresses("spec.externalIPs", external.iter().map(String::as_str), notes)
        } else {
            Vec::new()
        };
        let service = Service {
            name: converted.name.clone(),
            cluster_ips,
            ports: self.ports(spec.ports.unwrap_or_default(), notes)?,
            external_ips,
            load_balancer_ips,
            source_ranges: source_ranges(&spec.load_balancer_source_ranges.unwrap_or_default(), notes),
            internal_policy: match spec.internal_traffic_policy.as_deref() {
                Some("Local") => Policy::Local,
                _ => Policy::Cluster,
            },
            external_policy,
            affinity_seconds,
            health_check_node_port,
        };
        converted.value = Some(Value::Service(Arc::new(service)));
        Ok(converted)
    }

    fn ports(&self, entries: Vec<ServicePort>, notes: &mut Vec<String>) -> Result<Vec<Port>, String> {
        let mut ports = Vec::with_capacity(entries.len());
        for (i, entry) in entries.into_iter().enumerate() {
            let protocol = match protocol(entry.protocol.as_deref()) {
                Ok(protocol) => protocol,
                Err(why) => {
                    notes.push(format!("spec.ports[{i}] is left out: {why}"));
                    continue;
                }
            };
            let Some(number) = port(entry.port).map_err(|why| format!("spec.ports[{i}].port: {why}"))? else {
                notes.push(format!("spec.ports[{i}] is left out: it has no port"));
                continue;
            };
            let node_port =
                port(entry.node_port).map_err(|why| format!("spec.ports[{i}].nodePort: {why}"))?;
            let name = self.names.get(entry.name.as_deref().unwrap_or(""));
            ports.push(Port { name, protocol, port: number, node_port: node_port.unwrap_or(0) });
        }
        Ok(ports)
    }
}

/// At most one of each family. `ipFamilies` rules; objects that have none, which are very old or not from an API
/// server, go by the addresses themselves.
fn cluster_ips(spec: &ServiceSpec, notes: &mut Vec<String>) -> Vec<IpAddr> {
    let first = spec.cluster_ip.as_deref().unwrap_or("");
    let all = spec.cluster_ips.as_deref().unwrap_or_default();
    if first == "None" || (first.is_empty() && all.first().is_none_or(|ip| ip.is_empty() || ip == "None")) {
        return Vec::new();
    }
    let families = spec.ip_families.as_deref().unwrap_or_default();
    let mut found: Vec<IpAddr> = Vec::new();
    let mut add = |text: &str, family: Option<&str>| match parse_address(text) {
        Some(ip) if family.is_some_and(|family| family != Family::of(ip).to_string()) => {
            notes.push(format!("spec.clusterIPs: {text} is left out: its entry of ipFamilies is another"));
        }
        Some(ip) if found.iter().all(|known| Family::of(*known) != Family::of(ip)) => found.push(ip),
        Some(_) => notes.push(format!("spec.clusterIPs: {text} is left out: a second one of its family")),
        None => notes.push(format!("spec.clusterIPs: {text:?} is left out: no IP address")),
    };
    // A manifest may have clusterIP alone, which the API server would copy.
    let all = if all.is_empty() { spec.cluster_ip.as_slice() } else { all };
    if families.is_empty() {
        all.iter().for_each(|text| add(text, None));
    } else {
        all.iter().zip(families).for_each(|(text, family)| add(text, Some(family)));
    }
    found.shrink_to_fit();
    found
}

fn affinity_seconds(seconds: Option<i64>, notes: &mut Vec<String>) -> u32 {
    let Some(seconds) = seconds else { return AFFINITY_SECONDS };
    match u32::try_from(seconds) {
        Ok(fine @ 1..=MAX_AFFINITY_SECONDS) => fine,
        _ => {
            notes.push(format!(
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds: {seconds} is not in 1..{MAX_AFFINITY_SECONDS}, \
                 {AFFINITY_SECONDS} is used"
            ));
            AFFINITY_SECONDS
        }
    }
}

/// Those that parse; an empty text is nobody's mistake.
fn addresses<'a>(field: &str, texts: impl Iterator<Item = &'a str>, notes: &mut Vec<String>) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for text in texts.filter(|text| !text.is_empty()) {
        match parse_address(text) {
            Some(ip) if ip.is_loopback() => {
                notes.push(format!("{field}: {text} is left out: loopback is each host's own"));
            }
            Some(ip) if !found.contains(&ip) => found.push(ip),
            Some(_) => {}
            None => notes.push(format!("{field}: {text:?} is left out: no IP address")),
        }
    }
    found
}

/// A range of length 0 allows every source of its family, so that family is not filtered at all.
fn source_ranges(texts: &[String], notes: &mut Vec<String>) -> Vec<Cidr> {
    let mut ranges = Vec::new();
    for text in texts {
        match parse_cidr(text) {
            Some(range) => ranges.push(range),
            None if text.trim().is_empty() => {}
            None => {
                notes.push(format!(
                    "spec.loadBalancerSourceRanges: {text:?} is left out: no range like 192.0.2.0/24"
                ));
            }
        }
    }
    let open: Vec<Family> =
        ranges.iter().filter(|range| range.length == 0).map(|range| Family::of(range.address)).collect();
    ranges.retain(|range| !open.contains(&Family::of(range.address)));
    ranges
}
