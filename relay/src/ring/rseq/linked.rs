//! Finds the areas of a C library that is linked statically.
//!
//! dlsym(3) finds no symbol of such a library. A weak reference to its symbols would not do in other programs: the linkers
//! mold and gold do not accept a hidden one, and one that is not hidden makes programs require glibc 2.35.
//! So this asks the kernel where the calling thread's area is, by ending its registration with the wrong signature. The
//! kernel never does so. Its error says whether the address is that of the area, and it touches no memory there. The area
//! lies in the thread's control block or its static thread-local memory, at the same distance from each thread pointer.

use std::ops::RangeInclusive;
use std::slice;

use nix::errno::Errno;

use super::own::{AREA_LEN, SIGNATURE, thread_pointer};

/// Alignment of an area.
const ALIGN: usize = 32;
/// Bytes beside the thread pointer in which control blocks lie, and their alignment. That of glibc has 2,500.
const CONTROL_BLOCK_MAX: usize = 8192;
/// Most thread-local memory of a program in which the area is searched.
const THREAD_LOCAL_MAX: usize = 16 << 20;
/// The flag that ends a registration.
const UNREGISTER: libc::c_int = 1;
/// Entries of the auxiliary vector that libc does not name: the size of the kernel's area, and its alignment.
const AT_RSEQ_FEATURE_SIZE: libc::c_ulong = 27;
const AT_RSEQ_ALIGN: libc::c_ulong = 28;

/// Returns the distance from the thread pointer to the area that the calling thread is registered with.
/// `None`: the program is not linked statically, or the area is elsewhere.
pub(super) fn offset() -> Option<isize> {
    let program = of_static_program(auxiliary(libc::AT_BASE), headers)?;
    let lengths = lengths();
    let place = places(thread_pointer(), thread_local_len(program)?)
        .step_by(ALIGN)
        .find(|address| lengths.iter().any(|len| is_registered(*address, *len)))?;
    Some(place.wrapping_sub(thread_pointer()).cast_signed())
}

/// Returns the headers of the program, if it is linked statically.
/// Then no library was loaded that could have registered the thread.
///
/// `loader` is the loader's address by the kernel's vector, and 0 if the program names none, or the loader was asked to
/// run it. Only then are `headers` asked for: dl_iterate_phdr(3) takes the loader's lock, which in musl a thread that has
/// it must not take again.
fn of_static_program(
    loader: libc::c_ulong,
    headers: impl FnOnce() -> &'static [libc::Elf64_Phdr],
) -> Option<&'static [libc::Elf64_Phdr]> {
    if loader != 0 {
        return None;
    }
    let program = headers();
    // The loader's name.
    let is_loaded = program.iter().any(|header| header.p_type == libc::PT_INTERP);
    (!is_loaded).then_some(program)
}

/// The addresses at which an area can be, all multiples of [`ALIGN`].
fn places(thread_pointer: usize, thread_local_len: usize) -> RangeInclusive<usize> {
    let distance = thread_local_len.saturating_add(CONTROL_BLOCK_MAX);
    let first = thread_pointer.saturating_sub(distance).next_multiple_of(ALIGN);
    first..=thread_pointer.saturating_add(distance)
}

/// The lengths with which C libraries register: what each kernel accepts, and what this one has.
fn lengths() -> [u32; 3] {
    let size = auxiliary(AT_RSEQ_FEATURE_SIZE).max(AREA_LEN.into());
    let whole = size.checked_next_multiple_of(auxiliary(AT_RSEQ_ALIGN).max(1)).unwrap_or(size);
    [AREA_LEN.into(), size, whole].map(|len| u32::try_from(len).unwrap_or(AREA_LEN))
}

/// Whether the calling thread is registered with an area at this address.
fn is_registered(address: usize, len: u32) -> bool {
    let ask = |flags: libc::c_int, signature: u32| {
        // SAFETY: as above, and below, the kernel refuses what it is asked for, and touches no memory.
        Errno::result(unsafe { libc::syscall(libc::SYS_rseq, address, len, flags, signature) })
    };
    // The second question is asked at the address of an area alone, of which the kernel registers no second one. It tells
    // the kernel from a filter of system calls that answers each question the same.
    ask(UNREGISTER, !SIGNATURE) == Err(Errno::EPERM) && ask(0, SIGNATURE) == Err(Errno::EBUSY)
}

