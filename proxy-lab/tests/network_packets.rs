//! The packet plane with real sockets: what did not come from a socket that vipr serves is translated on the node's devices.
//! Every device is one of the agent's own choosing; checksums are made in software in one pass and left to devices in another.

mod traffic;

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use proxy_lab::{Agent, Family, Lab, Load, Manifests, Offload, Waiting, Wiring, errno, pod_device, wait};
use traffic::{NODE_PORT, PACKETS, PORT, answers, cluster, near_and_far, one, reaches, seen, start, web};

/// Each wiring and each way of making checksums.
fn each(mut test: impl FnMut(&Lab, &Manifests) -> Result<()>) -> Result<()> {
    for wiring in Wiring::ALL {
        for offload in [Offload::Off, Offload::On] {
            let (lab, manifests) = start(wiring, offload)?;
            test(&lab, &manifests).with_context(|| format!("{wiring:?}, offload {offload:?}"))?;
            lab.check().with_context(|| format!("{wiring:?}, offload {offload:?}"))?;
        }
    }
    Ok(())
}

#[test]
fn a_client_outside_reaches_a_node_port_whose_pod_is_on_this_node_or_on_another() -> Result<()> {
    each(|lab, manifests| {
        let outside = lab.place("outside");
        let service = |pod: &str| web(lab, &[pod]);
        near_and_far(lab, manifests, &PACKETS, service, |endpoint| {
            for family in Family::ALL {
                let to = SocketAddr::new(lab.node("a").address(family), NODE_PORT);
                let clients = reaches(outside, to, endpoint)?;
                // kube-proxy spec §2.3, row 4: the pod answers to its node.
                ensure!(!clients.contains(&outside.address(family)), "{clients:?}");
            }
            Ok(())
        })
    })
}

#[test]
fn a_pod_reaches_a_cluster_ip_by_packets_and_is_seen_as_itself() -> Result<()> {
    each(|lab, manifests| {
        let pod = lab.place("pod");
        let service = |pod: &str| web(lab, &[pod]);
        near_and_far(lab, manifests, &PACKETS, service, |endpoint| {
            for family in Family::ALL {
                let clients = reaches(pod, cluster(family), endpoint)?;
                assert_eq!(clients, one(pod.address(family)));
            }
            Ok(())
        })
    })
}

#[test]
fn a_pod_reaches_itself_through_its_service() -> Result<()> {
    each(|lab, manifests| {
        manifests.apply(&web(lab, &["near"]))?;
        let agent = Agent::start_with(lab.node("a"), manifests, &PACKETS)?;
        agent.settle()?;
        for address in ["10.96.0.10", "fd00:96::10"] {
            let to = SocketAddr::new(address.parse()?, PORT);
            let (who, _) = seen(&answers(lab.place("near"), to)?);
            assert_eq!(who, one("near".to_owned()), "{to}");
        }
        Ok(())
    })
}

#[test]
fn a_service_without_endpoints_refuses_pods_and_clients_outside() -> Result<()> {
    for (wiring, offload) in [(Wiring::Routed, Offload::Off), (Wiring::Bridged, Offload::On)] {
        let (lab, manifests) = start(wiring, offload)?;
        manifests.apply(&web(&lab, &[]))?;
        let node = lab.node("a");
        let agent = Agent::start_with(node, &manifests, &PACKETS)?;
        agent.settle()?;
        for (family, cluster_ip) in Family::ALL.into_iter().zip(["10.96.0.10", "fd00:96::10"]) {
            let node_port = SocketAddr::new(node.address(family), NODE_PORT);
            let cluster_ip = SocketAddr::new(cluster_ip.parse()?, PORT);
            for (from, to) in [("outside", node_port), ("pod", cluster_ip)] {
                let from = lab.place(from);
                // The answer to the first SYN comes while connect() still has the socket, and the kernel passes it over:
                // it is the second one that is refused, a second later. So it is with netfilter's REJECT.
                let refused = from.connect(to, Waiting::Blocking).err().map(|error| errno(&error));
                ensure!(refused == Some(Errno::ECONNREFUSED as i32), "{} to {to}: {refused:?}", from.name());
                let datagrams = from.datagrams(family)?;
                datagrams.connect(to)?;
                let refused = datagrams.ask("nobody").err().map(|error| errno(&error));
                ensure!(
                    refused == Some(Errno::ECONNREFUSED as i32),
                    "{}, UDP, {to}: {refused:?}",
                    from.name()
                );
            }
        }
        lab.check()?;
    }
    Ok(())
}

