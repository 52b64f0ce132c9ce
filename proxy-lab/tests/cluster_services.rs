//! The main job on a real cluster: what kubectl applies, the agent serves, with the account of the chart.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use nix::errno::Errno;
use proxy_lab::{Agent, Cluster, Family, Lab, Place, Service, Topology, Waiting, Wiring, errno, wait};

const PORT: u16 = 80;
const TARGET: u16 = 8080;
const NODE_PORT: u16 = 30080;
const WEB: [&str; 2] = ["10.96.0.10", "fd00:96::10"];

fn lab() -> Result<Lab> {
    let topology = Topology::new(Wiring::Routed).node("a", &["client", "web-1", "web-2"]);
    let lab = Lab::start(&topology.node("b", &["web-3"]).client("control-plane"))?;
    for pod in ["web-1", "web-2", "web-3"] {
        lab.place(pod).serve(&[TARGET], &[TARGET])?;
    }
    Ok(lab)
}

fn web(lab: &Lab, pods: &[&str]) -> Service {
    let [v4, v6] = WEB;
    let service = Service::new("web").cluster_ip(v4).cluster_ip(v6).tcp(PORT, TARGET).udp(PORT, TARGET);
    service.endpoints(pods.iter().map(|pod| lab.place(pod)))
}

fn web_addresses() -> [SocketAddr; 2] {
    WEB.map(|address| SocketAddr::new(address.parse().unwrap(), PORT))
}

/// Who answers twenty connections and twenty datagrams.
fn answers(from: &Place, to: SocketAddr) -> Result<BTreeSet<String>> {
    let mut who = BTreeSet::new();
    for _ in 0..20 {
        who.insert(from.ask_tcp(to)?.who);
        who.insert(from.ask_udp(to)?.who);
    }
    Ok(who)
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[test]
fn what_kubectl_applies_scales_switches_and_deletes_is_what_pods_and_the_host_reach() -> Result<()> {
    let lab = lab()?;
    let cluster = Cluster::start(&lab, "control-plane")?;
    let node = lab.node("a");
    let agent = Agent::start_on(node, &cluster)?;
    let from = [lab.place("client"), node];
    for pods in [&["web-1"][..], &["web-1", "web-2", "web-3"], &["web-3"], &["web-2"]] {
        cluster.apply(&web(&lab, pods).node_port(NODE_PORT))?;
        agent.settle()?;
        for from in from {
            for to in web_addresses() {
                assert_eq!(answers(from, to)?, names(pods), "{} to {to}", from.name());
            }
            for address in Family::ALL.map(|family| node.address(family)) {
                let to = SocketAddr::new(address, NODE_PORT);
                assert_eq!(answers(from, to)?, names(pods), "{} to {to}", from.name());
            }
        }
    }
    assert_eq!(agent.get(10256, "/healthz")?.0, 200);

    cluster.delete(&web(&lab, &["web-2"]))?;
    agent.settle()?;
    for to in web_addresses() {
        // Nobody's address any more: it ends in the blackhole.
        let error = lab.place("client").ask_tcp(to).expect_err("the Service is gone");
        assert!([Errno::EINVAL, Errno::EACCES].map(|errno| errno as i32).contains(&errno(&error)), "{error}");
    }
    let to = SocketAddr::new(node.address(Family::V4), NODE_PORT);
    let error = lab.place("client").ask_tcp(to).expect_err("the Service is gone");
    assert_eq!(errno(&error), Errno::ECONNREFUSED as i32);
    Ok(())
}

/// What an API server of today takes, though a proxy can't serve it, or shall not.
const ODD: &str = r#"
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: FQDN, ports: [{port: 8080}],
  metadata: {name: web-names, namespace: default, labels: {kubernetes.io/service-name: web}},
  endpoints: [{addresses: [web.example]}]}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, ports: [{name: tcp-80}, {name: other, port: 9}],
  metadata: {name: web-without-a-port, namespace: default, labels: {kubernetes.io/service-name: web}},
  endpoints: [{addresses: [10.244.1.99]}]}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4,
  metadata: {name: web-of-nobody, namespace: default}, ports: [{name: tcp-80, port: 8080}],
  endpoints: [{addresses: [10.244.1.99]}]}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, ports: [{name: tcp-80, port: 8080}],
  metadata: {name: web-headless, namespace: default,
    labels: {kubernetes.io/service-name: web, service.kubernetes.io/headless: ""}},
  endpoints: [{addresses: [10.244.1.99]}]}
