//! The packet plane's programs in the kernel, frame by frame: what goes in, what comes out, all checksums made again from
//! scratch, and one outcome counted for each. The same stories are told of the pure decisions in `proxy-common`.

mod packets;
mod stage;
#[path = "../../proxy-common/tests/wire/mod.rs"]
mod wire;

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Instant;

use anyhow::ensure;
use packets::{Ground, NEXT, POD, REDIRECT, SHOT, UPLINK, fragment, ground, quoted};
use proxy_common::layout::{FrontendKind, Pods, Policy};
use proxy_common::names::map;
use proxy_common::{Protocol, Reason};
use proxy_lab::frame::Met;
use proxy_lab::{Family, wait};
use stage::{NODE_PORT, TARGET, features};
use vipr::dataplane::probe::Features;
use vipr::dataplane::shapes::FENCE;
use vipr::dataplane::sys;
use vipr::dataplane::tables::Fence;
use vipr::dataplane::traces::Traces;
use wire::{ACK, FIN, RST, SYN, icmp, seen, segment, tcp, udp};

/// A pod of the node, the service it dials, and the service's endpoint on the other node.
const ENDS: [[&str; 3]; 2] = [
    ["10.244.1.11:5000", "10.96.0.10:80", "10.244.2.11:8080"],
    ["[fd00:244:1::b]:5000", "[fd00:96::10]:80", "[fd00:244:2::b]:8080"],
];
const PROTOCOLS: [u8; 3] = [6, 17, 132];
/// Somebody outside.
const CLIENTS: [&str; 2] = ["203.0.113.9:6000", "[2001:db8::9]:6000"];

fn probed() -> Ground {
    ground(|lab| features(lab)[0].1)
}

#[test]
fn a_pod_reaches_a_cluster_ip_and_is_answered_from_what_it_dialled() {
    for number in 0..2 {
        let ground = ground(|lab| features(lab)[number].1);
        for protocol in PROTOCOLS {
            for [pod, dialled, endpoint] in ENDS {
                for reason in [Reason::FlowOpened, Reason::FlowKept] {
                    let there = ground.ingress(POD[0], segment(protocol, pod, dialled, SYN, b"odd"));
                    assert_eq!(there.ends(), format!("{pod} > {endpoint}"));
                    assert_eq!(there.reason, reason, "{protocol}");
                }
                let there = segment(protocol, pod, endpoint, SYN, b"odd");
                let passed = ground.egress(UPLINK, there.clone());
                assert_eq!((passed.returned, passed.reason), (NEXT, Reason::NotService));
                assert_eq!(passed.frame, there, "byte for byte");
                let back = segment(protocol, endpoint, pod, SYN | ACK, b"even");
                let back = ground.egress(POD[0], back);
                assert_eq!(back.ends(), format!("{dialled} > {pod}"));
                assert_eq!(back.reason, Reason::ReplyRestored);
            }
        }
        let answered = 2 * PROTOCOLS.len() * ENDS.len();
        assert_eq!(
            ground.keys(map::FLOWS),
            answered / PROTOCOLS.len(),
            "two keys for each that is datagrams"
        );
        for protocol in [6, 132] {
            for [pod, dialled, _] in ENDS {
                ground.ingress(POD[0], segment(protocol, pod, dialled, ACK, b""));
            }
        }
        assert_eq!(ground.keys(map::FLOWS), answered, "each once its client has heard of the answer");
    }
}

