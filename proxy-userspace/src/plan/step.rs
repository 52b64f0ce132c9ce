//! One write each. A plan is a list of these in an order in which any prefix is safe.

use std::fmt;

use proxy_common::{
    Address,
    layout::{
        Backend, Device, Frontend, FrontendKey, LocalAddress, LocalKey, MasqueradeAddress, MasqueradeKey,
        RangeKey, Service,
    },
};

/// One write to the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write a header and its endpoints into free slots, from slot `base` on.
    WriteExtent {
        /// Index in `backends`.
        base: u32,
        /// Header, then endpoints.
        slots: Box<[Backend]>,
    },
    /// Make `service.extent` the current one: one atomic 8-byte store.
    PointService {
        /// Index in `services`.
        index: u32,
        /// The word.
        service: Service,
    },
    /// Write the name of a service, for people.
    NameService {
        /// Index in `services`.
        index: u32,
        /// `namespace/name:port/protocol/family`.
        name: String,
    },
    /// Remove the name of a service.
    UnnameService {
        /// Index in `services`.
        index: u32,
    },
    /// Insert a frontend, or change where it leads.
    PutFrontend {
        /// What is dialled.
        key: FrontendKey,
        /// Where it leads.
        value: Frontend,
    },
    /// Remove a frontend.
    DeleteFrontend {
        /// What is no longer dialled.
        key: FrontendKey,
    },
    /// Insert or change an address of the node.
    PutLocalAddress {
        /// The range.
        key: LocalKey,
        /// What it does.
        value: LocalAddress,
    },
    /// Remove an address of the node.
    DeleteLocalAddress {
        /// The range.
        key: LocalKey,
    },
    /// Tell the programs of a device, or that something of it is different.
    PutDevice {
        /// Its ifindex.
        index: u32,
        /// What they are told.
        device: Device,
    },
    /// Remove what the programs were told of a device.
    DeleteDevice {
        /// Its ifindex.
        index: u32,
    },
    /// Insert a range of addresses.
    PutRange {
        /// Whose it is, and the range.
        key: RangeKey,
    },
    /// Remove a range of addresses.
    DeleteRange {
        /// Whose it was, and the range.
        key: RangeKey,
    },
    /// Masquerade with another address towards a range, or change with which.
    PutMasquerade {
        /// The device and the range.
        key: MasqueradeKey,
        /// The address.
        value: MasqueradeAddress,
    },
    /// Masquerade with the device's own choice again.
    DeleteMasquerade {
        /// The device and the range.
        key: MasqueradeKey,
    },
    /// Look for the calling process at these levels of cgroups, among those that are left alone; none: not at all.
    SetLeftLevels {
        /// Bit `n`: level `n`.
        levels: u32,
    },
    /// Attach the packet plane's programs to a device: by the time that the tables are activated.
    Attach {
        /// Its ifindex.
        index: u32,
        /// Its name, for people.
        name: String,
    },
    /// Detach them; at once.
    Detach {
        /// The device's ifindex.
        index: u32,
    },
    /// Write one word of the bitmap of ports in use: bit `b` of word `w` is port `64 * w + b`.
    SetPorts {
        /// Index in `ports`, 0 to 1023.
        word: u32,
        /// The ports in use.
        bits: u64,
    },
    /// Write one word of the bitmap of the frontends' addresses ([`proxy_common::layout::Spot`]).
    SetAddresses {
        /// Index in `addresses`.
        word: u32,
        /// The bits that are set.
        bits: u64,
    },
    /// Wait until no program runs that started before: what was unlinked is then unused (10–20 ms).
    Fence,
    /// Zero `length` slots that no service points at, after a [`Step::Fence`]: they are free from here on.
    ClearExtent {
        /// First slot.
        base: u32,
        /// Slots.
        length: u32,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WriteExtent { base, slots } => {
                write!(f, "write extent {base} ({} endpoints)", slots.len().saturating_sub(1))
            }
            Self::PointService { index, service } => {
                write!(f, "point service {index} at extent {}", service.extent)
            }
            Self::NameService { index, name } => write!(f, "name service {index} {name}"),
            Self::UnnameService { index } => write!(f, "remove the name of service {index}"),
            Self::PutFrontend { key, value } => {
                write!(f, "put frontend {}:{}/{} → {}", key.address(), key.port, key.protocol, value.service)
            }
            Self::DeleteFrontend { key } => {
                write!(f, "delete frontend {}:{}/{}", key.address(), key.port, key.protocol)
            }
            Self::PutLocalAddress { key, value } => {
                write!(f, "put local address {key:?} (node ports: {})", value.node_port)
            }
            Self::DeleteLocalAddress { key } => write!(f, "delete local address {key:?}"),
            Self::PutDevice { index, device } => {
                write!(f, "put device {index} ({:?}, pods: {:?})", device.role, device.pods)
            }
            Self::DeleteDevice { index } => write!(f, "delete device {index}"),
            Self::PutRange { key } => write!(f, "put range {}", Range(key)),
            Self::DeleteRange { key } => write!(f, "delete range {}", Range(key)),
            Self::PutMasquerade { key, value } => {
                let address = Address::from_octets(value.address);
                write!(f, "put masquerade {} → {address}", Towards(key))
            }
            Self::DeleteMasquerade { key } => write!(f, "delete masquerade {}", Towards(key)),
            Self::SetLeftLevels { levels } => write!(f, "look for cgroups at levels {levels:#b}"),
            Self::Attach { index, name } => write!(f, "attach to {name} ({index})"),
            Self::Detach { index } => write!(f, "detach from device {index}"),
            Self::SetPorts { word, bits } => write!(f, "set ports {}.. to {bits:#x}", word * 64),
            Self::SetAddresses { word, bits } => write!(f, "set addresses {word} to {bits:#x}"),
            Self::Fence => f.write_str("fence"),
            Self::ClearExtent { base, length } => write!(f, "clear {length} slots at {base}"),
        }
    }
}

/// A device and a range for people.
struct Towards<'a>(&'a MasqueradeKey);

impl fmt::Display for Towards<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MasqueradeKey { prefix_length, device, address } = self.0;
        let address = Address::from_octets(*address);
        let length = prefix_length.saturating_sub(if address.is_v4() { 128 } else { 32 });
        write!(f, "{address}/{length} by device {device}")
    }
}

/// A range for people.
struct Range<'a>(&'a RangeKey);

impl fmt::Display for Range<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RangeKey { prefix_length, owner, address } = self.0;
        if let (RangeKey::GROUPS, [.., a, b, c, d, e, f_, g, h]) = (*owner, address) {
            let id = u64::from_be_bytes([*a, *b, *c, *d, *e, *f_, *g, *h]);
            return write!(f, "of cgroup {id}");
        }
        let address = Address::from_octets(*address);
        let length = prefix_length.saturating_sub(if address.is_v4() { 128 } else { 32 });
        match *owner {
            RangeKey::PODS => write!(f, "{address}/{length} of the pods"),
            owner => write!(f, "{address}/{length} of service {owner}"),
        }
    }
}
