//! The own Node (spec §1.6).

use super::{Converted, Converter, Kind, Value};
use crate::{
    model::Node,
    watch::{
        address::{parse_address, parse_cidr},
        object::{NodeSpec, NodeStatus, Object},
    },
};

/// What the cluster autoscaler taints a node with before it removes it.
const LEAVING_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

impl Converter {
    pub(super) fn node(&self, object: Object<NodeSpec, NodeStatus>) -> Result<Converted, String> {
        let mut converted = self.start(Kind::Node, &object.metadata)?;
        if converted.name.name != self.node_name {
            return Ok(converted);
        }
        let notes = &mut converted.notes;
        let spec = object.spec.unwrap_or_default();
        let entries = object.status.and_then(|status| status.addresses).unwrap_or_default();
        let mut addresses = Vec::new();
        for wanted in ["InternalIP", "ExternalIP"] {
            for entry in entries.iter().filter(|entry| entry.kind.as_deref() == Some(wanted)) {
                let text = entry.address.as_deref().unwrap_or("");
                match parse_address(text) {
                    Some(address) => addresses.push(address),
                    None => notes.push(format!("status.addresses: {text:?} is left out: no IP address")),
                }
            }
        }
        let mut texts = spec.pod_cidrs.unwrap_or_default();
        if texts.is_empty() {
            texts.extend(spec.pod_cidr);
        }
        let mut pod_cidrs = Vec::new();
        for text in texts.iter().filter(|text| !text.is_empty()) {
            match parse_cidr(text) {
                Some(cidr) => pod_cidrs.push(cidr),
                None => notes.push(format!("spec.podCIDRs: {text:?} is left out: no range")),
            }
        }
        let taints = spec.taints.unwrap_or_default();
        converted.value = Some(Value::Node(Box::new(Node {
            zone: object.metadata.labels.unwrap_or_default().zone.map(|zone| self.names.get(&zone)),
            addresses,
            pod_cidrs,
            leaving: object.metadata.deletion_timestamp.is_some()
                || taints.iter().any(|taint| taint.key.as_deref() == Some(LEAVING_TAINT)),
        })));
        Ok(converted)
    }
}
