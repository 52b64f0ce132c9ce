//! What the packet plane needs to know about this node to remember flows: how long, with which ports it may masquerade,
//! and a seed that nobody outside can guess.

use std::{
    fs,
    ops::RangeInclusive,
    os::fd::AsFd,
    path::Path,
    sync::{Mutex, PoisonError},
};

use proxy_common::{
    layout::{PacketPlane, Timeouts},
    names::map,
};
use zerocopy::{FromZeros, IntoBytes};

use super::{
    Error,
    sys::{self, Map},
};

/// NodePorts, unless the API server was told otherwise (`--service-node-port-range`).
const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;
/// The kernel's own default of `ip_local_port_range`.
const LOCAL_PORTS: RangeInclusive<u16> = 32_768..=60_999;
/// So many ports above all others are a good first choice: flows to different backends share them.
const ENOUGH_FIRST: u16 = 4096;
/// Below are most of the ports that are registered, and those of overlay networks: packets to them should cost nothing.
const LISTENERS: u16 = 10_000;

/// Write the settings into the map pinned at `path`, if they differ from what it has; whether they did. The seed stays if there
/// is one, because flows and ports were chosen by it; all else follows the node as it is now, or what is `configured` where it
/// says nothing. netfilter's timeouts are there from the moment on that its module is loaded.
///
/// # Errors
/// The kernel refused to read or write it, or to give random bytes.
pub fn write_settings(path: &Path, configured: &Timeouts) -> Result<bool, Error> {
    let [first, more] = ports(&local_ports());
    let timeouts = timeouts(configured, |name| {
        sysctl(&format!("netfilter/nf_conntrack_{name}")).and_then(|text| text.parse().ok())
    });
    change_settings(path, |earlier| {
        let earlier = Some(earlier).filter(|plane| plane.version != 0);
        PacketPlane {
            seed: earlier.map_or_else(rand::random, |plane| plane.seed),
            version: PacketPlane::VERSION,
            handover: earlier.map_or(0, |plane| plane.handover),
            first_port: *first.start(),
            last_port: *first.end(),
            more_first_port: *more.start(),
            more_last_port: *more.end(),
            timeouts,
        }
    })
}

/// [`write_settings`] while the programs run, said where it changed something.
pub(super) fn follow_settings(path: &Path, configured: &Timeouts) -> Result<(), Error> {
    if write_settings(path, configured)? {
        tracing::info!("the node's timeouts or its range of local ports have changed: followed");
    }
    Ok(())
}

