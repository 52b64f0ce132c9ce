//! What depends on whose observable differences are asked for, and what no mode serves.

use super::*;

/// Where ClusterIPs are, and which addresses are marked as some.
fn cluster_ips(model: &Model) -> [Vec<String>; 3] {
    let desired = model.desired();
    let mut marks: Vec<_> = desired.frontends.keys().filter(|key| key.is_mark()).collect();
    marks.sort();
    [
        desired.service_ranges.iter().map(ToString::to_string).collect(),
        desired.marked_cover.iter().map(ToString::to_string).collect(),
        marks.iter().map(|key| key.address().to_string()).collect(),
    ]
}

#[test]
fn modes_that_refuse_undeclared_ports_know_where_addresses_of_services_are_and_which_there_are() {
    let ranges = |text: &[(&str, u8)]| -> Arc<[Cidr]> {
        text.iter().map(|(address, length)| Cidr { address: ip(address), length: *length }).collect()
    };
    let said = |name: &str, all: &[(&str, u8)]| {
        Change::ServiceCidr(ObjectName::new("", name), (!all.is_empty()).then(|| ranges(all)))
    };
    let mut model = synced(&[service("shop/a", "10.96.0.1"), service("shop/b", "10.98.0.1")], &[]);
    let marks = ["10.96.0.1", "10.98.0.1"].map(str::to_owned).to_vec();
    assert_eq!(cluster_ips(&model), [vec![], vec!["10.96.0.0/14".to_owned()], marks.clone()]);
    assert!(touched(&mut model, said("kubernetes", &[("10.96.0.0", 16), ("fd00:96::", 112)])).service_ranges);
    let known = ["10.96.0.0/16", "fd00:96::/112"].map(str::to_owned).to_vec();
    assert_eq!(cluster_ips(&model), [known, vec!["10.98.0.1/32".to_owned()], marks]);
    touched(&mut model, said("more", &[("10.98.0.0", 24)]));
    touched(&mut model, said("kubernetes", &[]));
    assert_eq!(cluster_ips(&model)[..2], [vec!["10.98.0.0/24".to_owned()], vec!["10.96.0.1/32".to_owned()]]);
    touched(&mut model, Change::Service(name("shop/a"), None));
    assert_eq!(cluster_ips(&model)[1..], [vec![], vec!["10.98.0.1".to_owned()]]);

    let other = |profile| {
        let mut other = Model::new(Settings { profile, ..settings() });
        let external = Service {
            external_ips: vec![ip("198.51.100.1"), ip("0.0.0.0")],
            load_balancer_ips: vec![ip("203.0.113.1")],
            ..service("shop/a", "10.96.0.1")
        };
        other.fold(all(&[external]));
        other.fold(all_slices(&[]));
        other.fold(Change::LocalRoutes(BTreeSet::new()));
        other.fold(said("kubernetes", &[("10.96.0.0", 16)]));
        other.give_up_waiting_for_node();
        other.update().unwrap();
        cluster_ips(&other)
    };
    assert_eq!(other(Profile::Iptables), [const { Vec::<String>::new() }; 3], "it leaves all of this alone");
    let marks = ["10.96.0.1", "198.51.100.1", "203.0.113.1"].map(str::to_owned).to_vec();
    let cover = ["10.96.0.1/32", "192.0.0.0/4"].map(str::to_owned).to_vec();
    assert_eq!(
        other(Profile::Ipvs),
        [vec![], cover, marks],
        "ClusterIPs are near each other, the others anywhere"
    );
}

#[test]
fn mode_ipvs_holds_everybody_to_an_external_policy_as_long_as_there_are_endpoints_here() {
    let web = Service {
        external_policy: Policy::Local,
        external_ips: vec![ip("198.51.100.1")],
        ..service("shop/web", "10.96.0.1")
    };
    let policy = |profile, external_policy, endpoints: &[&str]| {
        let local_detector = LocalDetector::BridgeInterface("cni0".into());
        let mut model = Model::new(Settings { profile, local_detector, packet_plane: true, ..settings() });
        model.fold(all(&[Service { external_policy, ..web.clone() }]));
        model.fold(all_slices(&[slice("shop/a", "shop/web", endpoints)]));
        model.fold(Change::LocalRoutes(BTreeSet::new()));
        model.fold(Change::Links(BTreeMap::new()));
        model.give_up_waiting_for_node();
        model.update().unwrap();
        let bits = model.desired().services[&port("shop/web")].policy;
        bits & (Bits::NO_CIRCUIT | Bits::LEAVE_EXTERNAL)
    };
    let (here, elsewhere) = (["10.0.0.1@n1", "10.0.0.2@n2"], ["10.0.0.2@n2"]);
    assert_eq!(policy(Profile::Ipvs, Policy::Local, &here), Bits::NO_CIRCUIT, "whoever dials");
    assert_eq!(policy(Profile::Ipvs, Policy::Local, &elsewhere), Bits::LEAVE_EXTERNAL);
    assert_eq!(policy(Profile::Ipvs, Policy::Cluster, &here), 0);
    assert_eq!(policy(Profile::Iptables, Policy::Local, &here), Bits::LEAVE_EXTERNAL);
}

