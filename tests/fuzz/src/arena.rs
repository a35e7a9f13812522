//! Mappings with nothing beside them that could be touched unnoticed.
#![allow(unsafe_code)]

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use relay::shm::Mapping;

/// Addresses on either side of a mapping that lead nowhere, in bytes.
const GUARD: usize = 16 << 20;
/// Tries at getting the place between two guards.
const TRIES_MAX: u32 = 1000;

/// A file of `len` bytes, whole pages, and this process's mapping of it, between two guards.
pub(crate) fn guarded(len: u64) -> (File, Mapping) {
    let file = File::from(memfd_create(c"fuzz", MFdFlags::MFD_CLOEXEC).expect("a file"));
    file.set_len(len).expect("memory");
    // The kernel puts a mapping into the highest hole that is large enough; until that is ours, the others are filled.
    let mut fillers = Vec::new();
    for _ in 0..TRIES_MAX {
        let place = hole(len as usize);
        let mapping = Mapping::new(&file, len).expect("a mapping");
        if mapping.bytes(0, 0).map(<[_]>::as_ptr).is_some_and(|at| at as usize == place) {
            return (file, mapping);
        }
        fillers.push(mapping);
    }
    panic!("no place between two guards for a file of {len} bytes, {:?}", file.as_fd());
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