#[test]
fn a_client_outside_is_masqueraded_and_hears_from_the_node_port_that_it_dialled() {
    let ground = probed();
    let plane = ground.settings();
    for protocol in PROTOCOLS {
        for (client, family) in CLIENTS.into_iter().zip(Family::ALL) {
            let [_, _, endpoint] = ENDS[usize::from(family == Family::V6)];
            let node = SocketAddr::new(ground.own(family), NODE_PORT).to_string();
            let there = ground.ingress(UPLINK, segment(protocol, client, &node, SYN, b"odd"));
            assert_eq!((there.ends(), there.reason), (format!("{client} > {endpoint}"), Reason::FlowOpened));
            let there = ground.egress(UPLINK, there.frame);
            assert_eq!(there.reason, Reason::Masqueraded);
            there.ends();
            let shown = seen(&there.frame).source;
            assert_eq!(shown.ip(), ground.own(family));
            assert!((plane.first_port..=plane.last_port).contains(&shown.port()), "{shown}");
            let back = segment(protocol, endpoint, &shown.to_string(), SYN | ACK, b"");
            let back = ground.ingress(UPLINK, back);
            assert_eq!((back.ends(), back.reason), (format!("{endpoint} > {client}"), Reason::Unmasqueraded));
            let back = ground.egress(UPLINK, back.frame);
            assert_eq!((back.ends(), back.reason), (format!("{node} > {client}"), Reason::ReplyRestored));
            // The rest of the connection keeps its port.
            let there = ground.ingress(UPLINK, segment(protocol, client, &node, ACK, b"more"));
            assert_eq!(there.reason, Reason::FlowKept);
            let there = ground.egress(UPLINK, there.frame);
            assert_eq!(there.ends(), format!("{shown} > {endpoint}"));
        }
    }
}

#[test]
fn a_packet_of_no_service_stays_as_it_is_byte_for_byte() {
    let ground = probed();
    for frame in [
        tcp("10.244.1.11:5000", "10.244.2.11:8080", SYN),
        udp("10.244.1.11:5000", "10.244.2.11:53"),
        tcp("[fd00:244:1::b]:5000", "[fd00:244:2::b]:443", ACK),
        icmp("10.244.1.11", "10.244.2.11", [8, 0], [0, 1, 0, 1], b"ping"),
        wire::framed(&[0x40; 40]),
    ] {
        for result in [ground.ingress(POD[0], frame.clone()), ground.egress(UPLINK, frame.clone())] {
            assert_eq!(result.returned, NEXT);
            assert_eq!(result.frame.bytes[6..], frame.bytes[6..], "{}", result.reason.name());
        }
    }
}

#[test]
fn a_datagram_without_a_checksum_gets_none() {
    let ground = probed();
    let mut frame = udp("10.244.1.11:5000", "10.96.0.10:80");
    frame.bytes[14 + 20 + 6..14 + 20 + 8].fill(0);
    let there = ground.ingress(POD[0], frame);
    assert_eq!(there.ends(), "10.244.1.11:5000 > 10.244.2.11:8080");
    assert_eq!(there.frame.bytes[14 + 20 + 6..14 + 20 + 8], [0, 0]);
}

#[test]
fn a_checksum_of_sctp_that_the_device_fills_in_stays_empty() {
    let ground = probed();
    for [pod, dialled, endpoint] in ENDS {
        let mut frame = segment(132, pod, dialled, 1, b"init");
        let field = frame.bytes.len() - 12..frame.bytes.len() - 8;
        let l4 = field.start - 8;
        frame.bytes[field.clone()].fill(0);
        let there = ground.ingress(POD[0], frame);
        assert_eq!((there.returned, there.reason), (NEXT, Reason::FlowOpened), "{dialled}");
        assert_eq!(there.frame.bytes[l4 + 2..l4 + 4], stage::to(endpoint).port().to_be_bytes());
        assert_eq!(there.frame.bytes[field], [0; 4], "{dialled}");
    }
}

