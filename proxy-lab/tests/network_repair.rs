//! Repair through the pod's socket, with an agent and real sockets: a connected socket keeps its peer, and its packets go to
//! a backend that serves. Both planes are on; pods are on routed veths and on a bridge's ports.

mod traffic;

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use proxy_common::Reason;
use proxy_lab::{
    Agent, Datagrams, Family, Lab, Manifests, Offload, Place, Stream, Topology, Waiting, Wiring, errno,
    mapped, wait,
};
use traffic::{TARGET, cluster, count, web};

/// Node `a` with two pods, and one with three of which the last hears nobody.
fn start(wiring: Wiring, offload: Offload) -> Result<(Lab, Manifests)> {
    let topology = Topology::new(wiring).node("a", &["pod", "near"]).node("b", &["far", "further", "mute"]);
    let lab = Lab::start(&topology.offload(offload))?;
    for pod in ["near", "far", "further", "mute"] {
        lab.place(pod).serve(&[TARGET], &[TARGET])?;
    }
    // What has no way back is dropped without a word.
    for family in ["-4", "-6"] {
        lab.place("mute").run("ip", &[family, "route", "replace", "blackhole", "default"])?;
    }
    let manifests = Manifests::new(&lab)?;
    Ok((lab, manifests))
}

fn each(mut test: impl FnMut(&Lab, &Manifests, &Agent<'_>) -> Result<()>) -> Result<()> {
    for (wiring, offload) in
        [(Wiring::Routed, Offload::Off), (Wiring::Routed, Offload::On), (Wiring::Bridged, Offload::On)]
    {
        let (lab, manifests) = start(wiring, offload)?;
        manifests.apply(&web(&lab, &["far"]))?;
        let agent = Agent::start_with(lab.node("a"), &manifests, &["--packet-plane=on"])?;
        agent.settle()?;
        test(&lab, &manifests, &agent).with_context(|| format!("{wiring:?}, offload {offload:?}"))?;
    }
    Ok(())
}

/// The Service has these endpoints, and the agent has written it.
fn serve(lab: &Lab, manifests: &Manifests, agent: &Agent<'_>, pods: &[&str]) -> Result<()> {
    manifests.apply(&web(lab, pods))?;
    agent.settle()
}

/// How long a socket may be without whoever serves it, once that is written.
const LIMIT: Duration = Duration::from_secs(1);

/// A connected datagram socket's questions are answered by `who` alone, as if by what was dialled. One that is lost is asked
/// again, as resolvers do: a pod that is killed takes links with it, and packets on the way.
fn answers(socket: &Datagrams, to: SocketAddr, who: &str) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    let (answer, source) = loop {
        match socket.ask("who") {
            Ok(answer) => break answer,
            Err(error) if errno(&error) == Errno::EAGAIN as i32 && Instant::now() < deadline => {}
            Err(error) => return Err(error).with_context(|| format!("asking {who} at {to}")),
        }
    };
    ensure!(answer.who == who, "{to}: {} answered, not {who}", answer.who);
    ensure!(source == to && socket.peer()? == to, "{to} was shown as {source} and {}", socket.peer()?);
    Ok(())
}

fn connected(from: &Place, to: SocketAddr, port: Option<u16>) -> Result<Datagrams> {
    let family = Family::of(to.ip());
    let socket = match port {
        Some(port) => from.datagrams_from(family, port)?,
        None => from.datagrams(family)?,
    };
    socket.connect(to)?;
    socket.socket().set_read_timeout(Some(LIMIT / 4))?;
    Ok(socket)
}

