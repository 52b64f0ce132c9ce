//! What the agent hears of a real API server: lists, changes, and what changed while it could not hear.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use nix::sched::{CloneFlags, setns};
use proxy_lab::control_plane::ControlPlane;
use tokio::runtime::Builder;
use tokio::sync::mpsc::{self, Receiver};
use tokio::time::timeout;
use vipr::model::{Change, Source};
use vipr::watch::convert::Converter;
use vipr::watch::{Event, What, kube};

const LIMIT: Duration = Duration::from_secs(60);

/// Follows the control plane, from its namespace, until nobody listens.
fn follow(plane: &ControlPlane, kubeconfig: PathBuf) -> Receiver<Event> {
    let (to, events) = mpsc::channel(100);
    let namespace = File::open(plane.netns()).unwrap();
    std::thread::spawn(move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
        Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let client = kube::client(Some(&kubeconfig), None, Arc::new(drop)).await.unwrap();
            kube::follow(client, Converter::new("n1"), None, false, to).await;
        });
    });
    events
}

/// The first event that `wanted` takes.
fn until<T>(events: &mut Receiver<Event>, what: &str, wanted: impl Fn(&Event) -> Option<T>) -> T {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let mut others = Vec::new();
    runtime.block_on(async {
        loop {
            let event = timeout(LIMIT, events.recv()).await;
            let event = event.unwrap_or_else(|_| panic!("{what}: not in {others:#?}")).unwrap();
            if let Some(found) = wanted(&event) {
                return found;
            }
            others.push(event);
        }
    })
}

fn change(event: &Event) -> Option<&Change> {
    if let What::Change { change, .. } = &event.what { Some(change) } else { None }
}

/// Whether a Service of this name is there, if the event says so.
fn is_there(event: &Event, wanted: &str) -> Option<bool> {
    match change(event)? {
        Change::Services(all) => Some(all.iter().any(|service| &*service.name.name == wanted)),
        Change::Service(name, service) if &*name.name == wanted => Some(service.is_some()),
        _ => None,
    }
}

fn broken(event: &Event, source: Source) -> Option<String> {
    match &event.what {
        What::Broken { why } if event.source == source => Some(why.clone()),
        _ => None,
    }
}

const WEB: &str =
    "{apiVersion: v1, kind: Service, metadata: {name: web, namespace: default}, spec: {ports: [{port: 80}]}}";
const NODE: &str =
    "{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {topology.kubernetes.io/zone: z}}}";

#[test]
fn what_changes_is_heard_also_what_changed_while_the_api_server_was_away() -> Result<()> {
    let mut plane = ControlPlane::start()?;
    plane.kubectl().apply(WEB)?;
    let mut events = follow(&plane, plane.admin_kubeconfig());
    until(&mut events, "web is listed", |event| is_there(event, "web").filter(|there| *there));

    plane.kubectl().apply(NODE)?;
    until(&mut events, "the Node", |event| match change(event)? {
        Change::Node(Some(node)) => node.zone.as_deref().filter(|zone| *zone == "z").map(|_| ()),
        _ => None,
    });
    plane.kubectl().apply(&WEB.replace("web", "api"))?;
    until(&mut events, "api comes", |event| is_there(event, "api").filter(|there| *there));

    plane.kill_api_server();
    // Its last connections may end otherwise.
    until(&mut events, "it is missed", |event| {
        broken(event, Source::Services).filter(|why| why.contains("nobody listens there"))
    });
    plane.start_api_server_hidden()?;
    plane.kubectl().delete("service/web", "default")?;
    plane.compact()?;
    plane.start_api_server()?;
    until(&mut events, "web is gone", |event| is_there(event, "web").filter(|there| !there));
    Ok(())
}

#[test]
fn missing_rights_are_named_and_become_enough_without_a_restart() -> Result<()> {
    let plane = ControlPlane::start()?;
    let admin = plane.kubectl();
    admin.run(&["create", "serviceaccount", "agent", "--namespace", "default"])?;
    let mut events = follow(&plane, plane.service_account_kubeconfig("default", "agent")?);
    let why = until(&mut events, "a refusal", |event| broken(event, Source::Services));
    assert!(why.contains("403") && why.contains("ClusterRole needs list and watch"), "{why}");
    let resources = "--resource=services,nodes,endpointslices.discovery.k8s.io";
    admin.run(&["create", "clusterrole", "agent", "--verb=list,watch", resources])?;
    let account = "--serviceaccount=default:agent";
    admin.run(&["create", "clusterrolebinding", "agent", "--clusterrole=agent", account])?;
    until(&mut events, "the list", |event| is_there(event, "kubernetes").filter(|there| *there));
    Ok(())
}
