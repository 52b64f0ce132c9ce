//! What this kernel can do, asked of the verifier and not read off a version: distributions backport.

use std::{
    io,
    net::{Ipv4Addr, UdpSocket},
    os::fd::AsRawFd,
    path::Path,
};

use aya_obj::generated::{bpf_attach_type, bpf_func_id, bpf_prog_type};

use super::{Error, sys, tables::Tables};

/// Switches of the object, set when it is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// `bpf_set_retval` in connect hooks (kernel 5.18): a refused call gets its error at once.
    pub set_retval: bool,
    /// `bpf_ktime_get_coarse_ns` (kernel 5.11): a clock read for 5 ns instead of 28.
    pub coarse_clock: bool,
    /// `SO_NETNS_COOKIE` (kernel 5.14): the agent can ask for its network namespace's cookie; `None`: a program must.
    pub netns_cookie: Option<u64>,
    /// tcx links (kernel 6.6): programs on devices have an order, and outlive the agent by a pin.
    pub tcx: bool,
}

impl Features {
    /// Ask the kernel.
    pub fn probe() -> Self {
        let in_connect = |helper: bpf_func_id| {
            sys::accepts_helper(
                bpf_prog_type::BPF_PROG_TYPE_CGROUP_SOCK_ADDR as u32,
                bpf_attach_type::BPF_CGROUP_INET4_CONNECT as u32,
                helper as i32,
            )
        };
        Self {
            set_retval: in_connect(bpf_func_id::BPF_FUNC_set_retval),
            coarse_clock: in_connect(bpf_func_id::BPF_FUNC_ktime_get_coarse_ns),
            netns_cookie: netns_cookie().ok(),
            // Loopback, which is first in every namespace, is only asked.
            tcx: sys::tcx_query(1, bpf_attach_type::BPF_TCX_INGRESS as u32).is_ok(),
        }
    }
}

/// The cookie of this thread's network namespace.
fn netns_cookie() -> io::Result<u64> {
    let socket = UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("[::1]:0"))?;
    sys::netns_cookie(socket.as_raw_fd())
}

/// Learn the cookie of this network namespace from the connect4 program.
///
/// # Errors
/// The kernel refused to read or write the map `node`, or the program did not answer.
pub(super) fn netns(tables: &Tables, cgroup: &Path) -> Result<(), Error> {
    let Some(mut node) = tables.node()? else { return Ok(()) };
    // Nothing is sent: connect() of a datagram socket only picks a route. 127.86.73.80 is nobody's.
    let (address, port) = (Ipv4Addr::new(127, 86, 73, 80), std::process::id() as u16 | 1);
    // What is known stays until the answer comes: programs read it all the time.
    node.probe_address = u32::from_ne_bytes(address.octets());
    node.probe_port = u32::from(port);
    tables.set_node(&node)?;
    let dialled = UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.connect((address, port)));
    let answered = tables.node()?.is_some_and(|node| node.probe_address == 0);
    if answered {
        return Ok(());
    }
    node.probe_address = 0;
    tables.set_node(&node)?;
    dialled.map_err(|source| Error::Kernel { what: "dial the netns probe".into(), source })?;
    Err(Error::Kernel {
        what: format!(
            "learn the network namespace's cookie: the agent does not run below the cgroup {}",
            cgroup.display()
        ),
        source: io::Error::from_raw_os_error(libc::ENOENT),
    })
}
