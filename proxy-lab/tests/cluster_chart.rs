//! The chart without a cluster: linted, rendered and compared, and what it must refuse.
//!
//! `UPDATE_SNAPSHOTS=1 cargo test -p proxy-lab --test cluster_chart` rewrites the committed renders and the README's list.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use proxy_lab::control_plane::binary;
use serde_json::Value;

const LIST_HEAD: &str = "| value | default |\n|---|---|\n";

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm/vipr")
}

fn helm(arguments: &[&str]) -> Result<Output> {
    let home = tempfile::tempdir()?;
    let mut command = Command::new(binary("helm")?);
    command.current_dir(chart()).args(arguments).env("KUBECONFIG", "/dev/null");
    for kind in ["CACHE", "CONFIG", "DATA"] {
        command.env(format!("HELM_{kind}_HOME"), home.path());
    }
    command.output().context("running helm")
}

/// What the chart makes of the required values and these.
fn template(more: &[&str]) -> Result<Output> {
    render(&[&["--values=ci/required.yaml"], more].concat())
}

fn render(values: &[&str]) -> Result<Output> {
    helm(&[&["template", "vipr", ".", "--namespace=kube-system", "--kube-version=1.37.2"], values].concat())
}

fn rendered(set: &str, more: &[&str]) -> Result<String> {
    let output = render(&[&[format!("--values=ci/{set}.yaml").as_str()], more].concat())?;
    ensure!(output.status.success(), "helm template of {set}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

fn value_sets() -> Result<Vec<String>> {
    let mut names: Vec<String> = fs::read_dir(chart().join("ci"))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().trim_end_matches(".yaml").to_owned()))
        .collect::<Result<_>>()?;
    names.sort();
    Ok(names)
}

fn update_wanted() -> bool {
    std::env::var_os("UPDATE_SNAPSHOTS").is_some()
}

/// Compares with the committed file, or writes it when asked to.
fn compare(path: &Path, now: &str) -> Result<()> {
    if update_wanted() {
        fs::write(path, now)?;
    }
    let committed = fs::read_to_string(path).unwrap_or_default();
    for (number, (was, is)) in committed.lines().zip(now.lines()).enumerate() {
        ensure!(was == is, "{}:{}: committed {was:?}, now {is:?}", path.display(), number + 1);
    }
    let (was, is) = (committed.lines().count(), now.lines().count());
    ensure!(was == is, "{}: {was} lines committed, {is} now", path.display());
    Ok(())
}

#[test]
fn every_value_set_passes_the_strict_lint() -> Result<()> {
    for set in value_sets()? {
        let output = helm(&["lint", ".", "--strict", &format!("--values=ci/{set}.yaml")])?;
        assert!(output.status.success(), "{set}: {}", String::from_utf8_lossy(&output.stdout));
    }
    Ok(())
}

#[test]
fn renders_are_the_committed_ones() -> Result<()> {
    let sets = value_sets()?;
    assert!(!sets.is_empty());
    for set in &sets {
        compare(&chart().join(format!("snapshots/{set}.yaml")), &rendered(set, &[])?)?;
    }
    let snapshots = fs::read_dir(chart().join("snapshots"))?.count();
    assert_eq!(snapshots, sets.len(), "a snapshot without a value set");
    Ok(())
}

#[test]
fn a_key_that_does_not_exist_is_refused_at_every_depth() -> Result<()> {
    for key in [
        "kubProxy",
        "image.repo",
        "config.clusterCidr",
        "config.conntrack.maxPerCpu",
        "metrics.serviceMonitor.intervall",
        "tolerations[0].operators",
        "resources.limits.cpus",
    ] {
        let output = template(&["--set", &format!("{key}=x")])?;
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && message.contains("not allowed"), "{key} was taken: {message}");
        let name = key.rsplit('.').next().unwrap_or(key);
        assert!(message.contains(name), "the message does not name {name}: {message}");
    }
    Ok(())
}

