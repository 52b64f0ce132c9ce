//! The agent as an operator meets it: bad input, two of them, health, repairs, and nothing left after cleanup.

use std::fs;
use std::net::SocketAddr;

use anyhow::{Result, ensure};
use proxy_lab::{Agent, Family, Lab, Manifests, PIN_PATH, Service, Topology, Wiring, wait};
use serde_json::{Value, json};

const PORT: u16 = 80;
const TARGET: u16 = 8080;

fn start() -> Result<(Lab, Manifests)> {
    let lab = Lab::start(&Topology::new(Wiring::Routed).node("a", &["client", "web-1"]))?;
    lab.place("web-1").serve(&[TARGET], &[TARGET])?;
    let manifests = Manifests::new(&lab)?;
    manifests.apply(&web(&lab))?;
    Ok((lab, manifests))
}

fn web(lab: &Lab) -> Service {
    Service::new("web").cluster_ip("10.96.0.10").tcp(PORT, TARGET).endpoints([lab.place("web-1")])
}

fn to() -> SocketAddr {
    SocketAddr::from(([10, 96, 0, 10], PORT))
}

#[test]
fn an_object_that_cannot_be_read_is_named_and_the_rest_is_served() -> Result<()> {
    let (lab, manifests) = start()?;
    let node = lab.node("a");
    manifests.write(
        "broken",
        &json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": "broken", "namespace": "default" },
            "spec": { "clusterIP": "10.96.0.99", "ports": [{ "port": 70000 }] },
        }),
    )?;
    fs::write(manifests.folder().join("torn.yaml"), "kind: Service\n  metadata: [")?;
    let agent = Agent::start(node, &manifests)?;
    agent.settle()?;
    assert_eq!(lab.place("client").ask_tcp(to())?.who, "web-1");
    let log = agent.log();
    assert!(log.contains("default/broken") && log.contains("70000 is no port"), "{log}");
    assert!(log.contains("torn.yaml"), "{log}");
    Ok(())
}

#[test]
fn the_nodes_timeouts_and_its_range_of_local_ports_are_followed() -> Result<()> {
    let (lab, manifests) = start()?;
    let node = lab.node("a");
    let agent = Agent::start_with(node, &manifests, &["--packet-plane=on"])?;
    agent.settle()?;
    let told = || -> Result<Value> { Ok(node.pinned_map("packet_plane")?[0]["formatted"]["value"].clone()) };
    let before = told()?;
    assert_eq!(before["first_port"], 61_000, "{before}");
    node.run("sysctl", &["-qw", "net.netfilter.nf_conntrack_tcp_timeout_time_wait=33"])?;
    node.run("sysctl", &["-qw", "net.ipv4.ip_local_port_range=20000 50000"])?;
    wait::until("the settings follow", || {
        let told = told()?;
        ensure!(told["timeouts"]["tcp_time_wait"] == 33, "{told}");
        ensure!(told["first_port"] == 50_001 && told["more_last_port"] == 19_999, "{told}");
        ensure!(told["seed"] == before["seed"], "another seed");
        Ok(())
    })?;
    assert!(agent.log().contains("have changed: followed"), "{}", agent.log());
    Ok(())
}

#[test]
fn a_second_agent_waits_for_the_first_and_says_so() -> Result<()> {
    let (lab, manifests) = start()?;
    let node = lab.node("a");
    let first = Agent::start(node, &manifests)?;
    first.settle()?;
    let second = Agent::start(node, &manifests)?;
    let holder = format!("another agent (process {}) owns the tables", first.pid());
    wait::until("the second agent says that it waits", || {
        ensure!(second.log().contains(&holder), "{}", second.log());
        Ok(())
    })?;
    first.kill()?;
    second.settle()?;
    assert_eq!(lab.place("client").ask_tcp(to())?.who, "web-1");
    Ok(())
}

