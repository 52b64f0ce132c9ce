//! A lab of network namespaces: nodes, pods and clients outside, for vipr's tests, demo and benchmarks. Needs root.
//!
//! ```no_run
//! use proxy_lab::{Agent, Lab, Manifests, Service, Topology, Waiting, Wiring};
//!
//! # fn main() -> anyhow::Result<()> {
//! let lab = Lab::start(&Topology::new(Wiring::Routed).node("a", &["a1", "a2"]).client("outside"))?;
//! let (node, a1, a2) = (lab.node("a"), lab.place("a1"), lab.place("a2"));
//!
//! // Echo servers tell who they are and whom they saw.
//! a2.serve(&[8080], &[8080])?;
//! let answer = a1.ask_tcp((a2.address(proxy_lab::Family::V4), 8080).into())?;
//! assert_eq!(answer.who, "a2");
//!
//! // The real agent, fed from a folder of YAML.
//! let manifests = Manifests::new(&lab)?;
//! manifests.apply(&Service::new("web").cluster_ip("10.96.0.10").tcp(80, 8080).endpoints([a2]))?;
//! let agent = Agent::start(node, &manifests)?;
//! agent.settle()?;
//! let mut stream = a1.connect("10.96.0.10:80".parse()?, Waiting::NonBlocking)?;
//! assert_eq!((stream.answer()?.who.as_str(), stream.peer()?.to_string().as_str()), ("a2", "10.96.0.10:80"));
//! # Ok(())
//! # }
//! ```
//!
//! - [`Topology`] says what there is; [`Lab`] builds it and takes it down, also after a panic, Ctrl-C or SIGKILL.
//! - [`Place`] is a node's host, a pod or a client: runs commands ([`Place::run`], [`Place::command`]), opens sockets
//!   that belong to it ([`Place::connect`], [`Place::datagrams`], [`Place::socket`]), serves ([`Place::serve`]),
//!   and takes a thread in ([`Place::enter`]).
//! - [`Node`] is a place with pods and with the cgroup to attach programs to ([`Node::node_cgroup`]); it has its own
//!   `/sys/fs/bpf` and `/run`.
//! - [`Load`] keeps thousands of connections a second going and counts what failed.
//! - [`cost`]: what packets cost in the loaded programs.
//! - [`plane`]: the real dataplane in a node, driven by hand.
//! - [`Tunnel`]: tun and tap devices that join two places. [`foreign`]: other software's programs on devices.
//! - [`Manifests`], [`Service`]: YAML for the agent. [`Agent`]: the real `vipr run` in a node.
//! - [`KubeProxy`]: the real one in a node, to take over from.
//! - [`control_plane`]: a real API server. [`Cluster`]: one beside the nodes of a lab, with the chart installed.
//!
//! Three rules that no test can forget, because mistakes in rewriting packets hide without them: service ports and
//! target ports always differ, checksum offload is off, and the error counters of all namespaces are zero at the end.
//! Safety: no namespace has a way out, the machine's own namespace is never part of a lab, and the service ranges are
//! blackholed everywhere before anything dials them.

mod agent;
pub mod cgroup;
mod cluster;
pub mod control_plane;
pub mod cost;
mod counters;
mod dial;
mod echo;
pub mod foreign;
pub mod frame;
mod kube_proxy;
mod lab;
mod load;
mod manifest;
mod peer;
mod place;
pub mod plane;
pub mod role;
pub mod topology;
mod tunnel;
pub mod wait;
mod wire;

pub use agent::{Agent, PIN_PATH, vipr_binary};
pub use cluster::Cluster;
pub use counters::Errors;
pub use dial::{CALL_LIMIT, Datagrams, Stream, Waiting, errno, mapped};
pub use echo::Answer;
pub use kube_proxy::KubeProxy;
pub use lab::{Lab, Node};
pub use load::{Load, Tally};
pub use manifest::{Endpoint, Manifests, Service};
pub use peer::SocketKind;
pub use place::{Place, Serving};
pub use topology::{Blackhole, Dual, Family, Offload, Topology, Wiring};
pub use tunnel::Tunnel;
pub use wire::{BRIDGE, DEVICE, pod_device};
