//! Real sockets on loopback, on ports outside of the kernel's own choice.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream},
    sync::atomic::{AtomicU16, Ordering},
};

use tokio::sync::{mpsc, watch};

use super::*;
use crate::report::{Check, Measures, Moment, Notices, Told};

const PERIOD: Duration = Duration::from_secs(30);

struct Stage {
    report: watch::Sender<Report>,
    told: mpsc::Receiver<Told>,
    face: Arc<Face>,
    servers: Servers,
}

impl Stage {
    fn new() -> Self {
        let (report, seen) = watch::channel(Report::new("node-1", &[]));
        let (notices, told) = Notices::new();
        let face = Face {
            report: seen,
            measures: Measures::default(),
            notices,
            counters: Box::new(|| Ok(Vec::new())),
            flows: Box::new(|| Ok(Vec::new())),
            sync_period: PERIOD,
            mode: "iptables",
            configuration: serde_json::Value::Null,
            flags: Vec::new(),
        };
        Self { report, told, face: Arc::new(face), servers: Servers::default() }
    }

    /// The report is now so, and it was followed.
    async fn publish(&mut self, services: &[Check]) {
        let addresses = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()].into();
        let checks = Arc::new(Checks { addresses, services: services.to_vec() });
        self.report.send_modify(|report| report.checks = checks);
        self.follow().await;
    }

    async fn follow(&mut self) {
        let checks = self.report.borrow().checks.clone();
        self.servers.follow(&checks, &self.face).await;
    }

    fn told(&mut self) -> Option<Notice> {
        self.told.try_recv().ok().map(|told| told.notice)
    }
}

fn check(name: &str, v6: bool, port: u16, local_endpoints: u32) -> Check {
    Check { namespace: "shop".into(), name: name.into(), v6, port, local_endpoints }
}

/// A port that is free in both families, and that the kernel gives nobody meanwhile.
fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let free = |port: &u16| [V4, V6].iter().all(|address| TcpListener::bind((*address, *port)).is_ok());
    let ports = std::iter::repeat_with(|| NEXT.fetch_add(1, Ordering::Relaxed));
    let start = 20_000 + std::process::id() as u16 % 8_000;
    ports.map(|number| start + number).find(free).unwrap()
}

/// What a load balancer gets; an error where nobody listens.
async fn ask(address: IpAddr, port: u16, head: &'static str) -> std::io::Result<String> {
    let asked = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect((address, port))?;
        write!(stream, "{head} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    });
    asked.await.unwrap()
}

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

#[tokio::test]
async fn load_balancers_are_answered_as_kube_proxy_does_on_every_path_and_by_every_method() {
    let mut stage = Stage::new();
    let port = free_port();
    stage.publish(&[check("web", false, port, 2), check("web", true, port, 0)]).await;
    for head in ["GET /", "GET /healthz?x=1", "POST /some/path", "OPTIONS /", "DELETE /x"] {
        let answer = ask(V4, port, head).await.unwrap();
        let (top, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(top.starts_with("HTTP/1.1 200 OK\r\n"), "{head}: {top}");
        for header in [
            "content-type: application/json",
            "x-content-type-options: nosniff",
            "x-load-balancing-endpoint-weight: 2",
        ] {
            assert!(top.contains(header), "{head}: no {header} in {top}");
        }
        assert_eq!(
            body,
            "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\
             \t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}"
        );
    }
    let none = ask(V6, port, "GET /").await.unwrap();
    assert!(none.starts_with("HTTP/1.1 503 ") && none.contains("endpoint-weight: 0\r\n"), "{none}");
}

#[tokio::test]
async fn an_unhealthy_proxy_is_not_to_be_sent_anything() {
    let stage = Stage::new();
    let checks = Checks { services: vec![check("web", false, 1, 3)], ..Checks::default() };
    let place = wanted(&checks).pop_first().unwrap();
    let now = SystemTime::now();
    let status = |waiting: Option<u64>| {
        let mut report = stage.report.borrow().clone();
        report.checks = Arc::new(checks.clone());
        report.pending_since = waiting.map(|seconds| Moment(now - Duration::from_secs(seconds)));
        answer(&report, &place, PERIOD, now).status().as_u16()
    };
    assert_eq!([None, Some(59), Some(60)].map(status), [200, 200, 503]);
}

#[tokio::test]
async fn a_server_opens_moves_and_closes_with_its_service() {
    let mut stage = Stage::new();
    let [first, second] = [free_port(), free_port()];
    stage.publish(&[check("web", false, first, 1)]).await;
    assert!(ask(V4, first, "GET /").await.unwrap().contains(" 200 "));
    assert!(ask(V6, first, "GET /").await.is_err(), "the Service has no IPv6");

    stage.publish(&[check("web", false, first, 0)]).await;
    assert!(ask(V4, first, "GET /").await.unwrap().contains(" 503 "), "counts change without a new server");

    stage.publish(&[check("web", false, second, 1)]).await;
    assert!(ask(V4, first, "GET /").await.is_err());
    assert!(ask(V4, second, "GET /").await.unwrap().contains(" 200 "));

    // Its port goes to another Service in one pass.
    stage.publish(&[check("api", false, second, 1), check("web", true, first, 1)]).await;
    assert!(ask(V4, second, "GET /").await.unwrap().contains("\"api\""));
    assert!(ask(V6, first, "GET /").await.unwrap().contains("\"web\""));

    stage.publish(&[]).await;
    for (address, port) in [(V4, first), (V4, second), (V6, first)] {
        assert!(ask(address, port, "GET /").await.is_err(), "{address} {port}");
    }
    assert_eq!(stage.told(), None);
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_once_and_served_when_it_is_free() {
    let mut stage = Stage::new();
    let squatter = TcpListener::bind((V4, 0)).unwrap();
    let port = squatter.local_addr().unwrap().port();
    stage.publish(&[check("web", false, port, 1)]).await;
    let notice = stage.told().expect("an Event");
    assert_eq!(notice.about, About::Service { namespace: "shop".into(), name: "web".into() });
    assert_eq!(
        (notice.warning, notice.reason, notice.action),
        (true, "FailedToStartServiceHealthcheck", "Listen")
    );
    let note = format!(
        "node node-1 failed to start healthcheck \"shop/web\" on port {port}: Address already in use"
    );
    assert!(notice.note.starts_with(&note), "{}", notice.note);

    stage.follow().await;
    assert_eq!(stage.told(), None, "it is known");
    drop(squatter);
    stage.follow().await;
    assert!(ask(V4, port, "GET /").await.unwrap().contains(" 200 "));
}
