//! What the reconcile loop measures as it goes, under kube-proxy's metric names where it means the same (spec §4.4).

use std::{
    sync::atomic::AtomicU64,
    time::{Duration, SystemTime},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use super::Requests;
use crate::model::NoLocalEndpoints;

/// kube-proxy counts each family apart; here both are written in one pass, and count alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IpFamily {
    ip_family: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Code {
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PolicyAndFamily {
    traffic_policy: &'static str,
    ip_family: &'static str,
}

/// How much a pass looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// Everything.
    Full,
    /// What had changed.
    Partial,
}

type Seconds = Gauge<f64, AtomicU64>;

const FAMILIES: [IpFamily; 2] = [IpFamily { ip_family: "IPv4" }, IpFamily { ip_family: "IPv6" }];

/// Shared by the loop, which writes them, and the server of metrics.
#[derive(Clone, Debug)]
pub struct Measures {
    sync: Family<IpFamily, Histogram>,
    full_sync: Family<IpFamily, Histogram>,
    partial_sync: Family<IpFamily, Histogram>,
    last_sync: Family<IpFamily, Seconds>,
    last_queued: Family<IpFamily, Seconds>,
    programming: Family<IpFamily, Histogram>,
    service_changes: Counter,
    endpoint_changes: Counter,
    service_changes_pending: Gauge,
    endpoint_changes_pending: Gauge,
    no_local_endpoints: Family<PolicyAndFamily, Gauge>,
    reaction: Histogram,
    handed_over: Gauge,
    healthz: Family<Code, Counter>,
    livez: Family<Code, Counter>,
    requests: Requests,
}

impl Default for Measures {
    fn default() -> Self {
        let sync = || Family::new_with_constructor(sync_histogram as fn() -> Histogram);
        Self {
            sync: sync(),
            full_sync: sync(),
            partial_sync: sync(),
            last_sync: Family::default(),
            last_queued: Family::default(),
            programming: Family::new_with_constructor(|| Histogram::new(programming_buckets())),
            service_changes: Counter::default(),
            endpoint_changes: Counter::default(),
            service_changes_pending: Gauge::default(),
            endpoint_changes_pending: Gauge::default(),
            no_local_endpoints: Family::default(),
            reaction: Histogram::new(exponential_buckets(0.000_125, 2.0, 16)),
            handed_over: Gauge::default(),
            healthz: Family::default(),
            livez: Family::default(),
            requests: Requests::default(),
        }
    }
}

/// Of `kubeproxy_sync_proxy_rules_duration_seconds` and its parts.
fn sync_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

/// Of `kubeproxy_network_programming_duration_seconds`.
fn programming_buckets() -> impl Iterator<Item = f64> {
    let ones = (1..60).map(f64::from);
    let fives = (12..=23).map(|n| f64::from(n * 5));
    let halves = (4..=10).map(|n| f64::from(n * 30));
    [0.25, 0.5].into_iter().chain(ones).chain(fives).chain(halves)
}

impl Measures {
    /// A Service changed.
    pub fn service_change(&self) {
        self.service_changes.inc();
        self.service_changes_pending.inc();
        self.queued();
    }

    /// A slice changed.
    pub fn endpoint_change(&self) {
        self.endpoint_changes.inc();
        self.endpoint_changes_pending.inc();
        self.queued();
    }

    fn queued(&self) {
        for family in &FAMILIES {
            self.last_queued.get_or_create(family).set(since_epoch(SystemTime::now()));
        }
    }

    /// A pass over `sync` took `duration` and left nothing waiting. `triggers` are the times of the changes that led to the slices
    /// it wrote; `waited` is the time since the oldest event of the pass reached the agent.
    pub fn pass(&self, sync: Sync, duration: Duration, triggers: &[SystemTime], waited: Option<Duration>) {
        let now = SystemTime::now();
        self.service_changes_pending.set(0);
        self.endpoint_changes_pending.set(0);
        if let Some(waited) = waited {
            self.reaction.observe(waited.as_secs_f64());
        }
        for family in &FAMILIES {
            let part = if sync == Sync::Full { &self.full_sync } else { &self.partial_sync };
            for histogram in [&self.sync, part] {
                histogram.get_or_create(family).observe(duration.as_secs_f64());
            }
            self.last_sync.get_or_create(family).set(since_epoch(now));
            for trigger in triggers {
                let latency = now.duration_since(*trigger).unwrap_or_default();
                self.programming.get_or_create(family).observe(latency.as_secs_f64());
            }
        }
    }

    /// So many ServicePorts ask for local endpoints, and have them elsewhere only.
    pub fn no_local_endpoints(&self, counts: &NoLocalEndpoints) {
        for (traffic_policy, counts) in [("internal", counts.internal), ("external", counts.external)] {
            for (IpFamily { ip_family }, count) in FAMILIES.into_iter().zip(counts) {
                let labels = PolicyAndFamily { traffic_policy, ip_family };
                self.no_local_endpoints.get_or_create(&labels).set(count as i64);
            }
        }
    }

    /// So many connections of another proxy are left to netfilter.
    pub fn handed_over(&self, connections: usize) {
        self.handed_over.set(connections as i64);
    }

    /// `/healthz` was answered.
    pub fn healthz(&self, good: bool) {
        self.healthz.get_or_create(&code(good)).inc();
    }

    /// `/livez` was answered.
    pub fn livez(&self, good: bool) {
        self.livez.get_or_create(&code(good)).inc();
    }

    /// Of the API server.
    pub fn requests(&self) -> &Requests {
        &self.requests
    }

    /// Name them all.
    pub fn register(&self, registry: &mut Registry) {
        let proxy = registry.sub_registry_with_prefix("kubeproxy");
        proxy.register(
            "sync_proxy_rules_duration_seconds",
            "Duration of one pass over what changed",
            self.sync.clone(),
        );
        proxy.register(
            "sync_full_proxy_rules_duration_seconds",
            "Duration of one pass over everything",
            self.full_sync.clone(),
        );
        proxy.register(
            "sync_partial_proxy_rules_duration_seconds",
            "Duration of one pass over only what had changed",
            self.partial_sync.clone(),
        );
        proxy.register(
            "sync_proxy_rules_last_timestamp_seconds",
            "When the last pass ended that left nothing waiting",
            self.last_sync.clone(),
        );
        proxy.register(
            "sync_proxy_rules_last_queued_timestamp_seconds",
            "When the last change came in",
            self.last_queued.clone(),
        );
        proxy.register(
            "network_programming_duration_seconds",
            "From the change behind a slice to the end of the pass that wrote it",
            self.programming.clone(),
        );
        proxy.register(
            "sync_proxy_rules_service_changes",
            "Service events seen",
            self.service_changes.clone(),
        );
        proxy.register(
            "sync_proxy_rules_endpoint_changes",
            "EndpointSlice events seen",
            self.endpoint_changes.clone(),
        );
        proxy.register(
            "sync_proxy_rules_service_changes_pending",
            "Service changes that are not written yet",
            self.service_changes_pending.clone(),
        );
        proxy.register(
            "sync_proxy_rules_endpoint_changes_pending",
            "EndpointSlice changes that are not written yet",
            self.endpoint_changes_pending.clone(),
        );
        proxy.register(
            "sync_proxy_rules_no_local_endpoints_total",
            "ServicePorts with a Local policy and endpoints on other nodes only",
            self.no_local_endpoints.clone(),
        );
        proxy.register("proxy_healthz", "Answers of /healthz", self.healthz.clone());
        proxy.register("proxy_livez", "Answers of /livez", self.livez.clone());
        let own = registry.sub_registry_with_prefix("vipr");
        own.register(
            "event_to_tables_seconds",
            "From an event's arrival at the agent to its being in the tables",
            self.reaction.clone(),
        );
        own.register(
            "handed_over_connections",
            "Connections that another proxy began and that are left to netfilter, when they were last looked at",
            self.handed_over.clone(),
        );
        self.requests.register(registry);
    }
}

fn code(good: bool) -> Code {
    Code { code: if good { 200 } else { 503 } }
}

fn since_epoch(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    fn lines(measures: &Measures) -> String {
        let mut registry = Registry::default();
        measures.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn a_pass_counts_as_full_or_as_partial_and_for_both_families() {
        let measures = Measures::default();
        measures.pass(Sync::Full, Duration::from_millis(3), &[], None);
        measures.pass(Sync::Partial, Duration::from_millis(3), &[], None);
        measures.pass(Sync::Partial, Duration::from_millis(3), &[], None);
        let text = lines(&measures);
        for (part, count) in [("", 3), ("full_", 1), ("partial_", 2)] {
            for family in ["IPv4", "IPv6"] {
                let name = format!("kubeproxy_sync_{part}proxy_rules_duration_seconds");
                let line = format!("{name}_count{{ip_family=\"{family}\"}} {count}\n");
                assert!(text.contains(&line), "no {line} in\n{text}");
            }
        }
    }

    #[test]
    fn services_without_local_endpoints_are_counted_by_policy_and_family() {
        let measures = Measures::default();
        measures.no_local_endpoints(&NoLocalEndpoints { internal: [1, 2], external: [3, 4] });
        let text = lines(&measures);
        for (policy, family, count) in [
            ("internal", "IPv4", 1),
            ("internal", "IPv6", 2),
            ("external", "IPv4", 3),
            ("external", "IPv6", 4),
        ] {
            let labels = format!("{{traffic_policy=\"{policy}\",ip_family=\"{family}\"}}");
            let line = format!("kubeproxy_sync_proxy_rules_no_local_endpoints_total{labels} {count}\n");
            assert!(text.contains(&line), "no {line} in\n{text}");
        }
    }
}
