//! `vipr flows`: a row for each connection that the packet plane remembers.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    time::Duration,
};

use proxy_common::{
    Address, Protocol,
    datapath::track::{self, HEARD, Phase},
    layout::{Flow, FlowKey, Timeouts},
};
use serde::Serialize;

use super::{count, duration, table};

/// An entry of the flows' tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEntry {
    /// One of the flow's keys.
    pub key: FlowKey,
    /// The record.
    pub flow: Flow,
    /// It is in the table of established ones.
    pub confirmed: bool,
}

/// A connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowRow {
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// Who dialled.
    pub client: SocketAddr,
    /// What was dialled.
    pub dialled: SocketAddr,
    /// That was an endpoint which connect() gave the client's socket, and which serves no longer.
    pub moved: bool,
    /// Nobody dialled a Service: it was begun on this node, from the number of one or the port of a flow.
    pub own: bool,
    /// Who serves it.
    pub backend: SocketAddr,
    /// The node's address and port that stand for the client towards the backend.
    pub masquerade: Option<SocketAddr>,
    /// The client's port as the backend sees it, where it is another than the client's own.
    pub shown_port: Option<u16>,
    /// The backend has answered, and the client has heard of it.
    pub confirmed: bool,
    /// `dialled`, `answered`, `open`, `closing`, `halfClosed`, `lastAck`, `timeWait` or `closed`.
    pub state: &'static str,
    /// What the client has said last: `nothing`, `greeted`, `talks`, `done` or `reset`.
    pub client_said: &'static str,
    /// What the backend has said last.
    pub backend_said: &'static str,
    /// Seconds since the last packet, to within one.
    pub idle_seconds: u32,
    /// Seconds of silence until it is over.
    pub left_seconds: u32,
}

/// Those that are listed, and how many there are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowList {
    /// The listed ones; `None`: only their number was asked for.
    pub flows: Option<Vec<FlowRow>>,
    /// How many were asked for.
    pub matching: usize,
    /// How many there are.
    pub total: usize,
    /// How many there are that are not confirmed.
    pub unconfirmed: usize,
    /// How many there are of each protocol.
    pub protocols: BTreeMap<String, usize>,
}

/// The connections that live at `now` (seconds of the monotonic clock), each once. One whose own key was forgotten is
/// known by those that are left.
pub fn flows(entries: &[FlowEntry], timeouts: &Timeouts, now: u32) -> Vec<FlowRow> {
    let mut known: HashMap<FlowKey, (bool, &FlowEntry)> = HashMap::new();
    for entry in entries.iter().filter(|entry| entry.flow.version == Flow::VERSION) {
        let dialled = entry.flow.dialled_key(entry.key.protocol);
        let is_own = dialled == entry.key;
        let rank = |is_own: bool, entry: &FlowEntry| (is_own, entry.confirmed, entry.flow.seen);
        let found = known.entry(dialled).or_insert((is_own, entry));
        if rank(is_own, entry) > rank(found.0, found.1) {
            *found = (is_own, entry);
        }
    }
    let rows = known.into_iter().filter_map(|(key, (_, entry))| row(key.protocol, entry, timeouts, now));
    let mut rows: Vec<_> = rows.collect();
    rows.sort_by_key(|row| (row.protocol.clone(), row.client, row.dialled));
    rows
}

fn row(protocol: Protocol, entry: &FlowEntry, timeouts: &Timeouts, now: u32) -> Option<FlowRow> {
    let flow = &entry.flow;
    // A packet may have come since the clock was read.
    let idle = now.saturating_sub(flow.seen);
    let at = |address: Address, port| SocketAddr::new(address.ip(), port);
    Some(FlowRow {
        protocol: protocol.to_string(),
        client: at(flow.client(), flow.client_port),
        dialled: at(flow.dialled(), flow.dialled_port),
        moved: flow.is_repair(),
        own: flow.is_own(),
        backend: at(flow.backend(), flow.backend_port),
        masquerade: flow.has_masquerade().then(|| at(flow.masquerade(), flow.shown_port)),
        shown_port: Some(flow.shown_port).filter(|port| *port != flow.client_port),
        confirmed: entry.confirmed,
        state: match track::phase(flow) {
            Phase::Dialled => "dialled",
            Phase::Answered => "answered",
            Phase::Open => "open",
            Phase::Closing => "closing",
            Phase::HalfClosed => "halfClosed",
            Phase::LastAck => "lastAck",
            Phase::TimeWait => "timeWait",
            Phase::Closed => "closed",
        },
        client_said: said(flow.client_state),
        backend_said: said(flow.backend_state),
        idle_seconds: idle,
        left_seconds: track::lifetime(protocol, flow, timeouts).checked_sub(idle)?,
    })
}

fn said(state: u8) -> &'static str {
    match state & !HEARD {
        track::SILENT => "nothing",
        track::GREETED => "greeted",
        track::TALKED => "talks",
        track::DONE => "done",
        _ => "reset",
    }
}

