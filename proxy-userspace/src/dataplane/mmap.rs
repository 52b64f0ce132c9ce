//! An array map in our own memory: `services`, `backends`, `ports` and `addresses` are written without a system call.
#![expect(unsafe_code, reason = "shared memory with the kernel")]

use std::{
    cell::RefCell,
    io,
    marker::PhantomData,
    os::fd::{AsFd, AsRawFd},
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering, fence},
};

use proxy_common::layout::{Backend, Gate, Service};
use zerocopy::{IntoBytes, TryFromBytes};

use super::sys::Map;

/// A memory-mapped array of values of type `T`, a multiple of 8 bytes each.
#[derive(Debug)]
pub struct Mapped<T> {
    start: NonNull<AtomicU64>,
    entries: usize,
    bytes: usize,
    value: PhantomData<T>,
}

// SAFETY: the memory is shared with the kernel and reached by atomic words only.
unsafe impl<T> Send for Mapped<T> {}

impl<T> Mapped<T> {
    const WORDS: usize = size_of::<T>() / 8;

    /// Map a `BPF_F_MMAPABLE` array.
    pub fn new(map: &Map) -> io::Result<Self> {
        Self::part(map, 0, map.shape.entries as usize)
    }

    /// Map so many of its entries from the `first` on, which lies at the beginning of a page.
    fn part(map: &Map, first: usize, entries: usize) -> io::Result<Self> {
        assert!(
            size_of::<T>().is_multiple_of(8) && size_of::<T>() == map.shape.value as usize,
            "not the map's value"
        );
        let bytes = entries * size_of::<T>();
        let offset = i64::try_from(first * size_of::<T>()).map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address of the kernel's choice; it is unmapped when this is dropped.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_fd().as_raw_fd(),
                offset,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Self { start, entries, bytes, value: PhantomData })
    }

    /// How many values.
    pub fn len(&self) -> usize {
        self.entries
    }

    /// Whether there is no value at all.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    fn words(&self, index: usize) -> &[AtomicU64] {
        assert!(index < self.entries, "index {index} of {}", self.entries);
        // SAFETY: inside the mapping, aligned, and all access is atomic.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(index * Self::WORDS), Self::WORDS) }
    }

    fn load(&self, index: usize, words: &mut [u64]) {
        for (to, from) in words.iter_mut().zip(self.words(index)) {
            *to = from.load(Ordering::Relaxed);
        }
    }

    fn store(&self, index: usize, bytes: &[u8]) {
        for (to, from) in self.words(index).iter().zip(bytes.chunks_exact(8)) {
            let mut word = [0; 8];
            word.copy_from_slice(from);
            to.store(u64::from_ne_bytes(word), Ordering::Relaxed);
        }
    }
}

impl Mapped<u64> {
    /// One word.
    pub fn get(&self, index: usize) -> u64 {
        self.words(index)[0].load(Ordering::Relaxed)
    }

    /// Store one word.
    pub fn set(&self, index: usize, word: u64) {
        self.words(index)[0].store(word, Ordering::Relaxed);
    }
}

impl Mapped<u64> {
    /// Take away all bits that are not in `mask`, in one step.
    pub fn keep(&self, index: usize, mask: u64) {
        self.words(index)[0].fetch_and(mask, Ordering::AcqRel);
    }

    /// Set bits, in one step.
    pub fn add(&self, index: usize, bits: u64) {
        self.words(index)[0].fetch_or(bits, Ordering::AcqRel);
    }

    /// Make a word another one, in one step: what is written meanwhile is seen.
    pub fn change(&self, index: usize, f: impl Fn(u64) -> u64) {
        let mut word = self.get(index);
        while let Err(seen) =
            self.words(index)[0].compare_exchange_weak(word, f(word), Ordering::AcqRel, Ordering::Relaxed)
        {
            word = seen;
        }
    }
}

impl Mapped<Gate> {
    /// Store the word that says whether what is sent to addresses of Services is judged.
    pub fn set_judged(&self, judged: bool) {
        self.words(0)[0].store(judged.into(), Ordering::Release);
    }

    /// Store a word of the devices that have no Ethernet header.
    pub fn set_bare(&self, word: usize, bits: u64) {
        self.words(0)[1 + word].store(bits, Ordering::Release);
    }
}

impl Mapped<Service> {
    /// A service's word.
    pub fn get(&self, index: usize) -> Service {
        Service::from_word(self.words(index)[0].load(Ordering::Acquire))
    }

    /// Publish: everything stored before is seen by whoever sees this word.
    pub fn set(&self, index: usize, service: Service) {
        self.words(index)[0].store(service.word(), Ordering::Release);
    }
}

/// `backends`, of which a part is mapped at a time: whatever is mapped counts as resident memory of the agent, and this is
/// by far the largest.
#[derive(Debug)]
pub struct Slots {
    map: Map,
    part: RefCell<(usize, Mapped<Backend>)>,
}

impl Slots {
    /// Of one part: 256 KiB, a multiple of every page size.
    const PART: usize = (256 << 10) / size_of::<Backend>();

    /// Of a `BPF_F_MMAPABLE` array.
    pub fn new(map: Map) -> io::Result<Self> {
        let part = RefCell::new((0, Self::map_part(&map, 0)?));
        Ok(Self { map, part })
    }

    fn map_part(map: &Map, number: usize) -> io::Result<Mapped<Backend>> {
        let first = number * Self::PART;
        Mapped::part(map, first, (map.shape.entries as usize).saturating_sub(first).min(Self::PART))
    }

    /// How many slots.
    pub fn len(&self) -> usize {
        self.map.shape.entries as usize
    }

    /// Whether there is no slot at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Do something with the part that a slot is in, and its place there.
    fn at<R>(&self, index: usize, f: impl FnOnce(&Mapped<Backend>, usize) -> R) -> io::Result<R> {
        let number = index / Self::PART;
        let mut part = self.part.borrow_mut();
        if part.0 != number {
            *part = (number, Self::map_part(&self.map, number)?);
        }
        Ok(f(&part.1, index % Self::PART))
    }

    /// One slot; `None` if it holds what this version does not know.
    pub fn get(&self, index: usize) -> io::Result<Option<Backend>> {
        self.at(index, |part, place| {
            let mut words = [0_u64; size_of::<Backend>() / 8];
            part.load(place, &mut words);
            Backend::try_read_from_bytes(words.as_bytes()).ok()
        })
    }

    /// Write one slot.
    pub fn set(&self, index: usize, slot: &Backend) -> io::Result<()> {
        self.at(index, |part, place| part.store(place, slot.as_bytes()))
    }

    /// What was written before is visible before what is written after.
    pub fn flush(&self) {
        fence(Ordering::Release);
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and no reference outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}
