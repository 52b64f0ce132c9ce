//! Invariants of the plan, on random states: Still, Every-prefix, Same-after-restart, and convergence under faults.
//! The tables are [`Memory`], which panics where a slot, an index or an element is used again too early.

mod states;

use std::{cell::Cell, collections::BTreeMap};

use proptest::prelude::*;
use proxy_common::{
    Protocol, Reason,
    datapath::{Call, Endpoint, Env, Socket, lookup, socket},
    layout::{Connected, FrontendKey, Spot, Unconnected},
};
use states::{
    Answer, CLIENTS, HOST, NODE_ADDRESSES, POD, allowed, allows, answers, expected, expected_node_ports,
    history, ip, node, node_ports, touched,
};
use vipr::{
    dataplane::{Dataplane, Memory, memory::Faults},
    model::Desired,
    plan::{Capacity, Planner, Step, need},
};

/// A node that runs.
struct Agent {
    memory: Memory,
    planner: Planner,
}

impl Agent {
    fn new(capacity: Capacity) -> Self {
        let mut memory = Memory::new(capacity);
        memory.node = Some(node());
        memory.activate().expect("memory");
        Self { planner: Planner::new(memory.read().expect("memory"), capacity), memory }
    }

    fn of(state: &Desired) -> Self {
        let mut agent = Self::new(need(state));
        agent.reach(state);
        agent
    }

    /// Another agent takes over what is there.
    fn restart(&mut self) {
        self.memory.restart();
        self.planner = Planner::new(self.memory.read().expect("memory"), self.memory.capacity());
    }

    /// Carry steps out; false if one failed.
    fn apply(&mut self, steps: &[Step]) -> bool {
        let applied = self.memory.apply(steps);
        self.planner.done(&steps[..applied.done]);
        let actual = self.memory.read().expect("memory");
        assert_eq!(self.planner.actual(), &actual, "the planner knows what was written");
        applied.error.is_none()
    }

    fn reach(&mut self, state: &Desired) {
        let steps = self.planner.plan(state, None).expect("room");
        assert!(self.apply(&steps));
    }

    fn check_reached(&mut self, state: &Desired) {
        assert_eq!(answers(&self.memory), expected(state));
        assert_eq!(node_ports(&self.memory), expected_node_ports(state));
        assert_eq!(self.planner.plan(state, None), Ok(vec![]), "what is reached needs no step");
        let actual = self.memory.read().expect("memory");
        let ports: usize = actual.ports.values().map(|bits| bits.count_ones() as usize).sum();
        let used: std::collections::HashSet<u16> = state.frontends.keys().map(|key| key.port).collect();
        assert_eq!(ports, used.len(), "no port too many");
        assert_eq!(actual.addresses, address_bits(state), "no bit too many, and none too few");
        let texts: Vec<String> = state.services.keys().map(ToString::to_string).collect();
        let mut names: Vec<String> = actual.names.into_values().collect();
        names.sort();
        assert_eq!(names, texts);
        let actual = self.planner.actual();
        assert_eq!(allows(actual), allowed(state));
        let ranges = state.services.values().map(|serving| serving.source_ranges.len()).sum::<usize>();
        assert_eq!(actual.ranges(), ranges + state.pod_ranges.len(), "no range too many");
        let devices = state.devices.iter().map(|(index, to)| (*index, to.device));
        assert_eq!(actual.devices, devices.collect());
        assert_eq!(actual.masquerade, state.masquerade);
        assert_eq!(actual.attached, state.devices.keys().copied().collect());
    }

    /// Nothing is lost for ever: what is retired can be used again.
    fn check_reclaimed(&mut self, state: &Desired) {
        let steps = self.planner.reclaim();
        assert!(self.apply(&steps));
        assert_eq!((self.planner.retired(), self.planner.reclaim()), (0, vec![]));
        let endpoints = |s: &vipr::model::Serving| s.cluster_only.len() + s.both.len() + s.local_only.len();
        let slots: usize = state.services.values().map(|serving| 1 + endpoints(serving)).sum();
        assert_eq!(self.planner.actual().backends.len(), slots);
    }

