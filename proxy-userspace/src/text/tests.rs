//! What people are shown, held as it is.

use std::{net::IpAddr, time::Duration};

use proxy_common::{
    Address,
    Protocol::{self, Tcp, Udp},
    layout::{Backend, Frontend, FrontendKey, FrontendKind, Policy, Service},
};

use super::*;
use crate::{
    model::{ObjectName, Source},
    plan::Actual,
    report::{Fill, Moment, NodeState, Report, Written},
};

fn address(text: &str) -> Address {
    text.parse::<IpAddr>().unwrap().into()
}

fn frontend(actual: &mut Actual, at: &str, port: u16, protocol: Protocol, kind: FrontendKind, service: u32) {
    let host_denied = u8::from(kind == FrontendKind::LoadBalancer);
    let value = Frontend { service, kind, host_denied, reserved: 0 };
    actual.frontends.insert(FrontendKey::new(address(at), port, protocol), value);
}

/// A service with one endpoint in each run, one without endpoints, one that is not programmed.
fn actual() -> Actual {
    let mut actual = Actual::default();
    let names = ["shop/web:http/TCP/IPv4", "shop/dns:/UDP/IPv6", "shop/new:http/TCP/IPv4"];
    actual.names = (0..).zip(names.map(str::to_owned)).collect();
    let kinds = [FrontendKind::ClusterIp, FrontendKind::LoadBalancer];
    for (at, kind) in ["10.96.0.1", "203.0.113.7"].into_iter().zip(kinds) {
        frontend(&mut actual, at, 80, Tcp, kind, 0);
    }
    frontend(&mut actual, "0.0.0.0", 30080, Tcp, FrontendKind::NodePort, 0);
    frontend(&mut actual, "fd00:96::1", 53, Udp, FrontendKind::ClusterIp, 1);
    frontend(&mut actual, "10.96.0.3", 80, Tcp, FrontendKind::ClusterIp, 2);
    let policy = Policy::ANY_ENDPOINTS | Policy::INTERNAL_LOCAL | Policy::EXTERNAL_LOCAL;
    actual.services.insert(0, Service { extent: 7, affinity_seconds: 10_800 });
    actual.backends.insert(7, Backend::extent(0, 1, 1, 1, policy));
    for (slot, at) in (8..).zip(["10.0.0.1", "10.0.0.2", "10.0.0.3"]) {
        actual.backends.insert(slot, Backend::endpoint(0, address(at), 8080));
    }
    actual.services.insert(1, Service { extent: 20, affinity_seconds: 0 });
    actual.backends.insert(20, Backend::extent(1, 0, 0, 0, Policy::HOST_REJECT_LEFT));
    actual
}

