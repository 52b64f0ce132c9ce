//! A cluster of some size, created through the API server: everything is served, and what it costs is printed.

use std::fs;
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use proxy_lab::{Agent, Cluster, Lab, Service, Topology, Wiring};

const SERVICES: u16 = 2000;
const PORT: u16 = 80;
const TARGET: u16 = 8080;
const PODS: [&str; 6] = ["web-1", "web-2", "web-3", "web-4", "web-5", "web-6"];

fn address(number: u16) -> [u8; 4] {
    let [high, low] = number.to_be_bytes();
    [10, 96, 64 + high, low]
}

/// Five endpoints: all pods but one.
fn service(lab: &Lab, number: u16) -> Service {
    let left_out = usize::from(number) % PODS.len();
    let pods = PODS.iter().enumerate().filter(|(pod, _)| *pod != left_out);
    let service = Service::new(&format!("many-{number}"));
    let service = service.cluster_ip(&std::net::Ipv4Addr::from(address(number)).to_string());
    service.tcp(PORT, TARGET).endpoints(pods.map(|(_, pod)| lab.place(pod)))
}

/// Every Service answers several times, never by the pod that it has not.
fn all_are_served(lab: &Lab) -> Result<()> {
    for number in 0..SERVICES {
        let to = SocketAddr::from((address(number), PORT));
        for _ in 0..4 {
            let answer = lab.place("client").ask_tcp(to).with_context(|| format!("Service {number}"))?;
            let left_out = PODS[usize::from(number) % PODS.len()];
            ensure!(answer.who != left_out, "Service {number} is answered by {left_out}");
        }
    }
    Ok(())
}

/// Resident memory of a process, in KiB, as proc_pid_status(5) has it.
fn memory(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

#[test]
fn two_thousand_services_created_through_the_api_are_all_served() -> Result<()> {
    let pods = [&["client"][..], &PODS].concat();
    let lab = Lab::start(&Topology::new(Wiring::Routed).node("a", &pods).client("control-plane"))?;
    for pod in PODS {
        lab.place(pod).serve(&[TARGET], &[])?;
    }
    let cluster = Cluster::start(&lab, "control-plane")?;
    let node = lab.node("a");
    let agent = Agent::start_on(node, &cluster)?;
    agent.settle()?;
    let empty = memory(agent.pid())?;
    let services: Vec<_> = (0..SERVICES).map(|number| service(&lab, number)).collect();
    let began = Instant::now();
    cluster.create_all(&services)?;
    println!("created {SERVICES} Services with 5 endpoints each in {:.0?}", began.elapsed());
    let began = Instant::now();
    agent.settle()?;
    println!("in the tables {:.0?} later", began.elapsed());
    all_are_served(&lab)?;
    println!("the agent holds {} MiB, {} before", memory(agent.pid())? / 1024, empty / 1024);

    agent.kill()?;
    let began = Instant::now();
    let agent = Agent::start_on(node, &cluster)?;
    agent.settle()?;
    println!(
        "a fresh agent has them in {:.0?} and holds {} MiB",
        began.elapsed(),
        memory(agent.pid())? / 1024
    );
    all_are_served(&lab)
}
