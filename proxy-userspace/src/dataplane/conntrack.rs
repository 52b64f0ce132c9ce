//! What netfilter's connection tracking remembers of connections whose destination it translates, by ctnetlink.
//!
//! The kernel walks its whole table for that. From 6.0 on it hands over only what is asked for; older ones hand over all, and
//! we choose.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use proxy_common::{Protocol, datapath::Endpoint};
use rtnetlink::{
    packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NlasIterator},
    sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER},
};

/// `NFNL_SUBSYS_CTNETLINK` and `IPCTNL_MSG_CT_GET`.
const GET: u16 = 1 << 8 | 1;
const DONE: u16 = 3;
const ERROR: u16 = 2;
/// Of a netlink message, and of the header of nfnetlink behind it.
const HEADER: usize = 16;
const NFGEN: usize = 4;

/// `CTA_*` of include/uapi/linux/netfilter/nfnetlink_conntrack.h.
mod kind {
    pub(super) const TUPLE_ORIG: u16 = 1;
    pub(super) const TUPLE_REPLY: u16 = 2;
    pub(super) const STATUS: u16 = 3;
    pub(super) const TIMEOUT: u16 = 7;
    pub(super) const ZONE: u16 = 18;
    pub(super) const STATUS_MASK: u16 = 26;
    pub(super) const TUPLE_IP: u16 = 1;
    pub(super) const TUPLE_PROTO: u16 = 2;
    pub(super) const V4_SRC: u16 = 1;
    pub(super) const V4_DST: u16 = 2;
    pub(super) const V6_SRC: u16 = 3;
    pub(super) const V6_DST: u16 = 4;
    pub(super) const PROTO_NUM: u16 = 1;
    pub(super) const SRC_PORT: u16 = 2;
    pub(super) const DST_PORT: u16 = 3;
}

/// `IPS_DST_NAT`: the destination is translated.
const DST_NAT: u32 = 1 << 5;
/// Of an entry that does not tell: its packets bypass the tracker (a flowtable's), or it is ending.
const UNTOLD: u32 = 30;

/// A connection that netfilter translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Translated {
    /// Its own.
    pub(super) protocol: Protocol,
    /// Who dialled.
    pub(super) client: Endpoint,
    /// What was dialled.
    pub(super) dialled: Endpoint,
    /// Who serves it.
    pub(super) backend: Endpoint,
    /// Whom the backend answers: the client, or the node that is masqueraded as.
    pub(super) answered: Endpoint,
    /// Seconds for which it is remembered, if it is silent.
    pub(super) seconds: u32,
}

/// Whether connections are tracked in this network namespace, and there are any.
pub(super) fn is_tracking() -> bool {
    // Asking ctnetlink would load it, and with it the tracker.
    let count = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
    count.is_ok_and(|count| count.trim() != "0")
}

