//! Taking over from another proxy: the list of the connections that it began and netfilter goes on to translate, for as long as
//! netfilter remembers them (ADR 0012).

use std::{collections::HashSet, io, os::fd::AsFd, path::Path};

use proxy_common::{
    Address,
    datapath::{Call, Endpoint, lookup::lookup, packet::key_of},
    layout::{FlowKey, HandedOver, PacketPlane, Position},
    names::map,
};
use zerocopy::{FromBytes, IntoBytes, TryFromBytes};

use super::{
    Error,
    conntrack::{self, Translated},
    flows, pinned,
    pins::Pins,
    sys::{self, Map},
};
use crate::plan::View;

/// Entries that are written at once.
const BATCH: usize = 1024;

/// What is left to netfilter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handover {
    /// Connections.
    pub connections: usize,
    /// All of them are listed; else every packet in the middle of a connection that is no flow of ours is left alone.
    pub listed: bool,
}

/// Before any program is attached to a device: list what netfilter translates, whoever may serve it, and let the programs
/// leave alone what they meet in the middle of a connection.
///
/// Without connection tracking there is nothing to take over. What fails must not keep new connections from being served.
pub(super) fn begin(pins: &Pins) {
    if let Err(error) = list_all(pins) {
        tracing::warn!("connections of the proxy before will be reset: {error}");
    }
}

fn list_all(pins: &Pins) -> Result<(), Error> {
    if !conntrack::is_tracking() {
        return Ok(());
    }
    // A first generation is not yet where it will be.
    let place = |name| Some(pins.next(name)).filter(|next| next.exists()).unwrap_or_else(|| pins.map(name));
    let mut list = List::open(&place(map::HANDED_OVER))?;
    conntrack::each_translated(|found| list.add(found)).map_err(untold)?;
    list.flush();
    if list.connections > 0 {
        tracing::info!(
            connections = list.connections,
            "netfilter translates connections: they are left to it"
        );
        set_word(&place(map::PACKET_PLANE), PacketPlane::TAKING_OVER)?;
    }
    Ok(())
}

/// Compare the list with what netfilter remembers of connections to addresses that are served here. `None`: nothing is left,
/// and the handover is over.
///
/// # Errors
/// Nothing is pinned, the kernel refused to read or write the tables, or to tell what it tracks.
pub fn look(pin_path: &Path) -> Result<Option<Handover>, Error> {
    let pins = Pins::new(pin_path);
    let word = pinned::pinned_packet_plane(pin_path)?.handover;
    let mut list = List::open(&pins.map(map::HANDED_OVER))?;
    if conntrack::is_tracking() {
        let mut tables = None;
        let mut failed = None;
        let told = conntrack::each_translated(|found| {
            if tables.is_none() {
                match pinned::read_pinned(pin_path) {
                    Ok(read) => tables = Some(read),
                    Err(error) => failed = Some(error),
                }
            }
            if let Some((actual, node)) = &tables {
                let Endpoint { address, port } = found.dialled;
                let call = Call { address, port, protocol: found.protocol };
                if lookup(&View { actual, node: Some(*node) }, &call).is_ok() {
                    list.add(found);
                }
            }
        });
        told.map_err(untold)?;
        if let Some(error) = failed {
            return Err(error);
        }
    }
    list.flush();
    let (left, full) = (list.connections, list.full);
    let next = match (left, full) {
        (0, _) => 0,
        (_, false) => PacketPlane::LISTED,
        (_, true) => PacketPlane::TAKING_OVER,
    };
    // A program that still reads the old word leaves alone what the list has: it is shortened last.
    if next != word {
        set_word(&pins.map(map::PACKET_PLANE), next)?;
    }
    list.shorten().map_err(failed("shorten"))?;
    Ok((left > 0).then_some(Handover { connections: left, listed: !full }))
}

