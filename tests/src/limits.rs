//! Limits of the test's own process.

use std::sync::{Mutex, PoisonError};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Lets this process, and those it starts, have this many files open. The test fails if the system forbids it.
///
/// Tests of one process share the limit, so it never becomes lower.
#[track_caller]
pub fn allow_open_files(needed: u64) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("our own limit");
    assert!(hard >= needed, "this test takes {needed} open files: raise the hard limit (ulimit -Hn), {hard}");
    if soft < needed {
        setrlimit(Resource::RLIMIT_NOFILE, needed, hard).expect("a soft limit below the hard one");
    }
}
