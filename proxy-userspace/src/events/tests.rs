//! Against a server that answers as an API server would, on loopback.

use std::sync::{Arc, Mutex};

use axum::{
    Json, Router,
    extract::Request,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::*;
use crate::report::Notices;

const QUICK: Patience =
    Patience { answer: Duration::from_secs(5), between: Duration::from_millis(1), tries: 3 };

type Asked = Arc<Mutex<Vec<(String, Value)>>>;

/// A client of a server that answers with these codes, the last one again and again, and what it was asked.
async fn server(codes: &'static [u16]) -> (Client, Asked) {
    let asked = Asked::default();
    let seen = asked.clone();
    let answer = move |request: Request| async move {
        let place = format!("{} {}", request.method(), request.uri().path());
        let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
        let object: Value = serde_json::from_slice(&body).unwrap();
        let number = {
            let mut seen = seen.lock().unwrap();
            seen.push((place, object.clone()));
            seen.len() - 1
        };
        respond(codes[number.min(codes.len() - 1)], object)
    };
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
    let mut config = kube::Config::new(format!("http://{address}").parse().unwrap());
    // The client's own tries are not to be counted.
    config.default_retry = false;
    (Client::try_from(config).unwrap(), asked)
}

fn respond(code: u16, object: Value) -> Response {
    if code < 300 {
        return Json(object).into_response();
    }
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "no", "reason": "Forbidden", "code": code,
    });
    (StatusCode::from_u16(code).unwrap(), Json(status)).into_response()
}

fn starting() -> Notice {
    let (about, note) = (About::Node, String::new());
    Notice { about, warning: false, reason: "Starting", action: "StartKubeProxy", note }
}

fn taken(name: &str, note: &str) -> Notice {
    Notice {
        about: About::Service { namespace: "shop".into(), name: name.into() },
        warning: true,
        reason: "FailedToStartServiceHealthcheck",
        action: "Listen",
        note: note.into(),
    }
}

/// Tells all of them and gives what the server was asked.
async fn told(codes: &'static [u16], notices: &[Notice]) -> Vec<(String, Value)> {
    let (client, asked) = server(codes).await;
    let (to, from) = Notices::new();
    for notice in notices {
        to.tell(notice.clone());
    }
    drop(to);
    tell_with(client, "node-1", from, QUICK).await;
    asked.lock().unwrap().clone()
}

#[tokio::test]
async fn events_are_those_of_kube_proxy() {
    let told = told(&[201], &[starting(), taken("web", "port taken")]).await;
    let (place, event) = &told[0];
    assert_eq!(place, "POST /apis/events.k8s.io/v1/namespaces/default/events");
    assert_eq!(event["type"], "Normal");
    assert_eq!((&event["reason"], &event["action"]), (&json!("Starting"), &json!("StartKubeProxy")));
    assert_eq!(event["reportingController"], "kube-proxy");
    assert_eq!(event["reportingInstance"], "kube-proxy-node-1");
    assert_eq!(
        event["regarding"],
        json!({ "apiVersion": "v1", "kind": "Node", "name": "node-1", "uid": "node-1" })
    );
    assert!(event["eventTime"].is_string() && event.get("note").is_none(), "{event}");

    let (place, event) = &told[1];
    assert_eq!(place, "POST /apis/events.k8s.io/v1/namespaces/shop/events");
    assert_eq!((&event["type"], &event["note"]), (&json!("Warning"), &json!("port taken")));
    let regarding = &event["regarding"];
    assert_eq!((&regarding["kind"], &regarding["uid"]), (&json!("Service"), &json!("shop/web")));
}

#[tokio::test]
async fn an_event_that_is_refused_is_dropped_and_the_next_one_is_told() {
    let told = told(&[403, 201], &[starting(), taken("web", "")]).await;
    let reasons: Vec<_> = told.iter().map(|(_, event)| event["reason"].clone()).collect();
    assert_eq!(reasons, ["Starting", "FailedToStartServiceHealthcheck"]);
}

#[tokio::test]
async fn an_event_waits_for_a_server_that_is_away_but_not_for_ever() {
    assert_eq!(told(&[503, 500, 201], &[starting()]).await.len(), 3);
    assert_eq!(told(&[503], &[starting()]).await.len(), QUICK.tries as usize);
}

#[tokio::test]
async fn a_long_note_is_cut_where_a_character_ends() {
    let note = told(&[201], &[taken("web", &"ü".repeat(NOTE))]).await[0].1["note"].clone();
    assert_eq!(note.as_str().unwrap().len(), NOTE);
    let odd = told(&[201], &[taken("web", &format!("x{}", "ü".repeat(NOTE)))]).await[0].1["note"].clone();
    assert_eq!(odd.as_str().unwrap().len(), NOTE - 1);
}

#[tokio::test]
async fn one_event_again_is_counted_in_the_first() {
    let told = told(&[201], &[taken("web", "one"), taken("web", "one"), taken("api", "one")]).await;
    let methods: Vec<_> = told.iter().map(|(place, _)| place.split(' ').next().unwrap()).collect();
    assert_eq!(methods, ["POST", "PATCH", "POST"]);
    assert_eq!(told[1].1["series"]["count"], 2);
}
