//! The processes of a timed channel: a number for each, kept in `ID.processes`.
//!
//! ```text
//! NUMBER PID START_TICKS UID COMMAND\tEXECUTABLE
//! ```
//!
//! Control characters in the names are escaped, so that a line is a process.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use relay::cli::one_line::one_line;
use thiserror::Error;

use super::journal::{JOURNAL_MAX, Journal};
use crate::channel::files::FindError;
use crate::process::identity::Identity;

/// Most processes of a channel. Beyond, the oldest that have ended go first.
const PROCESSES_MAX: usize = 4096;
/// Longest name of a command, or path of an executable, in bytes.
///
/// The longest file is read whole, or the newest processes would be unknown to the next daemon.
const TEXT_MAX: usize = 960;
/// Longest line: four numbers and two names.
const LINE_MAX: usize = 4 * 21 + 2 * TEXT_MAX + 2;
const _: () = assert!(((2 * PROCESSES_MAX + 1) * LINE_MAX) as u64 <= JOURNAL_MAX);
/// Threads have numbers of processes that the file lacks, if it is damaged. Larger ones are not believed: a peer could
/// use up all numbers with one.
const LOST_MAX: u32 = u32::MAX / 2;

/// Why a process gets no number.
#[derive(Debug, Error)]
pub(crate) enum AttachError {
    #[error("the channel has used up its numbers for processes: recreate it")]
    NoNumbers,
    #[error("the channel's file of processes cannot be written: {0}")]
    Io(#[from] io::Error),
}

impl AttachError {
    pub(crate) fn errno(&self) -> i32 {
        match self {
            AttachError::NoNumbers => libc::ENOSPC,
            AttachError::Io(error) => error.raw_os_error().unwrap_or(libc::EIO),
        }
    }
}

/// A process of a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    number: u32,
    identity: Identity,
    /// How many connections of the process are attached.
    attached: u32,
    /// Whether its end has been reported.
    ended: bool,
}

/// The processes of a channel, by number.
#[derive(Debug)]
pub(super) struct Processes {
    all: Vec<Process>,
    last: u32,
    journal: Journal,
    /// Lines in the file, of which some may be of processes that are forgotten.
    n_lines: usize,
}

impl Processes {
    /// Creates the empty file.
    pub(super) fn create(path: &Path) -> io::Result<Processes> {
        Ok(Processes { all: Vec::new(), last: 0, journal: Journal::create(path)?, n_lines: 0 })
    }

    /// Reads the file that an earlier daemon left. Lines that are no processes are left out.
    pub(super) fn find(path: &Path) -> Result<Processes, FindError> {
        let (journal, bytes) = Journal::find(path)?;
        let text = String::from_utf8_lossy(&bytes);
        let mut processes = Processes { all: Vec::new(), last: 0, journal, n_lines: 0 };
        let mut n_wrong = 0;
        for line in text.split_inclusive('\n') {
            match parse(line).filter(|process| process.number > processes.last) {
                Some(process) => {
                    processes.last = process.number;
                    processes.all.push(process);
                }
                None => n_wrong += 1,
            }
        }
        processes.n_lines = processes.all.len();
        processes.trim();
        if n_wrong > 0 {
            log::warn!("{}: {n_wrong} lines are no processes, and are left out", path.display());
        }
        if n_wrong > 0 || processes.n_lines > processes.all.len() {
            processes.rewrite().map_err(|source| FindError::of(path, source))?;
        }
        Ok(processes)
    }

    /// Gives no number again that a thread has: its process may be one that the file has lost.
    pub(super) fn skip(&mut self, numbers: impl Iterator<Item = u32>) {
        self.last = numbers.filter(|number| *number <= LOST_MAX).fold(self.last, u32::max);
    }

    /// Returns the number of a process that attaches. A process that was there keeps its number.
    pub(super) fn attach(&mut self, identity: Identity) -> Result<u32, AttachError> {
        let is_same = |known: &Identity| {
            known.start != 0
                && (known.pid, known.start, known.uid) == (identity.pid, identity.start, identity.uid)
        };
        if let Some(known) = self.all.iter_mut().find(|known| is_same(&known.identity)) {
            known.attached = known.attached.saturating_add(1);
            return Ok(known.number);
        }
        let number = self.last.checked_add(1).ok_or(AttachError::NoNumbers)?;
        let process = Process { number, identity, attached: 1, ended: false };
        if self.n_lines >= 2 * PROCESSES_MAX {
            self.rewrite()?;
        }
        self.journal.append(line(&process).as_bytes())?;
        self.n_lines += 1;
        self.last = number;
        self.all.push(process);
        self.trim();
        Ok(number)
    }

    /// Notes that a connection of a process is gone.
    pub(super) fn detach(&mut self, number: u32) {
        if let Some(known) = self.all.iter_mut().find(|known| known.number == number) {
            known.attached = known.attached.saturating_sub(1);
        }
    }

