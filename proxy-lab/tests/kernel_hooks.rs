//! Programs on devices as a kernel without tcx has them: filters of the clsact qdisc, in their place among others, that
//! outlive the agent.

mod hooks;
mod stage;

use anyhow::{Result, ensure};
use hooks::{Side, filters, index_of, run, tcx};
use proxy_common::layout::{Device, DeviceRole, Pods};
use proxy_lab::plane::Plane;
use proxy_lab::{Lab, Node};
use stage::{activate, features, lab, open, options_of};
use vipr::dataplane::probe::Features;
use vipr::dataplane::{Dataplane, Options, cleanup};
use vipr::plan::Step;

const DEVICE: Device = Device {
    mac: [0; 3],
    bridge_mac: [0; 3],
    header: 14,
    role: DeviceRole::Single,
    pods: Pods::None,
    version: Device::VERSION,
    masquerade_v4: [0; 16],
    masquerade_v6: [0; 16],
    host: 0,
    choices: 0,
};

/// A node with a pair of devices and, of what can be missing, no tcx.
fn without_tcx() -> Result<(Lab, Options, Features, u32)> {
    let lab = lab();
    let node = lab.node("a");
    let lines = ["link add probe0 type veth peer name probe1", "link set probe0 up", "link set probe1 up"];
    node.ip(&lines.map(str::to_owned))?;
    let options = Options { packet_plane: true, ..options_of(&lab) };
    let features = Features { tcx: false, ..features(&lab)[0].1 };
    let index = index_of(node, "probe0")?;
    Ok((lab, options, features, index))
}

fn attach(plane: &mut Plane, lab: &Lab, index: u32) -> Result<()> {
    plane.apply(&[
        Step::PutDevice { index, device: DEVICE },
        Step::Attach { index, name: "probe0".to_owned() },
    ])?;
    activate(plane, lab);
    Ok(())
}

/// The names of filters at both sides.
fn both(node: &Node) -> Result<[Vec<String>; 2]> {
    Ok([filters(node, "probe0", Side::Ingress)?, filters(node, "probe0", Side::Egress)?])
}

fn program_of(node: &Node, side: &str) -> Result<u64> {
    let text = run(node, &format!("tc -json filter show dev probe0 {side}"))?;
    let all: Vec<serde_json::Value> = serde_json::from_str(&text)?;
    let ours = all.iter().filter(|filter| filter["options"]["bpf_name"] == side);
    let ids: Vec<_> = ours.filter_map(|filter| filter["options"]["prog"]["id"].as_u64()).collect();
    ensure!(ids.len() == 1, "{text}");
    Ok(ids[0])
}

#[test]
fn a_filter_is_replaced_in_place_and_goes_with_the_qdisc_that_came_for_it() -> Result<()> {
    let (lab, options, features, index) = without_tcx()?;
    let node = lab.node("a");
    let mut plane = open(&lab, &options, features);
    attach(&mut plane, &lab, index)?;
    assert_eq!(both(node)?, [["ingress"], ["egress"]]);
    ensure!(tcx(node, "probe0", Side::Ingress)?.is_empty() && tcx(node, "probe0", Side::Egress)?.is_empty());
    let before = [program_of(node, "ingress")?, program_of(node, "egress")?];
    drop(plane);
    assert_eq!(both(node)?, [["ingress"], ["egress"]], "without an agent they stay");

    let mut plane = open(&lab, &options, features);
    assert!(plane.read()?.attached.contains(&index), "recognised after a restart");
    activate(&mut plane, &lab);
    assert_eq!(both(node)?, [["ingress"], ["egress"]]);
    let after = [program_of(node, "ingress")?, program_of(node, "egress")?];
    ensure!(before.iter().all(|id| !after.contains(id)), "{before:?} {after:?}");

    node.enter(|| plane.apply(&[Step::Detach { index }, Step::DeleteDevice { index }]))??;
    let qdiscs = run(node, "tc qdisc show dev probe0")?;
    ensure!(!qdiscs.contains("clsact"), "{qdiscs}");
    assert!(plane.read()?.attached.is_empty());
    Ok(())
}

#[test]
fn filters_stand_behind_all_others_at_ingress_and_before_them_at_egress() -> Result<()> {
    let (lab, options, features, index) = without_tcx()?;
    let node = lab.node("a");
    run(node, "tc qdisc add dev probe0 clsact")?;
    for (side, priority) in [("ingress", 49152), ("egress", 1)] {
        hooks::filter(node, "probe0", side, priority)?;
    }
    let mut plane = open(&lab, &options, features);
    attach(&mut plane, &lab, index)?;
    assert_eq!(both(node)?, [["bpf", "ingress"], ["egress", "bpf"]]);
    let lost = node.enter(|| plane.kernel().verify())??;
    assert_eq!(lost, Vec::<String>::new());

    // Of one priority the newest runs first.
    hooks::filter(node, "probe0", "egress", 1)?;
    let lost = node.enter(|| plane.kernel().verify())??;
    assert_eq!(lost, ["the program at egress of probe0 is not in its place among others"]);
    activate(&mut plane, &lab);
    assert_eq!(both(node)?[1], ["egress", "bpf", "bpf"]);
    run(node, "tc filter del dev probe0 ingress prio 65535")?;
    let lost = node.enter(|| plane.kernel().verify())??;
    assert_eq!(lost, ["the program at ingress of probe0 was detached"]);
    activate(&mut plane, &lab);
    assert_eq!(both(node)?[0], ["bpf", "ingress"]);

    drop(plane);
    node.enter(|| cleanup(&options.pin_path))??;
    let (ingress, egress) = (["bpf"], ["bpf", "bpf"]);
    assert_eq!(both(node)?, [&ingress[..], &egress[..]], "what is others' stays");
    Ok(())
}

#[test]
fn one_device_that_takes_no_program_keeps_no_other_from_its_own() -> Result<()> {
    let (lab, options, features, index) = without_tcx()?;
    let node = lab.node("a");
    run(node, "tc qdisc add dev probe1 ingress")?;
    let mut plane = open(&lab, &options, features);
    let other = index_of(node, "probe1")?;
    // One that went while it was being told of is no failure.
    let gone = 9999;
    for (index, name) in [(other, "probe1"), (gone, "gone"), (index, "probe0")] {
        let attach = Step::Attach { index, name: name.to_owned() };
        plane.apply(&[Step::PutDevice { index, device: DEVICE }, attach])?;
    }
    let error = node.enter(|| plane.activate())?.unwrap_err();
    let error = format!("{error:#}");
    ensure!(error.contains("egress") && error.contains("`ingress` is somebody else's"), "{error}");
    assert_eq!(both(node)?, [["ingress"], ["egress"]]);
    run(node, "tc qdisc del dev probe1 ingress")?;
    activate(&mut plane, &lab);
    assert_eq!(filters(node, "probe1", Side::Egress)?, ["egress"]);
    Ok(())
}
