//! Places where tests make the program panic, to see what becomes of the terminal.

/// Panics if the environment's `AUDIENCE_PANIC_AT` names this place.
///
/// The variable is `NAME`, or `NAME:N` for the Nth time that a thread reaches the place. Without the feature `kill-points`,
/// this does nothing.
#[macro_export]
macro_rules! panic_point {
    ($name:literal) => {
        #[cfg(feature = "kill-points")]
        $crate::panic_point::reached($name);
    };
}

/// Called when a thread reaches the place `name`.
#[cfg(feature = "kill-points")]
pub(crate) fn reached(name: &str) {
    use std::sync::atomic::{AtomicU32, Ordering};
    static TIMES: AtomicU32 = AtomicU32::new(0);

    let Ok(wanted) = std::env::var("AUDIENCE_PANIC_AT") else { return };
    let (wanted, time) = wanted.split_once(':').unwrap_or((&wanted, "1"));
    // Relaxed: it only counts.
    let is_now = wanted == name && time.parse() == Ok(TIMES.fetch_add(1, Ordering::Relaxed) + 1);
    assert!(!is_now, "a panic for a test, at {name}");
}
