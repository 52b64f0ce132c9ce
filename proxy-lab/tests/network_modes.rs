//! What the modes of kube-proxy differ in, for sockets and for packets of their own (docs/adr/0008-profiles.md); what the
//! judge of whole flows can't ask because the kernels of the tests have no IPVS.

mod traffic;

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use proxy_lab::{Agent, Family, Lab, Offload, Place, Service, Waiting, Wiring, errno};
use serde_json::json;
use traffic::{CLUSTER_IPS, NODE_PORT, PACKETS, PORT, cluster, reaches, start, web};

const BALANCERS: [&str; 2] = ["10.100.0.5", "fd00:100::5"];
const EXTERNAL: [&str; 2] = ["10.100.0.6", "fd00:100::6"];
const SOCKETS: [&str; 2] = ["--packet-plane=on", "--socket-plane=all"];

/// A port where a process of the node listens at all addresses, and no Service of [`balanced`].
const OWN: u16 = 2222;
/// `healthCheckNodePort`, which the agent answers at addresses of the node.
const HEALTH: u16 = 31_256;

fn balanced(lab: &Lab, pods: &[&str]) -> Service {
    let service = web(lab, pods).load_balancer_ip(BALANCERS[0]).load_balancer_ip(BALANCERS[1]);
    service.external_ip(EXTERNAL[0]).external_ip(EXTERNAL[1])
}

/// The client's way to the Service's addresses is node `a`.
fn routes(lab: &Lab) -> Result<()> {
    let node = lab.node("a");
    for addresses in [CLUSTER_IPS, BALANCERS, EXTERNAL] {
        for (family, to) in Family::ALL.into_iter().zip(addresses) {
            lab.place("outside")
                .ip(&[format!("route replace {to} via {} dev eth0", node.address(family))])?;
        }
    }
    Ok(())
}

/// That a connection and a datagram end with ECONNREFUSED.
fn is_refused(from: &Place, to: SocketAddr) -> Result<()> {
    let stream = from.connect(to, Waiting::Blocking).map(drop);
    let datagrams = from.datagrams(Family::of(to.ip()))?;
    let datagram = datagrams.connect(to).and_then(|()| datagrams.ask("anybody?").map(drop));
    for (how, result) in [("TCP", stream), ("UDP", datagram)] {
        let refused = result.as_ref().is_err_and(|error| errno(error) == Errno::ECONNREFUSED as i32);
        ensure!(refused, "{}, {how}, {to}: {result:?}", from.name());
    }
    Ok(())
}

#[test]
fn mode_ipvs_refuses_what_no_service_declares_at_any_of_its_addresses() -> Result<()> {
    for planes in [PACKETS, SOCKETS] {
        let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
        routes(&lab)?;
        let (node, pod, outside) = (lab.node("a"), lab.place("pod"), lab.place("outside"));
        node.serve(&[OWN], &[OWN])?;
        let local = json!({ "externalTrafficPolicy": "Local", "healthCheckNodePort": HEALTH });
        manifests.apply(&balanced(&lab, &["near"]).spec(&local))?;
        let agent = Agent::start_with(node, &manifests, &[&planes[..], &["--proxy-mode=ipvs"]].concat())?;
        agent.settle()?;
        for addresses in [CLUSTER_IPS, BALANCERS, EXTERNAL] {
            for address in addresses {
                let address: IpAddr = address.parse()?;
                for from in [pod, node, outside] {
                    // A refusal takes a second: the one that a load balancer would ask for.
                    let health = addresses == BALANCERS && from.name() == outside.name();
                    for port in [OWN, NODE_PORT].into_iter().chain(health.then_some(HEALTH)) {
                        is_refused(from, SocketAddr::new(address, port))
                            .with_context(|| format!("{planes:?}"))?;
                    }
                    reaches(from, SocketAddr::new(address, PORT), "near")?;
                }
            }
        }
        // The node's own addresses are its own.
        for family in Family::ALL {
            for from in [pod, node, outside] {
                let answer = from.ask_tcp(SocketAddr::new(node.address(family), OWN))?;
                ensure!(answer.who == "a", "{answer:?}");
                from.connect(SocketAddr::new(node.address(family), HEALTH), Waiting::Blocking)
                    .context("the health check is answered at the node")?;
            }
        }
        // An address of nobody's is left alone: no way leads there.
        let nobody = SocketAddr::new("10.96.77.77".parse()?, cluster(Family::V4).port());
        let error = node.connect(nobody, Waiting::Blocking).err().map(|error| errno(&error));
        ensure!(error == Some(Errno::EINVAL as i32), "the blackhole of the lab says {error:?}");
        lab.check()?;
    }
    Ok(())
}
