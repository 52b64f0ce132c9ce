//! What the agent says about itself: published by the reconcile loop after each pass, read by `serve` and by
//! `vipr status`.

mod checks;
mod measures;
mod notice;
mod requests;

use std::{
    collections::VecDeque,
    fmt,
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

pub use checks::{Check, Checks};
pub use measures::{Measures, Sync};
pub use notice::{About, Notice, Notices, Told};
pub use requests::Requests;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{
    model::{Desired, ObjectName, Source},
    plan::Capacity,
};

/// The state of the agent at one moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Of the binary.
    pub version: String,
    /// Of the agent.
    pub pid: u32,
    /// Name of the own Node.
    pub node_name: String,
    /// When the agent started.
    pub started: Moment,
    /// When this was published.
    pub published: Moment,
    /// Counts up with every publication.
    pub generation: u64,
    /// One for each source that the agent has.
    pub sources: Vec<SourceState>,
    /// The own Node as far as health depends on it (spec §4.1); `None`: never seen.
    pub node: Option<NodeState>,
    /// Since when a change waits to be written; `None`: nothing waits.
    pub pending_since: Option<Moment>,
    /// What the tables hold; `None`: not written yet.
    pub applied: Option<Written>,
    /// Why the last pass failed; `None`: it did not.
    pub error: Option<String>,
    /// Objects that can't be read and are left out, and parts that were left out; the oldest are forgotten.
    pub odd: VecDeque<Odd>,
    /// How many there were in all.
    pub odd_total: u64,
    /// Entries and attachments that were found different from what was written, and put right.
    pub repaired: u64,
    /// Times that larger tables were built.
    pub grown: u64,
    /// What load balancers may ask about Services, as of the last pass that left nothing waiting.
    #[serde(default)]
    pub checks: Arc<Checks>,
    /// ClusterIPs that are left to sockets of this node.
    #[serde(default)]
    pub left_to_sockets: Vec<LeftToSocket>,
    /// Pods whose sockets are left to packets, and whether their cgroups are found.
    #[serde(default)]
    pub left_pods: Vec<LeftPod>,
}

/// What one source has said.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceState {
    /// `services`, `slices`, `node`, `localRoutes`, `links`, `hostSources`, `listeners`, `pods`, `groups`,
    /// `apiServers`.
    pub source: String,
    /// It has said everything once.
    pub synced: bool,
    /// When it was heard from last: how old our view may be.
    pub heard: Option<Moment>,
    /// Why it can't be heard now; what it said stays true.
    pub broken: Option<String>,
    /// Changes so far.
    pub changes: u64,
}

/// The own Node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeState {
    /// Being deleted, or tainted by the cluster autoscaler.
    pub leaving: bool,
}

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Written {
    /// When the last pass ended that left nothing waiting.
    pub at: Moment,
    /// Passes so far.
    pub passes: u64,
    /// Writes of the last pass that wrote anything.
    pub steps: usize,
    /// Microseconds that it took.
    pub microseconds: u64,
    /// How full the tables are.
    pub fill: Fill,
}

/// Entries in use and room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fill {
    /// In `frontends`.
    pub frontends: [u32; 2],
    /// In `services`.
    pub services: [u32; 2],
    /// Slots in `backends`, with those that wait for a fence.
    pub backends: [u32; 2],
    /// In `local_addresses`.
    pub local_addresses: [u32; 2],
}

impl Fill {
    /// From what is used and what there is room for.
    pub fn new(used: &Capacity, room: &Capacity) -> Self {
        Self {
            frontends: [used.frontends, room.frontends],
            services: [used.services, room.services],
            backends: [used.backends, room.backends],
            local_addresses: [used.local_addresses, room.local_addresses],
        }
    }
}

/// A ClusterIP that a device of this node has, and at which a socket listens: neither plane serves it (NodeLocal DNS).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeftToSocket {
    /// The ClusterIP.
    pub address: IpAddr,
    /// The Service's port.
    pub port: u16,
    /// `TCP` or `UDP`.
    pub protocol: String,
    /// The ServicePort.
    pub service: String,
}

impl LeftToSocket {
    /// All of what is desired.
    pub fn all(desired: &Desired) -> Vec<Self> {
        let all = desired.left_to_sockets.iter().map(|(key, service)| Self {
            address: key.address().ip(),
            port: key.port,
            protocol: key.protocol.to_string(),
            service: service.to_string(),
        });
        all.collect()
    }
}

/// A pod whose sockets are left to packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeftPod {
    /// `namespace/name`.
    pub pod: String,
    /// The id of its cgroup; `None`: it is not found, and the pod is served as others are.
    pub cgroup: Option<u64>,
}

impl LeftPod {
    /// All of what is desired.
    pub fn all(desired: &Desired) -> Vec<Self> {
        let all = desired.left_pods.iter();
        all.map(|(pod, group)| Self { pod: pod.to_string(), cgroup: group.map(|group| group.id) }).collect()
    }
}

/// An object, or a part of one, that was left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Odd {
    /// When it was seen.
    pub at: Moment,
    /// What kind of object.
    pub source: String,
    /// Which.
    pub object: String,
    /// What is wrong with it.
    pub why: String,
    /// The whole object is left out.
    pub whole: bool,
}

