//! What load balancers ask a node about Services, as they see it: over both families, through every change.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use proxy_lab::{
    Agent, Endpoint, Family, Lab, Manifests, Place, Service, Topology, Waiting, Wiring, errno, wait,
};
use serde_json::{Value, json};

const PORT: u16 = 80;
const TARGET: u16 = 8080;
const CHECK: u16 = 32000;

fn start() -> Result<(Lab, Manifests)> {
    let topology = Topology::new(Wiring::Routed).node("a", &["web-1", "web-2"]).node("b", &["web-3"]);
    let lab = Lab::start(&topology.client("balancer"))?;
    let manifests = Manifests::new(&lab)?;
    Ok((lab, manifests))
}

/// A load balancer's, of two ports, to be checked at `port`.
fn web<E: Into<Endpoint>>(port: u16, endpoints: impl IntoIterator<Item = E>) -> Service {
    let service = Service::new("web").cluster_ip("10.96.0.10").cluster_ip("fd00:96::10");
    let service = service.tcp(PORT, TARGET).tcp(PORT + 1, TARGET).load_balancer_ip("10.100.0.1");
    service
        .endpoints(endpoints)
        .spec(&json!({ "externalTrafficPolicy": "Local", "healthCheckNodePort": port }))
}

/// Status, weight and body.
fn ask(from: &Place, address: IpAddr, port: u16) -> Result<(u16, String, Value)> {
    let stream = from.connect((address, port).into(), Waiting::Blocking)?;
    let mut stream: &TcpStream = stream.socket();
    write!(stream, "GET / HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("an answer without an end of its head")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no HTTP")?;
    let mut headers = head.lines().filter_map(|line| line.split_once(": "));
    let weight = headers.find(|(name, _)| name.eq_ignore_ascii_case("X-Load-Balancing-Endpoint-Weight"));
    let weight = weight.with_context(|| format!("{head}: no weight"))?.1;
    Ok((status, weight.to_owned(), serde_json::from_str(body)?))
}

/// Waits until the node says so, over both families.
fn says(lab: &Lab, port: u16, count: u32) -> Result<()> {
    let expected = if count > 0 { 200 } else { 503 };
    for family in Family::ALL {
        let address = lab.node("a").address(family);
        wait::until(&format!("{address} port {port} has {count} endpoints"), || {
            let (status, weight, body) = ask(lab.place("balancer"), address, port)?;
            ensure!(status == expected && weight == count.to_string(), "{status}, {weight}: {body}");
            ensure!(body["localEndpoints"] == count && body["serviceProxyHealthy"] == true, "{body}");
            ensure!(body["service"] == json!({ "namespace": "default", "name": "web" }), "{body}");
            Ok(())
        })?;
    }
    Ok(())
}

fn nobody_listens(lab: &Lab, port: u16) -> Result<()> {
    for family in Family::ALL {
        let address = lab.node("a").address(family);
        wait::until(&format!("nobody listens on {address} port {port}"), || {
            let to = (address, port).into();
            let error = lab.place("balancer").connect(to, Waiting::Blocking).err().context("connected")?;
            ensure!(errno(&error) == Errno::ECONNREFUSED as i32, "{error}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_health_check_follows_endpoints_that_get_ready_terminate_move_and_go_with_their_service() -> Result<()> {
    let (lab, manifests) = start()?;
    let agent = Agent::start(lab.node("a"), &manifests)?;
    agent.settle()?;
    nobody_listens(&lab, CHECK)?;
    let endpoint = |pod, ready, terminating| Endpoint { ready, terminating, ..lab.place(pod).into() };

    manifests.apply(&web(CHECK, [endpoint("web-1", false, false), endpoint("web-3", true, false)]))?;
    says(&lab, CHECK, 0)?;
    manifests.apply(&web(CHECK, [endpoint("web-1", true, false), endpoint("web-3", true, false)]))?;
    says(&lab, CHECK, 1)?;
    manifests.apply(&web(CHECK, [endpoint("web-1", true, false), endpoint("web-2", true, false)]))?;
    says(&lab, CHECK, 2)?;
    // One terminates and still serves.
    manifests.apply(&web(CHECK, [endpoint("web-1", false, true), endpoint("web-2", true, false)]))?;
    says(&lab, CHECK, 1)?;
    manifests.apply(&web(CHECK, [endpoint("web-1", false, true)]))?;
    says(&lab, CHECK, 0)?;
    manifests.apply(&web(CHECK, [lab.place("web-1"), lab.place("web-3")]))?;
    says(&lab, CHECK, 1)?;
    // To the other node.
    manifests.apply(&web(CHECK, [lab.place("web-3")]))?;
    says(&lab, CHECK, 0)?;

    manifests.apply(&web(CHECK + 1, [lab.place("web-1")]))?;
    says(&lab, CHECK + 1, 1)?;
    nobody_listens(&lab, CHECK)?;
    manifests.delete(&web(CHECK + 1, [lab.place("web-1")]))?;
    nobody_listens(&lab, CHECK + 1)?;

    // And after a restart.
    agent.terminate()?;
    manifests.apply(&web(CHECK, [lab.place("web-1")]))?;
    let _agent = Agent::start(lab.node("a"), &manifests)?;
    says(&lab, CHECK, 1)
}

#[test]
fn a_health_check_is_answered_on_the_addresses_of_node_ports_only() -> Result<()> {
    let (lab, manifests) = start()?;
    let node = lab.node("a");
    manifests.apply(&web(CHECK, [lab.place("web-1")]))?;
    let agent = Agent::start_with(node, &manifests, &["--nodeport-addresses", "primary"])?;
    agent.settle()?;
    says(&lab, CHECK, 1)?;
    for loopback in ["127.0.0.1", "::1"] {
        let to = (loopback.parse::<IpAddr>()?, CHECK).into();
        let error = node.connect(to, Waiting::Blocking).err().context("loopback is not primary")?;
        assert_eq!(errno(&error), Errno::ECONNREFUSED as i32, "{loopback}");
    }
    Ok(())
}

#[test]
fn a_health_check_whose_port_is_taken_is_answered_when_it_is_free() -> Result<()> {
    let (lab, manifests) = start()?;
    let node = lab.node("a");
    let squatters = node.serve(&[CHECK], &[])?;
    manifests.apply(&web(CHECK, [lab.place("web-1")]))?;
    let agent = Agent::start(node, &manifests)?;
    wait::until("the agent says that the port is taken", || {
        let expected = format!("node a failed to start healthcheck \"default/web\" on port {CHECK}");
        ensure!(agent.log().contains(&expected), "{}", agent.log());
        Ok(())
    })?;
    agent.settle()?;
    squatters.stop()?;
    says(&lab, CHECK, 1)
}