#[test]
fn a_refusal_is_right_whichever_side_of_a_pods_link_makes_checksums() -> Result<()> {
    // The pod leaves them to its device, and the node's end of the link makes its own.
    let (lab, manifests) = start(Wiring::Routed, Offload::On)?;
    manifests.apply(&web(&lab, &[]))?;
    let node = lab.node("a");
    node.run("ethtool", &["-K", &pod_device(0), "tx", "off"])?;
    let agent = Agent::start_with(node, &manifests, &PACKETS)?;
    agent.settle()?;
    for family in Family::ALL {
        for length in [1, 2, 3, 1300] {
            let datagrams = lab.place("pod").datagrams(family)?;
            datagrams.connect(cluster(family))?;
            let refused = datagrams.ask(&"x".repeat(length)).err().map(|error| errno(&error));
            ensure!(refused == Some(Errno::ECONNREFUSED as i32), "{family:?}, {length} bytes: {refused:?}");
        }
        let refused = lab.place("pod").connect(cluster(family), Waiting::Blocking).err();
        let refused = refused.map(|error| errno(&error));
        ensure!(refused == Some(Errno::ECONNREFUSED as i32), "{family:?}, TCP: {refused:?}");
    }
    lab.check()
}

#[test]
fn connections_through_the_node_survive_its_agents_restart_and_a_change_of_endpoints() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed, Offload::On)?;
    let node = lab.node("a");
    manifests.apply(&web(&lab, &["near"]))?;
    let agent = Agent::start_with(node, &manifests, &PACKETS)?;
    agent.settle()?;
    let to = SocketAddr::new(node.address(Family::V4), NODE_PORT);
    let mut kept = lab.place("outside").connect(to, Waiting::Blocking)?;
    assert_eq!(kept.answer()?.who, "near");
    let load = Load::start(lab.place("outside"), to, 200);
    load.wait_for(20)?;
    agent.kill()?;
    manifests.apply(&web(&lab, &["far"]))?;
    load.wait_for(20)?;
    let agent = Agent::start_with(node, &manifests, &PACKETS)?;
    agent.settle()?;
    wait::until("new connections go to the other pod", || {
        let answer = lab.place("outside").ask_tcp(to)?;
        ensure!(answer.who == "far", "{answer:?}");
        Ok(())
    })?;
    let tally = load.stop();
    ensure!(tally.failures() == 0 && tally.answered.contains_key("near"), "{tally:?}");
    let answer = kept.ask("still there?")?;
    assert_eq!(answer.who, "near", "an established connection keeps its backend: {answer:?}");
    Ok(())
}

#[test]
fn datagrams_of_one_socket_go_to_whoever_serves_from_the_next_one_on() -> Result<()> {
    each(|lab, manifests| {
        let node = lab.node("a");
        let agent = traffic::serve(node, manifests, &[web(lab, &["near"])])?;
        for family in Family::ALL {
            let node_port = SocketAddr::new(node.address(family), NODE_PORT);
            for (from, to) in [("outside", node_port), ("pod", cluster(family))] {
                let socket = lab.place(from).datagrams(family)?;
                socket.connect(to)?;
                for endpoint in [Some("far"), Some("near"), None, Some("near")] {
                    manifests.apply(&web(lab, endpoint.as_slice()))?;
                    agent.settle()?;
                    match (socket.ask("who"), endpoint) {
                        (Ok((answer, source)), Some(endpoint)) => {
                            ensure!(answer.who == endpoint && source == to, "{from}: {source}, {answer:?}");
                        }
                        (Err(error), None) if errno(&error) == Errno::ECONNREFUSED as i32 => {}
                        (other, _) => bail!("{from} to {to} at {endpoint:?}: {other:?}"),
                    }
                }
            }
        }
        Ok(())
    })
}
