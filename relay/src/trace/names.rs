//! Names for the numbers in records: threads, processes and events.

mod owners;

use std::collections::HashMap;

use crate::trace::definition::{Definition, Definitions};
use crate::trace::event::Event;
use crate::trace::level::Level;
use crate::trace::record::Record;
use owners::{Found, Threads};

/// The most processes that are kept.
const PROCESSES_MAX: usize = 1 << 18;
/// Nanoseconds of a tick in which the kernel counts the start of processes: 100 a second.
pub const START_TICK: u64 = 10_000_000;
/// How inexact the time of a record, or of a process's start, may be, in nanoseconds.
const START_SLACK: u64 = START_TICK;

/// A process that has attached to a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number in the channel.
    pub number: u32,
    /// Its process id; 0 if it is in a PID namespace that the daemon does not see.
    pub pid: u32,
    /// When it started, in clock ticks since the boot.
    pub start_ticks: u64,
    /// Its user.
    pub uid: u32,
    /// Name of its command.
    pub command: String,
    /// Path of its program.
    pub executable: String,
}

impl Process {
    /// Returns whether the process may have run at a time of CLOCK_BOOTTIME.
    fn has_begun(&self, boottime: u64) -> bool {
        self.start_ticks.saturating_mul(START_TICK) <= boottime.saturating_add(START_SLACK)
    }
}

/// The names of a channel.
#[derive(Clone, Debug, Default)]
pub struct Names {
    definitions: Definitions,
    processes: HashMap<u32, Process>,
    /// The processes with a process id, by number, in the order of their numbers.
    pids: HashMap<u32, Vec<u32>>,
    threads: Threads,
    /// When processes began, in nanoseconds of CLOCK_BOOTTIME, in order.
    begins: Vec<u64>,
}

impl Names {
    /// Makes the names of these events and of the text of `processes`.
    pub fn new(definitions: Definitions, processes: &str) -> Names {
        let mut names = Names { definitions, ..Names::default() };
        names.add_processes(processes);
        names
    }

    /// Replaces the events.
    pub fn set_definitions(&mut self, definitions: Definitions) {
        self.definitions = definitions;
    }

    /// Adds what a newer text of `processes` says. What it no longer has is kept, while that is not too much.
    ///
    /// Returns how many lines were not understood.
    pub fn add_processes(&mut self, text: &str) -> usize {
        // A newer text has all processes and threads of now. So a reader that follows for long forgets old ones.
        if self.processes.len() > PROCESSES_MAX / 2 || self.threads.len() > PROCESSES_MAX / 2 {
            (self.processes, self.pids, self.threads) = Default::default();
        }
        let mut refused = 0;
        let mut threads = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let thread = line.strip_prefix("thread ").map(thread);
            match thread {
                Some(Some(thread)) => threads.push(thread),
                Some(None) => refused += 1,
                None => match process(line) {
                    Some(process) if self.processes.len() < PROCESSES_MAX => self.add(process),
                    _ => refused += 1,
                },
            }
        }
        let begins = self.processes.values().map(|process| process.start_ticks.saturating_mul(START_TICK));
        self.begins = begins.collect();
        self.begins.sort_unstable();
        self.begins.dedup();
        refused + self.threads.add(&threads)
    }

    fn add(&mut self, process: Process) {
        let of_pid = self.pids.entry(process.pid).or_default();
        if let Err(place) = of_pid.binary_search(&process.number) {
            of_pid.insert(place, process.number);
        }
        self.processes.insert(process.number, process);
    }

    /// Returns the event with this id, if a program has defined it.
    pub fn definition(&self, id: u16) -> Option<&Definition> {
        self.definitions.get(id)
    }

    /// Returns the events that programs have defined.
    pub fn definitions(&self) -> &Definitions {
        &self.definitions
    }

    /// Returns the process that a thread had at a time of CLOCK_BOOTTIME, if that is certain.
    /// The first thread of a process has its process id.
    pub fn process(&self, tid: u32, boottime: u64) -> Option<&Process> {
        let ran =
            |number: u32| self.processes.get(&number).is_some_and(|process| process.has_begun(boottime));
        // A process id is given again when its process has ended.
        let is_followed = |number: u32, later: u32| {
            let pid = |number: u32| self.processes.get(&number).map(|process| process.pid);
            number < later && pid(number) == pid(later) && pid(later) != Some(0)
        };
        let number = match self.threads.process(tid, ran, is_followed) {
            Found::One(number) => number,
            Found::Several => return None,
            Found::None => *self.pids.get(&tid)?.iter().rev().find(|number| ran(**number))?,
        };
        // Nothing tells a hidden process from others.
        self.processes.get(&number).filter(|process| process.pid != 0)
    }

    /// Returns a number that is the same for all times between which no process has begun.
    /// Between these times, a thread has one process.
    #[inline]
    pub fn era(&self, boottime: u64) -> usize {
        let latest = boottime.saturating_add(START_SLACK);
        // Most records come behind the begin of all processes.
        if self.begins.last().is_none_or(|last| *last <= latest) {
            return self.begins.len();
        }
        self.begins.partition_point(|begin| *begin <= latest)
    }

    /// Iterates over the processes, in no order.
    pub fn processes(&self) -> impl Iterator<Item = &Process> {
        self.processes.values()
    }

    /// Iterates over the threads whose process is known, in no order.
    pub fn threads(&self) -> impl Iterator<Item = (u32, &Process)> {
        self.threads.iter().filter_map(|(tid, number)| Some((tid, self.processes.get(&number)?)))
    }

    /// Returns a record's level, if it has one.
    pub fn level(&self, record: &Record<'_>) -> Option<Level> {
        match Event::decode(record.id, record.payload) {
            Event::Log { level, .. } => level,
            Event::Other(_) => self.definition(record.id)?.level,
            _ => None,
        }
    }

    /// Returns a record's target, if it has one.
    pub fn target<'a>(&'a self, record: &Record<'a>) -> Option<&'a [u8]> {
        let target = match Event::decode(record.id, record.payload) {
            Event::Log { target, .. } => target,
            Event::Other(_) => self.definition(record.id)?.target.as_bytes(),
            _ => return None,
        };
        (!target.is_empty()).then_some(target)
    }
}

