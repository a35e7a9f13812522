//! Runs `audience`: following, and recording.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::signal::Signal;

use crate::stopped::stands_still;
use crate::{DEADLINE, LOOK, Process, eventually, exit_code, program, text};

/// The command `audience -m POINT ARGS`, without the caller's RELAYFS.
pub fn audience(point: &Path, args: &[&str]) -> Command {
    by_program(&program("audience"), point, args)
}

/// The same command with another copy of the program.
pub fn by_program(program: &Path, point: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.env_remove("RELAYFS").arg("-m").arg(point).args(args);
    command
}

/// A running `audience -f`.
#[derive(Debug)]
pub struct Follower {
    process: Process,
    /// The file of its standard output.
    pub out: PathBuf,
    err: PathBuf,
}

impl Follower {
    /// Starts `audience -f -m POINT ARGS`; its output goes to files beside the mount point.
    #[track_caller]
    pub fn start(point: &Path, args: &[&str]) -> Follower {
        let beside = |name| point.with_file_name(name);
        let (out, err) = (beside("out"), beside("err"));
        let file = |path| File::create(path).expect("a file for output");
        let mut command = audience(point, args);
        command.arg("-f").stdin(Stdio::null()).stdout(file(&out)).stderr(file(&err));
        Follower { process: Process::start(&mut command), out, err }
    }

    /// Its standard output so far.
    pub fn read(&self) -> Vec<u8> {
        fs::read(&self.out).expect("its output")
    }

    /// Its standard error so far.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.err).expect("what it said")
    }

    /// Waits until its output is exactly `expected`.
    #[track_caller]
    pub fn has_read(&self, expected: &str) {
        let end = Instant::now() + DEADLINE;
        while self.read() != expected.as_bytes() && Instant::now() < end {
            std::thread::sleep(LOOK);
        }
        assert_eq!(text(&self.read()), expected, "{}", self.said());
    }

    /// Stops the program where it is.
    pub fn pause(&self) {
        self.process.signal(Signal::SIGSTOP);
        stands_still(self.process.pid());
    }

    /// Lets it continue.
    pub fn resume(&self) {
        self.process.signal(Signal::SIGCONT);
    }

    /// Ends the program as Ctrl-C does, checks that it succeeds, and returns its standard error.
    #[track_caller]
    pub fn end(mut self) -> String {
        self.process.signal(Signal::SIGINT);
        assert_eq!(exit_code(self.process.wait()), 0, "{}", self.said());
        self.said()
    }
}

/// The command `audience record -m POINT -o DIR ARGS`.
pub fn record(point: &Path, dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program("audience"));
    command.env_remove("RELAYFS").args(["record", "-m"]).arg(point).arg("-o").arg(dir).args(args);
    command.stdin(Stdio::null());
    command
}

/// A running `audience record`.
#[derive(Debug)]
pub struct Recorder {
    /// The program.
    pub process: Process,
    /// The directory of the recording.
    pub dir: PathBuf,
    err: PathBuf,
}

impl Recorder {
    /// Starts a recording into a directory beside the mount point.
    #[track_caller]
    pub fn start(point: &Path, args: &[&str]) -> Recorder {
        Recorder::start_into(point, &point.with_file_name("recorded"), args)
    }

    /// Starts a recording into a directory, with standard error in a file beside the mount point.
    #[track_caller]
    pub fn start_into(point: &Path, dir: &Path, args: &[&str]) -> Recorder {
        Recorder::run(&mut record(point, dir, args), point, dir)
    }

    /// Starts a command that records into this directory, with standard error in a file beside the mount point.
    #[track_caller]
    pub fn run(command: &mut Command, point: &Path, dir: &Path) -> Recorder {
        let err = point.with_file_name("said");
        command.stderr(File::create(&err).expect("a file"));
        Recorder { process: Process::start(command), dir: dir.to_owned(), err }
    }

    /// Its standard error so far.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.err).expect("what it said")
    }

    /// All bytes recorded from a CPU, in all files.
    pub fn recorded(&self, cpu: usize) -> Vec<u8> {
        names(&self.dir)
            .iter()
            .filter(|name| name.split('.').next() == Some(&format!("cpu{cpu}")))
            .flat_map(|name| fs::read(self.dir.join(name)).expect("a recording"))
            .collect()
    }

    /// Waits until the recording has a file.
    #[track_caller]
    pub fn is_ready(&self) {
        eventually("the recording to begin", || self.dir.is_dir() && !names(&self.dir).is_empty());
    }

    /// Ends the program with a signal, and returns its exit status.
    #[track_caller]
    pub fn end(&mut self, signal: Signal) -> i32 {
        self.process.signal(signal);
        exit_code(self.process.wait())
    }
}

/// The names of a directory's files, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<String> = entries.map(|name| name.into_string().expect("ASCII")).collect();
    names.sort_unstable();
    names
}
