//! The name by which the daemon knows this process: that of its first thread, when it attaches.
//!
//! All channels of a process share that name. While several of them attach, it is the latest one's. The first of them
//! keeps the name that the process had, and the last one gives it back.

use std::fs;
use std::time::Instant;

use relay::system::process_lock::ProcessLock;

const NAME: &str = "/proc/self/comm";

/// Bytes of a thread's name that the kernel keeps.
const NAME_MAX: usize = 15;

static NAMES: ProcessLock<Names> = ProcessLock::new(Names::new(), Names::of_child);

/// The names that the first thread has had.
#[derive(Debug, Default)]
struct Names {
    /// The process's own, if it has another one now.
    own: Vec<u8>,
    /// The others, each with its number.
    given: Vec<(u64, Vec<u8>)>,
    /// The latest name that a parent had from its handshakes at the fork.
    of_parent: Option<Vec<u8>>,
    last: u64,
}

impl Names {
    const fn new() -> Names {
        Names { own: Vec::new(), given: Vec::new(), of_parent: None, last: 0 }
    }

    /// Makes the names of a forked child, which has none of its parent's handshakes.
    ///
    /// If the parent's first thread has forked during one, the child has the name from it, and keeps that until its
    /// first handshake is over. Numbers go on, since the parent's handshakes are in the child's memory. A fork while another
    /// thread gives a name leaves the child without these names, and perhaps with that one.
    fn of_child(&self) -> Names {
        let of_parent = self.given.last().map(|(_, name)| name).or(self.of_parent.as_ref()).cloned();
        Names { own: self.own.clone(), given: Vec::new(), of_parent, last: self.last }
    }

    /// Notes the name that the process has before the first handshake.
    fn note_own(&mut self, present: &[u8]) {
        let of_parent = self.of_parent.take();
        if of_parent.is_none_or(|name| name[..name.len().min(NAME_MAX)] != *present) {
            self.own = present.to_vec();
        }
    }
}

/// Another name of the process's first thread, until this is dropped.
#[derive(Debug)]
pub(crate) struct Renamed {
    /// Its number and when it was given. `None`: the process has its own.
    given: Option<(u64, Instant)>,
}

impl Renamed {
    /// Gives the thread a name. An empty one changes nothing.
    pub(crate) fn to(name: &[u8]) -> Renamed {
        if name.is_empty() {
            return Renamed { given: None };
        }
        let mut names = NAMES.write();
        if names.given.is_empty() {
            let Ok(own) = fs::read(NAME) else { return Renamed { given: None } };
            // The kernel shows it with a newline, and takes one as a part of the name.
            names.note_own(own.strip_suffix(b"\n").unwrap_or(&own));
        }
        names.last += 1;
        let number = names.last;
        names.given.push((number, name.to_vec()));
        let _ = fs::write(NAME, name);
        Renamed { given: Some((number, Instant::now())) }
    }

    /// Returns when the thread got its name. `None`: it has its own.
    pub(crate) fn since(&self) -> Option<Instant> {
        self.given.map(|(_, since)| since)
    }

    /// Takes the name back.
    pub(crate) fn end(&mut self) {
        let Some((number, _)) = self.given.take() else { return };
        let mut names = NAMES.write();
        let Some(at) = names.given.iter().position(|(given, _)| *given == number) else { return };
        names.given.remove(at);
        let _ = fs::write(NAME, names.given.last().map_or(&names.own, |(_, name)| name));
    }
}

impl Drop for Renamed {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_of_the_process_comes_back_in_any_order() {
        let name = || fs::read_to_string(NAME).unwrap();
        let own = name();
        for first_ends_first in [true, false] {
            let mut channels = [Renamed::to(b"one"), Renamed::to(b""), Renamed::to(b"two")];
            assert_eq!(name(), "two\n");
            let [one, none, two] = &mut channels;
            none.end();
            if first_ends_first {
                one.end();
                assert_eq!(name(), "two\n");
            } else {
                two.end();
                assert_eq!(name(), "one\n");
            }
            drop(channels);
            assert_eq!(name(), own);
        }
    }

    #[test]
    fn child_of_a_renamed_thread_has_the_process_s_own_name() {
        let mut parent = Names::new();
        parent.note_own(b"parent");
        let long = b"a program of a long name";
        parent.given.extend([(1, b"first".to_vec()), (2, long.to_vec())]);
        parent.last = 2;
        let child = parent.of_child();
        assert_eq!((child.given.len(), child.last), (0, 2));
        for mut names in [child.of_child(), child] {
            names.note_own(&long[..NAME_MAX]);
            assert_eq!(names.own, b"parent");
            // Since then it has been renamed by other code.
            names.note_own(&long[..NAME_MAX]);
            assert_eq!(names.own, long[..NAME_MAX]);
        }
        let mut of_other_thread = parent.of_child();
        of_other_thread.note_own(b"worker");
        assert_eq!(of_other_thread.own, b"worker");
    }
}
