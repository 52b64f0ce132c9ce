//! The packet plane on devices that are no Ethernet, and on devices where others have programs too.

mod hooks;
mod traffic;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hooks::{Side, run};
use proxy_lab::foreign::Port;
use proxy_lab::{Family, Node, Offload, Tunnel, Wiring};
use traffic::{NODE_PORT, PACKETS, TARGET, cluster, near_and_far, one, reaches, start, web};
use vipr::dataplane::sys;

#[test]
fn a_client_behind_a_device_without_link_layer_reaches_a_node_port() -> Result<()> {
    for wiring in Wiring::ALL {
        for offload in [Offload::Off, Offload::On] {
            let (lab, manifests) = start(wiring, offload)?;
            let (node, outside) = (lab.node("a"), lab.place("outside"));
            let _tunnel = Tunnel::between(node, outside, "tun0")?;
            for (place, number) in [(&**node, "11"), (outside, "101")] {
                place.ip(&[
                    "link set tun0 up".to_owned(),
                    format!("address add 192.168.99.{number}/24 dev tun0"),
                    format!("address add fd00:99::{number}/64 dev tun0 nodad"),
                ])?;
            }
            near_and_far(
                &lab,
                &manifests,
                &PACKETS,
                |pod| web(&lab, &[pod]),
                |endpoint| {
                    for address in ["192.168.99.11", "fd00:99::11"] {
                        let to = SocketAddr::new(address.parse::<IpAddr>()?, NODE_PORT);
                        reaches(outside, to, endpoint)?;
                    }
                    Ok(())
                },
            )
            .with_context(|| format!("{wiring:?}, {offload:?}"))?;
            lab.check()?;
        }
    }
    Ok(())
}

/// Programs of somebody else's that drop what is translated before they meet it, and let everything else on.
enum Foreign {
    Clsact,
    Tcx,
}

impl Foreign {
    fn attach(&self, node: &Node, device: &str) -> Result<Vec<OwnedFd>> {
        let sides = [(Side::Ingress, Port::Destination), (Side::Egress, Port::Source)];
        match self {
            Self::Clsact => {
                run(node, &format!("tc qdisc add dev {device} clsact"))?;
                for ((_, port), side) in sides.into_iter().zip(["ingress", "egress"]) {
                    for (priority, code) in port.dropped_by_bytecode(TARGET).into_iter().enumerate() {
                        let (protocol, priority) = (["ip", "ipv6"][priority], (7 + priority).to_string());
                        let place = ["filter", "add", "dev", device, side, "prio", &priority];
                        let what = ["protocol", protocol, "bpf", "da", "bytecode", &code];
                        node.run("tc", &[&place[..], &what].concat())?;
                    }
                }
                Ok(Vec::new())
            }
            Self::Tcx => {
                let index = hooks::index_of(node, device)?;
                let attach = |(side, port): (Side, Port)| -> Result<OwnedFd> {
                    let program = port.dropped_by_program(TARGET)?;
                    Ok(node.enter(|| sys::link_create_tcx(program.as_fd(), index, side.attach_type(), 0))??)
                };
                sides.into_iter().map(attach).collect()
            }
        }
    }
}

/// On the uplink and on each pod's device somebody else's programs are first at ingress and last at egress, as they would
/// be without vipr: they never meet a pod's port where kube-proxy's netfilter would not have been yet.
fn others_meet_what_they_met_before(foreign: &Foreign) -> Result<()> {
    for wiring in Wiring::ALL {
        let (lab, manifests) = start(wiring, Offload::Off)?;
        let node = lab.node("a");
        let mut links = Vec::new();
        for device in ["eth0", "pod0", "pod1"] {
            links.extend(foreign.attach(node, device)?);
        }
        // They do drop: nobody gets to a pod's port directly.
        for family in Family::ALL {
            let datagrams = lab.place("pod").datagrams(family)?;
            datagrams.socket().set_read_timeout(Some(Duration::from_millis(200)))?;
            let to = SocketAddr::new(lab.place("near").address(family), TARGET);
            ensure!(datagrams.ask_to(to, "direct").is_err(), "{wiring:?}: {to} answered");
        }
        near_and_far(
            &lab,
            &manifests,
            &PACKETS,
            |pod| web(&lab, &[pod]),
            |endpoint| {
                for family in Family::ALL {
                    let to = SocketAddr::new(node.address(family), NODE_PORT);
                    reaches(lab.place("outside"), to, endpoint)?;
                    let clients = reaches(lab.place("pod"), cluster(family), endpoint)?;
                    assert_eq!(clients, one(lab.place("pod").address(family)));
                }
                Ok(())
            },
        )
        .with_context(|| format!("{wiring:?}"))?;
        drop(links);
        lab.check()?;
    }
    Ok(())
}

#[test]
fn filters_of_another_cni_in_clsact_meet_packets_as_they_are_outside_the_node() -> Result<()> {
    others_meet_what_they_met_before(&Foreign::Clsact)
}

#[test]
fn programs_of_others_in_tcx_meet_packets_as_they_are_outside_the_node() -> Result<()> {
    others_meet_what_they_met_before(&Foreign::Tcx)
}
