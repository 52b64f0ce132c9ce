//! The packet plane among what nodes have beside it: a host's firewall, bridges that ask netfilter or don't, two uplinks,
//! other people's programs on the same devices.

mod hooks;
mod traffic;

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use hooks::run;
use proxy_common::Reason;
use proxy_lab::{Agent, Family, Lab, Manifests, Node, Offload, Wiring};
use traffic::{
    NODE_PORT, PACKETS, TARGET, answers, cluster, count, near_and_far, one, reaches, seen, start, web,
};

/// What hosts have: nothing is forwarded but what has begun and what is of pods; what makes no sense is dropped first.
fn firewall(node: &Node) -> Result<()> {
    for (tables, pods) in [("iptables", "10.244.0.0/16"), ("ip6tables", "fd00:244::/32")] {
        for rule in [
            // Strict, as rp_filter is for IPv4.
            "-t raw -A PREROUTING -m rpfilter --invert -j DROP",
            "-P FORWARD DROP",
            "-A FORWARD -m conntrack --ctstate INVALID -j DROP",
            "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            &format!("-A FORWARD -d {pods} -j ACCEPT"),
            &format!("-A FORWARD -s {pods} -j ACCEPT"),
        ] {
            run(node, &format!("{tables} {rule}"))?;
        }
    }
    for device in hooks::devices(node)? {
        let strict = run(node, &format!("sysctl -n net.ipv4.conf.{device}.rp_filter"))?;
        ensure!(strict.trim() == "1", "rp_filter of {device} is {strict}");
    }
    Ok(())
}

fn node_port(node: &Node, family: Family) -> SocketAddr {
    SocketAddr::new(node.address(family), NODE_PORT)
}

/// A client outside and a pod, both families and all protocols, to a pod of this node and to one of another.
fn everybody_is_served(lab: &Lab, manifests: &Manifests) -> Result<()> {
    let (node, pod) = (lab.node("a"), lab.place("pod"));
    let service = |pod: &str| web(lab, &[pod]);
    near_and_far(lab, manifests, &PACKETS, service, |endpoint| {
        for family in Family::ALL {
            reaches(lab.place("outside"), node_port(node, family), endpoint)?;
            let clients = reaches(pod, cluster(family), endpoint)?;
            assert_eq!(clients, one(pod.address(family)));
        }
        Ok(())
    })
}

#[test]
fn a_strict_firewall_sees_connections_as_it_does_under_kube_proxy() -> Result<()> {
    for wiring in Wiring::ALL {
        for offload in [Offload::Off, Offload::On] {
            let (lab, manifests) = start(wiring, offload)?;
            ["a", "b"].iter().try_for_each(|node| firewall(lab.node(node)))?;
            everybody_is_served(&lab, &manifests).with_context(|| format!("{wiring:?}, {offload:?}"))?;
            let rules = run(lab.node("a"), "iptables -nvxL FORWARD")?;
            let established = rules.lines().find(|rule| rule.contains("ESTABLISHED"));
            let packets = established.and_then(|rule| rule.split_whitespace().next()?.parse::<u64>().ok());
            ensure!(packets > Some(50), "the firewall was asked: {rules}");
            lab.check()?;
        }
    }
    Ok(())
}

#[test]
fn pods_of_one_bridge_reach_each_other_whether_or_not_bridges_ask_netfilter() -> Result<()> {
    // Without, no stateful firewall can stand between them: of a connection it sees the questions alone.
    for asks in ["0", "1"] {
        let (lab, manifests) = start(Wiring::Bridged, Offload::On)?;
        let node = lab.node("a");
        for table in ["ip", "ip6", "arp"] {
            run(node, &format!("sysctl -qw net.bridge.bridge-nf-call-{table}tables={asks}"))?;
        }
        everybody_is_served(&lab, &manifests).with_context(|| format!("bridge-nf-call-iptables={asks}"))?;
        // The way over the bridge itself is shorter, and routers say so.
        let dropped = count(node, Reason::RedirectDropped)?;
        ensure!(dropped > 0, "bridge-nf-call-iptables={asks}: no redirect was made");
        let followed = run_in(&lab, "pod", "ip -4 route get 10.244.1.12")?
            + &run_in(&lab, "pod", "ip route show cache")?;
        ensure!(!followed.contains("redirected"), "{followed}");
        lab.check()?;
    }
    Ok(())
}

