//! An API server that answers what the test says, request by request.

use std::{io, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use kube::Client;
use serde_json::{Value as Json, json};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::{
    model::Change,
    watch::{
        Event, What,
        convert::{Converter, Kind},
        kube::stream::{Pace, Stream},
    },
};

const LIMIT: Duration = Duration::from_secs(20);

/// The server's side, and what the stream says to the agent.
pub(super) struct Server {
    requests: mpsc::Receiver<Asked>,
    events: mpsc::Receiver<Event>,
}

/// A request that waits for its answer.
pub(super) struct Asked {
    pub(super) uri: String,
    pub(super) token: String,
    answer: oneshot::Sender<Response>,
}

/// A watch that goes on until it is dropped.
pub(super) struct Watch(mpsc::Sender<io::Result<Bytes>>);

/// Answers by what comes from the receiver.
pub(super) fn router() -> (Router, mpsc::Receiver<Asked>) {
    let (to, requests) = mpsc::channel(8);
    let router = Router::new().fallback(move |request: axum::extract::Request| async move {
        let (answer, answered) = oneshot::channel();
        let token = request.headers().get("authorization").and_then(|value| value.to_str().ok());
        let token = token.unwrap_or("").to_owned();
        to.send(Asked { uri: request.uri().to_string(), token, answer }).await.unwrap();
        answered.await.unwrap()
    });
    (router, requests)
}

/// Short waits, and no silence that a test does not want.
pub(super) fn pace() -> Pace {
    let retry = (Duration::from_millis(1), Duration::from_millis(4));
    Pace { retry, answer: LIMIT, silence: LIMIT, ..Pace::default() }
}

impl Server {
    pub(super) fn start(kind: Kind, relist: Option<Duration>, pace: Pace) -> Self {
        let (router, requests) = router();
        let (to, events) = mpsc::channel(100);
        let client = Client::new(router, "default");
        tokio::spawn(Stream::new(client, Converter::new("n1"), kind, relist, pace, to).follow());
        Self { requests, events }
    }

    /// The next request, which has all of `parts` in its address.
    pub(super) async fn asked(&mut self, parts: &[&str]) -> Asked {
        let asked = timeout(LIMIT, self.requests.recv()).await.expect("a request").unwrap();
        for part in parts {
            assert!(asked.uri.contains(part), "{} has no {part}", asked.uri);
        }
        asked
    }

    /// One that knows no streamed lists, asked up to its list.
    pub(super) async fn asked_for_list(&mut self) -> Asked {
        let asked = self.asked(&["sendInitialEvents=true"]).await;
        asked.refuse(422, "sendInitialEvents: Forbidden");
        self.asked(&["limit=500"]).await
    }

    /// With this list passed on, and asked to watch from its version.
    pub(super) async fn watched_from(&mut self, version: &str, items: &[Json]) -> Watch {
        self.asked_for_list().await.list(version, "", items);
        let watch = self.asked(&["watch=true", &format!("resourceVersion={version}")]).await.watch();
        self.said().await;
        watch
    }

    /// What is said next, signs of life apart.
    pub(super) async fn said(&mut self) -> String {
        loop {
            let event = self.event().await;
            if let Some(line) = line(event) {
                return line;
            }
        }
    }

    /// Waits for a sign of life, which is next.
    pub(super) async fn lives(&mut self) {
        assert_eq!(self.event().await.what, What::Alive);
    }

    /// The next event.
    pub(super) async fn event(&mut self) -> Event {
        timeout(LIMIT, self.events.recv()).await.expect("an event").unwrap()
    }
}

impl Asked {
    pub(super) fn list(self, version: &str, next: &str, items: &[Json]) {
        let metadata = json!({"resourceVersion": version, "continue": next});
        let list = json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items});
        self.answer.send(list.to_string().into_response()).unwrap();
    }

    pub(super) fn refuse(self, code: u16, message: &str) {
        let status = json!({"kind": "Status", "code": code, "message": message, "reason": "Test"});
        let code = StatusCode::from_u16(code).unwrap();
        self.answer.send((code, status.to_string()).into_response()).unwrap();
    }

    pub(super) fn watch(self) -> Watch {
        let (to, from) = mpsc::channel(16);
        let lines =
            futures::stream::unfold(from, |mut from| async { from.recv().await.map(|it| (it, from)) });
        self.answer.send(Body::from_stream(lines).into_response()).unwrap();
        Watch(to)
    }
}

impl Watch {
    pub(super) async fn event(&self, kind: &str, object: Json) {
        self.text(&format!("{}\n", json!({"type": kind, "object": object}))).await;
    }

    pub(super) async fn bookmark(&self, version: &str, is_initial_end: bool) {
        let mut metadata = json!({"resourceVersion": version});
        if is_initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        self.event("BOOKMARK", json!({"kind": "Service", "metadata": metadata})).await;
    }

    pub(super) async fn text(&self, text: &str) {
        self.0.send(Ok(Bytes::from(text.to_owned()))).await.unwrap();
    }

    /// As a connection that is reset.
    pub(super) async fn break_off(self) {
        self.0.send(Err(io::ErrorKind::ConnectionReset.into())).await.unwrap();
    }
}

pub(super) fn service(name: &str, port: u16, version: &str) -> Json {
    json!({"metadata": {"namespace": "ns", "name": name, "resourceVersion": version},
           "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": port}]}})
}

/// One whose `spec` can't be read.
pub(super) fn bad(name: &str, version: &str) -> Json {
    json!({"metadata": {"namespace": "ns", "name": name, "resourceVersion": version}, "spec": {"ports": 7}})
}

/// One line for what an event says; `None` for signs of life.
fn line(event: Event) -> Option<String> {
    let of = |service: &crate::model::Service| format!("{}:{}", service.name.name, service.ports[0].port);
    let change = match event.what {
        What::Alive => return None,
        What::Broken { why } => return Some(format!("broken: {why}")),
        What::Note { name, why } => return Some(format!("note {name}: {why}")),
        What::Change { change, .. } => change,
    };
    Some(match change {
        Change::Services(all) => all.iter().map(|it| of(it)).collect::<Vec<_>>().join(" "),
        Change::Service(_, Some(service)) => format!("now {}", of(&service)),
        Change::Service(name, None) => format!("no {name}"),
        Change::Malformed { name, .. } => format!("malformed {name}"),
        other => format!("{other:?}"),
    })
}
