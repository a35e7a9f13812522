//! The number that records of a process's first thread have.

use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use relay::system::thread_id::ThisThread;

/// Translates the id of this process's first thread into the process's number in the daemon's PID namespace.
///
/// The first process of each container is 1, and containers of one image have the others alike as well. Records of several
/// would then have one number, and readers could not tell which process it means. The daemon's number is one process's.
#[derive(Debug)]
pub(crate) struct FirstThread {
    /// `id << 32 | number`; 0 if they are the same, or the daemon does not know the process.
    word: AtomicU64,
    /// The process, see [`ThisThread::process`]. A forked child may have its parent's id, in another PID namespace.
    process: AtomicU64,
}

impl FirstThread {
    /// Takes the number of this process in the daemon's PID namespace; 0 if it is not known.
    pub(crate) fn new(number: u32) -> FirstThread {
        let process = AtomicU64::new(ThisThread::find().process());
        FirstThread { word: AtomicU64::new(word(number)), process }
    }

    /// Takes the number that the next daemon says.
    pub(crate) fn renew(&self, number: u32) {
        // Relaxed: the word is complete in itself.
        self.word.store(word(number), Ordering::Relaxed);
        // Release, pairs with the look in `is_of`: a thread of a child that finds its process finds its word.
        self.process.store(ThisThread::find().process(), Ordering::Release);
    }

    /// Returns the number that records of the calling thread have. A forked child has its id until the daemon says more.
    pub(crate) fn number_in(&self, this: ThisThread) -> u32 {
        if self.is_of(this) { self.number_of(this.id()) } else { this.id() }
    }

    /// Returns the number that records of the thread with this id have. Other threads than the first have their id.
    ///
    /// The caller knows that the number is its process's.
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
        if !self.is_of(ThisThread::find()) {
            return process;
        }
        // Relaxed: as above.
        let word = self.word.load(Ordering::Relaxed);
        if word == 0 { process } else { word as u32 }
    }

    /// Returns whether the number is that of the calling thread's process, and not of its parent.
    pub(crate) fn is_of(&self, this: ThisThread) -> bool {
        self.process.load(Ordering::Acquire) == this.process()
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

    #[test]
    fn child_with_its_parents_id_does_not_have_its_number() {
        let (own, this) = (process::id(), ThisThread::find());
        let first = FirstThread::new(own + 5);
        // As in the memory of a child that has this id as well.
        first.word.store(u64::from(this.id()) << 32 | 9, Ordering::Relaxed);
        assert_eq!((first.number_in(this), first.number_about(7)), (9, 9));
        first.process.store(this.process() - 1, Ordering::Relaxed);
        assert_eq!((first.number_in(this), first.number_about(7)), (this.id(), 7));
        first.renew(own + 6);
        assert_eq!(first.number_about(7), own + 6);
    }
}
