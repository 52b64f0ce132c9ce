//! A lab with a real API server beside its nodes: the agent reaches it as any host on its segment, with the account that
//! the chart makes for it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::control_plane::{ControlPlane, Kubectl};
use crate::lab::Lab;
use crate::manifest::{Service, node_object};
use crate::topology::Family;

/// The chart, and the least that an install of it needs.
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../helm/vipr");
const VALUES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../helm/vipr/ci/required.yaml");
/// Where it is installed, and what its ServiceAccount is called.
const NAMESPACE: &str = "kube-system";
const ACCOUNT: &str = "vipr";

/// A control plane at a client's place of a lab. No controller runs: Services, slices and Nodes are as the test says.
#[derive(Debug)]
pub struct Cluster<'lab> {
    lab: &'lab Lab,
    plane: ControlPlane,
    kubeconfig: PathBuf,
}

impl<'lab> Cluster<'lab> {
    /// Starts it at the client called `place`, with a Node for each node of the lab, and installs the chart: what is
    /// left of it without controllers is the agent's account with its rights.
    ///
    /// # Errors
    /// As [`ControlPlane::start`]; or kubectl or helm failed.
    pub fn start(lab: &'lab Lab, place: &str) -> Result<Self> {
        let place = lab.place(place);
        let netns = format!("/proc/{}/ns/net", place.pid());
        let plane = ControlPlane::start_in(netns, place.address(Family::V4))?;
        let admin = plane.kubectl();
        for node in lab.nodes() {
            admin.create(&node_object(node).to_string())?;
        }
        admin.helm(&["install", "vipr", CHART, "--namespace", NAMESPACE, "--values", VALUES])?;
        let kubeconfig = plane.service_account_kubeconfig(NAMESPACE, ACCOUNT)?;
        Ok(Self { lab, plane, kubeconfig })
    }

    /// Its API server, to be killed and started again.
    pub fn plane(&mut self) -> &mut ControlPlane {
        &mut self.plane
    }

    /// kubectl as cluster admin.
    pub fn kubectl(&self) -> Kubectl {
        self.plane.kubectl()
    }

    /// The kubeconfig with the token of the agent's account.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A fresh token of the agent's account.
    ///
    /// # Errors
    /// The API server is down.
    pub fn token(&self) -> Result<String> {
        let token = self.kubectl().run(&["create", "token", ACCOUNT, "--namespace", NAMESPACE])?;
        Ok(token.trim().to_owned())
    }

    /// Takes the agent's account its rights on the cluster's objects.
    ///
    /// # Errors
    /// The API server is down.
    pub fn take_rights(&self) -> Result<()> {
        self.kubectl().run(&["delete", "clusterrolebindings", "-l", "app.kubernetes.io/instance=vipr"])?;
        Ok(())
    }

    /// Puts the chart's objects back to what it says.
    ///
    /// # Errors
    /// The API server is down.
    pub fn repair_install(&self) -> Result<()> {
        let upgrade = ["upgrade", "vipr", CHART, "--namespace", NAMESPACE, "--values", VALUES];
        self.kubectl().helm(&upgrade)?;
        Ok(())
    }

    /// Deletes the agent's account: the API server does not know its tokens any more.
    ///
    /// # Errors
    /// The API server is down.
    pub fn delete_account(&self) -> Result<()> {
        self.kubectl().delete(&format!("serviceaccount/{ACCOUNT}"), NAMESPACE)?;
        Ok(())
    }

    /// Creates or changes a Service and its slices.
    ///
    /// # Errors
    /// The API server does not take them.
    pub fn apply(&self, service: &Service) -> Result<()> {
        let name = service.name();
        let applied = self.kubectl().apply(&service.list().to_string());
        applied.with_context(|| format!("applying {name}")).map(drop)
    }

    /// Creates many Services and their slices, from several kubectl at once.
    ///
    /// # Errors
    /// The API server does not take them.
    pub fn create_all(&self, services: &[Service]) -> Result<()> {
        /// A kubectl sends one object after the other, and mostly waits.
        const AT_ONCE: usize = 8;
        let create = |services: &[Service]| {
            let items: Vec<Value> = services.iter().flat_map(Service::objects).collect();
            self.kubectl().create(&json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string())
        };
        std::thread::scope(|scope| {
            let parts = services.chunks(services.len().div_ceil(AT_ONCE).max(1));
            let parts: Vec<_> = parts.map(|part| scope.spawn(move || create(part))).collect();
            parts.into_iter().try_for_each(|part| match part.join() {
                Ok(created) => created.map(drop),
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })
    }

    /// Deletes a Service and its slices.
    ///
    /// # Errors
    /// They are not there.
    pub fn delete(&self, service: &Service) -> Result<()> {
        let deleted = self.kubectl().delete_all(&service.list().to_string());
        deleted.with_context(|| format!("deleting {}", service.name())).map(drop)
    }

    /// The lab it is in.
    pub fn lab(&self) -> &'lab Lab {
        self.lab
    }
}
