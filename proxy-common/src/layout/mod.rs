//! The shared tables' keys and values: integers without padding, checked when they are compiled (zerocopy's derive
//! refuses a type with implicit padding). Their sizes and offsets are kept in `tests/layout.txt`.
//!
//! Ports in tables are numbers in host byte order, addresses 16 bytes in network byte order, so that
//! `bpftool map dump` prints what a person would write.

pub mod affinity;
pub mod backend;
pub mod device;
pub mod flow;
pub mod flow_count;
pub mod frontend;
pub mod gate;
pub mod handover;
pub mod node;
pub mod socket;
pub mod spot;
pub mod trace;

pub use affinity::{Affinity, AffinityKey, ClientKind};
pub use backend::{Backend, Policy, Role, Service};
pub use device::{
    Device, DeviceRole, MasqueradeAddress, MasqueradeKey, PacketPlane, Pods, RangeKey, Timeouts,
};
pub use flow::{Flow, FlowKey, Fragment, FragmentKey, Position};
pub use flow_count::FlowCount;
pub use frontend::{Frontend, FrontendKey, FrontendKind};
pub use gate::Gate;
pub use handover::HandedOver;
pub use node::{LocalAddress, LocalKey, Node, ServiceName, SocketPlane};
pub use socket::{Connected, DATAGRAM_SLOTS, Datagram, Remembered, Unconnected};
pub use spot::Spot;
pub use trace::Trace;
