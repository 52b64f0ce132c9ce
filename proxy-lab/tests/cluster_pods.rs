//! Pods that ask to be left to packets, through a real API server and with the chart's rights.

use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, ensure};
use proxy_lab::{Agent, Cluster, Lab, Service, Topology, Wiring, wait};
use serde_json::json;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../helm/vipr");

/// What the agent says of these pods, when it says this.
fn until_left(agent: &Agent<'_>, what: &str, expected: &[(&str, Option<u64>)]) -> Result<()> {
    // Longer than the longest pause between two tries.
    wait::until_within(3 * wait::LIMIT, what, || {
        let left = agent.report()?.left_pods;
        let left: Vec<_> = left.iter().map(|left| (left.pod.as_str(), left.cgroup)).collect();
        ensure!(left == expected, "{left:?} instead of {expected:?}");
        Ok(())
    })
}

#[test]
fn pods_are_followed_with_the_charts_rights_and_without_them_everything_else_is_served() -> Result<()> {
    let lab = Lab::start(&Topology::new(Wiring::Routed).node("a", &["web"]).client("control-plane"))?;
    let (node, web) = (lab.node("a"), lab.place("web"));
    web.serve(&[8080], &[])?;
    let cluster = Cluster::start(&lab, "control-plane")?;
    let kubectl = cluster.kubectl();
    cluster.apply(&Service::new("web").cluster_ip("10.96.0.10").tcp(80, 8080).endpoints([web]))?;
    let kubeconfig = cluster.kubeconfig().to_string_lossy().into_owned();
    let agent = Agent::start_on_with(node, &cluster, &["--kubeconfig", &kubeconfig, "--pod-opt-out"], &[])?;
    agent.settle()?;
    assert_eq!(node.ask_tcp("10.96.0.10:80".parse()?)?.who, "web", "though the pods may not be read");
    let pods = agent.report()?.sources.into_iter().find(|source| source.source == "pods");
    let broken = pods.context("a source")?.broken.context("it can't be heard")?;
    ensure!(broken.contains("403") && broken.contains("pods"), "{broken}");

    let values = format!("{CHART}/ci/required.yaml");
    let namespace = ["--namespace", "kube-system", "--values", &values, "--set", "podOptOut=true"];
    kubectl.helm(&[&["upgrade", "vipr", CHART][..], &namespace].concat())?;
    kubectl.apply(
        &json!({ "apiVersion": "v1", "kind": "ServiceAccount",
                 "metadata": { "name": "default", "namespace": "default" } })
        .to_string(),
    )?;
    for (name, node, socket_plane) in [("mesh", "a", "off"), ("elsewhere", "b", "off"), ("plain", "a", "")] {
        let annotations =
            if socket_plane.is_empty() { json!({}) } else { json!({ "vipr/socket-plane": "off" }) };
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "namespace": "default", "annotations": annotations },
            "spec": {
                "nodeName": node,
                "automountServiceAccountToken": false,
                "containers": [{ "name": "c", "image": "none" }],
            },
        });
        kubectl.apply(&pod.to_string())?;
    }
    until_left(&agent, "the pod of this node that asks for it is known", &[("default/mesh", None)])?;

    let uid = kubectl.run(&["get", "pod", "mesh", "-o", "jsonpath={.metadata.uid}"])?;
    let group = node.node_cgroup().join("kubepods").join(format!("pod{}", uid.trim()));
    fs::create_dir_all(&group)?;
    let id = fs::metadata(&group)?.ino();
    until_left(&agent, "and its cgroup, when there is one", &[("default/mesh", Some(id))])?;
    let ranges = node.pinned_map("source_ranges")?;
    ensure!(ranges.as_array().is_some_and(|all| all.len() == 1), "{ranges}");

    kubectl.run(&["annotate", "pod", "mesh", "vipr/socket-plane-"])?;
    until_left(&agent, "until it asks no more", &[])?;
    lab.check()
}