#[test]
fn health_is_green_when_all_is_written_and_follows_the_node() -> Result<()> {
    let (lab, manifests) = start()?;
    let node = lab.node("a");
    let agent = Agent::start(node, &manifests)?;
    agent.settle()?;
    let (status, body) = agent.get(10256, "/healthz")?;
    let body: Value = serde_json::from_str(&body)?;
    assert_eq!(
        (status, &body["healthy"], &body["nodeEligible"]),
        (200, &json!(true), &json!(true)),
        "{body}"
    );
    assert!(body["status"]["IPv4"]["healthy"] == true && body["lastUpdated"].is_string(), "{body}");
    assert_eq!(agent.get(10256, "/livez")?.0, 200);
    assert_eq!(agent.get(10249, "/proxyMode")?, (200, "iptables".to_owned()));
    let (_, configz) = agent.get(10249, "/configz")?;
    let configz: Value = serde_json::from_str(&configz)?;
    assert_eq!(configz["kubeproxy.config.k8s.io"]["kind"], "KubeProxyConfiguration", "{configz}");

    lab.place("client").ask_tcp(to())?;
    let (status, metrics) = agent.get(10249, "/metrics")?;
    assert_eq!(status, 200);
    for name in [
        "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}",
        "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
        "kubeproxy_sync_proxy_rules_service_changes_total",
        "vipr_view_age_seconds",
        "vipr_outcomes_total{reason=\"connected\"}",
        "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"} 1",
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"internal\",ip_family=\"IPv4\"} 0",
        "process_open_fds",
        "kubernetes_build_info{",
    ] {
        assert!(metrics.contains(name), "{name} is missing:\n{metrics}");
    }
    assert_eq!(agent.get(10249, "/healthz")?, (200, "ok".to_owned()));
    assert!(agent.get(10249, "/metrics/slis")?.1.contains("kubernetes_healthcheck{name=\"ping\""));
    assert!(agent.get(10249, "/flagz")?.1.contains("\nhostname-override=a\n"));
    assert!(agent.get(10249, "/statusz")?.1.contains("\nPaths: /configz /flagz"));

    let leaving = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "a" },
        "spec": { "taints": [{ "key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule" }] },
        "status": { "addresses": [{ "type": "InternalIP", "address": node.address(Family::V4) }] },
    });
    manifests.write("a.node", &leaving)?;
    wait::until("/healthz answers 503 for a node that leaves", || {
        let (status, body) = agent.get(10256, "/healthz")?;
        ensure!(status == 503 && body.contains("\"nodeEligible\":false"), "{status} {body}");
        Ok(())
    })?;
    assert_eq!(agent.get(10256, "/livez")?.0, 200, "the agent itself is well");
    Ok(())
}

