//! The decision against a naive model: a service as a person would write it down, no extents, no bits, no search.

mod world;

use proptest::prelude::*;
use proxy_common::{
    Address,
    Protocol::Tcp,
    Reason,
    datapath::{
        Endpoint,
        select::extent,
        socket::{self, Verdict},
    },
    layout::{FrontendKind, LocalAddress, Policy},
};
use world::{Caller, HOST, POD, Storage, World, at, call, ip, set};

/// A service as its objects say it.
#[derive(Clone, Debug)]
struct Plain {
    cluster: Vec<Endpoint>,
    local: Vec<Endpoint>,
    anywhere: bool,
    internal_local: bool,
    external_local: bool,
    detector: bool,
}

/// What a client may see.
#[derive(Debug, PartialEq)]
enum Allowed {
    AnyOf(std::collections::BTreeSet<(Address, u16)>),
    Refused,
    Dropped,
}

/// kube-proxy spec §2.3 and §2.5, row by row.
fn allowed(service: &Plain, external: bool, host: bool) -> Allowed {
    let endpoints = if !external {
        if service.internal_local { &service.local } else { &service.cluster }
    } else if !service.external_local || host || service.detector {
        &service.cluster
    } else {
        &service.local
    };
    if !endpoints.is_empty() {
        Allowed::AnyOf(set(endpoints))
    } else if service.anywhere || !service.cluster.is_empty() || !service.local.is_empty() {
        Allowed::Dropped
    } else {
        Allowed::Refused
    }
}

fn endpoints() -> impl Strategy<Value = Vec<Endpoint>> {
    let one = (0..12_u8, 1..3_u16, any::<bool>()).prop_map(|(host, port, v6)| {
        if v6 { at(&format!("fd00::{host:x}"), port) } else { at(&format!("10.0.{host}.1"), port) }
    });
    prop::collection::btree_set(one.prop_map(|e| (e.address, e.port)), 0..20)
        .prop_map(|set| set.into_iter().map(|(address, port)| Endpoint { address, port }).collect())
}

fn plain() -> impl Strategy<Value = Plain> {
    (endpoints(), endpoints(), any::<[bool; 4]>()).prop_map(
        |(cluster, local, [anywhere, internal_local, external_local, detector])| Plain {
            cluster,
            local,
            anywhere,
            internal_local,
            external_local,
            detector,
        },
    )
}

fn world_of(services: &[Plain]) -> World {
    let mut world = World::new();
    world.local.insert(ip("192.168.0.1"), LocalAddress { node_port: 1 });
    for (i, service) in services.iter().enumerate() {
        let any = service.anywhere || !service.cluster.is_empty() || !service.local.is_empty();
        let mut policy = 0;
        for (is, bit) in [
            (any, Policy::ANY_ENDPOINTS),
            (service.internal_local, Policy::INTERNAL_LOCAL),
            (service.external_local, Policy::EXTERNAL_LOCAL),
            (service.detector, Policy::POD_DETECTOR),
        ] {
            policy |= if is { bit } else { 0 };
        }
        world.extent(i as u32, &service.cluster, &service.local, policy, 0);
        world.frontend(ip(&format!("10.96.0.{i}")), 80, Tcp, FrontendKind::ClusterIp, i as u32);
        world.frontend(Address::ANY_V4, 30000 + i as u16, Tcp, FrontendKind::NodePort, i as u32);
    }
    world
}

proptest! {
    #[test]
    fn connect_agrees_with_the_naive_model(services in prop::collection::vec(plain(), 1..5), dice in 1..u32::MAX) {
        let world = world_of(&services);
        for (i, service) in services.iter().enumerate() {
            for (external, host) in [(false, false), (false, true), (true, false), (true, true)] {
                let call = if external {
                    call("192.168.0.1", 30000 + i as u16, Tcp)
                } else {
                    call(&format!("10.96.0.{i}"), 80, Tcp)
                };
                let caller = Caller::new(if host { HOST } else { POD });
                caller.dice.set(dice);
                let verdict = socket::connect(&world, &caller, &Storage::default(), &call);
                match (allowed(service, external, host), verdict) {
                    (Allowed::AnyOf(set), Verdict::Rewrite { to, .. }) => {
                        prop_assert!(set.contains(&(to.address, to.port)), "{to:?} of {set:?}");
                    }
                    // To itself the node dials by loopback, where no packet is dropped.
                    (Allowed::Dropped, Verdict::TimeOut(Reason::TimedOut)) if external && host => {}
                    (Allowed::Refused, Verdict::Refuse(Reason::Refused))
                    | (Allowed::Dropped, Verdict::Leave(Reason::DropLeft)) => {}
                    (allowed, verdict) => prop_assert!(false, "{verdict:?}, allowed {allowed:?}: {service:?}"),
                }
            }
        }
    }

    #[test]
    fn the_search_finds_just_the_endpoints_of_the_set(service in plain(), wanted in endpoints()) {
        let world = world_of(std::slice::from_ref(&service));
        let extent = extent(&world, 0).expect("an extent");
        for (local, endpoints) in [(false, &service.cluster), (true, &service.local)] {
            let found = if local { extent.local() } else { extent.cluster() };
            prop_assert_eq!(found.len() as usize, endpoints.len());
            for endpoint in endpoints.iter().chain(&wanted) {
                prop_assert_eq!(extent.contains(&world, &found, endpoint), endpoints.contains(endpoint));
            }
        }
    }

    #[test]
    fn every_endpoint_of_a_set_is_chosen_about_equally_often(count in 1..12_u8, dice in 1..u32::MAX) {
        let endpoints: Vec<Endpoint> = (0..count).map(|i| at(&format!("10.0.0.{i}"), 80)).collect();
        let mut world = World::new();
        world.extent(0, &endpoints, &[], Policy::ANY_ENDPOINTS, 0);
        world.frontend(ip("10.96.0.1"), 80, Tcp, FrontendKind::ClusterIp, 0);
        let caller = Caller::new(POD);
        caller.dice.set(dice);
        let mut seen = std::collections::HashMap::new();
        let draws = 400 * u32::from(count);
        for _ in 0..draws {
            let verdict = socket::connect(&world, &caller, &Storage::default(), &call("10.96.0.1", 80, Tcp));
            let Verdict::Rewrite { to, .. } = verdict else { panic!("{verdict:?}") };
            *seen.entry(to.address).or_insert(0) += 1;
        }
        prop_assert_eq!(seen.len(), usize::from(count));
        // 400 expected each; six standard deviations.
        prop_assert!(seen.values().all(|n| (280..520).contains(n)), "{:?}", seen);
    }
}

#[test]
fn an_extent_that_is_not_its_services_is_torn_and_one_that_is_gone_is_unprogrammed() {
    let mut world = world_of(&[Plain {
        cluster: vec![at("10.0.0.1", 80)],
        local: vec![],
        anywhere: true,
        internal_local: false,
        external_local: false,
        detector: false,
    }]);
    let dial = |world: &World| {
        socket::connect(world, &Caller::new(POD), &Storage::default(), &call("10.96.0.0", 80, Tcp))
    };
    assert!(matches!(dial(&world), Verdict::Rewrite { .. }));
    for slot in [1, 2] {
        let own = world.backends[&slot];
        world.backends.get_mut(&slot).expect("a slot").service = 99;
        assert_eq!(dial(&world), Verdict::Leave(Reason::Torn), "never another service's extent or endpoint");
        world.backends.insert(slot, own);
    }
    world.services.clear();
    assert_eq!(dial(&world), Verdict::Leave(Reason::Unprogrammed));
}
