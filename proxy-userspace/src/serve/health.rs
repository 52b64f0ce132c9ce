//! `/healthz` and `/livez`, as load balancers and probes know them from kube-proxy (spec §4.1).

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{
    Router,
    extract::State,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::any,
};
use serde_json::json;

use super::Face;
use crate::report::{Moment, Report};

pub(super) fn routes(face: Arc<Face>) -> Router {
    Router::new().route("/healthz", any(healthz)).route("/livez", any(livez)).with_state(face)
}

async fn healthz(State(face): State<Arc<Face>>) -> Response {
    let answer = Answer::of(&face.report.borrow(), face.sync_period, SystemTime::now());
    face.measures.healthz(answer.eligible && answer.healthy);
    answer.respond(true)
}

async fn livez(State(face): State<Arc<Face>>) -> Response {
    let answer = Answer::of(&face.report.borrow(), face.sync_period, SystemTime::now());
    face.measures.livez(answer.healthy);
    answer.respond(false)
}

/// What both are answered from.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    now: SystemTime,
    /// No change waits for longer than twice the sync period.
    healthy: bool,
    /// The own Node exists and is to stay.
    eligible: bool,
    /// When nothing waited last; `None`: never yet.
    applied: Option<Moment>,
}

impl Answer {
    fn of(report: &Report, sync_period: Duration, now: SystemTime) -> Self {
        Self {
            now,
            healthy: report.is_healthy(sync_period, now),
            eligible: report.node.is_some_and(|node| !node.leaving),
            applied: report.applied.as_ref().map(|written| written.at),
        }
    }

    fn respond(&self, with_node: bool) -> Response {
        let good = self.healthy && (self.eligible || !with_node);
        let now = Moment(self.now);
        let updated = if good { now } else { self.applied.unwrap_or_default() };
        let mut body = json!({
            "lastUpdated": updated,
            "currentTime": now,
            "healthy": self.healthy,
        });
        if with_node {
            body["nodeEligible"] = json!(self.eligible);
        }
        // Both families are written in one pass.
        if let Some(applied) = self.applied {
            let family = json!({ "lastUpdated": applied, "healthy": self.healthy });
            body["status"] = json!({ "IPv4": family, "IPv6": family });
        }
        let status = if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let headers = [
            (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        ];
        (status, headers, body.to_string()).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{NodeState, Written};

    const PERIOD: Duration = Duration::from_secs(30);

    fn answer(change: impl FnOnce(&mut Report, SystemTime)) -> Answer {
        let mut report = Report::new("node-1", &[]);
        let now = SystemTime::now();
        report.node = Some(NodeState { leaving: false });
        report.applied = Some(Written { at: Moment(now - Duration::from_secs(7200)), ..Written::default() });
        change(&mut report, now);
        Answer::of(&report, PERIOD, now)
    }

    fn codes(answer: &Answer) -> (u16, u16) {
        (answer.respond(true).status().as_u16(), answer.respond(false).status().as_u16())
    }

    #[test]
    fn nothing_waiting_is_healthy_however_long_ago_the_last_write_was() {
        assert_eq!(codes(&answer(|_, _| {})), (200, 200));
    }

    #[test]
    fn a_change_that_waits_for_twice_the_sync_period_is_unhealthy() {
        let waiting = |seconds| {
            answer(move |report, now| report.pending_since = Some(Moment(now - Duration::from_secs(seconds))))
        };
        assert_eq!(codes(&waiting(59)), (200, 200));
        assert_eq!(codes(&waiting(60)), (503, 503));
    }

    #[test]
    fn a_node_that_is_unknown_or_leaving_gets_no_traffic_but_its_agent_lives() {
        assert_eq!(codes(&answer(|report, _| report.node = None)), (503, 200));
        assert_eq!(codes(&answer(|report, _| report.node = Some(NodeState { leaving: true }))), (503, 200));
    }

    #[test]
    fn an_unreachable_api_server_does_not_make_it_unhealthy() {
        let broken = answer(|report, _| {
            report.sources.iter_mut().for_each(|state| state.broken = Some("connection refused".into()));
        });
        assert_eq!(codes(&broken), (200, 200));
    }
}
