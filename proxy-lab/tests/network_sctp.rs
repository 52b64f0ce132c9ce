//! SCTP through the packet plane. This kernel has no sockets for it: both ends are written by hand on raw ones.

mod sctp;
mod traffic;

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use proxy_common::Reason;
use proxy_lab::{Family, Lab, Manifests, Offload, Place, Service, Wiring, wait};
use sctp::{End, INIT, INIT_ACK, Seen, message};
use traffic::{CLUSTER_IPS, NODE_PORT, PACKETS, PORT, TARGET, cluster, count, near_and_far, start};

/// Where the client's associations come from.
const CLIENT_PORT: u16 = 36412;
/// Begins an association, short or long, and answers it.
fn associates(client: &Place, server: &Place, to: SocketAddr) -> Result<()> {
    let family = Family::of(to.ip());
    let (near, far) = (End::open(client, family)?, End::open(server, family)?);
    for (number, padding) in [0, 1, 3, 700].into_iter().enumerate() {
        let port = CLIENT_PORT + u16::try_from(number)?;
        near.send(to.ip(), &message(port, to.port(), INIT, padding))?;
        let question = far.receive().with_context(|| format!("{padding} bytes more, to {to}"))?;
        let came = (question.to_port, question.chunk, question.padding);
        ensure!(came == (TARGET, INIT, padding), "{question:?}");
        far.send(question.from.ip(), &message(TARGET, question.from.port(), INIT_ACK, padding))?;
        let answer = near.receive().with_context(|| format!("{padding} bytes more, from {to}"))?;
        ensure!(answer == Seen { from: to, to_port: port, chunk: INIT_ACK, padding }, "{answer:?}");
    }
    Ok(())
}

fn associations(lab: &Lab, manifests: &Manifests) -> Result<()> {
    let node = lab.node("a");
    let service = Service::new("web").cluster_ip(CLUSTER_IPS[0]).cluster_ip(CLUSTER_IPS[1]);
    let service = service.sctp(PORT, TARGET).node_port(NODE_PORT);
    let service = |pod: &str| service.clone().endpoints([lab.place(pod)]);
    near_and_far(lab, manifests, &PACKETS, service, |endpoint| {
        for family in Family::ALL {
            let node_port = SocketAddr::new(node.address(family), NODE_PORT);
            for (client, to) in [("outside", node_port), ("pod", cluster(family))] {
                associates(lab.place(client), lab.place(endpoint), to)
                    .with_context(|| format!("{client} to {to}"))?;
            }
        }
        Ok(())
    })
}

#[test]
fn sctp_associations_get_other_ports_and_right_checksums() -> Result<()> {
    for wiring in Wiring::ALL {
        for offload in [Offload::Off, Offload::On] {
            let (lab, manifests) = start(wiring, offload)?;
            associations(&lab, &manifests).with_context(|| format!("{wiring:?}, {offload:?}"))?;
            lab.check()?;
        }
    }
    Ok(())
}

#[test]
fn what_the_node_itself_sends_to_a_cluster_ip_past_its_sockets_never_leaves_it() -> Result<()> {
    let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
    let node = lab.node("a");
    let service = Service::new("web").cluster_ip(CLUSTER_IPS[0]).cluster_ip(CLUSTER_IPS[1]);
    let service = service.sctp(PORT, TARGET).endpoints([lab.place("far")]);
    let agent = traffic::serve(node, &manifests, &[service])?;
    for family in Family::ALL {
        let to = cluster(family).ip();
        // A lab's nodes lead them nowhere, most nodes to their gateway: here it counts what comes.
        node.ip(&[format!("route add {to} via {} dev eth0", lab.sink().address(family))])?;
        let end = End::open(node, family)?;
        for port in [CLIENT_PORT, CLIENT_PORT + 1] {
            let before = count(node, Reason::GuardDropped)?;
            end.send(to, &message(port, PORT, INIT, 0))?;
            wait::until("it is dropped on the node", || {
                ensure!(count(node, Reason::GuardDropped)? == before + 1, "{to}: {before} were before");
                Ok(())
            })?;
        }
    }
    drop(agent);
    lab.check()
}