#[test]
fn a_connected_datagram_socket_is_answered_by_whoever_serves_from_the_next_datagram_on() -> Result<()> {
    each(|lab, manifests, agent| {
        let pod = lab.place("pod");
        let mut sockets = Vec::new();
        for (to, port) in Family::ALL.map(cluster).into_iter().zip(5300..) {
            // One of any port, and one of a port that its next socket has, too.
            sockets.push((connected(pod, to, None)?, to));
            sockets.push((connected(pod, to, Some(port))?, to));
        }
        let all = |who: &str| sockets.iter().try_for_each(|(socket, to)| answers(socket, *to, who));
        all("far")?;
        ensure!(count(lab.node("a"), Reason::FlowRepaired)? == 0, "moved, and it serves");
        // Nobody waits: what was written counts for the next datagram. The first one would still answer, if asked.
        serve(lab, manifests, agent, &["near"])?;
        all("near")?;
        all("near")?;
        // All of them are others, and who was left is dead.
        lab.place("far").kill();
        serve(lab, manifests, agent, &["further"])?;
        lab.place("near").kill();
        all("further")?;
        ensure!(count(lab.node("a"), Reason::FlowRepaired)? == 8, "each of four flows was moved twice");
        // A new socket of the same port is where connect() sends it.
        let to = cluster(Family::V4);
        drop(sockets);
        answers(&connected(pod, to, Some(5300))?, to, "further")?;
        lab.check()
    })
}

#[test]
fn a_connected_datagram_socket_is_refused_while_nobody_serves_and_answered_when_somebody_does() -> Result<()>
{
    each(|lab, manifests, agent| {
        for to in Family::ALL.map(cluster) {
            serve(lab, manifests, agent, &["far"])?;
            let socket = connected(lab.place("pod"), to, None)?;
            answers(&socket, to, "far")?;
            for (next, edge) in [("near", "its own backend was the last"), ("further", "a moved one's was")] {
                serve(lab, manifests, agent, &[])?;
                let refused = socket.ask("nobody").err().map(|error| errno(&error));
                ensure!(refused == Some(Errno::ECONNREFUSED as i32), "{to}, {edge}: {refused:?}");
                serve(lab, manifests, agent, &[next])?;
                answers(&socket, to, next).context(edge)?;
            }
        }
        lab.check()
    })
}

#[test]
fn an_endpoint_on_the_pods_own_bridge_is_left_for_another_and_the_other_way_round() -> Result<()> {
    for offload in [Offload::Off, Offload::On] {
        let topology = Topology::new(Wiring::Bridged).node("a", &["pod", "near", "next"]).node("b", &["far"]);
        let lab = Lab::start(&topology.offload(offload))?;
        for pod in ["near", "next", "far"] {
            lab.place(pod).serve(&[TARGET], &[TARGET])?;
        }
        let manifests = Manifests::new(&lab)?;
        manifests.apply(&web(&lab, &["near"]))?;
        let agent = Agent::start_with(lab.node("a"), &manifests, &["--packet-plane=on"])?;
        agent.settle()?;
        for to in Family::ALL.map(cluster) {
            serve(&lab, &manifests, &agent, &["near"])?;
            let socket = connected(lab.place("pod"), to, None)?;
            answers(&socket, to, "near")?;
            let direct = SocketAddr::new(lab.place("near").address(Family::of(to.ip())), TARGET);
            let own = connected(lab.place("pod"), direct, None)?;
            for pods in [&["next"][..], &["far"], &["next"], &[], &["near"]] {
                serve(&lab, &manifests, &agent, pods).with_context(|| format!("{pods:?}"))?;
                match pods {
                    [pod] => answers(&socket, to, pod)?,
                    _ => {
                        let refused = socket.ask("nobody").err().map(|error| errno(&error));
                        ensure!(refused == Some(Errno::ECONNREFUSED as i32), "{to}: {refused:?}");
                    }
                }
                ensure!(own.ask("who")?.0.who == "near", "who dialled the endpoint itself was moved");
            }
        }
        lab.check()?;
    }
    Ok(())
}

