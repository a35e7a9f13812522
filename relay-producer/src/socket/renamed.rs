//! The name by which the daemon knows this process: that of its first thread, when it attaches.

use std::fs;

const NAME: &str = "/proc/self/comm";

/// Another name of the process's first thread, until this is dropped.
#[derive(Debug)]
pub(crate) struct Renamed {
    /// The name before. `None`: it has stayed.
    own: Option<Vec<u8>>,
}

impl Renamed {
    /// Gives the thread a name. An empty one changes nothing.
    pub(crate) fn to(name: &[u8]) -> Renamed {
        let own = if name.is_empty() { None } else { fs::read(NAME).ok() };
        if own.is_some() {
            let _ = fs::write(NAME, name);
        }
        Renamed { own }
    }
}

impl Drop for Renamed {
    fn drop(&mut self) {
        if let Some(own) = &self.own {
            // The kernel shows it with a newline, and takes one as a part of the name.
            let _ = fs::write(NAME, own.strip_suffix(b"\n").unwrap_or(own));
        }
    }
}
