//! Hosts whose FORWARD chain drops by default: what a client outside needs to get through, as with kube-proxy.

mod hooks;
mod traffic;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hooks::run;
use proxy_lab::{Agent, Family, Lab, Manifests, Node, Offload, Wiring};
use serde_json::json;
use traffic::{NODE_PORT, PACKETS, cluster, near_and_far, reaches, start, web};

/// What the CNI plugin `firewall` has beside the policy: pods may begin, and be answered.
fn firewall(node: &Node) -> Result<()> {
    for (tables, pods) in [("iptables", "10.244.0.0/16"), ("ip6tables", "fd00:244::/32")] {
        run(node, &format!("{tables} -P FORWARD DROP"))?;
        run(
            node,
            &format!("{tables} -A FORWARD -d {pods} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"),
        )?;
        run(node, &format!("{tables} -A FORWARD -s {pods} -j ACCEPT"))?;
    }
    Ok(())
}

/// The line of docs/operations.md: kube-proxy's own rule.
fn accept_marked(node: &Node) -> Result<()> {
    for tables in ["iptables", "ip6tables"] {
        run(node, &format!("{tables} -I FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT"))?;
    }
    Ok(())
}

fn silent(lab: &Lab, from: &str, to: SocketAddr) -> Result<()> {
    let datagrams = lab.place(from).datagrams(Family::of(to.ip()))?;
    datagrams.socket().set_read_timeout(Some(Duration::from_millis(200)))?;
    let answer = datagrams.ask_to(to, "anybody?");
    ensure!(answer.is_err(), "{from} to {to}: {answer:?}");
    Ok(())
}

fn node_port(node: &Node, family: Family) -> SocketAddr {
    SocketAddr::new(node.address(family), NODE_PORT)
}

/// The agents of both nodes' hosts drop what is forwarded; only `a` has an agent.
fn walled(wiring: Wiring) -> Result<(Lab, Manifests)> {
    let (lab, manifests) = start(wiring, Offload::Off)?;
    firewall(lab.node("a"))?;
    Ok((lab, manifests))
}

#[test]
fn kube_proxys_rule_for_its_mark_lets_masqueraded_clients_through_a_forward_chain_that_drops() -> Result<()> {
    for wiring in Wiring::ALL {
        let (lab, manifests) = walled(wiring)?;
        let node = lab.node("a");
        accept_marked(node)?;
        near_and_far(
            &lab,
            &manifests,
            &PACKETS,
            |pod| web(&lab, &[pod]),
            |endpoint| {
                for family in Family::ALL {
                    reaches(lab.place("outside"), node_port(node, family), endpoint)?;
                    reaches(lab.place("pod"), cluster(family), endpoint)?;
                }
                Ok(())
            },
        )
        .with_context(|| format!("{wiring:?}"))?;
        // Later packets are accepted as those of a known connection, and bear no mark.
        for tables in ["iptables", "ip6tables"] {
            let rules = run(node, &format!("{tables} -nvxL FORWARD"))?;
            let packets = |what: &str| {
                let rule = rules.lines().find(|rule| rule.contains(what))?;
                rule.split_whitespace().next()?.parse::<u64>().ok()
            };
            let (marked, known) = (packets("mark match"), packets("ESTABLISHED"));
            ensure!(marked > Some(0) && known > marked, "{wiring:?}: {rules}");
        }
        lab.check()?;
    }
    Ok(())
}

#[test]
fn without_that_rule_they_are_dropped_and_a_table_of_ones_own_can_not_let_them_through() -> Result<()> {
    let (lab, manifests) = walled(Wiring::Routed)?;
    let node = lab.node("a");
    manifests.apply(&web(&lab, &["near"]))?;
    let agent = Agent::start_with(node, &manifests, &PACKETS)?;
    agent.settle()?;
    let unheard =
        || Family::ALL.into_iter().try_for_each(|family| silent(&lab, "outside", node_port(node, family)));
    unheard()?;
    // A verdict of one base chain does not spare a packet the next one at the same hook.
    for priority in ["-10", "10"] {
        let table = format!(
            "table inet own {{ chain forward {{ type filter hook forward priority {priority}; policy accept; meta mark & 0x4000 != 0 counter accept; }}; }}"
        );
        node.run("nft", &[&table])?;
        unheard().with_context(|| format!("priority {priority}"))?;
        if priority == "-10" {
            let rules = run(node, "nft list table inet own")?;
            ensure!(!rules.contains("packets 0"), "it was accepted there: {rules}");
        }
        run(node, "nft delete table inet own")?;
    }
    accept_marked(node)?;
    for family in Family::ALL {
        reaches(lab.place("outside"), node_port(node, family), "near")?;
    }
    lab.check()
}

/// What is not masqueraded bears no mark, nor does anything in mode nftables: with kube-proxy it is the same.
#[test]
fn clients_that_keep_their_address_and_mode_nftables_have_no_mark() -> Result<()> {
    let (lab, manifests) = walled(Wiring::Routed)?;
    let node = lab.node("a");
    accept_marked(node)?;
    let local = web(&lab, &["near"]).spec(&json!({"externalTrafficPolicy": "Local"}));
    manifests.apply(&local)?;
    let agent = Agent::start_with(node, &manifests, &PACKETS)?;
    agent.settle()?;
    for family in Family::ALL {
        silent(&lab, "outside", node_port(node, family))?;
    }
    ensure!(agent.terminate()?.success());
    manifests.apply(&web(&lab, &["near"]))?;
    let nftables = [&PACKETS[..], &["--proxy-mode=nftables"]].concat();
    let agent = Agent::start_with(node, &manifests, &nftables)?;
    agent.settle()?;
    for family in Family::ALL {
        silent(&lab, "outside", node_port(node, family))?;
    }
    lab.check()
}

/// What kube-proxy's mode iptables has in nat and filter for its mark, and leaves behind until it is told to clean up.
const LEFT_BEHIND: [&str; 8] = [
    "-t nat -N KUBE-POSTROUTING",
    "-t nat -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
    "-t nat -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000",
    "-t nat -A KUBE-POSTROUTING -j MASQUERADE --random-fully",
    "-t nat -I POSTROUTING -j KUBE-POSTROUTING",
    "-N KUBE-FORWARD",
    "-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT",
    "-I FORWARD -j KUBE-FORWARD",
];

/// The rule of kube-proxy's masquerades what bears the mark before our program would: once is enough, and the answer
/// finds back all the same.
#[test]
fn the_rules_that_kube_proxy_leaves_behind_let_clients_through_and_masquerade_them_once() -> Result<()> {
    for wiring in Wiring::ALL {
        let (lab, manifests) = walled(wiring)?;
        let node = lab.node("a");
        for tables in ["iptables", "ip6tables"] {
            LEFT_BEHIND.iter().try_for_each(|rule| run(node, &format!("{tables} {rule}")).map(drop))?;
        }
        near_and_far(
            &lab,
            &manifests,
            &PACKETS,
            |pod| web(&lab, &[pod]),
            |endpoint| {
                for family in Family::ALL {
                    let seen = reaches(lab.place("outside"), node_port(node, family), endpoint)?;
                    let own = seen.iter().all(|source| node.addresses(family).contains(source));
                    ensure!(own, "{endpoint} saw {seen:?}");
                }
                Ok(())
            },
        )
        .with_context(|| format!("{wiring:?}"))?;
        lab.check()?;
    }
    Ok(())
}
