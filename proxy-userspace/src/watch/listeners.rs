//! Which of the asked addresses and ports a socket of the node listens at, by sock_diag.
//!
//! The kernel tells nobody when a socket begins to listen, so it is asked again and again, as long as there is anything to
//! ask: once for each address and port, by the lookup that it makes for a packet. So sockets of all addresses count,
//! and those of IPv6 that serve IPv4 too.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use anyhow::{Context, Result};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP},
    inet::{ExtensionFlags, InetRequest, SocketId, StateFlags},
};
use proxy_common::{Protocol, layout::FrontendKey};
use rtnetlink::{
    packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG},
};
use tokio::{
    sync::{mpsc::Sender, watch},
    time::sleep,
};

use super::{Event, What};
use crate::model::{Change, Questions, Source};

/// How long a listener that comes or goes is not noticed.
const PERIOD: Duration = Duration::from_millis(500);

/// Answers [`Questions::listeners`] until nobody listens to that. The first answer is told in any case, later ones if
/// they differ.
pub async fn follow(mut asked: watch::Receiver<Questions>, to: Sender<Event>) {
    let mut last = None;
    loop {
        let question = asked.borrow_and_update().clone();
        let found = question.listeners.iter().map(|key| Ok((*key, listens(key)?)));
        let found: Result<BTreeMap<_, _>> = found.collect();
        let what = match found {
            Ok(all) => What::Change { change: Change::Listeners(all), trigger: None },
            Err(error) => What::Broken { why: format!("{error:#}; what is known so far stays") },
        };
        if last.as_ref() != Some(&what) {
            if to.send(Event::now(Source::Listeners, what.clone())).await.is_err() {
                return;
            }
            last = Some(what);
        }
        let again = async {
            if question.listeners.is_empty() {
                std::future::pending::<()>().await;
            }
            sleep(PERIOD).await;
        };
        let changed = async {
            if asked.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = to.closed() => return,
            () = again => {}
            () = changed => {}
        }
    }
}

/// Whether a packet from anywhere to this address and port would meet a socket that waits for it.
fn listens(key: &FrontendKey) -> Result<bool> {
    ask(key).with_context(|| {
        format!("ask for the socket at {}:{}/{} by sock_diag", key.address(), key.port, key.protocol)
    })
}

fn ask(key: &FrontendKey) -> io::Result<bool> {
    let address = key.address().ip();
    let anybody: IpAddr =
        if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let (source, destination) = ((address, key.port), (anybody, 0));
    let (protocol, source, destination) = match key.protocol {
        Protocol::Udp => (IPPROTO_UDP, destination, source),
        // The kernel has the own end where the name says so for TCP, and the other way round for UDP.
        _ => (IPPROTO_TCP, source, destination),
    };
    let request = SockDiagMessage::InetRequest(InetRequest {
        family: if address.is_ipv4() { AF_INET } else { AF_INET6 },
        protocol,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: SocketId {
            source_port: source.1,
            destination_port: destination.1,
            source_address: source.0,
            destination_address: destination.0,
            interface_id: 0,
            // INET_DIAG_NOCOOKIE: whichever it is.
            cookie: [0xff; 8],
        },
    });
    let mut message = NetlinkMessage::from(request);
    message.header.flags = NLM_F_REQUEST;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&bytes, 0)?;
    // The kernel has answered before it returns from that.
    let (answer, _) = socket.recv_from_full()?;
    let broken = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let answer = NetlinkMessage::<SockDiagMessage>::deserialize(&answer).map_err(broken)?;
    match answer.payload {
        NetlinkPayload::InnerMessage(_) => Ok(true),
        NetlinkPayload::Error(error) if error.raw_code() == -libc::ENOENT => Ok(false),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "an answer of another kind")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    fn key(address: &str, port: u16, protocol: Protocol) -> FrontendKey {
        FrontendKey::new(address.parse::<IpAddr>().unwrap().into(), port, protocol)
    }

    #[test]
    fn a_listener_is_seen_at_its_address_and_a_wildcard_at_all_of_both_families() {
        let own = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = own.local_addr().unwrap().port();
        assert!(listens(&key("127.0.0.1", port, Protocol::Tcp)).unwrap());
        assert!(!listens(&key("127.0.0.2", port, Protocol::Tcp)).unwrap());
        assert!(!listens(&key("127.0.0.1", port, Protocol::Udp)).unwrap(), "of the other protocol");
        let all = UdpSocket::bind("[::]:0").unwrap();
        let port = all.local_addr().unwrap().port();
        for address in ["127.0.0.1", "127.9.9.9", "::1"] {
            assert!(listens(&key(address, port, Protocol::Udp)).unwrap(), "{address}");
        }
        drop(all);
        assert!(!listens(&key("::1", port, Protocol::Udp)).unwrap(), "it is gone");
    }

    #[test]
    fn connections_from_a_port_are_no_listeners_there() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
        let port = client.local_addr().unwrap().port();
        assert!(!listens(&key("127.0.0.1", port, Protocol::Tcp)).unwrap());
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        datagrams.connect("127.0.0.1:9").unwrap();
        let port = datagrams.local_addr().unwrap().port();
        assert!(!listens(&key("127.0.0.1", port, Protocol::Udp)).unwrap());
    }
}
