//! A real control plane: etcd and kube-apiserver as child processes in a network namespace, and kubectl against them.
//!
//! No controller-manager, no scheduler, no kubelet: a test writes Services, EndpointSlices and Nodes itself, so it decides
//! when each change happens. The API server can be killed and started again, alone, with etcd's content kept.
//! Everything ends with the value: children die with the thread that started them, even if the process is killed.

mod etcd;
mod kubectl;
mod namespace;
mod process;

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

pub use kubectl::Kubectl;
use namespace::Namespace;
use process::Process;
pub use process::binary;

use crate::topology::{CLUSTER_IPS_V4, CLUSTER_IPS_V6};

/// Where Services get their addresses: the ranges that a lab blackholes, both families.
pub const SERVICE_CIDRS: [&str; 2] = [CLUSTER_IPS_V4, CLUSTER_IPS_V6];
/// The port that clients of the API server dial.
pub const API_PORT: u16 = 6443;
/// A second port, for an API server that some clients shall not find: see [`ControlPlane::start_api_server_hidden`].
const HIDDEN_PORT: u16 = 6444;
/// Known to whoever reads this: the API server listens in a namespace that leads nowhere.
const ADMIN_TOKEN: &str = "lab-admin";
/// A folder's name goes on with the pid of its test process.
const FOLDER_PREFIX: &str = "vipr-control-plane-";
/// From the start of the processes to `/readyz`. It takes 3 s on an idle machine.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// The address of a control plane that has a namespace of its own (TEST-NET-1, RFC 5737).
const OWN_ADDRESS: &str = "192.0.2.2";

/// A running control plane. Dropping it ends its processes and removes its files.
#[derive(Debug)]
pub struct ControlPlane {
    // Dropped in this order: clients before servers, files and namespace last.
    api_server: Option<Process>,
    etcd: Process,
    netns: PathBuf,
    address: IpAddr,
    port: u16,
    folder: TempDir,
    _own_namespace: Option<Namespace>,
}

impl ControlPlane {
    /// Starts a control plane in a network namespace of its own, which leads nowhere, and waits until it is ready.
    ///
    /// # Errors
    /// Names the missing binary and how to get it, or carries the end of the log of what did not start.
    pub fn start() -> Result<Self> {
        let namespace = Namespace::new(OWN_ADDRESS)?;
        let netns = namespace.path();
        Self::start_with(netns, OWN_ADDRESS.parse()?, Some(namespace))
    }

    /// Starts a control plane in the network namespace at `netns` (a node's, or a host's beside the nodes), reached at
    /// `address`, which must be assigned there and must not be a loopback address (the API server publishes it as the
    /// endpoint of `default/kubernetes`).
    ///
    /// # Errors
    /// As [`ControlPlane::start`].
    pub fn start_in(netns: impl Into<PathBuf>, address: IpAddr) -> Result<Self> {
        Self::start_with(netns.into(), address, None)
    }

    fn start_with(netns: PathBuf, address: IpAddr, own: Option<Namespace>) -> Result<Self> {
        sweep_folders();
        let prefix = format!("{FOLDER_PREFIX}{}-", std::process::id());
        let folder = tempfile::Builder::new().prefix(&prefix).tempdir()?;
        write_identities(folder.path())?;
        let etcd = etcd::spawn(&netns, folder.path())?;
        let mut plane =
            Self { api_server: None, etcd, netns, address, port: API_PORT, folder, _own_namespace: own };
        plane.write_admin_kubeconfigs()?;
        plane.start_api_server()?;
        Ok(plane)
    }

    /// kubectl as cluster admin.
    pub fn kubectl(&self) -> Kubectl {
        self.kubectl_with(self.admin_kubeconfig())
    }

    /// kubectl with the rights of another kubeconfig, for instance one of [`ControlPlane::service_account_kubeconfig`].
    pub fn kubectl_with(&self, kubeconfig: PathBuf) -> Kubectl {
        Kubectl::new(self.netns.clone(), kubeconfig, self.folder.path().join("kubectl-cache"))
    }

