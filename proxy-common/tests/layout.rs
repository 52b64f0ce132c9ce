//! The layouts as text: a change that moves a byte is seen in review, and `cargo xtask tidy` asks for a new version.

use std::fmt::Write;

use proxy_common::layout::{
    Affinity, AffinityKey, Backend, Connected, Datagram, Frontend, FrontendKey, LocalAddress, LocalKey, Node,
    Service, ServiceName, Unconnected,
};
use proxy_common::names::LAYOUT_VERSION;

macro_rules! layout {
    ($out:ident: $($type:ident { $($field:ident),+ $(,)? })+) => {
        $(
            writeln!($out, "{} size {} align {}", stringify!($type), size_of::<$type>(), align_of::<$type>()).unwrap();
            $(writeln!($out, "  {:4} {}", std::mem::offset_of!($type, $field), stringify!($field)).unwrap();)+
        )+
    };
}

#[test]
fn layouts_are_those_that_were_reviewed() {
    let mut text = String::new();
    writeln!(text, "version {LAYOUT_VERSION}").unwrap();
    layout! { text:
        FrontendKey { address, port, protocol, reserved }
        Frontend { service, kind, host_denied, reserved }
        Service { extent, affinity_seconds }
        Backend { address, port, role, reserved, service, cluster_only, both, local_only, policy }
        AffinityKey { service, kind, client }
        Affinity { address, port, version, last_used }
        Connected { dialled, backend, dialled_port, backend_port, version }
        Unconnected { slots, last, version }
        Datagram { dialled, backend, dialled_port, backend_port, seen }
        LocalKey { prefix_length, address }
        LocalAddress { node_port }
        Node { netns_cookie, layout_version, socket_plane, udp_timeout_seconds, owner, probe_address, probe_port }
        ServiceName { text }
    }
    let reviewed = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/layout.txt");
    if std::env::var_os("UPDATE_LAYOUT").is_some() {
        std::fs::write(reviewed, &text).unwrap();
    }
    let known = std::fs::read_to_string(reviewed).unwrap_or_default();
    assert_eq!(known, text, "UPDATE_LAYOUT=1 writes it anew; a moved byte needs a new LAYOUT_VERSION");
}
