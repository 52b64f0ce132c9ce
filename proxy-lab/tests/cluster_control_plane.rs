//! The lab's control plane is a real one: what the other cluster tests lean on.

use anyhow::Result;
use proxy_lab::control_plane::ControlPlane;

const SERVICE: &str = r#"{apiVersion: v1, kind: Service, metadata: {name: web, namespace: default},
  spec: {ipFamilyPolicy: PreferDualStack, ports: [{port: 80}]}}"#;

#[test]
fn objects_outlive_the_api_server_and_both_families_have_addresses() -> Result<()> {
    let mut plane = ControlPlane::start()?;
    plane.kubectl().apply(SERVICE)?;
    plane.kill_api_server();
    assert!(
        plane.kubectl().run(&["get", "services", "--request-timeout=2s"]).is_err(),
        "the API server is dead"
    );

    plane.start_api_server_hidden()?;
    plane.kubectl().patch("service/web", "default", r#"{"metadata": {"labels": {"changed": "hidden"}}}"#)?;
    plane.compact()?;
    plane.start_api_server()?;

    let service = plane.kubectl().get("service/web", "default")?;
    assert_eq!(service["metadata"]["labels"]["changed"], "hidden");
    assert_eq!(service["spec"]["ipFamilies"], serde_json::json!(["IPv4", "IPv6"]));
    Ok(())
}

#[test]
fn a_service_account_token_has_the_rights_of_its_account_and_no_more() -> Result<()> {
    let plane = ControlPlane::start()?;
    let admin = plane.kubectl();
    admin.run(&["create", "serviceaccount", "reader", "--namespace", "default"])?;
    admin.run(&["create", "clusterrole", "reader", "--verb=list", "--resource=services"])?;
    admin.run(&[
        "create",
        "clusterrolebinding",
        "reader",
        "--clusterrole=reader",
        "--serviceaccount=default:reader",
    ])?;

    let reader = plane.kubectl_with(plane.service_account_kubeconfig("default", "reader")?);
    assert!(reader.can_i("list", "services")?);
    assert!(!reader.can_i("list", "secrets")?);
    assert!(reader.run(&["get", "secrets", "--all-namespaces"]).is_err(), "the API server must refuse");
    Ok(())
}
