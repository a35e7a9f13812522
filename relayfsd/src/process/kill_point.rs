//! Where a test build of the daemon can be made to die, to see what the next one finds; or to wait, to see what others do meanwhile.

/// With the feature `kill-points`, ends the process by SIGKILL if the environment's `RELAYFSD_KILL_AT` names this place, as
/// `NAME`, or as `NAME:N` for the Nth time it is come to. Otherwise nothing.
#[macro_export]
macro_rules! kill_point {
    ($name:literal) => {
        #[cfg(feature = "kill-points")]
        $crate::process::kill_point::reached($name);
    };
}

/// The process is at a place of this name.
#[cfg(feature = "kill-points")]
pub(crate) fn reached(name: &str) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static TIMES: AtomicU32 = AtomicU32::new(0);

    let Ok(wanted) = std::env::var("RELAYFSD_KILL_AT") else { return };
    let (wanted, time) = wanted.split_once(':').unwrap_or((&wanted, "1"));
    if wanted == name && time.parse() == Ok(TIMES.fetch_add(1, Ordering::Relaxed) + 1) {
        let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::SIGKILL);
        // Other threads may run on for a moment, this one shall not.
        loop {
            std::thread::park();
        }
    }
}

/// With the feature `kill-points`, waits here as long as the file exists that the environment's `RELAYFSD_HOLD_AT` names, as
/// `NAME:FILE`, and makes `FILE.reached`. Otherwise nothing.
#[macro_export]
macro_rules! hold_point {
    ($name:literal) => {
        #[cfg(feature = "kill-points")]
        $crate::process::kill_point::held($name);
    };
}

/// The thread is at a place of this name.
#[cfg(feature = "kill-points")]
pub(crate) fn held(name: &str) {
    let Ok(wanted) = std::env::var("RELAYFSD_HOLD_AT") else { return };
    let Some((_, file)) = wanted.split_once(':').filter(|(place, _)| *place == name) else { return };
    let _ = std::fs::write(format!("{file}.reached"), "");
    while std::path::Path::new(file).exists() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