#[test]
fn a_service_without_endpoints_ends_the_packet_and_says_why() {
    let mut ground = probed();
    ground.empty(Policy::ANY_ENDPOINTS);
    for [pod, dialled, _] in ENDS {
        let result = ground.ingress(POD[0], tcp(pod, dialled, SYN));
        assert_eq!((result.returned, result.reason), (SHOT, Reason::PolicyDropped), "elsewhere");
    }
    ground.empty(0);
    for ([pod, dialled, _], family) in ENDS.into_iter().zip(Family::ALL) {
        for protocol in PROTOCOLS {
            for (payload, most) in
                [(&[7; 3][..], 1400), (&[7; 1400], if family == Family::V4 { 576 } else { 1280 })]
            {
                let result = ground.ingress(POD[0], segment(protocol, pod, dialled, SYN, payload));
                assert_eq!((result.returned, result.reason), (REDIRECT, Reason::Rejected), "nowhere");
                assert!(result.frame.bytes.len() <= 14 + most, "{} bytes", result.frame.bytes.len());
                let told = seen(&result.frame);
                assert_eq!(
                    (told.source.ip(), told.destination.ip()),
                    (ground.own(family), stage::to(pod).ip())
                );
                let quoted = told.quoted.expect("an error");
                assert_eq!((quoted.source, quoted.destination), (stage::to(pod), stage::to(dialled)));
            }
        }
    }
}

#[test]
fn a_flood_that_is_refused_is_answered_only_so_often() {
    let mut ground = probed();
    ground.empty(0);
    let [pod, dialled, _] = ENDS[0];
    // A thousand a second and CPU are told; many more fit into a second.
    wait::until("some are not told any more", || {
        ground.flood(POD[0], &udp(pod, dialled), 20_000);
        let counts = ground.plane.counts()?;
        let silent = counts.iter().find(|(reason, _)| *reason == Reason::RejectedSilently);
        ensure!(silent.is_some_and(|(_, count)| *count > 0), "all were answered");
        Ok(())
    })
    .unwrap();
}

#[test]
fn what_only_translation_gives_a_meaning_does_not_leave_the_node() {
    let ground = probed();
    for protocol in PROTOCOLS {
        let frame = segment(protocol, "192.168.77.11:4000", "10.96.0.10:80", SYN, b"");
        let result = ground.sent(UPLINK, frame.clone());
        // To no device: a drop would tell the sender of a full queue.
        assert_eq!((result.returned, result.reason), (REDIRECT, Reason::GuardDropped));
        let result = ground.egress(UPLINK, frame);
        assert_eq!((result.returned, result.reason), (NEXT, Reason::NotService), "forwarded");
    }
}

#[test]
fn an_error_about_a_translated_packet_is_shown_about_the_one_that_was_sent() {
    let ground = probed();
    for ([pod, dialled, endpoint], router) in ENDS.into_iter().zip(["192.168.77.1", "fd00:77::1"]) {
        for protocol in PROTOCOLS {
            let there = ground.ingress(POD[0], segment(protocol, pod, dialled, SYN, &[7; 40]));
            let host = stage::to(pod).ip().to_string();
            let (kind, word) = if protocol == 6 { ([3, 4], [0, 0, 5, 0]) } else { ([11, 0], [0; 4]) };
            let kind = if router.contains(':') { [if protocol == 6 { 2 } else { 3 }, 0] } else { kind };
            let quotation = quoted(&there.frame);
            for length in [quotation.len(), if router.contains(':') { 48 } else { 28 }] {
                let error = icmp(router, &host, kind, word, &quotation[..length]);
                let told = ground.egress(POD[0], error);
                assert_eq!(told.reason, Reason::ErrorTranslated, "{protocol}");
                let from = if router.contains(':') { "fd00:96::10" } else { "10.96.0.10" };
                assert!(
                    told.ends().ends_with(&format!("> {host} about {pod} > {dialled}")),
                    "{} ({from}, {endpoint})",
                    told.ends()
                );
            }
        }
    }
}

#[test]
fn later_fragments_follow_the_first() {
    let ground = probed();
    let whole = segment(17, "10.244.1.11:5000", "10.96.0.10:80", 0, &[3; 3000]);
    let (first, later) = (fragment(&whole, 0, 1480), fragment(&whole, 1480, 3008));
    let early = ground.ingress(POD[0], later.clone());
    assert_eq!((early.returned, early.reason), (NEXT, Reason::FragmentPlain));
    let first = ground.ingress(POD[0], first);
    assert_eq!(
        (first.ends().as_str(), first.reason),
        ("10.244.1.11:5000 > 10.244.2.11:8080", Reason::FlowOpened)
    );
    let later = ground.ingress(POD[0], later);
    assert_eq!((later.ends().as_str(), later.reason), ("10.244.1.11 > 10.244.2.11", Reason::FlowKept));
    // Put together again, the checksum is right.
    let joined = [&quoted(&first.frame)[20..], &quoted(&later.frame)[20..]].concat();
    let (from, to) = (stage::to("10.244.1.11:5000"), stage::to("10.244.2.11:8080"));
    assert_eq!(joined, wire::transport(17, from, to, 0, &[3; 3000]));
}

