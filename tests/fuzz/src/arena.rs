//! Mappings with nothing beside them that could be touched unnoticed.
#![allow(unsafe_code)]

use std::fs::File;
use std::num::NonZeroUsize;
use std::sync::Mutex;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use relay::memory::mapping::Mapping;

/// Addresses on either side of a mapping that lead nowhere, in bytes: more than a position can lead astray.
const GUARD: usize = 64 << 10;
/// Tries at getting a place between two guards.
const TRIES_MAX: u32 = 10_000;

/// Where guards begin. One thread at a time puts them up.
static GUARDS: Mutex<Vec<usize>> = Mutex::new(Vec::new());

/// A file of `len` bytes, whole pages, and this process's mapping of it, between two guards.
pub(crate) fn guarded(len: u64) -> (File, Mapping) {
    let file = File::from(memfd_create(c"fuzz", MFdFlags::MFD_CLOEXEC).expect("a file"));
    file.set_len(len).expect("memory");
    let mut guards = GUARDS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    // The kernel puts a mapping into the highest hole that is large enough. A small one is just filled; in a large one
    // there is a guard above by then, and room for another below.
    let mut fillers = Vec::new();
    for _ in 0..TRIES_MAX {
        guards.extend(guard(None));
        let mapping = Mapping::new(&file, len).expect("a mapping");
        let at = mapping.bytes(0, 0).map_or(0, |bytes| bytes.as_ptr() as usize);
        let is_guarded = [at - GUARD, at + len as usize].into_iter().all(|beside| {
            let new = if guards.contains(&beside) { None } else { guard(Some(beside)) };
            guards.extend(new);
            guards.contains(&beside)
        });
        if is_guarded {
            return (file, mapping);
        }
        fillers.push(mapping);
    }
    panic!("no place between two guards for a file of {len} bytes");
}

/// Reserves addresses for good, from `at` on or wherever there are some, if they are free.
fn guard(at: Option<usize>) -> Option<usize> {
    let len = NonZeroUsize::MIN.saturating_add(GUARD - 1);
    let fixed = if at.is_some() { MapFlags::MAP_FIXED_NOREPLACE } else { MapFlags::empty() };
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE | fixed;
    // SAFETY: a new mapping that replaces none touches no existing memory.
    let base = unsafe { mmap_anonymous(at.and_then(NonZeroUsize::new), len, ProtFlags::PROT_NONE, flags) };
    base.ok().map(|base| base.as_ptr() as usize)
}
