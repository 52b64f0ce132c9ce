//! A listening socket that can be taken away at once.

use std::{io, net::SocketAddr};

use axum::{Router, serve::Listener};
use nix::sys::socket::{setsockopt, sockopt::Ipv6V6Only};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::oneshot,
};

/// Connections that may wait to be taken.
const BACKLOG: u32 = 1024;

/// An address that is answered at.
#[derive(Debug)]
pub(super) struct Open {
    stop: oneshot::Sender<()>,
    closed: oneshot::Receiver<()>,
}

/// Tells when it is dropped, and its socket with it.
struct Telling {
    listener: TcpListener,
    _closed: oneshot::Sender<()>,
}

impl Open {
    /// Answers `routes` at `address`. An IPv6 one takes no IPv4 connections: another server has those.
    pub(super) fn new(address: SocketAddr, routes: Router) -> io::Result<Self> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        if address.is_ipv6() {
            setsockopt(&socket, Ipv6V6Only, &true)?;
        }
        socket.bind(address)?;
        let (stop, stopped) = oneshot::channel();
        let (telling, closed) = oneshot::channel();
        let listener = Telling { listener: socket.listen(BACKLOG)?, _closed: telling };
        let server = axum::serve(listener, routes).with_graceful_shutdown(async {
            let _ = stopped.await;
        });
        tokio::spawn(async move { server.await });
        Ok(Self { stop, closed })
    }

    /// Returns when the address can be bound again. Requests that have arrived are answered still.
    pub(super) async fn close(self) {
        drop(self.stop);
        let _ = self.closed.await;
    }
}

impl Listener for Telling {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        Listener::accept(&mut self.listener).await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}
