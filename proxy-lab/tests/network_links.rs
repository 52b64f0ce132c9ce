//! The node's devices, as the agent follows them by netlink, while they come, change and go.

use std::collections::BTreeMap;
use std::time::Duration;

use proxy_lab::{Lab, Node, Topology, Wiring};
use tokio::sync::mpsc::{self, Receiver};
use tokio::time::timeout;
use vipr::model::{Change, Link, Scope};
use vipr::watch::{Event, What, links};

const LIMIT: Duration = Duration::from_secs(30);

/// Runs `story` in the namespace of a node, beside what follows its devices.
fn following(story: impl AsyncFnOnce(&Node, &mut Devices) + Send) {
    let lab = Lab::start(&Topology::new(Wiring::Routed).node("a", &[])).unwrap();
    let node = lab.node("a");
    node.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (to, events) = mpsc::channel(16);
            let follow = tokio::spawn(links::follow(to));
            let mut devices = Devices { events, now: BTreeMap::new() };
            story(node, &mut devices).await;
            devices.events.close();
            timeout(LIMIT, follow).await.unwrap().unwrap().unwrap();
        });
    })
    .unwrap();
}

struct Devices {
    events: Receiver<Event>,
    now: BTreeMap<u32, Link>,
}

impl Devices {
    fn find(&self, name: &str) -> Option<(u32, &Link)> {
        self.now.iter().find(|(_, link)| &*link.name == name).map(|(index, link)| (*index, link))
    }

    /// Waits until a device is as `wanted` says.
    async fn until(&mut self, name: &str, wanted: impl Fn(Option<&Link>) -> bool) {
        while self.now.is_empty() || !wanted(self.find(name).map(|(_, link)| link)) {
            let event = timeout(LIMIT, self.events.recv()).await;
            let event = event.unwrap_or_else(|_| panic!("{name}: not in {:#?}", self.now)).unwrap();
            match event.what {
                What::Change { change: Change::Links(links), .. } => self.now = links,
                What::Alive => {}
                other => panic!("{name}: {other:?}"),
            }
        }
    }

    async fn until_there(&mut self, name: &str, wanted: impl Fn(&Link) -> bool) {
        self.until(name, |link| link.is_some_and(&wanted)).await;
    }
}

fn ip(node: &Node, lines: &[&str]) {
    node.ip(&lines.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
}

#[test]
fn devices_that_come_change_their_place_and_go_are_seen() {
    following(async |node, devices| {
        devices.until_there("lo", |lo| lo.loopback && lo.header.is_none()).await;
        ip(
            node,
            &[
                "link add cni9 address 02:00:00:00:00:09 type bridge",
                "link add probe0 type veth peer name probe1",
            ],
        );
        devices.until_there("probe0", |link| link.kind.as_deref() == Some("veth")).await;
        let (bridge, link) = devices.find("cni9").unwrap();
        assert_eq!(
            (link.kind.as_deref(), link.header, link.mac),
            (Some("bridge"), Some(14), [2, 0, 0, 0, 0, 9])
        );
        ip(node, &["link set probe0 master cni9"]);
        devices.until_there("probe0", |link| link.master == Some(bridge)).await;
        ip(node, &["link set probe0 nomaster", "link set probe0 address 02:00:00:00:00:0a"]);
        devices.until_there("probe0", |link| link.master.is_none() && link.mac[5] == 10).await;
        ip(node, &["tuntap add dev plain0 mode tun"]);
        devices.until_there("plain0", |link| link.header == Some(0)).await;
        ip(node, &["link set probe0 name other0"]);
        devices.until_there("other0", |_| true).await;
        ip(node, &["link del other0"]);
        devices.until("probe1", |link| link.is_none()).await;
    });
}

#[test]
fn addresses_are_seen_in_the_kernels_order_with_what_decides_its_choice() {
    following(async |node, devices| {
        ip(node, &["link add probe0 type veth peer name probe1", "link set probe1 up", "link set probe0 up"]);
        ip(
            node,
            &[
                "address add 192.0.2.1/24 dev probe0",
                "address add 192.0.2.2/24 dev probe0",
                "address add 198.51.100.1/24 dev probe0 scope link",
                "address add 203.0.113.1 peer 203.0.113.2 dev probe0",
                "address add 2001:db8::1/64 dev probe0 nodad preferred_lft 0",
            ],
        );
        devices
            .until_there("probe0", |link| {
                link.addresses.iter().any(|one| one.deprecated && one.address.is_ipv6())
            })
            .await;
        let (_, link) = devices.find("probe0").unwrap();
        let v4 = link.addresses.iter().filter(|address| address.address.is_ipv4());
        let v4: Vec<_> = v4.map(|one| (one.address.to_string(), one.scope, one.secondary)).collect();
        let of = |address: &str, scope, secondary| (address.to_owned(), scope, secondary);
        // The kernel puts those of a smaller scope first, secondary ones last.
        assert_eq!(
            v4,
            [
                of("198.51.100.1", Scope::Link, false),
                of("192.0.2.1", Scope::Global, false),
                of("203.0.113.1", Scope::Global, false),
                of("192.0.2.2", Scope::Global, true),
            ]
        );
        ip(node, &["address del 192.0.2.1/24 dev probe0"]);
        devices
            .until_there("probe0", |link| {
                !link.addresses.iter().any(|one| one.address.to_string() == "192.0.2.1")
            })
            .await;
    });
}