#[test]
fn a_later_fragment_for_a_service_is_dropped_until_its_first_one_has_come() {
    let mut ground = probed();
    for ([from, vip, _], others) in ENDS.into_iter().zip(["10.96.0.77:80", "[fd00:96::77]:80"]) {
        let pieces = |to: &str| {
            let whole = segment(17, from, to, 0, &[3; 3000]);
            (fragment(&whole, 0, 1480), fragment(&whole, 1480, 3008))
        };
        // Without what says that the address is a Service's, as of one that is dialled by TCP alone.
        let (first, later) = pieces(vip);
        let early = ground.ingress(POD[0], later.clone());
        assert_eq!((early.returned, early.reason), (NEXT, Reason::FragmentPlain), "{vip}");
        let mark = SocketAddr::new(stage::to(vip).ip(), 0);
        ground.plane.frontend(mark, Protocol::Udp, FrontendKind::ClusterIp, 0).unwrap();
        let early = ground.ingress(POD[0], later.clone());
        assert_eq!((early.returned, early.reason), (SHOT, Reason::FragmentEarly), "{vip}");
        let first = ground.ingress(POD[0], first);
        assert_eq!((first.returned, first.reason), (NEXT, Reason::FlowOpened), "{vip}");
        let later = ground.ingress(POD[0], later);
        assert_eq!((later.returned, later.reason), (NEXT, Reason::FlowKept), "{vip}");
        assert_eq!(seen(&later.frame).destination.ip(), seen(&first.frame).destination.ip());
        let (_, others) = pieces(others);
        let other = ground.ingress(POD[0], others);
        assert_eq!((other.returned, other.reason), (NEXT, Reason::FragmentPlain), "nobody's of ours");
    }
}

#[test]
fn what_is_not_for_this_host_or_on_a_device_nobody_described_passes() {
    let ground = probed();
    let frame = tcp("10.244.1.11:5000", "10.96.0.10:80", SYN);
    let met = Met { on: ground.index(POD[0]), from: ground.index(POD[0]) };
    let result = ground.run(0, met, frame.clone());
    assert_eq!((result.returned, result.reason), (NEXT, Reason::NotForHost));
    ground.forget(POD[0]);
    let result = ground.ingress(POD[0], frame);
    assert_eq!((result.returned, result.reason), (NEXT, Reason::UnknownDevice));
}

#[test]
fn a_cluster_ip_is_masqueraded_for_whoever_is_no_pod_of_this_node() {
    let mut ground = probed();
    ground.policy(Policy::POD_DETECTOR);
    let foreign = "10.244.2.12:5000";
    for (pods, from, masqueraded) in [
        (Pods::InRange, "10.244.1.12:5000", false),
        (Pods::InRange, foreign, true),
        (Pods::All, foreign, false),
    ] {
        ground.describe(POD[1], pods);
        let from = from.replace("5000", &format!("50{}{}", pods as u8, u8::from(masqueraded)));
        let there = ground.ingress(POD[1], tcp(&from, "10.96.0.10:80", SYN));
        assert_eq!(there.reason, Reason::FlowOpened);
        let out = ground.egress(UPLINK, there.frame);
        let expected = if masqueraded { Reason::Masqueraded } else { Reason::NotService };
        assert_eq!(out.reason, expected, "{from} {pods:?}");
    }
}

