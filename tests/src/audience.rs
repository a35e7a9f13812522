//! `audience` at work: following, and recording.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::{Process, eventually, exit_code, program};

/// `audience -m POINT ARGS`, without the environment of whoever runs the tests.
pub fn audience(point: &Path, args: &[&str]) -> Command {
    by_program(&program("audience"), point, args)
}

/// The same with another copy of the program.
pub fn by_program(program: &Path, point: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.env_remove("RELAYFS").arg("-m").arg(point).args(args);
    command
}

/// `audience -f` at work.
#[derive(Debug)]
pub struct Follower {
    process: Process,
    /// Where its output goes.
    pub out: PathBuf,
    err: PathBuf,
}

impl Follower {
    /// Starts `audience -f -m POINT ARGS`; what it reads and says goes into files beside the mount point.
    #[track_caller]
    pub fn start(point: &Path, args: &[&str]) -> Follower {
        let beside = |name| point.with_file_name(name);
        let (out, err) = (beside("out"), beside("err"));
        let file = |path| File::create(path).expect("a file for output");
        let mut command = audience(point, args);
        command.arg("-f").stdin(Stdio::null()).stdout(file(&out)).stderr(file(&err));
        Follower { process: Process::start(&mut command), out, err }
    }

    /// What it has read so far.
    pub fn read(&self) -> Vec<u8> {
        fs::read(&self.out).expect("its output")
    }

    /// What it has said so far.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.err).expect("what it said")
    }

    /// Waits until it has read this and nothing else.
    #[track_caller]
    pub fn has_read(&self, expected: &str) {
        eventually(&format!("{expected:?} to be read"), || self.read() == expected.as_bytes());
    }

    /// Ends it as Ctrl-C does, which is a success, and returns what it said.
    #[track_caller]
    pub fn end(mut self) -> String {
        self.process.signal(Signal::SIGINT);
        assert_eq!(exit_code(self.process.wait()), 0, "{}", self.said());
        self.said()
    }
}

/// `audience record -m POINT -o DIR ARGS`.
pub fn record(point: &Path, dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program("audience"));
    command.env_remove("RELAYFS").args(["record", "-m"]).arg(point).arg("-o").arg(dir).args(args);
    command.stdin(Stdio::null());
    command
}

/// `audience record` at work.
#[derive(Debug)]
pub struct Recorder {
    /// The program.
    pub process: Process,
    /// Where the recording is.
    pub dir: PathBuf,
    err: PathBuf,
}

impl Recorder {
    /// Starts one into a directory beside the mount point.
    #[track_caller]
    pub fn start(point: &Path, args: &[&str]) -> Recorder {
        Recorder::start_into(point, &point.with_file_name("recorded"), args)
    }

    /// Starts one into a directory; what it says goes into a file beside the mount point.
    #[track_caller]
    pub fn start_into(point: &Path, dir: &Path, args: &[&str]) -> Recorder {
        let err = point.with_file_name("said");
        let mut command = record(point, dir, args);
        command.stderr(File::create(&err).expect("a file"));
        Recorder { process: Process::start(&mut command), dir: dir.to_owned(), err }
    }

    /// What it has said so far.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.err).expect("what it said")
    }

    /// What is recorded of a CPU, in all files.
    pub fn recorded(&self, cpu: usize) -> Vec<u8> {
        names(&self.dir)
            .iter()
            .filter(|name| name.split('.').next() == Some(&format!("cpu{cpu}")))
            .flat_map(|name| fs::read(self.dir.join(name)).expect("a recording"))
            .collect()
    }

    /// Waits until it has its files open.
    #[track_caller]
    pub fn is_ready(&self) {
        eventually("the recording to begin", || self.dir.is_dir() && !names(&self.dir).is_empty());
    }

    /// Ends it with a signal and returns its exit status.
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
