//! The main job: Services from YAML, read by the real agent, carry real connections of pods and of the node.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use proxy_lab::{
    Agent, Family, Lab, Manifests, Place, Service, Topology, Waiting, Wiring, errno, mapped, wait,
};
use serde_json::json;

const PORT: u16 = 80;
const TARGET: u16 = 8080;
const NODE_PORT: u16 = 30080;

fn topology(wiring: Wiring) -> Topology {
    Topology::new(wiring).node("a", &["client", "web-1", "web-2"]).node("b", &["web-3"])
}

/// A lab whose web pods serve on [`TARGET`], and its manifests.
fn start(wiring: Wiring) -> Result<(Lab, Manifests)> {
    let lab = Lab::start(&topology(wiring))?;
    for pod in ["web-1", "web-2", "web-3"] {
        lab.place(pod).serve(&[TARGET], &[TARGET])?;
    }
    let manifests = Manifests::new(&lab)?;
    Ok((lab, manifests))
}

fn web(lab: &Lab, pods: &[&str]) -> Service {
    Service::new("web")
        .cluster_ip("10.96.0.10")
        .cluster_ip("fd00:96::10")
        .tcp(PORT, TARGET)
        .udp(PORT, TARGET)
        .endpoints(pods.iter().map(|pod| lab.place(pod)))
}

/// The addresses by which a socket can dial an IPv4 and an IPv6 address: the IPv4 one also from an IPv6 socket.
fn ways(v4: &str, v6: &str) -> Result<[IpAddr; 3]> {
    let v4: Ipv4Addr = v4.parse()?;
    Ok([v4.into(), v6.parse::<Ipv6Addr>()?.into(), mapped(v4)])
}

/// Who answers a few TCP connections, blocking and not, and a few datagrams; each shows the address that was dialled.
fn answers(from: &Place, to: SocketAddr) -> Result<BTreeSet<String>> {
    let mut who = BTreeSet::new();
    for waiting in Waiting::ALL {
        for _ in 0..12 {
            let mut stream = from.connect(to, waiting).with_context(|| format!("connect to {to}"))?;
            let answer = stream.answer()?;
            ensure!(answer.local.port() == TARGET, "{answer:?}");
            ensure!(stream.peer()? == to, "getpeername gave {} for {to}", stream.peer()?);
            who.insert(answer.who);
        }
    }
    for _ in 0..24 {
        let datagrams = from.datagrams(Family::of(to.ip()))?;
        let (answer, source) =
            datagrams.ask_to(to, "unconnected").with_context(|| format!("datagram to {to}"))?;
        ensure!(source == to, "recvfrom gave {source} for {to}");
        who.insert(answer.who);
        let connected = from.datagrams(Family::of(to.ip()))?;
        connected.connect(to)?;
        let (answer, source) = connected.ask("connected")?;
        ensure!(source == to && connected.peer()? == to, "{source}, {}", connected.peer()?);
        who.insert(answer.who);
    }
    Ok(who)
}

fn names(all: &[&str]) -> BTreeSet<String> {
    all.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn pods_and_the_node_reach_a_cluster_ip_in_all_families_protocols_and_wirings() -> Result<()> {
    for wiring in Wiring::ALL {
        let (lab, manifests) = start(wiring)?;
        manifests.apply(&web(&lab, &["web-1", "web-2", "web-3"]))?;
        let agent = Agent::start(lab.node("a"), &manifests)?;
        agent.settle()?;
        for from in [lab.place("client"), lab.place("web-1"), lab.node("a")] {
            for address in ways("10.96.0.10", "fd00:96::10")? {
                let who = answers(from, (address, PORT).into()).with_context(|| from.name().to_owned())?;
                assert_eq!(
                    who,
                    names(&["web-1", "web-2", "web-3"]),
                    "{wiring:?}: {} to {address}",
                    from.name()
                );
            }
        }
    }
    Ok(())
}

#[test]
fn a_node_port_is_served_on_every_address_of_the_node_and_on_loopback_for_the_host_alone() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed)?;
    manifests.apply(&web(&lab, &["web-1", "web-3"]).node_port(NODE_PORT))?;
    let node = lab.node("a");
    let agent = Agent::start(node, &manifests)?;
    agent.settle()?;
    let both = names(&["web-1", "web-3"]);
    for family in Family::ALL {
        for address in node.addresses(family) {
            for from in [lab.place("client"), &**node] {
                let who = answers(from, (address, NODE_PORT).into())?;
                assert_eq!(who, both, "{} to {address}", from.name());
            }
        }
    }
    for address in ["127.0.0.1", "127.4.5.6"] {
        let to = SocketAddr::new(address.parse()?, NODE_PORT);
        assert_eq!(answers(node, to)?, both, "the host to {to}");
        // A pod's loopback is its own: nobody listens there.
        let refused = lab.place("client").ask_tcp(to).expect_err("a pod's loopback is its own");
        assert_eq!(errno(&refused), Errno::ECONNREFUSED as i32, "{to}");
    }
    let v6 = node.ask_tcp((Ipv6Addr::LOCALHOST, NODE_PORT).into()).expect_err("it is nobody's");
    assert_eq!(errno(&v6), Errno::ECONNREFUSED as i32, "no mode of kube-proxy serves ::1");
    // Another node's address is not this node's: its own proxy would serve it.
    let other = SocketAddr::new(lab.node("b").address(Family::V4), NODE_PORT);
    assert_eq!(errno(&node.ask_tcp(other).expect_err("node b has no proxy")), Errno::ECONNREFUSED as i32);
    Ok(())
}

