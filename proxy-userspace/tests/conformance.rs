//! The catalogues of kube-proxy's behaviour hold, and the runner of catalogues tells what it can't run.

#[path = "../examples/conformance/catalogue/mod.rs"]
mod catalogue;

use catalogue::run;

#[test]
fn endpoints_are_selected_as_upstream_selects_them() {
    let outcome = run(include_str!("conformance/endpoint-selection.yaml")).unwrap();
    assert_eq!(outcome.failures, [""; 0]);
    assert_eq!(outcome.passed, 9);
}

#[test]
fn first_packets_of_connections_go_where_kube_proxy_sends_them() {
    let [flows, derived] = [
        include_str!("conformance/packet-flows.yaml"),
        include_str!("conformance/packet-flows-derived.yaml"),
    ]
    .map(|text| run(text).unwrap());
    assert_eq!([flows.failures, derived.failures].concat(), [""; 0]);
    assert_eq!((flows.passed, derived.passed), (221, 92));
}

#[test]
fn the_modes_differ_where_kube_proxys_do_and_claimed_addresses_are_served_at_their_ports_alone() {
    let outcome = run(include_str!("conformance/profiles.yaml")).unwrap();
    assert_eq!(outcome.failures, [""; 0]);
    assert_eq!(outcome.passed, 179);
}

/// A Service with one endpoint, on another node, and who dials it.
const FLOWS: &str = "
- name: one elsewhere
  backend: iptables
  node: {name: n1, zone: null, primaryIP: 192.168.0.2, nodeIPs: [192.168.0.2]}
  proxyConfig: {detectLocal: {mode: ClusterCIDR, cidr: 10.0.0.0/8}, masqueradeAll: false, nodePortAddresses: [], localhostNodePorts: true, serviceCIDRs: []}
  services:
  - {metadata: {namespace: a, name: b}, spec: {clusterIP: 10.96.0.1, ports: [{name: p, port: 80, nodePort: 30080}]}}
  endpoints:
  - {service: a/b, portName: p, protocol: TCP, ip: 10.1.0.1, port: 8080, nodeName: n2, zone: null, ready: true, serving: true, terminating: false, hints: null}
  flows:
  - {name: outside, src: 203.0.113.2, dst: 192.168.0.2, port: 30080, proto: TCP, expect: {endpoints: ['10.1.0.1:8080'], masquerade: true}}
  - {name: pod, src: 10.1.0.9, dst: 10.96.0.1, port: 80, proto: TCP, expect: {endpoints: ['10.1.0.1:8080'], masquerade: false}}
  - {name: host, src: 192.168.0.2, dst: 10.96.0.1, port: 80, proto: TCP, expect: {endpoints: ['10.1.0.1:8080'], masquerade: true}}
  - {name: elsewhere, src: 10.1.0.9, dst: 192.0.2.1, port: 80, proto: UDP, expect: PASS}
";

fn otherwise(from: &str, to: &str) -> Vec<String> {
    let outcome = run(&FLOWS.replace(from, to)).unwrap();
    assert_eq!(outcome.passed + outcome.failures.len(), 4);
    outcome.failures
}

#[test]
fn a_flow_that_comes_out_otherwise_is_a_line_with_its_names() {
    assert_eq!(otherwise("", ""), [""; 0]);
    assert_eq!(
        otherwise("masquerade: true", "masquerade: false"),
        ["one elsewhere: outside: 10.1.0.1:8080 masqueraded, expected is 10.1.0.1:8080"],
        "the node's own socket is right either way"
    );
    assert_eq!(otherwise("PASS", "REJECT"), ["one elsewhere: elsewhere: PASS, expected is REJECT"]);
    let two = "one elsewhere: pod: 10.1.0.1:8080, expected is 10.1.0.1:8080 or 10.1.0.2:8080";
    assert_eq!(
        otherwise(
            "['10.1.0.1:8080'], masquerade: false",
            "['10.1.0.1:8080', '10.1.0.2:8080'], masquerade: false"
        ),
        [two],
        "an endpoint that nobody is sent to"
    );
    let gone = otherwise("ready: true, serving: true", "ready: false, serving: false");
    assert_eq!(gone.len(), 3);
    assert!(gone.iter().all(|line| line.contains(": REJECT, expected is 10.1.0.1:8080")), "{gone:?}");
    let all = otherwise("masqueradeAll: false", "masqueradeAll: true");
    assert_eq!(all, ["one elsewhere: pod: 10.1.0.1:8080 masqueraded, expected is 10.1.0.1:8080"]);
}

/// A case with one ready endpoint of another node.
const CASE: &str = "
- name: one elsewhere
  node: {name: n1, zone: null}
  service: {internalPolicyLocal: true}
  endpoints:
  - {endpoint: '[fd00::1]:80', ready: true, forZones: null}
  expect: {cluster: null, hasAnyEndpoints: true}
";

#[test]
fn what_is_null_or_missing_is_a_zero_value() {
    assert_eq!(run(CASE).unwrap().passed, 1);
}

#[test]
fn a_case_that_comes_out_otherwise_is_a_line_with_its_name() {
    let wrong = CASE.replace("cluster: null, hasAnyEndpoints: true", "local: ['[fd00::1]:80']");
    let outcome = run(&[CASE, &wrong].concat()).unwrap();
    assert_eq!(outcome.passed, 1);
    assert_eq!(
        outcome.failures,
        [
            "one elsewhere: hasAnyEndpoints is true, expected is false; local is {}, expected is {[fd00::1]:80}"
        ]
    );
}

#[test]
fn node_hints_count_unless_a_case_says_otherwise() {
    let case = |supported: &str, expected: &str| {
        format!(
            "- name: hints
  node: {{name: n1, zone: a}}
{supported}
  service: {{}}
  endpoints:
  - {{endpoint: '10.0.0.1:80', ready: true, forNodes: [n1]}}
  - {{endpoint: '10.0.0.2:80', ready: true, forNodes: [n2]}}
  expect: {{cluster: {expected}, reachable: {expected}, hasAnyEndpoints: true}}
"
        )
    };
    let cases = [
        case("", "['10.0.0.1:80']"),
        case("  preferSameNodeSupported: true", "['10.0.0.1:80']"),
        case("  preferSameNodeSupported: false", "['10.0.0.1:80', '10.0.0.2:80']"),
    ];
    assert_eq!(run(&cases.concat()).unwrap(), catalogue::Outcome { passed: 3, failures: Vec::new() });
}

fn error(text: &str) -> String {
    format!("{:#}", run(text).unwrap_err())
}

#[test]
fn a_catalogue_that_cannot_be_run_is_an_error_that_says_why() {
    let flows = "- {name: a, services: [], endpoints: [], flows: []}\n";
    assert_eq!(error(flows), "a: missing field `backend`");
    assert!(
        error(&FLOWS.replace("192.0.2.1", "fd00::1"))
            .contains("elsewhere: 10.1.0.9 and fd00::1 are of two families")
    );
    assert_eq!(
        error(&FLOWS.replace("port: 80, nodePort", "port: 80000, nodePort")),
        "one elsewhere: a/b: spec.ports[0].port: 80000 is no port"
    );
    assert!(error("- {name: a, cases: []}").contains("a is of no known form"));
    assert!(error(&[CASE, flows].concat()).contains("a is of another form than one elsewhere"));
    assert!(error(&CASE.replace("'[fd00::1]:80'", "fd00::1")).contains("one elsewhere: "));
    assert!(error("[]").contains("no cases"));
    assert!(error("a: b").contains("no YAML list of cases"));
}