    fn indexes(&mut self) -> BTreeMap<String, u32> {
        let names = self.memory.read().expect("memory").names;
        names.into_iter().map(|(index, name)| (name, index)).collect()
    }
}

/// The bits that the frontends' addresses set, one after another.
fn address_bits(state: &Desired) -> BTreeMap<u32, u64> {
    let mut words = BTreeMap::new();
    let addresses = state.frontends.keys().map(FrontendKey::address);
    for spot in addresses.filter(|address| !address.is_unspecified()).map(|address| Spot::of(&address)) {
        *words.entry(spot.word).or_insert(0) |= spot.bits;
    }
    words
}

/// A client's packets are taken as before or as they should be after the plan, whatever becomes of the endpoints.
fn check_allowed(agent: &Agent, before: &BTreeMapOf<[bool; 3]>, to: &Desired, last: Option<&Step>) {
    let after = allowed(to);
    for (key, now) in allows(agent.planner.actual()) {
        for (i, now) in now.into_iter().enumerate() {
            let of = |state: &BTreeMapOf<[bool; 3]>| state.get(&key).map(|clients| clients[i]);
            let known = of(before) == Some(now) || of(&after) == Some(now);
            assert!(known, "{} at {key:?} after {last:?}: {now}", CLIENTS[i]);
        }
    }
}

/// Every frontend answers as before or as it should after the plan; so does the node port of every address.
fn check_between(agent: &Agent, before: (&BTreeMapOf<Answer>, [bool; 4]), to: &Desired, last: Option<&Step>) {
    let (now, after) = (answers(&agent.memory), expected(to));
    for key in before.0.keys().chain(after.keys()) {
        let (old, new, now) = (before.0.get(key), after.get(key), now.get(key));
        assert!(now == old || now == new, "{key:?} after {last:?}:\n{now:?}\nnor\n{old:?}\nnor\n{new:?}");
    }
    let ports = node_ports(&agent.memory).into_iter().zip(before.1).zip(expected_node_ports(to));
    for (address, ((now, old), new)) in NODE_ADDRESSES.iter().zip(ports) {
        assert!(now == old || now == new, "node ports of {address} after {last:?}");
    }
}

type BTreeMapOf<T> = std::collections::HashMap<FrontendKey, T>;

/// A caller whose dice fall as they are told.
struct Caller(u64, Cell<u32>);

impl Env for Caller {
    fn random(&self) -> u32 {
        self.1.set(self.1.get().wrapping_mul(1_664_525).wrapping_add(1_013_904_223));
        self.1.get()
    }
    fn seconds(&self) -> u32 {
        1
    }
    fn netns(&self) -> u64 {
        self.0
    }
    fn can_refuse(&self) -> bool {
        true
    }
}

/// A socket that remembers nothing.
struct Forgetful;

impl Socket for Forgetful {
    fn connected(&self) -> Option<Connected> {
        None
    }
    fn set_connected(&self, _: &Connected) -> bool {
        true
    }
    fn forget_connected(&self) {}
    fn unconnected(&mut self, _: bool) -> Option<&mut Unconnected> {
        None
    }
}

