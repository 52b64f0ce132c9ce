//! Random states of a small cluster, and what each of its frontends then answers: by a naive reading of the state, and
//! by the decisions of the datapath on tables.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use proptest::prelude::*;
use proxy_common::{
    Address, Protocol,
    datapath::{Endpoint, Origin, Tables, select},
    layout::{
        Device, DeviceRole, Frontend, FrontendKey, FrontendKind, LocalAddress, LocalKey, MasqueradeAddress,
        MasqueradeKey, Node, Pods, Policy, RangeKey, SocketPlane,
    },
};
use vipr::{
    model::{Attachment, Cidr, Desired, Family, ObjectName, ServicePortName, Serving, Target, Touched},
    plan::Actual,
};

pub(crate) const HOST: u64 = 7;
pub(crate) const POD: u64 = 8;

pub(crate) fn node() -> Node {
    Node {
        netns_cookie: HOST,
        layout_version: 1,
        socket_plane: SocketPlane::All,
        udp_timeout_seconds: 120,
        owner: 1,
        probe_address: 0,
        probe_port: 0,
        left_levels: 0,
        guards: 0,
    }
}

pub(crate) fn ip(text: &str) -> Address {
    text.parse::<IpAddr>().expect("an address").into()
}

pub(crate) fn name(number: usize) -> ServicePortName {
    ServicePortName {
        service: ObjectName::new("shop", &format!("service-{number}")),
        port: "http".into(),
        protocol: Protocol::Tcp,
        family: Family::V4,
    }
}

/// Addresses of the node that NodePorts may be dialled on.
pub(crate) const NODE_ADDRESSES: [&str; 4] = ["192.168.0.1", "192.168.1.1", "10.9.9.9", "127.0.0.1"];

/// What can be dialled in this world: what kind of address it is depends on the address alone.
fn universe() -> Vec<(FrontendKey, FrontendKind)> {
    let mut keys = Vec::new();
    for port in [80, 81, 8080] {
        for host in 0..4 {
            let key = |net: &str| FrontendKey::new(ip(&format!("{net}.{host}")), port, Protocol::Tcp);
            keys.push((key("10.96.0"), FrontendKind::ClusterIp));
            keys.push((key("203.0.113"), FrontendKind::ExternalIp));
        }
    }
    for port in [80, 30000, 30001] {
        keys.push((FrontendKey::new(Address::ANY_V4, port, Protocol::Tcp), FrontendKind::NodePort));
    }
    keys
}

const SERVICES: usize = 6;

fn serving() -> impl Strategy<Value = Serving> {
    // Of each of a dozen endpoints: in which run it stands, if in any.
    let runs = prop::collection::vec(0..5_u8, 12);
    let bits = [Policy::ANY_ENDPOINTS, Policy::INTERNAL_LOCAL, Policy::EXTERNAL_LOCAL, Policy::POD_DETECTOR];
    let parts = (runs, prop::sample::subsequence(bits.to_vec(), 0..=4), 0..3_u32, ranges());
    parts.prop_map(|(runs, mut bits, affinity, source_ranges)| {
        if !source_ranges.is_empty() {
            bits.push(Policy::SOURCE_RANGES);
        }
        let run = |wanted: u8| {
            let stands = runs.iter().enumerate().filter(|(_, run)| **run == wanted);
            stands.map(|(i, _)| Endpoint { address: ip(&format!("10.0.0.{i}")), port: 8080 }).collect()
        };
        Serving {
            cluster_only: run(0),
            both: run(1),
            local_only: run(2),
            policy: bits.into_iter().fold(0, |all, bit| all | bit),
            affinity_seconds: affinity * 10,
            source_ranges,
        }
    })
}

/// Clients that ranges tell apart.
pub(crate) const CLIENTS: [&str; 3] = ["10.0.0.1", "10.1.0.1", "172.16.0.1"];

fn ranges() -> impl Strategy<Value = Vec<Cidr>> {
    let all = vec![("10.0.0.0", 8), ("10.0.0.0", 16), ("10.1.0.0", 16), ("172.16.0.1", 32)];
    let cidr = |(address, length): (&str, u8)| Cidr { address: address.parse().expect("an address"), length };
    prop::sample::subsequence(all, 0..=3).prop_map(move |all| all.into_iter().map(cidr).collect())
}

fn devices() -> impl Strategy<Value = BTreeMap<u32, Attachment>> {
    let device = |(index, header): (u32, u8)| {
        let device = Device {
            mac: [0; 3],
            bridge_mac: [0; 3],
            header,
            role: DeviceRole::Single,
            pods: Pods::None,
            version: Device::VERSION,
            masquerade_v4: [0; 16],
            masquerade_v6: [0; 16],
            host: 0,
            choices: 0,
        };
        (index, Attachment { name: format!("eth{index}").into(), device })
    };
    let some = prop::collection::btree_map(2..7_u32, prop::sample::select(vec![0_u8, 14]), 0..5);
    some.prop_map(move |all| all.into_iter().map(device).collect())
}

