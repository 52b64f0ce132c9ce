//! The loop on a dataplane in memory, event by event.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use proxy_common::{
    Protocol,
    datapath::{Call, lookup::lookup, select::extent},
    layout::Connected,
};

use super::*;
use crate::model::Source;
use crate::{
    dataplane::{Memory, memory::Faults},
    model::{Endpoint, Family, Node, ObjectName, Placement, Port, Service, Settings, Slice, SlicePort},
};

const SOURCES: [Source; 4] = [Source::Services, Source::Slices, Source::Node, Source::LocalRoutes];
const ROOM: Capacity = Capacity {
    frontends: 64,
    services: 64,
    backends: 256,
    local_addresses: 64,
    devices: 64,
    source_ranges: 64,
    masquerade: 64,
};

fn reconciler(dataplane: Memory) -> (Reconciler<Memory>, watch::Receiver<Report>) {
    let (to, report) = watch::channel(Report::new("node-1", &SOURCES));
    let model = Model::new(Settings { node_name: "node-1".into(), ..Settings::default() });
    (Reconciler::new(model, dataplane, Pace::default(), to, Measures::default()), report)
}

fn said(change: Change) -> Event {
    let source = match &change {
        Change::Service(..) | Change::Services(_) => Source::Services,
        Change::Slice(..) | Change::Slices(_) => Source::Slices,
        Change::Node(_) => Source::Node,
        Change::LocalRoutes(_) => Source::LocalRoutes,
        Change::Links(_) => Source::Links,
        Change::HostSources(_) => Source::HostSources,
        Change::Listeners(_) => Source::Listeners,
        Change::LeftPod(..) | Change::LeftPods(_) => Source::Pods,
        Change::Groups(_) => Source::Groups,
        Change::ApiServers(_) => Source::ApiServers,
        Change::ServiceCidr(..) | Change::ServiceCidrs(_) => Source::ServiceCidrs,
        Change::Malformed { source, .. } => *source,
    };
    Event::now(source, What::Change { change, trigger: None })
}

fn service(number: u8) -> Service {
    Service {
        name: ObjectName::new("default", &format!("web-{number}")),
        cluster_ips: vec![IpAddr::from([10, 96, 0, number])],
        ports: vec![Port { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 }],
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        internal_policy: Default::default(),
        external_policy: Default::default(),
        affinity_seconds: None,
        health_check_node_port: None,
    }
}

fn slice(number: u8, hosts: &[u8]) -> Slice {
    let endpoint = |host: &u8| Endpoint {
        address: IpAddr::from([10, 244, 1, *host]),
        ready: true,
        serving: true,
        terminating: false,
        placement: Placement::on(None),
    };
    Slice {
        name: ObjectName::new("default", &format!("web-{number}-x")),
        service: ObjectName::new("default", &format!("web-{number}")),
        family: Family::V4,
        ports: vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: hosts.iter().map(endpoint).collect(),
    }
}

/// All sources speak for the first time, of these Services with one endpoint each.
fn first_lists(numbers: impl IntoIterator<Item = u8> + Clone) -> Vec<Event> {
    let services = numbers.clone().into_iter().map(|number| service(number).into()).collect();
    let slices = numbers.into_iter().map(|number| slice(number, &[number]).into()).collect();
    vec![
        said(Change::LocalRoutes(BTreeSet::new())),
        said(Change::Node(Some(Node::default()))),
        said(Change::Slices(slices)),
        said(Change::Services(services)),
    ]
}

fn hear(reconciler: &mut Reconciler<Memory>, events: impl IntoIterator<Item = Event>) {
    for event in events {
        reconciler.take(event);
        reconciler.pass();
    }
    reconciler.publish();
}

/// The number of endpoints that a client of this Service's ClusterIP could get; `None`: it is no frontend.
fn served(reconciler: &Reconciler<Memory>, number: u8) -> Option<u32> {
    let tables = &reconciler.dataplane;
    let call = Call { address: IpAddr::from([10, 96, 0, number]).into(), port: 80, protocol: Protocol::Tcp };
    let frontend = lookup(tables, &call).ok()?;
    Some(extent(tables, frontend.service).ok()?.cluster().len())
}

#[test]
fn nothing_is_written_and_nothing_deleted_before_every_source_has_spoken() {
    let (mut first, _) = reconciler(Memory::new(ROOM));
    hear(&mut first, first_lists(1..=3));
    assert_eq!([1, 2, 3].map(|number| served(&first, number)), [Some(1); 3]);

    let (mut second, report) = reconciler(first.dataplane);
    for event in first_lists(1..=2) {
        assert_eq!([1, 2, 3].map(|number| served(&second, number)), [Some(1); 3], "before {event:?}");
        assert_eq!(report.borrow().pending_since, None, "an agent that waits for its sources is healthy");
        hear(&mut second, [event]);
    }
    assert_eq!([1, 2, 3].map(|number| served(&second, number)), [Some(1), Some(1), None]);
}

