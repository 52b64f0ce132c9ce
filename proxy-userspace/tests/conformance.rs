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
    assert!(error(flows).contains("`flows`: this form is not supported yet"));
    assert!(error("- {name: a, cases: []}").contains("a is of no known form"));
    assert!(error(&[CASE, flows].concat()).contains("a is of another form than one elsewhere"));
    assert!(error(&CASE.replace("'[fd00::1]:80'", "fd00::1")).contains("one elsewhere: "));
    assert!(error("[]").contains("no cases"));
    assert!(error("a: b").contains("no YAML list of cases"));
}
