//! Objects in the API server, many at once.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use http::{Method, Request};
use kube::Client;
use proxy_lab::Place;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::ground::TARGETS;

/// Requests under way at once.
const AT_ONCE: usize = 16;
const SERVICES: &str = "/api/v1/namespaces/default/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

/// The API server of a lab, asked from the place where it runs.
pub(crate) struct Api<'lab> {
    place: &'lab Place,
    kubeconfig: PathBuf,
}

/// A Service with one slice (or more, of at most 100 endpoints each).
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) name: String,
    pub(crate) ip: std::net::Ipv4Addr,
    pub(crate) node_port: Option<u16>,
    /// Where it leads: addresses with the node they are on.
    pub(crate) endpoints: Vec<(std::net::Ipv4Addr, String)>,
    pub(crate) target: u16,
    /// Serves UDP too.
    pub(crate) datagrams: bool,
}

impl Object {
    /// Of no name, address or endpoint.
    pub(crate) fn none() -> Self {
        Self {
            name: String::new(),
            ip: std::net::Ipv4Addr::UNSPECIFIED,
            node_port: None,
            endpoints: Vec::new(),
            target: TARGETS[0].0,
            datagrams: true,
        }
    }

    /// The Service's own object.
    fn service(&self) -> Value {
        let mut port = json!({ "name": "tcp", "port": 80, "protocol": "TCP", "targetPort": self.target });
        if let Some(number) = self.node_port {
            port["nodePort"] = json!(number);
        }
        let udp = json!({ "name": "udp", "port": 80, "protocol": "UDP", "targetPort": self.target });
        let ports: Vec<_> = [Some(port), self.datagrams.then_some(udp)].into_iter().flatten().collect();
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": self.name },
            "spec": {
                "type": if self.node_port.is_some() { "NodePort" } else { "ClusterIP" }, "clusterIP": self.ip,
                "selector": { "app": self.name },
                "ports": ports,
            },
        })
    }

    /// Its slice, as the EndpointSlice controller writes it.
    fn slice(&self) -> Value {
        let endpoints = self.endpoints.iter().enumerate().map(|(number, (address, node))| {
            json!({
                "addresses": [address], "nodeName": node, "zone": "zone-a",
                "conditions": { "ready": true, "serving": true, "terminating": false },
                "targetRef": { "kind": "Pod", "namespace": "default", "name": format!("{}-{number}", self.name),
                    "uid": "4f1d8f4e-6f0e-4d5c-9d6b-0e1a4c2b7a10" },
            })
        });
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": { "name": self.slice_name(), "labels": { "kubernetes.io/service-name": self.name,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io" } },
            "ports": ports(self.target, self.datagrams), "endpoints": endpoints.collect::<Vec<_>>(),
        })
    }

    fn slice_name(&self) -> String {
        format!("{}-1", self.name)
    }
}

fn ports(target: u16, datagrams: bool) -> Value {
    let port = |name, protocol| json!({ "name": name, "port": target, "protocol": protocol });
    let udp = datagrams.then(|| port("udp", "UDP"));
    [Some(port("tcp", "TCP")), udp].into_iter().flatten().collect()
}

impl<'lab> Api<'lab> {
    /// By this kubeconfig, from `place`.
    pub(crate) fn new(place: &'lab Place, kubeconfig: PathBuf) -> Self {
        Self { place, kubeconfig }
    }

    /// Runs `work` with a client, on a thread in the namespace of the API server.
    pub(crate) fn with<T, F>(&self, work: impl FnOnce(Client) -> F + Send) -> Result<T>
    where
        T: Send,
        F: Future<Output = Result<T>>,
    {
        self.place.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let client = vipr::watch::kube::client(Some(&self.kubeconfig), None, Arc::new(drop)).await?;
                work(client).await
            })
        })?
    }

    /// Creates them all: slices first, as no controller does, so that no Service is ever without its endpoints.
    pub(crate) fn create(&self, objects: Vec<Object>) -> Result<()> {
        let objects = Arc::new(objects);
        self.with(|client| async move {
            for part in [Object::slice as fn(&Object) -> Value, Object::service] {
                let next = Arc::new(AtomicUsize::new(0));
                let mut tasks = JoinSet::new();
                for _ in 0..AT_ONCE {
                    let (client, objects, next) = (client.clone(), Arc::clone(&objects), Arc::clone(&next));
                    tasks.spawn(async move {
                        while let Some(object) = objects.get(next.fetch_add(1, Ordering::Relaxed)) {
                            let body = part(object);
                            let path = if body["kind"] == "Service" { SERVICES } else { SLICES };
                            send(&client, Method::POST, path, &body)
                                .await
                                .with_context(|| format!("creating {}", object.name))?;
                        }
                        anyhow::Ok(())
                    });
                }
                while let Some(done) = tasks.join_next().await {
                    done??;
                }
            }
            Ok(())
        })
    }
}

/// Lets the slice of a Service lead to another port; returns when the API server has answered.
pub(crate) async fn point(client: &Client, object: &Object, target: u16) -> Result<()> {
    let path = format!("{SLICES}/{}", object.slice_name());
    send(client, Method::PATCH, &path, &json!({ "ports": ports(target, object.datagrams) })).await
}

/// Takes one endpoint of a Service out.
pub(crate) async fn unready(client: &Client, service: &str, endpoint: u32) -> Result<()> {
    let path = format!("{SLICES}/{service}-1");
    let place = format!("/endpoints/{endpoint}/conditions/ready");
    send(client, Method::PATCH, &path, &json!([{ "op": "replace", "path": place, "value": false }])).await
}

async fn send(client: &Client, method: Method, path: &str, body: &Value) -> Result<()> {
    let kind = match (method == Method::PATCH, body.is_array()) {
        (true, true) => "application/json-patch+json",
        (true, false) => "application/merge-patch+json",
        (false, _) => "application/json",
    };
    let request = Request::builder().method(method).uri(path).header("Content-Type", kind);
    client.request_text(request.body(serde_json::to_vec(body)?)?).await?;
    Ok(())
}
