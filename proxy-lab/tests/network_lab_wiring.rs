//! The lab itself: who reaches whom in which wiring, without vipr.

use std::net::SocketAddr;

use nix::errno::Errno;
use proxy_lab::{
    Blackhole, Family, Lab, Load, Offload, Place, SocketKind, Topology, Waiting, Wiring, errno, wait,
};

const TARGET: u16 = 8080;

fn two_nodes(wiring: Wiring) -> Topology {
    Topology::new(wiring).node("a", &["a1", "a2"]).node("b", &["b1"]).client("outside")
}

/// Asks every address of `server` by TCP and UDP from `client`.
fn asks(client: &Place, server: &Place, case: &str) {
    for to in Family::ALL.into_iter().flat_map(|family| server.addresses(family)) {
        let to = SocketAddr::from((to, TARGET));
        for (protocol, answer) in [("tcp", client.ask_tcp(to)), ("udp", client.ask_udp(to))] {
            let case = format!("{case}: {} to {} at {to}/{protocol}", client.name(), server.name());
            let answer = answer.unwrap_or_else(|error| panic!("{case}: {error}"));
            assert_eq!(answer.who, server.name(), "{case}");
            assert_eq!(answer.local, to, "{case}");
            let family = Family::of(to.ip());
            assert!(client.addresses(family).contains(&answer.client.ip()), "{case}: {answer:?}");
        }
    }
}

#[test]
fn pods_and_hosts_reach_each_other_directly_in_both_wirings_and_families() {
    for wiring in Wiring::ALL {
        for offload in [Offload::Off, Offload::On] {
            let lab = Lab::start(&two_nodes(wiring).offload(offload)).unwrap();
            let case = format!("{wiring:?}, offload {offload:?}");
            for place in lab.places() {
                place.serve(&[TARGET], &[TARGET]).unwrap();
            }
            let place = |name| lab.place(name);
            for (from, to) in [("a1", "a2"), ("a1", "b1"), ("a1", "a"), ("a", "a1"), ("b", "a1"), ("a", "a")]
            {
                asks(place(from), place(to), &case);
            }
            // From outside pods are out of reach, and a node's first two addresses are not.
            for to in
                Family::ALL.into_iter().flat_map(|family| place("a").addresses(family).into_iter().take(2))
            {
                assert_eq!(place("outside").ask_tcp((to, TARGET).into()).unwrap().who, "a", "{case}: {to}");
            }
        }
    }
}

#[test]
fn large_answers_cross_the_wires_with_offload_off() {
    let lab = Lab::start(&two_nodes(Wiring::Bridged)).unwrap();
    let server = lab.place("b1");
    server.serve(&[TARGET], &[]).unwrap();
    for family in Family::ALL {
        let to = (server.address(family), TARGET).into();
        let mut stream = lab.place("a1").connect(to, Waiting::Blocking).unwrap();
        stream.answer().unwrap();
        let line = "x".repeat(20_000);
        assert_eq!(stream.ask(&line).unwrap().said, line, "{family:?}");
    }
}

#[test]
fn a_dialled_vip_is_refused_by_the_blackhole_and_never_leaves() {
    for wiring in Wiring::ALL {
        let lab = Lab::start(&two_nodes(wiring)).unwrap();
        for (from, to) in ["a1", "a", "outside"].into_iter().flat_map(|from| {
            ["10.96.0.1:80", "[fd00:96::1]:80", "10.100.0.1:80", "[fd00:100::1]:80"].map(|to| (from, to))
        }) {
            let to: SocketAddr = to.parse().unwrap();
            let place = lab.place(from);
            for waiting in Waiting::ALL {
                let error = place.connect(to, waiting).unwrap_err();
                assert_eq!(errno(&error), Errno::EINVAL as i32, "{wiring:?}: {from} to {to}/tcp: {error}");
            }
            let error = place.ask_udp(to).unwrap_err();
            assert_eq!(errno(&error), Errno::EINVAL as i32, "{wiring:?}: {from} to {to}/udp: {error}");
        }
        assert_eq!(lab.strays().unwrap(), 0, "{wiring:?}");
    }
}

#[test]
fn a_vip_that_may_leave_its_pod_ends_at_the_node() {
    for wiring in Wiring::ALL {
        let lab = Lab::start(&two_nodes(wiring).blackhole(Blackhole::AtNodes)).unwrap();
        for to in ["10.96.0.1:80", "[fd00:96::1]:80"] {
            let datagrams =
                lab.place("a1").datagrams(Family::of(to.parse::<SocketAddr>().unwrap().ip())).unwrap();
            datagrams.socket().send_to(b"nobody", to).unwrap();
        }
        assert_eq!(lab.strays().unwrap(), 0, "{wiring:?}");
    }
}

