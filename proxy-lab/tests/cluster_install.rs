//! The chart in a real API server: helm installs it, changes it and takes it away, and its account has just its rights.

use std::collections::BTreeSet;

use anyhow::Result;
use proxy_lab::control_plane::{ControlPlane, Kubectl};

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../helm/vipr");
const REQUIRED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../helm/vipr/ci/required.yaml");
const SYSTEM: &str = "kube-system";
/// Everything that carries the release's label.
const KINDS: &str = "daemonsets,configmaps,services,serviceaccounts,clusterroles,clusterrolebindings,pods";

fn helm(admin: &Kubectl, verb: &str, more: &[&str]) -> Result<String> {
    admin.helm(&[&[verb, "vipr", CHART, "--namespace", SYSTEM, "--values", REQUIRED], more].concat())
}

fn configuration(admin: &Kubectl) -> Result<String> {
    let map = admin.get("configmap/vipr", SYSTEM)?;
    Ok(map["data"]["config.conf"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn helm_installs_changes_rolls_back_and_removes_the_chart() -> Result<()> {
    let plane = ControlPlane::start()?;
    let admin = plane.kubectl();

    let notes = helm(&admin, "install", &[])?;
    assert!(!notes.contains("WARNING"), "no kube-proxy runs here:\n{notes}");
    let proxy = admin.get("daemonset/vipr", SYSTEM)?;
    assert_eq!(proxy["spec"]["template"]["metadata"]["labels"]["k8s-app"], "kube-proxy");
    let pod = &proxy["spec"]["template"]["spec"];
    assert_eq!(pod["containers"][0]["securityContext"]["privileged"], false);
    assert_eq!(pod["containers"][0]["securityContext"]["capabilities"]["drop"], serde_json::json!(["ALL"]));
    assert!(configuration(&admin)?.contains("mode: iptables"));

    helm(&admin, "upgrade", &["--set=config.mode=nftables"])?;
    assert!(configuration(&admin)?.contains("mode: nftables"));
    let upgraded = admin.get("daemonset/vipr", SYSTEM)?;
    let checksum = |object: &serde_json::Value| {
        object["spec"]["template"]["metadata"]["annotations"]["checksum/config"].to_string()
    };
    assert_ne!(checksum(&proxy), checksum(&upgraded), "a new configuration must restart the pods");

    admin.helm(&["rollback", "vipr", "1", "--namespace", SYSTEM])?;
    assert!(configuration(&admin)?.contains("mode: iptables"));

    admin.helm(&["uninstall", "vipr", "--namespace", SYSTEM])?;
    let left = admin.run(&["get", KINDS, "-A", "-l", "app.kubernetes.io/instance=vipr", "-o", "name"])?;
    assert_eq!(left, "", "left behind");
    Ok(())
}

/// /proc/sys is read-only in all containers but privileged ones.
#[test]
fn the_privileged_container_is_given_the_configuration_that_it_is_to_set() -> Result<()> {
    let plane = ControlPlane::start()?;
    let admin = plane.kubectl();
    helm(&admin, "install", &[])?;
    let proxy = admin.get("daemonset/vipr", SYSTEM)?;
    let pod = &proxy["spec"]["template"]["spec"];
    let (init, agent) = (&pod["initContainers"][0], &pod["containers"][0]);
    assert_eq!(init["securityContext"]["privileged"], true);
    let words = |container: &serde_json::Value, field: &str| {
        container[field].as_array().cloned().unwrap_or_default().into_iter().map(|word| word.to_string())
    };
    let of = |container| words(container, "command").find(|word| word.starts_with("\"--config="));
    assert_eq!(of(init), of(agent));
    let mount = |container| words(container, "volumeMounts").find(|mount| mount.contains("/var/lib/vipr\""));
    assert!(of(init).is_some() && mount(init).is_some());
    assert_eq!(mount(init), mount(agent));
    Ok(())
}

#[test]
fn a_kube_proxy_that_still_runs_is_warned_about() -> Result<()> {
    let plane = ControlPlane::start()?;
    plane.kubectl().apply(
        r#"{apiVersion: apps/v1, kind: DaemonSet, metadata: {name: kube-proxy, namespace: kube-system}, spec: {
             selector: {matchLabels: {k8s-app: kube-proxy}}, template: {metadata: {labels: {k8s-app: kube-proxy}},
             spec: {containers: [{name: kube-proxy, image: kube-proxy}]}}}}"#,
    )?;
    let notes = helm(&plane.kubectl(), "install", &[])?;
    assert!(notes.contains("WARNING: kube-proxy still runs"), "{notes}");
    Ok(())
}

#[test]
fn the_api_servers_address_is_found_where_kubeadm_published_it() -> Result<()> {
    let plane = ControlPlane::start()?;
    let published = r#"{"clusters": [{"name": "", "cluster": {"server": "https://cp.example:16443"}}]}"#;
    let admin = plane.kubectl();
    let kubeconfig = format!("--from-literal=kubeconfig={published}");
    // The API server makes kube-public by itself, a moment after it is ready.
    admin.run(&["wait", "--for=create", "namespace/kube-public", "--timeout=30s"])?;
    admin.run(&["create", "configmap", "cluster-info", "--namespace=kube-public", &kubeconfig])?;

    helm(&admin, "install", &["--set=k8sServiceHost=auto"])?;
    let map = admin.get("configmap/vipr", SYSTEM)?;
    let kubeconfig = map["data"]["kubeconfig.conf"].as_str().unwrap_or_default();
    assert!(kubeconfig.contains("server: https://cp.example:16443\n"), "{kubeconfig}");
    Ok(())
}

#[test]
fn the_agents_account_may_do_what_it_must_and_nothing_more() -> Result<()> {
    let plane = ControlPlane::start()?;
    let admin = plane.kubectl();
    helm(&admin, "install", &[])?;
    admin.run(&["create", "serviceaccount", "nobody", "--namespace", SYSTEM])?;
    let agent = plane.kubectl_with(plane.service_account_kubeconfig(SYSTEM, "vipr")?);
    let nobody = plane.kubectl_with(plane.service_account_kubeconfig(SYSTEM, "nobody")?);

    for namespace in [SYSTEM, "default"] {
        let everybody_has = rights(&nobody, namespace)?;
        let more: BTreeSet<_> = rights(&agent, namespace)?.difference(&everybody_has).cloned().collect();
        assert_eq!(more, expected_rights(), "in {namespace}");
    }
    for (verb, resource) in
        [("list", "secrets"), ("list", "pods"), ("update", "services"), ("delete", "events")]
    {
        assert!(!agent.can_i(verb, resource)?, "may {verb} {resource}");
    }
    assert!(agent.run(&["get", "secrets", "--namespace", SYSTEM]).is_err());
    agent.run(&["get", "services,endpointslices,nodes,servicecidrs", "--all-namespaces"])?;
    Ok(())
}

/// `resource: verbs` for each rule that the API server lists.
fn rights(user: &Kubectl, namespace: &str) -> Result<BTreeSet<String>> {
    let table = user.run(&["auth", "can-i", "--list", "--no-headers", "--namespace", namespace])?;
    let rule = |line: &str| {
        let resource = line.split_whitespace().next().unwrap_or_default();
        let verbs = line.rsplit('[').next().unwrap_or_default().trim_end_matches(']');
        format!("{resource}: {verbs}")
    };
    Ok(table.lines().map(rule).collect())
}

fn expected_rights() -> BTreeSet<String> {
    [
        "services: list watch",
        "endpointslices.discovery.k8s.io: list watch",
        "servicecidrs.networking.k8s.io: list watch",
        "nodes: get list watch",
        "events: create patch",
        "events.events.k8s.io: create patch",
    ]
    .map(str::to_owned)
    .into()
}
