//! What the cluster and the node say, as a stream of [`Event`]s: from the API server, or from a folder of manifests;
//! and from netlink. [`convert`] is the only reader of objects' fields.
//!
//! Must not know tables, plans or the dataplane.

pub mod address;
mod backoff;
pub mod convert;
pub mod folder;
pub mod groups;
pub mod host_sources;
pub mod intern;
mod known;
pub mod kube;
pub mod links;
pub mod listeners;
mod netlink;
mod object;
pub mod routes;

use std::time::{Instant, SystemTime};

use crate::model::{Change, ObjectName, Source};

/// Something that a source said, and when we heard it.
#[derive(Clone, Debug)]
pub struct Event {
    /// Who.
    pub source: Source,
    /// When it reached us.
    pub at: Instant,
    /// What.
    pub what: What,
}

/// What a source says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Something is different now.
    Change {
        /// What.
        change: Change,
        /// Slices: when the change happened that led to this version of it.
        trigger: Option<SystemTime>,
    },
    /// It was heard from, and nothing is different (a bookmark, a list like the last one).
    Alive,
    /// It can't be heard any more; what it said stays true until it is heard again.
    Broken {
        /// What went wrong, for people.
        why: String,
    },
    /// A part of an object was left out; the rest is served.
    Note {
        /// Which object.
        name: ObjectName,
        /// Which part, and why.
        why: String,
    },
}

impl Event {
    /// Heard now.
    pub fn now(source: Source, what: What) -> Self {
        Self { source, at: Instant::now(), what }
    }
}