#[test]
fn a_connected_datagram_socket_of_the_node_is_told_that_its_endpoint_went_and_dials_again() -> Result<()> {
    each(|lab, manifests, agent| {
        let node = lab.node("a");
        let [v4, v6] = Family::ALL.map(cluster);
        let IpAddr::V4(plain) = v4.ip() else { unreachable!("the first family") };
        let dialled = [v4, v6, SocketAddr::new(mapped(plain), v4.port())];
        let mut sockets = Vec::new();
        for to in dialled {
            let socket = connected(node, to, None)?;
            answers(&socket, to, "far")?;
            sockets.push((socket, to));
        }
        // Who means the endpoint itself, and who has dialled something else since.
        let direct = SocketAddr::new(lab.place("far").address(Family::V4), TARGET);
        let own = connected(node, direct, None)?;
        let other = connected(node, v4, None)?;
        other.connect(direct)?;
        serve(lab, manifests, agent, &["near"])?;
        for (socket, to) in &sockets {
            wait::until_within(LIMIT, "the socket is told", || {
                let told = socket.socket().take_error()?.map(|error| errno(&error));
                ensure!(told == Some(Errno::ECONNABORTED as i32), "{to}: {told:?}");
                Ok(())
            })?;
            let lost = socket.ask("who").err().map(|error| errno(&error));
            ensure!(lost == Some(Errno::EDESTADDRREQ as i32), "{to}: it has a peer still: {lost:?}");
            socket.connect(*to)?;
            answers(socket, *to, "near")?;
        }
        for socket in [&own, &other] {
            ensure!(socket.ask("who")?.0.who == "far", "who dialled the endpoint itself was disconnected");
        }
        // Nobody serves: told as well, and refused when it dials again.
        serve(lab, manifests, agent, &[])?;
        for (socket, to) in &sockets {
            wait::until_within(LIMIT, "the socket is told", || {
                let told = socket.socket().take_error()?.map(|error| errno(&error));
                ensure!(told == Some(Errno::ECONNABORTED as i32), "{to}: {told:?}");
                Ok(())
            })?;
            let refused = socket.connect(*to).err().map(|error| errno(&error));
            ensure!(refused == Some(Errno::ECONNREFUSED as i32), "{to}: {refused:?}");
        }
        Ok(())
    })
}

#[test]
fn a_connection_whose_greeting_nobody_answers_is_made_with_a_backend_that_serves_and_stays_there()
-> Result<()> {
    each(|lab, manifests, agent| {
        let pod = lab.place("pod");
        for to in Family::ALL.map(cluster) {
            for waiting in Waiting::ALL {
                serve(lab, manifests, agent, &["mute"])?;
                let before = count(lab.node("a"), Reason::Connected)?;
                let mut stream: Stream = std::thread::scope(|scope| {
                    let dialling = scope.spawn(|| pod.connect(to, waiting));
                    wait::until("the greeting was sent", || {
                        ensure!(count(lab.node("a"), Reason::Connected)? > before, "not yet");
                        Ok(())
                    })?;
                    serve(lab, manifests, agent, &["far"])?;
                    let connected = dialling.join().expect("the thread does not panic");
                    connected.with_context(|| format!("{to}, {waiting:?}"))
                })?;
                ensure!(stream.answer()?.who == "far" && stream.peer()? == to, "{to}: {stream:?}");
                // Established, it is never moved again.
                serve(lab, manifests, agent, &["further"])?;
                ensure!(stream.ask("still there?")?.who == "far", "an established connection was moved");
                serve(lab, manifests, agent, &[])?;
                ensure!(stream.ask(&"long ".repeat(6000))?.who == "far", "or refused");
            }
        }
        Ok(())
    })
}

#[test]
fn an_established_connection_stays_with_its_own_backend() -> Result<()> {
    each(|lab, manifests, agent| {
        let pod = lab.place("pod");
        let mut kept = Vec::new();
        for to in Family::ALL.map(cluster) {
            let mut stream = pod.connect(to, Waiting::Blocking)?;
            ensure!(stream.answer()?.who == "far", "{to}");
            kept.push(stream);
        }
        for pods in [&["near"][..], &[], &["far", "near"]] {
            serve(lab, manifests, agent, pods)?;
            for stream in &mut kept {
                ensure!(stream.ask("still there?")?.who == "far", "moved to {pods:?}");
            }
        }
        ensure!(count(lab.node("a"), Reason::FlowRepaired)? == 0, "something was moved");
        lab.check()
    })
}
