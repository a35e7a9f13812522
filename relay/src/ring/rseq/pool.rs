//! The memory of areas for threads that the C library has not registered.
//!
//! The kernel writes to an area until its thread has ended. Stacks and thread-local memory are too short-lived for that:
//! a detached thread of musl unmaps both before it ends. These areas are never unmapped. A thread that needs one and
//! finds none free asks the kernel which owners have ended ([`Owners::free_ended`]). So neither a thread's end nor
//! unloading this code needs a destructor.
//!
//! The areas lie in chunks, each twice as long as the one before. A chunk has the owners' words first, in pages that the
//! kernel zeroes in a forked child.
//!
//! The functions here run with all signals blocked, and take no lock, so that signal handlers can need an area.

use std::num::NonZeroUsize;
use std::ptr::{NonNull, null_mut};

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use nix::unistd::{getpid, gettid};

use super::own::Area;
use crate::memory::sync::{AtomicPtr, AtomicU64, Ordering};
use crate::ring::area_owners::{self, Owner, Owners};

/// Areas of the first chunk.
const FIRST_LEN: usize = 64;
/// Most chunks: together they have more areas than Linux has ids for threads.
const CHUNKS_MAX: usize = 17;
/// The largest page of the architecture.
const PAGE: usize = if cfg!(target_arch = "aarch64") { 65536 } else { 4096 };
/// Words before those of the owners. The first one of the first chunk has the process's id.
const HEAD: usize = 1;

/// The start of each chunk. They are added in order.
static CHUNKS: [AtomicPtr<AtomicU64>; CHUNKS_MAX] = [const { AtomicPtr::new(null_mut()) }; CHUNKS_MAX];
/// The number of claims so far.
static CLAIMS: AtomicU64 = AtomicU64::new(0);

/// An area that the caller owns.
pub(super) struct Place {
    pub(super) area: &'static Area,
    pub(super) owner: &'static AtomicU64,
}

impl Place {
    /// Returns an area that the kernel does not know.
    pub(super) fn give_back(self) {
        Owners::new(std::slice::from_ref(self.owner)).give_back(0);
    }
}

#[derive(Clone, Copy)]
struct Chunk {
    /// 0, or the process's id, in the first chunk.
    process: &'static AtomicU64,
    owners: &'static [AtomicU64],
    areas: &'static [Area],
}

impl Chunk {
    fn find(number: usize) -> Option<Chunk> {
        // Acquire, pairs with the Release in `grow`: the words are set before the address can be seen.
        let start = CHUNKS[number].load(Ordering::Acquire);
        // SAFETY: `grow` stores the address of a mapping made by `map` for a chunk of this number, which stays.
        NonNull::new(start).map(|start| unsafe { Chunk::at(start, number) })
    }

    /// # Safety
    ///
    /// `start` is that of a mapping of [`Chunk::size`] bytes that is never unmapped.
    unsafe fn at(start: NonNull<AtomicU64>, number: usize) -> Chunk {
        let len = Chunk::len(number);
        // SAFETY: inside the mapping, whose first `areas_at` bytes have room for the words.
        let owners = unsafe { start.add(HEAD) };
        // SAFETY: inside the mapping as well, and `areas_at` is a number of whole pages.
        let areas = unsafe { start.byte_add(Chunk::areas_at(number)) }.cast::<Area>();
        Chunk {
            // SAFETY: aligned to a page, and zero is a valid atomic, as is whatever is stored later.
            process: unsafe { start.as_ref() },
            // SAFETY: as above, for `len` words.
            owners: unsafe { std::slice::from_raw_parts(owners.as_ptr(), len) },
            // SAFETY: `len` areas of 64 bytes end where the mapping ends. They consist of atomics.
            areas: unsafe { std::slice::from_raw_parts(areas.as_ptr(), len) },
        }
    }

    fn len(number: usize) -> usize {
        FIRST_LEN << number
    }

    fn areas_at(number: usize) -> usize {
        ((HEAD + Chunk::len(number)) * size_of::<AtomicU64>()).next_multiple_of(PAGE)
    }

    fn size(number: usize) -> usize {
        (Chunk::areas_at(number) + Chunk::len(number) * size_of::<Area>()).next_multiple_of(PAGE)
    }

    /// Maps a chunk whose areas are all free.
    fn map(number: usize) -> Result<NonNull<AtomicU64>, Errno> {
        let size = NonZeroUsize::new(Chunk::size(number)).ok_or(Errno::EINVAL)?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let start = unsafe { mmap_anonymous(None, size, prot, MapFlags::MAP_PRIVATE) }?.cast::<AtomicU64>();
        // SAFETY: whole pages of our own mapping, which are all zeroes now.
        let wiped = unsafe { madvise(start.cast(), Chunk::areas_at(number), MmapAdvise::MADV_WIPEONFORK) };
        if let Err(errno) = wiped {
            Chunk::unmap(start, number);
            return Err(errno);
        }
        // SAFETY: the mapping made above. If it is unmapped, no reference to it is left.
        Owners::new(unsafe { Chunk::at(start, number) }.owners).free_all();
        Ok(start)
    }

    /// Unmaps a chunk whose address no other code has.
    fn unmap(start: NonNull<AtomicU64>, number: usize) {
        // SAFETY: our own mapping, to which no reference exists.
        let _ = unsafe { munmap(start.cast(), Chunk::size(number)) };
    }
}

/// Returns all chunks, the longest first: it has half of the areas.
fn chunks() -> impl Iterator<Item = Chunk> {
    (0..CHUNKS_MAX).rev().filter_map(Chunk::find)
}

