//! kubectl, as a test uses it: objects in, JSON out, and what the API server said when it refused.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use anyhow::{Context, Result, bail};

use super::process::{binary, in_namespace};

/// kubectl in one network namespace with one kubeconfig.
#[derive(Clone, Debug)]
pub struct Kubectl {
    netns: PathBuf,
    kubeconfig: PathBuf,
    cache: PathBuf,
}

impl Kubectl {
    pub(super) fn new(netns: PathBuf, kubeconfig: PathBuf, cache: PathBuf) -> Self {
        Self { netns, kubeconfig, cache }
    }

    /// Runs kubectl and returns what it printed.
    ///
    /// # Errors
    /// kubectl failed: with its arguments and its message.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.run_with(arguments, "")
    }

    /// `kubectl apply -f -` with one or more YAML documents.
    ///
    /// # Errors
    /// As [`Kubectl::run`].
    pub fn apply(&self, yaml: &str) -> Result<String> {
        self.run_with(&["apply", "--filename=-"], yaml)
    }

    /// `kubectl create -f -`: as [`Kubectl::apply`] for objects that are new, in half of the time.
    ///
    /// # Errors
    /// As [`Kubectl::run`].
    pub fn create(&self, yaml: &str) -> Result<String> {
        self.run_with(&["create", "--filename=-"], yaml)
    }

    /// Deletes the objects of one or more YAML documents, and waits until they are gone.
    ///
    /// # Errors
    /// As [`Kubectl::run`].
    pub fn delete_all(&self, yaml: &str) -> Result<String> {
        self.run_with(&["delete", "--filename=-"], yaml)
    }

    /// A JSON merge patch of one object, for instance `patch("service/web", "shop", r#"{"spec": …}"#)`.
    ///
    /// # Errors
    /// As [`Kubectl::run`].
    pub fn patch(&self, object: &str, namespace: &str, patch: &str) -> Result<String> {
        self.run(&["patch", object, "--namespace", namespace, "--type=merge", "--patch", patch])
    }

    /// Deletes one object and waits until it is gone.
    ///
    /// # Errors
    /// As [`Kubectl::run`].
    pub fn delete(&self, object: &str, namespace: &str) -> Result<String> {
        self.run(&["delete", object, "--namespace", namespace])
    }

    /// One object, or a list, as JSON.
    ///
    /// # Errors
    /// As [`Kubectl::run`].
    pub fn get(&self, object: &str, namespace: &str) -> Result<serde_json::Value> {
        let text = self.run(&["get", object, "--namespace", namespace, "--output=json"])?;
        serde_json::from_str(&text).context("kubectl get printed no JSON")
    }

    /// Whether the API server would let this user do it (SelfSubjectAccessReview), in all namespaces.
    ///
    /// # Errors
    /// The API server did not answer.
    pub fn can_i(&self, verb: &str, resource: &str) -> Result<bool> {
        let arguments = ["auth", "can-i", verb, resource, "--all-namespaces"];
        let output = self.output(&arguments, "")?;
        match String::from_utf8_lossy(&output.stdout).trim() {
            "yes" => Ok(true),
            "no" => Ok(false),
            _ => bail!("kubectl {}: {}", arguments.join(" "), said(&output)),
        }
    }

    fn run_with(&self, arguments: &[&str], input: &str) -> Result<String> {
        let output = self.output(arguments, input)?;
        if !output.status.success() {
            bail!("kubectl {}: {}", arguments.join(" "), said(&output));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn output(&self, arguments: &[&str], input: &str) -> Result<Output> {
        run_client(&self.netns, "kubectl", &self.kubeconfig, &self.cache, arguments, input)
    }

    /// The real helm with this kubeconfig; the same rules as [`Kubectl::run`].
    ///
    /// # Errors
    /// helm failed: with its arguments and its message.
    pub fn helm(&self, arguments: &[&str]) -> Result<String> {
        let output = run_client(&self.netns, "helm", &self.kubeconfig, &self.cache, arguments, "")?;
        if !output.status.success() {
            bail!("helm {}: {}", arguments.join(" "), said(&output));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn run_client(
    netns: &Path,
    name: &str,
    kubeconfig: &Path,
    cache: &Path,
    arguments: &[&str],
    input: &str,
) -> Result<Output> {
    let mut child = in_namespace(netns, &binary(name)?)
        .args(arguments)
        .env("KUBECONFIG", kubeconfig)
        .env("KUBECACHEDIR", cache)
        .env("HELM_CACHE_HOME", cache)
        .env("HELM_CONFIG_HOME", cache)
        .env("HELM_DATA_HOME", cache)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {name}"))?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    std::thread::scope(|scope| {
        // Beside the reading: what it prints may fill its pipe before it has read all.
        let written = scope.spawn(move || stdin.write_all(input.as_bytes()));
        let output = child.wait_with_output()?;
        match written.join() {
            // It may have failed, and said why, without reading.
            Ok(Err(error)) if output.status.success() => Err(error).context("writing to kubectl"),
            _ => Ok(output),
        }
    })
}

fn said(output: &Output) -> String {
    let text = [&output.stderr[..], &output.stdout[..]].concat();
    format!("{}: {}", output.status, String::from_utf8_lossy(&text).trim())
}
