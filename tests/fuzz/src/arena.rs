//! Mappings with nothing beside them that could be touched unnoticed.
#![allow(unsafe_code)]

use std::fs::File;
use std::num::NonZeroUsize;
use std::sync::Mutex;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use relay::shm::Mapping;

/// Addresses on either side of a mapping that lead nowhere, in bytes: more than a position can lead astray, and so few that what
/// is free above them is soon filled.
const GUARD: usize = 256 << 10;
/// Tries at getting a place between two guards.
const TRIES_MAX: u32 = 1000;

/// Addresses between guards that were given up to be mapped. One thread at a time looks for them.
static HOLES: Mutex<Vec<(usize, u64)>> = Mutex::new(Vec::new());

/// A file of `len` bytes, whole pages, and this process's mapping of it, between two guards.
pub(crate) fn guarded(len: u64) -> (File, Mapping) {
    let file = File::from(memfd_create(c"fuzz", MFdFlags::MFD_CLOEXEC).expect("a file"));
    file.set_len(len).expect("memory");
    let mut holes = HOLES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    // Which hole the kernel puts a mapping into is its own affair, so those that are not ours, or of another length, are
    // filled, and there is always one more.
    let mut fillers = Vec::new();
    for _ in 0..TRIES_MAX {
        holes.push((hole(len as usize), len));
        let mapping = Mapping::new(&file, len).expect("a mapping");
        let at = mapping.bytes(0, 0).map_or(0, |bytes| bytes.as_ptr() as usize);
        if let Some(index) = holes.iter().position(|hole| *hole == (at, len)) {
            holes.swap_remove(index);
            return (file, mapping);
        }
        fillers.push(mapping);
    }
    panic!("no place between two guards for a file of {len} bytes");
}

/// Reserves addresses, and gives up `len` bytes in their midst again: the guards stay for good.
fn hole(len: usize) -> usize {
    let whole = NonZeroUsize::new(GUARD + len + GUARD).expect("it is not 0");
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
    let base = unsafe { mmap_anonymous(None, whole, ProtFlags::PROT_NONE, flags) }.expect("addresses");
    // SAFETY: inside what was mapped just now.
    let place = unsafe { base.add(GUARD) };
    // SAFETY: it is ours, nobody knows of it, and nothing can be in it.
    unsafe { munmap(place.cast(), len) }.expect("it is mapped");
    place.as_ptr() as usize
}
