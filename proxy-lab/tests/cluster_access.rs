//! How the agent finds the API server and proves who it is, and what it does where it may not.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use proxy_lab::control_plane::API_PORT;
use proxy_lab::{Agent, Cluster, Family, Lab, Node, Service, Topology, Wiring, wait};
use serde_json::{Value, json};

const PORT: u16 = 80;
const TARGET: u16 = 8080;
const CHECK: u16 = 32000;
/// Where a pod finds its ServiceAccount, on a node's own `/run`.
const ACCOUNT: &str = "run/secrets/kubernetes.io/serviceaccount";

fn lab() -> Result<Lab> {
    let topology = Topology::new(Wiring::Routed).node("a", &["client", "web-1", "web-2"]);
    let lab = Lab::start(&topology.client("control-plane"))?;
    for pod in ["web-1", "web-2"] {
        lab.place(pod).serve(&[TARGET], &[])?;
    }
    Ok(lab)
}

fn web(lab: &Lab, pod: &str) -> Service {
    Service::new("web").cluster_ip("10.96.0.10").tcp(PORT, TARGET).endpoints([lab.place(pod)])
}

fn is_served_by(lab: &Lab, pod: &str) -> Result<()> {
    let who = lab.place("client").ask_tcp(([10, 96, 0, 10], PORT).into())?.who;
    ensure!(who == pod, "answered by {who}");
    Ok(())
}

/// Waits until all three kinds are refused, and the reason is in the report and in the log.
fn is_refused(agent: &Agent<'_>, code: &str, fix: &str) -> Result<()> {
    wait::until_within(3 * wait::LIMIT, &format!("the agent is told {code}"), || {
        for source in &agent.report()?.sources {
            if !["services", "slices", "node"].contains(&source.source.as_str()) {
                continue;
            }
            let why = source.broken.as_deref().unwrap_or("heard");
            ensure!(why.contains(code) && why.contains(fix), "{}: {why}", source.source);
        }
        ensure!(agent.log().contains(code), "the log:\n{}", agent.log());
        Ok(())
    })
}

#[test]
fn rights_that_are_taken_away_are_named_and_what_was_there_stays() -> Result<()> {
    let lab = lab()?;
    let mut cluster = Cluster::start(&lab, "control-plane")?;
    cluster.apply(&web(&lab, "web-1"))?;
    let agent = Agent::start_on(lab.node("a"), &cluster)?;
    agent.settle()?;

    // A watch that goes on is not asked again: only a new one meets the refusal.
    cluster.take_rights()?;
    cluster.plane().start_api_server()?;
    is_refused(&agent, "403", "ClusterRole needs list and watch")?;
    cluster.apply(&web(&lab, "web-2"))?;
    is_served_by(&lab, "web-1")?;
    assert_eq!(agent.get(10256, "/healthz")?.0, 200);
    cluster.repair_install()?;
    agent.settle()?;
    is_served_by(&lab, "web-2")?;

    cluster.delete_account()?;
    cluster.plane().start_api_server()?;
    is_refused(&agent, "401", "token or client certificate")?;
    is_served_by(&lab, "web-2")?;
    assert_eq!(agent.get(10256, "/healthz")?.0, 200);
    // And one that starts so changes nothing.
    agent.kill()?;
    cluster.apply(&web(&lab, "web-1"))?;
    let agent = Agent::start_on(lab.node("a"), &cluster)?;
    is_refused(&agent, "401", "token or client certificate")?;
    is_served_by(&lab, "web-2")
}

/// What the kubelet mounts into a pod.
fn mount_account(node: &Node, token: &str, authority: &Path) -> Result<()> {
    let folder = Path::new("/proc").join(node.pid().to_string()).join("root").join(ACCOUNT);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("token"), token)?;
    fs::write(folder.join("namespace"), "kube-system")?;
    fs::copy(authority, folder.join("ca.crt"))?;
    Ok(())
}

/// Type, reason, action, instance, object and note of the agent's Events about this kind of object.
fn events(cluster: &Cluster<'_>, kind: &str) -> Result<Vec<String>> {
    let ours = ["--field-selector", "reportingComponent=kube-proxy"];
    let arguments = [&["get", "events", "--all-namespaces", "-o", "json"], &ours[..]].concat();
    let list: Value = serde_json::from_str(&cluster.kubectl().run(&arguments)?)?;
    let all = list["items"].as_array().into_iter().flatten();
    let fields = ["/type", "/reason", "/action", "/reportingInstance", "/involvedObject/name", "/message"];
    let line = |event: &Value| {
        fields.map(|field| event.pointer(field).and_then(Value::as_str).unwrap_or_default()).join(" ")
    };
    Ok(all.filter(|event| event["involvedObject"]["kind"] == kind).map(line).collect())
}

