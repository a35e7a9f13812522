//! Runs programs on `take/cpuN` of a buffer whose content is known.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use crate::lines::{Twins, shell};
use crate::{Mount, Process, eventually, run, tool};

/// Returns the path of `take/cpuN` of a channel.
pub fn take_of(mount: &Mount, channel: &str, cpu: usize) -> PathBuf {
    mount.control(channel, &format!("take/cpu{cpu}"))
}

/// Returns how many bytes of channel `cpu` count as read, in CPU 0's buffer.
pub fn read_bytes(mount: &Mount) -> u64 {
    let stats = mount.stats("cpu");
    assert_eq!((stats["cpu0.discarded_bytes"], stats["cpu0.corrected"]), (0, 0), "{stats:?}");
    stats["cpu0.read_bytes"]
}

/// Runs a shell script on `take/cpu0`, which is `$F`.
///
/// `$COPY` is a file with the same content, `$DIR` the directory of `$F`, `$OUT` a path for output of the script.
pub fn run_on_take(twins: &Twins, script: &str) -> Output {
    let file = take_of(&twins.mount, "cpu", 0);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut command = shell(script);
    command.env("F", &file).env("DIR", file.parent().expect("a directory")).env("COPY", twins.copy());
    run(command.env("OUT", dir.path().join("out")).current_dir(dir.path()))
}

/// A Python program that has read all of a file.
///
/// It waits for a signal, or for a line of Python to run.
#[derive(Debug)]
pub struct Reader(Process);

impl Reader {
    /// Starts the program, and waits until it has read the file. `more` is Python that runs first.
    #[track_caller]
    pub fn start(file: &std::path::Path, more: &str) -> Reader {
        let script = format!(
            "
import os, signal, sys, threading, time
for number in signal.valid_signals() - {{signal.SIGKILL, signal.SIGSTOP}}: signal.signal(number, signal.SIG_DFL)
f = open(sys.argv[1], 'rb', buffering=0)
{more}
while f.read(50000): pass
open(sys.argv[2], 'w').close()
exec(sys.stdin.readline())
"
        );
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mark = dir.path().join("read");
        let mut command = tool("python3", "python3");
        command.args(["-c", &script]).arg(file).arg(&mark);
        let process =
            Process::start(command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()));
        eventually("a program that has read a file", || mark.exists());
        Reader(process)
    }

    /// Makes the program run a line of Python.
    #[track_caller]
    pub fn tell(&mut self, line: &str) {
        use std::io::Write;
        let stdin = self.0.child().stdin.as_mut().expect("piped");
        stdin.write_all(format!("{line}\n").as_bytes()).expect("a program that waits");
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.0
    }
}

/// Returns the command that prints `take/cpu0`.
pub fn cat(mount: &Mount) -> Command {
    let mut command = tool("cat", "coreutils");
    command.arg(take_of(mount, "cpu", 0));
    command
}