#[test]
fn a_failed_write_is_reported_stays_pending_and_is_made_good() {
    let (mut reconciler, report) = reconciler(Memory::new(ROOM));
    hear(&mut reconciler, first_lists(1..=2));
    assert!(report.borrow().error.is_none() && report.borrow().applied.is_some());

    reconciler.dataplane.faults = Faults::After(0);
    hear(&mut reconciler, [said(Change::Slice(slice(1, &[]).name, Some(slice(1, &[11, 12]).into())))]);
    assert_eq!(served(&reconciler, 1), Some(1), "what was there stays");
    assert!(report.borrow().error.as_deref().is_some_and(|error| error.contains("a fault on request")));
    assert!(report.borrow().pending_since.is_some());
    let retry = reconciler.timers.retry.expect("a retry is due");

    reconciler.on_time(retry);
    reconciler.publish();
    assert_eq!(served(&reconciler, 1), Some(2));
    assert!(report.borrow().error.is_none() && report.borrow().pending_since.is_none());
}

#[test]
fn load_balancers_are_told_of_endpoints_when_these_are_written() {
    let (mut reconciler, report) = reconciler(Memory::new(ROOM));
    hear(&mut reconciler, first_lists(1..=1));
    let checked = Service { health_check_node_port: Some(31000), ..service(1) };
    let mut here = slice(1, &[11, 12]);
    here.endpoints.iter_mut().for_each(|endpoint| endpoint.placement = Placement::on(Some("node-1")));
    let told = || {
        let checks = report.borrow().checks.clone();
        (checks.services.len(), checks.local_endpoints("default", "web-1", false))
    };

    hear(&mut reconciler, [said(Change::Service(checked.name.clone(), Some(checked.into())))]);
    assert_eq!(told(), (1, 0));
    reconciler.dataplane.faults = Faults::After(0);
    hear(&mut reconciler, [said(Change::Slice(here.name.clone(), Some(here.into())))]);
    assert_eq!(told(), (1, 0));
    reconciler.on_time(reconciler.timers.retry.expect("a retry is due"));
    reconciler.publish();
    assert_eq!(told(), (1, 2));
    hear(&mut reconciler, [said(Change::Service(service(1).name, None))]);
    assert_eq!(told(), (0, 0));
}

#[test]
fn retries_of_what_keeps_failing_come_ever_later_but_not_later_than_half_a_minute() {
    let (mut reconciler, _) = reconciler(Memory::new(ROOM));
    reconciler.dataplane.faults = Faults::one_in(1, 0);
    hear(&mut reconciler, first_lists(1..=1));
    let mut last = Duration::ZERO;
    for _ in 0..12 {
        let now = Instant::now();
        let retry = reconciler.timers.retry.expect("a retry is due");
        let wait = retry.saturating_duration_since(now);
        assert!(wait >= last && wait <= Duration::from_secs(30), "{wait:?} after {last:?}");
        last = wait.saturating_sub(Duration::from_millis(50));
        reconciler.on_time(retry);
    }
    reconciler.dataplane.faults = Faults::Never;
    reconciler.on_time(reconciler.timers.retry.expect("a retry is due"));
    assert_eq!(served(&reconciler, 1), Some(1));
}

#[test]
fn what_is_detached_is_put_back_within_a_second_and_ever_more_rarely_if_somebody_insists() {
    let (mut reconciler, report) = reconciler(Memory::new(ROOM));
    hear(&mut reconciler, first_lists(1..=1));
    let mut now = Instant::now();
    let mut look = |reconciler: &mut Reconciler<Memory>| {
        let due = reconciler.timers.glance.expect("a look is due");
        let (wait, is_new) = (due.saturating_duration_since(now), reconciler.on_time(due));
        now = due;
        reconciler.publish();
        (wait, is_new)
    };
    let (wait, is_new) = look(&mut reconciler);
    assert!(wait <= Duration::from_secs(1) && !is_new, "nothing to be told: {wait:?}");
    reconciler.dataplane.meddled = true;
    for _ in 0..10 {
        assert_eq!(look(&mut reconciler), (Duration::from_secs(1), true));
    }
    assert_eq!(report.borrow().repaired, 10);
    for _ in 0..10 {
        look(&mut reconciler);
    }
    assert_eq!(look(&mut reconciler), (Duration::from_secs(64), true));
    reconciler.dataplane.meddled = false;
    for _ in 0..12 {
        look(&mut reconciler);
    }
    assert_eq!(look(&mut reconciler), (Duration::from_secs(1), false));
}

