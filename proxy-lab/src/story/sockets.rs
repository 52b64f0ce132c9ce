//! What applications see: real sockets of pods and of the host, on the services of the acts.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use proxy_lab::{Answer, Family, Lab, Load, Waiting, errno, mapped};

use crate::story::acts::{self, EMPTY, EMPTY_PORT, NODE, NODE_PORT, TARGET, WEB};

/// Starts the endpoints.
pub(super) fn serve(lab: Lab) -> Result<Lab> {
    for pod in ["a2", "a3"] {
        lab.place(pod).serve(&[TARGET], &[TARGET])?;
    }
    Ok(lab)
}

/// The served addresses, the IPv4 one also as an IPv6 socket dials it.
fn web() -> Result<Vec<SocketAddr>> {
    let [v4, v6] = WEB.map(str::parse::<SocketAddr>);
    let (v4, v6) = (v4?, v6?);
    let SocketAddr::V4(plain) = v4 else { bail!("{v4} is not IPv4") };
    Ok(vec![v4, v6, SocketAddr::new(mapped(*plain.ip()), plain.port())])
}

fn is_from(answer: &Answer, who: &str) -> Result<()> {
    ensure!(answer.who == who && answer.local.port() == TARGET, "{who} should have answered: {answer:?}");
    Ok(())
}

pub(super) fn tcp(lab: &Lab) -> Result<String> {
    for (from, to) in
        ["a1", "a"].into_iter().flat_map(|from| web().into_iter().flatten().map(move |to| (from, to)))
    {
        for waiting in Waiting::ALL {
            let case = || format!("{from} to {to}, {waiting:?}");
            let place = if from == "a" { lab.node("a") } else { lab.place(from) };
            let mut stream = place.connect(to, waiting).with_context(case)?;
            is_from(&stream.answer().with_context(case)?, "a2")?;
            ensure!(stream.peer()? == to, "{}: the peer is shown as {}", case(), stream.peer()?);
        }
    }
    Ok(String::new())
}

pub(super) fn connected_udp(lab: &Lab) -> Result<String> {
    for to in web()? {
        let socket = lab.place("a1").datagrams(Family::of(to.ip()))?;
        socket.connect(to).with_context(|| format!("connect to {to}"))?;
        let (answer, source) = socket.ask("hello").with_context(|| format!("asking {to}"))?;
        is_from(&answer, "a2")?;
        ensure!((source, socket.peer()?) == (to, to), "{to} answers from {source}, peer {}", socket.peer()?);
    }
    Ok(String::new())
}

pub(super) fn datagrams(lab: &Lab) -> Result<String> {
    for to in web()? {
        let socket = lab.place("a1").datagrams(Family::of(to.ip()))?;
        for _ in 0..2 {
            let (answer, source) = socket.ask_to(to, "hello").with_context(|| format!("asking {to}"))?;
            is_from(&answer, "a2")?;
            ensure!(source == to, "{to} answers from {source}");
        }
    }
    Ok(String::new())
}

pub(super) fn node_ports(lab: &Lab) -> Result<String> {
    let (host, pod) = (lab.node("a"), lab.place("a1"));
    for address in ["192.168.77.11", "fd00:77::b"] {
        let to = SocketAddr::new(address.parse()?, NODE_PORT);
        for place in [host, pod] {
            let answer = place.ask_tcp(to).with_context(|| format!("{} to {to}", place.name()))?;
            is_from(&answer, "a2")?;
        }
    }
    for address in ["127.0.0.1", "::1"] {
        let to = SocketAddr::new(address.parse()?, NODE_PORT);
        is_from(&host.ask_tcp(to).with_context(|| format!("the host to {to}"))?, "a2")?;
        let refused = pod.ask_tcp(to).err().map(|error| errno(&error));
        ensure!(refused == Some(Errno::ECONNREFUSED as i32), "a pod's own {to}: {refused:?}");
    }
    Ok(String::new())
}

pub(super) fn refusals(lab: &Lab) -> Result<String> {
    for to in EMPTY {
        let to: SocketAddr = to.parse()?;
        for (place, waiting) in [lab.place("a1"), lab.node("a")]
            .into_iter()
            .flat_map(|place| Waiting::ALL.map(|waiting| (place, waiting)))
        {
            let refused = place.connect(to, waiting).err().map(|error| errno(&error));
            ensure!(
                refused == Some(Errno::ECONNREFUSED as i32),
                "{} to {to}, {waiting:?}: {refused:?}",
                place.name()
            );
        }
        // A datagram is never refused by its own call with EPERM: it goes on, and here the blackhole takes it.
        let socket = lab.place("a1").datagrams(Family::of(to.ip()))?;
        let error = socket.socket().send_to(b"nobody", to).err().map(|error| errno(&error));
        ensure!(error == Some(Errno::EINVAL as i32), "a datagram to {to}: {error:?}");
    }
    Ok(String::new())
}

