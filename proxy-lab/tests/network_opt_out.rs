//! Pods that ask to be left to packets: the socket plane does not see them, and their own rules see what they dialled.
//!
//! Who calls is told by the process, not by the socket: here a shell in the pod's cgroup does.

mod traffic;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use proxy_common::Reason;
use proxy_lab::{Agent, Family, Lab, Manifests, Offload, Place, Wiring, wait};
use serde_json::json;
use traffic::{cluster, count, start, web};

const BOTH: [&str; 3] = ["--packet-plane=on", "--socket-plane=all", "--pod-opt-out"];
/// Where the pod's rules lead what is dialled at the ClusterIP.
const SIDECAR: u16 = 15001;
const UID: &str = "5a1c-77";

/// Who answers a shell in this cgroup of the pod.
fn who(pod: &Place, group: &PathBuf, family: Family) -> Result<String> {
    std::fs::create_dir_all(group)?;
    let to = cluster(family);
    let script = format!(
        "echo $$ > {}/cgroup.procs && exec 3<>/dev/tcp/{}/{} && head -n 1 <&3",
        group.display(),
        to.ip(),
        to.port()
    );
    let line = pod.run("bash", &["-c", &script])?;
    let answer: proxy_lab::Answer = serde_json::from_str(&line).with_context(|| line.clone())?;
    Ok(answer.who)
}

fn until(pod: &Place, group: &PathBuf, expected: &str) -> Result<()> {
    for family in Family::ALL {
        wait::until(&format!("{expected} answers by {family:?} in {}", group.display()), || {
            let who = who(pod, group, family)?;
            ensure!(who == expected, "{who}");
            Ok(())
        })?;
    }
    Ok(())
}

fn annotate(manifests: &Manifests, value: Option<&str>) -> Result<()> {
    let annotations = value.map(|value| json!({ "vipr/socket-plane": value })).unwrap_or_default();
    manifests.write(
        "mesh.pod",
        &json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": "mesh", "namespace": "default", "uid": UID, "annotations": annotations },
            "spec": { "nodeName": "a" },
        }),
    )
}

/// A pod whose own rules take what is dialled at the ClusterIP.
fn meshed() -> Result<(Lab, Manifests)> {
    let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
    let pod = lab.place("pod");
    pod.serve(&[SIDECAR], &[])?;
    for (family, tables) in Family::ALL.into_iter().zip(["iptables", "ip6tables"]) {
        let rule =
            format!("-t nat -A OUTPUT -p tcp -d {} -j REDIRECT --to-ports {SIDECAR}", cluster(family).ip());
        pod.run(tables, &rule.split(' ').collect::<Vec<_>>())?;
    }
    manifests.apply(&web(&lab, &["near"]))?;
    Ok((lab, manifests))
}

#[test]
fn a_pod_that_asks_for_it_is_left_to_packets_and_its_own_rules_see_the_cluster_ip() -> Result<()> {
    let (lab, manifests) = meshed()?;
    let (node, pod) = (lab.node("a"), lab.place("pod"));
    annotate(&manifests, None)?;
    let agent = Agent::start_with(node, &manifests, &BOTH)?;
    agent.settle()?;
    // By the names of both of kubelet's drivers, with the containers' own cgroups below.
    let systemd = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod5a1c_77.slice/c1.scope";
    for (place, other) in [(systemd, "kubepods.slice/other"), ("kubepods/pod5a1c-77/c1/inner", "kubepods/c2")]
    {
        let (own, other) = (pod.cgroup().join(place), pod.cgroup().join(other));
        until(pod, &own, "near")?;
        let before = count(node, Reason::PodLeft)?;

        annotate(&manifests, Some("off"))?;
        until(pod, &own, "pod")?;
        ensure!(count(node, Reason::PodLeft)? >= before + 2, "a call of each family is counted");
        until(pod, &other, "near")?;
        let status = node.vipr(&["status"])?;
        ensure!(status.contains("default/mesh") && status.contains("by packets"), "{status}");

        annotate(&manifests, None)?;
        until(pod, &own, "near")?;
        wait::until("no pod is left alone", || {
            let left = agent.report()?.left_pods;
            ensure!(left.is_empty(), "{left:?}");
            Ok(())
        })?;
        for folder in own.ancestors().take_while(|folder| *folder != pod.cgroup()) {
            // Fails where another's is below.
            let _ = std::fs::remove_dir(folder);
        }
    }
    lab.check()
}

#[test]
fn a_pod_stays_left_alone_when_the_agent_is_killed_and_from_the_first_moment_of_the_next() -> Result<()> {
    let (lab, manifests) = meshed()?;
    let (node, pod) = (lab.node("a"), lab.place("pod"));
    let own = pod.cgroup().join("kubepods/besteffort/pod5a1c-77/c1");
    annotate(&manifests, Some("off"))?;
    let agent = Agent::start_with(node, &manifests, &BOTH)?;
    agent.settle()?;
    until(pod, &own, "pod")?;
    agent.kill()?;
    for family in Family::ALL {
        assert_eq!(who(pod, &own, family)?, "pod", "without an agent");
    }
    let agent = Agent::start_with(node, &manifests, &BOTH)?;
    for _ in 0..20 {
        for family in Family::ALL {
            assert_eq!(who(pod, &own, family)?, "pod", "while the next one starts");
        }
    }
    agent.settle()?;
    assert_eq!(who(pod, &own, Family::V4)?, "pod");
    ensure!(agent.terminate()?.success());
    // One that was not told to follow pods serves all of them.
    let agent = Agent::start_with(node, &manifests, &BOTH[..2])?;
    agent.settle()?;
    until(pod, &own, "near")?;
    lab.check()
}
