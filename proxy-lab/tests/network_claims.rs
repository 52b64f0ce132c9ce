//! Addresses that a Service claims and others have (CVE-2020-8554), in both planes: who is answered by whom then, as under
//! kube-proxy, and what no claim takes (docs/operations.md, "Addresses that Services claim").

mod traffic;

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use proxy_lab::{Agent, Family, Lab, Offload, Place, Service, Waiting, Wiring, errno};
use traffic::{CLUSTER_IPS, PACKETS, PORT, TARGET, answers, one, reaches, seen, start};

const SOCKETS: [&str; 2] = ["--packet-plane=on", "--socket-plane=all"];
/// A port that no Service claims.
const OWN: u16 = 2222;
/// `--healthz-bind-address`'s.
const HEALTH: u16 = 10_256;

/// How an address is claimed.
#[derive(Clone, Copy, Debug)]
enum Claim {
    External,
    LoadBalancer,
}

/// A Service of pod `far` that claims `addresses` at `port`.
fn claimant(lab: &Lab, claim: Claim, addresses: &[IpAddr], port: u16) -> Service {
    let service = Service::new("claimant").cluster_ip(CLUSTER_IPS[0]).cluster_ip(CLUSTER_IPS[1]);
    let service = service.tcp(port, TARGET).udp(port, TARGET).endpoints([lab.place("far")]);
    addresses.iter().fold(service, |service, address| match claim {
        Claim::External => service.external_ip(&address.to_string()),
        Claim::LoadBalancer => service.load_balancer_ip(&address.to_string()),
    })
}

/// The claims are made in one way in a plane, and in the other in the other.
const WAYS: [([&str; 2], Claim); 2] = [(PACKETS, Claim::External), (SOCKETS, Claim::LoadBalancer)];

fn both(place: &Place) -> [IpAddr; 2] {
    Family::ALL.map(|family| place.address(family))
}

/// That `who` answers there itself, over TCP.
fn is_own(from: &Place, to: SocketAddr, who: &str) -> Result<()> {
    let answer = from.ask_tcp(to).with_context(|| format!("{} to {to}", from.name()))?;
    ensure!(answer.who == who, "{} to {to}: {answer:?}", from.name());
    Ok(())
}

#[test]
fn a_pods_address_is_the_claimants_at_the_claimed_port_alone_and_the_pods_again_after_it() -> Result<()> {
    for (planes, claim) in WAYS {
        let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
        let (node, pod, victim) = (lab.node("a"), lab.place("pod"), lab.place("near"));
        victim.serve(&[PORT, OWN], &[PORT, OWN])?;
        let agent = Agent::start_with(node, &manifests, &planes)?;
        agent.settle()?;
        let service = claimant(&lab, claim, &both(victim), PORT);
        for claimed in [true, false] {
            if claimed {
                manifests.apply(&service)?;
            } else {
                manifests.delete(&service)?;
            }
            agent.settle()?;
            for address in both(victim) {
                for from in [pod, node] {
                    let who = if claimed { "far" } else { "near" };
                    is_own(from, SocketAddr::new(address, PORT), who)
                        .with_context(|| format!("{planes:?}, claimed: {claimed}"))?;
                    is_own(from, SocketAddr::new(address, OWN), "near")?;
                }
                if planes == PACKETS {
                    // What a pod sends to itself leaves it in no plane but that of sockets.
                    is_own(victim, SocketAddr::new(address, PORT), "near")?;
                }
            }
        }
        lab.check()?;
    }
    Ok(())
}

#[test]
fn an_address_of_the_node_is_the_claimants_where_a_process_listens_but_for_what_its_health_is_asked_by()
-> Result<()> {
    for (planes, claim) in WAYS {
        let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
        let (node, pod, outside) = (lab.node("a"), lab.place("pod"), lab.place("outside"));
        let kubelet = [10_248, 10_250];
        node.serve(&[PORT, OWN, kubelet[0], kubelet[1]], &[PORT, OWN])?;
        let health = format!("--healthz-bind-address=[::]:{HEALTH}");
        let agent = Agent::start_with(node, &manifests, &[&planes[..], &[health.as_str()]].concat())?;
        let service = claimant(&lab, claim, &both(node), PORT);
        let service =
            [HEALTH, kubelet[0], kubelet[1]].iter().fold(service, |service, port| service.tcp(*port, TARGET));
        manifests.apply(&service)?;
        agent.settle()?;
        for address in both(node) {
            for from in [pod, node, outside] {
                reaches(from, SocketAddr::new(address, PORT), "far")
                    .with_context(|| format!("{planes:?}"))?;
                for port in [OWN, kubelet[0], kubelet[1]] {
                    is_own(from, SocketAddr::new(address, port), "a")
                        .with_context(|| format!("{planes:?}"))?;
                }
                // The agent itself answers its load balancer and kubelet.
                let url = format!("http://{}/healthz", SocketAddr::new(address, HEALTH));
                let status =
                    from.run("curl", &["-gs", "-m", "5", "-o", "/dev/null", "-w", "%{content_type}", &url])?;
                ensure!(status == "application/json", "{} to {url}: {status:?}", from.name());
            }
        }
        lab.check()?;
    }
    Ok(())
}

