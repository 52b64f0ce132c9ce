//! All metrics at once: their names, and that the page about them is fresh.

use std::{
    collections::BTreeMap,
    fmt::Write,
    time::{Duration, SystemTime},
};

use proxy_common::{Reason, names::map};
use tokio::sync::watch;

use super::*;
use crate::{
    report::{Fill, Measures, Moment, Notices, Report, SourceState, Sync, Written},
    text::FlowRoom,
};

/// Of an agent that has done everything once.
fn busy() -> Arc<Face> {
    let measures = Measures::default();
    measures.service_change();
    measures.endpoint_change();
    for sync in [Sync::Full, Sync::Partial] {
        measures.pass(sync, Duration::from_millis(3), &[SystemTime::now()], Some(Duration::from_millis(5)));
    }
    measures.no_local_endpoints(&Default::default());
    measures.healthz(true);
    measures.livez(false);
    let took = Some(Duration::from_millis(5));
    measures.requests().request("GET", "10.0.0.1:6443", Some(200), took, Some([0, 5000]));

    let mut report = Report::new("node-1", &[]);
    report.sources = ["services", "slices"]
        .map(|source| SourceState {
            source: source.into(),
            synced: true,
            heard: Some(Moment::now()),
            broken: None,
            changes: 1,
        })
        .into();
    report.applied = Some(Written { fill: Fill::default(), ..Written::default() });
    Arc::new(Face {
        report: watch::channel(report).1,
        measures,
        notices: Notices::new().0,
        counters: Box::new(|| Ok(Reason::ALL.iter().map(|reason| (*reason, 7)).collect())),
        flows: Box::new(|| {
            Ok(map::FLOW_TABLES.map(|table| FlowRoom::new(table, 40, 100, |what| what as u64)).into())
        }),
        sync_period: Duration::from_secs(30),
        mode: "iptables",
        configuration: serde_json::Value::Null,
        flags: Vec::new(),
    })
}

fn text(registry: &Registry) -> String {
    let mut open = String::new();
    prometheus_client::encoding::text::encode(&mut open, registry).unwrap();
    form::plain(&open)
}

#[test]
fn metrics_have_the_names_of_kube_proxy() {
    let text = text(&registry(busy()));
    for line in [
        "# TYPE kubeproxy_sync_proxy_rules_service_changes_total counter",
        "kubeproxy_sync_proxy_rules_service_changes_total 1",
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
        "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
        "kubeproxy_proxy_livez_total{code=\"503\"} 1",
        "# TYPE kubeproxy_sync_proxy_rules_no_local_endpoints_total gauge",
        "kubeproxy_network_programming_duration_seconds_bucket{le=\"60\",ip_family=\"IPv4\"} 2",
        "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"} 1",
        "vipr_outcomes_total{reason=\"connected\"} 7",
        "vipr_flows_used 40.0",
        "vipr_flows_new_tcp_room 100.0",
        "vipr_flow_keys_removed_total{table=\"flows_new_tcp\",reason=\"evicted\"} 6",
        "# TYPE process_cpu_seconds_total counter",
        "rest_client_requests_total{code=\"200\",method=\"GET\",host=\"10.0.0.1:6443\"} 1",
        "rest_client_request_duration_seconds_count{verb=\"GET\",host=\"10.0.0.1:6443\"} 1",
    ] {
        assert!(text.lines().any(|it| it == line), "no {line} in\n{text}");
    }
    let build = text.lines().find(|line| line.starts_with("kubernetes_build_info{")).expect("the build");
    let version = concat!("git_version=\"v", env!("CARGO_PKG_VERSION"), "\"");
    assert!(build.contains(version) && build.ends_with(" 1"), "{build}");
    let resident = text.lines().find_map(|line| line.strip_prefix("process_resident_memory_bytes "));
    assert!(resident.is_some_and(|value| value.parse::<f64>().unwrap() > 1e6), "{resident:?}");
}

#[test]
fn service_level_indicators_count_the_pings() {
    let slis = Slis::default();
    let registry = slis.registry();
    assert_eq!(text(&registry), "", "as in kube-proxy, nothing before the first");
    assert_eq!([slis.ping(), slis.ping()], ["ok", "ok"]);
    let text = text(&registry);
    for line in [
        "kubernetes_healthcheck{name=\"ping\",type=\"healthz\"} 1",
        "kubernetes_healthchecks_total{name=\"ping\",status=\"success\",type=\"healthz\"} 2",
    ] {
        assert!(text.lines().any(|it| it == line), "no {line} in\n{text}");
    }
}

/// A family, as its comments and its first sample tell of it.
#[derive(Debug, Default)]
struct Told {
    kind: String,
    help: String,
    labels: Vec<String>,
}

fn told(text: &str) -> BTreeMap<String, Told> {
    let mut all: BTreeMap<String, Told> = BTreeMap::new();
    let mut last = String::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            all.entry(name.to_owned()).or_default().help = help.to_owned();
            last = name.to_owned();
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            all.entry(name.to_owned()).or_default().kind = kind.to_owned();
        } else if let Some(told) = all.get_mut(&last).filter(|told| told.labels.is_empty())
            && let Some((_, labels)) = line.split_once('{')
        {
            let names =
                labels.split("=\"").map(|part| part.rsplit(['{', ',', '"']).next().unwrap_or_default());
            let names = names.filter(|name| !["le", ""].contains(name) && !name.contains('}'));
            told.labels = names.map(str::to_owned).collect();
        }
    }
    all
}

/// `docs/metrics.md`.
fn markdown() -> String {
    let mut page = String::from(
        "# Metrics\n\n\
         <!-- Made from what proxy-userspace/src/serve registers: UPDATE_DOCS=1 cargo test -p proxy-userspace serve -->\n\n\
         `/metrics` on 10249, in Prometheus' text form, or as OpenMetrics where that is asked for. What is named `kubeproxy_` is\n\
         what kube-proxy calls so; here both families are written in one pass, and count alike. The reasons of\n\
         `vipr_outcomes_total` are in [reasons.md](reasons.md).\n",
    );
    let slis = Slis::default();
    slis.ping();
    let mut told_of = told(&text(&registry(busy())));
    let sections = [
        ("kube-proxy's", "kubeproxy_"),
        ("vipr's own", "vipr_"),
        ("Of every component", "kubernetes_"),
        ("Of every component that asks the API server", "rest_client_"),
        ("Of every process", "process_"),
    ];
    for (title, prefix) in sections {
        add(&mut page, title, told_of.extract_if(.., |name, _| name.starts_with(prefix)));
    }
    assert!(told_of.is_empty(), "a section for {told_of:?}");
    add(&mut page, "At /metrics/slis", told(&text(&slis.registry())).into_iter());
    page
}

fn add(page: &mut String, title: &str, families: impl Iterator<Item = (String, Told)>) {
    let _ = write!(page, "\n## {title}\n\n| metric | kind | labels | |\n|---|---|---|---|\n");
    for (name, Told { kind, help, labels }) in families {
        let _ = writeln!(page, "| {name} | {kind} | {} | {help} |", labels.join(", "));
    }
}

#[test]
fn the_page_of_all_metrics_is_fresh() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, markdown()).unwrap();
    }
    let known = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(known, markdown(), "UPDATE_DOCS=1 writes it anew");
}
