//! The experiment of ADR 0003: sockets dial as fast as they can while the tables change as fast as they can. No call
//! may end at an endpoint that was in neither the old nor the new state. Each experiment has a control, the same changes
//! made carelessly, which shows that it would see what must not be.

mod stage;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use proxy_common::Protocol::Udp;
use proxy_common::layout::{FrontendKey, FrontendKind, Service};
use proxy_common::names::map;
use proxy_lab::plane::{Endpoints, Plane, extent};
use proxy_lab::{Datagrams, Family};
use stage::{Stage, WEB, at, to};
use vipr::dataplane::sys::{self, Map};
use vipr::plan::Step;

/// How long changes go on for that must not be seen torn. A control ends as soon as it has seen what it was to see.
const DURATION: Duration = Duration::from_secs(3);
/// How long a control may take.
const LIMIT: Duration = Duration::from_secs(120);
/// The service of the second address.
const SERVICE: u32 = 1;
/// Extents that are used one after the other before a fence.
const BATCH: u32 = 100;
/// Endpoints of a state.
const ENDPOINTS: u16 = 30;
/// Slots of its extent.
const LENGTH: u32 = 1 + ENDPOINTS as u32;
/// Slots that no other extent of the stage has.
const FIRST: u32 = 1000;

/// What an experiment saw.
#[derive(Debug, Default)]
struct Seen {
    calls: u64,
    changes: u64,
    wrong: Option<String>,
}

/// Which states there were.
#[derive(Debug, Default)]
struct Clock {
    /// The newest state of which something may be in the tables.
    begun: AtomicU32,
    /// The oldest that may still be seen.
    current: AtomicU32,
}

/// One socket dials `to` without an end while `change` makes one state after the other; `judge` is told the states
/// that a call may have met, and where it ended.
fn experiment(
    stage: &mut Stage,
    to: SocketAddr,
    duration: Duration,
    mut change: impl FnMut(&mut Plane, &Clock),
    judge: impl Fn(u32, u32, SocketAddr) -> Result<(), String> + Sync,
) -> Seen {
    // Without these two getpeername() tells where a socket really went.
    for name in ["getpeername4", "getpeername6"] {
        let link = sys::object_get(&stage.options.pin_path.join("links").join(name)).unwrap();
        sys::link_detach(link.as_fd()).unwrap();
    }
    let socket = stage.place("a1").datagrams(Family::of(to.ip())).unwrap();
    let (clock, stop, calls) = (Clock::default(), AtomicBool::new(false), AtomicU64::new(0));
    let read = || {
        while !stop.load(SeqCst) {
            let oldest = clock.current.load(SeqCst);
            let end = dial(&socket, to);
            let newest = clock.begun.load(SeqCst);
            calls.fetch_add(1, SeqCst);
            judge(oldest, newest, end)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let reader = scope.spawn(read);
        let start = Instant::now();
        let mut changes = 0;
        while start.elapsed() < duration && !reader.is_finished() {
            change(&mut stage.plane, &clock);
            changes += 1;
        }
        stop.store(true, SeqCst);
        let wrong = reader.join().unwrap().err();
        Seen { calls: calls.load(SeqCst), changes, wrong }
    })
}

/// connect() of a datagram socket only picks a route: no packet is sent.
fn dial(socket: &Datagrams, to: SocketAddr) -> SocketAddr {
    socket.connect(to).unwrap();
    socket.peer().unwrap()
}

/// An endpoint of a state, whose number is in both halves of the address: they are not written at once.
fn endpoint(state: u32, port: u16) -> SocketAddr {
    let (high, low) = ((state >> 16) as u16, state as u16);
    (IpAddr::from([0xfd00, 0xbb, high, low, 0xbb, 0, high, low]), port).into()
}

fn write(base: u32, state: u32) -> Step {
    let endpoints: Vec<_> = (1..=ENDPOINTS).map(|port| endpoint(state, port)).collect();
    Step::WriteExtent { base, slots: extent(SERVICE, &Endpoints::everywhere(&endpoints)) }
}

/// With affinity: between the word and the endpoint a program then looks at most.
fn point(base: u32) -> Step {
    Step::PointService { index: SERVICE, service: Service { extent: base, affinity_seconds: 10 } }
}

/// The call ended at an endpoint of one of the states that there were meanwhile.
fn is_one_of(oldest: u32, newest: u32, end: SocketAddr) -> Result<(), String> {
    let SocketAddr::V6(v6) = end else { return Err(format!("{end} is of another family")) };
    let words = v6.ip().segments();
    let state = u32::from(words[6]) << 16 | u32::from(words[7]);
    if (oldest..=newest).contains(&state)
        && endpoint(state, end.port()) == end
        && (1..=ENDPOINTS).contains(&end.port())
    {
        Ok(())
    } else {
        Err(format!("{end} was dialled in the states {oldest} to {newest}"))
    }
}

/// The next state, by these steps.
fn step_on(plane: &mut Plane, clock: &Clock, steps: impl FnOnce(u32) -> Vec<Step>) {
    let state = clock.begun.fetch_add(1, SeqCst) + 1;
    plane.apply(&steps(state)).unwrap();
    clock.current.store(state, SeqCst);
}

/// A stage whose second service is in state 0.
fn stage() -> Stage {
    let mut stage = Stage::new();
    stage.plane.apply(&[write(FIRST, 0), point(FIRST)]).unwrap();
    stage
}

