//! What the packet plane needs to know about this node to remember flows: how long, with which ports it may masquerade,
//! and a seed that nobody outside can guess.

use std::{fs, ops::RangeInclusive, os::fd::AsFd, path::Path};

use proxy_common::{
    layout::{PacketPlane, Timeouts},
    names::map,
};
use zerocopy::{FromBytes, IntoBytes};

use super::{
    Error,
    sys::{self, Map},
};

/// NodePorts, unless the API server was told otherwise (`--service-node-port-range`).
const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;
/// The kernel's own default of `ip_local_port_range`.
const LOCAL_PORTS: RangeInclusive<u16> = 32_768..=60_999;
/// So many ports above all others are enough: they are shared by flows to different backends.
const ENOUGH: u16 = 4096;

/// Write the settings into the map pinned at `path`. The seed stays if there is one, because flows and ports were chosen
/// by it; all else follows the node, or what is `configured` where it says nothing.
///
/// # Errors
/// The kernel refused to read or write it, or to give random bytes.
pub fn write_settings(path: &Path, configured: &Timeouts) -> Result<(), Error> {
    let failed = |what: &str| {
        let what = format!("{what} the map {}", map::PACKET_PLANE);
        move |source| Error::Kernel { what, source }
    };
    let settings = Map::open(path).map_err(failed("open"))?;
    let mut bytes = [0; size_of::<PacketPlane>()];
    let key = 0_u32.to_ne_bytes();
    sys::lookup(settings.as_fd(), &key, &mut bytes).map_err(failed("read"))?;
    let earlier = PacketPlane::read_from_bytes(&bytes).ok().filter(|plane| plane.version != 0);
    let (first_port, last_port) = ports(&local_ports()).into_inner();
    let plane = PacketPlane {
        seed: earlier.map_or_else(rand::random, |plane| plane.seed),
        version: PacketPlane::VERSION,
        handover: earlier.map_or(0, |plane| plane.handover),
        first_port,
        last_port,
        reserved: 0,
        timeouts: timeouts(configured, |name| {
            sysctl(&format!("netfilter/nf_conntrack_{name}")).and_then(|text| text.parse().ok())
        }),
    };
    sys::update(settings.as_fd(), &key, plane.as_bytes(), 0).map_err(failed("write"))
}

fn sysctl(name: &str) -> Option<String> {
    fs::read_to_string(Path::new("/proc/sys/net").join(name)).ok().map(|text| text.trim().to_owned())
}

fn local_ports() -> RangeInclusive<u16> {
    let parse = |text: String| {
        let mut words = text.split_whitespace().map_while(|word| word.parse().ok());
        Some(words.next()?..=words.next()?)
    };
    sysctl("ipv4/ip_local_port_range").and_then(parse).unwrap_or(LOCAL_PORTS)
}

/// Ports to masquerade with: none that a socket gets without asking, none that is a NodePort, none below 1024. Those above
/// all these if they are [`ENOUGH`] (nobody else is likely to listen there), else the widest gap.
fn ports(local: &RangeInclusive<u16>) -> RangeInclusive<u16> {
    let mut taken = [NODE_PORTS, local.clone()];
    taken.sort_by_key(|range| *range.start());
    let mut gaps = Vec::new();
    let mut next = 1024_u16;
    for range in taken {
        if *range.start() > next {
            gaps.push(next..=range.start() - 1);
        }
        next = next.max(range.end().saturating_add(1));
    }
    let width = |gap: &RangeInclusive<u16>| gap.end() - gap.start();
    let top = next..=u16::MAX;
    if width(&top) >= ENOUGH - 1 {
        return top;
    }
    gaps.push(top);
    // There is always one: two ranges of which one is short can't fill all.
    gaps.into_iter().max_by_key(width).unwrap_or(NODE_PORTS)
}

/// netfilter's timeouts where it is there and tells them, see [`Timeouts`]; else those that are configured.
fn timeouts(configured: &Timeouts, seconds: impl Fn(&str) -> Option<u32>) -> Timeouts {
    let or = |name: &str, default: u32| seconds(name).unwrap_or(default);
    let d = configured;
    Timeouts {
        tcp_syn_sent: or("tcp_timeout_syn_sent", d.tcp_syn_sent),
        tcp_syn_received: or("tcp_timeout_syn_recv", d.tcp_syn_received),
        tcp_established: or("tcp_timeout_established", d.tcp_established),
        tcp_fin_wait: or("tcp_timeout_fin_wait", d.tcp_fin_wait),
        tcp_close_wait: or("tcp_timeout_close_wait", d.tcp_close_wait),
        tcp_last_ack: or("tcp_timeout_last_ack", d.tcp_last_ack),
        tcp_time_wait: or("tcp_timeout_time_wait", d.tcp_time_wait),
        tcp_close: or("tcp_timeout_close", d.tcp_close),
        udp: or("udp_timeout", d.udp),
        udp_stream: or("udp_timeout_stream", d.udp_stream),
        sctp_cookie: or("sctp_timeout_cookie_echoed", d.sctp_cookie),
        sctp_established: or("sctp_timeout_established", d.sctp_established),
        sctp_shutdown: or("sctp_timeout_shutdown_sent", d.sctp_shutdown),
        sctp_closed: or("sctp_timeout_closed", d.sctp_closed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masquerading_takes_ports_above_all_that_sockets_and_node_ports_take() {
        assert_eq!(ports(&LOCAL_PORTS), 61_000..=65_535);
        assert_eq!(ports(&(10_000..=20_000)), 32_768..=65_535);
    }

    #[test]
    fn where_few_ports_are_left_above_the_widest_gap_is_taken() {
        assert_eq!(ports(&(32_768..=65_000)), 1024..=29_999);
        assert_eq!(ports(&(1024..=29_000)), 32_768..=65_535);
        assert_eq!(ports(&(2000..=65_535)), 1024..=1999);
        assert_eq!(ports(&(31_000..=31_100)), 32_768..=65_535, "a range inside of the other");
    }

    #[test]
    fn a_timeout_is_netfilters_where_it_tells_one() {
        let told = timeouts(&Timeouts::DEFAULT, |name| (name == "udp_timeout_stream").then_some(7));
        assert_eq!(told, Timeouts { udp_stream: 7, ..Timeouts::DEFAULT });
    }
}
