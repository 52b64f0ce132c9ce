//! Looks at what another proxy has left to netfilter until nothing of it is left.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{
    dataplane::{self, Handover},
    report::{Measures, Report},
};

/// The first looks come this often, later ones more seldom …
const FIRST_WAIT: Duration = Duration::from_secs(5);
/// … up to this. Less than netfilter remembers an answered datagram's flow by default (120 s).
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// A look costs the kernel a walk over all that it tracks: at most this part of one CPU's time.
const SHARE: u32 = 100;

/// From the first time that the tables are written. Never returns.
pub(super) async fn follow(pin_path: PathBuf, mut report: watch::Receiver<Report>, measures: Measures) {
    if report.wait_for(|report| report.applied.is_some()).await.is_err() {
        return std::future::pending().await;
    }
    let mut wait = FIRST_WAIT;
    let mut before = None;
    loop {
        let path = pin_path.clone();
        let start = Instant::now();
        let looked = tokio::task::spawn_blocking(move || dataplane::look_at_handover(&path)).await;
        let took = start.elapsed();
        match looked {
            Ok(Ok(found)) => {
                measures.handed_over(found.map_or(0, |found| found.connections));
                tell(before, found, took);
                before = found;
                if found.is_none() {
                    break;
                }
            }
            Ok(Err(error)) => {
                tracing::warn!("what the proxy before has left can't be looked at, trying again: {error}");
            }
            Err(error) => tracing::error!("looking at what the proxy before has left: {error}"),
        }
        tokio::time::sleep(wait.max(took * SHARE)).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
    std::future::pending().await
}

/// Log what differs from the last look; the rest for who debugs.
fn tell(before: Option<Handover>, found: Option<Handover>, took: Duration) {
    let milliseconds = took.as_millis() as u64;
    match (before, found) {
        (Some(_), None) => {
            tracing::info!(
                "netfilter translates no connection of another proxy any more: the handover is over"
            );
        }
        (None, Some(Handover { connections, listed })) => tracing::info!(
            connections,
            all_listed = listed,
            milliseconds,
            "connections of another proxy are left to netfilter as long as it remembers them"
        ),
        (_, found) => tracing::debug!(?found, milliseconds, "looked at what another proxy has left"),
    }
}
