//! Workloads that are no plain processes in pods: meshes, clusters inside a pod, virtual machines, sockets that the kernel
//! opens.

mod traffic;

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{SockaddrStorage, connect};
use proxy_lab::{
    Agent, Blackhole, CALL_LIMIT, Family, Lab, Manifests, Offload, Place, SocketKind, Topology, Tunnel,
    Wiring,
};
use traffic::{NODE_PORT, TARGET, cluster, one, reaches, start, web};

const BOTH: [&str; 2] = ["--packet-plane=on", "--socket-plane=all"];
const PACKETS: [&str; 2] = ["--packet-plane=on", "--socket-plane=host"];

/// Where the proxy in a pod listens.
const SIDECAR: u16 = 15001;

/// Both families' `iptables` at a place.
fn rules(place: &Place, of: impl Fn(Family) -> String) -> Result<()> {
    for (family, tables) in Family::ALL.into_iter().zip(["iptables", "ip6tables"]) {
        let rule = of(family);
        place.run(tables, &rule.split(' ').collect::<Vec<_>>())?;
    }
    Ok(())
}

/// Who answers a connection of the pod to the Service.
fn who(lab: &Lab, family: Family) -> Result<String> {
    Ok(lab.place("pod").ask_tcp(cluster(family))?.who)
}

fn serves(lab: &Lab, manifests: &Manifests, planes: &[&str], expected: &str) -> Result<()> {
    let agent = Agent::start_with(lab.node("a"), manifests, planes)?;
    agent.settle()?;
    for family in Family::ALL {
        let who = who(lab, family)?;
        ensure!(who == expected, "{planes:?}, {family:?}: {who} answered instead of {expected}");
    }
    ensure!(agent.terminate()?.success());
    Ok(())
}

#[test]
fn a_mesh_that_takes_all_connections_of_its_pod_has_them_in_both_planes() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
    let pod = lab.place("pod");
    manifests.apply(&web(&lab, &["near"]))?;
    pod.serve(&[SIDECAR], &[])?;
    rules(pod, |_| format!("-t nat -A OUTPUT -p tcp -j REDIRECT --to-ports {SIDECAR}"))?;
    serves(&lab, &manifests, &PACKETS, "pod")?;
    serves(&lab, &manifests, &BOTH, "pod")?;
    lab.check()
}

#[test]
fn a_mesh_that_goes_by_the_dialled_address_needs_pods_that_are_left_to_packets() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
    let pod = lab.place("pod");
    manifests.apply(&web(&lab, &["near"]))?;
    pod.serve(&[SIDECAR], &[])?;
    rules(pod, |family| {
        format!("-t nat -A OUTPUT -p tcp -d {} -j REDIRECT --to-ports {SIDECAR}", cluster(family).ip())
    })?;
    serves(&lab, &manifests, &PACKETS, "pod")?;
    // The documented limit: the pod's rules meet the endpoint, which the socket was given when it connected.
    serves(&lab, &manifests, &BOTH, "near")?;
    lab.check()
}

#[test]
fn a_cluster_inside_a_pod_with_the_same_addresses_keeps_its_own_if_pods_are_left_to_packets() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
    let pod = lab.place("pod");
    manifests.apply(&web(&lab, &["near"]))?;
    // The inner cluster's proxy leads the same ClusterIP to a backend of its own.
    let inner = 18080;
    pod.serve(&[inner], &[])?;
    rules(pod, |family| {
        let (to, own) = (cluster(family), SocketAddr::new(pod.address(family), inner));
        format!("-t nat -A OUTPUT -p tcp -d {} --dport {} -j DNAT --to-destination {own}", to.ip(), to.port())
    })?;
    serves(&lab, &manifests, &PACKETS, "pod")?;
    serves(&lab, &manifests, &BOTH, "near")?;
    lab.check()
}

/// Another stack behind a tap device of `to`, which is its gateway: the second of the clients, made anew.
fn machine<'lab>(
    lab: &'lab Lab,
    to: &Place,
    address: [&str; 2],
    gateway: [IpAddr; 2],
) -> Result<(Tunnel, &'lab Place)> {
    let machine = lab.place("machine");
    machine.ip(&["link set eth0 down".to_owned()])?;
    let tunnel = Tunnel::of_frames(to, machine, "tap0")?;
    let mut lines = vec!["link set tap0 up".to_owned()];
    for ((own, length), gateway) in address.into_iter().zip([24, 64]).zip(gateway) {
        let nodad = if length == 64 { " nodad" } else { "" };
        lines.push(format!("address add {own}/{length} dev tap0{nodad}"));
        lines.push(format!("route replace default via {gateway} dev tap0"));
    }
    // Its own way to Services leads out of it.
    for family in Family::ALL {
        let gateway = gateway[usize::from(family == Family::V6)];
        lines.push(format!("route add {} via {gateway} dev tap0", cluster(family).ip()));
    }
    machine.ip(&lines)?;
    Ok((tunnel, machine))
}

