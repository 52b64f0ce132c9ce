//! What is attached to a node's devices, by the eyes of `bpftool`, `tc` and the kernel itself.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::os::fd::{AsFd, IntoRawFd};

use anyhow::{Context, Result, ensure};
use proxy_lab::{Node, wait};
use serde_json::Value;
use vipr::dataplane::sys;

pub(crate) use vipr::dataplane::tc::filters::Side;

/// A command with its arguments.
pub(crate) fn run(node: &Node, line: &str) -> Result<String> {
    let mut words = line.split(' ');
    node.run(words.next().unwrap_or_default(), &words.collect::<Vec<_>>())
}

fn json(node: &Node, line: &str) -> Result<Vec<Value>> {
    let text = run(node, line)?;
    serde_json::from_str(&text).with_context(|| format!("{line}: {text}"))
}

/// The node's devices.
pub(crate) fn devices(node: &Node) -> Result<Vec<String>> {
    let names = json(node, "ip -json link show")?.into_iter();
    Ok(names.filter_map(|link| Some(link["ifname"].as_str()?.to_owned())).collect())
}

pub(crate) fn index_of(node: &Node, device: &str) -> Result<u32> {
    let link = json(node, &format!("ip -json link show dev {device}"))?;
    let index = link.first().and_then(|link| link["ifindex"].as_u64()).context("an ifindex")?;
    Ok(index.try_into()?)
}

/// Ids of programs and of their links, in the order in which they run.
pub(crate) fn ids(node: &Node, device: &str, side: Side) -> Result<Vec<(u32, u32)>> {
    let index = index_of(node, device)?;
    Ok(node.enter(|| sys::tcx_query(index, side.attach_type()))??)
}

/// The names of the programs in tcx links, in their order.
pub(crate) fn tcx(node: &Node, device: &str, side: Side) -> Result<Vec<String>> {
    ids(node, device, side)?.into_iter().map(|(program, _)| name(node, program)).collect()
}

fn name(node: &Node, program: u32) -> Result<String> {
    let text = run(node, &format!("bpftool --json prog show id {program}"))?;
    let program: Value = serde_json::from_str(&text)?;
    Ok(program["name"].as_str().context("a program without a name")?.to_owned())
}

/// Lets a device have a filter of somebody else's, which lets every packet on to the next.
pub(crate) fn filter(node: &Node, device: &str, side: &str, priority: u16) -> Result<()> {
    let priority = priority.to_string();
    let place = ["filter", "add", "dev", device, side, "prio", &priority, "protocol", "all"];
    node.run("tc", &[&place[..], &["bpf", "bytecode", "1,6 0 0 0,", "flowid", "1:1"]].concat())?;
    Ok(())
}

/// The names of a device's clsact filters, in the order in which they run; those without one by their kind.
pub(crate) fn filters(node: &Node, device: &str, side: Side) -> Result<Vec<String>> {
    let side = if side == Side::Ingress { "ingress" } else { "egress" };
    let all = json(node, &format!("tc -json filter show dev {device} {side}"))?.into_iter();
    // Priorities stand there by themselves, too.
    let all = all.filter(|filter| filter["options"].is_object());
    let name = |filter: Value| match filter["options"]["bpf_name"].as_str() {
        Some(name) => name.to_owned(),
        None => filter["kind"].as_str().unwrap_or_default().to_owned(),
    };
    Ok(all.map(name).collect())
}

/// Waits until a device has both programs by tcx links, and nothing else.
pub(crate) fn until_hooked(node: &Node, device: &str) -> Result<()> {
    wait::until(&format!("{device} has both programs"), || {
        let found = (tcx(node, device, Side::Ingress)?, tcx(node, device, Side::Egress)?);
        ensure!(found == (vec!["ingress".to_owned()], vec!["egress".to_owned()]), "{found:?}");
        Ok(())
    })
}

/// Attaches a program (vipr's of the other side, which does not matter) in the place that ours should have. Gives the
/// link's id; it lives as long as this process, or the device.
pub(crate) fn intrude(node: &Node, device: &str, side: Side) -> Result<u32> {
    let other = if side == Side::Ingress { Side::Egress } else { Side::Ingress };
    // The same on another device: this one may have been intruded on already.
    let program = ids(node, "eth0", other)?.first().context("a program")?.0;
    let index = index_of(node, device)?;
    node.enter(|| {
        let program = sys::program_by_id(program)?;
        let link = sys::link_create_tcx(program.as_fd(), index, side.attach_type(), side.order())?;
        let id = sys::link_state(link.as_fd())?.id;
        let _ = link.into_raw_fd();
        Ok(id)
    })?
}

/// Takes the program out of its pinned link.
pub(crate) fn tear_off(node: &Node, index: u32, side: Side) -> Result<()> {
    let side = if side == Side::Ingress { "ingress" } else { "egress" };
    let link = sys::object_get(&node.pin_path().join(format!("links/dev/{index}-{side}")))?;
    Ok(sys::link_detach(link.as_fd())?)
}