#[test]
fn services_have_a_row_each_with_all_their_frontends() {
    insta::assert_snapshot!(services_text(&services(&actual())), @r"
    SERVICE                  FRONTENDS                                                  CLUSTER   LOCAL   POLICY                           AFFINITY
    shop/dns:/UDP/IPv6       ClusterIP [fd00:96::1]:53/UDP                              0         0
    shop/new:http/TCP/IPv4   ClusterIP 10.96.0.3:80/TCP                                 -         -
    shop/web:http/TCP/IPv4   ClusterIP 10.96.0.1:80/TCP                                 2         2       internal Local, external Local   3 h
                             NodePort *:30080/TCP
                             LoadBalancer 203.0.113.7:80/TCP, not for the node itself
    ");
}

#[test]
fn programs_get_services_and_endpoints_by_stable_names() {
    let mut services = services(&actual());
    services.retain(|row| row.service == "shop/web");
    let backends: Vec<_> = backends(&actual()).into_iter().take(1).collect();
    insta::assert_snapshot!(serde_json::to_string_pretty(&(services, backends)).unwrap(), @r#"
    [
      [
        {
          "name": "shop/web:http/TCP/IPv4",
          "service": "shop/web",
          "port": "http",
          "protocol": "TCP",
          "family": "IPv4",
          "index": 0,
          "frontends": [
            {
              "kind": "ClusterIP",
              "address": "10.96.0.1",
              "port": 80,
              "protocol": "TCP",
              "hostDenied": false
            },
            {
              "kind": "NodePort",
              "address": null,
              "port": 30080,
              "protocol": "TCP",
              "hostDenied": false
            },
            {
              "kind": "LoadBalancer",
              "address": "203.0.113.7",
              "port": 80,
              "protocol": "TCP",
              "hostDenied": true
            }
          ],
          "programmed": true,
          "clusterEndpoints": 2,
          "localEndpoints": 2,
          "policy": [
            "anyEndpoints",
            "internalLocal",
            "externalLocal"
          ],
          "affinitySeconds": 10800
        }
      ],
      [
        {
          "name": "shop/web:http/TCP/IPv4",
          "service": "shop/web",
          "address": "10.0.0.1",
          "port": 8080,
          "cluster": true,
          "local": false
        }
      ]
    ]
    "#);
}

#[test]
fn endpoints_have_a_row_each_with_the_sets_they_are_in() {
    insta::assert_snapshot!(backends_text(&backends(&actual())), @r"
    SERVICE                  ENDPOINT        SETS
    shop/web:http/TCP/IPv4   10.0.0.1:8080   cluster
    shop/web:http/TCP/IPv4   10.0.0.2:8080   both
    shop/web:http/TCP/IPv4   10.0.0.3:8080   local
    ");
}

#[test]
fn an_extent_that_is_anothers_is_not_shown_as_ones_own() {
    let mut actual = actual();
    actual.services.insert(2, Service { extent: 7, affinity_seconds: 0 });
    let row = services(&actual).into_iter().find(|row| row.index == 2).unwrap();
    assert!(!row.programmed && row.cluster_endpoints == 0);
    assert_eq!(backends(&actual).len(), 3);
}

const NOW: u64 = 1_800_000_000;

fn at(ago: u64) -> Moment {
    Moment(Moment::default().0 + Duration::from_secs(NOW - ago))
}

/// Of an agent that is well.
fn report() -> Report {
    let sources = [Source::Services, Source::Slices, Source::Node, Source::LocalRoutes];
    let mut report = Report::new("node-1", &sources);
    (report.version, report.pid) = ("0.1.0".into(), 4242);
    (report.started, report.published) = (at(7380), at(3));
    for (state, ago) in report.sources.iter_mut().zip([2, 3, 40, 7380]) {
        (state.synced, state.heard, state.changes) = (true, Some(at(ago)), 12);
    }
    report.node = Some(NodeState { leaving: false });
    let written = Written { at: at(3), passes: 17, steps: 12, microseconds: 340, fill: Fill::default() };
    report.applied = Some(written);
    report
}

fn programs() -> Vec<ProgramRow> {
    let row = |(name, id): (&'static str, u32)| ProgramRow {
        name,
        pinned: true,
        cgroup_id: Some(1),
        cgroup: Some("/sys/fs/cgroup".into()),
        program_id: Some(id),
        verified_instructions: Some(1000 + id),
    };
    [("connect4", 61), ("connect6", 62)].map(row).into()
}

fn status(agent: Result<Report, String>, programs: Vec<ProgramRow>) -> Status {
    let map = |name, used, room, bytes| MapRow { name, used, room, bytes };
    let maps = vec![
        map("frontends", Some(5), Some(4096), Some(655_360)),
        map("ports", None, Some(1024), None),
        map("connected", None, None, Some(4096)),
    ];
    let outcomes = vec![Outcome { reason: "connected", count: 9, help: "connect() was given a backend." }];
    Status::new(agent, programs, Vec::new(), maps, outcomes, at(0))
}

#[test]
fn a_node_that_is_well_says_so_in_its_first_line_and_by_its_code() {
    let status = status(Ok(report()), programs());
    assert_eq!(status.code, 0);
    insta::assert_snapshot!(status.text(at(0), false), @r"
    view       3 s old (services, slices heard from; synced)
    agent      process 4242, version 0.1.0, since 2027-01-15T05:57:00Z (2 h 3 min)
    node       node-1
    written    12 steps in 340 µs, 3 s ago (pass 17)
    pending    nothing
    error      none

    SOURCE        SYNCED   HEARD           CHANGES   BROKEN
    services      yes      2 s ago         12
    slices        yes      3 s ago         12
    node          yes      40 s ago        12
    localRoutes   yes      2 h 3 min ago   12

    PROGRAM    CGROUP           ID   VERIFIED
    connect4   /sys/fs/cgroup   61   1061
    connect6   /sys/fs/cgroup   62   1062

    MAP         USED   ROOM   FILL   MEMORY
    frontends   5      4096   0%     640.0 KiB
    ports       -      1024   -      -
    connected   -      -      -      4.0 KiB

    OUTCOME     COUNT   MEANING
    connected   9       connect() was given a backend.
    ");
}

#[test]
fn without_an_agent_that_is_said_first() {
    let status = status(Err("ask on /run/vipr/x.sock: No such file or directory".into()), programs());
    assert_eq!((status.code, status.view_age_seconds), (Status::NO_AGENT, None));
    insta::assert_snapshot!(status.text(at(0), false).lines().take(6).collect::<Vec<_>>().join("\n"), @r"
    view       unknown: no agent answers (ask on /run/vipr/x.sock: No such file or directory)
    agent      none: the node serves from what is pinned

    PROGRAM    CGROUP           ID   VERIFIED
    connect4   /sys/fs/cgroup   61   1061
    connect6   /sys/fs/cgroup   62   1062
    ");
}

#[test]
fn what_is_wrong_is_listed_and_is_the_code() {
    let mut report = report();
    report.error = Some("the table frontends is full (4096 entries)".into());
    report.pending_since = Some(at(61));
    report.sources[1].broken = Some("connection refused".into());
    report.node = None;
    (report.repaired, report.grown) = (1, 2);
    for name in 0..12 {
        let who = ObjectName::new("shop", &format!("bad-{name}"));
        report.note(Source::Services, &who, "spec.ports[0].port: 70000 is no port", name % 2 == 0);
    }
    report.odd.iter_mut().for_each(|odd| odd.at = at(5));
    let mut programs = programs();
    programs[0] =
        ProgramRow { pinned: false, cgroup_id: None, cgroup: None, program_id: None, ..programs[0].clone() };
    programs[1] = ProgramRow { cgroup_id: None, cgroup: None, ..programs[1].clone() };
    let status = status(Ok(report), programs);
    assert_eq!(status.code, Status::ATTENTION);
    let alone = Status::new(Err("no socket".into()), status.programs.clone(), vec![], vec![], vec![], at(0));
    assert_eq!((alone.code, alone.attention.len()), (Status::ATTENTION, 2));
    assert_eq!(alone.text(at(0), false).lines().nth(1), Some("agent      none"));
    insta::assert_snapshot!(status.text(at(0), false), @r"
    view       3 s old (services, slices heard from; synced)
    agent      process 4242, version 0.1.0, since 2027-01-15T05:57:00Z (2 h 3 min)
    node       node-1 (its Node object was never seen)
    written    12 steps in 340 µs, 3 s ago (pass 17)
    pending    a change, for 1 min 1 s
    error      the table frontends is full (4096 entries)
    repaired   1 difference put right, tables grown 2 times
    attention  the last pass failed: the table frontends is full (4096 entries)
    attention  slices can't be heard: connection refused
    attention  not attached: connect4
    attention  connect6 was detached from its cgroup

    SOURCE        SYNCED   HEARD           CHANGES   BROKEN
    services      yes      2 s ago         12
    slices        yes      3 s ago         12        connection refused
    node          yes      40 s ago        12
    localRoutes   yes      2 h 3 min ago   12

    LEFT OUT   SOURCE     OBJECT        WHAT        WHY
    5 s ago    services   shop/bad-11   a part      spec.ports[0].port: 70000 is no port
    5 s ago    services   shop/bad-10   all of it   spec.ports[0].port: 70000 is no port
    5 s ago    services   shop/bad-9    a part      spec.ports[0].port: 70000 is no port
    5 s ago    services   shop/bad-8    all of it   spec.ports[0].port: 70000 is no port
    5 s ago    services   shop/bad-7    a part      spec.ports[0].port: 70000 is no port
    5 s ago    services   shop/bad-6    all of it   spec.ports[0].port: 70000 is no port
    5 s ago    services   shop/bad-5    a part      spec.ports[0].port: 70000 is no port
    5 s ago    services   shop/bad-4    all of it   spec.ports[0].port: 70000 is no port
    5 s ago    services   shop/bad-3    a part      spec.ports[0].port: 70000 is no port
    5 s ago    services   shop/bad-2    all of it   spec.ports[0].port: 70000 is no port
    and 2 before

    PROGRAM    CGROUP         ID   VERIFIED
    connect4   not attached   -    1061
    connect6   detached       62   1062

    MAP         USED   ROOM   FILL   MEMORY
    frontends   5      4096   0%     640.0 KiB
    ports       -      1024   -      -
    connected   -      -      -      4.0 KiB

    OUTCOME     COUNT   MEANING
    connected   9       connect() was given a backend.
    ");
}

#[test]
fn what_is_left_of_another_proxy_is_said_with_and_without_an_agent() {
    for agent in [Ok(report()), Err("no socket".into())] {
        let status = status(agent, programs()).with_handed_over(Some(2));
        let text = status.text(at(0), false);
        let line = text.lines().find(|line| line.starts_with("handover"));
        assert_eq!(
            line.and_then(|line| line.split_once("  ")).map(|(_, rest)| rest.trim()),
            Some(
                "2 connections of another proxy left to netfilter: no `kube-proxy --cleanup` before they end"
            ),
            "{text}"
        );
        assert!(!status.with_handed_over(None).text(at(0), false).contains("handover"));
    }
}

#[test]
fn before_all_sources_have_spoken_the_age_is_unknown() {
    let mut report = report();
    for state in &mut report.sources[..2] {
        (state.synced, state.heard) = (false, None);
    }
    report.applied = None;
    let text = status(Ok(report), programs()).text(at(0), false);
    assert_eq!(
        text.lines().next(),
        Some("view       unknown: services, slices have not told everything yet")
    );
}

#[test]
fn a_status_for_programs_has_stable_names() {
    let mut status = status(Err("no socket".into()), programs());
    status.maps.truncate(1);
    status.programs.truncate(1);
    let ingress = Some(SideRow { attached_by: "tcx", place: 2, of: 2, program_id: 70 });
    let problem = Some("the program at egress was detached".into());
    status.devices = vec![DeviceRow { name: "eth0".into(), ifindex: 2, ingress, egress: None, problem }];
    insta::assert_snapshot!(serde_json::to_string_pretty(&status).unwrap(), @r#"
    {
      "code": 3,
      "viewAgeSeconds": null,
      "agent": null,
      "agentError": "no socket",
      "handedOver": null,
      "attention": [],
      "programs": [
        {
          "name": "connect4",
          "pinned": true,
          "cgroupId": 1,
          "cgroup": "/sys/fs/cgroup",
          "programId": 61,
          "verifiedInstructions": 1061
        }
      ],
      "devices": [
        {
          "name": "eth0",
          "ifindex": 2,
          "ingress": {
            "attachedBy": "tcx",
            "place": 2,
            "of": 2,
            "programId": 70
          },
          "egress": null,
          "problem": "the program at egress was detached"
        }
      ],
      "maps": [
        {
          "name": "frontends",
          "used": 5,
          "room": 4096,
          "bytes": 655360
        }
      ],
      "flows": [],
      "outcomes": [
        {
          "reason": "connected",
          "count": 9,
          "help": "connect() was given a backend."
        }
      ]
    }
    "#);
}

#[test]
fn durations_have_two_units_at_most() {
    let texts = [0, 59, 60, 61, 3600, 7380, 86400, 180_000].map(|s| duration(Duration::from_secs(s)));
    assert_eq!(texts, ["0 s", "59 s", "1 min", "1 min 1 s", "1 h", "2 h 3 min", "1 d", "2 d 2 h"]);
}

#[test]
fn columns_are_as_wide_as_their_widest_cell_and_lines_end_with_their_text() {
    let rows = [["a-long-name".into(), String::new()], ["b".into(), "two\nlines".into()]];
    insta::assert_snapshot!(table(["NAME", "WHAT"], rows), @r"
    NAME          WHAT
    a-long-name
    b             two
                  lines
    ");
}