/// Some ranges of some devices, with one of three addresses.
fn masquerade() -> impl Strategy<Value = BTreeMap<MasqueradeKey, MasqueradeAddress>> {
    let range = (2..5_u32, prop::sample::select(vec![96_u32, 120, 128]));
    let chosen = prop::sample::select(vec!["192.0.2.1", "192.0.2.2", "192.0.2.3"]);
    prop::collection::btree_map(range, chosen, 0..4).prop_map(|all| {
        let entry = |((device, length), chosen): ((u32, u32), &str)| {
            let address = ip("192.0.2.0").octets();
            let key = MasqueradeKey { prefix_length: 32 + length, device, address };
            (key, MasqueradeAddress { address: ip(chosen).octets() })
        };
        all.into_iter().map(entry).collect()
    })
}

fn local_addresses() -> impl Strategy<Value = BTreeMap<LocalKey, LocalAddress>> {
    let prefixes = [("192.0.0.0", 8), ("192.168.0.0", 16), ("192.168.0.0", 24), ("192.168.0.1", 32)];
    let rest = [("192.168.1.0", 24), ("192.168.1.1", 32), ("10.9.9.9", 32), ("127.0.0.0", 8)];
    let all: Vec<_> = prefixes.into_iter().chain(rest).collect();
    prop::collection::vec(0..3_u32, all.len()).prop_map(move |chosen| {
        let there = all.iter().zip(chosen).filter(|(_, chosen)| *chosen > 0);
        there
            .map(|((address, length), chosen)| {
                let key = LocalKey { prefix_length: 96 + length, address: ip(address).octets() };
                (key, LocalAddress { node_port: chosen - 1 })
            })
            .collect()
    })
}

/// Any state.
pub(crate) fn desired() -> impl Strategy<Value = Desired> {
    let services = prop::collection::vec(prop::option::weighted(0.75, serving()), SERVICES);
    let leads = prop::collection::vec((0..2 * SERVICES, any::<bool>()), universe().len());
    let node = (local_addresses(), devices(), ranges(), masquerade());
    (services, leads, node).prop_map(|(services, leads, (local_addresses, devices, pods, masquerade))| {
        let there = services.into_iter().enumerate();
        let services: BTreeMap<_, _> =
            there.filter_map(|(i, serving)| Some((name(i), Arc::new(serving?)))).collect();
        let frontends = universe()
            .into_iter()
            .zip(leads)
            .map(|((key, kind), (i, host_denied))| (key, Target { service: name(i), kind, host_denied }))
            .filter(|(_, target)| services.contains_key(&target.service))
            .collect();
        let pod_ranges = pods.into_iter().collect();
        Desired {
            services,
            frontends,
            local_addresses,
            devices,
            pod_ranges,
            masquerade,
            ..Desired::default()
        }
    })
}

/// A state that follows another: some of it as it was.
pub(crate) fn next(old: &Desired, new: &Desired, keep: u64) -> Desired {
    let kept = |i: usize| keep >> (i % 64) & 1 == 1;
    let mut state = new.clone();
    for i in (0..SERVICES).filter(|i| kept(*i)) {
        match old.services.get(&name(i)) {
            Some(serving) => drop(state.services.insert(name(i), Arc::clone(serving))),
            None => drop(state.services.remove(&name(i))),
        }
    }
    for (i, (key, _)) in universe().iter().enumerate().filter(|(i, _)| kept(i + SERVICES)) {
        match old.frontends.get(key) {
            Some(target) => drop(state.frontends.insert(*key, target.clone())),
            None => drop(state.frontends.remove(key)),
        }
        assert!(i < 64, "a bit for each");
    }
    let Desired { services, frontends, .. } = &mut state;
    frontends.retain(|_, target| services.contains_key(&target.service));
    if kept(63) {
        state.local_addresses.clone_from(&old.local_addresses);
    }
    if kept(62) {
        state.devices.clone_from(&old.devices);
        state.masquerade.clone_from(&old.masquerade);
    }
    if kept(61) {
        state.pod_ranges.clone_from(&old.pod_ranges);
    }
    state
}

/// Several states, one after the other.
pub(crate) fn history(length: usize) -> impl Strategy<Value = Vec<Desired>> {
    prop::collection::vec((desired(), any::<u64>()), 2..=length).prop_map(|states| {
        let mut history: Vec<Desired> = Vec::new();
        for (state, keep) in states {
            let state = history.last().map_or_else(|| state.clone(), |old| next(old, &state, keep));
            history.push(state);
        }
        history
    })
}

/// What differs between two states.
pub(crate) fn touched(old: &Desired, new: &Desired) -> Touched {
    let names: BTreeSet<_> = old.services.keys().chain(new.services.keys()).cloned().collect();
    let keys: BTreeSet<_> = old.frontends.keys().chain(new.frontends.keys()).copied().collect();
    Touched {
        services: names.into_iter().filter(|name| old.services.get(name) != new.services.get(name)).collect(),
        frontends: keys.into_iter().filter(|key| old.frontends.get(key) != new.frontends.get(key)).collect(),
        local_addresses: old.local_addresses != new.local_addresses,
        devices: old.devices != new.devices
            || old.masquerade != new.masquerade
            || old.pod_ranges != new.pod_ranges,
        service_ranges: old.service_ranges != new.service_ranges || old.marked_cover != new.marked_cover,
        // No table has them.
        health_checks: false,
        left_to_sockets: false,
    }
}