    /// The kubeconfig of the cluster admin, for the port in use.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.folder.path().join(admin_file(self.port))
    }

    /// The network namespace in which the API server listens.
    pub fn netns(&self) -> &Path {
        &self.netns
    }

    /// `https://ADDRESS:6443`.
    pub fn server(&self) -> String {
        server(self.address, API_PORT)
    }

    /// Asks the API server for a token of a ServiceAccount and writes a kubeconfig that holds it and nothing else.
    ///
    /// # Errors
    /// The account does not exist, or the API server is down.
    pub fn service_account_kubeconfig(&self, namespace: &str, account: &str) -> Result<PathBuf> {
        let token = self.kubectl().run(&["create", "token", account, "--namespace", namespace])?;
        let path = self.folder.path().join(format!("{namespace}-{account}.kubeconfig"));
        self.write_kubeconfig(&path, API_PORT, account, token.trim())?;
        Ok(path)
    }

    /// The CA that signed the API server's certificate, as a ServiceAccount's `ca.crt`.
    pub fn authority(&self) -> PathBuf {
        // The file that the API server makes in its --cert-dir holds its certificate and the CA that signed it.
        self.folder.path().join("certificates/apiserver.crt")
    }

    /// Kills the API server (SIGKILL); etcd goes on. Clients see refused connections.
    pub fn kill_api_server(&mut self) {
        self.api_server = None;
    }

    /// Starts the API server, ending a running one, and waits until it is ready.
    ///
    /// # Errors
    /// Not ready within two minutes, or ended: with the end of its log.
    pub fn start_api_server(&mut self) -> Result<()> {
        self.start_api_server_on(API_PORT)
    }

    /// The same on a port that only [`ControlPlane::kubectl`] knows: for clients with a kubeconfig of
    /// [`ControlPlane::service_account_kubeconfig`] the API server stays down while a test changes objects.
    ///
    /// # Errors
    /// As [`ControlPlane::start_api_server`].
    pub fn start_api_server_hidden(&mut self) -> Result<()> {
        self.start_api_server_on(HIDDEN_PORT)
    }

    /// Makes etcd forget every revision but the last: a watch from an older one is answered 410 Gone.
    ///
    /// # Errors
    /// etcd does not answer.
    pub fn compact(&self) -> Result<()> {
        etcd::compact(&self.netns)
    }

    fn start_api_server_on(&mut self, port: u16) -> Result<()> {
        self.api_server = None;
        self.port = port;
        self.api_server = Some(spawn_api_server(&self.netns, self.folder.path(), self.address, port)?);
        self.wait_until_ready()
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let kubectl = self.kubectl();
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            let Err(error) = kubectl.run(&["get", "--raw", "/readyz", "--request-timeout=2s"]) else {
                return Ok(());
            };
            for process in [Some(&mut self.etcd), self.api_server.as_mut()].into_iter().flatten() {
                if process.has_ended() {
                    bail!(
                        "{} ended before it was ready; the end of its log:\n{}",
                        process.name(),
                        process.tail()
                    );
                }
            }
            if Instant::now() > deadline {
                let log = self.api_server.as_ref().map(Process::tail).unwrap_or_default();
                bail!(
                    "the API server was not ready within {READY_WITHIN:?}: {error:#}; the end of its log:\n{log}"
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn write_admin_kubeconfigs(&self) -> Result<()> {
        for port in [API_PORT, HIDDEN_PORT] {
            self.write_kubeconfig(&self.folder.path().join(admin_file(port)), port, "admin", ADMIN_TOKEN)?;
        }
        Ok(())
    }

    fn write_kubeconfig(&self, path: &Path, port: u16, user: &str, token: &str) -> Result<()> {
        let server = server(self.address, port);
        let authority = self.authority();
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {"server": server, "certificate-authority": authority}}],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user}}],
        });
        fs::write(path, serde_json::to_vec_pretty(&config)?)
            .with_context(|| format!("writing {}", path.display()))
    }
}

/// Removes the folders of test processes that were killed.
fn sweep_folders() {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_str().and_then(|name| name.strip_prefix(FOLDER_PREFIX)?.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Another test process may be sweeping it too.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn admin_file(port: u16) -> String {
    format!("admin-{port}.kubeconfig")
}

fn server(address: IpAddr, port: u16) -> String {
    format!("https://{}", std::net::SocketAddr::new(address, port))
}

/// The key that signs ServiceAccount tokens, and the one static user: cluster admin.
fn write_identities(folder: &Path) -> Result<()> {
    let key = rcgen::KeyPair::generate().context("making the key for ServiceAccount tokens")?;
    fs::write(folder.join("service-account.key"), key.serialize_pem())?;
    fs::write(folder.join("service-account.pub"), key.public_key_pem())?;
    fs::write(folder.join("tokens.csv"), format!("{ADMIN_TOKEN},admin,admin,\"system:masters\"\n"))?;
    Ok(())
}

fn spawn_api_server(netns: &Path, folder: &Path, address: IpAddr, port: u16) -> Result<Process> {
    let file = |name: &str| folder.join(name).display().to_string();
    let arguments = [
        format!("--etcd-servers={}", etcd::CLIENT_URL),
        format!("--secure-port={port}"),
        // All addresses of the namespace, both families.
        "--bind-address=::".into(),
        format!("--advertise-address={address}"),
        format!("--cert-dir={}", file("certificates")),
        format!("--token-auth-file={}", file("tokens.csv")),
        "--authorization-mode=RBAC".into(),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-key-file={}", file("service-account.pub")),
        format!("--service-account-signing-key-file={}", file("service-account.key")),
        format!("--service-cluster-ip-range={}", SERVICE_CIDRS.join(",")),
        "--allow-privileged=true".into(),
    ];
    Process::spawn("kube-apiserver", netns, &arguments, &folder.join("kube-apiserver.log"))
}