fn with_machine(wiring: Wiring) -> Result<(Lab, Manifests)> {
    let topology = Topology::new(wiring).node("a", &["pod", "near"]).node("b", &["far"]);
    let topology = topology.client("outside").client("machine").blackhole(Blackhole::AtNodes);
    let lab = Lab::start(&topology)?;
    for pod in ["near", "far"] {
        lab.place(pod).serve(&[TARGET], &[TARGET])?;
    }
    let manifests = Manifests::new(&lab)?;
    Ok((lab, manifests))
}

#[test]
fn a_virtual_machine_on_the_pods_bridge_reaches_services() -> Result<()> {
    let (lab, manifests) = with_machine(Wiring::Bridged)?;
    let node = lab.node("a");
    let gateway = Family::ALL.map(|family| node.addresses(family)[2]);
    let own = ["10.244.1.50", "fd00:244:1::50"];
    let (_tunnel, machine) = machine(&lab, node, own, gateway)?;
    node.ip(&["link set tap0 master cni0".to_owned(), "link set tap0 up".to_owned()])?;
    manifests.apply(&web(&lab, &["near"]))?;
    let agent = Agent::start_with(node, &manifests, &BOTH)?;
    for endpoint in ["near", "far"] {
        manifests.apply(&web(&lab, &[endpoint]))?;
        agent.settle()?;
        for (family, own) in Family::ALL.into_iter().zip(own) {
            let clients = reaches(machine, cluster(family), endpoint)?;
            assert_eq!(clients, one(own.parse()?), "a machine is seen as itself");
            reaches(machine, SocketAddr::new(node.address(family), NODE_PORT), endpoint)?;
        }
    }
    lab.check()
}

#[test]
fn a_virtual_machine_behind_its_pods_masquerade_reaches_services_as_the_pod() -> Result<()> {
    let (lab, manifests) = with_machine(Wiring::Routed)?;
    let pod = lab.place("pod");
    let gateway: [IpAddr; 2] = ["10.0.2.1".parse()?, "fd10:0:2::1".parse()?];
    let (_tunnel, machine) = machine(&lab, pod, ["10.0.2.2", "fd10:0:2::2"], gateway)?;
    pod.ip(&[
        "link set tap0 up".to_owned(),
        format!("address add {}/24 dev tap0", gateway[0]),
        format!("address add {}/64 dev tap0 nodad", gateway[1]),
    ])?;
    for switch in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        pod.run("sysctl", &["-qw", &format!("{switch}=1")])?;
    }
    rules(pod, |_| "-t nat -A POSTROUTING -o eth0 -j MASQUERADE".to_owned())?;
    manifests.apply(&web(&lab, &["near"]))?;
    let agent = Agent::start_with(lab.node("a"), &manifests, &BOTH)?;
    for endpoint in ["near", "far"] {
        manifests.apply(&web(&lab, &[endpoint]))?;
        agent.settle()?;
        for family in Family::ALL {
            let clients = reaches(machine, cluster(family), endpoint)?;
            assert_eq!(clients, one(pod.address(family)));
        }
    }
    lab.check()
}

/// A connection whose subflows are sockets of the kernel's own.
fn multipath(place: &Place, to: SocketAddr) -> Result<String> {
    let domain = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let kind = SocketKind { domain, kind: libc::SOCK_STREAM, protocol: libc::IPPROTO_MPTCP };
    let stream = TcpStream::from(place.socket(kind)?);
    stream.set_read_timeout(Some(CALL_LIMIT))?;
    stream.set_write_timeout(Some(CALL_LIMIT))?;
    connect(stream.as_raw_fd(), &SockaddrStorage::from(to))
        .with_context(|| format!("{} to {to}", place.name()))?;
    Ok(BufReader::new(stream).lines().next().context("a greeting")??)
}

#[test]
fn sockets_whose_connections_the_kernel_makes_reach_services() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
    let node = lab.node("a");
    manifests.apply(&web(&lab, &["near"]))?;
    for planes in [BOTH, PACKETS] {
        let agent = Agent::start_with(node, &manifests, &planes)?;
        agent.settle()?;
        for family in Family::ALL {
            for from in [lab.place("pod"), &**node] {
                for to in [cluster(family), SocketAddr::new(node.address(family), NODE_PORT)] {
                    let said = multipath(from, to)?;
                    ensure!(said.starts_with(r#"{"who":"near""#), "{} to {to}: {said}", from.name());
                }
            }
        }
        ensure!(agent.terminate()?.success());
    }
    lab.check()
}