#[test]
fn load_balancer_and_external_ips_are_served_to_pods_and_the_node() -> Result<()> {
    let (lab, manifests) = start(Wiring::Bridged)?;
    let service = web(&lab, &["web-2"]).node_port(NODE_PORT);
    let service = service.load_balancer_ip("10.100.0.1").load_balancer_ip("fd00:100::1");
    manifests.apply(&service.external_ip("10.100.0.2").external_ip("fd00:100::2"))?;
    let agent = Agent::start(lab.node("a"), &manifests)?;
    agent.settle()?;
    for from in [lab.place("client"), lab.node("a")] {
        for address in
            ways("10.100.0.1", "fd00:100::1")?.into_iter().chain(ways("10.100.0.2", "fd00:100::2")?)
        {
            assert_eq!(
                answers(from, (address, PORT).into())?,
                names(&["web-2"]),
                "{} to {address}",
                from.name()
            );
        }
    }
    Ok(())
}

#[test]
fn a_service_without_endpoints_refuses_and_answers_as_soon_as_it_has_one() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed)?;
    manifests.apply(&web(&lab, &[]))?;
    let agent = Agent::start(lab.node("a"), &manifests)?;
    agent.settle()?;
    let ways = ways("10.96.0.10", "fd00:96::10")?;
    for from in [lab.place("client"), lab.node("a")] {
        for address in ways {
            for waiting in Waiting::ALL {
                let refused = from.connect((address, PORT).into(), waiting).expect_err("it has no endpoint");
                assert_eq!(
                    errno(&refused),
                    Errno::ECONNREFUSED as i32,
                    "{} {address} {waiting:?}",
                    from.name()
                );
            }
            let datagrams = from.datagrams(Family::of(address))?;
            let refused = datagrams.connect((address, PORT).into()).expect_err("it has no endpoint");
            assert_eq!(errno(&refused), Errno::ECONNREFUSED as i32, "UDP {} {address}", from.name());
        }
    }
    manifests.apply(&web(&lab, &["web-3"]))?;
    agent.settle()?;
    for address in ways {
        assert_eq!(answers(lab.place("client"), (address, PORT).into())?, names(&["web-3"]));
    }
    Ok(())
}

#[test]
fn endpoints_come_change_and_go_and_open_connections_stay() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed)?;
    manifests.apply(&web(&lab, &["web-1"]))?;
    let agent = Agent::start(lab.node("a"), &manifests)?;
    agent.settle()?;
    let (client, to) = (lab.place("client"), SocketAddr::from(([10, 96, 0, 10], PORT)));
    let mut open = client.connect(to, Waiting::Blocking)?;
    assert_eq!(open.answer()?.who, "web-1");

    manifests.apply(&web(&lab, &["web-1", "web-2"]))?;
    agent.settle()?;
    assert_eq!(answers(client, to)?, names(&["web-1", "web-2"]), "scaled up");
    manifests.apply(&web(&lab, &["web-2", "web-3"]))?;
    agent.settle()?;
    assert_eq!(answers(client, to)?, names(&["web-2", "web-3"]), "switched");
    assert_eq!(open.ask("still there?")?.who, "web-1", "an open connection is never cut");

    manifests.delete(&web(&lab, &["web-2", "web-3"]))?;
    agent.settle()?;
    // Nobody's address any more: it ends in the blackhole.
    assert_eq!(errno(&client.ask_tcp(to).expect_err("the Service is gone")), Errno::EINVAL as i32);
    assert_eq!(open.ask("and now?")?.who, "web-1");
    Ok(())
}

