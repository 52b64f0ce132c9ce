//! What the node's dataplane does in the story. Each act is a process of its own in the node's namespaces and cgroup,
//! as the agent is: it takes over what the one before left, and leaves everything attached.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::{fd::AsFd, unix::fs::MetadataExt};
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use proxy_common::layout::{Device, DeviceRole, Flow, FrontendKind, PacketPlane, Pods, RangeKey, Timeouts};
use proxy_common::names::map;
use proxy_common::{Address, Protocol};
use proxy_lab::plane::{Endpoints, FLOOR, Plane, options};
use proxy_lab::{Lab, PIN_PATH, Place, cgroup};
use vipr::dataplane::{
    self, Dataplane, FlowTable, Options, Sweeper,
    probe::Features,
    sys::{self, Map},
    tc::filters::{Netlink, Side},
};
use vipr::plan::{Capacity, Step};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// The act of the programs on devices.
pub(super) const DEVICES: &str = "devices";
/// The act that has the other pod serve, with the programs on devices in their place.
pub(super) const MOVE: &str = "move";
/// The act that leaves a pod's sockets alone.
pub(super) const LEAVE: &str = "leave";
/// The act in which all flows are over.
pub(super) const SWEEP: &str = "sweep";
/// What a pod does by itself: who calls is told by the process.
pub(super) const DIAL: &str = "dial";
/// The pod that is left alone.
pub(super) const LEFT: &str = "a1";
/// The device to the rest of the world.
const UPLINK: &str = "eth0";
/// The first argument of a process that plays an act.
pub(super) const WORD: &str = "act";
/// What endpoints listen on.
pub(super) const TARGET: u16 = 8080;
/// Dialled and served: one of each family.
pub(super) const WEB: [&str; 2] = ["10.96.0.10:80", "[fd00:96::10]:80"];
/// Dialled and without endpoints.
pub(super) const EMPTY: [&str; 2] = ["10.96.0.66:80", "[fd00:96::66]:80"];
/// The node port that leads where [`WEB`] leads.
pub(super) const NODE_PORT: u16 = 30080;
/// The node port that leads nowhere.
pub(super) const EMPTY_PORT: u16 = 30081;
/// The node's addresses.
pub(super) const NODE: [&str; 2] = ["192.168.77.11", "fd00:77::b"];

/// Runs an act in the node, and gives what it said.
pub(super) fn play(lab: &Lab, act: &str) -> Result<String> {
    let node = lab.node("a");
    let this = std::env::current_exe().context("finding this program")?;
    let cgroup = node.node_cgroup().to_string_lossy();
    node.run(&this.to_string_lossy(), &[WORD, act, &cgroup])
}

/// Which of [`WEB`] a process of this place reaches.
pub(super) fn dial(place: &Place) -> Result<String> {
    let this = std::env::current_exe().context("finding this program")?;
    place.run(&this.to_string_lossy(), &[WORD, DIAL, ""])
}

/// The act itself.
pub(super) fn act(name: &str, cgroup: &Path) -> Result<String> {
    if name == "clean" {
        dataplane::cleanup(PIN_PATH.as_ref())?;
        let (netlink, index) = uplink()?;
        for side in [Side::Ingress, Side::Egress] {
            let filters = netlink.filters(index, side)?;
            ensure!(filters.is_empty(), "{side:?}: {filters:?}");
        }
        return Ok(String::new());
    }
    if name == DIAL {
        let dialled = WEB.map(|to| TcpStream::connect(to).is_ok());
        return Ok(format!("{dialled:?}"));
    }
    if name == SWEEP {
        return sweep(PIN_PATH.as_ref());
    }
    let start = Instant::now();
    let features = Features::probe();
    let options =
        Options { packet_plane: [DEVICES, MOVE].contains(&name), ..options(PIN_PATH.as_ref(), cgroup) };
    let mut plane = Plane::open(&options, features)?;
    let loaded = start.elapsed().as_millis();
    match name {
        "begin" => begin(&mut plane)?,
        "change" => serve_by(&mut plane, 13)?,
        MOVE => serve_by(&mut plane, 12)?,
        "grow" => {
            plane.grow(Capacity { backends: 4 * FLOOR.backends, services: 2 * FLOOR.services, ..FLOOR })?
        }
        LEAVE => leave(&mut plane, &cgroup.join(format!("pod-{LEFT}")))?,
        DEVICES => return hook(&mut plane),
        other => bail!("there is no act {other}"),
    }
    plane.activate()?;
    Ok(format!("{features:?}, loaded in {loaded} ms"))
}