#[test]
fn a_claim_is_served_while_the_api_servers_name_does_not_have_its_address() {
    let mut claimant = Service { external_ips: vec![ip("198.51.100.1")], ..service("shop/web", "10.96.0.9") };
    claimant.ports[0].port = 6443;
    let mut model = Model::new(settings());
    model.fold(all(&[claimant]));
    model.fold(all_slices(&[]));
    model.fold(Change::LocalRoutes(BTreeSet::new()));
    model.give_up_waiting_for_node();
    for (servers, served) in
        [(&[][..], true), (&["198.51.100.1:6443", "[::1]:6443"], false), (&["198.51.100.1:443"], true)]
    {
        model.fold(Change::ApiServers(servers.iter().map(|it| it.parse().unwrap()).collect()));
        model.update().unwrap();
        let key = FrontendKey::new(ip("198.51.100.1").into(), 6443, Protocol::Tcp);
        assert_eq!(model.desired().frontends.contains_key(&key), served, "{servers:?}");
    }
}

#[test]
fn nobody_claims_where_the_nodes_health_is_asked_for_or_where_the_api_server_is() {
    let of_port = |name: &str, address: &str, port: u16| {
        let mut of = Service { external_ips: vec![ip(address)], ..service(name, "10.96.0.9") };
        of.ports[0].port = port;
        of
    };
    let reserved = Reserved {
        ports: BTreeSet::from([10_250]),
        api_servers: BTreeSet::from(["198.51.100.1:6443".parse().unwrap()]),
    };
    let owned = |profile, claimant: Service, own: &[&str]| {
        let mut model = Model::new(Settings { profile, reserved: reserved.clone(), ..settings() });
        model.fold(all(&[claimant]));
        model.fold(all_slices(&[]));
        let routes = own.iter().map(|address| LocalRoute {
            prefix: Cidr { address: ip(address), length: 32 },
            device: "eth0".into(),
        });
        // Addresses come and go under the same Service.
        model.fold(Change::LocalRoutes(BTreeSet::new()));
        model.give_up_waiting_for_node();
        model.update().unwrap();
        model.fold(Change::LocalRoutes(routes.collect()));
        model.update().unwrap();
        let keys = model.desired().frontends.keys().filter(|key| key.address().ip() != ip("10.96.0.9"));
        keys.map(|key| key.port).collect::<BTreeSet<_>>()
    };
    let own = ["192.168.0.2"];
    let iptables = |claimant| owned(Profile::Iptables, claimant, &own);
    assert!(iptables(of_port("shop/web", "192.168.0.2", 10_250)).is_empty(), "kubelet's");
    assert_eq!(iptables(of_port("shop/web", "192.168.0.2", 443)), BTreeSet::from([443]));
    assert_eq!(iptables(of_port("shop/web", "192.168.0.3", 10_250)), BTreeSet::from([10_250]), "no node's");
    assert!(iptables(of_port("shop/web", "198.51.100.1", 6443)).is_empty(), "the API server's");
    assert_eq!(iptables(of_port("shop/web", "198.51.100.1", 443)), BTreeSet::from([443]));
    for theirs in ["kube-system/api", "default/kubernetes"] {
        assert_eq!(iptables(of_port(theirs, "198.51.100.1", 6443)), BTreeSet::from([6443]));
        assert!(iptables(of_port(theirs, "192.168.0.2", 10_250)).is_empty());
    }
    let mut datagrams = of_port("shop/web", "192.168.0.2", 10_250);
    datagrams.ports[0].protocol = Protocol::Udp;
    assert_eq!(
        iptables(datagrams),
        BTreeSet::from([0, 10_250]),
        "health is asked for over TCP; 0: fragments"
    );
    // A refusal of all other ports would take it as well.
    let ipvs = |claimant| owned(Profile::Ipvs, claimant, &own);
    assert_eq!(ipvs(of_port("shop/web", "198.51.100.1", 443)), BTreeSet::from([443]));
    assert_eq!(ipvs(of_port("shop/web", "198.51.100.2", 443)), BTreeSet::from([0, 443]));
}