#[test]
fn an_unconnected_udp_socket_keeps_its_backend_and_moves_when_that_goes() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed)?;
    manifests.apply(&web(&lab, &["web-1", "web-2", "web-3"]))?;
    let agent = Agent::start(lab.node("a"), &manifests)?;
    agent.settle()?;
    for to in [SocketAddr::from(([10, 96, 0, 10], PORT)), "[fd00:96::10]:80".parse()?] {
        let datagrams = lab.place("client").datagrams(Family::of(to.ip()))?;
        let (first, _) = datagrams.ask_to(to, "first")?;
        for _ in 0..20 {
            assert_eq!(datagrams.ask_to(to, "again")?.0.who, first.who);
        }
        let rest: Vec<_> = ["web-1", "web-2", "web-3"].into_iter().filter(|pod| *pod != first.who).collect();
        manifests.apply(&web(&lab, &rest))?;
        agent.settle()?;
        let (moved, source) = datagrams.ask_to(to, "moved")?;
        assert!(rest.contains(&moved.who.as_str()), "{moved:?}");
        assert_eq!(source, to);
        manifests.apply(&web(&lab, &["web-1", "web-2", "web-3"]))?;
        agent.settle()?;
    }
    Ok(())
}

#[test]
fn a_local_internal_policy_uses_the_nodes_own_endpoints_and_terminating_ones_last() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed)?;
    let local = |service: Service| service.spec(&json!({ "internalTrafficPolicy": "Local" }));
    manifests.apply(&local(web(&lab, &["web-1", "web-3"])))?;
    let agent = Agent::start(lab.node("a"), &manifests)?;
    agent.settle()?;
    let (client, to) = (lab.place("client"), SocketAddr::from(([10, 96, 0, 10], PORT)));
    assert_eq!(answers(client, to)?, names(&["web-1"]), "only the node's own");

    let mut leaving = proxy_lab::Endpoint::from(lab.place("web-1"));
    (leaving.ready, leaving.terminating) = (false, true);
    let remote = proxy_lab::Endpoint::from(lab.place("web-3"));
    manifests.apply(&local(web(&lab, &[]).endpoints([leaving, remote])))?;
    agent.settle()?;
    assert_eq!(answers(client, to)?, names(&["web-1"]), "terminating but serving, and the last one");
    Ok(())
}

#[test]
fn session_affinity_holds_a_client_to_one_endpoint_over_all_addresses_and_a_restart() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed)?;
    let sticky = web(&lab, &["web-1", "web-2", "web-3"]).node_port(NODE_PORT);
    manifests.apply(&sticky.spec(&json!({ "sessionAffinity": "ClientIP" })))?;
    let node = lab.node("a");
    let agent = Agent::start(node, &manifests)?;
    agent.settle()?;
    let client = lab.place("client");
    let cluster_ip = SocketAddr::from(([10, 96, 0, 10], PORT));
    let node_port = SocketAddr::new(node.address(Family::V4), NODE_PORT);
    let first = client.ask_tcp(cluster_ip)?.who;
    for _ in 0..20 {
        assert_eq!(client.ask_tcp(cluster_ip)?.who, first);
        assert_eq!(client.ask_tcp(node_port)?.who, first, "shared by all addresses of the port");
    }
    agent.kill()?;
    let agent = Agent::start(node, &manifests)?;
    agent.settle()?;
    for _ in 0..20 {
        assert_eq!(client.ask_tcp(cluster_ip)?.who, first, "after a restart");
    }
    Ok(())
}

#[test]
fn a_new_address_of_the_node_serves_node_ports_and_a_removed_one_does_not() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed)?;
    manifests.apply(&web(&lab, &["web-1"]).node_port(NODE_PORT))?;
    let node = lab.node("a");
    let agent = Agent::start(node, &manifests)?;
    agent.settle()?;
    let to = SocketAddr::from(([172, 31, 9, 9], NODE_PORT));
    node.ip(&["address add 172.31.9.9/32 dev lo".into()])?;
    wait::until("the new address serves", || {
        ensure!(node.ask_tcp(to)?.who == "web-1");
        Ok(())
    })?;
    node.ip(&["address del 172.31.9.9/32 dev lo".into()])?;
    wait::until("the removed address does not", || {
        ensure!(node.connect(to, Waiting::Blocking).is_err(), "it is still served");
        Ok(())
    })?;
    lab.expect_errors();
    Ok(())
}
