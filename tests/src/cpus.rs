//! CPUs that stay online while tests run.
//!
//! A thread that is bound to a CPU is moved when that goes offline, and writes into another CPU's buffer from then on. So
//! a test that takes a CPU away waits for all other runs of tests on the machine.

use std::fs::File;
use std::io;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::LOOK;

/// The file that is locked: every process may open it.
const ONLINE: &str = "/sys/devices/system/cpu/online";
/// Longest wait for other runs.
const OTHERS_MAX: Duration = Duration::from_secs(300);

/// Lets this process take CPUs away until it is dropped.
#[derive(Debug)]
pub struct Alone(());

/// Returns this process's lock. It is shared, from the first call to the end of the process. `None`: the kernel's file is
/// not there, as in some containers.
fn lock() -> Option<&'static Flock<File>> {
    static LOCK: OnceLock<Option<Flock<File>>> = OnceLock::new();
    let take = || {
        let file = File::open(ONLINE).ok()?;
        Some(Flock::lock(file, FlockArg::LockShared).expect("a lock that no other process keeps for long"))
    };
    LOCK.get_or_init(take).as_ref()
}

/// Keeps the CPUs online until this process ends. Waits while another process takes one away.
pub fn stay_online() {
    let _ = lock();
}

/// Waits until no other process needs the CPUs. The caller sees to it that no other test of this process does.
pub fn alone() -> io::Result<Alone> {
    let lock = lock().ok_or(io::ErrorKind::NotFound)?;
    let end = Instant::now() + OTHERS_MAX;
    loop {
        match lock.relock(FlockArg::LockExclusiveNonblock) {
            Ok(()) => return Ok(Alone(())),
            // The shared lock may be lost as well.
            Err(Errno::EWOULDBLOCK) => lock.relock(FlockArg::LockShared)?,
            Err(errno) => return Err(errno.into()),
        }
        if Instant::now() >= end {
            return Err(io::Error::other("other tests use it"));
        }
        thread::sleep(LOOK);
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        // A lock that is released is as good here.
        let _ = lock().map(|lock| lock.relock(FlockArg::LockShared));
    }
}