#[test]
fn two_clients_behind_the_same_port_of_one_backend_are_told_apart() {
    let ground = probed();
    let mut shown = Vec::new();
    for client in ["203.0.113.9:6000", "203.0.113.10:6000", "203.0.113.11:6000"] {
        let there = ground.ingress(UPLINK, tcp(client, "192.168.77.11:30080", SYN));
        let there = ground.egress(UPLINK, there.frame);
        shown.push((client, seen(&there.frame).source));
    }
    for (client, shown) in &shown {
        let back = ground.ingress(UPLINK, tcp("10.244.2.11:8080", &shown.to_string(), SYN | ACK));
        assert_eq!(back.ends(), format!("10.244.2.11:8080 > {client}"));
    }
    assert!(shown[0].1 != shown[1].1 && shown[1].1 != shown[2].1 && shown[0].1 != shown[2].1, "{shown:?}");
}

#[test]
fn an_agent_that_starts_again_finds_every_flow_and_its_seed() {
    let mut ground = probed();
    let (client, node) = ("203.0.113.9:6000", "192.168.77.11:30080");
    let there = ground.ingress(UPLINK, tcp(client, node, SYN));
    let shown = seen(&ground.egress(UPLINK, there.frame).frame).source.to_string();
    let before = ground.settings();
    assert_ne!(before.seed, 0);
    let features: Features = features(&ground.lab)[0].1;
    ground.again(features);
    assert_eq!(ground.settings(), before);
    let back = ground.ingress(UPLINK, tcp("10.244.2.11:8080", &shown, SYN | ACK));
    assert_eq!(back.ends(), format!("10.244.2.11:8080 > {client}"));
}

#[test]
fn a_connection_that_ended_may_be_dialled_again_from_the_same_port() {
    let ground = probed();
    let [pod, dialled, endpoint] = ENDS[0];
    for (frame, back) in [(SYN, SYN | ACK), (ACK, FIN | ACK), (FIN | ACK, ACK)] {
        ground.ingress(POD[0], tcp(pod, dialled, frame));
        assert_eq!(ground.egress(POD[0], tcp(endpoint, pod, back)).reason, Reason::ReplyRestored);
    }
    let again = ground.ingress(POD[0], tcp(pod, dialled, SYN));
    assert_eq!((again.ends(), again.reason), (format!("{pod} > {endpoint}"), Reason::FlowMoved));
    let reset = ground.egress(POD[0], tcp(endpoint, pod, RST | ACK));
    assert_eq!((reset.ends(), reset.reason), (format!("{dialled} > {pod}"), Reason::ReplyRestored));
    assert_eq!(TARGET, stage::to(endpoint).port());
}

#[test]
fn what_flows_have_left_behind_is_taken_away_and_the_living_stay_known() {
    let ground = probed();
    let path = |name: &str| ground.options.pin_path.join(name);
    let fence = Fence::open(FENCE.shape, &path(map::FENCE)).unwrap();
    // As after a start: every byte is set.
    let tidy = || Traces::open(path).unwrap().tidy(&fence, Instant::now()).unwrap();
    assert_eq!(tidy(), Some(0));
    let [pod, dialled, endpoint] = ENDS[0];
    let [there, back] = [tcp(pod, dialled, SYN), tcp(endpoint, pod, SYN | ACK)];
    assert_eq!(ground.ingress(POD[0], there).reason, Reason::FlowOpened);
    assert_eq!(ground.egress(POD[0], back.clone()).reason, Reason::ReplyRestored);
    assert_eq!(tidy(), Some(2), "a byte for each of its keys");
    assert_eq!(ground.ingress(POD[0], tcp(pod, dialled, ACK)).reason, Reason::FlowKept);
    assert_eq!(ground.egress(POD[0], back).reason, Reason::ReplyRestored);
    for table in [map::FLOWS, map::FLOWS_NEW_TCP].map(|name| ground.map(name)) {
        let mut keys = Vec::new();
        table.each(|key, _| keys.push(key.to_vec())).unwrap();
        for key in keys {
            sys::delete(table.as_fd(), &key).unwrap();
        }
    }
    assert_eq!(tidy(), Some(0), "of no flow any more");
}
