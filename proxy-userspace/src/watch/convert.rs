//! Kubernetes objects in our words: the only reader of their fields. The rules are those of kube-proxy spec §1.2, §1.3,
//! §1.6 to §1.8; which object is not ours at all is decided here too, as the API server's selectors would (§1.1).
//!
//! An object that can't be read is [`Malformed`]; an entry of a list that can't is left out and noted. Must not panic on
//! any input.

mod node;
mod pod;
mod service;
mod service_cidr;
mod slice;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::SystemTime};

use proxy_common::Protocol;
use serde::{
    Deserialize,
    de::{DeserializeOwned, IgnoredAny},
};

use super::{
    intern::Names,
    object::{EndpointSlice, Metadata, Object},
};
use crate::model::{Cidr, Node, ObjectName, Service, Slice, Source};

/// What kind of object a text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// v1 Service.
    Service,
    /// discovery.k8s.io/v1 EndpointSlice.
    Slice,
    /// v1 Node.
    Node,
    /// v1 Pod.
    Pod,
    /// networking.k8s.io/v1 ServiceCIDR.
    ServiceCidr,
}

impl Kind {
    /// Whom it comes from.
    pub fn source(self) -> Source {
        match self {
            Self::Service => Source::Services,
            Self::Slice => Source::Slices,
            Self::Node => Source::Node,
            Self::Pod => Source::Pods,
            Self::ServiceCidr => Source::ServiceCidrs,
        }
    }

    /// Whether its objects are in namespaces.
    fn has_namespaces(self) -> bool {
        matches!(self, Self::Service | Self::Slice | Self::Pod)
    }
}

/// An object in our words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A Service.
    Service(Arc<Service>),
    /// An EndpointSlice.
    Slice(Arc<Slice>),
    /// The own Node.
    Node(Box<Node>),
    /// The uid of a Pod whose sockets are left to packets.
    LeftPod(Arc<str>),
    /// A ServiceCIDR: its ranges.
    ServiceCidr(Arc<[Cidr]>),
}

/// An object that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted {
    /// Which one.
    pub name: ObjectName,
    /// `metadata.resourceVersion`.
    pub resource_version: Option<String>,
    /// `None`: not ours to serve.
    pub value: Option<Value>,
    /// When the change that led to this version of a slice happened, by the annotation
    /// `endpoints.kubernetes.io/last-change-trigger-time`.
    pub trigger: Option<SystemTime>,
    /// What was left out, and why.
    pub notes: Vec<String>,
}

/// An object that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// Which one, as far as it tells.
    pub name: ObjectName,
    /// `metadata.resourceVersion`.
    pub resource_version: Option<String>,
    /// The field and what is wrong with it.
    pub why: String,
}

/// What reading depends on beside the object.
#[derive(Clone, Debug)]
pub struct Converter {
    /// Shared copies of names.
    pub names: Names,
    /// Name of the own Node: others are not ours.
    pub node_name: Arc<str>,
    /// Feature gate `AllowServiceExternalIPs` (KEP-5707).
    pub external_ips: bool,
    /// Pods may ask to be left to packets: a folder's are told.
    pub pods: bool,
}

impl Converter {
    /// For the node of this name, with the gates' defaults.
    pub fn new(node_name: &str) -> Self {
        Self { names: Names::default(), node_name: node_name.into(), external_ips: true, pods: false }
    }

    /// Read one object as JSON.
    pub fn convert(&self, kind: Kind, json: &[u8]) -> Result<Converted, Malformed> {
        let result = match kind {
            Kind::Service => parse::<Object<_, _>>(json).and_then(|object| self.service(object)),
            Kind::Slice => parse::<EndpointSlice>(json).and_then(|slice| self.slice(slice)),
            Kind::Node => parse::<Object<_, _>>(json).and_then(|object| self.node(object)),
            Kind::Pod => parse::<Object<_, _>>(json).and_then(|object| self.pod(object)),
            Kind::ServiceCidr => {
                parse::<Object<_, IgnoredAny>>(json).and_then(|object| self.service_cidr(object))
            }
        };
        result.map_err(|why| {
            let (name, resource_version) = identify(kind, json);
            Malformed { name, resource_version, why }
        })
    }

    fn start(&self, kind: Kind, metadata: &Metadata) -> Result<Converted, String> {
        let name = metadata.name.as_deref().filter(|name| !name.is_empty());
        let name = name.ok_or("metadata.name is missing")?;
        let namespace = match kind {
            _ if !kind.has_namespaces() => "",
            // As kubectl has it; an object of the API server always has one.
            _ => metadata.namespace.as_deref().filter(|namespace| !namespace.is_empty()).unwrap_or("default"),
        };
        Ok(Converted {
            name: self.name(namespace, name),
            resource_version: metadata.resource_version.clone(),
            value: None,
            trigger: None,
            notes: Vec::new(),
        })
    }

    fn name(&self, namespace: &str, name: &str) -> ObjectName {
        ObjectName { namespace: self.names.get(namespace), name: self.names.get(name) }
    }
}

fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, String> {
    serde_json::from_slice(json).map_err(|error| {
        // Once more, slowly, for the path to the field.
        let mut again = serde_json::Deserializer::from_slice(json);
        match serde_path_to_error::deserialize::<_, T>(&mut again) {
            Err(error) if error.path().iter().len() > 0 => format!("{}: {}", error.path(), error.inner()),
            _ => error.to_string(),
        }
    })
}

/// Who a text is that can't be read as what it should be; empty where it does not say.
fn identify(kind: Kind, json: &[u8]) -> (ObjectName, Option<String>) {
    #[derive(Default, Deserialize)]
    struct Named {
        #[serde(default)]
        metadata: serde_json::Value,
    }
    let named: Named = serde_json::from_slice(json).unwrap_or_default();
    let text = |field: &str| named.metadata.get(field).and_then(|value| value.as_str());
    let name = text("name").unwrap_or("");
    let namespace = match text("namespace") {
        // As if it were read.
        None | Some("") if kind.has_namespaces() && !name.is_empty() => "default",
        namespace => namespace.unwrap_or(""),
    };
    let name = ObjectName::new(namespace, name);
    (name, text("resourceVersion").map(str::to_owned))
}

/// `protocol`; nil is TCP, as the API server would fill in.
fn protocol(text: Option<&str>) -> Result<Protocol, String> {
    match text {
        None | Some("" | "TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(format!("protocol {other:?} is none of TCP, UDP, SCTP")),
    }
}

/// A port number; `None` for nil and 0.
fn port(number: Option<i64>) -> Result<Option<u16>, String> {
    match number {
        None | Some(0) => Ok(None),
        Some(number) => match u16::try_from(number) {
            Ok(port) => Ok(Some(port)),
            Err(_) => Err(format!("{number} is no port")),
        },
    }
}
