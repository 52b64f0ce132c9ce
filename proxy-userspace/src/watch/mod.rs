//! What the cluster and the node say, as a stream of [`Event`]s: from the API server, or from a folder of manifests;
//! and from netlink. [`convert`] is the only reader of objects' fields.
//!
//! Must not know tables, plans or the dataplane.

pub mod address;
pub mod convert;
pub mod intern;
mod object;
