//! The tables of flows at their end: what is over is swept, a full table loses whom nobody misses, and a flood of greetings
//! loses greetings. The tables are small, the programs and the sweep are the real ones.

mod packets;
mod stage;
#[path = "../../proxy-common/tests/wire/mod.rs"]
mod wire;

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use packets::{Ground, POD, UPLINK, Way, ground_with};
use proxy_common::Protocol::{Tcp, Udp};
use proxy_common::Reason;
use proxy_common::layout::{Flow, FlowCount, FlowKey, PacketPlane, Timeouts};
use proxy_common::names::map;
use stage::{NODE_PORT, features};
use vipr::dataplane::{FlowTable, Sweeper, flow_tables, sys};
use wire::{ACK, FIN, Frame, SYN, segment};
use zerocopy::{FromBytes, IntoBytes, TryFromBytes};

/// Keys of the table of confirmed flows; it is full from 85 % on (13 926 keys), and made room in down to 70 % (11 468).
const ROOM: u32 = 16_384;
const DIALLED: &str = "10.96.0.10:80";
const ENDPOINT: &str = "10.244.2.11:8080";

fn small() -> Ground {
    ground_with(|lab| features(lab)[0].1, |options| options.flow_keys = ROOM)
}

/// Pods of this node, as many as there are numbers below 8 million.
fn pod(number: u32) -> String {
    format!("10.244.1.{}:{}", 20 + number % 200, 1024 + number / 200)
}

/// Which one a client is.
fn number(client: &str) -> u32 {
    let (address, port) = client.rsplit_once(':').unwrap();
    let host: u32 = address.rsplit_once('.').unwrap().1.parse().unwrap();
    (port.parse::<u32>().unwrap() - 1024) * 200 + host - 20
}

fn sent(protocol: u8, client: &str, flags: u8) -> (Way, Frame) {
    (Way::In(POD[0]), segment(protocol, client, DIALLED, flags, b"x"))
}

fn answer(protocol: u8, client: &str, flags: u8) -> (Way, Frame) {
    (Way::Out(POD[0], UPLINK), segment(protocol, ENDPOINT, client, flags, b"y"))
}

/// A connection that both sides talk on, of two keys.
fn established(client: &str) -> [(Way, Frame); 3] {
    [sent(6, client, SYN), answer(6, client, SYN | ACK), sent(6, client, ACK)]
}

impl Ground {
    fn flows(&self) -> Vec<(FlowKey, Flow)> {
        let mut all = Vec::new();
        let read = self.map(map::FLOWS).each(|key, flow| {
            let key = FlowKey::try_read_from_bytes(key).unwrap();
            all.push((key, Flow::read_from_bytes(flow).unwrap()));
        });
        read.unwrap();
        all
    }

    /// How many keys the flow of each client has.
    fn clients(&self) -> BTreeMap<String, usize> {
        let mut clients = BTreeMap::new();
        for (_, flow) in self.flows() {
            *clients.entry(format!("{}:{}", flow.client(), flow.client_port)).or_default() += 1;
        }
        clients
    }

    /// As if the last packet of each flow had come so many seconds ago; below 0: it is still to come.
    fn age(&self, seconds: impl Fn(&str) -> Option<i64>) {
        let table = self.map(map::FLOWS);
        for (key, flow) in self.flows() {
            let client = format!("{}:{}", flow.client(), flow.client_port);
            if let Some(seconds) = seconds(&client) {
                let seen = (i64::from(sys::monotonic_seconds()) - seconds) as u32;
                sys::update(table.as_fd(), key.as_bytes(), Flow { seen, ..flow }.as_bytes(), 0).unwrap();
            }
        }
    }

    fn table(&self, name: &str) -> FlowTable {
        let tables = flow_tables(&self.options.pin_path).unwrap();
        tables.into_iter().find(|table| table.name == name).unwrap()
    }

    fn sweeper(&self) -> Sweeper {
        Sweeper::new(&self.options.pin_path)
    }

    /// What is counted is what is there.
    fn counts_hold(&self) {
        for name in [map::FLOWS, map::FLOWS_NEW_TCP, map::FLOWS_NEW_UDP, map::FLOWS_NEW_SCTP] {
            let table = self.table(name);
            assert_eq!(table.counts.used(), self.keys(name) as u64, "{name}: {:?}", table.counts);
        }
    }

    /// A connection goes on in both directions.
    fn goes_on(&self, client: &str) {
        let there = self.ingress(POD[0], segment(6, client, DIALLED, ACK, b"more"));
        assert_eq!((there.ends(), there.reason), (format!("{client} > {ENDPOINT}"), Reason::FlowKept));
        let back = self.egress(POD[0], segment(6, ENDPOINT, client, ACK, b"less"));
        assert_eq!((back.ends(), back.reason), (format!("{DIALLED} > {client}"), Reason::ReplyRestored));
    }
}

