//! The packet plane's programs on a node's real devices: attached, in their place, followed, replaced, and gone.

mod hooks;

use anyhow::{Result, ensure};
use hooks::{Side, devices, filters, index_of, run, tcx, until_hooked};
use proxy_lab::{Agent, Lab, Manifests, Node, Topology, Wiring, wait};

const ON: &str = "--packet-plane=on";
const OFTEN: &str = "--read-back-interval=200ms";

fn start(wiring: Wiring) -> Result<(Lab, Manifests)> {
    let lab = Lab::start(&Topology::new(wiring).node("a", &["a1"]))?;
    let manifests = Manifests::new(&lab)?;
    Ok((lab, manifests))
}

/// A pair of devices that nothing else uses.
fn probes(node: &Node) -> Result<()> {
    let lines = ["link add probe0 type veth peer name probe1", "link set probe0 up", "link set probe1 up"];
    node.ip(&lines.map(str::to_owned))
}

fn links_of(node: &Node, index: u32) -> Vec<String> {
    let entries = std::fs::read_dir(node.pin_path().join("links/dev")).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(&format!("{index}-"))).collect()
}

#[test]
fn a_service_that_answers_the_node_for_the_first_time_is_served_to_packets_too() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed)?;
    let node = lab.node("a");
    let agent = Agent::start_with(node, &manifests, &[ON])?;
    agent.settle()?;
    for device in devices(node)?.into_iter().filter(|name| name != "lo") {
        for side in [Side::Ingress, Side::Egress] {
            ensure!(!tcx(node, &device, side)?.is_empty(), "no program at {side:?} of {device}");
        }
    }
    Ok(())
}

#[test]
fn devices_that_are_there_that_come_and_that_go_are_followed() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed)?;
    let node = lab.node("a");
    let agent = Agent::start_with(node, &manifests, &[ON, "--device-exclude=other*,x"])?;
    agent.settle()?;
    let pods: Vec<_> = devices(node)?.into_iter().filter(|name| name != "lo").collect();
    ensure!(pods.len() >= 2, "an uplink and a pod's: {pods:?}");
    for device in &pods {
        until_hooked(node, device)?;
    }
    ensure!(tcx(node, "lo", Side::Ingress)?.is_empty(), "loopback is left alone");

    probes(node)?;
    until_hooked(node, "probe0")?;
    until_hooked(node, "probe1")?;
    let index = index_of(node, "probe0")?;
    let told = node.pinned_map("devices")?;
    let entry = told.as_array().and_then(|all| all.iter().find(|entry| entry["formatted"]["key"] == index));
    let entry = entry.unwrap_or_else(|| panic!("{told}"));
    assert_eq!(entry["formatted"]["value"]["header"], 14, "{entry}");
    assert_eq!(entry["formatted"]["value"]["role"], "Single", "{entry}");

    node.ip(&["link add other0 type veth peer name seen0".to_owned()])?;
    until_hooked(node, "seen0")?;
    ensure!(tcx(node, "other0", Side::Ingress)?.is_empty(), "it was excluded");

    node.ip(&["link del probe0".to_owned()])?;
    wait::until("the pins of a deleted device go", || {
        let left = links_of(node, index);
        ensure!(left.is_empty(), "{left:?}");
        let told = node.pinned_map("devices")?;
        ensure!(!told.to_string().contains(&format!("\"key\":{index},")), "{told}");
        Ok(())
    })?;
    ensure!(agent.is_running());
    Ok(())
}

#[test]
fn a_bridge_and_its_ports_have_programs_and_a_port_knows_both_mac_addresses() -> Result<()> {
    let (lab, manifests) = start(Wiring::Bridged)?;
    let node = lab.node("a");
    let agent = Agent::start_with(node, &manifests, &[ON, "--cluster-cidr=10.244.0.0/16"])?;
    agent.settle()?;
    for device in devices(node)?.into_iter().filter(|name| name != "lo") {
        until_hooked(node, &device)?;
    }
    let told = node.pinned_map("devices")?;
    let all = told.as_array().cloned().unwrap_or_default();
    let roles: Vec<_> = all.iter().map(|entry| entry["formatted"]["value"]["role"].clone()).collect();
    ensure!(
        roles.iter().any(|role| role == "BridgePort") && roles.iter().any(|role| role == "Single"),
        "{told}"
    );
    let pods = all.iter().all(|entry| entry["formatted"]["value"]["pods"] == "InRange");
    ensure!(pods && node.pinned_map("source_ranges")?.as_array().is_some_and(|ranges| ranges.len() == 1));
    Ok(())
}

