//! A loaded program run on one frame (`BPF_PROG_TEST_RUN`): what it returned and what the frame became. Nothing is sent.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

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

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Ran {
    /// What the program returned.
    pub returned: i32,
    /// The frame that it left.
    pub frame: Vec<u8>,
    /// How long one turn took, on average; includes what the kernel's loop and, for a single turn, its clock take.
    pub nanoseconds: u32,
}

/// Run `program` once. What it returned, and the frame it left.
///
/// # Errors
/// The kernel can't run it: a frame shorter than an Ethernet header, a device that is not there.
pub fn run(program: BorrowedFd<'_>, met: Met, frame: &[u8]) -> io::Result<(i32, Vec<u8>)> {
    timed(program, met, frame, 1).map(|ran| (ran.returned, ran.frame))
}

/// Run `program` on what it left of the frame the last time, so often.
///
/// # Errors
/// As [`run`].
pub fn timed(program: BorrowedFd<'_>, met: Met, frame: &[u8], repeat: u32) -> io::Result<Ran> {
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
        repeat,
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
    Ok(Ran { returned: attributes.returned as i32, frame: out, nanoseconds: attributes.duration })
}

/// The first words of the arm of `union bpf_attr` that loads a program.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
}

/// A program for devices that leaves every packet alone: what any program costs.
///
/// # Errors
/// The kernel refuses it: not root.
pub fn empty() -> io::Result<OwnedFd> {
    const LOAD: libc::c_int = 5;
    const CLASSIFIER: u32 = 3;
    // r0 = -1; exit
    let instructions: [u64; 2] = [0xffff_ffff_0000_00b7, 0x0000_0000_0000_0095];
    let mut attributes = Load {
        kind: CLASSIFIER,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
    };
    // SAFETY: the pointers are to live values; the kernel takes the rest of its union as zero.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, LOAD, &raw mut attributes, size_of::<Load>() as libc::c_uint) };
    let fd = libc::c_int::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel gave a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