impl Report {
    /// How many odd things are remembered.
    pub const ODD: usize = 100;

    /// Of an agent that has just started and waits for these sources.
    pub fn new(node_name: &str, sources: &[Source]) -> Self {
        let now = Moment::now();
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            node_name: node_name.into(),
            started: now,
            published: now,
            generation: 0,
            sources: sources
                .iter()
                .map(|source| SourceState {
                    source: name(*source).into(),
                    synced: false,
                    heard: None,
                    broken: None,
                    changes: 0,
                })
                .collect(),
            node: None,
            pending_since: None,
            applied: None,
            error: None,
            odd: VecDeque::new(),
            odd_total: 0,
            repaired: 0,
            grown: 0,
            checks: Arc::default(),
            left_to_sockets: Vec::new(),
            left_pods: Vec::new(),
        }
    }

    /// The state of one source.
    pub fn source(&mut self, source: Source) -> Option<&mut SourceState> {
        self.sources.iter_mut().find(|state| state.source == name(source))
    }

    /// Remember something that was left out.
    pub fn note(&mut self, source: Source, object: &ObjectName, why: &str, whole: bool) {
        self.odd_total += 1;
        if self.odd.len() == Self::ODD {
            self.odd.pop_front();
        }
        let object = if object.namespace.is_empty() { object.name.to_string() } else { object.to_string() };
        self.odd.push_back(Odd {
            at: Moment::now(),
            source: name(source).into(),
            object,
            why: why.into(),
            whole,
        });
    }

    /// No change waits for as long as twice `sync_period` (spec §4.1).
    pub fn is_healthy(&self, sync_period: Duration, now: SystemTime) -> bool {
        let waiting = self.pending_since.map(|since| now.duration_since(since.0).unwrap_or_default());
        waiting.is_none_or(|waiting| waiting < 2 * sync_period)
    }

    /// How old the view is: the longest silence of a source of the cluster's state; `None` before all have spoken.
    pub fn age(&self, now: SystemTime) -> Option<Duration> {
        let cluster = [name(Source::Services), name(Source::Slices)];
        let states = self.sources.iter().filter(|state| cluster.contains(&state.source.as_str()));
        let ages = states.map(|state| {
            let heard = state.heard.filter(|_| state.synced)?;
            Some(now.duration_since(heard.0).unwrap_or_default())
        });
        ages.collect::<Option<Vec<_>>>()?.into_iter().max()
    }
}

/// In reports and metrics.
pub fn name(source: Source) -> &'static str {
    match source {
        Source::Services => "services",
        Source::Slices => "slices",
        Source::Node => "node",
        Source::ServiceCidrs => "serviceCidrs",
        Source::LocalRoutes => "localRoutes",
        Source::Links => "links",
        Source::HostSources => "hostSources",
        Source::Listeners => "listeners",
        Source::Pods => "pods",
        Source::Groups => "groups",
        Source::ApiServers => "apiServers",
    }
}

/// A wall clock time, RFC 3339 in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub SystemTime);

impl Moment {
    /// The present.
    pub fn now() -> Self {
        Self(SystemTime::now())
    }
}

impl Default for Moment {
    fn default() -> Self {
        Self(SystemTime::UNIX_EPOCH)
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::try_from(self.0) {
            Ok(time) => write!(f, "{time:.9}"),
            Err(_) => f.write_str("?"),
        }
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time: jiff::Timestamp = text.parse().map_err(de::Error::custom)?;
        Ok(Self(time.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_the_way_to_the_command_line() {
        let mut report = Report::new("node-1", &[Source::Services, Source::Slices, Source::LocalRoutes]);
        report.note(
            Source::Services,
            &ObjectName::new("default", "web"),
            "spec.ports[0].port: 70000 is no port",
            true,
        );
        report.applied = Some(Written { at: Moment::now(), passes: 3, ..Written::default() });
        let json = serde_json::to_string(&report).unwrap();
        let read: Report = serde_json::from_str(&json).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), json);
        assert_eq!(read.odd[0].object, "default/web");
    }

    #[test]
    fn the_age_of_the_view_is_the_longest_silence_and_unknown_before_all_have_spoken() {
        let mut report = Report::new("node-1", &[Source::Services, Source::Slices, Source::LocalRoutes]);
        let now = SystemTime::now();
        assert_eq!(report.age(now), None);
        for (source, ago) in [(Source::Services, 7), (Source::Slices, 3)] {
            let state = report.source(source).unwrap();
            state.synced = true;
            state.heard = Some(Moment(now - Duration::from_secs(ago)));
        }
        assert_eq!(report.age(now), Some(Duration::from_secs(7)));
    }

    #[test]
    fn only_the_newest_odd_things_are_remembered_but_all_are_counted() {
        let mut report = Report::new("node-1", &[]);
        for i in 0..150 {
            report.note(Source::Slices, &ObjectName::new("default", &format!("s{i}")), "why", false);
        }
        assert_eq!((report.odd.len(), report.odd_total), (Report::ODD, 150));
        assert_eq!(report.odd[0].object, "default/s50");
    }
}
