//! The table by which a reader finds the process of a record's thread.

use super::THREADS_LEN;
use crate::memory::sync::{AtomicU64, Ordering};

/// Threads of a timed channel's direct writers: word `tid % 4096` is `process << 32 | tid`.
/// Two threads whose ids are equal modulo 4096 overwrite each other's word. If the ids are equal, the older word moves
/// to the place half the table further: an id is used again, or two PID namespaces have it at the same time.
#[derive(Debug)]
#[repr(C)]
pub struct ThreadTable {
    words: [AtomicU64; THREADS_LEN],
}

impl Default for ThreadTable {
    fn default() -> ThreadTable {
        ThreadTable { words: std::array::from_fn(|_| AtomicU64::default()) }
    }
}

impl ThreadTable {
    /// Notes that the thread `tid` belongs to the process with this number; a writer does so before each record.
    #[inline(always)]
    pub fn note(&self, tid: u32, process: u32) {
        let word = word_of(tid, process);
        // Relaxed: a word of another thread is overwritten whenever it was seen.
        let before = self.words[tid as usize % THREADS_LEN].load(Ordering::Relaxed);
        if before != word {
            self.replace(before, word);
        }
    }

    /// Returns whether [`Self::note`] would change nothing.
    #[inline(always)]
    pub fn has(&self, tid: u32, process: u32) -> bool {
        // Relaxed: as in `note`.
        self.words[tid as usize % THREADS_LEN].load(Ordering::Relaxed) == word_of(tid, process)
    }

    #[cold]
    fn replace(&self, before: u64, word: u64) {
        let index = word as u32 as usize % THREADS_LEN;
        // Relaxed, both: a reader that finds the thread's record also finds its word, since A orders it.
        if before as u32 == word as u32 && before >> 32 != 0 {
            self.words[second(index)].store(before, Ordering::Relaxed);
        }
        self.words[index].store(word, Ordering::Relaxed);
    }

    /// Returns the number of the thread's process, if the thread was the last to use its word.
    /// Any process that maps the file can have stored it.
    pub fn process_of(&self, tid: u32) -> Option<u32> {
        self.at(tid as usize % THREADS_LEN).filter(|(thread, _)| *thread == tid).map(|(_, process)| process)
    }

    /// Returns the threads in the table with the numbers of their processes.
    pub fn threads(&self) -> impl Iterator<Item = (u32, u32)> {
        (0..THREADS_LEN).filter_map(|index| self.at(index))
    }

    /// Returns the threads in the table that another process had before, with the number of that one.
    pub fn older(&self) -> impl Iterator<Item = (u32, u32)> {
        self.threads().filter_map(|(tid, process)| {
            let (older, other) = self.word(second(tid as usize % THREADS_LEN));
            (older == tid && other != 0 && other != process).then_some((tid, other))
        })
    }

    /// Returns thread and process of a word. `None` if it is empty, or not in its place.
    fn at(&self, index: usize) -> Option<(u32, u32)> {
        let (tid, process) = self.word(index);
        (process != 0 && tid as usize % THREADS_LEN == index).then_some((tid, process))
    }

    fn word(&self, index: usize) -> (u32, u32) {
        // Relaxed: B, before it, orders the words of records that were read.
        let word = self.words[index].load(Ordering::Relaxed);
        (word as u32, (word >> 32) as u32)
    }
}

fn word_of(tid: u32, process: u32) -> u64 {
    u64::from(process) << 32 | u64::from(tid)
}

/// Returns the place of the word that moves.
fn second(index: usize) -> usize {
    (index + THREADS_LEN / 2) % THREADS_LEN
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<ThreadTable>() == 4096 * 8);

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn process_is_found_until_another_thread_takes_the_word() {
        let table = ThreadTable::default();
        assert_eq!((table.process_of(0), table.process_of(7)), (None, None));
        table.note(7, 3);
        table.note(u32::MAX, 4);
        assert_eq!((table.process_of(7), table.process_of(u32::MAX)), (Some(3), Some(4)));
        assert_eq!(table.threads().collect::<Vec<_>>(), [(7, 3), (u32::MAX, 4)]);
        assert!(table.has(7, 3) && !table.has(7, 4) && !table.has(7 + 4096, 3));
        table.note(7 + 4096, 5);
        assert_eq!((table.process_of(7), table.process_of(7 + 4096)), (None, Some(5)));
    }

    #[test]
    fn word_of_another_process_with_the_thread_moves() {
        let table = ThreadTable::default();
        table.note(7, 3);
        assert_eq!(table.older().count(), 0);
        for _ in 0..2 {
            table.note(7, 4);
            assert_eq!((table.process_of(7), table.older().collect::<Vec<_>>()), (Some(4), vec![(7, 3)]));
            table.note(7, 3);
            assert_eq!((table.process_of(7), table.older().collect::<Vec<_>>()), (Some(3), vec![(7, 4)]));
        }
        assert_eq!(table.threads().collect::<Vec<_>>(), [(7, 3)]);
        // Another thread has the first place: the moved word says nothing any more.
        table.note(7 + 4096, 5);
        assert_eq!(table.older().count(), 0);
    }

    #[test]
    fn hostile_word_names_no_thread() {
        let table = ThreadTable::default();
        table.words[7].store(u64::MAX, Ordering::Relaxed);
        table.words[8].store(8, Ordering::Relaxed);
        assert_eq!((table.process_of(7), table.process_of(8)), (None, None));
        assert_eq!(table.threads().count(), 0);
    }
}
