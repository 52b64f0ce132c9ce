//! Filters of the clsact qdisc by netlink: how a program is attached to a device where the kernel has no tcx, or where
//! somebody else's filter is to run before it.
//!
//! Of a filter only what decides about order and ownership is read: foreign ones may be of any kind.

use std::io;

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkExtentMask, LinkMessage},
    tc::{TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption},
};
use rtnetlink::{
    packet_core::{
        Emitable, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkBuffer,
        NetlinkMessage, NlasIterator,
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

/// `TC_H_CLSACT`, with the number that stands for the qdisc itself.
const QDISC: u32 = 0xffff_0000;
const QDISC_PARENT: u32 = 0xffff_fff1;
/// `ETH_P_ALL` in network byte order, where a filter's protocol stands beside its priority.
const ALL: u32 = 0x0300;

const DONE: u16 = 3;
const ERROR: u16 = 2;
const KIND: u16 = 1;
const OPTIONS: u16 = 2;
const CHAIN: u16 = 11;
/// Of a filter's options, if its kind is `bpf`.
const PROGRAM_ID: u16 = 11;

/// A side of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// What comes in.
    Ingress,
    /// What goes out.
    Egress,
}

impl Side {
    /// `TC_H_MIN_INGRESS` and `TC_H_MIN_EGRESS` of clsact.
    fn parent(self) -> u32 {
        match self {
            Self::Ingress => 0xffff_fff2,
            Self::Egress => 0xffff_fff3,
        }
    }
}

/// A filter in the chain that packets take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Within its priority.
    pub handle: u32,
    /// Lower ones run first.
    pub priority: u16,
    /// Id of its program; 0: it has none.
    pub program: u32,
}

/// A netlink socket in the namespace of the thread that opens it.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
}

