//! healthCheckNodePort: load balancers ask each node whether it has endpoints of a Service (spec §4.2). One server for
//! each Service and family, opened, moved and closed as the report says.

mod listen;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Router,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use listen::Open;

use super::{AGAIN, Face};
use crate::report::{About, Checks, Notice, Report};

const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// Where one Service of one family may be asked about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    namespace: String,
    name: String,
    v6: bool,
    port: u16,
    addresses: Arc<[IpAddr]>,
}

/// Those that answer now.
#[derive(Debug, Default)]
struct Servers {
    /// Followed last.
    checks: Arc<Checks>,
    open: BTreeMap<Place, Vec<Open>>,
    /// Could not be opened; that is known to people.
    failed: BTreeSet<Place>,
}

/// Follow the report; never returns, for a port that can't be bound is tried again.
pub(super) async fn serve(face: Arc<Face>) -> anyhow::Error {
    let mut report = face.report.clone();
    let mut servers = Servers::default();
    loop {
        let checks = report.borrow_and_update().checks.clone();
        servers.follow(&checks, &face).await;
        tokio::select! {
            changed = report.changed() => if changed.is_err() {
                return std::future::pending().await;
            },
            () = tokio::time::sleep(AGAIN), if !servers.failed.is_empty() => {}
        }
    }
}

impl Servers {
    async fn follow(&mut self, checks: &Arc<Checks>, face: &Arc<Face>) {
        if Arc::ptr_eq(&self.checks, checks) && self.failed.is_empty() {
            return;
        }
        self.checks = checks.clone();
        let wanted = wanted(checks);
        // First, for another may want the port.
        let gone: Vec<_> = self.open.keys().filter(|place| !wanted.contains(place)).cloned().collect();
        for place in gone {
            for open in self.open.remove(&place).into_iter().flatten() {
                open.close().await;
            }
        }
        self.failed.retain(|place| wanted.contains(place));
        for place in wanted {
            if !self.open.contains_key(&place) {
                self.open(place, face);
            }
        }
    }

    fn open(&mut self, place: Place, face: &Arc<Face>) {
        let addresses = place.addresses.iter().map(|address| SocketAddr::new(*address, place.port));
        let opened: std::io::Result<Vec<_>> =
            addresses.map(|address| Open::new(address, routes(face.clone(), place.clone()))).collect();
        match opened {
            Ok(open) => {
                if self.failed.remove(&place) {
                    let (port, family) = (place.port, if place.v6 { "IPv6" } else { "IPv4" });
                    tracing::info!(service = %place.service(), port, family, "health checks are answered");
                }
                self.open.insert(place, open);
            }
            Err(error) => {
                if self.failed.contains(&place) {
                    return;
                }
                let (node, service, port) =
                    (face.report.borrow().node_name.clone(), place.service(), place.port);
                let note =
                    format!("node {node} failed to start healthcheck {service:?} on port {port}: {error}");
                tracing::error!("{note}; trying again");
                let about = About::Service { namespace: place.namespace.clone(), name: place.name.clone() };
                let (reason, action) = ("FailedToStartServiceHealthcheck", "Listen");
                face.notices.tell(Notice { about, warning: true, reason, action, note });
                self.failed.insert(place);
            }
        }
    }
}

impl Place {
    fn service(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

fn wanted(checks: &Checks) -> BTreeSet<Place> {
    let of = |v6| checks.addresses.iter().copied().filter(|address| address.is_ipv6() == v6).collect();
    let addresses: [Arc<[IpAddr]>; 2] = [of(false), of(true)];
    let place = |check: &crate::report::Check| Place {
        namespace: check.namespace.clone(),
        name: check.name.clone(),
        v6: check.v6,
        port: check.port,
        addresses: addresses[usize::from(check.v6)].clone(),
    };
    checks.services.iter().map(place).collect()
}

/// All paths and methods answer alike.
fn routes(face: Arc<Face>, place: Place) -> Router {
    Router::new().fallback(move || async move {
        answer(&face.report.borrow(), &place, face.sync_period, SystemTime::now())
    })
}

fn answer(report: &Report, place: &Place, sync_period: Duration, now: SystemTime) -> Response {
    let count = report.checks.local_endpoints(&place.namespace, &place.name, place.v6);
    let healthy = report.is_healthy(sync_period, now);
    let status = if count > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        (WEIGHT, HeaderValue::from(count)),
    ];
    let (namespace, name) = (&place.namespace, &place.name);
    // To the byte as kube-proxy has it: tabs, and no end of line at the end.
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {namespace:?},\n\t\t\"name\": {name:?}\n\t}},\n\
         \t\"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": {healthy}\n}}"
    );
    (status, headers, body).into_response()
}

#[cfg(test)]
mod tests;
