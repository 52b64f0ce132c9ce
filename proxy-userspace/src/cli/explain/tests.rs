//! Questions about a cluster in YAML, and their answers as people see them.

mod packets;

use std::fs;

use anyhow::Result;
use clap::Parser;

use super::super::{Cli, Verb};
use crate::text::Explanation;

/// Two nodes in two zones; `web` has every kind of endpoint.
const CLUSTER: &str = r"
apiVersion: v1
kind: Node
metadata: {name: n1, labels: {topology.kubernetes.io/zone: a}}
status: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: InternalIP, address: 'fd00::1'}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.1
  clusterIPs: [10.96.0.1, 'fd00:96::1']
  ports: [{name: http, port: 80, nodePort: 30080}, {name: dns, port: 53, protocol: UDP}]
  externalTrafficPolicy: Local
  healthCheckNodePort: 32000
  loadBalancerSourceRanges: [203.0.113.0/24]
status: {loadBalancer: {ingress: [{ip: 203.0.113.9}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 8080}, {name: dns, port: 5353, protocol: UDP}]
endpoints:
- {addresses: [10.0.0.1], nodeName: n1}
- {addresses: [10.0.0.2], nodeName: n2}
- {addresses: [10.0.0.3], nodeName: n2, conditions: {ready: false}}
- {addresses: [10.0.0.4], nodeName: n1, conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [10.0.0.5], conditions: {ready: false, serving: false, terminating: true}}
- {addresses: [10.0.0.2], nodeName: n2}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-2, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
ports: [{name: http, port: 8080}]
endpoints: [{addresses: ['fd00:1::1'], nodeName: n2}]
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: shop}
spec: {clusterIP: 10.96.0.2, clusterIPs: [10.96.0.2], ports: [{port: 80}, {name: u, port: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: near, namespace: shop}
spec:
  clusterIP: 10.96.0.3
  clusterIPs: [10.96.0.3]
  ports: [{name: http, port: 80}]
  internalTrafficPolicy: Local
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: near-1, namespace: shop, labels: {kubernetes.io/service-name: near}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints: [{addresses: [10.0.0.2], nodeName: n2}]
---
apiVersion: v1
kind: Service
metadata: {name: zoned, namespace: shop}
spec:
  clusterIP: 10.96.0.4
  clusterIPs: [10.96.0.4]
  ports: [{name: http, port: 80}]
  sessionAffinity: ClientIP
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: zoned-1, namespace: shop, labels: {kubernetes.io/service-name: zoned}}
addressType: IPv4
ports: [{name: http, port: 8080}]
endpoints:
- {addresses: [10.0.0.1], nodeName: n1, hints: {forZones: [{name: a}]}}
- {addresses: [10.0.0.2], nodeName: n2, hints: {forZones: [{name: b}]}}
";

fn ask_of(cluster: &str, args: &[&str]) -> Result<Explanation> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("cluster.yaml");
    fs::write(&file, cluster)?;
    let more = ["--cluster", file.to_str().unwrap(), "--node", "n1"];
    // What is asked here is what sockets do; packets have a file of their own.
    let plane = if args.iter().any(|arg| arg.contains("plane")) { &[][..] } else { &["--packet-plane=off"] };
    let line = ["vipr", "explain"].iter().chain(args).chain(&more).chain(plane);
    let Verb::Explain(args) = Cli::try_parse_from(line)?.verb else { panic!("another verb") };
    super::explain(&args).map_err(|error| {
        let text = format!("{error:#}").replace(folder.path().to_str().unwrap(), "FOLDER");
        anyhow::Error::msg(text)
    })
}

fn ask(from: &str, to: &str) -> String {
    ask_of(CLUSTER, &["--from", from, "--to", to]).unwrap().text()
}

