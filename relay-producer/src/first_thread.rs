//! The number that records of a process's first thread have.

use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

/// Translates the id of this process's first thread into the process's number in the daemon's PID namespace.
///
/// The first process of each container is 1, and containers of one image have the others alike as well. Records of several
/// would then have one number, and readers could not tell which process it means. The daemon's number is one process's.
#[derive(Debug)]
pub(crate) struct FirstThread {
    /// `id << 32 | number`; 0 if they are the same, or the daemon does not know the process.
    word: AtomicU64,
}

impl FirstThread {
    /// Takes the number of this process in the daemon's PID namespace; 0 if it is not known.
    pub(crate) fn new(number: u32) -> FirstThread {
        FirstThread { word: AtomicU64::new(word(number)) }
    }

    /// Takes the number that the next daemon says.
    pub(crate) fn renew(&self, number: u32) {
        // Relaxed: the word is complete in itself.
        self.word.store(word(number), Ordering::Relaxed);
    }

    /// Returns the number that records of the thread with this id have. Other threads than the first have their id.
    #[inline(always)]
    pub(crate) fn number_of(&self, id: u32) -> u32 {
        // Relaxed: as above.
        let word = self.word.load(Ordering::Relaxed);
        if word == 0 { id } else { translate(word, id) }
    }

    /// Returns the number that records about another process have, which is in this process's PID namespace.
    ///
    /// What the daemon calls that one is not known. So this process stands for it where their numbers differ.
    pub(crate) fn number_about(&self, process: u32) -> u32 {
        // Relaxed: as above.
        let word = self.word.load(Ordering::Relaxed);
        if word == 0 { process } else { word as u32 }
    }
}

/// Most processes are in the daemon's namespace.
#[cold]
fn translate(word: u64, id: u32) -> u32 {
    if (word >> 32) as u32 == id { word as u32 } else { id }
}

fn word(number: u32) -> u64 {
    let id = process::id();
    if number == 0 || number == id { 0 } else { u64::from(id) << 32 | u64::from(number) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_of_another_namespace_stands_for_the_first_thread() {
        let own = process::id();
        let first = FirstThread::new(own + 5);
        assert_eq!((first.number_of(own), first.number_of(own + 1)), (own + 5, own + 1));
        assert_eq!(first.number_about(7), own + 5);
        for number in [own, 0] {
            first.renew(number);
            assert_eq!((first.number_of(own), first.number_of(own + 1)), (own, own + 1));
            assert_eq!(first.number_about(7), 7);
        }
    }
}
