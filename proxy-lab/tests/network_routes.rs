//! The node's local routing table, as the agent follows it by netlink, while addresses and devices come and go.

use std::fs;
use std::time::Duration;

use proxy_lab::{Lab, Node, Topology, Wiring};
use tokio::sync::mpsc::{self, Receiver};
use tokio::time::timeout;
use vipr::model::{Change, LocalRoute};
use vipr::watch::{Event, What, routes};

const LIMIT: Duration = Duration::from_secs(30);

fn lab() -> Lab {
    Lab::start(&Topology::new(Wiring::Routed).node("a", &[])).unwrap()
}

/// Runs `story` in the node's namespace, beside what follows the table. It has one thread: nothing is read while the
/// story runs commands.
fn following(node: &Node, story: impl AsyncFnOnce(&mut Table) + Send) {
    node.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (to, events) = mpsc::channel(16);
            let follow = tokio::spawn(routes::follow(to));
            story(&mut Table { events, now: Vec::new() }).await;
            timeout(LIMIT, follow).await.unwrap().unwrap().unwrap();
        });
    })
    .unwrap();
}

struct Table {
    events: Receiver<Event>,
    /// As `PREFIX DEVICE`.
    now: Vec<String>,
}

impl Table {
    /// Waits until the table is as `wanted` says.
    async fn until(&mut self, what: &str, wanted: impl Fn(&Self) -> bool) {
        while self.now.is_empty() || !wanted(self) {
            let event = timeout(LIMIT, self.events.recv()).await;
            let event = event.unwrap_or_else(|_| panic!("{what}: not in {:#?}", self.now)).unwrap();
            match event.what {
                What::Change { change: Change::LocalRoutes(routes), .. } => {
                    let text = |route: &LocalRoute| format!("{} {}", route.prefix, route.device);
                    self.now = routes.iter().map(text).collect();
                }
                What::Alive => {}
                other => panic!("{what}: {other:?}"),
            }
        }
    }

    fn has(&self, entry: &str) -> bool {
        self.now.iter().any(|other| other == entry)
    }
}

fn ip(node: &Node, line: &str) {
    node.run("ip", &line.split(' ').collect::<Vec<_>>()).unwrap();
}

#[test]
fn addresses_that_come_and_go_are_seen_in_both_families() {
    let lab = lab();
    let node = lab.node("a");
    following(node, async |table| {
        table.until("loopback's", |table| table.has("127.0.0.0/8 lo") && table.has("::1/128 lo")).await;
        ip(node, "link add probe0 type veth peer name probe1");
        ip(node, "link set probe0 up");
        ip(node, "link set probe1 up");
        for (address, entry) in
            [("192.0.2.77/24", "192.0.2.77/32 probe0"), ("2001:db8:77::1/64", "2001:db8:77::1/128 probe0")]
        {
            ip(node, &format!("address add {address} dev probe0"));
            table.until(entry, |table| table.has(entry)).await;
            assert!(!table.now.iter().any(|entry| entry.contains("192.0.2.255")), "{:#?}", table.now);
            ip(node, &format!("address del {address} dev probe0"));
            table.until(entry, |table| !table.has(entry)).await;
        }
        ip(node, "route add local 198.51.100.0/24 dev lo table local");
        table.until("a range", |table| table.has("198.51.100.0/24 lo")).await;
        let other = |entry: &String| entry.starts_with("ff00") || entry.contains("255/32");
        assert!(!table.now.iter().any(other), "{:#?}", table.now);
        table.events.close();
    });
}

#[test]
fn devices_that_are_renamed_or_deleted_take_their_entries_along() {
    let lab = lab();
    let node = lab.node("a");
    following(node, async |table| {
        ip(node, "link add probe0 type veth peer name probe1");
        ip(node, "address add 192.0.2.77/24 dev probe0");
        ip(node, "link set probe0 up");
        table.until("the first name", |table| table.has("192.0.2.77/32 probe0")).await;
        ip(node, "link set probe0 down");
        ip(node, "link set probe0 name other0");
        table.until("the new name", |table| table.has("192.0.2.77/32 other0")).await;
        assert!(!table.has("192.0.2.77/32 probe0"));
        ip(node, "link del other0");
        table.until("the end", |table| !table.now.iter().any(|entry| entry.starts_with("192.0.2.77"))).await;
        table.events.close();
    });
}

#[test]
fn a_change_whose_notification_was_lost_in_a_flood_is_seen_all_the_same() {
    let lab = lab();
    let node = lab.node("a");
    // Routes of the main table are no reason to look; they fill the socket's buffer before the address comes.
    let flood: String =
        (0..4000).map(|i| format!("route add 10.{}.{}.0/24 dev lo\n", 128 + i / 250, i % 250)).collect();
    let batch = node.folder().join("flood");
    fs::write(&batch, flood + "address add 192.0.2.77/32 dev lo\n").unwrap();
    following(node, async |table| {
        table.until("loopback's", |table| table.has("127.0.0.0/8 lo")).await;
        assert!(!table.has("192.0.2.77/32 lo"));
        ip(node, &format!("-batch {}", batch.display()));
        table.until("what came last", |table| table.has("192.0.2.77/32 lo")).await;
        table.events.close();
    });
}
