//! The layouts as text: a change that moves a byte is seen in review, and `cargo xtask tidy` asks for a new version.

use std::fmt::Write;

use proxy_common::layout::{
    Affinity, AffinityKey, Backend, Connected, Datagram, Device, Flow, FlowKey, Fragment, FragmentKey,
    Frontend, FrontendKey, Gate, HandedOver, LocalAddress, LocalKey, MasqueradeAddress, MasqueradeKey, Node,
    PacketPlane, RangeKey, Service, ServiceName, Timeouts, Unconnected,
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
        Node { netns_cookie, layout_version, socket_plane, udp_timeout_seconds, owner, probe_address, probe_port, left_levels, guards }
        ServiceName { text }
        FlowKey { source, destination, source_port, destination_port, protocol, position, reserved }
        Flow { client, dialled, backend, masquerade, client_port, dialled_port, backend_port, shown_port, version, flags, client_state, backend_state, seen }
        FragmentKey { source, destination, id, protocol, position, reserved }
        Fragment { source_port, destination_port, protocol, version, reserved, seen }
        Device { mac, bridge_mac, header, role, pods, version, masquerade_v4, masquerade_v6, host, choices }
        MasqueradeKey { prefix_length, device, address }
        MasqueradeAddress { address }
        RangeKey { prefix_length, owner, address }
        Gate { judged, bare, reserved }
        HandedOver { backend, until, found, backend_port, version, reserved }
        PacketPlane { seed, version, handover, first_port, last_port, more_first_port, more_last_port, timeouts }
        Timeouts { tcp_syn_sent, tcp_syn_received, tcp_established, tcp_fin_wait, tcp_close_wait, tcp_last_ack, tcp_time_wait, tcp_close, udp, udp_stream, sctp_cookie, sctp_established, sctp_shutdown, sctp_closed }
    }
    let reviewed = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/layout.txt");
    if std::env::var_os("UPDATE_LAYOUT").is_some() {
        std::fs::write(reviewed, &text).unwrap();
    }
    let known = std::fs::read_to_string(reviewed).unwrap_or_default();
    assert_eq!(known, text, "UPDATE_LAYOUT=1 writes it anew; a moved byte needs a new LAYOUT_VERSION");
}
