//! The programs that parts need, each with the Debian package that brings it.

use super::apt::Tool;

/// What the lab runs, and the packages that bring it.
pub(super) const LAB: &[Tool] = &[
    ("bpftool", "bpftool"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("nft", "nftables"),
    ("conntrack", "conntrack"),
    ("tcpdump", "tcpdump"),
    ("iperf3", "iperf3"),
    ("nsenter", "util-linux"),
    ("setpriv", "util-linux"),
    ("sysctl", "procps"),
    ("ethtool", "ethtool"),
];

/// What the kernels run in, and what takes their packages apart.
pub(super) const KERNELS: &[Tool] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("modprobe", "kmod"),
    ("cpio", "cpio"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
    ("lz4", "lz4"),
    ("gzip", "gzip"),
    ("dash", "dash"),
    ("objcopy", "binutils"),
    ("ip", "iproute2"),
    ("switch_root", "util-linux"),
    ("ethtool", "ethtool"),
];