impl FlowList {
    /// Of all that there are: those that are wanted, and whether they are listed.
    pub fn new(all: Vec<FlowRow>, wanted: impl Fn(&FlowRow) -> bool, list: bool) -> Self {
        let mut protocols = BTreeMap::new();
        for row in &all {
            *protocols.entry(row.protocol.clone()).or_default() += 1;
        }
        let total = all.len();
        let unconfirmed = all.iter().filter(|row| !row.confirmed).count();
        let matching: Vec<_> = all.into_iter().filter(wanted).collect();
        Self { matching: matching.len(), flows: list.then_some(matching), total, unconfirmed, protocols }
    }

    /// For people.
    pub fn text(&self) -> String {
        let rows = self.flows.as_deref().filter(|rows| !rows.is_empty());
        let mut text = rows.map_or_else(String::new, |rows| rows_text(rows) + "\n");
        let kinds = self.protocols.iter().map(|(protocol, number)| format!("{number} {protocol}"));
        let mut kinds: Vec<_> = kinds.collect();
        if self.unconfirmed > 0 {
            kinds.push(format!("{} not confirmed yet", self.unconfirmed));
        }
        if self.matching != self.total {
            text.push_str(&format!("{} of ", self.matching));
        }
        text.push_str(&count(self.total, "flow", "flows"));
        if !kinds.is_empty() {
            text.push_str(&format!(": {}", kinds.join(", ")));
        }
        text.push('\n');
        text
    }
}

fn own(row: &FlowRow) -> &'static str {
    if row.own { " (no Service)" } else { "" }
}

