//! The packet plane on devices that are no Ethernet, and on devices where others have programs too.

mod hooks;
mod traffic;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hooks::{Side, run};
use proxy_lab::foreign::Port;
use proxy_lab::{Family, Node, Offload, Tunnel, Wiring, wait};
use serde_json::Value;
use traffic::{NODE_PORT, PACKETS, TARGET, cluster, near_and_far, one, reaches, serve, start, web};
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

/// `BPF_F_BEFORE` and `BPF_F_AFTER` of linux/bpf.h.
const BPF_F_BEFORE: u32 = 1 << 3;
const BPF_F_AFTER: u32 = 1 << 4;

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

/// As `vipr status --devices` has the sides of a device: `[ingress, egress]`, each as `by PLACE of ALL`.
fn attached(node: &Node, device: &str) -> Result<[String; 2]> {
    let status = node.vipr_output(&["status", "-o", "json"])?;
    let status: Value = serde_json::from_slice(&status.stdout)?;
    let all = status["devices"].as_array().context("devices")?;
    let row = all.iter().find(|row| row["name"] == device).with_context(|| format!("{device} in {all:?}"))?;
    Ok(["ingress", "egress"].map(|side| {
        let side = &row[side];
        format!("{} {} of {}", side["attachedBy"].as_str().unwrap_or("not"), side["place"], side["of"])
    }))
}

/// Waits until a device's programs are so, within a few seconds of what was done to them: the looks at everything are
/// minutes apart.
fn until_attached(node: &Node, device: &str, sides: [&str; 2]) -> Result<()> {
    const SOON: Duration = Duration::from_secs(5);
    wait::until_within(SOON, &format!("{device} has {sides:?}"), || {
        let found = attached(node, device)?;
        ensure!(found == sides, "{found:?}");
        Ok(())
    })
}

#[test]
fn what_others_do_to_the_programs_of_devices_is_put_right_within_seconds() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
    let node = lab.node("a");
    let agent = serve(node, &manifests, &[web(&lab, &["near"])])?;
    let plain = ["tcx 1 of 1", "tcx 1 of 1"];
    until_attached(node, "eth0", plain)?;
    let (index, first) = (hooks::index_of(node, "eth0")?, |side: Side| side.attach_type());
    let program = Port::Destination.dropped_by_program(1)?;
    let attach =
        |side: Side, order| node.enter(|| sys::link_create_tcx(program.as_fd(), index, first(side), order));

    // Another program, of tcx, behind ours at ingress, and another before it at egress.
    let behind = attach(Side::Ingress, BPF_F_AFTER)??;
    let before = {
        let other = Port::Source.dropped_by_program(1)?;
        node.enter(|| sys::link_create_tcx(other.as_fd(), index, first(Side::Egress), BPF_F_BEFORE))??
    };
    until_attached(node, "eth0", ["tcx 2 of 2", "tcx 1 of 2"])?;
    sys::link_detach(behind.as_fd())?;
    sys::link_detach(before.as_fd())?;
    until_attached(node, "eth0", plain)?;

    // A filter of clsact at ingress: ours becomes one too, behind it, and a link again when that is gone.
    let [code, _] = Port::Destination.dropped_by_bytecode(1);
    run(node, "tc qdisc add dev eth0 clsact")?;
    let place = ["filter", "add", "dev", "eth0", "ingress", "prio", "7", "protocol", "ip"];
    node.run("tc", &[&place[..], &["bpf", "da", "bytecode", &code]].concat())?;
    until_attached(node, "eth0", ["clsact 2 of 2", "tcx 1 of 1"])?;
    run(node, "tc filter del dev eth0 ingress prio 7")?;
    until_attached(node, "eth0", plain)?;

    // Our link is detached; the qdisc with our filter is removed.
    let pin = node.pin_path().join(format!("links/dev/{index}-ingress"));
    sys::link_detach(sys::object_get(&pin)?.as_fd())?;
    until_attached(node, "eth0", plain)?;
    run(node, "tc qdisc add dev eth0 clsact")?;
    node.run("tc", &[&place[..], &["bpf", "da", "bytecode", &code]].concat())?;
    until_attached(node, "eth0", ["clsact 2 of 2", "tcx 1 of 1"])?;
    run(node, "tc qdisc del dev eth0 clsact")?;
    until_attached(node, "eth0", plain)?;

    // Programs at the cgroup are looked at, too.
    let pin = node.pin_path().join("links/connect4");
    sys::link_detach(sys::object_get(&pin)?.as_fd())?;
    wait::until_within(Duration::from_secs(5), "connect4 is attached", || {
        let link = sys::link_state(sys::object_get(&pin)?.as_fd())?;
        ensure!(link.cgroup != 0, "{link:?}");
        Ok(())
    })?;
    for family in Family::ALL {
        reaches(lab.place("outside"), SocketAddr::new(node.address(family), NODE_PORT), "near")?;
    }
    wait::until("the report counts what was repaired", || {
        let repaired = agent.report()?.repaired;
        ensure!(repaired >= 6, "{repaired}: {}", agent.log());
        Ok(())
    })?;
    let status = node.vipr(&["status"])?;
    ensure!(status.contains("3 devices: 3 by tcx, no problem"), "{status}");
    let devices = node.vipr(&["status", "--devices"])?;
    ensure!(devices.contains("eth0") && devices.contains("tcx, 1 of 1"), "{devices}");
    lab.check()
}

#[test]
fn without_an_agent_status_names_the_device_whose_program_is_not_in_its_place() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
    let node = lab.node("a");
    let agent = serve(node, &manifests, &[web(&lab, &["near"])])?;
    ensure!(agent.terminate()?.success());
    let program = Port::Destination.dropped_by_program(1)?;
    let (index, side) = (hooks::index_of(node, "eth0")?, Side::Ingress.attach_type());
    let _link = node.enter(|| sys::link_create_tcx(program.as_fd(), index, side, BPF_F_AFTER))??;
    let output = node.vipr_output(&["status"])?;
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(4), "{text}");
    ensure!(text.contains("3 devices: 3 by tcx, 1 problem"), "{text}");
    ensure!(text.contains("the program at ingress is not in its place among others"), "{text}");
    ensure!(!text.contains("pod0"), "only what has a problem: {text}");
    Ok(())
}