/// Attach to all devices, and find everything in its place.
fn hook(plane: &mut Plane) -> Result<String> {
    let (netlink, index) = uplink()?;
    let was_attached = plane.read()?.attached.contains(&index);
    let [v4, v6] = [NODE[0], NODE[1]].map(|text| text.parse::<IpAddr>().map(Address::from));
    let device = Device {
        mac: [0; 3],
        bridge_mac: [0; 3],
        header: 14,
        role: DeviceRole::Single,
        pods: Pods::None,
        version: Device::VERSION,
        masquerade_v4: v4?.octets(),
        masquerade_v6: v6?.octets(),
        host: 0,
        choices: 0,
    };
    for (index, name) in netlink.devices()?.into_iter().filter(|(_, name)| name != "lo") {
        plane.apply(&[Step::PutDevice { index, device }, Step::Attach { index, name }])?;
    }
    plane.activate()?;
    let lost = plane.kernel().verify()?;
    ensure!(lost.is_empty(), "{lost:?}");
    let how = if plane.kernel().features().tcx { "by tcx links" } else { "by clsact filters" };
    Ok(format!("{how}, {}", if was_attached { "replaced" } else { "new" }))
}

/// Nothing is remembered for any time, and nothing has come since the machine began.
fn sweep(pin_path: &Path) -> Result<String> {
    Sweeper::new(pin_path).pass()?;
    let before = dataplane::pinned_flows(pin_path)?;
    let counted =
        || -> Result<u32> { Ok(dataplane::flow_tables(pin_path)?.iter().map(FlowTable::used).sum()) };
    ensure!(!before.is_empty() && counted()? == before.len() as u32, "{} of {before:?}", counted()?);
    let settings = Map::open(&pin_path.join(map::PACKET_PLANE))?;
    let plane = PacketPlane { timeouts: Timeouts::new_zeroed(), ..dataplane::pinned_packet_plane(pin_path)? };
    sys::update(settings.as_fd(), &0_u32.to_ne_bytes(), plane.as_bytes(), 0)?;
    for name in [map::FLOWS, map::FLOWS_NEW_TCP, map::FLOWS_NEW_UDP, map::FLOWS_NEW_SCTP] {
        let table = Map::open(&pin_path.join(name))?;
        let mut aged = Vec::new();
        table.each(|key, flow| {
            aged.extend(
                Flow::read_from_bytes(flow).ok().map(|flow| (key.to_vec(), Flow { seen: 0, ..flow })),
            );
        })?;
        for (key, flow) in aged {
            sys::update(table.as_fd(), &key, flow.as_bytes(), 0)?;
        }
    }
    let pass = Sweeper::new(pin_path).pass()?;
    let left = dataplane::pinned_flows(pin_path)?;
    ensure!(
        left.is_empty() && counted()? == 0 && pass.evicted == 0,
        "{pass:?}, counted {}, {left:?}",
        counted()?
    );
    Ok(format!("{} keys", pass.expired))
}

fn uplink() -> Result<(Netlink, u32)> {
    let netlink = Netlink::open()?;
    let index = netlink.devices()?.into_iter().find(|(_, name)| name == UPLINK).context("no uplink")?.0;
    Ok((netlink, index))
}

/// Leave the sockets of a cgroup to packets.
fn leave(plane: &mut Plane, group: &Path) -> Result<()> {
    let id = fs::metadata(group).with_context(|| format!("looking at {}", group.display()))?.ino();
    let level = group.strip_prefix(cgroup::mount_point()?)?.components().count();
    let key = RangeKey::host(RangeKey::GROUPS, RangeKey::group(id));
    plane.apply(&[Step::PutRange { key }, Step::SetLeftLevels { levels: 1 << level }])
}

fn begin(plane: &mut Plane) -> Result<()> {
    serve_by(plane, 12)?;
    for (service, (web, empty)) in (0..).zip(WEB.into_iter().zip(EMPTY)) {
        let (web, empty): (SocketAddr, SocketAddr) = (web.parse()?, empty.parse()?);
        let wildcard = SocketAddr::new(Address::from(web.ip()).any().ip(), NODE_PORT);
        plane.endpoints(service + 2, &Endpoints::default())?;
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            plane.frontend(web, protocol, FrontendKind::ClusterIp, service)?;
            plane.frontend(wildcard, protocol, FrontendKind::NodePort, service)?;
            plane.frontend(empty, protocol, FrontendKind::ClusterIp, service + 2)?;
            let wildcard = SocketAddr::new(wildcard.ip(), EMPTY_PORT);
            plane.frontend(wildcard, protocol, FrontendKind::NodePort, service + 2)?;
        }
    }
    for local in [NODE[0], NODE[1], "127.0.0.1", "::1"] {
        plane.local_address(local.parse::<IpAddr>()?, true)?;
    }
    Ok(())
}

/// The pod whose address ends so is the only endpoint.
fn serve_by(plane: &mut Plane, host: u8) -> Result<()> {
    for (service, endpoint) in (0..).zip([format!("10.244.1.{host}"), format!("fd00:244:1::{host:x}")]) {
        let endpoint = SocketAddr::new(endpoint.parse()?, TARGET);
        plane.endpoints(service, &Endpoints::everywhere(&[endpoint]))?;
    }
    Ok(())
}