    /// Notes that a process has ended. Returns whether that is news.
    pub(super) fn end(&mut self, number: u32) -> bool {
        let known = self.all.iter_mut().find(|known| known.number == number);
        known.is_none_or(|known| !std::mem::replace(&mut known.ended, true))
    }

    /// Returns the last number given.
    pub(super) fn last(&self) -> u32 {
        self.last
    }

    /// Returns the processes as text: the lines of the file.
    pub(super) fn text(&self) -> String {
        self.all.iter().map(line).collect()
    }

    /// Forgets processes beyond the limit.
    fn trim(&mut self) {
        while self.all.len() > PROCESSES_MAX {
            let gone = self.all.iter().position(|process| process.attached == 0).unwrap_or(0);
            self.all.remove(gone);
        }
    }

    fn rewrite(&mut self) -> io::Result<()> {
        self.journal.replace(self.text().as_bytes())?;
        self.n_lines = self.all.len();
        Ok(())
    }
}

fn line(process: &Process) -> String {
    let Process { number, identity: Identity { pid, start, uid, command, executable }, .. } = process;
    let mut line = format!("{number} {pid} {start} {uid} ");
    let _ = writeln!(line, "{}\t{}", cut(&one_line(command)), cut(&one_line(executable)));
    line
}

/// Returns the begin of a text, so that a line is not endless.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_MAX)]
}

fn parse(line: &str) -> Option<Process> {
    let mut words = line.strip_suffix('\n')?.splitn(5, ' ');
    let number = words.next()?.parse().ok().filter(|number| *number > 0)?;
    let (pid, start) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let uid = words.next()?.parse().ok()?;
    let (command, executable) = words.next()?.split_once('\t')?;
    let is_text = |text: &str| text.len() <= TEXT_MAX && !text.contains(char::is_control);
    let names = is_text(command) && is_text(executable);
    let identity =
        Identity { pid, start, uid, command: command.to_owned(), executable: executable.to_owned() };
    names.then_some(Process { number, identity, attached: 0, ended: false })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn identity(pid: u32) -> Identity {
        Identity { pid, start: 5, uid: 7, command: "a b\tc\n".to_owned(), executable: "/bin/x y".to_owned() }
    }

    #[test]
    fn processes_are_numbered_and_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.processes");
        let mut processes = Processes::create(&path).unwrap();
        assert_eq!(processes.attach(identity(10)).unwrap(), 1);
        assert_eq!(processes.attach(identity(11)).unwrap(), 2);
        assert_eq!(processes.attach(identity(10)).unwrap(), 1, "the same process");
        assert_eq!(
            processes.attach(Identity { start: 6, ..identity(10) }).unwrap(),
            3,
            "another with its number"
        );
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, processes.text());
        assert_eq!(text.lines().next(), Some("1 10 5 7 a b\\tc\\n\t/bin/x y"));
        let mut found = Processes::find(&path).unwrap();
        assert_eq!(found.text(), text);
        assert_eq!(found.attach(identity(12)).unwrap(), 4);
    }

    #[test]
    fn lines_of_others_are_left_out_and_a_cut_one_is_repaired() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.processes");
        let mut processes = Processes::create(&path).unwrap();
        processes.attach(identity(10)).unwrap();
        let one = processes.text();
        for bad in [
            "2 3",
            "x 1 2 3 a\tb\n",
            "0 1 2 3 a\tb\n",
            "1 1 2 3 a\tb\n",
            "2 1 2 3 ab\n",
            "2 1 -2 3 a\tb\n",
            "\u{0}\n",
        ] {
            fs::write(&path, format!("{one}{bad}")).unwrap();
            let mut found = Processes::find(&path).unwrap();
            assert_eq!(found.text(), one, "{bad:?}");
            assert_eq!(fs::read_to_string(&path).unwrap(), one, "{bad:?}");
            assert_eq!(found.attach(identity(11)).unwrap(), 2);
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(Processes::find(&path).unwrap().text(), "");
    }

    #[test]
    fn oldest_that_has_ended_goes_first_and_the_file_stays_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.processes");
        let mut processes = Processes::create(&path).unwrap();
        let n = 3 * PROCESSES_MAX as u32;
        for pid in 1..=n {
            assert_eq!(processes.attach(identity(pid)).unwrap(), pid);
            if pid > 1 {
                processes.detach(pid);
            }
        }
        assert_eq!(processes.all.len(), PROCESSES_MAX);
        assert_eq!(processes.all[0].number, 1, "it is attached");
        assert_eq!(processes.all[1].number, n - PROCESSES_MAX as u32 + 2);
        let n_lines = || fs::read_to_string(&path).unwrap().lines().count();
        assert!(n_lines() <= 2 * PROCESSES_MAX);
        // Daemons that find a full table, and add to it.
        for begin in [n, 2 * n] {
            let mut found = Processes::find(&path).unwrap();
            assert_eq!((found.all.len(), n_lines()), (PROCESSES_MAX, PROCESSES_MAX));
            for pid in begin + 1..=begin + n {
                found.attach(identity(pid)).unwrap();
            }
            assert!(n_lines() <= 2 * PROCESSES_MAX);
        }
    }
}