#[test]
fn what_somebody_else_changed_in_the_tables_or_detached_is_put_right() -> Result<()> {
    let (lab, manifests) = start()?;
    let node = lab.node("a");
    let agent = Agent::start_with(node, &manifests, &["--read-back-interval", "200ms"])?;
    agent.settle()?;
    let client = lab.place("client");
    assert_eq!(client.ask_tcp(to())?.who, "web-1");

    let dump = node.pinned_map("frontends")?;
    let entries = dump.as_array().cloned().unwrap_or_default();
    assert!(!entries.is_empty(), "{dump}");
    for entry in &entries {
        let key: Vec<_> = entry["key"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let frontends = format!("{PIN_PATH}/frontends");
        node.run("bpftool", &[&["map", "delete", "pinned", &frontends, "key"], key.as_slice()].concat())?;
    }
    wait::until("deleted frontends are back", || {
        ensure!(client.ask_tcp(to())?.who == "web-1");
        Ok(())
    })?;

    node.run("rm", &[&format!("{PIN_PATH}/links/connect4")])?;
    wait::until("a removed link is back", || {
        ensure!(client.ask_tcp(to())?.who == "web-1");
        node.run("ls", &[&format!("{PIN_PATH}/links/connect4")]).map(drop)
    })?;
    assert!(agent.log().contains("different from what"), "{}", agent.log());
    Ok(())
}

#[test]
fn cleanup_leaves_nothing_and_is_refused_while_an_agent_runs() -> Result<()> {
    let (lab, manifests) = start()?;
    let node = lab.node("a");
    let agent = Agent::start(node, &manifests)?;
    agent.settle()?;
    let refused = node.vipr_output(&["cleanup"])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("stop it first"), "{said}");
    assert_eq!(lab.place("client").ask_tcp(to())?.who, "web-1", "a refused cleanup changes nothing");
    agent.terminate()?;

    node.vipr(&["cleanup"])?;
    assert!(node.run("ls", &[PIN_PATH]).is_err(), "the pins are left");
    assert_eq!(node.run("find", &["/run/vipr"]).unwrap_or_default(), "");
    let cgroup = node.node_cgroup().to_string_lossy().into_owned();
    assert_eq!(node.run("bpftool", &["cgroup", "tree", &cgroup])?.matches("connect4").count(), 0);
    assert!(lab.place("client").ask_tcp(to()).is_err(), "nobody answers there any more");
    node.vipr(&["cleanup"])?;
    Ok(())
}

#[test]
fn cleanup_by_kube_proxys_flag_and_the_written_configuration_work_as_they_do_there() -> Result<()> {
    let (lab, manifests) = start()?;
    let node = lab.node("a");
    let agent = Agent::start(node, &manifests)?;
    agent.settle()?;
    agent.terminate()?;
    node.vipr(&["run", "--cleanup"])?;
    assert!(node.run("ls", &[PIN_PATH]).is_err(), "the pins are left");
    let path = node.folder().join("written.yaml");
    let text = path.to_string_lossy().into_owned();
    node.vipr(&["run", "--write-config-to", &text])?;
    let written = fs::read_to_string(path)?;
    assert!(
        written.contains("kind: KubeProxyConfiguration") && written.contains("mode: iptables"),
        "{written}"
    );
    Ok(())
}

#[test]
fn a_changed_configuration_ends_the_agent_and_traffic_goes_on() -> Result<()> {
    let (lab, manifests) = start()?;
    let node = lab.node("a");
    let file = node.folder().join("config.yaml");
    let text = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    fs::write(&file, text)?;
    let mut agent = Agent::start_with(node, &manifests, &["--config", &file.to_string_lossy()])?;
    agent.settle()?;
    assert_eq!(agent.get(10249, "/proxyMode")?.1, "iptables");

    // As a ConfigMap's file changes: another takes its name.
    let next = node.folder().join("config.next");
    fs::write(&next, format!("{text}mode: nftables\n"))?;
    fs::rename(&next, &file)?;
    let status = agent.wait()?;
    assert!(!status.success(), "its supervisor must see that it is to be started again");
    assert!(agent.log().contains("has changed"), "{}", agent.log());
    assert_eq!(lab.place("client").ask_tcp(to())?.who, "web-1");

    let agent = Agent::start_with(node, &manifests, &["--config", &file.to_string_lossy()])?;
    agent.settle()?;
    assert_eq!(agent.get(10249, "/proxyMode")?.1, "nftables");
    Ok(())
}

#[test]
fn a_folder_that_is_not_there_is_an_error_that_names_it() -> Result<()> {
    let (lab, _manifests) = start()?;
    let node = lab.node("a");
    let cgroup = node.node_cgroup().to_string_lossy().into_owned();
    let output = node.vipr_output(&["run", "--manifests", "/nowhere", "--cgroup", &cgroup])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("/nowhere"), "{said}");
    let output = node.vipr_output(&["run", "--manifests", "/nowhere", "--cgroup", "/proc"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("/proc") && said.contains("cgroup2"), "{said}");
    Ok(())
}
