//! Connected datagram sockets of the node's own whose backend serves no longer. Nothing of theirs can be rewritten on a device:
//! where the backend was on a link of this node, its neighbour entry ends before the packet meets one. So the kernel is told
//! to disconnect them, by sock_diag; the application gets ECONNABORTED, once, and dials again.
//!
//! Only a socket that has the record of a translated connect() is touched, and it is named by its cookie, so that
//! no other can be met that has taken its ports meanwhile.

use std::{collections::HashMap, io, net::SocketAddr, os::fd::AsFd};

use aya::{
    Btf, Ebpf,
    programs::{Program, ProgramFd},
};
use netlink_packet_sock_diag::{
    SockDiagDestroy, SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_UDP},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags},
};
use proxy_common::{
    Address,
    layout::{Connected, Remembered},
    names::{SOCKETS_PROGRAM, map},
};
use rtnetlink::{
    packet_core::{
        NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage, NetlinkPayload,
        NetlinkSerializable,
    },
    sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG},
};
use zerocopy::FromBytes;

use super::{
    Error, Peers,
    pins::Pins,
    sys::{self, Map},
};

/// A connected datagram socket of this network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Datagrams {
    family: u8,
    id: SocketId,
}

impl Datagrams {
    /// Whom it is connected to, IPv4 not mapped.
    fn peer(&self) -> SocketAddr {
        SocketAddr::new(self.id.destination_address.to_canonical(), self.id.destination_port)
    }

    fn request(&self) -> SockDiagMessage {
        request(self.family, self.id.clone())
    }
}

/// See [`super::Dataplane::release`].
pub(super) fn release(
    pins: &Pins,
    object: &mut Ebpf,
    left: Option<&Peers>,
    gone: &dyn Fn(&Connected) -> bool,
) -> Result<usize, Error> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |source| Error::Kernel { what, source }
    };
    let sockets = connected().map_err(failed("list the node's connected datagram sockets by sock_diag"))?;
    let candidates =
        sockets.into_iter().filter(|socket| left.is_none_or(|left| left.contains(&socket.peer())));
    let candidates: HashMap<u64, Datagrams> =
        candidates.map(|socket| (u64::from_ne_bytes(socket.id.cookie), socket)).collect();
    if candidates.is_empty() {
        return Ok(0);
    }
    let Some(program) = iterator(object) else { return Ok(0) };
    let said =
        Map::open(&pins.map(map::CONNECTED)).and_then(|map| sys::iterate(program.as_fd(), map.as_fd()));
    let said = said.map_err(failed("read what sockets remember of connect()"))?;
    let mut released = 0;
    for remembered in said.chunks_exact(size_of::<Remembered>()) {
        let Ok(Remembered { cookie, record }) = Remembered::read_from_bytes(remembered) else { continue };
        let backend = SocketAddr::new(Address::from_octets(record.backend).ip(), record.backend_port);
        if record.version == Connected::VERSION
            && let Some(socket) = candidates.get(&cookie)
            && socket.peer() == backend
            && gone(&record)
            && destroy(socket).map_err(failed("disconnect a datagram socket by sock_diag"))?
        {
            released += 1;
        }
    }
    Ok(released)
}

/// The program that tells what sockets remember, loaded when it is first of use. Before kernel 5.12 such a program can't name
/// a socket: there none is let go of.
fn iterator(object: &mut Ebpf) -> Option<&ProgramFd> {
    let Some(Program::Iter(program)) = object.program_mut(SOCKETS_PROGRAM) else { return None };
    if program.fd().is_err() {
        let loaded = Btf::from_sys_fs()
            .map_err(|error| error.to_string())
            .and_then(|btf| program.load("bpf_sk_storage_map", &btf).map_err(|error| error.to_string()));
        if let Err(error) = loaded {
            tracing::debug!("the node's own sockets keep endpoints that are gone: {error}");
        }
    }
    program.fd().ok()
}

/// All of this namespace.
fn connected() -> io::Result<Vec<Datagrams>> {
    let mut sockets = Vec::new();
    for (family, any) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        let found = ask(request(family, any), NLM_F_DUMP, |answer: SockDiagMessage| {
            if let SockDiagMessage::InetResponse(response) = answer {
                let InetResponse { header, .. } = *response;
                sockets.push(Datagrams { family: header.family, id: header.socket_id });
            }
        });
        match found {
            // Without IPv6, or without `udp_diag`, there is nobody to answer for it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => found?,
        }
    }
    Ok(sockets)
}

/// False: it is not there any more, or not the same.
fn destroy(socket: &Datagrams) -> io::Result<bool> {
    match ask(SockDiagDestroy::new(socket.request()), NLM_F_ACK, |_| ()) {
        Ok(()) => Ok(true),
        // Or the kernel was built without INET_DIAG_DESTROY.
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE | libc::EOPNOTSUPP)) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

fn request(family: u8, socket_id: SocketId) -> SockDiagMessage {
    SockDiagMessage::InetRequest(InetRequest {
        family,
        protocol: IPPROTO_UDP,
        extensions: ExtensionFlags::empty(),
        // Of a datagram socket: that it has a peer.
        states: StateFlags::ESTABLISHED,
        socket_id,
    })
}

/// Send a request and hear all answers.
fn ask<M>(message: M, flags: u16, mut hear: impl FnMut(M)) -> io::Result<()>
where
    M: NetlinkSerializable + NetlinkDeserializable + Into<NetlinkPayload<M>>,
{
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    socket.send(&bytes, 0)?;
    loop {
        let (answers, _) = socket.recv_from_full()?;
        let mut rest = &answers[..];
        while !rest.is_empty() {
            let broken =
                |_| io::Error::new(io::ErrorKind::InvalidData, "an answer of sock_diag that can't be read");
            let answer = NetlinkMessage::<M>::deserialize(rest).map_err(broken)?;
            // Messages are padded to four bytes.
            let length = (answer.header.length as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
            match answer.payload {
                NetlinkPayload::InnerMessage(answer) => hear(answer),
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) if error.code.is_none() => return Ok(()),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn connected_datagram_sockets_are_listed_with_their_peers_and_others_are_not() {
        let peers = ["127.0.0.1:9", "[::1]:9", "[::ffff:127.0.0.1]:9"];
        let sockets = peers.map(|peer| {
            let any = if peer.contains("127.0.0.1:") { "127.0.0.1:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).unwrap();
            socket.connect(peer.parse::<SocketAddr>().unwrap()).unwrap();
            socket
        });
        let plain = UdpSocket::bind("127.0.0.1:0").unwrap();
        let found = connected().unwrap();
        for (socket, peer) in sockets.iter().zip(["127.0.0.1:9", "[::1]:9", "127.0.0.1:9"]) {
            let port = socket.local_addr().unwrap().port();
            let own = found.iter().find(|found| found.id.source_port == port).expect(peer);
            assert_eq!(own.peer(), peer.parse().unwrap());
        }
        let port = plain.local_addr().unwrap().port();
        assert!(found.iter().all(|found| found.id.source_port != port));
    }
}
