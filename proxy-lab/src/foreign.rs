//! Programs on devices as other software has them: what they meet tells where they stand among vipr's.

use std::ffi::c_char;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Which port of a TCP or UDP packet without options a program looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Destination,
}

impl Port {
    /// Where it stands in an Ethernet frame of IPv4 and of IPv6.
    fn offsets(self) -> [u32; 2] {
        if self == Self::Source { [34, 54] } else { [36, 56] }
    }

    /// A classic program for `tc filter … bpf da bytecode`, for IPv4 and for IPv6: drops packets with this port, lets
    /// others on to the next.
    pub fn dropped_by_bytecode(self, number: u16) -> [String; 2] {
        self.offsets().map(|at| format!("4,40 0 0 {at},21 0 1 {number},6 0 0 2,6 0 0 4294967295,"))
    }

    /// The same as a program for tcx, both families at once.
    ///
    /// # Errors
    /// Not root.
    pub fn dropped_by_program(self, number: u16) -> io::Result<OwnedFd> {
        let [v4, v6] = self.offsets().map(u64::from);
        let instructions: [u64; 11] = [
            0x16bf,                                   // r6 = r1, for the loads
            12 << 32 | 0x28,                          // r0 = the EtherType
            0x86dd << 32 | 2 << 16 | 0x15,            // IPv6: over two
            v4 << 32 | 0x28,                          // r0 = the port
            1 << 16 | 0x05,                           // over one
            v6 << 32 | 0x28,                          // r0 = the port
            u64::from(number) << 32 | 2 << 16 | 0x15, // this one: over two
            0xffff_ffff << 32 | 0xb7,                 // r0 = TCX_NEXT
            0x95,
            2 << 32 | 0xb7, // r0 = TCX_DROP
            0x95,
        ];
        load(&instructions)
    }
}

/// The arm of `union bpf_attr` that loads programs, as far as it is used.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: *const c_char,
    log: [u32; 4],
    rest: [u32; 8],
}

fn load(instructions: &[u64]) -> io::Result<OwnedFd> {
    const PROG_LOAD: libc::c_int = 5;
    const SCHED_CLS: u32 = 3;
    let attributes = Load {
        kind: SCHED_CLS,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"MIT".as_ptr(),
        log: [0; 4],
        rest: [0; 8],
    };
    // SAFETY: the attributes and what they point to outlive the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const attributes, size_of::<Load>() as libc::c_uint)
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel gave a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}
