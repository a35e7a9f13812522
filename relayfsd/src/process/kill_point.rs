//! Places where tests make the daemon die or wait.
//!
//! Tests see what the next daemon finds, or what other threads and processes do meanwhile.

/// Ends the process by SIGKILL if the environment's `RELAYFSD_KILL_AT` names this place.
///
/// The variable is `NAME`, or `NAME:N` for the Nth time a thread reaches the place. Without the feature `kill-points`,
/// this does nothing.
#[macro_export]
macro_rules! kill_point {
    ($name:literal) => {
        #[cfg(feature = "kill-points")]
        $crate::process::kill_point::reached($name);
    };
}

/// Called when a thread reaches the kill point `name`.
#[cfg(feature = "kill-points")]
pub(crate) fn reached(name: &str) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static TIMES: AtomicU32 = AtomicU32::new(0);

    let Ok(wanted) = std::env::var("RELAYFSD_KILL_AT") else { return };
    let (wanted, time) = wanted.split_once(':').unwrap_or((&wanted, "1"));
    if wanted == name && time.parse() == Ok(TIMES.fetch_add(1, Ordering::Relaxed) + 1) {
        let _ = nix::sys::signal::kill(nix::unistd::getpid(), nix::sys::signal::SIGKILL);
        // Other threads may run on for a moment. This thread must not.
        loop {
            std::thread::park();
        }
    }
}

/// Waits here if the environment's `RELAYFSD_HOLD_AT` names this place, as `NAME:FILE`.
///
/// Creates `FILE.reached`, and waits as long as `FILE` exists. Without the feature `kill-points`, this does nothing.
#[macro_export]
macro_rules! hold_point {
    ($name:literal) => {
        #[cfg(feature = "kill-points")]
        $crate::process::kill_point::held($name);
    };
}

/// Called when a thread reaches the hold point `name`.
#[cfg(feature = "kill-points")]
pub(crate) fn held(name: &str) {
    let Ok(wanted) = std::env::var("RELAYFSD_HOLD_AT") else { return };
    let Some((_, file)) = wanted.split_once(':').filter(|(place, _)| *place == name) else { return };
    let _ = std::fs::write(format!("{file}.reached"), "");
    while std::path::Path::new(file).exists() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