/// Dial every ClusterIP as a program would: what is found is of the old or the new state, and whole.
fn check_dialled(agent: &Agent, before: &BTreeMapOf<Answer>, after: &BTreeMapOf<Answer>, dice: u32) {
    for key in before.keys().chain(after.keys()).filter(|key| !key.address().is_unspecified()) {
        let call = Call { address: key.address(), port: key.port, protocol: Protocol::Tcp };
        for (who, netns) in [HOST, POD].into_iter().enumerate() {
            let caller = Caller(netns, Cell::new(dice));
            match socket::connect(&agent.memory, &caller, &Forgetful, &call) {
                socket::Verdict::Rewrite { to, .. } => {
                    let of = |answers: &BTreeMapOf<Answer>| {
                        answers.get(key).is_some_and(|answer| answer.endpoints[who].contains(&to))
                    };
                    assert!(of(before) || of(after), "{call:?} went to {to:?}");
                }
                verdict => {
                    let reason = verdict.reason();
                    assert!(
                        ![Reason::Torn, Reason::Unprogrammed, Reason::NoNode].contains(&reason),
                        "{reason:?}"
                    );
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn every_state_is_reached_and_then_needs_no_step(states in history(5)) {
        let mut agent = Agent::new(need(&states[0]));
        for state in &states {
            agent.reach(state);
            agent.check_reached(state);
            agent.check_reclaimed(state);
        }
    }

    #[test]
    fn after_every_prefix_each_frontend_answers_as_before_or_as_after(states in history(4), dice in any::<u32>()) {
        let mut agent = Agent::of(&states[0]);
        for state in &states[1..] {
            let (before, ports, after) = (answers(&agent.memory), node_ports(&agent.memory), expected(state));
            let clients = allows(agent.planner.actual());
            let steps = agent.planner.plan(state, None).expect("room");
            check_between(&agent, (&before, ports), state, None);
            // As the dataplane sees it: frontends that follow each other are one batch.
            for batch in steps.chunk_by(|a, b| matches!((a, b), (Step::PutFrontend { .. }, Step::PutFrontend { .. }))) {
                prop_assert!(agent.apply(batch));
                check_between(&agent, (&before, ports), state, batch.last());
                check_allowed(&agent, &clients, state, batch.last());
                check_dialled(&agent, &before, &after, dice);
            }
            let within: Vec<_> = steps.iter().filter(|step| matches!(step, Step::PutFrontend { .. })).collect();
            prop_assert!(within.len() <= state.frontends.len(), "no frontend is written twice");
        }
    }

    #[test]
    fn an_agent_that_dies_after_any_step_is_followed_by_one_that_ends_the_same(
        states in history(3), cut in any::<prop::sample::Index>(), forgotten in any::<bool>(),
    ) {
        let (old, new) = (&states[0], &states[1]);
        let mut whole = Agent::of(old);
        let before = whole.indexes();
        let steps = whole.planner.plan(new, None).expect("room");
        prop_assert!(whole.apply(&steps));
        let after = whole.indexes();

        let mut agent = Agent::of(old);
        let done = cut.index(steps.len() + 1);
        prop_assert!(agent.apply(&steps[..done]));
        let (seen, ports) = (answers(&agent.memory), node_ports(&agent.memory));
        let clients = allows(agent.planner.actual());
        if forgotten {
            // The names are for people: without them services are found by what leads to them.
            let mut left = agent.memory.read().expect("memory");
            left.names.clear();
            let capacity = agent.memory.capacity();
            agent.memory = Memory::over(left, capacity);
            agent.memory.node = Some(node());
            agent.memory.activate().expect("memory");
        }
        agent.restart();
        for step in agent.planner.plan(new, None).expect("room") {
            prop_assert!(agent.apply(std::slice::from_ref(&step)));
            check_between(&agent, (&seen, ports), new, Some(&step));
            check_allowed(&agent, &clients, new, Some(&step));
        }
        agent.check_reached(new);
        agent.check_reclaimed(new);
        let now = agent.indexes();
        for (name, index) in before.iter().filter(|(name, index)| after.get(*name) == Some(*index)) {
            if !forgotten {
                prop_assert_eq!(now.get(name), Some(index), "{}", name);
            }
        }
    }

    #[test]
    fn with_every_tenth_step_failing_every_state_is_reached(
        states in history(4), seed in any::<u64>(), restarts in any::<u64>(),
    ) {
        let mut agent = Agent::of(&states[0]);
        let mut attempts = 0;
        for pair in states.windows(2) {
            agent.memory.faults = Faults::one_in(10, seed);
            let mut touched = Some(touched(&pair[0], &pair[1]));
            loop {
                let steps = agent.planner.plan(&pair[1], touched.take().as_ref()).expect("room");
                let all = agent.apply(&steps);
                let reclaim = agent.planner.reclaim();
                if agent.apply(&reclaim) && all {
                    break;
                }
                if restarts >> (attempts % 64) & 1 == 1 {
                    agent.restart();
                } else {
                    // What failed is still known to the planner, whatever is said to be touched.
                    touched = Some(Default::default());
                }
                attempts += 1;
                prop_assert!(attempts < 1000, "no end");
            }
            agent.memory.faults = Faults::Never;
            agent.check_reached(&pair[1]);
            agent.check_reclaimed(&pair[1]);
        }
    }

    #[test]
    fn a_plan_of_what_is_touched_is_the_plan_of_everything(states in history(6), reclaim in any::<u64>()) {
        let (mut some, mut all) = (Agent::of(&states[0]), Agent::of(&states[0]));
        for (i, pair) in states.windows(2).enumerate() {
            let steps = all.planner.plan(&pair[1], None).expect("room");
            let touched = touched(&pair[0], &pair[1]);
            let show = |steps: &[Step]| steps.iter().map(ToString::to_string).collect::<Vec<_>>();
            prop_assert_eq!(show(&some.planner.plan(&pair[1], Some(&touched)).expect("room")), show(&steps));
            for agent in [&mut some, &mut all] {
                prop_assert!(agent.apply(&steps));
                if reclaim >> i & 1 == 1 {
                    let steps = agent.planner.reclaim();
                    prop_assert!(agent.apply(&steps));
                }
            }
        }
    }

    #[test]
    fn tables_without_room_are_reclaimed_or_built_anew_larger(
        states in history(8), services in 6..9_u32, backends in 30..90_u32,
    ) {
        let small = Capacity { frontends: 30, services, backends, local_addresses: 10, devices: 10, source_ranges: 100, masquerade: 100 };
        let mut agent = Agent::new(small);
        for state in &states {
            let before = (answers(&agent.memory), node_ports(&agent.memory));
            match agent.planner.plan(state, None) {
                Ok(steps) => {
                    for step in &steps {
                        prop_assert!(agent.apply(std::slice::from_ref(step)));
                        check_between(&agent, (&before.0, before.1), state, Some(step));
                    }
                }
                Err(room) => {
                    agent.memory.rebuild(room.need).expect("memory");
                    agent.planner = Planner::new(agent.memory.read().expect("memory"), room.need);
                    agent.reach(state);
                    check_between(&agent, (&before.0, before.1), state, None);
                    prop_assert_eq!(&answers(&agent.memory), &before.0, "not seen before it is active");
                    agent.memory.activate().expect("memory");
                }
            }
            agent.check_reached(state);
        }
    }
}

#[test]
fn node_ports_are_found_by_the_longest_prefix_of_the_nodes_addresses() {
    let (mut memory, mut state) = (Memory::new(need(&Desired::default())), Desired::default());
    let endpoint = Endpoint { address: ip("10.0.0.1"), port: 8080 };
    let serving = vipr::model::Serving { cluster_only: vec![endpoint], ..Default::default() };
    state.services.insert(states::name(1), serving.into());
    let key = FrontendKey::new(proxy_common::Address::ANY_V4, 30000, Protocol::Tcp);
    let kind = proxy_common::layout::FrontendKind::NodePort;
    state.frontends.insert(key, vipr::model::Target { service: states::name(1), kind, host_denied: false });
    for (address, bits, node_port) in [("192.168.0.0", 16, 1), ("192.168.0.1", 32, 0)] {
        let key = proxy_common::layout::LocalKey { prefix_length: 96 + bits, address: ip(address).octets() };
        state.local_addresses.insert(key, proxy_common::layout::LocalAddress { node_port });
    }
    let mut planner = Planner::new(memory.read().expect("memory"), memory.capacity());
    let steps = planner.plan(&state, None).expect("room");
    assert!(memory.apply(&steps).error.is_none());
    memory.activate().expect("memory");
    let dial = |address| {
        lookup::lookup(&memory, &Call { address: ip(address), port: 30000, protocol: Protocol::Tcp })
    };
    assert!(dial("192.168.0.2").is_ok());
    assert_eq!(dial("192.168.0.1"), Err(Reason::NotNodePort));
    assert_eq!(dial("10.1.1.1"), Err(Reason::NotNodePort));
}