/// What clap says, without its hints.
fn refused(args: &[&str]) -> String {
    let line = ["vipr", "explain"].iter().chain(args);
    let error = Cli::try_parse_from(line).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

#[test]
fn a_cluster_ip_leads_to_the_ready_endpoints_and_every_other_one_has_its_reason() {
    insta::assert_snapshot!(ask("10.0.0.1", "10.96.0.1:80/TCP"), @r"
    from       10.0.0.1: no address of this node, so one of its pods is assumed
    to         10.96.0.1:80/TCP
    connect    rewritten to one of 2 endpoints
               connect() to a frontend was given a backend.
    frontend   ClusterIP 10.96.0.1:80/TCP
    service    shop/web:http/TCP/IPv4
    set        cluster: internalTrafficPolicy is Cluster
    affinity   none
    masquerade none: a call is translated before there is a packet, whose source is then the caller's own

    ENDPOINT        CHANCE
    10.0.0.1:8080   1 in 2
    10.0.0.2:8080   1 in 2

    LEFT OUT        NODE   WHY
    10.0.0.2:8080   n2     another entry has the same address and port, and counts
    10.0.0.3:8080   n2     not ready
    10.0.0.4:8080   n1     terminating, while others are ready
    10.0.0.5:8080   -      terminating, and not serving any more
    ");
}

#[test]
fn a_node_port_with_the_policy_local_is_answered_here_for_pods_and_by_all_for_the_host() {
    insta::assert_snapshot!(ask("pod", "192.0.2.1:30080/TCP"), @r"
    from       pod: a process in another network namespace of this node
    to         192.0.2.1:30080/TCP
    connect    rewritten to 10.0.0.1:8080
               connect() to a frontend was given a backend.
    frontend   NodePort *:30080/TCP
    service    shop/web:http/TCP/IPv4
    set        local: externalTrafficPolicy is Local
    affinity   none
    masquerade none: a call is translated before there is a packet, whose source is then the caller's own

    ENDPOINT        CHANCE
    10.0.0.1:8080   1 in 1

    LEFT OUT        NODE   WHY
    10.0.0.2:8080   n2     another entry has the same address and port, and counts
    10.0.0.3:8080   n2     not on this node, and the traffic policy is Local
    10.0.0.4:8080   n1     terminating, while others are ready
    10.0.0.5:8080   -      not on this node, and the traffic policy is Local
    10.0.0.2:8080   n2     not on this node, and the traffic policy is Local
    ");
    insta::assert_snapshot!(ask("192.0.2.1", "192.0.2.1:30080/TCP"), @r"
    from       192.0.2.1: an address of this node, so the host is assumed
    to         192.0.2.1:30080/TCP
    connect    rewritten to one of 2 endpoints
               connect() to a frontend was given a backend.
    frontend   NodePort *:30080/TCP
    service    shop/web:http/TCP/IPv4
    set        cluster: externalTrafficPolicy is Local, which the node itself is not subject to
    affinity   none
    masquerade none: a call is translated before there is a packet, whose source is then the caller's own

    ENDPOINT        CHANCE
    10.0.0.1:8080   1 in 2
    10.0.0.2:8080   1 in 2

    LEFT OUT        NODE   WHY
    10.0.0.2:8080   n2     another entry has the same address and port, and counts
    10.0.0.3:8080   n2     not ready
    10.0.0.4:8080   n1     terminating, while others are ready
    10.0.0.5:8080   -      terminating, and not serving any more
    ");
}

#[test]
fn without_endpoints_connect_is_refused_and_a_datagram_is_left() {
    insta::assert_snapshot!(ask("pod", "10.96.0.2:80/TCP"), @r"
    from       pod: a process in another network namespace of this node
    to         10.96.0.2:80/TCP
    connect    refused with ECONNREFUSED
               No endpoint anywhere: the call was refused (ECONNREFUSED).
    frontend   ClusterIP 10.96.0.2:80/TCP
    service    shop/empty:/TCP/IPv4
    set        cluster: internalTrafficPolicy is Cluster
    affinity   none
    masquerade none: a call is translated before there is a packet, whose source is then the caller's own
    ");
    insta::assert_snapshot!(ask("pod", "10.96.0.2:53/UDP"), @r"
    from       pod: a process in another network namespace of this node
    to         10.96.0.2:53/UDP
    connect    refused with ECONNREFUSED
               No endpoint anywhere: the call was refused (ECONNREFUSED).
    sendmsg    left to the packet plane
               No endpoint anywhere, and this call can't be refused here: left to the packet plane, which rejects it.
    frontend   ClusterIP 10.96.0.2:53/UDP
    service    shop/empty:u/UDP/IPv4
    set        cluster: internalTrafficPolicy is Cluster
    affinity   none
    masquerade none: a call is translated before there is a packet, whose source is then the caller's own
    note       the packet plane is off: what is left to it goes on untranslated
    ");
}

#[test]
fn where_the_policy_allows_none_of_the_endpoints_the_call_is_left() {
    insta::assert_snapshot!(ask("pod", "10.96.0.3:80/TCP"), @r"
    from       pod: a process in another network namespace of this node
    to         10.96.0.3:80/TCP
    connect    left to the packet plane
               Endpoints exist, but the traffic policy allows none of them here: left to the packet plane, which drops it.
    frontend   ClusterIP 10.96.0.3:80/TCP
    service    shop/near:http/TCP/IPv4
    set        local: internalTrafficPolicy is Local
    affinity   none
    masquerade none: a call is translated before there is a packet, whose source is then the caller's own
    note       the packet plane is off: what is left to it goes on untranslated

    LEFT OUT        NODE   WHY
    10.0.0.2:8080   n2     not on this node, and the traffic policy is Local
    ");
}

#[test]
fn hints_for_another_zone_leave_an_endpoint_out_and_affinity_is_told() {
    insta::assert_snapshot!(ask("host", "10.96.0.4:80"), @r"
    from       host: a process in the node's own network namespace
    to         10.96.0.4:80/TCP
    connect    rewritten to 10.0.0.1:8080
               connect() to a frontend was given a backend.
    frontend   ClusterIP 10.96.0.4:80/TCP
    service    shop/zoned:http/TCP/IPv4
    set        cluster: internalTrafficPolicy is Cluster
    affinity   by client, for 3 h after its last connection
    masquerade none: a call is translated before there is a packet, whose source is then the caller's own

    ENDPOINT        CHANCE
    10.0.0.1:8080   1 in 1

    LEFT OUT        NODE   WHY
    10.0.0.2:8080   n2     its hints are for other zones
    ");
}

#[test]
fn what_is_no_service_passes() {
    insta::assert_snapshot!(ask("pod", "198.51.100.1:443/TCP"), @r"
    from       pod: a process in another network namespace of this node
    to         198.51.100.1:443/TCP
    connect    passes untouched
               The destination is no frontend: left as it is.
    masquerade none: a call is translated before there is a packet, whose source is then the caller's own
    ");
}

#[test]
fn a_pods_loopback_is_its_own_and_the_hosts_serves_node_ports() {
    insta::assert_snapshot!(ask("pod", "127.0.0.1:30080/TCP"), @r"
    from       pod: a process in another network namespace of this node
    to         127.0.0.1:30080/TCP
    connect    passes untouched
               Loopback of a pod: its own, whatever NodePorts exist.
    frontend   NodePort *:30080/TCP
    service    shop/web:http/TCP/IPv4
    masquerade none: a call is translated before there is a packet, whose source is then the caller's own
    ");
    assert!(ask("host", "127.0.0.1:30080/TCP").contains("rewritten to one of 2 endpoints"));
}

#[test]
fn a_node_outside_of_the_source_ranges_is_denied() {
    insta::assert_snapshot!(ask("host", "203.0.113.9:80/TCP"), @r"
    from       host: a process in the node's own network namespace
    to         203.0.113.9:80/TCP
    connect    left to the packet plane
               The node itself is outside the load balancer's source ranges: left to the packet plane, which drops it.
    frontend   LoadBalancer 203.0.113.9:80/TCP, not for the node itself
    service    shop/web:http/TCP/IPv4
    masquerade none: a call is translated before there is a packet, whose source is then the caller's own
    note       the packet plane is off: what is left to it goes on untranslated
    ");
}

#[test]
fn ipv6_udp_and_sctp_are_explained_alike() {
    insta::assert_snapshot!(ask("pod", "[fd00:96::1]:80/tcp"), @r"
    from       pod: a process in another network namespace of this node
    to         [fd00:96::1]:80/TCP
    connect    rewritten to [fd00:1::1]:8080
               connect() to a frontend was given a backend.
    frontend   ClusterIP [fd00:96::1]:80/TCP
    service    shop/web:http/TCP/IPv6
    set        cluster: internalTrafficPolicy is Cluster
    affinity   none
    masquerade none: a call is translated before there is a packet, whose source is then the caller's own

    ENDPOINT           CHANCE
    [fd00:1::1]:8080   1 in 1
    ");
    insta::assert_snapshot!(ask("pod", "10.96.0.1:53/UDP"), @r"
    from       pod: a process in another network namespace of this node
    to         10.96.0.1:53/UDP
    connect    rewritten to one of 2 endpoints
               connect() to a frontend was given a backend.
    sendmsg    rewritten to one of 2 endpoints
               A datagram to a frontend was given a new backend.
    frontend   ClusterIP 10.96.0.1:53/UDP
    service    shop/web:dns/UDP/IPv4
    set        cluster: internalTrafficPolicy is Cluster
    affinity   none
    masquerade none: a call is translated before there is a packet, whose source is then the caller's own

    ENDPOINT        CHANCE
    10.0.0.1:5353   1 in 2
    10.0.0.2:5353   1 in 2

    LEFT OUT        NODE   WHY
    10.0.0.2:5353   n2     another entry has the same address and port, and counts
    10.0.0.3:5353   n2     not ready
    10.0.0.4:5353   n1     terminating, while others are ready
    10.0.0.5:5353   -      terminating, and not serving any more
    ");
    insta::assert_snapshot!(ask("pod", "10.96.0.1:80/SCTP"), @r"
    from       pod: a process in another network namespace of this node
    to         10.96.0.1:80/SCTP
    connect    passes untouched
               The socket's protocol is neither TCP nor UDP: left as it is.
    masquerade none: a call is translated before there is a packet, whose source is then the caller's own
    ");
}

#[test]
fn an_explanation_for_programs_has_stable_names() {
    let explanation = ask_of(CLUSTER, &["--from", "pod", "--to", "10.96.0.3:80/TCP"]).unwrap();
    insta::assert_snapshot!(serde_json::to_string_pretty(&explanation).unwrap(), @r#"
    {
      "from": "pod: a process in another network namespace of this node",
      "to": "10.96.0.3:80/TCP",
      "plane": "socket",
      "calls": [
        {
          "call": "connect",
          "verdict": "leftToPackets",
          "text": "left to the packet plane",
          "reason": "drop_left",
          "help": "Endpoints exist, but the traffic policy allows none of them here: left to the packet plane, which drops it."
        }
      ],
      "frontend": {
        "kind": "ClusterIP",
        "address": "10.96.0.3",
        "port": 80,
        "protocol": "TCP",
        "hostDenied": false
      },
      "service": "shop/near:http/TCP/IPv4",
      "set": {
        "name": "local",
        "why": "internalTrafficPolicy is Local",
        "endpoints": []
      },
      "affinity": "none",
      "masquerade": "none: a call is translated before there is a packet, whose source is then the caller's own",
      "leftOut": [
        {
          "address": "10.0.0.2",
          "port": 8080,
          "node": "n2",
          "why": "not on this node, and the traffic policy is Local"
        }
      ],
      "notes": [
        "the packet plane is off: what is left to it goes on untranslated"
      ]
    }
    "#);
}

#[test]
fn objects_that_cannot_be_read_are_named_and_the_rest_is_explained() {
    let bad =
        "\n---\nkind: Service\nmetadata: {name: bad}\nspec: {clusterIP: 10.96.0.9, ports: [{port: 70000}]}\n";
    let explanation = ask_of(&[CLUSTER, bad].concat(), &["--from", "pod", "--to", "10.96.0.1:80"]).unwrap();
    assert_eq!(
        explanation.notes.last().map(String::as_str),
        Some("default/bad is left out: spec.ports[0].port: 70000 is no port")
    );
    assert_eq!(explanation.calls[0].verdict, "rewritten");
}

#[test]
fn a_configuration_counts_and_a_node_that_is_not_there_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    let text = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDR: 10.0.0.0/8\n";
    fs::write(&file, text).unwrap();
    let args = ["--from", "pod", "--to", "192.0.2.1:30080/TCP", "--config", file.to_str().unwrap()];
    let explanation = ask_of(CLUSTER, &args).unwrap();
    assert_eq!(
        explanation.set.unwrap().why,
        "externalTrafficPolicy is Local, which pods are not subject to where clusterCIDR is known"
    );
    let nobody = ask_of(&CLUSTER.replace("{name: n1, labels", "{name: n9, labels"), &args[..4]).unwrap();
    assert!(nobody.notes.contains(&"there is no Node n1: it has neither zone nor addresses".to_owned()));
    assert_eq!(nobody.calls[0].reason, "not_node_port");
}

#[test]
fn a_target_without_port_or_with_a_strange_protocol_is_refused_by_name() {
    let to = |to| refused(&["--from", "pod", "--to", to]);
    let invalid =
        |what: &str, why: &str| format!("error: invalid value '{what}' for '--to <DST:PORT/PROTO>': {why}");
    const LIKE: &str = "write it like 10.96.0.1:80/TCP or [fd00:96::a]:53/UDP";
    for what in ["10.96.0.1", "[fd00:96::1]/UDP"] {
        assert_eq!(to(what), invalid(what, &format!("it has no port: {LIKE}")));
    }
    let name = format!("\"web:80\" is no address and port: {LIKE}");
    assert_eq!(to("web:80/TCP"), invalid("web:80/TCP", &name));
    let icmp = "the protocol \"ICMP\" is none of TCP, UDP, SCTP";
    assert_eq!(to("10.96.0.1:80/ICMP"), invalid("10.96.0.1:80/ICMP", icmp));
    assert_eq!(
        refused(&["--from", "me", "--to", "10.96.0.1:80"]),
        "error: invalid value 'me' for '--from <SRC>': write `pod`, `host` or an address"
    );
}

#[test]
fn files_that_cannot_be_read_are_named_with_what_is_wrong() {
    let line = "vipr explain --from pod --to 10.96.0.1:80 --cluster /nowhere/cluster.yaml --node n1";
    let Verb::Explain(args) = Cli::try_parse_from(line.split(' ')).unwrap().verb else { panic!() };
    let missing = format!("{:#}", super::explain(&args).unwrap_err());
    assert_eq!(missing, "read /nowhere/cluster.yaml: No such file or directory (os error 2)");
    let asked = ["--from", "pod", "--to", "10.96.0.1:80"];
    assert_eq!(
        ask_of("kind: Service\nspec: [1,\n", &asked).unwrap_err().to_string(),
        "read FOLDER/cluster.yaml: did not find expected node content at line 3 column 1, while parsing a flow node"
    );
    let config = [&asked[..], &["--config", "/nowhere/config.yaml"]].concat();
    assert_eq!(
        ask_of(CLUSTER, &config).unwrap_err().to_string(),
        "read the configuration file /nowhere/config.yaml: No such file or directory (os error 2)"
    );
}

#[test]
fn questions_that_have_no_answer_here_say_so() {
    let families = ask_of(CLUSTER, &["--from", "10.0.0.1", "--to", "[fd00:96::1]:80"]);
    assert_eq!(
        families.unwrap_err().to_string(),
        "10.0.0.1 and fd00:96::1 are of two families: a caller dials with an address of the family it dials"
    );
    assert_eq!(
        refused(&["--from", "pod", "--to", "10.96.0.1:80", "--cluster", "x.yaml"]),
        "error: the following required arguments were not provided:"
    );
}