/// A health check's port is taken: people are told, and when it is free it is answered.
fn a_taken_port_is_told(cluster: &Cluster<'_>, node: &Node) -> Result<()> {
    let squatter = node.serve(&[CHECK], &[])?;
    let spec =
        json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": CHECK });
    let checked = Service::new("checked").cluster_ip("10.96.0.11").tcp(PORT, TARGET).spec(&spec);
    cluster.apply(&checked)?;
    wait::until("the Event about the Service arrives", || {
        let told = events(cluster, "Service")?;
        let said = told.first().map_or("", String::as_str);
        let expected = format!(
            "Warning FailedToStartServiceHealthcheck Listen kube-proxy-a checked \
             node a failed to start healthcheck \"default/checked\" on port {CHECK}: "
        );
        ensure!(told.len() == 1 && said.starts_with(&expected), "{told:?}");
        Ok(())
    })?;
    Ok(squatter.stop()?)
}

#[test]
fn a_pods_own_account_and_environment_are_enough_to_serve_and_to_tell_events() -> Result<()> {
    let lab = lab()?;
    let mut cluster = Cluster::start(&lab, "control-plane")?;
    cluster.apply(&web(&lab, "web-1"))?;
    let node = lab.node("a");
    let authority = cluster.plane().authority();
    mount_account(node, &cluster.token()?, &authority)?;
    let address = lab.place("control-plane").address(Family::V4).to_string();
    let port = API_PORT.to_string();
    let environment = [("KUBERNETES_SERVICE_HOST", address.as_str()), ("KUBERNETES_SERVICE_PORT", &port)];
    let agent = Agent::start_on_with(node, &cluster, &[], &environment)?;
    agent.settle()?;
    is_served_by(&lab, "web-1")?;
    wait::until("the Event about the start arrives", || {
        let told = events(&cluster, "Node")?;
        ensure!(told == ["Normal Starting StartKubeProxy kube-proxy-a a "], "{told:?}");
        Ok(())
    })?;
    a_taken_port_is_told(&cluster, node)?;
    wait::until("the health check is answered", || {
        ensure!(agent.get(CHECK, "/")?.0 == 503, "it has no endpoints");
        Ok(())
    })?;
    agent.kill()?;

    // The address may come by a flag alone, beside the pod's files.
    cluster.apply(&web(&lab, "web-2"))?;
    let agent =
        Agent::start_on_with(node, &cluster, &["--master", &format!("https://{address}:{port}")], &[])?;
    agent.settle()?;
    is_served_by(&lab, "web-2")
}

#[test]
fn an_address_on_the_command_line_overrides_that_of_the_kubeconfig() -> Result<()> {
    let lab = lab()?;
    let cluster = Cluster::start(&lab, "control-plane")?;
    cluster.apply(&web(&lab, "web-1"))?;
    let text = fs::read_to_string(cluster.kubeconfig())?;
    let address = lab.place("control-plane").address(Family::V4);
    let right = format!("{address}:{API_PORT}");
    ensure!(text.contains(&right), "{text}");
    let wrong = lab.folder().join("wrong.kubeconfig");
    fs::write(&wrong, text.replace(&right, &format!("{address}:1")))?;
    let wrong = wrong.to_string_lossy();

    let node = lab.node("a");
    let agent = Agent::start_on_with(node, &cluster, &["--kubeconfig", &wrong], &[])?;
    wait::until("nobody is at the address of the kubeconfig", || {
        ensure!(agent.log().contains("nobody listens there"), "{}", agent.log());
        Ok(())
    })?;
    agent.kill()?;
    let master = format!("https://{right}");
    let agent = Agent::start_on_with(node, &cluster, &["--kubeconfig", &wrong, "--master", &master], &[])?;
    agent.settle()?;
    is_served_by(&lab, "web-1")
}

#[test]
fn a_service_that_claims_the_api_servers_address_does_not_stand_before_it() -> Result<()> {
    const OTHER: u16 = 4443;
    let lab = lab()?;
    let cluster = Cluster::start(&lab, "control-plane")?;
    cluster.apply(&web(&lab, "web-1"))?;
    let node = lab.node("a");
    let agent = Agent::start_on(node, &cluster)?;
    let address = lab.place("control-plane").address(Family::V4);
    let claimant = Service::new("claimant").cluster_ip("10.96.0.11").external_ip(&address.to_string());
    cluster.apply(&claimant.tcp(API_PORT, TARGET).tcp(OTHER, TARGET).endpoints([lab.place("web-2")]))?;
    agent.settle()?;
    let who = node.ask_tcp((address, OTHER).into())?.who;
    ensure!(who == "web-2", "the claim is served at another port: {who}");
    let answer = node.ask_tcp((address, API_PORT).into());
    ensure!(answer.is_err(), "an API server does not greet who dials it: {answer:?}");
    // All is pinned, and an agent that is started has to dial.
    agent.kill()?;
    cluster.apply(&web(&lab, "web-2"))?;
    let agent = Agent::start_on(node, &cluster)?;
    agent.settle()?;
    is_served_by(&lab, "web-2")
}
