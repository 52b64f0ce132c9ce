//! 10249: `/metrics`, `/metrics/slis`, `/proxyMode`, `/configz`, `/flagz`, `/statusz`, `/healthz` (spec §4.3).

mod form;
mod process;
mod published;
mod slis;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response},
    routing::{any, get},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
    registry::Registry,
};

use self::{process::Process, published::Published, slis::Slis};
use super::{Face, pages};

/// All that is listed on the page of `/statusz`.
const PATHS: [&str; 7] =
    ["/configz", "/flagz", "/healthz", "/metrics", "/metrics/slis", "/proxyMode", "/statusz"];

pub(super) fn routes(face: Arc<Face>) -> Router {
    let registry = Arc::new(registry(face.clone()));
    let slis = Slis::default();
    let of_slis = Arc::new(slis.registry());
    let mode = face.mode;
    let flags = pages::flags(&face.flags);
    Router::new()
        .route("/metrics", get(move |headers: HeaderMap| async move { form::respond(&registry, &headers) }))
        .route(
            "/metrics/slis",
            get(move |headers: HeaderMap| async move { form::respond(&of_slis, &headers) }),
        )
        .route("/proxyMode", get(move || async move { mode }))
        .route("/healthz", any(move || async move { slis.ping() }))
        .route("/configz", get(configz))
        .route("/flagz", any(move |headers: HeaderMap| async move { flags.respond(&headers) }))
        .route("/statusz", any(statusz))
        .with_state(face)
}

/// All that `/metrics` has.
fn registry(face: Arc<Face>) -> Registry {
    let mut registry = Registry::default();
    face.measures.register(&mut registry);
    let build = Family::<Build, Gauge>::default();
    build.get_or_create(&Build::ours()).set(1);
    registry.register("kubernetes_build_info", "Which build this is; the value is always 1", build);
    registry.register_collector(Box::new(Process));
    registry.register_collector(Box::new(Published(face)));
    registry
}

/// Which build this is, in the labels that Kubernetes' components have.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    compiler: &'static str,
    git_version: &'static str,
    major: &'static str,
    minor: &'static str,
    platform: String,
}

impl Build {
    fn ours() -> Self {
        Self {
            compiler: "rustc",
            git_version: concat!("v", env!("CARGO_PKG_VERSION")),
            major: env!("CARGO_PKG_VERSION_MAJOR"),
            minor: env!("CARGO_PKG_VERSION_MINOR"),
            platform: format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
        }
    }
}

async fn configz(State(face): State<Arc<Face>>) -> Response {
    axum::Json(serde_json::json!({ "kubeproxy.config.k8s.io": face.configuration })).into_response()
}

async fn statusz(State(face): State<Arc<Face>>, headers: HeaderMap) -> Response {
    let page = pages::status(&face.report.borrow(), &PATHS, std::time::SystemTime::now());
    page.respond(&headers)
}