#[test]
fn an_address_outside_the_cluster_is_the_claimants_for_whoever_comes_by_this_node() -> Result<()> {
    for (planes, claim) in WAYS {
        let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
        let (node, pod, near, outside) =
            (lab.node("a"), lab.place("pod"), lab.place("near"), lab.place("outside"));
        outside.serve(&[PORT, OWN], &[PORT, OWN])?;
        // Its way to pods is their node.
        for (family, place) in Family::ALL.into_iter().flat_map(|family| [(family, pod), (family, near)]) {
            let via = node.address(family);
            outside.ip(&[format!("route add {} via {via} dev eth0", place.address(family))])?;
        }
        manifests.apply(&claimant(&lab, claim, &both(outside), PORT))?;
        let agent = Agent::start_with(node, &manifests, &planes)?;
        agent.settle()?;
        for (family, address) in Family::ALL.into_iter().zip(both(outside)) {
            for from in [pod, node] {
                let clients = seen(&answers(from, SocketAddr::new(address, PORT))?);
                ensure!(clients.0 == one("far".to_owned()), "{planes:?}, {}: {clients:?}", from.name());
                is_own(from, SocketAddr::new(address, OWN), "outside")?;
            }
            // What it dials itself is answered, because its ports are others.
            is_own(outside, SocketAddr::new(near.address(family), TARGET), "near")?;
        }
        // The switch that ends it for external IPs.
        if matches!(claim, Claim::External) {
            ensure!(agent.terminate()?.success(), "the agent ends well");
            let off = [&planes[..], &["--feature-gates=AllowServiceExternalIPs=false"]].concat();
            let agent = Agent::start_with(node, &manifests, &off)?;
            agent.settle()?;
            for address in both(outside) {
                for from in [pod, node] {
                    is_own(from, SocketAddr::new(address, PORT), "outside")?;
                }
            }
        }
        lab.check()?;
    }
    Ok(())
}

#[test]
fn what_is_begun_from_a_claimed_address_and_port_is_answered() -> Result<()> {
    const SERVED: u16 = 8081;
    let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
    let (node, outside) = (lab.node("a"), lab.place("outside"));
    outside.serve(&[SERVED], &[SERVED])?;
    manifests.apply(&claimant(&lab, Claim::External, &both(node), OWN))?;
    let agent = Agent::start_with(node, &manifests, &PACKETS)?;
    agent.settle()?;
    for (family, address) in Family::ALL.into_iter().zip(both(outside)) {
        let to = SocketAddr::new(address, SERVED);
        let datagrams = node.datagrams_from(family, OWN)?;
        let (answer, from) = datagrams.ask_to(to, "who")?;
        ensure!(answer.who == "outside" && from == to, "{answer:?} from {from}");
        // Whoever dials the claimed port is the claimant's nevertheless.
        reaches(outside, SocketAddr::new(node.address(family), OWN), "far")?;
    }
    lab.check()
}

#[test]
fn what_a_pod_dials_at_its_own_claimed_address_is_the_claimants_if_its_sockets_are_served_and_else_its_own()
-> Result<()> {
    for (planes, claim) in WAYS {
        let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
        let victim = lab.place("near");
        victim.serve(&[PORT, OWN], &[PORT, OWN])?;
        manifests.apply(&claimant(&lab, claim, &both(victim), PORT))?;
        let agent = Agent::start_with(lab.node("a"), &manifests, &planes)?;
        agent.settle()?;
        // As under kube-proxy, which sees no packet that does not leave the pod.
        let who = if planes == PACKETS { "near" } else { "far" };
        for (address, loopback) in both(victim).into_iter().zip(["127.0.0.1", "::1"]) {
            let to = SocketAddr::new(address, PORT);
            is_own(victim, to, who).with_context(|| format!("{planes:?}"))?;
            let answer = victim.ask_udp(to)?;
            ensure!(answer.who == who, "{planes:?}: {answer:?}");
            is_own(victim, SocketAddr::new(address, OWN), "near")?;
            is_own(victim, SocketAddr::new(loopback.parse()?, PORT), "near")?;
        }
        lab.check()?;
    }
    Ok(())
}

#[test]
fn a_claim_ends_what_stood_before_it_and_crosses_the_nodes_devices_and_nothing_else() -> Result<()> {
    for (planes, claim) in WAYS {
        let (lab, manifests) = start(Wiring::Routed, Offload::Off)?;
        let (node, pod, victim, outside) =
            (lab.node("a"), lab.place("pod"), lab.place("near"), lab.place("outside"));
        for server in [&**node, victim] {
            server.serve(&[PORT, OWN], &[])?;
        }
        let agent = Agent::start_with(node, &manifests, &planes)?;
        agent.settle()?;
        let mut stood = Vec::new();
        for (family, port) in Family::ALL.into_iter().flat_map(|family| [(family, PORT), (family, OWN)]) {
            for (from, to) in [(pod, victim), (&**node, victim), (outside, &**node), (&**node, &**node)] {
                let stream = from.connect(SocketAddr::new(to.address(family), port), Waiting::Blocking);
                let mut stream = stream.with_context(|| format!("{} to {}", from.name(), to.name()))?;
                ensure!(stream.answer()?.who == to.name(), "{} to {}", from.name(), to.name());
                stood.push((from.name(), to.name(), port, stream));
            }
        }
        let addresses = [both(node), both(victim)].concat();
        manifests.apply(&claimant(&lab, claim, &addresses, PORT))?;
        agent.settle()?;
        for (from, to, port, mut stream) in stood {
            // What the claimant gets of it is of no connection that it knows.
            let crosses = from != node.name();
            let asked = stream.ask("still?");
            let is_right = match &asked {
                Ok(answer) => answer.who == to && !(port == PORT && crosses),
                Err(error) => errno(error) == Errno::ECONNRESET as i32 && port == PORT && crosses,
            };
            ensure!(is_right, "{planes:?}, {from} to {to} at {port}: {asked:?}");
        }
        lab.check()?;
    }
    Ok(())
}