#[test]
fn endpoints_that_change_by_extents_and_fences_are_never_seen_torn() {
    let mut stage = stage();
    let mut round = 1;
    let change = |plane: &mut Plane, clock: &Clock| {
        // Two halves in turns: one is used while what the other holds waits for the fence.
        let first = |round: u32| FIRST + round % 2 * BATCH * LENGTH;
        for number in 0..BATCH {
            let base = first(round) + number * LENGTH;
            step_on(plane, clock, |state| vec![write(base, state), point(base)]);
        }
        round += 1;
        plane
            .apply(&[Step::Fence, Step::ClearExtent { base: first(round), length: BATCH * LENGTH }])
            .unwrap();
    };
    let seen = experiment(&mut stage, to(WEB[1]), DURATION, change, is_one_of);
    assert_eq!(seen.wrong, None, "{seen:?}");
    // Both sides were busy: else nothing was shown.
    assert!(seen.calls > 10_000 && seen.changes * u64::from(BATCH) > 10_000, "{seen:?}");
}

#[test]
fn control_endpoints_overwritten_in_place_are_seen_torn() {
    let mut stage = stage();
    let change = |plane: &mut Plane, clock: &Clock| {
        step_on(plane, clock, |state| vec![write(FIRST, state)]);
    };
    let seen = experiment(&mut stage, to(WEB[1]), LIMIT, change, is_one_of);
    assert!(seen.wrong.is_some(), "{seen:?}");
}

/// Frontends that are written at once.
const STEPS: usize = 20;

/// Two addresses of two services; one of them is dialled, and its entry is the one that the other's takes.
const DIALLED: &str = "10.96.1.1:53";
const OTHER: &str = "10.96.2.2:53";

/// A stage with both, and the endpoint that the dialled one must never lead to.
fn two_services() -> (Stage, SocketAddr) {
    let mut stage = Stage::new();
    for (service, address, pod) in [(20, DIALLED, "b1"), (21, OTHER, "b2")] {
        stage.lead(service, Family::V4, &[pod]);
        stage.plane.frontend(to(address), Udp, FrontendKind::ClusterIp, service).unwrap();
    }
    let other = at(&stage.lab, Family::V4, &["b2"])[0];
    (stage, other)
}

fn key(address: &str) -> FrontendKey {
    FrontendKey::new(to(address).ip().into(), to(address).port(), Udp)
}

#[test]
fn a_frontend_whose_entry_is_reused_never_leads_to_the_other_service() {
    let (mut stage, other) = two_services();
    let entries = stage.plane.read().unwrap().frontends;
    let put = |address: &str| Step::PutFrontend { key: key(address), value: entries[&key(address)] };
    let change = |plane: &mut Plane, _: &Clock| {
        let exchange = |from, to| [Step::DeleteFrontend { key: key(from) }, put(to)];
        plane.apply(&[exchange(DIALLED, OTHER), exchange(OTHER, DIALLED)].concat()).unwrap();
    };
    let seen = experiment(&mut stage, to(DIALLED), DURATION, change, is_not(other));
    assert_eq!(seen.wrong, None, "{seen:?}");
    assert!(seen.calls > 10_000 && seen.changes > 50, "{seen:?}");
}

#[test]
fn a_frontend_that_is_overwritten_never_leads_to_the_other_service() {
    let (mut stage, other) = two_services();
    let entries = stage.plane.read().unwrap().frontends;
    let put = |address: &str| Step::PutFrontend { key: key(address), value: entries[&key(address)] };
    // In one go: the next takes the entry that the one before has just left.
    let steps: Vec<_> = [put(DIALLED), put(OTHER)].into_iter().cycle().take(STEPS).collect();
    let change = |plane: &mut Plane, _: &Clock| plane.apply(&steps).unwrap();
    let seen = experiment(&mut stage, to(DIALLED), DURATION, change, is_not(other));
    assert_eq!(seen.wrong, None, "{seen:?}");
    assert!(seen.calls > 10_000, "{seen:?}");
}

#[test]
fn control_a_frontends_entry_reused_without_a_fence_leads_to_the_other_service() {
    let (mut stage, other) = two_services();
    let frontends = Map::open(&stage.options.pin_path.join(map::FRONTENDS)).unwrap();
    let entries = [DIALLED, OTHER].map(|address| {
        let (key, mut value) = (bytes(&key(address)), vec![0; frontends.shape.value as usize]);
        assert!(sys::lookup(frontends.as_fd(), &key, &mut value).unwrap());
        (key, value)
    });
    // Each takes the entry that the other has just left.
    let change = |_: &mut Plane, _: &Clock| {
        for (key, value) in &entries {
            sys::update(frontends.as_fd(), key, value, 0).unwrap();
        }
    };
    let seen = experiment(&mut stage, to(DIALLED), LIMIT, change, is_not(other));
    assert!(seen.wrong.is_some(), "{seen:?}");
}

fn is_not(other: SocketAddr) -> impl Fn(u32, u32, SocketAddr) -> Result<(), String> {
    move |_, _, end| if end == other { Err(format!("{end} is another service's")) } else { Ok(()) }
}

/// The key as it is in the table.
fn bytes(key: &FrontendKey) -> Vec<u8> {
    let mut bytes = key.address.to_vec();
    bytes.extend(key.port.to_ne_bytes());
    bytes.extend([key.protocol as u8, 0]);
    bytes
}
