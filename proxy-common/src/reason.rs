//! Every outcome of a call or packet that vipr's programs see. Each counts in exactly one.

macro_rules! reasons {
    ($($(#[doc = $help:literal])+ $name:ident = $value:literal, $text:literal;)+) => {
        /// Why a call or packet was treated as it was. The number is the index in the map `counters`; numbers are
        /// never reused for another meaning within one layout version.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Reason {
            $($(#[doc = $help])+ $name = $value,)+
        }

        impl Reason {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// Short name for counters and tables, `snake_case`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }

            /// One sentence for people.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$name => concat!($($help,)+).trim_ascii(),)+ }
            }
        }
    };
}

reasons! {
    /// The destination is no frontend: left as it is.
    NotService = 0, "not_service";
    /// The socket's protocol is neither TCP nor UDP: left as it is.
    OtherProtocol = 1, "other_protocol";
    /// connect() to a frontend was given a backend.
    Connected = 2, "connected";
    /// A datagram to a frontend was given a new backend.
    DatagramNew = 3, "datagram_new";
    /// A datagram to a frontend went to the backend its socket already used.
    DatagramKept = 4, "datagram_kept";
    /// Translated, but the kernel had no memory for the record: the application will see the backend's address.
    NoRecord = 5, "no_record";
    /// No endpoint anywhere: the call was refused (ECONNREFUSED).
    Refused = 6, "refused";
    /// No endpoint anywhere, and this call can't be refused here: left to the packet plane, which rejects it.
    RejectLeft = 7, "reject_left";
    /// Endpoints exist, but the traffic policy allows none of them here: left to the packet plane, which drops it.
    DropLeft = 8, "drop_left";
    /// A pod's call whose answer depends on the client's address: left to the packet plane.
    ClientLeft = 9, "client_left";
    /// The node itself is outside the load balancer's source ranges: left to the packet plane, which drops it.
    HostDenied = 10, "host_denied";
    /// Loopback of a pod: its own, whatever NodePorts exist.
    PodLoopback = 11, "pod_loopback";
    /// A NodePort's number, but the destination is no address of this node that serves NodePorts.
    NotNodePort = 12, "not_node_port";
    /// A frontend whose service is not programmed yet, or no longer: left as it is.
    Unprogrammed = 13, "unprogrammed";
    /// The tables were changed twice while they were read: left as it is.
    Torn = 14, "torn";
    /// The socket plane does not serve this socket (`--socket-plane`).
    PlaneOff = 15, "plane_off";
    /// recvmsg(): the source was shown as the address that was dialled.
    SourceRestored = 16, "source_restored";
    /// recvmsg(): the source is no backend of this socket: left as it is.
    SourcePlain = 17, "source_plain";
    /// getpeername(): the peer was shown as the address that was dialled.
    PeerRestored = 18, "peer_restored";
    /// getpeername(): the peer is no backend of this socket: left as it is.
    PeerPlain = 19, "peer_plain";
    /// The node's settings are missing: left as it is. The agent writes them before it attaches anything.
    NoNode = 20, "no_node";
    /// A packet that is neither IPv4 nor IPv6: left as it is.
    NotIp = 21, "not_ip";
    /// A packet that is cut short or contradicts itself: left as it is, the stack judges it.
    Malformed = 22, "malformed";
    /// A packet with a VLAN tag: its VLAN device will see it.
    Tagged = 23, "tagged";
    /// A packet that is not addressed to this host at layer 2: left as it is.
    NotForHost = 24, "not_for_host";
    /// A packet that carries no TCP, UDP or SCTP that can be read: left as it is.
    OtherTransport = 25, "other_transport";
    /// A packet that another device's program translated in this pass: left as it is.
    AlreadyTranslated = 26, "already_translated";
    /// A packet opened a flow and went to a backend.
    FlowOpened = 27, "flow_opened";
    /// A packet of a known flow went to its backend.
    FlowKept = 28, "flow_kept";
    /// A packet of a known flow went to another backend, because its own serves no longer or the flow had ended.
    FlowMoved = 29, "flow_moved";
    /// A packet to a backend was given this node's address as its source.
    Masqueraded = 30, "masqueraded";
    /// A backend's answer to this node was given to the client that it is for.
    Unmasqueraded = 31, "unmasqueraded";
    /// A backend's answer was shown as from the address that was dialled.
    ReplyRestored = 32, "reply_restored";
    /// A packet to a load balancer from outside its source ranges: dropped.
    SourceDenied = 33, "source_denied";
    /// Endpoints exist, but the traffic policy allows none of them here: the packet was dropped.
    PolicyDropped = 34, "policy_dropped";
    /// No endpoint anywhere: the packet was answered with port unreachable.
    Rejected = 35, "rejected";
    /// A packet of the node's own that would have left for an address that only translation gives a meaning: dropped.
    GuardDropped = 36, "guard_dropped";
    /// No port was free to masquerade with, or to tell two flows apart: dropped.
    NoPort = 37, "no_port";
    /// The device has no address to masquerade with: dropped.
    NoMasqueradeAddress = 38, "no_masquerade_address";
    /// A packet of a connection that another proxy began before vipr took over: left to netfilter, which translates it.
    HandedOver = 39, "handed_over";
    /// An ICMP error about a translated packet was translated with it.
    ErrorTranslated = 40, "error_translated";
    /// An ICMP error about a packet of no flow: left as it is.
    ErrorPlain = 41, "error_plain";
    /// An ICMP redirect about a translated packet: dropped, followed it would lead past the translation.
    RedirectDropped = 42, "redirect_dropped";
    /// A fragment whose first one was not seen, or was none of ours: left as it is.
    FragmentPlain = 43, "fragment_plain";
    /// A fragmented SCTP message whose port would change: dropped, its checksum needs the whole.
    FragmentedSctp = 44, "fragmented_sctp";
    /// The packet plane's settings are missing: left as it is.
    NoPacketPlane = 45, "no_packet_plane";
    /// A packet could not be rewritten: dropped.
    NotRewritten = 46, "not_rewritten";
    /// A packet on a device that the agent has not described (yet): left as it is.
    UnknownDevice = 47, "unknown_device";
    /// To be refused, but many senders were told so in this second: dropped.
    RejectedSilently = 48, "rejected_silently";
    /// A pod's connected socket sent to a backend that serves no longer: its packet went to another one.
    FlowRepaired = 49, "flow_repaired";
    /// The socket of a pod that asks to be left to the packet plane (annotation `vipr/socket-plane: "off"`).
    PodLeft = 50, "pod_left";
    /// A ClusterIP, but no port that its Service declares, or a packet without ports like a ping (mode nftables): refused; a call that can't be is left to the packet plane.
    PortUndeclared = 51, "port_undeclared";
    /// An address of the Services' ranges that no Service has (mode nftables): dropped; a call is left to the packet plane.
    AddressUnallocated = 52, "address_unallocated";
    /// The node dials itself, endpoints exist, but the traffic policy allows none of them here: connect() failed (ETIMEDOUT).
    TimedOut = 53, "timed_out";
    /// A datagram of the node's own that the traffic policy allows no endpoint: the call failed (EPERM).
    Denied = 54, "denied";
    /// A packet of a connection that was begun on this node from a NodePort's number or another frontend's: left as it is, and so
    /// are its answers.
    OwnConnection = 55, "own_connection";
    /// A packet with an address of loopback, on a device: dropped, for no socket but the node's own may be reached by it.
    Martian = 56, "martian";
    /// A later fragment that is for a Service and came before its first one, which alone says to whom it goes: dropped.
    FragmentEarly = 57, "fragment_early";
}

/// Entries of the map `counters`: room for more reasons without a change of its shape.
pub const COUNTERS: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_dense_so_that_the_counters_array_has_no_holes() {
        for (i, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i, "{reason:?}");
        }
        assert!(Reason::ALL.len() <= COUNTERS as usize);
    }

    #[test]
    fn every_reason_has_a_name_and_a_sentence() {
        for reason in Reason::ALL {
            assert!(
                !reason.name().is_empty() && reason.help().ends_with('.'),
                "{reason:?}: {}",
                reason.help()
            );
        }
    }
}