#[test]
fn full_tables_are_replaced_by_larger_ones_and_services_keep_their_indexes() {
    let small = Capacity {
        frontends: 4,
        services: 4,
        backends: 16,
        local_addresses: 4,
        devices: 4,
        source_ranges: 4,
        masquerade: 4,
    };
    let (mut reconciler, report) = reconciler(Memory::new(small));
    hear(&mut reconciler, first_lists(1..=3));
    let index = |reconciler: &Reconciler<Memory>| {
        let call = Call { address: IpAddr::from([10, 96, 0, 2]).into(), port: 80, protocol: Protocol::Tcp };
        lookup(&reconciler.dataplane, &call).map(|frontend| frontend.service)
    };
    let before = index(&reconciler);
    assert!(before.is_ok());

    hear(&mut reconciler, first_lists(1..=200));
    for number in 1..=200 {
        assert_eq!(served(&reconciler, number), Some(1), "{number}");
    }
    assert_eq!(index(&reconciler), before);
    assert!(report.borrow().grown >= 1);
    let fill = report.borrow().applied.clone().expect("it was written").fill;
    assert!(fill.frontends[0] == 200 && fill.frontends[1] >= 200, "{fill:?}");
}

#[test]
fn a_silent_node_is_waited_for_and_then_gone_without() {
    let (mut reconciler, report) = reconciler(Memory::new(ROOM));
    let without_node: Vec<_> =
        first_lists(1..=1).into_iter().filter(|event| event.source != Source::Node).collect();
    hear(&mut reconciler, without_node);
    assert_eq!(served(&reconciler, 1), None);
    reconciler.on_time(reconciler.timers.node.expect("the node is waited for"));
    reconciler.publish();
    assert_eq!(served(&reconciler, 1), Some(1));
    assert!(report.borrow().node.is_none(), "an unknown node is not eligible for load balancers' traffic");
}

#[test]
fn a_node_that_the_cluster_does_not_have_is_waited_for_as_a_silent_one() {
    let (mut reconciler, report) = reconciler(Memory::new(ROOM));
    let without_node = first_lists(1..=1).into_iter().map(|event| match event.source {
        Source::Node => said(Change::Node(None)),
        _ => event,
    });
    hear(&mut reconciler, without_node.collect::<Vec<_>>());
    assert_eq!(served(&reconciler, 1), None);
    assert!(!report.borrow().sources[2].synced, "it was not seen");
    reconciler.on_time(reconciler.timers.node.expect("the node is waited for"));
    assert_eq!(served(&reconciler, 1), Some(1));
}

#[test]
fn the_node_has_its_time_from_when_nothing_else_is_waited_for() {
    let (mut reconciler, _) = reconciler(Memory::new(ROOM));
    assert_eq!(
        reconciler.timers.node, None,
        "an API server that is away at the start says nothing of the node"
    );
    let mut events = first_lists(1..=1);
    let node = events.remove(1);
    let last = events.pop();
    hear(&mut reconciler, events);
    assert_eq!(reconciler.timers.node, None);
    hear(&mut reconciler, last);
    assert!(reconciler.timers.node.is_some());
    hear(&mut reconciler, [node]);
    assert_eq!((reconciler.timers.node, served(&reconciler, 1)), (None, Some(1)));
}

#[test]
fn what_is_no_longer_used_is_freed_by_one_fence_for_many_changes() {
    let (mut reconciler, _) = reconciler(Memory::new(ROOM));
    hear(&mut reconciler, first_lists(1..=2));
    for round in 0..20_u8 {
        let changed = slice(1, &[10 + round % 2, 20]);
        hear(&mut reconciler, [said(Change::Slice(changed.name.clone(), Some(changed.into())))]);
    }
    let retired = |reconciler: &Reconciler<Memory>| reconciler.planner.as_ref().map(Planner::retired);
    assert!(retired(&reconciler) > Some(0));
    reconciler.on_time(reconciler.timers.reclaim.expect("freeing is due"));
    assert_eq!(retired(&reconciler), Some(0));
    assert_eq!(served(&reconciler, 1), Some(2));
}

#[test]
fn a_source_that_breaks_is_named_until_it_is_heard_again_and_what_it_said_stays() {
    let (mut reconciler, report) = reconciler(Memory::new(ROOM));
    hear(&mut reconciler, first_lists(1..=1));
    let broken = |report: &watch::Receiver<Report>| report.borrow().sources[1].broken.clone();
    let heard = report.borrow().sources[1].heard;
    hear(&mut reconciler, [Event::now(Source::Slices, What::Broken { why: "connection refused".into() })]);
    assert_eq!(broken(&report).as_deref(), Some("connection refused"));
    assert_eq!(report.borrow().sources[1].heard, heard, "the view gets older");
    assert_eq!(served(&reconciler, 1), Some(1));
    hear(&mut reconciler, [Event::now(Source::Slices, What::Alive)]);
    assert_eq!(broken(&report), None);
}