#[test]
fn a_packet_for_nobody_ends_at_the_sink_and_fails_the_lab() {
    let lab = Lab::start(&two_nodes(Wiring::Routed)).unwrap();
    lab.expect_errors();
    // Addresses for documentation, RFC 5737 and RFC 3849.
    for (number, to) in [(1, "203.0.113.1:80"), (2, "[2001:db8::1]:80")] {
        let datagrams =
            lab.place("a1").datagrams(Family::of(to.parse::<SocketAddr>().unwrap().ip())).unwrap();
        datagrams.socket().send_to(b"nobody", to).unwrap();
        wait::until("the sink counts it", || {
            anyhow::ensure!(lab.strays()? == number, "{} strays", lab.strays()?);
            Ok(())
        })
        .unwrap();
    }
    assert!(lab.check().unwrap_err().to_string().contains("2 packets left their node"));
}

#[test]
fn no_namespace_has_a_link_to_the_machines_own_or_a_route_past_the_sink() {
    let outside = devices_here();
    for wiring in Wiring::ALL {
        let lab = Lab::start(&two_nodes(wiring)).unwrap();
        assert_eq!(devices_here(), outside, "{wiring:?}: the machine's own devices");
        let namespaces: Vec<_> = lab.places().map(namespace).collect();
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        assert!(!namespaces.contains(&own), "{wiring:?}: {namespaces:?}");
        // A packet that nobody has an address for gets as far as the sink, which sends nothing on.
        let forwards =
            lab.sink().run("sysctl", &["-n", "net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"]);
        assert_eq!(forwards.unwrap(), "0\n0\n", "{wiring:?}");
        for family in ["-4", "-6"] {
            let routes = lab.sink().run("ip", &[family, "route", "show", "default"]).unwrap();
            assert_eq!(routes, "", "{wiring:?}: the sink's default route");
        }
    }
}

fn devices_here() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/self/net/dev").unwrap();
    text.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
}

fn namespace(place: &Place) -> std::path::PathBuf {
    std::fs::read_link(format!("/proc/{}/ns/net", place.pid())).unwrap()
}

#[test]
fn a_wrong_checksum_fails_the_lab() {
    let lab = Lab::start(&two_nodes(Wiring::Routed)).unwrap();
    lab.check().unwrap();
    lab.expect_errors();
    let (from, to) = (lab.place("a1"), lab.place("a2"));
    to.serve(&[], &[TARGET]).unwrap();
    // IPv4's optional UDP checksum, wrong on purpose: a raw socket takes the datagram as it is.
    let kind = SocketKind { domain: libc::AF_INET, kind: libc::SOCK_RAW, protocol: libc::IPPROTO_UDP };
    let raw = std::net::UdpSocket::from(from.socket(kind).unwrap());
    let (source, target) = (4000u16.to_be_bytes(), TARGET.to_be_bytes());
    let datagram = [source[0], source[1], target[0], target[1], 0, 9, 0xde, 0xad, b'x'];
    raw.send_to(&datagram, (to.address(Family::V4), 0)).unwrap();
    let error = wait::until("the wrong checksum is counted", || {
        lab.check().err().ok_or_else(|| anyhow::anyhow!("nothing counted"))
    });
    assert!(error.unwrap().to_string().contains("InCsumErrors"));
}

#[test]
fn a_load_makes_2500_connections_a_second_and_names_what_fails() {
    let lab = Lab::start(&two_nodes(Wiring::Routed)).unwrap();
    let (client, server) = (lab.place("a1"), lab.place("a2"));
    let echo = server.serve(&[TARGET], &[]).unwrap();
    let load = Load::start(client, (server.address(Family::V4), TARGET).into(), 3000);
    load.wait_for(5000).unwrap();
    echo.stop().unwrap();
    wait::until_true("a connection fails", || load.failed() > 0).unwrap();
    let tally = load.stop();
    assert!(tally.answered["a2"] >= 5000, "{tally:?}");
    assert!(tally.rate() >= 2500.0, "{} a second: {tally:?}", tally.rate());
    let refused = std::io::Error::from(Errno::ECONNREFUSED).to_string();
    assert!(tally.failed.contains_key(&refused), "{tally:?}");
}
