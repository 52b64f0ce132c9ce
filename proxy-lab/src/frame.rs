//! A loaded program run on one frame (`BPF_PROG_TEST_RUN`): what it returned and what the frame became. Nothing is sent.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Where the frame is met, as the kernel tells a program.
#[derive(Clone, Copy, Debug)]
pub struct Met {
    /// Index of the device, in the namespace of the calling thread.
    pub on: u32,
    /// Index of the device it came in by; 0: a socket of this host sent it.
    pub from: u32,
}

/// `__sk_buff`, of which the kernel takes some fields.
type Context = [u32; 48];
const INGRESS_IFINDEX: usize = 9;
const IFINDEX: usize = 10;

/// The arm `test` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    returned: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    reserved: u32,
}

/// Run `program` once. What it returned, and the frame it left.
///
/// # Errors
/// The kernel can't run it: a frame shorter than an Ethernet header, a device that is not there.
pub fn run(program: BorrowedFd<'_>, met: Met, frame: &[u8]) -> io::Result<(i32, Vec<u8>)> {
    const TEST_RUN: libc::c_int = 10;
    let mut context: Context = [0; 48];
    (context[INGRESS_IFINDEX], context[IFINDEX]) = (met.from, met.on);
    let mut out = vec![0; frame.len() + 256];
    let mut attributes = TestRun {
        program: program.as_raw_fd() as u32,
        size_in: frame.len() as u32,
        size_out: out.len() as u32,
        data_in: frame.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        repeat: 1,
        context_size_in: size_of::<Context>() as u32,
        context_in: context.as_ptr() as u64,
        ..TestRun::default()
    };
    // SAFETY: the pointers are to live buffers of the sizes that stand beside them.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, TEST_RUN, &raw mut attributes, size_of::<TestRun>() as libc::c_uint)
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    out.truncate(attributes.size_out as usize);
    Ok((attributes.returned as i32, out))
}
