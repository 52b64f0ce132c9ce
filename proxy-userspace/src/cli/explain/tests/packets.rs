//! Questions about packets, and which plane it is that decides.

use super::{CLUSTER, ask_of};
use crate::text::Explanation;

/// What pods of this cluster are known by.
const CONFIG: &str =
    "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDR: 10.0.0.0/8\n";

fn explained(config: &str, args: &[&str]) -> Explanation {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.yaml");
    std::fs::write(&file, config).unwrap();
    ask_of(CLUSTER, &[args, &["--config", file.to_str().unwrap()]].concat()).unwrap()
}

fn packet(from: &str, to: &str) -> String {
    explained(CONFIG, &["--from", from, "--to", to, "--plane", "packet"]).text()
}

/// By the plane that decides.
fn either(from: &str, to: &str) -> Explanation {
    explained(CONFIG, &["--from", from, "--to", to, "--packet-plane=on"])
}

#[test]
fn who_is_outside_keeps_his_address_where_the_policy_is_local() {
    insta::assert_snapshot!(packet("198.51.100.7", "192.0.2.1:30080/TCP"), @r"
    from       198.51.100.7: somebody outside, because it is not in the pods' range
    to         192.0.2.1:30080/TCP
    packet     sent to 10.0.0.1:8080
               A packet opened a flow and went to a backend.
    frontend   NodePort *:30080/TCP
    service    shop/web:http/TCP/IPv4
    set        local: externalTrafficPolicy is Local
    affinity   none
    masquerade none: the endpoint sees the sender's own address
    note       nodePortAddresses is unset: NodePorts are served on all local addresses (write `primary` to serve them on the node's primary ones)
    note       the node's devices are not known; assumed: eth0

    ENDPOINT        CHANCE
    10.0.0.1:8080   1 in 1

    LEFT OUT        NODE   WHY
    10.0.0.2:8080   n2     another entry has the same address and port, and counts
    10.0.0.3:8080   n2     not on this node, and the traffic policy is Local
    10.0.0.4:8080   n1     terminating, while others are ready
    10.0.0.5:8080   -      not on this node, and the traffic policy is Local
    10.0.0.2:8080   n2     not on this node, and the traffic policy is Local
    ");
}

#[test]
fn who_is_outside_is_masqueraded_on_his_way_to_a_cluster_ip() {
    insta::assert_snapshot!(packet("198.51.100.7", "10.96.0.1:80/TCP"), @r"
    from       198.51.100.7: somebody outside, because it is not in the pods' range
    to         10.96.0.1:80/TCP
    packet     sent to one of 2 endpoints
               A packet opened a flow and went to a backend.
    frontend   ClusterIP 10.96.0.1:80/TCP
    service    shop/web:http/TCP/IPv4
    set        cluster: internalTrafficPolicy is Cluster
    affinity   none
    masquerade by this node's address: the sender is not one of the cluster's pods
               192.0.2.1 where it leaves by eth0
    note       nodePortAddresses is unset: NodePorts are served on all local addresses (write `primary` to serve them on the node's primary ones)
    note       the node's devices are not known; assumed: eth0

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
fn a_pod_keeps_its_address_but_on_its_way_to_itself() {
    insta::assert_snapshot!(packet("10.0.0.2", "10.96.0.1:80/TCP"), @r"
    from       10.0.0.2: a pod, because it is in the pods' range
    to         10.96.0.1:80/TCP
    packet     sent to one of 2 endpoints
               A packet opened a flow and went to a backend.
    frontend   ClusterIP 10.96.0.1:80/TCP
    service    shop/web:http/TCP/IPv4
    set        cluster: internalTrafficPolicy is Cluster
    affinity   none
    masquerade by this node's address: only towards 10.0.0.2:8080, which is the sender itself
               192.0.2.1 where it leaves by eth0
    note       nodePortAddresses is unset: NodePorts are served on all local addresses (write `primary` to serve them on the node's primary ones)
    note       the node's devices are not known; assumed: eth0

    ENDPOINT        CHANCE
    10.0.0.1:8080   1 in 2
    10.0.0.2:8080   1 in 2

    LEFT OUT        NODE   WHY
    10.0.0.2:8080   n2     another entry has the same address and port, and counts
    10.0.0.3:8080   n2     not ready
    10.0.0.4:8080   n1     terminating, while others are ready
    10.0.0.5:8080   -      terminating, and not serving any more
    ");
    assert!(
        packet("10.0.0.9", "10.96.0.1:80/TCP").contains("none: the endpoint sees the sender's own address")
    );
}

#[test]
fn a_packet_that_nobody_serves_is_rejected_or_dropped_with_its_reason() {
    insta::assert_snapshot!(packet("10.0.0.9", "10.96.0.2:53/UDP"), @r"
    from       10.0.0.9: a pod, because it is in the pods' range
    to         10.96.0.2:53/UDP
    packet     rejected: its sender is told port unreachable
               No endpoint anywhere: the packet was answered with port unreachable.
    frontend   ClusterIP 10.96.0.2:53/UDP
    service    shop/empty:u/UDP/IPv4
    set        cluster: internalTrafficPolicy is Cluster
    masquerade none: no endpoint sees it
    note       nodePortAddresses is unset: NodePorts are served on all local addresses (write `primary` to serve them on the node's primary ones)
    note       the node's devices are not known; assumed: eth0
    ");
    insta::assert_snapshot!(packet("10.0.0.9", "10.96.0.3:80/TCP"), @r"
    from       10.0.0.9: a pod, because it is in the pods' range
    to         10.96.0.3:80/TCP
    packet     dropped
               Endpoints exist, but the traffic policy allows none of them here: the packet was dropped.
    frontend   ClusterIP 10.96.0.3:80/TCP
    service    shop/near:http/TCP/IPv4
    set        local: internalTrafficPolicy is Local
    masquerade none: no endpoint sees it
    note       nodePortAddresses is unset: NodePorts are served on all local addresses (write `primary` to serve them on the node's primary ones)
    note       the node's devices are not known; assumed: eth0

    LEFT OUT        NODE   WHY
    10.0.0.2:8080   n2     not on this node, and the traffic policy is Local
    ");
}

#[test]
fn source_ranges_drop_whoever_is_outside_of_them() {
    insta::assert_snapshot!(packet("10.0.0.9", "203.0.113.9:80/TCP"), @r"
    from       10.0.0.9: a pod, because it is in the pods' range
    to         203.0.113.9:80/TCP
    packet     dropped
               A packet to a load balancer from outside its source ranges: dropped.
    frontend   LoadBalancer 203.0.113.9:80/TCP, not for the node itself
    service    shop/web:http/TCP/IPv4
    masquerade none: no endpoint sees it
    note       nodePortAddresses is unset: NodePorts are served on all local addresses (write `primary` to serve them on the node's primary ones)
    note       the node's devices are not known; assumed: eth0
    ");
    assert!(packet("203.0.113.77", "203.0.113.9:80/TCP").contains("sent to 10.0.0.1:8080"));
}

#[test]
fn what_is_no_service_passes_and_what_the_node_itself_sends_untranslated_is_kept_in() {
    insta::assert_snapshot!(packet("198.51.100.7", "10.0.0.1:22/TCP"), @r"
    from       198.51.100.7: somebody outside, because it is not in the pods' range
    to         10.0.0.1:22/TCP
    packet     passes untouched
               The destination is no frontend: left as it is.
    masquerade none: no endpoint sees it
    note       nodePortAddresses is unset: NodePorts are served on all local addresses (write `primary` to serve them on the node's primary ones)
    note       the node's devices are not known; assumed: eth0
    ");
    insta::assert_snapshot!(packet("host", "10.96.0.1:80/TCP"), @r"
    from       192.0.2.1: the node itself, so its packet is met only where it leaves
    to         10.96.0.1:80/TCP
    packet     dropped
               A packet of the node's own that would have left for an address that only translation gives a meaning: dropped.
    frontend   ClusterIP 10.96.0.1:80/TCP
    service    shop/web:http/TCP/IPv4
    masquerade none: no endpoint sees it
    note       nodePortAddresses is unset: NodePorts are served on all local addresses (write `primary` to serve them on the node's primary ones)
    note       the node's devices are not known; assumed: eth0
    ");
}

#[test]
fn without_a_plane_named_the_one_that_decides_is_said() {
    let plane = |from: &str, to: &str| {
        let told = either(from, to);
        let verdicts: Vec<_> =
            told.calls.iter().map(|call| format!("{} {}", call.call, call.verdict)).collect();
        format!("{}; {}; {}", told.plane, told.plane_why.unwrap_or_default(), verdicts.join(", "))
    };
    let socket = "socket; socket: the call is decided before there is a packet; connect rewritten";
    assert_eq!(plane("10.0.0.9", "10.96.0.1:80/TCP"), socket);
    assert_eq!(plane("host", "10.96.0.1:80/TCP"), socket);
    assert_eq!(plane("pod", "10.96.0.1:80/TCP"), socket);
    assert_eq!(
        plane("198.51.100.7", "10.96.0.1:80/TCP"),
        "packet; packet: whoever is outside has no socket here; packet sent"
    );
    assert_eq!(
        plane("10.0.0.9", "192.0.2.1:30080/TCP"),
        "packet; packet, for what the socket plane leaves; connect leftToPackets, packet sent"
    );
    assert_eq!(
        plane("10.0.0.9", "10.96.0.2:53/UDP"),
        "socket; packet, for what the socket plane leaves; connect refused, sendmsg leftToPackets, packet rejected"
    );
    assert_eq!(
        plane("host", "203.0.113.9:80/TCP"),
        "packet; packet, for what the socket plane leaves; connect leftToPackets, packet dropped"
    );
    assert!(plane("pod", "10.96.0.3:80/TCP").contains("ask with the pod's address"));
    // Nothing tells a pod from somebody outside: the socket plane is asked first, as it would be by a pod.
    let args = ["--from", "198.51.100.7", "--to", "10.96.0.1:80/TCP", "--packet-plane=on"];
    assert_eq!(ask_of(CLUSTER, &args).unwrap().plane, "socket");
}

#[test]
fn where_the_device_tells_who_is_a_pod_it_can_be_named() {
    let config = CONFIG.replace(
        "clusterCIDR: 10.0.0.0/8",
        "detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}",
    );
    let asked = ["--from", "10.0.0.9", "--to", "192.0.2.1:30080", "--plane", "packet"];
    let outside = explained(&config, &asked);
    assert_eq!(
        outside.from,
        "10.0.0.9: somebody outside, because it comes in by eth0, where nobody counts as a pod"
    );
    assert_eq!(outside.set.unwrap().name, "local");
    let pod = explained(&config, &[&asked[..], &["--device", "cni0"]].concat());
    assert_eq!(pod.from, "10.0.0.9: a pod, because it comes in by cni0, which is the pods'");
    assert_eq!(pod.set.unwrap().name, "cluster");
    assert!(pod.notes.iter().any(|note| note == "the node's devices are not known; assumed: eth0, cni0"));
}

#[test]
fn questions_about_packets_that_have_no_answer_say_so() {
    let error = |args: &[&str]| ask_of(CLUSTER, args).unwrap_err().to_string();
    let packet = ["--to", "10.96.0.1:80", "--plane", "packet", "--from"];
    let ask = |from: &[&'static str]| error(&[&packet[..], from].concat());
    assert_eq!(
        ask(&["pod"]),
        "the packet plane tells by the address who sends a packet: write the pod's, as in `--from 10.0.1.5`"
    );
    assert_eq!(
        ask(&["10.0.0.1", "--device", "eth7"]),
        "the device \"eth7\" has no programs; these have: eth0"
    );
    assert_eq!(
        ask(&["fd00::7"]),
        "fd00::7 and 10.96.0.1 are of two families: a caller dials with an address of the family it dials"
    );
}