#[test]
fn a_flood_of_greetings_evicts_greetings_only_though_they_are_answered_and_each_eviction_is_counted() {
    let ground = small();
    let mut sweeper = ground.sweeper();
    let mine: Vec<_> = (0..100).map(pod).collect();
    ground.many(&mine.iter().flat_map(|client| established(client)).collect::<Vec<_>>());
    let of_mine = ground.clients();
    assert!(of_mine.len() == 100 && of_mine.values().all(|keys| *keys == 2), "{of_mine:?}");
    sweeper.pass().unwrap();

    // Of forged addresses outside, and of pods whose greetings are answered.
    let node = format!("192.168.77.11:{NODE_PORT}");
    let outside = (0..3000_u32).map(|n| {
        let client = format!("203.0.{}.{}:4000", 113 + n / 250, 1 + n % 250);
        (Way::In(UPLINK), segment(6, &client, &node, SYN, b""))
    });
    let answered = (1000..2000).flat_map(|n| [sent(6, &pod(n), SYN), answer(6, &pod(n), SYN | ACK)]);
    ground.many(&outside.chain(answered).collect::<Vec<_>>());

    let pass = sweeper.pass().unwrap();
    assert_eq!(ground.clients(), of_mine, "nobody but them is in their table");
    let (flows, greetings) = (ground.table(map::FLOWS), ground.table(map::FLOWS_NEW_TCP));
    let evicted = greetings.counts.of(FlowCount::Evicted);
    assert!(evicted > 3000 && pass.evicted == evicted, "{pass:?} {greetings:?}");
    assert_eq!(flows.counts.of(FlowCount::Evicted), 0);
    // To the key, once the kernel's lists have been compared with what is there.
    ground.sweeper().pass().unwrap();
    ground.counts_hold();
    assert!(ground.table(map::FLOWS_NEW_TCP).counts.of(FlowCount::Evicted) >= evicted);
    for client in &mine {
        ground.goes_on(client);
    }
}

#[test]
fn a_full_table_loses_who_is_ending_then_datagrams_then_the_silent_and_never_who_is_in_use() {
    let ground = small();
    let mut sweeper = ground.sweeper();
    let kinds: [(&str, std::ops::Range<u32>); 4] =
        [("closing", 0..960), ("datagrams", 960..1920), ("idle", 1920..4560), ("in use", 4560..9000)];
    let kind = |client: &str| {
        let number = number(client);
        kinds.iter().find(|(_, range)| range.contains(&number)).map(|(kind, _)| (*kind, number)).unwrap()
    };
    let mut frames = Vec::new();
    for number in 0..7200 {
        let client = pod(number);
        match kind(&client).0 {
            "datagrams" => frames.extend([sent(17, &client, 0), answer(17, &client, 0)]),
            "closing" => frames.extend(established(&client).into_iter().chain([sent(6, &client, FIN | ACK)])),
            _ => frames.extend(established(&client)),
        }
    }
    ground.many(&frames);
    // Who is in use stays so for as long as this takes; the others have been silent for longer, the higher their number.
    let age = |client: &str| match kind(client) {
        ("in use", _) => Some(-30),
        (_, number) => Some(3 + i64::from(number % 100) / 10),
    };
    ground.age(age);
    let count = || {
        let mut counts: BTreeMap<_, Vec<u32>> = kinds.iter().map(|(kind, _)| (*kind, Vec::new())).collect();
        for (client, keys) in ground.clients() {
            assert_eq!(keys, 2, "{client} is whole");
            let (kind, number) = kind(&client);
            counts.get_mut(kind).unwrap().push(number);
        }
        counts
    };
    assert_eq!(count().values().map(Vec::len).collect::<Vec<_>>(), [960, 960, 2640, 2640]);

    // 14 400 keys are there, 11 468 may stay: 1466 flows have to leave.
    let pass = sweeper.pass().unwrap();
    assert_eq!((pass.made_room, pass.evicted, pass.expired), (2932, 0, 0), "{pass:?}");
    let left = count();
    assert_eq!(["closing", "datagrams", "idle", "in use"].map(|kind| left[kind].len()), [0, 454, 2640, 2640]);
    let silent = |number: &u32| number % 100 / 10;
    let gone = (960..1920).filter(|number| !left["datagrams"].contains(number));
    let (stayed, gone) =
        (left["datagrams"].iter().map(silent).max(), gone.map(|number| silent(&number)).min());
    assert!(stayed <= gone, "the longest silent ones first: {stayed:?} {gone:?}");

    // Others come, and are in use: datagrams are not enough any more.
    let more: Vec<_> = (7200..8800).map(pod).collect();
    ground.many(&more.iter().flat_map(|client| established(client)).collect::<Vec<_>>());
    ground.age(|client| (kind(client).0 == "in use").then_some(-30));
    sweeper.pass().unwrap();
    let left = count();
    let [closing, datagrams, idle, used] =
        ["closing", "datagrams", "idle", "in use"].map(|kind| left[kind].len());
    assert_eq!((closing, datagrams, idle, used), (0, 0, 1494, 4240));
    let stayed = left["idle"].iter().map(silent).max();
    let gone =
        (1920..4560).filter(|number| !left["idle"].contains(number)).map(|number| silent(&number)).min();
    assert!(stayed <= gone, "the longest silent ones first: {stayed:?} {gone:?}");

    let counts = ground.table(map::FLOWS).counts;
    let removed = FlowCount::REMOVALS.map(|what| counts.of(what));
    let idle_keys = 2 * (2640 - idle as u64);
    assert_eq!(removed, [0, 1920, 1920, idle_keys, 0], "expired, closing, datagrams, idle, evicted");
    ground.counts_hold();
    for number in [4560, 5000, 7199, 8000] {
        ground.goes_on(&pod(number));
    }
}