fn rows_text(rows: &[FlowRow]) -> String {
    let age = |seconds: u32| duration(Duration::from_secs(seconds.into()));
    let cells = rows.iter().map(|row| {
        let seen = match (row.masquerade, row.shown_port) {
            (Some(node), _) => node.to_string(),
            (None, Some(port)) => format!("its port as {port}"),
            (None, None) => "-".into(),
        };
        [
            row.protocol.clone(),
            row.client.to_string(),
            row.dialled.to_string() + if row.moved { " (moved)" } else { own(row) },
            row.backend.to_string(),
            seen,
            row.state.into(),
            row.client_said.into(),
            row.backend_said.into(),
            age(row.idle_seconds),
            age(row.left_seconds),
        ]
    });
    let head = [
        "PROTOCOL",
        "CLIENT",
        "DIALLED",
        "BACKEND",
        "MASQUERADE",
        "STATE",
        "CLIENT SAID",
        "BACKEND SAID",
        "IDLE",
        "LEFT",
    ];
    table(head, cells)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn octets(text: &str) -> [u8; 16] {
        Address::from(text.parse::<IpAddr>().unwrap()).octets()
    }

    /// A masqueraded connection of a client outside to a NodePort, open, and last seen at 1000.
    fn open() -> Flow {
        Flow {
            client: octets("203.0.113.2"),
            dialled: octets("192.0.2.1"),
            backend: octets("10.0.0.7"),
            masquerade: octets("10.0.0.1"),
            client_port: 40_000,
            dialled_port: 30_080,
            backend_port: 8080,
            shown_port: 61_007,
            version: Flow::VERSION,
            flags: Flow::MASQUERADE,
            client_state: track::TALKED,
            backend_state: track::TALKED,
            seen: 1000,
        }
    }

    fn entries(flow: Flow, protocol: Protocol, confirmed: bool) -> Vec<FlowEntry> {
        let keys = (0..Flow::KEYS).filter_map(|number| flow.key(protocol, number));
        keys.map(|key| FlowEntry { key, flow, confirmed }).collect()
    }

    fn at(now: u32, entries: &[FlowEntry]) -> Vec<FlowRow> {
        flows(entries, &Timeouts::DEFAULT, now)
    }

    #[test]
    fn a_flow_is_told_once_by_the_state_under_its_own_key() {
        let mut all = entries(open(), Protocol::Tcp, true);
        assert_eq!(all.len(), 4);
        for copy in &mut all[1..] {
            (copy.flow.seen, copy.flow.client_state) = (1001, track::GREETED);
        }
        all.reverse();
        let rows = at(1005, &all);
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].client_said, rows[0].idle_seconds, rows[0].left_seconds), ("talks", 5, 86_395));
        assert_eq!(rows[0].masquerade, Some("10.0.0.1:61007".parse().unwrap()));
    }

    #[test]
    fn a_flow_that_lost_its_own_key_is_told_by_the_others() {
        let rows = at(1005, &entries(open(), Protocol::Tcp, true)[2..]);
        assert_eq!((rows.len(), rows[0].dialled), (1, "192.0.2.1:30080".parse().unwrap()));
    }

    #[test]
    fn what_is_over_or_of_another_version_is_not_told() {
        let lifetime = Timeouts::DEFAULT.tcp_established;
        let all = entries(open(), Protocol::Tcp, true);
        assert_eq!(at(1000 + lifetime, &all)[0].left_seconds, 0);
        assert!(at(1001 + lifetime, &all).is_empty());
        assert!(at(1000, &entries(Flow { version: 9, ..open() }, Protocol::Tcp, true)).is_empty());
        assert_eq!(at(999, &all)[0].idle_seconds, 0, "a packet came since the clock was read");
    }

    #[test]
    fn a_flow_of_the_nodes_own_says_so() {
        let node = octets("192.0.2.1");
        let flags = Flow::MASQUERADE | Flow::OWN;
        let own = Flow { client: node, masquerade: node, dialled: octets("10.0.0.7"), flags, ..open() };
        let list = FlowList::new(at(1003, &entries(own, Protocol::Tcp, true)), |_| true, true);
        assert!(list.text().contains("  10.0.0.7:30080 (no Service)  "), "{}", list.text());
    }

    #[test]
    fn a_flow_of_a_socket_that_was_moved_says_so() {
        let moved = Flow { masquerade: [0; 16], flags: Flow::REPAIR, ..open() };
        let list = FlowList::new(at(1003, &entries(moved, Protocol::Udp, true)), |_| true, true);
        assert!(list.text().contains("  192.0.2.1:30080 (moved)  "), "{}", list.text());
    }

    fn some() -> Vec<FlowRow> {
        let plain = Flow { masquerade: [0; 16], flags: 0, shown_port: 40_000, ..open() };
        let v6 = Flow { client: octets("fd00::9"), dialled: octets("fd00:96::1"), ..plain };
        let v6 = Flow { backend: octets("fd00:1::7"), dialled_port: 53, backend_port: 53, ..v6 };
        let dialled = Flow { client_state: track::GREETED, backend_state: track::SILENT, ..open() };
        let dialled = Flow { client_port: 40_001, masquerade: [0; 16], ..dialled };
        let ending = Flow { client_state: track::DONE, backend_state: track::TALKED | HEARD, ..plain };
        let all = [
            entries(open(), Protocol::Tcp, true),
            entries(Flow { seen: 990, ..v6 }, Protocol::Udp, true),
            entries(dialled, Protocol::Tcp, false),
            entries(Flow { client_port: 40_002, shown_port: 40_002, ..ending }, Protocol::Tcp, true),
        ];
        at(1003, &all.concat())
    }

    #[test]
    fn flows_are_rows_for_people_with_a_line_that_counts() {
        insta::assert_snapshot!(FlowList::new(some(), |_| true, true).text(), @r"
        PROTOCOL   CLIENT              DIALLED           BACKEND          MASQUERADE          STATE        CLIENT SAID   BACKEND SAID   IDLE   LEFT
        TCP        203.0.113.2:40000   192.0.2.1:30080   10.0.0.7:8080    10.0.0.1:61007      open         talks         talks          3 s    23 h 59 min
        TCP        203.0.113.2:40001   192.0.2.1:30080   10.0.0.7:8080    its port as 61007   dialled      greeted       nothing        3 s    1 min 57 s
        TCP        203.0.113.2:40002   192.0.2.1:30080   10.0.0.7:8080    -                   halfClosed   done          talks          3 s    59 min 57 s
        UDP        [fd00::9]:40000     [fd00:96::1]:53   [fd00:1::7]:53   -                   open         talks         talks          13 s   1 min 47 s

        4 flows: 3 TCP, 1 UDP, 1 not confirmed yet
        ");
        let one = FlowList::new(some(), |row| row.protocol == "UDP", true).text();
        assert!(one.ends_with("\n1 of 4 flows: 3 TCP, 1 UDP, 1 not confirmed yet\n"), "{one}");
        let counted = FlowList::new(some(), |_| true, false).text();
        assert_eq!(counted, "4 flows: 3 TCP, 1 UDP, 1 not confirmed yet\n");
        assert_eq!(FlowList::new(Vec::new(), |_| true, true).text(), "0 flows\n");
    }

    #[test]
    fn flows_have_stable_names_for_programs() {
        let list = FlowList::new(some(), |row| row.masquerade.is_some(), true);
        insta::assert_snapshot!(serde_json::to_string_pretty(&list).unwrap(), @r#"
        {
          "flows": [
            {
              "protocol": "TCP",
              "client": "203.0.113.2:40000",
              "dialled": "192.0.2.1:30080",
              "moved": false,
              "own": false,
              "backend": "10.0.0.7:8080",
              "masquerade": "10.0.0.1:61007",
              "shownPort": 61007,
              "confirmed": true,
              "state": "open",
              "clientSaid": "talks",
              "backendSaid": "talks",
              "idleSeconds": 3,
              "leftSeconds": 86397
            }
          ],
          "matching": 1,
          "total": 4,
          "unconfirmed": 1,
          "protocols": {
            "TCP": 3,
            "UDP": 1
          }
        }
        "#);
    }
}