/// Adds the chunk of this number, if no other thread does.
fn grow(number: usize) -> Result<(), Errno> {
    if number >= CHUNKS_MAX {
        return Err(Errno::ENOMEM);
    }
    let start = Chunk::map(number)?;
    // Release, pairs with the Acquire in `Chunk::find`.
    let added =
        CHUNKS[number].compare_exchange(null_mut(), start.as_ptr(), Ordering::Release, Ordering::Relaxed);
    if added.is_err() {
        Chunk::unmap(start, number); // another thread has added that chunk
    }
    Ok(())
}

/// Returns whether the calling process is the one whose memory this is.
/// The child of vfork(2) is not, until it calls execve(2).
pub(super) fn is_own_process() -> Result<bool, Errno> {
    if Chunk::find(0).is_none() {
        grow(0)?;
    }
    let Some(Chunk { process, .. }) = Chunk::find(0) else { return Err(Errno::ENOMEM) };
    let own = u64::from(getpid().as_raw().unsigned_abs());
    // Relaxed, all: the word is complete in itself. It is zero again in a forked child.
    Ok(match process.compare_exchange(0, own, Ordering::Relaxed, Ordering::Relaxed) {
        Ok(_) => true,
        Err(known) => known == own,
    })
}

/// The caller's word for its next area.
fn claim() -> Result<Owner, Errno> {
    // Relaxed: only that the number is another one each time matters.
    let claim = CLAIMS.fetch_add(1, Ordering::Relaxed) + 1;
    Owner::new(gettid().as_raw().unsigned_abs(), claim).ok_or(Errno::EINVAL)
}

/// Takes an area for the calling thread.
pub(super) fn take() -> Result<Place, Errno> {
    let owner = claim()?;
    loop {
        if let Some(place) = chunks().find_map(|chunk| take_in(chunk, owner)) {
            return Ok(place);
        }
        let process = getpid().as_raw();
        let has_ended = |tid: u32| {
            // SAFETY: sends nothing, and says whether the process has such a thread.
            let said = unsafe { libc::syscall(libc::SYS_tgkill, process, tid, 0) };
            Errno::result(said) == Err(Errno::ESRCH)
        };
        let (mut known, mut total, mut free) = (0, 0, 0);
        for chunk in chunks() {
            known += 1;
            total += chunk.owners.len();
            free += Owners::new(chunk.owners).free_ended(has_ended);
        }
        // Looking at all owners has to pay: for a quarter of the areas, or together with as many new ones as there are.
        // What another thread frees at the same time counts, and so does the chunk that it adds.
        if free * 4 < total.max(1) {
            match grow(known) {
                Err(errno) if free == 0 => return Err(errno),
                _ => {}
            }
        }
    }
}

fn take_in(chunk: Chunk, owner: Owner) -> Option<Place> {
    // Where the last claims have left off, approximately: areas before that are taken.
    let from = CLAIMS.load(Ordering::Relaxed) as usize % chunk.owners.len();
    let at = Owners::new(chunk.owners).take(from, owner)?;
    Some(Place { area: &chunk.areas[at], owner: &chunk.owners[at] })
}

/// Keeps the calling thread's area, which it had before it forked, and frees those of its parent's other threads.
pub(super) fn adopt(word: &AtomicU64) {
    // The word stays zero if there is no other: then the parent's areas are not used again.
    if let Ok(owner) = claim() {
        area_owners::adopt(word, owner);
        chunks().for_each(|chunk| Owners::new(chunk.owners).free_of_parent());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ptr;
    use std::sync::{Mutex, PoisonError};
    use std::thread;

    use super::*;

    /// Threads at once.
    const AT_ONCE: usize = 16;
    const THREADS: usize = 10_000;

    /// No two living threads have the same area, and ended threads' areas are used again.
    #[test]
    fn short_threads_share_few_areas() {
        let living = Mutex::new(BTreeSet::new());
        let lock = || living.lock().unwrap_or_else(PoisonError::into_inner);
        let claims = Mutex::new(BTreeSet::new());
        for _ in 0..THREADS / AT_ONCE {
            thread::scope(|scope| {
                let threads = [(); AT_ONCE].map(|()| {
                    scope.spawn(|| {
                        let Place { area, owner } = take().unwrap();
                        assert!(lock().insert(ptr::from_ref(area).addr()), "an area of two threads");
                        let word = Owner::of(owner);
                        assert_eq!(word.tid(), Some(gettid().as_raw().unsigned_abs()));
                        claims.lock().unwrap().insert(owner.load(Ordering::Relaxed));
                        thread::yield_now();
                        assert_eq!(Owner::of(owner), word, "it stays the thread's");
                        assert!(lock().remove(&ptr::from_ref(area).addr()));
                    })
                });
                // The scope itself waits for the closures, and not until the threads have ended.
                threads.into_iter().for_each(|thread| thread.join().unwrap());
            });
        }
        assert_eq!(claims.lock().unwrap().len(), THREADS - THREADS % AT_ONCE, "each claim is another");
        // The kernel knows a thread a moment longer than a join takes; other tests need a few areas as well.
        assert!(chunks().count() <= 2, "{} chunks", chunks().count());
    }

    #[test]
    fn chunks_have_room_for_every_thread_of_linux_and_lie_in_whole_pages() {
        assert!((0..CHUNKS_MAX).map(Chunk::len).sum::<usize>() > 1 << 22);
        for number in 0..CHUNKS_MAX {
            let words = (HEAD + Chunk::len(number)) * size_of::<AtomicU64>();
            assert!(Chunk::areas_at(number) >= words && Chunk::areas_at(number).is_multiple_of(PAGE));
            assert!(Chunk::size(number).is_multiple_of(PAGE));
        }
    }
}
