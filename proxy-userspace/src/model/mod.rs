//! What the node should serve, computed from what the cluster and the node say. Pure: no async, no clock, no kube.

pub mod desired;
pub mod types;

pub use desired::{Desired, Serving, Target, Touched};
pub use types::{
    Change, Cidr, Endpoint, Family, LocalRoute, Node, NodePortAddresses, ObjectName, Policy, Port, Profile,
    Service, ServicePortName, Settings, Slice, SlicePort, Source,
};