/// Every connection of this network namespace, in no order; one may be told twice.
///
/// # Errors
/// The kernel has no ctnetlink (module `nf_conntrack_netlink`), or this process has no `CAP_NET_ADMIN`.
pub(super) fn each_translated(mut visit: impl FnMut(&Translated)) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&request(), 0)?;
    // No less than the kernel gives at once.
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = socket.recv(&mut &mut buffer[..], 0)?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        while !rest.is_empty() {
            let broken = |_| io::Error::new(io::ErrorKind::InvalidData, "a broken message of ctnetlink");
            let message = NetlinkBuffer::new_checked(rest).map_err(broken)?;
            let payload = message.payload();
            match message.message_type() {
                DONE | ERROR => {
                    let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                    return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                }
                _ => {
                    if let Some(found) = payload.get(NFGEN..).and_then(translated) {
                        visit(&found);
                    }
                }
            }
            rest = rest.get((message.length() as usize).next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// A dump of both families, with the filter that new kernels know.
fn request() -> Vec<u8> {
    let mut attributes = Vec::new();
    for kind in [kind::STATUS, kind::STATUS_MASK] {
        attributes.extend(8_u16.to_ne_bytes());
        attributes.extend(kind.to_ne_bytes());
        attributes.extend(DST_NAT.to_be_bytes());
    }
    let length = (HEADER + NFGEN + attributes.len()) as u32;
    let mut bytes = Vec::new();
    bytes.extend(length.to_ne_bytes());
    bytes.extend(GET.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    // Sequence and port; family, version and resource of nfnetlink.
    bytes.extend([0; 8 + NFGEN]);
    bytes.extend(attributes);
    bytes
}

/// An entry of the default zone whose destination is translated.
fn translated(attributes: &[u8]) -> Option<Translated> {
    let status = number(value(attributes, kind::STATUS)?)?;
    if status & DST_NAT == 0 || value(attributes, kind::ZONE).is_some() {
        return None;
    }
    let (protocol, client, dialled) = tuple(value(attributes, kind::TUPLE_ORIG)?)?;
    let (_, backend, answered) = tuple(value(attributes, kind::TUPLE_REPLY)?)?;
    let seconds = value(attributes, kind::TIMEOUT).and_then(number).unwrap_or(UNTOLD);
    Some(Translated { protocol, client, dialled, backend, answered, seconds })
}

/// Protocol, source and destination.
fn tuple(attributes: &[u8]) -> Option<(Protocol, Endpoint, Endpoint)> {
    let ip = value(attributes, kind::TUPLE_IP)?;
    let address = |v4, v6| -> Option<IpAddr> {
        let v4 = value(ip, v4).and_then(<[u8]>::first_chunk).map(|bytes| Ipv4Addr::from(*bytes).into());
        v4.or_else(|| value(ip, v6).and_then(<[u8]>::first_chunk).map(|bytes| Ipv6Addr::from(*bytes).into()))
    };
    let transport = value(attributes, kind::TUPLE_PROTO)?;
    let protocol = Protocol::from_number(u32::from(*value(transport, kind::PROTO_NUM)?.first()?))?;
    let port = |kind| Some(u16::from_be_bytes(*value(transport, kind)?.first_chunk()?));
    let end = |v4, v6, number| {
        let address: IpAddr = address(v4, v6)?;
        Some(Endpoint { address: address.into(), port: port(number)? })
    };
    let source = end(kind::V4_SRC, kind::V6_SRC, kind::SRC_PORT)?;
    Some((protocol, source, end(kind::V4_DST, kind::V6_DST, kind::DST_PORT)?))
}

fn value(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    let found = NlasIterator::new(attributes).filter_map(Result::ok).find(|nla| nla.kind() == kind)?;
    let start = found.value().as_ptr() as usize - attributes.as_ptr() as usize;
    attributes.get(start..start + found.value().len())
}

fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*value.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((4 + value.len() as u16).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn tuple_of(protocol: u8, from: ([u8; 4], u16), to: ([u8; 4], u16)) -> Vec<u8> {
        /// `NLA_F_NESTED`, which the kernel sets.
        const NESTED: u16 = 1 << 15;
        let ip = [attribute(kind::V4_SRC, &from.0), attribute(kind::V4_DST, &to.0)].concat();
        let transport = [
            attribute(kind::PROTO_NUM, &[protocol]),
            attribute(kind::SRC_PORT, &from.1.to_be_bytes()),
            attribute(kind::DST_PORT, &to.1.to_be_bytes()),
        ]
        .concat();
        [attribute(NESTED | kind::TUPLE_IP, &ip), attribute(NESTED | kind::TUPLE_PROTO, &transport)].concat()
    }

    fn entry(status: u32, protocol: u8) -> Vec<u8> {
        const CLIENT: [u8; 4] = [10, 0, 0, 2];
        [
            attribute(kind::TUPLE_ORIG, &tuple_of(protocol, (CLIENT, 5000), ([10, 96, 0, 1], 80))),
            attribute(
                kind::TUPLE_REPLY,
                &tuple_of(protocol, ([10, 0, 1, 1], 8080), ([192, 168, 0, 1], 61_000)),
            ),
            attribute(kind::STATUS, &status.to_be_bytes()),
            attribute(kind::TIMEOUT, &86_390_u32.to_be_bytes()),
        ]
        .concat()
    }

    #[test]
    fn an_entry_is_read_with_its_ends_before_and_after_translation() {
        let found = translated(&entry(DST_NAT | 0x18e, 6)).expect("translated");
        let end = |text: &str| {
            let socket: std::net::SocketAddr = text.parse().unwrap();
            Endpoint { address: socket.ip().into(), port: socket.port() }
        };
        let expected = Translated {
            protocol: Protocol::Tcp,
            client: end("10.0.0.2:5000"),
            dialled: end("10.96.0.1:80"),
            backend: end("10.0.1.1:8080"),
            answered: end("192.168.0.1:61000"),
            seconds: 86_390,
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn entries_that_are_nothing_of_services_are_passed_over() {
        assert_eq!(translated(&entry(0x18e, 6)), None, "its destination is as it was");
        assert_eq!(translated(&entry(DST_NAT, 47)), None, "another protocol");
        let zoned = [entry(DST_NAT, 17), attribute(kind::ZONE, &[0, 7])].concat();
        assert_eq!(translated(&zoned), None, "another zone");
        let whole = entry(DST_NAT, 17);
        for length in 0..whole.len() - 8 {
            translated(&whole[..length]);
        }
    }
}
