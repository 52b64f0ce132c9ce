//! The `bpf(2)` calls that aya does not offer: pinned objects by path, raw map access with batches, links updated in
//! place. One thin function each; nothing here knows what the maps mean.
#![expect(unsafe_code, reason = "system calls")]

mod map;

use std::{
    fs::File,
    io::{self, Read},
    mem::{self, MaybeUninit},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    path::Path,
};

use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_link_info, bpf_map_info, bpf_prog_info};
pub use map::Map;
use map::c_path;
use tokio::io::{Interest, unix::AsyncFd};

/// What the kernel says about a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// `bpf_map_type`.
    pub kind: u32,
    /// Bytes.
    pub key: u32,
    /// Bytes.
    pub value: u32,
    /// Entries.
    pub entries: u32,
    /// `BPF_F_*`.
    pub flags: u32,
}

/// What the kernel says about a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its own id.
    pub id: u32,
    /// Its program's id.
    pub program: u32,
    /// Cgroup links: the cgroup's id (its inode number in cgroup2); 0 if it is gone.
    pub cgroup: u64,
    /// Tcx links: the device's ifindex; 0 if it is gone.
    pub device: u32,
}

/// What the kernel says about a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramState {
    /// Its id.
    pub id: u32,
    /// Instructions the verifier walked; 0 before kernel 5.16.
    pub verified: u32,
    /// Bytes of native code.
    pub jited: u32,
}

/// Open what is pinned at `path`.
pub fn object_get(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = zeroed();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    let fd = bpf(bpf_cmd::BPF_OBJ_GET, &mut attr)?;
    // SAFETY: the kernel gave a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Pin an object at `path`.
pub fn object_pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = zeroed();
    attr.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attr.__bindgen_anon_4.bpf_fd = fd.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_OBJ_PIN, &mut attr).map(drop)
}

/// Create a map without BTF; `inner` is the example of what a map of maps holds.
pub fn map_create(shape: &Shape, name: &str, inner: Option<BorrowedFd<'_>>) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    // SAFETY: all arms of the union are plain integers, zeroed above.
    let create = unsafe { &mut attr.__bindgen_anon_1 };
    create.map_type = shape.kind;
    create.key_size = shape.key;
    create.value_size = shape.value;
    create.max_entries = shape.entries;
    create.map_flags = shape.flags;
    create.inner_map_fd = inner.map_or(0, |fd| fd.as_raw_fd() as u32);
    for (to, from) in create.map_name.iter_mut().zip(name.bytes().take(15)) {
        *to = from as _;
    }
    let fd = bpf(bpf_cmd::BPF_MAP_CREATE, &mut attr)?;
    // SAFETY: the kernel gave a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// A map's shape.
pub fn map_shape(fd: BorrowedFd<'_>) -> io::Result<Shape> {
    let info: bpf_map_info = object_state(fd)?;
    Ok(Shape {
        kind: info.type_,
        key: info.key_size,
        value: info.value_size,
        entries: info.max_entries,
        flags: info.map_flags,
    })
}

/// A link's program and target.
pub fn link_state(fd: BorrowedFd<'_>) -> io::Result<Link> {
    let info: bpf_link_info = object_state(fd)?;
    // SAFETY: cgroup links fill this arm; for others the number means nothing and is not used.
    let cgroup = unsafe { info.__bindgen_anon_1.cgroup.cgroup_id };
    // SAFETY: the same of tcx links.
    let device = unsafe { info.__bindgen_anon_1.tcx.ifindex };
    Ok(Link { id: info.id, program: info.prog_id, cgroup, device })
}

/// A program's size.
pub fn program_state(fd: BorrowedFd<'_>) -> io::Result<ProgramState> {
    let info: bpf_prog_info = object_state(fd)?;
    Ok(ProgramState { id: info.id, verified: info.verified_insns, jited: info.jited_prog_len })
}

/// A program by its id.
pub fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    attr.__bindgen_anon_6.__bindgen_anon_1.prog_id = id;
    let fd = bpf(bpf_cmd::BPF_PROG_GET_FD_BY_ID, &mut attr)?;
    // SAFETY: the kernel gave a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Swap the program of a link: calls run the old one or the new one, never none.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = zeroed();
    attr.link_update.link_fd = link.as_raw_fd() as u32;
    attr.link_update.__bindgen_anon_1.new_prog_fd = program.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Attach a program to a device by a tcx link, at `bpf_attach_type`; `flags`: before (8) or after (16) all that are there.
pub fn link_create_tcx(program: BorrowedFd<'_>, device: u32, attach: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attr = zeroed();
    attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attr.link_create.__bindgen_anon_2.target_ifindex = device;
    attr.link_create.attach_type = attach;
    attr.link_create.flags = flags;
    let fd = bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr)?;
    // SAFETY: the kernel gave a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// All that an iterator's program says of the elements of a map.
pub fn iterate(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let of = map.as_raw_fd();
    let mut attr = zeroed();
    attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attr.link_create.attach_type = bpf_attach_type::BPF_TRACE_ITER as u32;
    attr.link_create.__bindgen_anon_3.__bindgen_anon_1.iter_info = (&raw const of) as u64;
    attr.link_create.__bindgen_anon_3.__bindgen_anon_1.iter_info_len = size_of_val(&of) as u32;
    let link = bpf(bpf_cmd::BPF_LINK_CREATE, &mut attr)?;
    // SAFETY: the kernel gave a new descriptor that nobody else owns.
    let link = unsafe { OwnedFd::from_raw_fd(link as RawFd) };
    let mut attr = zeroed();
    attr.iter_create.link_fd = link.as_raw_fd() as u32;
    let walk = bpf(bpf_cmd::BPF_ITER_CREATE, &mut attr)?;
    // SAFETY: the same.
    let mut walk = unsafe { File::from_raw_fd(walk as RawFd) };
    let mut said = Vec::new();
    walk.read_to_end(&mut said)?;
    Ok(said)
}

/// What is attached to a device by tcx, in the order in which it runs: the ids of programs and of their links (0: none).
pub fn tcx_query(device: u32, attach: u32) -> io::Result<Vec<(u32, u32)>> {
    /// `BPF_MPROG_MAX`.
    const MOST: usize = 64;
    let (mut programs, mut links) = ([0_u32; MOST], [0_u32; MOST]);
    let mut attr = zeroed();
    attr.query.__bindgen_anon_1.target_ifindex = device;
    attr.query.attach_type = attach;
    attr.query.prog_ids = programs.as_mut_ptr() as u64;
    attr.query.link_ids = links.as_mut_ptr() as u64;
    attr.query.__bindgen_anon_2.count = MOST as u32;
    bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr)?;
    // SAFETY: the kernel wrote the count of this arm.
    let count = unsafe { attr.query.__bindgen_anon_2.count } as usize;
    Ok(programs.into_iter().zip(links).take(count).collect())
}

