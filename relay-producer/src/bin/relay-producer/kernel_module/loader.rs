//! Loading a kernel module.
//!
//! The module is a shared object compiled with the headers of `include/relayfs-compat`. Its `init_module` runs in this
//! process at the start, its `cleanup_module` at the end. Only this file calls the dynamic loader.
#![allow(unsafe_code)]

use std::env;
use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::mem::{MaybeUninit, transmute};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::libc;
use relay::layout::paths::MOUNT_ENV;

/// File names of the library that modules call: its soname, and the name that a build makes.
const LIBRARY: [&str; 2] = ["librelay.so.0", concat!("librelay.so.", env!("CARGO_PKG_VERSION"))];
/// Directories of the library, relative to that of this program.
const PLACES: [&str; 2] = ["", "../lib"];

/// A loaded module. It stays loaded until the process ends.
#[derive(Debug)]
pub(crate) struct Module {
    init: extern "C" fn() -> c_int,
    /// A kernel cannot unload a module without it; this process can still end.
    cleanup: Option<extern "C" fn()>,
}

impl Module {
    /// Loads a module and the library that it needs.
    /// Only the module's constructors run. The error is for people.
    ///
    /// `mount` is the mount point of its channels. The caller has no other thread that reads the environment.
    pub(crate) fn load(file: &Path, mount: &OsStr) -> Result<Module, String> {
        // SAFETY: the only other thread of this process waits for signals, and reads no variable.
        unsafe { env::set_var(MOUNT_ENV, mount) };
        // For modules that are not linked with the library. Other modules find it by its name, since it is loaded.
        load_library()?;
        // With a slash in it: otherwise the loader would search for it. It is also the name that dladdr reports.
        let path = file.canonicalize().map_err(|error| error.to_string())?;
        let path = c_string(path.as_os_str())?;
        let handle = open(&path, libc::RTLD_NOW | libc::RTLD_LOCAL).map_err(|error| {
            // The caller names the file.
            let error = error.strip_prefix(&format!("{}: ", path.to_string_lossy())).unwrap_or(&error);
            let hint =
                if error.starts_with("undefined") { "" } else { "; a module is made by cc -shared -fPIC" };
            format!("{error}{hint}")
        })?;
        let find = |name: &CStr| symbol(handle, name).filter(|address| is_from(*address, &path));
        let init = find(c"init_module")
            .ok_or("there is no init_module in it: neither a function of this name nor module_init()")?;
        let cleanup = find(c"cleanup_module");
        // SAFETY: not null, by `symbol`, and the module's own, by `is_from`. The module's author promises that this
        // name is a function of this type, as for a kernel. The module stays loaded: no code closes `handle`.
        let init = unsafe { transmute::<*mut c_void, extern "C" fn() -> c_int>(init) };
        // SAFETY: as for `init`: not null, by `symbol`, and the module's own, by `is_from`.
        let cleanup = cleanup.map(|cleanup| unsafe { transmute::<*mut c_void, extern "C" fn()>(cleanup) });
        Ok(Module { init, cleanup })
    }

    /// Runs the module's `init_module`. Returns 0, or a negative error number.
    pub(crate) fn init(&self) -> c_int {
        (self.init)()
    }

    /// Runs its `cleanup_module`, if it has one.
    pub(crate) fn cleanup(&self) {
        if let Some(cleanup) = self.cleanup {
            cleanup();
        }
    }
}

/// Loads the library, so that objects loaded later find its functions.
fn load_library() -> Result<(), String> {
    let dir = env::current_exe().ok().and_then(|path| Some(path.parent()?.to_owned()));
    let beside = PLACES.iter().flat_map(|place| LIBRARY.map(|name| Path::new(place).join(name)));
    let found = dir.and_then(|dir| beside.map(|path| dir.join(path)).find(|path| path.is_file()));
    let path = found.unwrap_or_else(|| PathBuf::from(LIBRARY[0]));
    let opened = open(&c_string(path.as_os_str())?, libc::RTLD_NOW | libc::RTLD_GLOBAL);
    opened.map(drop).map_err(|error| format!("{error}; it belongs beside this program, or into ../lib"))
}

fn c_string(text: &OsStr) -> Result<CString, String> {
    CString::new(text.as_bytes()).map_err(|_| "its name has a zero byte in it".to_owned())
}

fn open(path: &CStr, flags: c_int) -> Result<*mut c_void, String> {
    // SAFETY: the object's constructors run in this process, which is the purpose of loading it.
    let handle = unsafe { libc::dlopen(path.as_ptr(), flags) };
    if handle.is_null() { Err(last_error()) } else { Ok(handle) }
}

fn last_error() -> String {
    // SAFETY: no preconditions; the loader keeps an error for each thread.
    let error: *const c_char = unsafe { libc::dlerror() };
    if error.is_null() {
        return "the loader does not say why".to_owned();
    }
    // SAFETY: not null, so a string of the loader's, which stays until the next call.
    unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned()
}

fn symbol(handle: *mut c_void, name: &CStr) -> Option<*mut c_void> {
    // SAFETY: a handle that is open, and a string that ends with a zero byte.
    let address = unsafe { libc::dlsym(handle, name.as_ptr()) };
    (!address.is_null()).then_some(address)
}

/// Returns whether the address lies in the object of this path.
/// The loader also searches the objects that it needs, and the C library has an `init_module`: the system call.
fn is_from(address: *mut c_void, path: &CStr) -> bool {
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: the second argument is writable memory.
    if unsafe { libc::dladdr(address, info.as_mut_ptr()) } == 0 {
        return false;
    }
    // SAFETY: zeroed, which is a valid value, and then filled in.
    let name = unsafe { info.assume_init() }.dli_fname;
    // SAFETY: the loader's name of an object that stays loaded, if it is not null.
    !name.is_null() && unsafe { CStr::from_ptr(name) } == path
}