#[test]
fn programs_outlive_the_agent_and_are_replaced_in_their_links() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed)?;
    let node = lab.node("a");
    probes(node)?;
    let agent = Agent::start_with(node, &manifests, &[ON])?;
    agent.settle()?;
    until_hooked(node, "probe0")?;
    let before = [Side::Ingress, Side::Egress].map(|side| hooks::ids(node, "probe0", side).unwrap());
    agent.kill()?;
    let left = [Side::Ingress, Side::Egress].map(|side| hooks::ids(node, "probe0", side).unwrap());
    assert_eq!(left, before, "without an agent everything stays");
    // While nobody looks, one device goes and another comes.
    let gone = index_of(node, "probe0")?;
    node.ip(&["link del probe0".to_owned(), "link add late0 type veth peer name late1".to_owned()])?;
    let uplink = hooks::ids(node, "eth0", Side::Ingress)?;

    let agent = Agent::start_with(node, &manifests, &[ON])?;
    agent.settle()?;
    until_hooked(node, "late0")?;
    let now = hooks::ids(node, "eth0", Side::Ingress)?;
    let ([(old, link)], [(new, same)]) = (&uplink[..], &now[..]) else { panic!("{uplink:?} {now:?}") };
    assert!(old != new && link == same, "another program in the same link: {uplink:?} {now:?}");
    wait::until("the pins of a device that went meanwhile go", || {
        ensure!(links_of(node, gone).is_empty());
        Ok(())
    })?;

    ensure!(agent.terminate()?.success());
    let agent = Agent::start_with(node, &manifests, &["--packet-plane=off"])?;
    agent.settle()?;
    wait::until("without a packet plane there are no programs", || {
        ensure!(tcx(node, "eth0", Side::Ingress)?.is_empty() && tcx(node, "eth0", Side::Egress)?.is_empty());
        Ok(())
    })
}

#[test]
fn programs_are_put_back_in_their_place_when_they_are_lost_or_others_come() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed)?;
    let node = lab.node("a");
    probes(node)?;
    let agent = Agent::start_with(node, &manifests, &[ON, OFTEN])?;
    agent.settle()?;
    until_hooked(node, "probe0")?;
    // Somebody else's come after ours at ingress and before ours at egress.
    let others = [Side::Ingress, Side::Egress].map(|side| hooks::intrude(node, "probe0", side).unwrap());
    wait::until("ours are last at ingress and first at egress again", || {
        let (at_ingress, at_egress) =
            (hooks::ids(node, "probe0", Side::Ingress)?, hooks::ids(node, "probe0", Side::Egress)?);
        let ([_, last], [first, _]) = (&at_ingress[..], &at_egress[..]) else {
            anyhow::bail!("{at_ingress:?} {at_egress:?}")
        };
        ensure!(
            others.iter().all(|other| *other != last.1 && *other != first.1),
            "{at_ingress:?} {at_egress:?}"
        );
        Ok(())
    })?;
    hooks::tear_off(node, index_of(node, "probe0")?, Side::Egress)?;
    wait::until("what was detached is attached again", || {
        let all = hooks::ids(node, "probe0", Side::Egress)?;
        ensure!(all.len() == 2, "{all:?}");
        Ok(())
    })?;
    wait::until("it is counted", || {
        let (_, metrics) = agent.get(10249, "/metrics")?;
        let repaired = metrics.lines().find(|line| line.starts_with("vipr_repaired"));
        ensure!(repaired.is_some_and(|line| !line.ends_with(" 0")), "{repaired:?}");
        Ok(())
    })
}

#[test]
fn behind_somebody_elses_clsact_filter_ours_is_a_filter_too() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed)?;
    let node = lab.node("a");
    probes(node)?;
    run(node, "tc qdisc add dev probe0 clsact")?;
    hooks::filter(node, "probe0", "ingress", 7)?;
    let agent = Agent::start_with(node, &manifests, &[ON, OFTEN])?;
    agent.settle()?;
    until_hooked(node, "probe1")?;
    wait::until("a filter of ours stands behind the other", || {
        let all = filters(node, "probe0", Side::Ingress)?;
        ensure!(all.len() == 2 && all[1] == "ingress", "{all:?}");
        ensure!(tcx(node, "probe0", Side::Ingress)?.is_empty(), "and no link before it");
        ensure!(tcx(node, "probe0", Side::Egress)? == ["egress"], "before all filters there is a link");
        Ok(())
    })?;

    // One that comes later is noticed, too; and one that goes.
    run(node, "tc qdisc add dev probe1 clsact")?;
    hooks::filter(node, "probe1", "ingress", 49152)?;
    wait::until("ours moves behind it", || {
        let all = filters(node, "probe1", Side::Ingress)?;
        ensure!(
            all.len() == 2 && all[1] == "ingress" && tcx(node, "probe1", Side::Ingress)?.is_empty(),
            "{all:?}"
        );
        Ok(())
    })?;
    run(node, "tc filter del dev probe0 ingress prio 7")?;
    until_hooked(node, "probe0")?;
    wait::until("nothing of ours is left in clsact", || {
        let all = filters(node, "probe0", Side::Ingress)?;
        ensure!(all.is_empty(), "{all:?}");
        Ok(())
    })?;

    ensure!(agent.terminate()?.success());
    let all = filters(node, "probe1", Side::Ingress)?;
    assert_eq!(all.len(), 2, "a filter outlives the agent: {all:?}");
    node.vipr(&["cleanup"])?;
    for device in devices(node)? {
        for side in [Side::Ingress, Side::Egress] {
            ensure!(tcx(node, &device, side)?.is_empty(), "{device} has programs at {side:?}");
        }
    }
    let left = filters(node, "probe1", Side::Ingress)?;
    ensure!(left.len() == 1 && left[0] != "ingress", "only the other's is left: {left:?}");
    ensure!(!node.pin_path().exists());
    Ok(())
}