impl Netlink {
    /// Open one.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket })
    }

    /// Every device's ifindex and name.
    pub fn devices(&self) -> io::Result<Vec<(u32, String)>> {
        let mut request = LinkMessage::default();
        request.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let mut devices = Vec::new();
        self.ask(RouteNetlinkMessage::GetLink(request), NLM_F_DUMP, |payload| {
            const HEADER: usize = 16;
            const NAME: u16 = 3;
            let (Some(index), Some(rest)) = (payload.get(4..8), payload.get(HEADER..)) else { return };
            let index = u32::from_ne_bytes(index.try_into().unwrap_or_default());
            if let Some(name) = attribute(rest, NAME) {
                devices.push((index, String::from_utf8_lossy(name).trim_end_matches('\0').to_owned()));
            }
        })?;
        Ok(devices)
    }

    /// A device's filters, in the order in which they run.
    pub fn filters(&self, device: u32, side: Side) -> io::Result<Vec<Filter>> {
        let request = message(device, 0, side.parent(), 0);
        let mut filters = Vec::new();
        self.ask(RouteNetlinkMessage::GetTrafficFilter(request), NLM_F_DUMP, |payload| {
            let Some((header, rest)) = parts(payload) else { return };
            let chain = attribute(rest, CHAIN).and_then(number).unwrap_or(0);
            let handle = u32::from(header.handle);
            // Priorities themselves are told without a handle; other chains are only entered from this one.
            if handle == 0 || chain != 0 {
                return;
            }
            let program = match attribute(rest, KIND) {
                Some(b"bpf\0") => attribute(rest, OPTIONS).and_then(|of| attribute(of, PROGRAM_ID)),
                _ => None,
            };
            let program = program.and_then(number).unwrap_or(0);
            filters.push(Filter { handle, priority: (header.info >> 16) as u16, program });
        })?;
        Ok(filters)
    }

    /// Run a program as a filter; `is_new` or in the place of the one that is there, without a moment without.
    pub fn put(
        &self,
        device: u32,
        side: Side,
        filter: Filter,
        fd: u32,
        name: &str,
        is_new: bool,
    ) -> io::Result<()> {
        let mut request = message(device, filter.handle, side.parent(), info(filter.priority));
        let options = [
            TcFilterBpfOption::ProgFd(fd),
            TcFilterBpfOption::ProgName(name.to_owned()),
            TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
        ];
        request.attributes = vec![
            TcAttribute::Kind("bpf".to_owned()),
            TcAttribute::Options(options.map(TcOption::Bpf).into()),
        ];
        let flags = NLM_F_ACK | if is_new { NLM_F_CREATE | NLM_F_EXCL } else { 0 };
        self.ask(RouteNetlinkMessage::NewTrafficFilter(request), flags, |_| ())
    }

    /// Remove a filter.
    pub fn delete(&self, device: u32, side: Side, filter: Filter) -> io::Result<()> {
        let request = message(device, filter.handle, side.parent(), info(filter.priority));
        self.ask(RouteNetlinkMessage::DelTrafficFilter(request), NLM_F_ACK, |_| ())
    }

    /// Let a device have the clsact qdisc. False: it has `ingress`, which has no egress and excludes the other.
    pub fn add_clsact(&self, device: u32) -> io::Result<bool> {
        let mut request = message(device, QDISC, QDISC_PARENT, 0);
        request.attributes.push(TcAttribute::Kind("clsact".to_owned()));
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        match self.ask(RouteNetlinkMessage::NewQueueDiscipline(request), flags, |_| ()) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => self.has_clsact(device),
            result => result.map(|()| true),
        }
    }

    /// Remove a device's clsact qdisc if nobody's filter is left in it: an empty one does nothing.
    pub fn remove_empty_clsact(&self, device: u32) -> io::Result<()> {
        let is_empty = |side| self.filters(device, side).map(|filters| filters.is_empty());
        if !self.has_clsact(device)? || !is_empty(Side::Ingress)? || !is_empty(Side::Egress)? {
            return Ok(());
        }
        let request = message(device, QDISC, QDISC_PARENT, 0);
        self.ask(RouteNetlinkMessage::DelQueueDiscipline(request), NLM_F_ACK, |_| ())
    }

    fn has_clsact(&self, device: u32) -> io::Result<bool> {
        let mut found = false;
        let request = message(device, 0, 0, 0);
        self.ask(RouteNetlinkMessage::GetQueueDiscipline(request), NLM_F_DUMP, |payload| {
            let Some((header, rest)) = parts(payload) else { return };
            found |= header.index == device as i32 && attribute(rest, KIND) == Some(b"clsact\0");
        })?;
        Ok(found)
    }

    /// Send a request and hand over what comes for it, without the netlink header.
    fn ask(&self, request: RouteNetlinkMessage, flags: u16, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | flags;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let broken = |_| io::Error::new(io::ErrorKind::InvalidData, "a broken netlink message");
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let message = NetlinkBuffer::new_checked(rest).map_err(broken)?;
                let payload = message.payload();
                match message.message_type() {
                    DONE => return Ok(()),
                    ERROR => {
                        let code = payload
                            .get(..4)
                            .map_or(0, |code| i32::from_ne_bytes(code.try_into().unwrap_or_default()));
                        return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                    }
                    _ => each(payload),
                }
                let length = (message.length() as usize).next_multiple_of(4);
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }
}

fn message(device: u32, handle: u32, parent: u32, info: u32) -> TcMessage {
    let mut message = TcMessage::with_index(device as i32);
    message.header.handle = TcHandle::from(handle);
    message.header.parent = TcHandle::from(parent);
    message.header.info = info;
    message
}

fn info(priority: u16) -> u32 {
    u32::from(priority) << 16 | ALL
}

/// `tcmsg` and the attributes that follow it.
fn parts(payload: &[u8]) -> Option<(TcHeader, &[u8])> {
    const HEADER: usize = 20;
    Some((TcHeader::parse(payload).ok()?, payload.get(HEADER..)?))
}

fn attribute(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    let found = NlasIterator::new(attributes).filter_map(Result::ok).find(|nla| nla.kind() == kind)?;
    let start = found.value().as_ptr() as usize - attributes.as_ptr() as usize;
    attributes.get(start..start + found.value().len())
}

fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}
