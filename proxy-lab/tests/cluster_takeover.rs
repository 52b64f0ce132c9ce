//! vipr is installed over a live kube-proxy, which then ends: nobody who talks to a Service notices.

mod talk;

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use proxy_lab::topology::{CLUSTER_IPS_V4, CLUSTER_IPS_V6};
use proxy_lab::{Agent, Blackhole, Cluster, Family, KubeProxy, Lab, Place, Service, Topology, Wiring, wait};
use talk::Talk;

const PORT: u16 = 80;
const TARGET: u16 = 8080;
const NODE_PORT: u16 = 30080;
const CLUSTER_IPS: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
/// Rounds of each who talks that a phase lasts.
const PHASE: u64 = 50;

fn lab() -> Result<Lab> {
    let topology = Topology::new(Wiring::Routed).node("a", &["pod", "near"]).node("b", &["far"]);
    let topology = topology.client("outside").client("control-plane").blackhole(Blackhole::AtNodes);
    let lab = Lab::start(&topology)?;
    for pod in ["near", "far"] {
        lab.place(pod).serve(&[TARGET], &[TARGET])?;
    }
    Ok(lab)
}

fn web(lab: &Lab) -> Service {
    let [v4, v6] = CLUSTER_IPS;
    let service = Service::new("web").cluster_ip(v4).cluster_ip(v6).tcp(PORT, TARGET).udp(PORT, TARGET);
    service.node_port(NODE_PORT).endpoints(["near", "far"].map(|pod| lab.place(pod)))
}

/// A pod and the node by ClusterIP, a client outside by NodePort, in both families.
fn clients(lab: &Lab) -> Result<Vec<(&Place, SocketAddr)>> {
    let mut clients = Vec::new();
    for (family, cluster_ip) in Family::ALL.into_iter().zip(CLUSTER_IPS) {
        let cluster_ip = SocketAddr::new(cluster_ip.parse()?, PORT);
        clients.push((lab.place("pod"), cluster_ip));
        clients.push((&**lab.node("a"), cluster_ip));
        clients.push((lab.place("outside"), (lab.node("a").address(family), NODE_PORT).into()));
    }
    Ok(clients)
}

fn served(clients: &[&(&Place, SocketAddr)]) -> Result<()> {
    clients.iter().try_for_each(|(from, to)| {
        wait::until(&format!("{} is served at {to}", from.name()), || {
            Ok((from.ask_tcp(*to)?, from.ask_udp(*to)?))
        })?;
        Ok(())
    })
}

fn handed_over(lab: &Lab) -> Result<Option<u64>> {
    Ok(lab.node("a").vipr_json(&["status"])?["handedOver"].as_u64())
}

fn take_over_from(mode: &str, more: &[&str]) -> Result<()> {
    let lab = lab()?;
    let mut cluster = Cluster::start(&lab, "control-plane")?;
    cluster.apply(&web(&lab))?;
    let node = lab.node("a");
    let kubeconfig = cluster.plane().admin_kubeconfig();
    let kube_proxy = KubeProxy::start(node, mode, &kubeconfig)?;
    let clients = clients(&lab)?;
    let (own, others): (Vec<_>, Vec<_>) = clients.iter().partition(|(from, _)| from.name() == node.name());
    served(&others)?;
    // What the node sends itself is routed by the dialled address before kube-proxy's rules meet it.
    node.ip(&[CLUSTER_IPS_V4, CLUSTER_IPS_V6].map(|range| format!("route del blackhole {range}")))?;
    // Where the canaries of `settle` will be, before anybody serves them.
    node.ip(&["route add blackhole 10.96.255.0/24".to_owned()])?;
    served(&own)?;
    let mut talks = clients.iter().map(|(from, to)| Talk::start(from, *to)).collect::<Result<Vec<_>>>()?;
    let go_on = |talks: &[Talk]| {
        let goals: Vec<_> = talks.iter().map(|talk| talk.goal(PHASE)).collect();
        talks.iter().zip(goals).try_for_each(|(talk, goal)| talk.reaches(goal))
    };
    go_on(&talks).context("with kube-proxy alone")?;

    let kubeconfig = cluster.kubeconfig().to_string_lossy().into_owned();
    let arguments = [&["--kubeconfig", &kubeconfig, "--proxy-mode", mode], more].concat();
    let agent = Agent::start_on_with(node, &cluster, &arguments, &[])?;
    agent.settle()?;
    go_on(&talks).context("with both")?;
    let left =
        wait::until("what is left to netfilter is known", || handed_over(&lab)?.context("no handover"))?;
    ensure!(left >= clients.len() as u64 * Talk::LASTING, "{left} connections are left to netfilter");

    kube_proxy.terminate()?;
    go_on(&talks).context("after kube-proxy")?;
    let status = agent.terminate()?;
    ensure!(status.success(), "{status}");
    go_on(&talks).context("without an agent")?;
    let agent = Agent::start_on_with(node, &cluster, &arguments, &[])?;
    agent.settle()?;
    go_on(&talks).context("with another agent")?;
    talks.iter_mut().try_for_each(Talk::break_silence)?;
    talks.into_iter().try_for_each(Talk::nothing_was_missed)?;

    // What they leave is forgotten by netfilter after minutes, and here at once.
    node.run("conntrack", &["--flush"])?;
    wait::until_within(4 * wait::LIMIT, "the handover is over", || {
        let left = handed_over(&lab)?;
        ensure!(left.is_none(), "{left:?} are left");
        Ok(())
    })?;
    KubeProxy::clean_up(node)?;
    served(&clients.iter().collect::<Vec<_>>()).context("after kube-proxy --cleanup")
}

#[test]
fn nobody_notices_that_kube_proxys_iptables_mode_is_followed_by_vipr() -> Result<()> {
    take_over_from("iptables", &[])
}

#[test]
fn nobody_notices_that_kube_proxys_nftables_mode_is_followed_by_vipr() -> Result<()> {
    take_over_from("nftables", &[])
}

#[test]
fn nobody_notices_it_either_where_pods_are_left_to_the_packet_plane() -> Result<()> {
    take_over_from("iptables", &["--socket-plane=host"])
}