/// What is left to netfilter, as the tables say: whether or not an agent runs. `None`: nothing.
///
/// # Errors
/// Nothing is pinned there, or this process may not look.
pub fn pinned_handover(pin_path: &Path) -> Result<Option<Handover>, Error> {
    let word = pinned::pinned_packet_plane(pin_path)?.handover;
    if word == 0 {
        return Ok(None);
    }
    let map = Map::open(&Pins::new(pin_path).map(map::HANDED_OVER)).map_err(failed("open"))?;
    let now = sys::monotonic_seconds();
    let mut connections = 0;
    let read = map.each(|_, value| {
        let found = HandedOver::read_from_bytes(value).ok();
        let is_one = |found: &HandedOver| !found.backend().is_unspecified() && found.is_alive(now);
        connections += usize::from(found.as_ref().is_some_and(is_one));
    });
    read.map_err(failed("read"))?;
    Ok(Some(Handover { connections, listed: word == PacketPlane::LISTED }))
}

fn untold(source: io::Error) -> Error {
    let what = "ask netfilter what it tracks (module nf_conntrack_netlink, CAP_NET_ADMIN)".into();
    Error::Kernel { what, source }
}

fn failed(what: &str) -> impl FnOnce(io::Error) -> Error {
    let what = format!("{what} the map {}", map::HANDED_OVER);
    move |source| Error::Kernel { what, source }
}

fn set_word(path: &Path, word: u32) -> Result<(), Error> {
    flows::change_settings(path, |plane| PacketPlane { handover: word, ..plane }).map(drop)
}

/// The table `handed_over`, as it is written.
struct List {
    map: Map,
    now: u32,
    keys: Vec<u8>,
    values: Vec<u8>,
    connections: usize,
    /// It has no room for all.
    full: bool,
    /// Those that were written, so that one that is told twice counts once.
    seen: HashSet<FlowKey>,
}

impl List {
    fn open(path: &Path) -> Result<Self, Error> {
        let map = Map::open(path).map_err(failed("open"))?;
        let now = sys::monotonic_seconds();
        let (keys, values) = (Vec::new(), Vec::new());
        Ok(Self { map, now, keys, values, connections: 0, full: false, seen: HashSet::new() })
    }

    fn add(&mut self, found: &Translated) {
        const NOBODY: Endpoint = Endpoint { address: Address::ANY_V6, port: 0 };
        let key = |from, to| key_of(from, to, found.protocol, Position::Ingress);
        let dialled = key(&found.client, &found.dialled);
        if !self.seen.insert(dialled) {
            return;
        }
        self.connections += 1;
        self.put(dialled, found.backend, found.seconds);
        if found.answered != found.client {
            self.put(key(&found.backend, &found.answered), NOBODY, found.seconds);
        }
    }

    fn put(&mut self, key: FlowKey, backend: Endpoint, seconds: u32) {
        let value = HandedOver {
            backend: backend.address.octets(),
            until: self.now.wrapping_add(seconds),
            found: self.now,
            backend_port: backend.port,
            version: HandedOver::VERSION,
            reserved: 0,
        };
        self.keys.extend(key.as_bytes());
        self.values.extend(value.as_bytes());
        if self.keys.len() >= BATCH * size_of::<FlowKey>() {
            self.flush();
        }
    }

    /// What has no room is not listed; then the list is not all that there is.
    fn flush(&mut self) {
        let count = (self.keys.len() / size_of::<FlowKey>()) as u32;
        if count > 0 {
            let (_, result) = sys::update_batch(self.map.as_fd(), &self.keys, &self.values, count);
            if let Err(error) = result {
                tracing::debug!("the map {} does not take more: {error}", map::HANDED_OVER);
                self.full = true;
            }
        }
        self.keys.clear();
        self.values.clear();
    }

    /// Forget what was not found this time.
    fn shorten(&self) -> io::Result<()> {
        let mut stale = Vec::new();
        self.map.each(|key, value| {
            let found = HandedOver::read_from_bytes(value).is_ok_and(|value| value.found == self.now);
            if !found && FlowKey::try_read_from_bytes(key).is_ok() {
                stale.push(key.to_vec());
            }
        })?;
        for key in stale {
            sys::delete(self.map.as_fd(), &key)?;
        }
        Ok(())
    }
}
