//! What the agent answers: health on 10256, metrics on 10249, load balancers on Services' healthCheckNodePorts, and its
//! report on a socket for `vipr status`.
//!
//! Nothing here can slow the tables down: it reads what the reconcile loop has published.

mod accept;
mod checks;
mod health;
mod local;
mod metrics;
mod pages;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use axum::Router;
use proxy_common::Reason;
use tokio::{net::TcpListener, sync::watch};

use crate::{
    report::{About, Measures, Notice, Notices, Report},
    text::FlowRoom,
};

/// How often an address that could not be bound is tried again (kube-proxy: 5 s).
const AGAIN: Duration = Duration::from_secs(5);
/// How long an agent that has to end waits for its Event to be told.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Reads the programs' outcomes.
pub type Counters = Box<dyn Fn() -> std::io::Result<Vec<(Reason, u64)>> + Send + Sync>;

/// Reads how full the tables of flows are.
pub type Rooms = Box<dyn Fn() -> std::io::Result<Vec<FlowRoom>> + Send + Sync>;

/// What is answered from.
pub struct Face {
    /// The newest report.
    pub report: watch::Receiver<Report>,
    /// The loop's.
    pub measures: Measures,
    /// Takes on what people should be told.
    pub notices: Notices,
    /// The programs' outcomes, summed over CPUs; an error where they can't be read.
    pub counters: Counters,
    /// How full the tables of flows are, and who left them; an error where that can't be read.
    pub flows: Rooms,
    /// Half of the age of a waiting change at which health is lost.
    pub sync_period: Duration,
    /// Of KubeProxyConfiguration.
    pub mode: &'static str,
    /// KubeProxyConfiguration with its defaults.
    pub configuration: serde_json::Value,
    /// Every flag and its value.
    pub flags: Vec<(&'static str, String)>,
}

/// Where it is answered.
#[derive(Clone, Debug)]
pub struct Listeners {
    /// `/healthz`, `/livez`.
    pub health: Option<SocketAddr>,
    /// `/metrics` and its neighbours.
    pub metrics: Option<SocketAddr>,
    /// The report, to whoever may open this socket.
    pub local: PathBuf,
    /// Give up if an address can't be bound.
    pub hard_fail: bool,
}

/// Serve all; returns only an error that ends the agent.
pub async fn serve(face: Arc<Face>, listeners: Listeners) -> anyhow::Error {
    let hard_fail = listeners.hard_fail;
    let vital = |reason| hard_fail.then(|| (face.notices.clone(), reason));
    let is_vital = vital("FailedToStartProxierHealthcheck");
    let health = on(listeners.health, "healthz", is_vital, health::routes(face.clone()));
    let is_vital = vital("FailedToStartMetricServer");
    let metrics = on(listeners.metrics, "metrics", is_vital, metrics::routes(face.clone()));
    let checks = checks::serve(face.clone());
    let local = local::serve(&listeners.local, local::routes(face));
    tokio::select! {
        error = health => error,
        error = metrics => error,
        error = checks => error,
        error = local => error,
    }
}

/// Serve `routes` at an address, and try again while it can't be bound; nowhere if there is none. A vital one gives up
/// and tells the Node's Events why.
async fn on(
    address: Option<SocketAddr>,
    name: &str,
    vital: Option<(Notices, &'static str)>,
    routes: Router,
) -> anyhow::Error {
    let Some(address) = address else { return std::future::pending().await };
    let mut said = false;
    loop {
        let served: Result<()> = async {
            let listener =
                TcpListener::bind(address).await.with_context(|| format!("bind {address} for {name}"))?;
            if said {
                tracing::info!("{name} is served on {address}");
            }
            axum::serve(listener, routes.clone()).await.with_context(|| format!("serve {name}"))
        }
        .await;
        match served {
            Err(error) if vital.is_some() => {
                if let Some((notices, reason)) = &vital {
                    let note = format!("{error:#}");
                    let (about, action) = (About::Node, "StartKubeProxy");
                    let notice = Notice { about, warning: true, reason, action, note };
                    notices.tell_at_last(notice, LAST_WORDS).await;
                }
                return error.context("bindAddressHardFail is set");
            }
            Err(error) if !said => tracing::error!("{error:#}; trying again every {AGAIN:?}"),
            _ => {}
        }
        said = true;
        tokio::time::sleep(AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_that_is_vital_and_taken_ends_the_agent_and_the_node_is_told() {
        let taken = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = taken.local_addr().unwrap();
        let (notices, mut to_tell) = Notices::new();
        let vital = Some((notices, "FailedToStartMetricServer"));
        let deal = async { to_tell.recv().await.map(|told| told.notice) };
        let (error, notice) = tokio::join!(on(Some(address), "metrics", vital, Router::new()), deal);
        assert!(format!("{error:#}").starts_with("bindAddressHardFail is set: "), "{error:#}");
        let notice = notice.expect("an Event");
        assert_eq!((notice.about, notice.warning), (About::Node, true));
        assert_eq!((notice.reason, notice.action), ("FailedToStartMetricServer", "StartKubeProxy"));
        assert!(notice.note.contains(&address.to_string()), "{}", notice.note);
    }
}
