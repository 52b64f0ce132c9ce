//! 10249: `/metrics`, `/proxyMode`, `/configz`, `/healthz` (spec §4.3).

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text::encode},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

use super::Face;

pub(super) fn routes(face: Arc<Face>) -> Router {
    let mut registry = Registry::default();
    face.measures.register(&mut registry);
    registry.register_collector(Box::new(Published(face.clone())));
    let registry = Arc::new(registry);
    let mode = face.mode;
    Router::new()
        .route("/metrics", get(move || async move { metrics(&registry) }))
        .route("/proxyMode", get(move || async move { mode }))
        .route("/healthz", get(|| async { "ok" }))
        .route("/configz", get(configz))
        .with_state(face)
}

fn metrics(registry: &Registry) -> Response {
    let mut text = String::new();
    match encode(&mut text, registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn configz(State(face): State<Arc<Face>>) -> Response {
    axum::Json(serde_json::json!({ "kubeproxy.config.k8s.io": face.configuration })).into_response()
}

/// What stands in the report and in the programs' counters, read when it is asked for.
struct Published(Arc<Face>);

impl std::fmt::Debug for Published {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Published")
    }
}

impl Collector for Published {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        if let Ok(counters) = (self.0.counters)() {
            let mut family = encoder.encode_descriptor(
                "vipr_outcomes",
                "Calls and packets that the programs saw, by outcome",
                None,
                prometheus_client::metrics::MetricType::Counter,
            )?;
            for (reason, count) in counters {
                let labels = [("reason", reason.name())];
                let metric = family.encode_family(&labels)?;
                ConstCounter::new(count).encode(metric)?;
            }
        }
        let report = self.0.report.borrow();
        let mut gauge = |name: &str, help: &str, value: f64| {
            let metric = ConstGauge::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        if let Some(age) = report.age(std::time::SystemTime::now()) {
            gauge(
                "vipr_view_age_seconds",
                "Longest silence of a source of the cluster's state",
                age.as_secs_f64(),
            )?;
        }
        gauge(
            "vipr_objects_left_out",
            "Objects and parts of objects that could not be read",
            report.odd_total as f64,
        )?;
        gauge(
            "vipr_repaired",
            "Entries and attachments found different and put right",
            report.repaired as f64,
        )?;
        if let Some(written) = &report.applied {
            let fill = written.fill;
            for (map, [used, room]) in [
                ("frontends", fill.frontends),
                ("services", fill.services),
                ("backends", fill.backends),
                ("local_addresses", fill.local_addresses),
            ] {
                gauge(&format!("vipr_{map}_used"), "Entries in use", used.into())?;
                gauge(&format!("vipr_{map}_room"), "Entries there is room for", room.into())?;
            }
        }
        Ok(())
    }
}