#[test]
fn an_object_that_is_left_out_is_reported() {
    let (mut reconciler, report) = reconciler(Memory::new(ROOM));
    hear(&mut reconciler, first_lists(1..=1));
    let malformed = Change::Malformed {
        source: Source::Services,
        name: ObjectName::new("default", "broken"),
        why: "spec.ports[0].port: 70000 is no port".into(),
    };
    hear(&mut reconciler, [said(malformed)]);
    let report = report.borrow();
    assert_eq!(
        (report.odd_total, report.odd[0].object.as_str(), report.odd[0].whole),
        (1, "default/broken", true)
    );
    assert_eq!(served(&reconciler, 1), Some(1));
}

#[test]
fn the_api_servers_last_endpoints_outlive_the_agent() {
    let kubernetes = || {
        let name = ObjectName::new("default", "kubernetes");
        (
            Service { name: name.clone(), ..service(1) },
            Slice { name: name.clone(), service: name, ..slice(1, &[1]) },
        )
    };
    let lists = |endpoints: bool| {
        let (service, slice) = kubernetes();
        let slices = if endpoints { vec![slice.into()] } else { Vec::new() };
        [
            said(Change::LocalRoutes(BTreeSet::new())),
            said(Change::Node(Some(Node::default()))),
            said(Change::Slices(slices)),
            said(Change::Services(vec![service.into()])),
        ]
    };
    let (mut first, _) = reconciler(Memory::new(ROOM));
    hear(&mut first, lists(true));
    assert_eq!(served(&first, 1), Some(1));
    let (mut second, _) = reconciler(first.dataplane);
    hear(&mut second, lists(false));
    assert_eq!(served(&second, 1), Some(1), "an API server that restarts has none for a moment");
    let (_, slice) = kubernetes();
    let others = Slice { endpoints: self::slice(1, &[7, 8]).endpoints, ..slice };
    hear(&mut second, [said(Change::Slice(others.name.clone(), Some(others.into())))]);
    assert_eq!(served(&second, 1), Some(2));
}

/// What a datagram socket of the node remembers that has dialled this Service and was given the endpoint of this host.
fn socket(number: u8, host: u8) -> Connected {
    let dialled = IpAddr::from([10, 96, 0, number]).into();
    Connected::new(dialled, 53, IpAddr::from([10, 244, 1, host]).into(), 8080)
}

#[test]
fn sockets_of_the_node_are_let_go_of_when_their_endpoint_is_none_any_more_and_not_when_the_service_is_none() {
    let datagrams = |number| {
        let mut of = service(number);
        of.ports.push(Port { name: "dns".into(), protocol: Protocol::Udp, port: 53, node_port: 0 });
        of
    };
    let endpoints = |number, hosts: &[u8]| {
        let mut of = slice(number, hosts);
        of.ports.push(SlicePort { name: "dns".into(), protocol: Protocol::Udp, port: 8080 });
        of
    };
    let changed = |slice: Slice| said(Change::Slice(slice.name.clone(), Some(slice.into())));
    let mut dataplane = Memory::new(ROOM);
    // One that lost its endpoint while no agent ran.
    dataplane.sockets = vec![socket(1, 9), socket(1, 1), socket(2, 2), socket(3, 1)];
    let (mut reconciler, _) = reconciler(dataplane);
    let lists = [
        Change::LocalRoutes(BTreeSet::new()),
        Change::Node(Some(Node::default())),
        Change::Slices(vec![endpoints(1, &[1, 4]).into(), endpoints(2, &[2]).into()]),
        Change::Services(vec![datagrams(1).into(), datagrams(2).into()]),
    ];
    hear(&mut reconciler, lists.map(said));
    assert_eq!(reconciler.dataplane.sockets, [socket(1, 1), socket(2, 2), socket(3, 1)]);

    hear(&mut reconciler, [changed(endpoints(1, &[4]))]);
    assert_eq!(reconciler.dataplane.sockets, [socket(2, 2), socket(3, 1)], "the third dialled no Service");
    let gone = datagrams(2).name;
    hear(&mut reconciler, [said(Change::Service(gone, None))]);
    assert_eq!(
        reconciler.dataplane.sockets,
        [socket(2, 2), socket(3, 1)],
        "kube-proxy leaves those alone, too"
    );
}