/// Write what `change` makes of the settings in the map pinned at `path`, if that is something else; whether it was.
pub(super) fn change_settings(
    path: &Path,
    change: impl FnOnce(PacketPlane) -> PacketPlane,
) -> Result<bool, Error> {
    /// Those who change them read them first.
    static CHANGING: Mutex<()> = Mutex::new(());
    let failed = |what: &str| {
        let what = format!("{what} the map {}", map::PACKET_PLANE);
        move |source| Error::Kernel { what, source }
    };
    let settings = Map::open(path).map_err(failed("open"))?;
    let mut before = PacketPlane::new_zeroed();
    let key = 0_u32.to_ne_bytes();
    let _changing = CHANGING.lock().unwrap_or_else(PoisonError::into_inner);
    sys::lookup(settings.as_fd(), &key, before.as_mut_bytes()).map_err(failed("read"))?;
    let after = change(before);
    if after == before {
        return Ok(false);
    }
    sys::update(settings.as_fd(), &key, after.as_bytes(), 0).map_err(failed("write"))?;
    Ok(true)
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

/// Ports to masquerade with, to be tried first and to be tried besides (0 to 0: none): none that a socket gets without
/// asking, none that is a NodePort, none below 1024.
///
/// First those above all these if they are [`ENOUGH_FIRST`] (nobody else is likely to listen there), else the widest gap;
/// besides the widest gap that is left above the numbers that services are given ([`LISTENERS`]).
///
/// Where sockets may get nearly every number, what would be left is so many connections at a time to one backend. There ports
/// are shared with sockets: no flow takes what a socket has, and a socket that gets what a flow has is shown with another
/// (`proxy_common::datapath::own`). That costs a look into the flows for each packet to a port that ever was a flow's.
fn ports(local: &RangeInclusive<u16>) -> [RangeInclusive<u16>; 2] {
    let free = gaps(&[NODE_PORTS, local.clone()]);
    let first = match free.last() {
        Some(top) if *top.end() == u16::MAX && width(top) >= ENOUGH_FIRST => top.clone(),
        // Where sockets may get every number, the NodePorts' are all that is left.
        _ => free.iter().max_by_key(|gap| width(gap)).cloned().unwrap_or(NODE_PORTS),
    };
    let more = widest_above_listeners(&free, &first);
    if width(&first).saturating_add(width(&more)) >= ENOUGH_FIRST && first != NODE_PORTS {
        return [first, more];
    }
    let more = widest_above_listeners(&gaps(&[NODE_PORTS, first.clone()]), &first);
    [first, more]
}

fn width(gap: &RangeInclusive<u16>) -> u16 {
    if gap.is_empty() || *gap.end() == 0 { 0 } else { gap.end() - gap.start() + 1 }
}

fn widest_above_listeners(gaps: &[RangeInclusive<u16>], but: &RangeInclusive<u16>) -> RangeInclusive<u16> {
    let above = |gap: &RangeInclusive<u16>| (*gap.start()).max(LISTENERS)..=*gap.end();
    let others = gaps.iter().filter(|gap| *gap != but).map(above);
    others.max_by_key(width).filter(|gap| !gap.is_empty()).unwrap_or(0..=0)
}

/// The ports from 1024 on that are in neither range.
fn gaps(taken: &[RangeInclusive<u16>; 2]) -> Vec<RangeInclusive<u16>> {
    let mut taken = taken.clone();
    taken.sort_by_key(|range| *range.start());
    let mut gaps = Vec::new();
    let mut next = 1024_u32;
    for range in &taken {
        let (start, end) = (u32::from(*range.start()), u32::from(*range.end()));
        if start > next {
            gaps.push(next as u16..=*range.start() - 1);
        }
        next = next.max(end + 1);
    }
    if next <= u32::from(u16::MAX) {
        gaps.push(next as u16..=u16::MAX);
    }
    gaps
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
    fn masquerading_takes_ports_above_all_that_sockets_and_node_ports_take_and_then_the_widest_gap() {
        assert_eq!(ports(&LOCAL_PORTS), [61_000..=65_535, 10_000..=29_999]);
        assert_eq!(ports(&(10_000..=20_000)), [32_768..=65_535, 20_001..=29_999]);
    }

    #[test]
    fn where_few_ports_are_left_above_the_widest_gap_is_taken() {
        assert_eq!(ports(&(32_768..=65_000)), [1024..=29_999, 65_001..=65_535]);
        assert_eq!(ports(&(1024..=29_000)), [32_768..=65_535, 29_001..=29_999]);
        assert_eq!(
            ports(&(31_000..=31_100)),
            [32_768..=65_535, 10_000..=29_999],
            "a range inside of the other"
        );
    }

    #[test]
    fn where_sockets_may_get_nearly_every_port_those_are_shared_with_them() {
        assert_eq!(ports(&(1024..=65_000)), [65_001..=65_535, 32_768..=65_000]);
        assert_eq!(ports(&(1024..=65_535)), [30_000..=32_767, 32_768..=65_535]);
        assert_eq!(ports(&(3000..=65_535)), [1024..=2999, 32_768..=65_535]);
        assert_eq!(ports(&(1024..=61_439)), [61_440..=65_535, 0..=0], "as many as are enough first");
    }

    #[test]
    fn a_timeout_is_netfilters_where_it_tells_one() {
        let told = timeouts(&Timeouts::DEFAULT, |name| (name == "udp_timeout_stream").then_some(7));
        assert_eq!(told, Timeouts { udp_stream: 7, ..Timeouts::DEFAULT });
    }
}
