//! What Kubernetes' components say of their own health checks, for objectives of service levels (KEP-3466).

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Check {
    name: &'static str,
    r#type: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    name: &'static str,
    status: &'static str,
    r#type: &'static str,
}

/// Of `/healthz` on the port of metrics, which says no more than that somebody answers.
#[derive(Clone, Debug, Default)]
pub(super) struct Slis {
    healthy: Family<Check, Gauge>,
    checked: Family<Outcome, Counter>,
}

impl Slis {
    /// The answer of `/healthz`.
    pub(super) fn ping(&self) -> &'static str {
        self.healthy.get_or_create(&Check { name: "ping", r#type: "healthz" }).set(1);
        self.checked.get_or_create(&Outcome { name: "ping", status: "success", r#type: "healthz" }).inc();
        "ok"
    }

    /// Both under their names.
    pub(super) fn registry(&self) -> Registry {
        let mut registry = Registry::default();
        let help = "Whether a health check succeeded last";
        registry.register("kubernetes_healthcheck", help, self.healthy.clone());
        let help = "Health checks that were asked for, by outcome";
        registry.register("kubernetes_healthchecks", help, self.checked.clone());
        registry
    }
}
