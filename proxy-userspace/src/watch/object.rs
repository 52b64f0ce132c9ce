//! The fields of Kubernetes objects that the proxy reads, and no others: everything else is dropped while it is parsed.
//!
//! Lists are `Option` because controllers write `null` for an empty one, and numbers are wide so that a number out of
//! range can be named instead of failing as a type error.

use serde::Deserialize;

/// Any object: who it is.
#[derive(Deserialize)]
pub(super) struct Object<Spec, Status> {
    pub(super) metadata: Metadata,
    pub(super) spec: Option<Spec>,
    pub(super) status: Option<Status>,
}

/// `metadata`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metadata {
    pub(super) name: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) resource_version: Option<String>,
    pub(super) labels: Option<Labels>,
    pub(super) annotations: Option<Annotations>,
    pub(super) deletion_timestamp: Option<String>,
    pub(super) uid: Option<String>,
}

/// `metadata.labels`.
#[derive(Default, Deserialize)]
pub(super) struct Labels {
    #[serde(rename = "service.kubernetes.io/service-proxy-name")]
    pub(super) proxy_name: Option<String>,
    #[serde(rename = "service.kubernetes.io/headless")]
    pub(super) headless: Option<String>,
    #[serde(rename = "kubernetes.io/service-name")]
    pub(super) service_name: Option<String>,
    #[serde(rename = "topology.kubernetes.io/zone")]
    pub(super) zone: Option<String>,
}

/// `metadata.annotations`.
#[derive(Default, Deserialize)]
pub(super) struct Annotations {
    #[serde(rename = "endpoints.kubernetes.io/last-change-trigger-time")]
    pub(super) trigger_time: Option<String>,
    #[serde(rename = "kubernetes.io/config.mirror")]
    pub(super) mirror: Option<String>,
    #[serde(rename = "vipr/socket-plane")]
    pub(super) socket_plane: Option<String>,
}

/// A Service's `spec`.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceSpec {
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    #[serde(rename = "clusterIP")]
    pub(super) cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    pub(super) cluster_ips: Option<Vec<String>>,
    pub(super) ip_families: Option<Vec<String>>,
    pub(super) ports: Option<Vec<ServicePort>>,
    #[serde(rename = "externalIPs")]
    pub(super) external_ips: Option<Vec<String>>,
    pub(super) external_traffic_policy: Option<String>,
    pub(super) internal_traffic_policy: Option<String>,
    pub(super) health_check_node_port: Option<i64>,
    pub(super) load_balancer_source_ranges: Option<Vec<String>>,
    pub(super) session_affinity: Option<String>,
    pub(super) session_affinity_config: Option<SessionAffinityConfig>,
}

/// One of `spec.ports`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServicePort {
    pub(super) name: Option<String>,
    pub(super) protocol: Option<String>,
    pub(super) port: Option<i64>,
    pub(super) node_port: Option<i64>,
}

/// `spec.sessionAffinityConfig`.
#[derive(Deserialize)]
pub(super) struct SessionAffinityConfig {
    #[serde(rename = "clientIP")]
    pub(super) client_ip: Option<ClientIp>,
}

/// `spec.sessionAffinityConfig.clientIP`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ClientIp {
    pub(super) timeout_seconds: Option<i64>,
}

/// A Service's `status`.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceStatus {
    pub(super) load_balancer: Option<LoadBalancer>,
}

/// `status.loadBalancer`.
#[derive(Default, Deserialize)]
pub(super) struct LoadBalancer {
    pub(super) ingress: Option<Vec<Ingress>>,
}

/// One of `status.loadBalancer.ingress`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Ingress {
    pub(super) ip: Option<String>,
    pub(super) ip_mode: Option<String>,
}

/// An EndpointSlice: it has neither `spec` nor `status`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EndpointSlice {
    pub(super) metadata: Metadata,
    pub(super) address_type: Option<String>,
    pub(super) ports: Option<Vec<EndpointPort>>,
    pub(super) endpoints: Option<Vec<Endpoint>>,
}

/// One of a slice's `ports`.
#[derive(Deserialize)]
pub(super) struct EndpointPort {
    pub(super) name: Option<String>,
    pub(super) protocol: Option<String>,
    pub(super) port: Option<i64>,
}

/// One of a slice's `endpoints`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Endpoint {
    pub(super) addresses: Option<Vec<String>>,
    pub(super) conditions: Option<Conditions>,
    pub(super) hints: Option<Hints>,
    pub(super) node_name: Option<String>,
}

/// `endpoints[].conditions`.
#[derive(Default, Deserialize)]
pub(super) struct Conditions {
    pub(super) ready: Option<bool>,
    pub(super) serving: Option<bool>,
    pub(super) terminating: Option<bool>,
}

/// `endpoints[].hints`.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Hints {
    pub(super) for_zones: Option<Vec<Named>>,
    pub(super) for_nodes: Option<Vec<Named>>,
}

/// `{name: …}`.
#[derive(Deserialize)]
pub(super) struct Named {
    pub(super) name: Option<String>,
}

/// A Pod's `spec`.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodSpec {
    pub(super) node_name: Option<String>,
    pub(super) host_network: Option<bool>,
}

/// A Node's `spec`.
#[derive(Default, Deserialize)]
pub(super) struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pub(super) pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pub(super) pod_cidrs: Option<Vec<String>>,
    pub(super) taints: Option<Vec<Taint>>,
}

/// A ServiceCIDR's `spec`.
#[derive(Default, Deserialize)]
pub(super) struct ServiceCidrSpec {
    pub(super) cidrs: Option<Vec<String>>,
}

/// One of `spec.taints`.
#[derive(Deserialize)]
pub(super) struct Taint {
    pub(super) key: Option<String>,
}

/// A Node's `status`.
#[derive(Default, Deserialize)]
pub(super) struct NodeStatus {
    pub(super) addresses: Option<Vec<NodeAddress>>,
}

/// One of `status.addresses`.
#[derive(Deserialize)]
pub(super) struct NodeAddress {
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) address: Option<String>,
}