pub(super) fn change(lab: &Lab) -> Result<String> {
    let load = Load::start(lab.place("a1"), WEB[0].parse()?, 300);
    load.wait_for(20)?;
    let remark = acts::play(lab, "change")?;
    load.wait_for(20)?;
    let tally = load.stop();
    ensure!(tally.failures() == 0, "connections failed: {tally:?}");
    ensure!(tally.answered.contains_key("a2") && tally.answered.contains_key("a3"), "{tally:?}");
    for to in web()? {
        is_from(&lab.place("a1").ask_tcp(to)?, "a3")?;
    }
    Ok(format!("{} connections, {remark}", tally.answers()))
}

pub(super) fn growth(lab: &Lab) -> Result<String> {
    let load = Load::start(lab.place("a1"), WEB[0].parse()?, 300);
    load.wait_for(20)?;
    acts::play(lab, "grow")?;
    load.wait_for(20)?;
    let tally = load.stop();
    ensure!(tally.failures() == 0, "connections failed: {tally:?}");
    for to in web()? {
        is_from(&lab.place("a1").ask_tcp(to)?, "a3")?;
    }
    Ok(format!("{} connections", tally.answers()))
}

pub(super) fn packets(lab: &Lab) -> Result<String> {
    let outside = lab.place("outside");
    for address in NODE {
        let to = SocketAddr::new(address.parse()?, NODE_PORT);
        let mut stream =
            outside.connect(to, Waiting::Blocking).with_context(|| format!("connect to {to}"))?;
        is_from(&stream.answer()?, "a3")?;
        is_from(&stream.ask(&"many segments ".repeat(2000))?, "a3")?;
        let socket = outside.datagrams(Family::of(to.ip()))?;
        for said in ["hello".to_owned(), "in fragments ".repeat(300)] {
            let (answer, source) = socket.ask_to(to, &said).with_context(|| format!("datagram to {to}"))?;
            is_from(&answer, "a3")?;
            ensure!(source == to, "{to} answers from {source}");
        }
        let to = SocketAddr::new(to.ip(), EMPTY_PORT);
        let refused = outside.connect(to, Waiting::Blocking).err().map(|error| errno(&error));
        ensure!(refused == Some(Errno::ECONNREFUSED as i32), "{to}: {refused:?}");
    }
    Ok(String::new())
}

pub(super) fn repair(lab: &Lab) -> Result<String> {
    let pod = lab.place("a1");
    let (mut sockets, mut streams) = (Vec::new(), Vec::new());
    for to in web()? {
        let socket = pod.datagrams(Family::of(to.ip()))?;
        socket.connect(to)?;
        is_from(&socket.ask("hello")?.0, "a3")?;
        sockets.push((socket, to));
        let mut stream = pod.connect(to, Waiting::Blocking)?;
        is_from(&stream.answer()?, "a3")?;
        streams.push(stream);
    }
    let remark = acts::play(lab, acts::MOVE)?;
    for (socket, to) in sockets {
        for _ in 0..2 {
            let (answer, source) = socket.ask("hello").with_context(|| format!("asking {to}"))?;
            is_from(&answer, "a2")?;
            ensure!((source, socket.peer()?) == (to, to), "{to} is shown as {source}, {}", socket.peer()?);
        }
    }
    for stream in &mut streams {
        is_from(&stream.ask("still there?")?, "a3")?;
    }
    Ok(remark)
}

pub(super) fn cleanup(lab: &Lab) -> Result<String> {
    acts::play(lab, "clean")?;
    let pins = lab.node("a").pin_path();
    ensure!(!pins.exists(), "{} is still there", pins.display());
    for to in web()? {
        let error = lab.place("a1").ask_tcp(to).err().map(|error| errno(&error));
        ensure!(error == Some(Errno::EINVAL as i32), "{to} should end in the blackhole: {error:?}");
    }
    Ok(String::new())
}

/// The pod's own namespace leads what is not translated nowhere.
pub(super) fn left(lab: &Lab) -> Result<String> {
    let (left, other) = (lab.place(acts::LEFT), lab.place("a3"));
    let reached = |place| Ok::<_, anyhow::Error>(acts::dial(place)?.trim().to_owned());
    is_reached(&reached(left)?, true)?;
    let remark = acts::play(lab, acts::LEAVE)?;
    is_reached(&reached(left)?, false)?;
    is_reached(&reached(other)?, true)?;
    Ok(remark)
}

fn is_reached(said: &str, expected: bool) -> Result<()> {
    ensure!(said.contains(&format!("[{expected}, {expected}]")), "{said}, and {expected} was expected");
    Ok(())
}
