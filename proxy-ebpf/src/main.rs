//! vipr's programs in the kernel. They read (a call, a packet, maps), decide, and apply; the deciding is
//! `proxy_common::datapath`, where `cargo test` and `vipr explain` reach it.
//!
//! One file a hook in `programs/`; maps in [`maps`]; the traits that the decisions read through in [`kernel`].
#![no_std]
#![feature(asm_experimental_arch)]
#![no_main]

mod call;
mod count;
mod desk;
mod frame;
mod kernel;
mod maps;
mod plane;
mod programs {
    //! The hooks, one file for each kind.
    pub(crate) mod connect;
    pub(crate) mod datagram;
    pub(crate) mod packet;
    pub(crate) mod peername;
    pub(crate) mod sockets;
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: the verifier refuses a program that could.
    loop {}
}

/// The kernel's licence check for helpers that are GPL only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