---
{apiVersion: v1, kind: Service, metadata: {name: foreign, namespace: default,
    labels: {service.kubernetes.io/service-proxy-name: another}},
  spec: {clusterIP: 10.96.0.50, ports: [{port: 80, targetPort: 8080}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, ports: [{name: "", port: 8080}],
  metadata: {name: foreign, namespace: default, labels: {kubernetes.io/service-name: foreign}},
  endpoints: [{addresses: [10.244.1.12]}]}
---
{apiVersion: v1, kind: Service, metadata: {name: headless, namespace: default},
  spec: {clusterIP: None, ports: [{port: 80, targetPort: 8080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: elsewhere, namespace: default},
  spec: {type: ExternalName, externalName: web.example, externalIPs: [10.100.0.9], ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: without-a-selector, namespace: default},
  spec: {clusterIP: 10.96.0.51, externalIPs: [10.100.0.8], ports: [{port: 80, targetPort: named}]}}
"#;

#[test]
fn odd_objects_that_the_api_server_takes_do_no_harm() -> Result<()> {
    let lab = lab()?;
    let cluster = Cluster::start(&lab, "control-plane")?;
    let (node, client) = (lab.node("a"), lab.place("client"));
    let agent = Agent::start_on(node, &cluster)?;
    cluster.apply(&web(&lab, &["web-1", "web-2"]))?;
    cluster.kubectl().apply(ODD)?;
    agent.settle()?;
    let healthy = || -> Result<()> {
        for to in web_addresses() {
            assert_eq!(answers(client, to)?, names(&["web-1", "web-2"]), "{to}");
        }
        for nobody in ["10.96.0.50", "10.100.0.9"] {
            let to = SocketAddr::new(nobody.parse()?, PORT);
            assert!(client.connect(to, Waiting::Blocking).is_err(), "{to} is not ours to serve");
        }
        for empty in ["10.96.0.51", "10.100.0.8"] {
            let error = client.ask_tcp(SocketAddr::new(empty.parse()?, PORT)).expect_err("no endpoint");
            assert_eq!(errno(&error), Errno::ECONNREFUSED as i32, "{empty}: {error}");
        }
        Ok(())
    };
    healthy()?;

    // A Service becomes ours, and another's, by its label.
    let label = "service.kubernetes.io/service-proxy-name";
    let kubectl = cluster.kubectl();
    kubectl.run(&["label", "service/foreign", "--namespace=default", &format!("{label}-")])?;
    agent.settle()?;
    assert_eq!(client.ask_tcp("10.96.0.50:80".parse()?)?.who, "web-1");
    kubectl.run(&["label", "service/foreign", "--namespace=default", &format!("{label}=another")])?;
    agent.settle()?;
    healthy()?;

    // A list instead of a watch must come to the same.
    agent.terminate()?;
    let agent = Agent::start_on(node, &cluster)?;
    agent.settle()?;
    healthy()
}

#[test]
fn the_api_servers_own_service_never_goes_to_zero() -> Result<()> {
    let lab = lab()?;
    let cluster = Cluster::start(&lab, "control-plane")?;
    let node = lab.node("a");
    let agent = Agent::start_on(node, &cluster)?;
    agent.settle()?;
    // The first address of each range; the API server's endpoint is IPv4.
    let api = SocketAddr::new(IpAddr::from([10, 96, 0, 1]), 443);
    ensure!(node.connect(api, Waiting::Blocking).is_ok(), "the host reaches {api}");
    let slices = ["endpointslices", "--namespace=default", "-l=kubernetes.io/service-name=kubernetes"];
    let kubectl = cluster.kubectl();
    let is_gone = || -> Result<bool> {
        Ok(kubectl.run(&[&["get", "--output=name"], &slices[..]].concat())?.is_empty())
    };
    let mut was_gone = false;
    // The API server makes it anew every ten seconds, perhaps at once.
    for _ in 0..4 {
        kubectl.run(&[&["delete"], &slices[..]].concat())?;
        // What is told later has arrived, so this has.
        agent.settle()?;
        for _ in 0..20 {
            ensure!(node.connect(api, Waiting::Blocking).is_ok(), "the host lost {api}");
        }
        was_gone = is_gone()?;
        if was_gone {
            break;
        }
    }
    assert!(was_gone, "too late to show anything");
    wait::until("the API server has written itself down again", || {
        ensure!(!is_gone()?, "not yet");
        Ok(())
    })?;
    agent.settle()?;
    ensure!(node.connect(api, Waiting::Blocking).is_ok(), "the host reaches {api}");
    Ok(())
}
