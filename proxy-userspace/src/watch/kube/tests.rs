//! Dialogues with an API server, good and bad.

mod server;

use std::{fs, sync::Arc, time::Duration};

use http::StatusCode;
use serde_json::json;
use tokio::{net::TcpListener, sync::mpsc, time::timeout};

use self::server::{Server, bad, pace, router, service};
use super::*;
use crate::watch::{Event, What};

fn services() -> Server {
    Server::start(Kind::Service, None, pace())
}

#[tokio::test]
async fn a_server_without_streamed_lists_is_asked_page_by_page_and_then_watched() {
    let mut server = services();
    let selectors = [
        "/api/v1/services?",
        "labelSelector=%21service.kubernetes.io%2Fservice-proxy-name",
        "fieldSelector=spec.clusterIP%21%3DNone",
    ];
    server.asked(&selectors).await.refuse(422, "sendInitialEvents: Forbidden");
    let asked = server.asked(&selectors).await;
    assert!(asked.uri.contains("limit=500&resourceVersion=0"), "{}", asked.uri);
    asked.list("7", "more", &[service("a", 1, "3")]);
    let asked = server.asked(&["continue=more"]).await;
    assert!(!asked.uri.contains("resourceVersion"), "{}", asked.uri);
    asked.list("7", "", &[service("b", 2, "4")]);
    let watch = server.asked(&["watch=true", "allowWatchBookmarks=true", "resourceVersion=7"]).await.watch();
    assert_eq!(server.said().await, "a:1 b:2");

    watch.event("ADDED", service("c", 3, "8")).await;
    assert_eq!(server.said().await, "now c:3");
    watch.event("MODIFIED", service("a", 10, "9")).await;
    assert_eq!(server.said().await, "now a:10");
    watch.event("DELETED", service("b", 2, "10")).await;
    assert_eq!(server.said().await, "no ns/b");
    // The same again, one that is not ours any more, and a sign of life.
    watch.event("MODIFIED", service("a", 10, "11")).await;
    let mut foreign = service("c", 3, "12");
    foreign["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "other"});
    watch.event("MODIFIED", foreign).await;
    assert_eq!(server.said().await, "no ns/c");
    watch.bookmark("20", false).await;
    server.lives().await;
    drop(watch);
    server.asked(&["watch=true", "resourceVersion=20"]).await.watch();
    server.lives().await;
}

#[tokio::test]
async fn a_server_with_streamed_lists_is_asked_once() {
    let mut server = services();
    let parts = ["sendInitialEvents=true", "resourceVersionMatch=NotOlderThan", "resourceVersion=0"];
    let watch = server.asked(&parts).await.watch();
    watch.event("ADDED", service("a", 1, "3")).await;
    watch.event("ADDED", service("b", 2, "4")).await;
    watch.bookmark("7", true).await;
    assert_eq!(server.said().await, "a:1 b:2");
    watch.event("DELETED", service("a", 1, "8")).await;
    assert_eq!(server.said().await, "no ns/a");
    drop(watch);
    let asked = server.asked(&["watch=true", "resourceVersion=8"]).await;
    assert!(!asked.uri.contains("sendInitialEvents"), "{}", asked.uri);
}

#[tokio::test]
async fn a_streamed_list_that_ends_early_says_nothing_of_what_is_gone() {
    let mut server = services();
    let watch = server.asked(&["sendInitialEvents=true"]).await.watch();
    watch.event("ADDED", service("a", 1, "3")).await;
    drop(watch);
    assert!(server.said().await.contains("ended before it was complete"));
    let watch = server.asked(&["sendInitialEvents=true"]).await.watch();
    watch.bookmark("7", true).await;
    assert_eq!(server.said().await, "");
}

#[tokio::test]
async fn a_server_without_service_cidrs_has_none_and_is_asked_again_later() {
    let mut server =
        Server::start(Kind::ServiceCidr, None, Pace { missing: Duration::from_millis(50), ..pace() });
    let path = "/apis/networking.k8s.io/v1/servicecidrs?";
    server.asked(&[path, "sendInitialEvents=true"]).await.refuse(404, "the server could not find it");
    assert_eq!(server.said().await, "ServiceCidrs({})");
    let watch = server.asked(&[path, "sendInitialEvents=true"]).await.watch();
    let range = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16"]}});
    watch.event("ADDED", range).await;
    watch.bookmark("7", true).await;
    assert!(server.said().await.contains("kubernetes"));
}

#[tokio::test]
async fn a_server_that_never_ends_its_streamed_list_is_asked_for_a_plain_one() {
    let mut server = Server::start(Kind::Service, None, Pace { answer: Duration::from_millis(50), ..pace() });
    let watch = server.asked(&["sendInitialEvents=true"]).await.watch();
    watch.event("ADDED", service("a", 1, "3")).await;
    assert!(server.said().await.contains("ended before it was complete"));
    server.asked(&["limit=500"]).await;
}

#[tokio::test]
async fn a_malformed_object_is_named_and_the_rest_is_served() {
    let mut server = services();
    server.asked_for_list().await.list("7", "", &[bad("x", "5"), service("a", 1, "6")]);
    let watch = server.asked(&["watch=true"]).await.watch();
    assert_eq!(server.said().await, "malformed ns/x");
    assert_eq!(server.said().await, "a:1");
    watch.event("MODIFIED", bad("a", "8")).await;
    assert_eq!(server.said().await, "malformed ns/a");
    watch.event("ADDED", json!("nonsense")).await;
    assert_eq!(server.said().await, "malformed /");
    watch.text("{\"type\": \"ADDED\", nonsense}\n").await;
    assert_eq!(server.said().await, "malformed /");
    watch.event("ADDED", service("b", 2, "9")).await;
    assert_eq!(server.said().await, "now b:2");
    // It was served until now, and is gone however it looks.
    watch.event("DELETED", bad("a", "10")).await;
    assert_eq!(server.said().await, "no ns/a");
    drop(watch);
    server.asked(&["watch=true", "resourceVersion=10"]).await;
}

#[tokio::test]
async fn a_version_that_the_server_has_forgotten_leads_to_a_list_that_shows_what_is_gone() {
    for by_status in [false, true] {
        let mut server = services();
        let watch = server.watched_from("7", &[service("a", 1, "3"), service("b", 2, "4")]).await;
        if by_status {
            drop(watch);
            server.asked(&["watch=true", "resourceVersion=7"]).await.refuse(410, "too old resource version");
        } else {
            watch.event("ERROR", json!({"kind": "Status", "code": 410, "message": "too old"})).await;
        }
        let asked =
            server.asked(&["limit=500", "resourceVersion=7", "resourceVersionMatch=NotOlderThan"]).await;
        asked.list("30", "", &[bad("a", "20")]);
        // What can't be read stays as it was; what is not there is gone.
        assert_eq!(server.said().await, "malformed ns/a", "{by_status}");
        assert_eq!(server.said().await, "a:1", "{by_status}");
        server.asked(&["watch=true", "resourceVersion=30"]).await;
    }
}

#[tokio::test]
async fn a_server_behind_the_known_version_is_asked_for_its_newest() {
    let mut server = services();
    let watch = server.watched_from("700", &[service("a", 1, "3")]).await;
    watch.event("ERROR", json!({"code": 410, "message": "too old"})).await;
    let asked = server.asked(&["resourceVersion=700"]).await;
    asked.refuse(504, "Timeout: Too large resource version: 700, current: 9");
    let asked = server.asked(&["limit=500"]).await;
    assert!(!asked.uri.contains("resourceVersion"), "{}", asked.uri);
    asked.list("9", "", &[]);
    assert_eq!(server.said().await, "");
}

#[tokio::test]
async fn a_connection_that_breaks_in_the_middle_of_a_line_is_taken_up_where_it_was() {
    for is_reset in [false, true] {
        let mut server = services();
        let watch = server.watched_from("7", &[service("a", 1, "3")]).await;
        watch.event("MODIFIED", service("a", 2, "8")).await;
        watch.text(r#"{"type": "MODIFIED", "object": {"metadata"#).await;
        assert_eq!(server.said().await, "now a:2");
        if is_reset {
            watch.break_off().await
        } else {
            drop(watch)
        }
        let watch = server.asked(&["watch=true", "resourceVersion=8"]).await.watch();
        watch.event("MODIFIED", service("a", 3, "9")).await;
        assert_eq!(server.said().await, "now a:3", "{is_reset}");
    }
}

#[tokio::test]
async fn errors_are_told_and_nothing_is_lost_until_the_server_is_back() {
    let mut server = services();
    let watch = server.watched_from("7", &[service("a", 1, "3")]).await;
    drop(watch);
    for _ in 0..3 {
        server.asked(&["watch=true", "resourceVersion=7"]).await.refuse(500, "etcd is gone");
        let said = server.said().await;
        assert!(said.starts_with("broken: ") && said.contains("500 for services: etcd is gone"), "{said}");
    }
    let watch = server.asked(&["watch=true", "resourceVersion=7"]).await.watch();
    server.lives().await;
    watch.event("ADDED", service("b", 2, "8")).await;
    assert_eq!(server.said().await, "now b:2");
}

#[tokio::test]
async fn a_periodic_list_shows_what_the_watch_did_not_say() {
    let mut server = Server::start(Kind::Service, Some(Duration::from_millis(1)), pace());
    let _watch = server.watched_from("7", &[service("a", 1, "3"), service("b", 2, "4")]).await;
    let asked = server.asked(&["limit=500", "resourceVersion=7", "resourceVersionMatch=NotOlderThan"]).await;
    asked.list("9", "", &[service("b", 2, "4")]);
    assert_eq!(server.said().await, "b:2");
}

#[tokio::test]
async fn a_watch_that_is_silent_for_too_long_is_taken_for_dead() {
    let mut pace = pace();
    pace.silence = Duration::from_millis(10);
    let mut server = Server::start(Kind::Service, None, pace);
    let _watch = server.watched_from("7", &[]).await;
    server.asked(&["watch=true", "resourceVersion=7"]).await;
}

#[tokio::test]
async fn a_node_that_does_not_exist_is_told_as_none() {
    let mut server = Server::start(Kind::Node, None, pace());
    let watch = server.asked(&["/api/v1/nodes?", "fieldSelector=metadata.name%3Dn1"]).await.watch();
    watch.bookmark("7", true).await;
    assert_eq!(server.said().await, "Node(None)");
    watch.event("ADDED", json!({"metadata": {"name": "n1", "resourceVersion": "8"}})).await;
    assert!(server.said().await.starts_with("Node(Some("));
    watch.event("DELETED", json!({"metadata": {"name": "n1", "resourceVersion": "9"}})).await;
    assert_eq!(server.said().await, "Node(None)");
}

#[tokio::test]
async fn slices_come_with_the_time_of_the_change_that_led_to_them() {
    let mut server = Server::start(Kind::Slice, None, pace());
    let parts =
        ["/apis/discovery.k8s.io/v1/endpointslices?", "labelSelector=%21service.kubernetes.io%2Fheadless"];
    let watch = server.asked(&parts).await.watch();
    watch.bookmark("7", true).await;
    assert_eq!(server.said().await, "Slices([])");
    let trigger = "2026-01-02T03:04:05Z";
    let slice = json!({"metadata": {"name": "s", "namespace": "ns", "resourceVersion": "8",
                       "labels": {"kubernetes.io/service-name": "a"},
                       "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": trigger}},
                       "addressType": "IPv4"});
    watch.event("ADDED", slice).await;
    let What::Change { trigger: Some(time), .. } = server.event().await.what else { panic!("no trigger") };
    assert_eq!(jiff::Timestamp::try_from(time).unwrap().to_string(), trigger);
}

#[tokio::test]
async fn a_server_that_does_not_know_the_field_selector_is_asked_without() {
    let mut server = services();
    let asked = server.asked(&["fieldSelector"]).await;
    asked.refuse(400, "field label not supported: spec.clusterIP");
    let asked = server.asked(&["sendInitialEvents", "labelSelector"]).await;
    assert!(!asked.uri.contains("fieldSelector"), "{}", asked.uri);
}

#[tokio::test]
async fn the_kubeconfig_names_the_token_and_the_flag_the_address() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (router, mut requests) = router();
    tokio::spawn(async { axum::serve(listener, router).await });
    let folder = tempfile::tempdir().unwrap();
    let (token, path) = (folder.path().join("token"), folder.path().join("kubeconfig"));
    fs::write(&token, "first").unwrap();
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {"tokenFile": token}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    });
    fs::write(&path, config.to_string()).unwrap();
    let (heard, mut told) = mpsc::channel(100);
    let heard = Arc::new(move |it| drop(heard.try_send(it)));
    let client = client(Some(&path), Some(&url), heard).await.unwrap();
    let (to, _events) = mpsc::channel::<Event>(100);
    let following = tokio::spawn(follow(client, Converter::new("n1"), None, false, to));
    let asked = timeout(Duration::from_secs(20), requests.recv()).await.unwrap().unwrap();
    assert_eq!(asked.token, "Bearer first");
    asked.refuse(403, "no");
    let told = told.recv().await.unwrap();
    assert_eq!((&*told.host, told.code), (url.trim_start_matches("http://"), Some(StatusCode::FORBIDDEN)));
    following.abort();
}

#[tokio::test]
async fn what_is_missing_or_wrong_is_named_with_the_fix() {
    let error = client(Some(Path::new("/does/not/exist")), None, Arc::new(drop)).await.err().unwrap();
    assert!(format!("{error:#}").contains("read the kubeconfig /does/not/exist"), "{error:#}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kubeconfig");
    let config = json!({"clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
                        "users": [], "contexts": [{"name": "c", "context": {"cluster": "c"}}],
                        "current-context": "c"});
    fs::write(&path, config.to_string()).unwrap();
    let error = client(Some(&path), Some("not an address"), Arc::new(drop)).await.err().unwrap();
    assert!(format!("{error:#}").contains("is no address of an API server"), "{error:#}");
}