#[test]
fn what_cannot_work_is_refused_with_the_fix() -> Result<()> {
    for (values, fix) in [
        ("image.repository=", "--set image.repository="),
        ("k8sServiceHost=", "Set k8sServiceHost and k8sServicePort"),
        ("k8sServiceHost=auto", "set k8sServiceHost to the API server's address"),
        ("kubeconfigHostPath=/etc/k.conf", "unset one of them"),
        ("metrics.serviceMonitor.enabled=true", "needs metrics.enabled"),
        ("metrics.enabled=true,config.metricsBindAddress=127.0.0.1:10249", "unset one of them"),
        ("config.detectLocalMode=BridgeInterface", "needs config.detectLocal.bridgeInterface"),
        ("config.detectLocalMode=InterfaceNamePrefix", "needs config.detectLocal.interfaceNamePrefix"),
        ("config.nodePortAddresses={primary,10.0.0.0/8}", "keep one or the other"),
        ("k8sServiceHost=https://10.0.0.1", "does not match pattern"),
        ("capabilities.add={CAP_BPF}", "'not' failed"),
    ] {
        let output = template(&["--set", values])?;
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && message.contains(fix), "{values}: {message}");
    }
    Ok(())
}

#[test]
fn every_value_has_a_comment_and_the_readme_lists_them_all() -> Result<()> {
    let text = fs::read_to_string(chart().join("values.yaml"))?;
    let mut previous = "";
    for line in text.lines() {
        let is_key = !line.trim_start().starts_with(['#', '-']) && line.contains(':');
        // A key that only opens a group is explained by its members; members of free maps by the map.
        let opens =
            line.ends_with(':') || previous.ends_with(':') || previous.trim_start().starts_with("cpu:");
        assert!(!is_key || opens || previous.trim_start().starts_with('#'), "no comment above `{line}`");
        previous = line;
    }
    let mut rows = String::new();
    list_values("", &serde_yaml_ng::from_str(&text)?, &mut rows);
    let path = chart().join("README.md");
    let readme = fs::read_to_string(&path)?;
    let (head, _) = readme.split_once(LIST_HEAD).context("the README has no list of values")?;
    compare(&path, &format!("{head}{LIST_HEAD}{rows}"))
}

fn list_values(path: &str, value: &serde_yaml_ng::Value, rows: &mut String) {
    match value.as_mapping() {
        Some(map) if !map.is_empty() => {
            for (key, value) in map {
                let key = key.as_str().unwrap_or_default();
                let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
                list_values(&path, value, rows);
            }
        }
        _ => {
            let json = serde_json::to_string(value).unwrap_or_default();
            rows.push_str(&format!("| `{path}` | `{json}` |\n"));
        }
    }
}

#[test]
fn the_schema_is_closed_wherever_it_names_its_keys() -> Result<()> {
    let schema: Value = serde_json::from_str(&fs::read_to_string(chart().join("values.schema.json"))?)?;
    assert_closed("", &schema);
    Ok(())
}

fn assert_closed(path: &str, schema: &Value) {
    if schema.get("properties").is_some() {
        assert_eq!(schema["additionalProperties"], Value::Bool(false), "{path} takes unknown keys");
    }
    match schema {
        Value::Object(map) => {
            map.iter().for_each(|(key, value)| assert_closed(&format!("{path}/{key}"), value))
        }
        Value::Array(list) => list.iter().for_each(|value| assert_closed(path, value)),
        _ => {}
    }
}

#[test]
fn kube_proxy_itself_reads_every_field_and_has_none_that_the_schema_lacks() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (ours, theirs) = (folder.path().join("config.conf"), folder.path().join("read.conf"));
    let map = rendered("everything", &["--show-only=templates/config.yaml"])?;
    let map: serde_yaml_ng::Value = serde_yaml_ng::from_str(&map)?;
    fs::write(&ours, map["data"]["config.conf"].as_str().context("no config.conf")?)?;

    // Writes what it understood and ends; nothing is bound or programmed.
    let output = Command::new(binary("kube-proxy")?)
        .arg(format!("--config={}", ours.display()))
        .arg(format!("--write-config-to={}", theirs.display()))
        .output()?;
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    assert!(
        !log.contains("unknown field"),
        "kube-proxy does not know a field that the chart lets through: {log}"
    );

    let keys = |path: &Path| -> Result<BTreeSet<String>> {
        let config: serde_yaml_ng::Value = serde_yaml_ng::from_str(&fs::read_to_string(path)?)?;
        let map = config.as_mapping().context("not a mapping")?;
        Ok(map.keys().filter_map(|key| key.as_str().map(str::to_owned)).collect())
    };
    // Set by the chart's flag, and Windows'.
    let out_of_scope = ["hostnameOverride", "winkernel"].map(str::to_owned).into();
    let missing: Vec<_> = keys(&theirs)?.difference(&keys(&ours)?).cloned().collect();
    assert_eq!(
        BTreeSet::from_iter(missing),
        out_of_scope,
        "ci/everything.yaml sets every field of KubeProxyConfiguration"
    );
    Ok(())
}