fn thread(words: &str) -> Option<(u32, u32)> {
    let (tid, number) = words.split_once(' ')?;
    Some((tid.parse().ok()?, number.parse().ok()?))
}

fn process(line: &str) -> Option<Process> {
    let mut words = line.splitn(5, ' ');
    let mut next = || words.next();
    let (number, pid, start_ticks, uid) = (next()?, next()?, next()?, next()?);
    let (command, executable) = next()?.split_once('\t')?;
    Some(Process {
        number: number.parse().ok()?,
        pid: pid.parse().ok()?,
        start_ticks: start_ticks.parse().ok()?,
        uid: uid.parse().ok()?,
        command: command.to_owned(),
        executable: executable.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::trace::event::id;

    const TEXT: &str = "\
1 100 5000 0 app one\t/usr/bin/app
2 200 6000 1000 other\t/usr/bin/other
3 100 7000 0 app again\t/usr/bin/app
thread 100 1
thread 101 1
thread 300 9
";
    const LATE: u64 = 9000 * START_TICK;

    #[test]
    fn threads_lead_to_processes() {
        let mut names = Names::new(Definitions::new(), TEXT);
        let command = |names: &Names, tid| names.process(tid, LATE).map(|process| process.command.clone());
        assert_eq!(command(&names, 100).as_deref(), Some("app one"));
        assert_eq!(command(&names, 101).as_deref(), Some("app one"));
        // A first thread that is not in the table.
        assert_eq!(command(&names, 200).as_deref(), Some("other"));
        assert_eq!((command(&names, 300), command(&names, 7)), (None, None));
        assert_eq!(names.process(100, LATE).unwrap().executable, "/usr/bin/app");
        assert_eq!(names.add_processes("thread 100 3\n"), 0);
        assert_eq!(command(&names, 100).as_deref(), Some("app again"));
        assert_eq!(command(&names, 101).as_deref(), Some("app one"));
    }

    /// Process ids are used again, and so are the numbers of other threads.
    #[test]
    fn process_is_not_believed_for_records_from_before_its_start() {
        let at = |ticks: u64| ticks * START_TICK;
        let number = |names: &Names, tid, ticks| names.process(tid, at(ticks)).map(|process| process.number);
        let names = Names::new(Definitions::new(), &TEXT.replace("thread 100 1\n", "thread 100 3\n"));
        assert_eq!(
            [4998, 5000, 6998, 7000].map(|ticks| number(&names, 100, ticks)),
            [None, Some(1), Some(1), Some(3)]
        );
        assert_eq!([4998, 5000].map(|ticks| number(&names, 101, ticks)), [None, Some(1)]);
        let eras: Vec<usize> = [0, 4998, 5000, 6500, 7000, 9000].map(|ticks| names.era(at(ticks))).to_vec();
        assert_eq!(eras, [0, 0, 1, 2, 3, 3]);
        // A reader that follows has seen the thread of the process before.
        let mut names = Names::new(Definitions::new(), TEXT);
        names.add_processes("4 500 8000 0 third\t/x\nthread 101 4\n");
        assert_eq!([7999 - 2, 8000].map(|ticks| number(&names, 101, ticks)), [Some(1), Some(4)]);
    }

    /// Each PID namespace has its own numbers: a wrong name is worse than none.
    #[test]
    fn thread_of_two_processes_has_none() {
        let mut names = Names::new(Definitions::new(), TEXT);
        names.add_processes("thread 7 1\nthread 7 2\n");
        assert_eq!(names.process(7, LATE), None);
        assert_eq!(names.process(7, 5500 * START_TICK).map(|process| process.number), Some(1));
        // Two processes with one id follow each other.
        names.add_processes("thread 100 3\nthread 100 1\n");
        assert_eq!(names.process(100, LATE).map(|process| process.number), Some(3));
    }

    /// They have the process id 0, which is that of no thread, and no name.
    #[test]
    fn hidden_processes_have_no_threads() {
        let text = "1 0 0 0 \t\n2 0 0 1000 \t\n3 300 5000 0 app\t/x\nthread 7 1\nthread 7 2\nthread 8 1\nthread 8 3\nthread 9 2\n";
        let names = Names::new(Definitions::new(), text);
        for tid in [0, 7, 8, 9] {
            assert_eq!(names.process(tid, LATE), None, "{tid}");
        }
        assert_eq!(names.process(300, LATE).map(|process| process.number), Some(3));
    }

    #[test]
    fn strange_lines_do_not_count() {
        let mut names = Names::default();
        let text = "x\n1 2 3\n1 2 3 4 no tab\n-1 2 3 4 a\tb\nthread\nthread 1\nthread 1 x\n1 2 3 4 a\tb\n";
        assert_eq!(names.add_processes(text), 7);
        assert_eq!(names.process(2, LATE).unwrap().command, "a");
    }

    #[test]
    fn newest_names_are_known_however_many_there_were() {
        let mut names = Names::default();
        let text = |numbers: std::ops::Range<u32>| -> String {
            numbers
                .map(|number| format!("{number} {number} 5 0 app {number}\t/x\nthread {number} {number}\n"))
                .collect()
        };
        let half = PROCESSES_MAX as u32 / 2;
        assert_eq!(names.add_processes(&text(1..half + 2)), 0);
        assert_eq!(names.add_processes(&text(half + 2..half + 4)), 0);
        assert_eq!(names.process(half + 3, LATE).unwrap().command, format!("app {}", half + 3));
        assert!(names.process(1, LATE).is_none());
        assert_eq!((names.processes.len(), names.threads.len()), (2, 2));
    }

    #[test]
    fn level_and_target_are_found() {
        let mut definitions = Definitions::new();
        let target = "app::db".to_owned();
        let level = Some(Level::Warn);
        definitions.insert(256, Definition { name: "a".to_owned(), level, target, ..Definition::default() });
        let names = Names::new(definitions, "");
        let record = |id, payload| Record { stamp: 0, id, tid: 0, payload };
        let log = record(id::LOG, b"\x01\x02db\0\0");
        assert_eq!((names.level(&log), names.target(&log)), (Some(Level::Error), Some(&b"db"[..])));
        let defined = record(256, b"");
        assert_eq!((names.level(&defined), names.target(&defined)), (level, Some(&b"app::db"[..])));
        for other in [record(id::TEXT, b""), record(257, b""), record(id::LOG, b"\x01")] {
            assert_eq!((names.level(&other), names.target(&other)), (None, None));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read(text: String, lines in proptest::collection::vec("(thread )?[0-9]{1,11} [0-9]{1,11}( [0-9] [0-9] \\PC*\t)?", 0..9)) {
            let mut names = Names::new(Definitions::new(), &lines.join("\n"));
            names.add_processes(&text);
            for tid in 0..9 {
                names.process(tid, u64::from(tid) << 60);
                names.era(u64::from(tid) << 60);
            }
        }
    }
}