/// What changes whenever anything is attached to or taken off a device's tcx, whoever does it.
pub fn tcx_revision(device: u32, attach: u32) -> io::Result<u64> {
    let mut attr = zeroed();
    attr.query.__bindgen_anon_1.target_ifindex = device;
    attr.query.attach_type = attach;
    bpf(bpf_cmd::BPF_PROG_QUERY, &mut attr)?;
    // SAFETY: the kernel wrote the revision of this arm.
    Ok(unsafe { attr.query.revision })
}

/// Take a link's program off its hook, at once: the last reference to a link lets go of it some time later only.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = zeroed();
    attr.link_detach.link_fd = link.as_raw_fd() as u32;
    bpf(bpf_cmd::BPF_LINK_DETACH, &mut attr).map(drop)
}

/// Look `key` up; `Ok(false)`: not there. `value` is of the map's value size (times possible CPUs, each rounded up to
/// 8, for per-CPU maps).
pub fn lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let mut attr = element(map, key, value.as_mut_ptr());
    found(bpf(bpf_cmd::BPF_MAP_LOOKUP_ELEM, &mut attr))
}

/// Insert or change (`flags` 0), insert only (1) or change only (2).
pub fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
    let mut attr = element(map, key, value.as_ptr().cast_mut());
    attr.__bindgen_anon_2.flags = flags;
    bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr).map(drop)
}

/// Remove `key`; `Ok(false)`: it was not there.
pub fn delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<bool> {
    let mut attr = element(map, key, std::ptr::null_mut());
    found(bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr))
}

/// The key after `key` (none: the first); `Ok(false)`: there is none.
pub fn next_key(map: BorrowedFd<'_>, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<bool> {
    let mut attr = element(map, key.unwrap_or(&[]), next.as_mut_ptr());
    if key.is_none() {
        attr.__bindgen_anon_2.key = 0;
    }
    found(bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attr))
}

/// Insert or change `count` entries, keys and values packed. Gives how many were written, and why not all.
pub fn update_batch(map: BorrowedFd<'_>, keys: &[u8], values: &[u8], count: u32) -> (u32, io::Result<()>) {
    let mut attr = zeroed();
    // SAFETY: all arms of the union are plain integers, zeroed above.
    let batch = unsafe { &mut attr.batch };
    batch.keys = keys.as_ptr() as u64;
    batch.values = values.as_ptr() as u64;
    batch.count = count;
    batch.map_fd = map.as_raw_fd() as u32;
    let result = bpf(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attr).map(drop);
    // SAFETY: the kernel wrote the count of this arm.
    (unsafe { attr.batch.count }, result)
}

