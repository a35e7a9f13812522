//! Clocks that a test sets, for the programs that it starts: the machine's own stay as they are.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::c::compile;

/// A clock of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfKernel {
    /// CLOCK_REALTIME.
    Real,
    /// CLOCK_MONOTONIC.
    Monotonic,
    /// CLOCK_BOOTTIME.
    Boot,
}

/// The clocks of some programs.
#[derive(Debug)]
pub struct Clocks {
    dir: TempDir,
}

impl Clocks {
    /// Makes clocks that are as the machine's, and a clock source of this name.
    #[track_caller]
    pub fn new(source: &str) -> Clocks {
        let clocks = Clocks { dir: tempfile::tempdir().expect("a temporary directory") };
        compile(
            &clocks.path("clock.so"),
            &["-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"],
            &["clock"],
        );
        fs::write(clocks.path("offsets"), [0; 24]).expect("a file");
        clocks.set_source(source);
        clocks
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Gives a program these clocks.
    pub fn of<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        command.env("LD_PRELOAD", self.path("clock.so"));
        command.env("CLOCK_OFFSETS", self.path("offsets")).env("CLOCK_SOURCE", self.path("source"))
    }

    /// Sets a clock: this many seconds are added to the machine's.
    #[track_caller]
    pub fn set(&self, clock: OfKernel, seconds: i64) {
        let file = File::options().write(true).open(self.path("offsets")).expect("a file");
        let nanoseconds = (seconds * 1_000_000_000).to_le_bytes();
        file.write_all_at(&nanoseconds, 8 * clock as u64).expect("writing to a file");
    }

    /// Changes the kernel's clock source.
    #[track_caller]
    pub fn set_source(&self, name: &str) {
        let new = self.path("new");
        fs::write(&new, format!("{name}\n")).expect("a file");
        fs::rename(new, self.path("source")).expect("another name");
    }
}
