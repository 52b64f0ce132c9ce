//! The report for `vipr status`, on a Unix socket that only root may open.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use anyhow::Context;
use axum::{Json, Router, extract::State, routing::get};
use tokio::net::UnixListener;

use super::Face;
use crate::report::Report;

pub(super) fn routes(face: Arc<Face>) -> Router {
    Router::new().route("/report", get(report)).with_state(face)
}

async fn report(State(face): State<Arc<Face>>) -> Json<Report> {
    Json(face.report.borrow().clone())
}

/// Never returns: without the socket `vipr status` shows less, and nothing else is worse.
pub(super) async fn serve(path: &Path, routes: Router) -> anyhow::Error {
    let served = async {
        // What an agent that was killed left: whoever holds the lock owns the name.
        let _ = fs::remove_file(path);
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        axum::serve(listener, routes).await?;
        anyhow::Ok(())
    }
    .await
    .with_context(|| format!("serve the report on {}", path.display()));
    if let Err(error) = served {
        tracing::error!("`vipr status` will not see the agent: {error:#}");
    }
    std::future::pending().await
}