/// What a frontend answers: the endpoints for each kind of caller, the header's policy, the affinity's lifetime.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) endpoints: [Vec<Endpoint>; 3],
    policy: u16,
    affinity_seconds: u32,
}

const ORIGINS: [Origin; 3] = [Origin::Host, Origin::Pod, Origin::Outside];

/// What every frontend should answer, as a person reads the state.
pub(crate) fn expected(desired: &Desired) -> HashMap<FrontendKey, Answer> {
    let answer = |target: &Target| {
        let serving = &desired.services[&target.service];
        let has = |bit: u16| serving.policy & bit != 0;
        let endpoints = ORIGINS.map(|origin| {
            let local = match (target.kind, origin) {
                (FrontendKind::ClusterIp, _) => has(Policy::INTERNAL_LOCAL),
                (_, Origin::Host) => false,
                (_, Origin::Pod) => has(Policy::EXTERNAL_LOCAL) && !has(Policy::POD_DETECTOR),
                (_, Origin::Outside) => has(Policy::EXTERNAL_LOCAL),
            };
            let (first, second) = if local {
                (&serving.both, &serving.local_only)
            } else {
                (&serving.cluster_only, &serving.both)
            };
            first.iter().chain(second).copied().collect()
        });
        Answer { endpoints, policy: serving.policy, affinity_seconds: serving.affinity_seconds }
    };
    desired.frontends.iter().map(|(key, target)| (*key, answer(target))).collect()
}

/// What every frontend answers, as the datapath reads the tables. Panics where it finds nothing whole.
pub(crate) fn answers(tables: &impl Tables) -> HashMap<FrontendKey, Answer> {
    let mut answers = HashMap::new();
    for (key, _) in universe() {
        let Some(frontend) = tables.frontend(&key) else { continue };
        assert!(tables.port_in_use(key.port), "the port of {key:?} is not asked for");
        let extent = select::extent(tables, frontend.service).expect("an extent, whole");
        let endpoints = ORIGINS.map(|origin| {
            let set = extent.set(frontend.kind, origin);
            (0..set.len())
                .map(|turn| extent.nth(tables, &set, turn).expect("an endpoint of its own"))
                .collect()
        });
        let affinity_seconds = extent.word.affinity_seconds;
        answers.insert(key, Answer { endpoints, policy: extent.header.policy, affinity_seconds });
    }
    answers
}

/// Of each frontend and each of [`CLIENTS`]: whether the service's ranges take its packets.
pub(crate) fn allowed(desired: &Desired) -> HashMap<FrontendKey, [bool; 3]> {
    let takes = |target: &Target| {
        let ranges = &desired.services[&target.service].source_ranges;
        CLIENTS.map(|client| {
            let client = client.parse().expect("an address");
            ranges.is_empty() || ranges.iter().any(|range| range.contains(client))
        })
    };
    desired.frontends.iter().map(|(key, target)| (*key, takes(target))).collect()
}

/// The same as programs find it in the tables.
pub(crate) fn allows(actual: &Actual) -> HashMap<FrontendKey, [bool; 3]> {
    let takes = |frontend: &Frontend| {
        let word = &actual.services[&frontend.service];
        let is_filtered = actual.backends[word.extent].policy & Policy::SOURCE_RANGES != 0;
        let ranges = actual.source_ranges.get(&frontend.service).into_iter().flatten();
        CLIENTS.map(|client| {
            let bits = u128::from_be_bytes(ip(client).octets());
            let holds = |range: &RangeKey| {
                let differing = bits ^ u128::from_be_bytes(range.address);
                32 + differing.leading_zeros() >= range.prefix_length
            };
            !is_filtered || ranges.clone().any(holds)
        })
    };
    actual.frontends.iter().map(|(key, frontend)| (*key, takes(frontend))).collect()
}

/// On which of the node's addresses NodePorts are served.
pub(crate) fn node_ports(tables: &impl Tables) -> [bool; 4] {
    NODE_ADDRESSES.map(|text| {
        tables.local_address(&ip(text)).is_some_and(|local| local.node_port == LocalAddress::SERVED)
    })
}

/// The same by the state: the longest prefix says.
pub(crate) fn expected_node_ports(desired: &Desired) -> [bool; 4] {
    NODE_ADDRESSES.map(|text| {
        let bits = u128::from_be_bytes(ip(text).octets());
        let holds = |key: &LocalKey| {
            let differing = bits ^ u128::from_be_bytes(key.address);
            differing.leading_zeros() >= key.prefix_length
        };
        let longest = desired.local_addresses.iter().filter(|(key, _)| holds(key));
        longest
            .max_by_key(|(key, _)| key.prefix_length)
            .is_some_and(|(_, local)| local.node_port == LocalAddress::SERVED)
    })
}