/// The length of the program's thread-local memory. `None`: it is too long for a search.
fn thread_local_len(program: &[libc::Elf64_Phdr]) -> Option<usize> {
    let of_program = program.iter().find(|header| header.p_type == libc::PT_TLS);
    let len = of_program.map_or(0, |header| header.p_memsz.saturating_add(header.p_align));
    usize::try_from(len).ok().filter(|len| *len <= THREAD_LOCAL_MAX)
}

/// The headers of the program, which is the first object that the C library knows.
fn headers() -> &'static [libc::Elf64_Phdr] {
    let mut found: &[libc::Elf64_Phdr] = &[];
    // SAFETY: `first` takes the pointer as what it is, during this call.
    unsafe { libc::dl_iterate_phdr(Some(first), (&raw mut found).cast()) };
    found
}

/// Stores the headers of an object in `found`, and asks for no other.
extern "C" fn first(
    object: *mut libc::dl_phdr_info,
    _: libc::size_t,
    found: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: the C library passes a valid object.
    let object = unsafe { &*object };
    if !object.dlpi_phdr.is_null() {
        // SAFETY: the program's headers are mapped there, and stay.
        let headers = unsafe { slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()) };
        // SAFETY: `headers` has passed it.
        unsafe { found.cast::<&[libc::Elf64_Phdr]>().write(headers) };
    }
    1
}

/// An entry of the vector that the kernel gave the program; 0 if there is none.
fn auxiliary(name: libc::c_ulong) -> libc::c_ulong {
    // SAFETY: looks up a number in memory of the C library.
    unsafe { libc::getauxval(name) }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::process::Command;
    use std::{env, fs, thread};

    use super::super::area::of_c_library;
    use super::*;

    /// The search finds in each thread what the C library says.
    #[test]
    fn area_of_the_c_library_is_where_the_kernel_says() {
        let Some(expected) = of_c_library() else {
            let is_off = cfg!(target_env = "musl") || std::env::var_os("GLIBC_TUNABLES").is_some();
            return assert!(is_off, "glibc registers areas since 2.35");
        };
        let search = move || {
            let here = thread_pointer();
            // Thread-local memory of loaded libraries as well.
            let mut places = places(here, 1 << 20).step_by(ALIGN);
            let found = places.find(|address| lengths().iter().any(|len| is_registered(*address, *len)));
            assert_eq!(found, Some(here.wrapping_add_signed(expected)));
        };
        search();
        thread::spawn(search).join().unwrap();
        // The questions have changed nothing.
        search();
    }

    #[test]
    fn program_that_was_loaded_is_not_searched() {
        let is_loaded = !cfg!(target_feature = "crt-static");
        assert_eq!(offset(), if is_loaded { None } else { of_c_library() });
        assert!(thread_local_len(headers()).is_some_and(|len| len > 0), "the test's own");
    }

    #[test]
    fn loader_that_the_kernel_tells_is_not_asked() {
        assert!(of_static_program(4096, || panic!("asked")).is_none());
        let is_static = !headers().iter().any(|header| header.p_type == libc::PT_INTERP);
        assert_eq!(of_static_program(0, headers).is_some(), is_static);
        assert!(auxiliary(libc::AT_BASE) == 0 || !is_static);
    }

    /// The kernel knows only the loader then.
    #[test]
    fn program_that_a_loader_was_asked_to_run_is_not_searched() {
        let program = env::current_exe().unwrap();
        let Some(name) = headers().iter().find(|header| header.p_type == libc::PT_INTERP) else {
            return assert_eq!(offset(), of_c_library(), "it has no loader");
        };
        let name = &fs::read(&program).unwrap()[name.p_offset as usize..][..name.p_filesz as usize - 1];
        let test = concat!(module_path!(), "::program_that_was_loaded_is_not_searched");
        let mut command = Command::new(OsStr::from_bytes(name));
        command.arg(program).args(["--exact", test.split_once("::").unwrap().1]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
    }

    #[test]
    fn places_are_aligned_and_around_the_thread_pointer() {
        let around = places(0x7f00_0000_0010, 100);
        assert!(around.start().is_multiple_of(ALIGN) && around.contains(&0x7f00_0000_0000));
        assert!(*around.end() >= 0x7f00_0000_0010 + 100 && *around.start() <= 0x7f00_0000_0010 - 100);
        assert!(places(0, 0).contains(&0) && places(usize::MAX, usize::MAX).contains(&usize::MAX));
        assert_eq!(lengths()[0], 32);
        assert!(lengths().iter().all(|len| (32..1024).contains(len)), "{:?}", lengths());
    }
}