fn run_in(lab: &Lab, place: &str, line: &str) -> Result<String> {
    let mut words = line.split(' ');
    lab.place(place).run(words.next().unwrap_or_default(), &words.collect::<Vec<_>>())
}

/// A second segment between node `a` and the client.
const SECOND: [(&str, &str); 2] = [("192.168.88.11", "192.168.88.101"), ("fd00:88::11", "fd00:88::101")];

fn second_uplink(lab: &Lab) -> Result<()> {
    let (node, outside) = (lab.node("a"), lab.place("outside"));
    node.ip(&[format!("link add eth1 type veth peer name eth1 netns {}", outside.pid())])?;
    for (place, number) in [(&**node, 0), (outside, 1)] {
        // Answers come by another device than questions: both ends have to bear it.
        for device in ["all", "eth0", "eth1"] {
            place.run("sysctl", &["-qw", &format!("net.ipv4.conf.{device}.rp_filter=2")])?;
        }
        let address = |pair: (&str, &str)| if number == 0 { pair.0.to_owned() } else { pair.1.to_owned() };
        place.ip(&[
            "link set eth1 up".to_owned(),
            format!("address add {}/24 dev eth1", address(SECOND[0])),
            format!("address add {}/64 dev eth1 nodad", address(SECOND[1])),
        ])?;
    }
    Ok(())
}

#[test]
fn a_node_port_dialled_by_one_uplink_is_answered_by_the_other() -> Result<()> {
    for wiring in Wiring::ALL {
        let (lab, manifests) = start(wiring, Offload::Off)?;
        second_uplink(&lab)?;
        let (node, outside) = (lab.node("a"), lab.place("outside"));
        node.serve(&[TARGET], &[TARGET])?;
        manifests.apply(&web(&lab, &["near"]))?;
        let agent = Agent::start_with(node, &manifests, &PACKETS)?;
        for backend in ["near", "far", "a"] {
            let service = match backend {
                "a" => web(&lab, &[]).endpoints([&**node]),
                pod => web(&lab, &[pod]),
            };
            manifests.apply(&service)?;
            agent.settle()?;
            for (family, (there, _)) in Family::ALL.into_iter().zip(SECOND) {
                let to = SocketAddr::new(there.parse::<IpAddr>()?, NODE_PORT);
                // Straight over the second uplink, then from the address on the first.
                let own = outside.address(family);
                for source in ["", &format!(" src {own}")] {
                    outside.ip(&[format!("route replace {there} dev eth1{source}")])?;
                    let clients = reaches(outside, to, backend)
                        .with_context(|| format!("{wiring:?}, by eth1{source}"))?;
                    if backend == "a" && !source.is_empty() {
                        // Delivered here: no masquerade.
                        assert_eq!(clients, one(own));
                    }
                }
                reaches(outside, node_port(node, family), backend)?;
            }
        }
        lab.check()?;
    }
    Ok(())
}

#[test]
fn both_planes_share_the_work_and_no_packet_is_translated_twice() -> Result<()> {
    for wiring in Wiring::ALL {
        let (lab, manifests) = start(wiring, Offload::Off)?;
        let node = lab.node("a");
        manifests.apply(&web(&lab, &["near"]))?;
        let agent = Agent::start_with(node, &manifests, &["--packet-plane=on"])?;
        agent.settle()?;
        for family in Family::ALL {
            for from in [lab.place("pod"), lab.place("near"), &**node] {
                for to in [cluster(family), node_port(node, family)] {
                    let (who, _) = seen(&answers(from, to).with_context(|| format!("{wiring:?}"))?);
                    assert_eq!(who, one("near".to_owned()), "{} to {to}", from.name());
                }
            }
        }
        for of_packets in [Reason::FlowOpened, Reason::FlowKept, Reason::ReplyRestored, Reason::Masqueraded] {
            assert_eq!(count(node, of_packets)?, 0, "{of_packets:?} though sockets were served");
        }
        for family in Family::ALL {
            reaches(lab.place("outside"), node_port(node, family), "near")?;
        }
        // Two connections, and two sockets that sent datagrams, in each family.
        assert_eq!(count(node, Reason::FlowOpened)?, 8);
        let there = count(node, Reason::FlowOpened)? + count(node, Reason::FlowKept)?;
        assert_eq!(count(node, Reason::Masqueraded)?, there, "each packet has one of each on its way there");
        let back = count(node, Reason::ReplyRestored)?;
        assert_eq!(count(node, Reason::Unmasqueraded)?, back, "and back");
        lab.check()?;
    }
    Ok(())
}
