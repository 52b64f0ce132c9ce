//! Several nodes of one machine, each with an agent of its own: what one of them has done to a packet is nothing to the next.

mod traffic;

use std::net::SocketAddr;

use anyhow::Result;
use proxy_lab::{Agent, Blackhole, Family, Lab, Manifests, Offload, Service, Topology, Wiring};
use traffic::{CLUSTER_IPS, NODE_PORT, PACKETS, PORT, TARGET, cluster, reaches};

/// What the second node serves it by.
const SECOND: u16 = 30081;

/// What both nodes are told: the first one's endpoint is a node port of the second.
fn services(lab: &Lab) -> Result<[Manifests; 2]> {
    lab.place("far").serve(&[TARGET], &[TARGET])?;
    let service = || Service::new("web").cluster_ip(CLUSTER_IPS[0]).cluster_ip(CLUSTER_IPS[1]);
    let (first, second) = (Manifests::new(lab)?, Manifests::named(lab, "second")?);
    let outer = service().tcp(PORT, SECOND).udp(PORT, SECOND).node_port(NODE_PORT);
    first.apply(&outer.endpoints([&**lab.node("b")]))?;
    let inner = service().tcp(PORT, TARGET).udp(PORT, TARGET).node_port(SECOND);
    second.apply(&inner.endpoints([lab.place("far")]))?;
    Ok([first, second])
}

/// Starts both agents; `more` is told to the first.
fn start<'a>(lab: &'a Lab, [first, second]: &'a [Manifests; 2], more: &[&str]) -> Result<[Agent<'a>; 2]> {
    let agents = [
        Agent::start_with(lab.node("a"), first, &[&PACKETS, more].concat())?,
        Agent::start_with(lab.node("b"), second, &PACKETS)?,
    ];
    agents.iter().try_for_each(Agent::settle)?;
    Ok(agents)
}

#[test]
fn a_packet_that_one_node_has_translated_is_translated_by_the_next() -> Result<()> {
    for (wiring, offload) in [(Wiring::Routed, Offload::Off), (Wiring::Bridged, Offload::On)] {
        let topology = Topology::new(wiring).node("a", &["pod"]).node("b", &["far"]).client("outside");
        let lab = Lab::start(&topology.offload(offload).blackhole(Blackhole::AtNodes))?;
        let services = services(&lab)?;
        let _agents = start(&lab, &services, &[])?;
        for family in Family::ALL {
            let to = SocketAddr::new(lab.node("a").address(family), NODE_PORT);
            reaches(lab.place("outside"), to, "far")?;
        }
        lab.check()?;
    }
    Ok(())
}

/// What comes in and goes out past the programs of the way out still bears what those of the way in have left on it.
#[test]
fn a_packet_that_left_the_first_node_past_its_programs_is_translated_by_the_next_all_the_same() -> Result<()>
{
    let topology = Topology::new(Wiring::Routed).node("a", &["pod"]).node("b", &["far"]);
    let lab = Lab::start(&topology.blackhole(Blackhole::AtNodes))?;
    let services = services(&lab)?;
    let _agents = start(&lab, &services, &["--device-exclude=eth0"])?;
    for family in Family::ALL {
        reaches(lab.place("pod"), cluster(family), "far")?;
    }
    lab.check()
}