/// Read entries of a hash from where an earlier call ended (`from`; none: from the beginning) into `keys` and `values`, which
/// have room for `count`. Gives how many there were, and where the next call goes on; nowhere: that was the end.
pub fn lookup_batch(
    map: BorrowedFd<'_>,
    from: Option<u32>,
    keys: &mut [u8],
    values: &mut [u8],
    count: u32,
) -> io::Result<(u32, Option<u32>)> {
    let (begin, mut end) = (from.unwrap_or(0), 0_u32);
    let mut attr = zeroed();
    // SAFETY: all arms of the union are plain integers, zeroed above.
    let batch = unsafe { &mut attr.batch };
    batch.in_batch = if from.is_some() { (&raw const begin) as u64 } else { 0 };
    batch.out_batch = (&raw mut end) as u64;
    batch.keys = keys.as_mut_ptr() as u64;
    batch.values = values.as_mut_ptr() as u64;
    batch.count = count;
    batch.map_fd = map.as_raw_fd() as u32;
    let more = found(bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr))?;
    // SAFETY: the kernel wrote the count of this arm.
    Ok((unsafe { attr.batch.count }, more.then_some(end)))
}

/// Try to load a program of two instructions that calls `helper`: whether the kernel knows the helper in programs of
/// this type and attach type.
pub fn accepts_helper(program: u32, attach: u32, helper: i32) -> bool {
    // r0 = 1; r1 = 0; call helper; r0 = 1; exit
    let instructions: [u64; 4] = [
        0x0000_0000_0000_01b7,
        ((helper as u32 as u64) << 32) | 0x85,
        0x0000_0001_0000_00b7,
        0x0000_0000_0000_0095,
    ];
    let mut log = [0_u8; 4096];
    let mut attr = zeroed();
    // SAFETY: all arms of the union are plain integers, zeroed above.
    let load = unsafe { &mut attr.__bindgen_anon_3 };
    load.prog_type = program;
    load.expected_attach_type = attach;
    load.insn_cnt = instructions.len() as u32;
    load.insns = instructions.as_ptr() as u64;
    load.license = c"Dual MIT/GPL".as_ptr() as u64;
    load.log_level = 1;
    load.log_size = log.len() as u32;
    load.log_buf = log.as_mut_ptr() as u64;
    match bpf(bpf_cmd::BPF_PROG_LOAD, &mut attr) {
        Ok(fd) => {
            // SAFETY: the kernel gave a new descriptor that nobody else owns; dropping it closes it.
            drop(unsafe { OwnedFd::from_raw_fd(fd as RawFd) });
            true
        }
        Err(_) => {
            let log = String::from_utf8_lossy(&log);
            let unknown = ["unknown func", "invalid func", "cannot use helper"];
            !log.trim_matches('\0').is_empty() && !unknown.iter().any(|text| log.contains(text))
        }
    }
}

/// A descriptor that can be waited on until there is something to read.
pub fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd keeps the same open descriptor until it is dropped, and the registration ends with it.
    unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }.map_err(io::Error::from)
}

/// Seconds of the monotonic clock, which the programs' records are in.
pub fn monotonic_seconds() -> u32 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec, which lives on this stack.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    if result == 0 { time.tv_sec as u32 } else { 0 }
}

/// The cookie of a socket's network namespace (`SO_NETNS_COOKIE`, kernel 5.14).
pub fn netns_cookie(socket: RawFd) -> io::Result<u64> {
    const SO_NETNS_COOKIE: i32 = 71;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the value and its length are valid for the size given.
    let result = unsafe {
        libc::getsockopt(socket, libc::SOL_SOCKET, SO_NETNS_COOKIE, (&raw mut cookie).cast(), &raw mut length)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// Lift the limit on locked memory, which maps count against before kernel 5.11.
pub fn lift_memory_lock_limit() {
    let unlimited = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: the struct is valid; where the limit can't be lifted, creating a map says so.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &unlimited) };
}

/// Give memory back that was freed: the allocator keeps it for itself otherwise, and a first list takes much that is not
/// used again.
pub fn trim_heap() {
    // SAFETY: it only looks at what is free.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}

fn object_state<T>(fd: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = MaybeUninit::<T>::zeroed();
    let mut attr = zeroed();
    attr.info.bpf_fd = fd.as_raw_fd() as u32;
    attr.info.info_len = size_of::<T>() as u32;
    attr.info.info = info.as_mut_ptr() as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    // SAFETY: the info structs are plain integers, valid when zero, and the kernel filled in what it knows.
    Ok(unsafe { info.assume_init() })
}

fn element(map: BorrowedFd<'_>, key: &[u8], value: *mut u8) -> bpf_attr {
    let mut attr = zeroed();
    // SAFETY: all arms of the union are plain integers, zeroed above.
    let element = unsafe { &mut attr.__bindgen_anon_2 };
    element.map_fd = map.as_raw_fd() as u32;
    element.key = key.as_ptr() as u64;
    element.__bindgen_anon_1.value = value as u64;
    attr
}

fn found(result: io::Result<i64>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

fn zeroed() -> bpf_attr {
    // SAFETY: a union of plain integers, valid when zero.
    unsafe { mem::zeroed() }
}

fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<i64> {
    // SAFETY: the attribute is valid for its size and outlives the call, as does everything it points to: callers pass
    // slices of the sizes that the command asks for.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command as u32, attr as *mut bpf_attr, size_of::<bpf_attr>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
