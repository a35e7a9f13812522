//! Which process a thread's number belongs to, at which time.
//!
//! The kernel gives a number again when its thread has ended, and each PID namespace has its own numbers. A record has the
//! number alone. So a process is not believed for records from before its start, nor one of two that may both be meant.

use std::collections::HashMap;

/// The most threads that are kept. A channel's own table has 4096.
const THREADS_MAX: usize = 1 << 18;
/// The most processes that are kept for a thread: those that wrote last.
const OWNERS_MAX: usize = 8;

/// The processes that had a thread's number.
#[derive(Clone, Debug, Default)]
struct Owners {
    /// Those that the newest text names: several, if they have the number at the same time.
    current: Vec<u32>,
    /// Those of older texts, the oldest first.
    former: Vec<u32>,
}

/// The processes of threads, by numbers of processes.
#[derive(Clone, Debug, Default)]
pub(super) struct Threads(HashMap<u32, Owners>);

impl Threads {
    /// Returns the number of threads.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Adds what a newer text says: pairs of a thread and its process. Returns how many had no place.
    pub(super) fn add(&mut self, pairs: &[(u32, u32)]) -> usize {
        let mut fresh: HashMap<u32, Vec<u32>> = HashMap::new();
        for (tid, process) in pairs {
            let processes = fresh.entry(*tid).or_default();
            if processes.len() < OWNERS_MAX && !processes.contains(process) {
                processes.push(*process);
            }
        }
        let mut refused = 0;
        for (tid, current) in fresh {
            if self.0.len() >= THREADS_MAX && !self.0.contains_key(&tid) {
                refused += 1;
                continue;
            }
            let owners = self.0.entry(tid).or_default();
            let before = std::mem::replace(&mut owners.current, current);
            owners.former.retain(|process| !owners.current.contains(process) && !before.contains(process));
            owners.former.extend(before.into_iter().filter(|process| !owners.current.contains(process)));
            let excess = owners.former.len().saturating_sub(OWNERS_MAX);
            owners.former.drain(..excess);
        }
        refused
    }

    /// Returns the process of a thread, if it is certain. `ran` says whether a process may have run at that time.
    ///
    /// `is_followed` says whether a later process has the first one's place, which has therefore ended.
    pub(super) fn process(
        &self,
        tid: u32,
        ran: impl Fn(u32) -> bool,
        is_followed: impl Fn(u32, u32) -> bool,
    ) -> Found {
        let Some(owners) = self.0.get(&tid) else { return Found::None };
        let mut possible: Vec<u32> = owners.current.iter().copied().filter(|process| ran(*process)).collect();
        if possible.len() > 1 {
            let all = possible.clone();
            possible.retain(|process| !all.iter().any(|later| is_followed(*process, *later)));
        }
        match possible[..] {
            [process] => Found::One(process),
            [] => owners
                .former
                .iter()
                .rev()
                .find(|process| ran(**process))
                .map_or(Found::None, |p| Found::One(*p)),
            _ => Found::Several,
        }
    }

    /// Iterates over threads and their processes, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, u32)> {
        self.0.iter().flat_map(|(tid, owners)| {
            owners.former.iter().chain(&owners.current).map(|process| (*tid, *process))
        })
    }
}

/// What is known of a thread's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// Nothing.
    None,
    /// Its number.
    One(u32),
    /// That it is one of several.
    Several,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(threads: &Threads, tid: u32) -> Found {
        threads.process(tid, |_| true, |_, _| false)
    }

    #[test]
    fn newer_text_replaces_a_process_and_the_older_one_is_kept() {
        let mut threads = Threads::default();
        threads.add(&[(100, 1), (101, 1)]);
        threads.add(&[(100, 2)]);
        assert_eq!((process(&threads, 100), process(&threads, 101)), (Found::One(2), Found::One(1)));
        assert_eq!(threads.process(100, |process| process == 1, |_, _| false), Found::One(1));
        assert_eq!(threads.process(100, |_| false, |_, _| false), Found::None);
        threads.add(&[(100, 1)]);
        assert_eq!(process(&threads, 100), Found::One(1));
        let mut all: Vec<_> = threads.iter().collect();
        all.sort_unstable();
        assert_eq!(all, [(100, 1), (100, 2), (101, 1)]);
    }

    #[test]
    fn two_processes_at_the_same_time_are_none() {
        let mut threads = Threads::default();
        threads.add(&[(100, 1), (100, 2), (100, 2)]);
        assert_eq!(process(&threads, 100), Found::Several);
        assert_eq!(threads.process(100, |process| process < 2, |_, _| false), Found::One(1));
        assert_eq!(threads.process(100, |_| true, |before, later| before < later), Found::One(2));
    }

    #[test]
    fn hostile_text_takes_bounded_memory() {
        let mut threads = Threads::default();
        for number in 0..1000 {
            threads.add(&[(7, number), (7, number + 1)]);
        }
        assert!(threads.0[&7].former.len() <= OWNERS_MAX);
        let many: Vec<(u32, u32)> = (0..2 * THREADS_MAX as u32).map(|tid| (tid, 1)).collect();
        assert!(threads.add(&many) > 0);
        assert_eq!(threads.0.len(), THREADS_MAX);
    }
}