#[test]
fn whom_the_kernel_evicts_for_want_of_room_is_counted_too() {
    let ground = small();
    let mut sweeper = ground.sweeper();
    sweeper.pass().unwrap();
    // All within one pass, and all in use: nothing but the kernel's own order is left.
    let frames: Vec<_> = (0..10_000).flat_map(|number| established(&pod(number))).collect();
    ground.many(&frames);
    ground.age(|_| Some(-30));
    let pass = sweeper.pass().unwrap();
    let counts = ground.table(map::FLOWS).counts;
    assert!(pass.evicted >= 20_000 - u64::from(ROOM), "{pass:?} {counts:?}");
    assert_eq!(counts.of(FlowCount::Evicted) + counts.used(), 20_000, "{counts:?}");
    assert_eq!(pass.made_room, 0, "who is in use is nobody's to take: {pass:?}");
    ground.counts_hold();
}

#[test]
fn a_sweep_removes_what_is_over_and_nothing_else_while_packets_flow() {
    let ground = small();
    let (over, alive): (Vec<_>, Vec<_>) = ((0..200).map(pod).collect(), (200..400).map(pod).collect());
    let all: Vec<_> = over.iter().chain(&alive).flat_map(|client| established(client)).collect();
    ground.many(&all);
    let timeouts = Timeouts { tcp_established: 20, ..ground.settings().timeouts };
    let settings = PacketPlane { timeouts, ..ground.settings() };
    let key = 0_u32.to_ne_bytes();
    sys::update(ground.map(map::PACKET_PLANE).as_fd(), &key, settings.as_bytes(), 0).unwrap();
    ground.age(|client| (number(client) < 200).then_some(21));
    let stop = AtomicBool::new(false);
    let counts = |reason: Reason| {
        let all = ground.plane.counts().unwrap();
        all.into_iter().find(|(it, _)| *it == reason).map_or(0, |(_, count)| count)
    };
    let before = [Reason::FlowOpened, Reason::NotService].map(counts);
    let kept = counts(Reason::FlowKept);
    let frames: Vec<_> =
        alive.iter().flat_map(|client| [sent(6, client, ACK), answer(6, client, ACK)]).collect();
    let pin_path = &ground.options.pin_path;
    let expired = std::thread::scope(|scope| {
        let sweeping = scope.spawn(|| {
            let mut expired = 0;
            while !stop.load(Ordering::Relaxed) {
                // The first pass of each goes through all.
                expired += Sweeper::new(pin_path).pass().unwrap().expired;
            }
            expired
        });
        (0..30).for_each(|_| ground.many(&frames));
        stop.store(true, Ordering::Relaxed);
        sweeping.join().unwrap()
    });
    assert_eq!(expired, 400);
    assert!(counts(Reason::FlowKept) > kept, "packets did flow");
    assert_eq!([Reason::FlowOpened, Reason::NotService].map(counts), before, "none of them missed its flow");
    let clients = ground.clients();
    assert_eq!(clients.len(), alive.len());
    assert!(alive.iter().all(|client| clients.get(client) == Some(&2)), "{clients:?}");
    ground.counts_hold();
}

#[test]
fn flows_and_their_counts_outlive_the_agent_and_a_larger_table() {
    let mut ground = small();
    let probed = features(&ground.lab)[0].1;
    let mine: Vec<_> = (0..50).map(pod).collect();
    ground.many(&mine.iter().flat_map(|client| established(client)).collect::<Vec<_>>());
    ground.many(&[sent(17, "10.244.1.9:53", 0)]);
    ground.sweeper().pass().unwrap();
    let before = ground.table(map::FLOWS);
    ground.again(probed);
    assert_eq!(ground.table(map::FLOWS), before);
    ground.sweeper().pass().unwrap();
    assert_eq!(ground.table(map::FLOWS), before, "nothing was found that is not counted");

    ground.options.flow_keys = 2 * ROOM;
    ground.again(probed);
    stage::activate(&mut ground.plane, &ground.lab);
    ground.sweeper().pass().unwrap();
    let after = ground.table(map::FLOWS);
    assert_eq!((after.room, after.used()), (2 * ROOM, before.used()), "{after:?}");
    assert_eq!(ground.keys(map::FLOWS_NEW_UDP), 2);
    ground.counts_hold();
    let known = |protocol| ground.flows().iter().filter(|(key, _)| key.protocol == protocol).count();
    assert_eq!((known(Tcp), known(Udp)), (100, 0));
    for client in &mine {
        ground.goes_on(client);
    }
}
