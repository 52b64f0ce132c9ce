//! What both halves of vipr agree on: addresses, table layouts, names, the reasons for every outcome, and the
//! decisions themselves.
//!
//! The kernel's half (`proxy-ebpf`) and the agent (`proxy-userspace`) compile this same source. [`datapath`] is pure:
//! it reads through the traits [`datapath::Tables`], [`datapath::Env`] and [`datapath::Socket`] and knows neither
//! aya nor the kernel, so `cargo test` runs the code that decides in the kernel, and `vipr explain` answers with it.
//!
//! Must not: use std, aya, `unsafe` or any feature flag.
#![no_std]
#![forbid(unsafe_code)]

pub mod addr;
pub mod datapath;
pub mod layout;
pub mod names;
pub mod reason;

pub use addr::{Address, Protocol};
pub use reason::Reason;
