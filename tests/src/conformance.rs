//! Runs `tests/c/conformance`, which checks that a channel's files are relay files.
//!
//! It is a program in C that uses plain system calls.
//!
//! A healthy channel passes it, whatever has happened to the channels beside it.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use crate::c::Program;
use crate::{Mount, run as run_command, stdout_of, text};

/// The result of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The channel behaved as expected.
    Passed,
    /// The channel did not; the text says what was expected, and what came.
    Failed(String),
    /// The case does not apply; the text says which channel or user it needs.
    Skipped(String),
}

/// The compiled program.
#[derive(Debug)]
pub struct Conformance(Program);

impl Conformance {
    /// Compiles the program.
    #[track_caller]
    pub fn compile() -> Conformance {
        Conformance(Program::compile_all("conformance"))
    }

    /// A command that runs the program.
    pub fn command(&self) -> Command {
        self.0.command()
    }

    /// The program's path, which every user may run.
    pub fn path(&self) -> std::path::PathBuf {
        self.0.path()
    }

    /// The names of all cases, each with its needs.
    #[track_caller]
    pub fn list(&self) -> BTreeMap<String, Vec<String>> {
        let listed = text(&stdout_of(self.command().arg("--list")));
        let mut cases = BTreeMap::new();
        for line in listed.lines() {
            let (name, needs) = line.split_once(": ").unwrap_or((line, ""));
            let needs = needs.split(", ").filter(|need| !need.is_empty()).map(str::to_owned).collect();
            assert_eq!(cases.insert(name.to_owned(), needs), None, "{name} is there twice");
        }
        cases
    }

    /// Runs all cases on a channel, with or without the kernel's mappings of its files. The cases may fail.
    #[track_caller]
    pub fn try_on(&self, point: &Path, channel: &str, mapping: &str) -> Output {
        run_command(self.command().args(["--mapping", mapping]).arg(point).arg(channel))
    }
}

/// Parses the output of the program: an outcome for each case.
#[track_caller]
pub fn outcomes(printed: &str) -> BTreeMap<String, Outcome> {
    let mut outcomes = BTreeMap::new();
    for line in printed.lines().filter(|line| !line.starts_with('#')) {
        let named = |rest: &str| {
            let (name, why) = rest.split_once(": ").unwrap_or((rest, ""));
            (name.to_owned(), why.to_owned())
        };
        let (name, outcome) = if let Some(name) = line.strip_prefix("ok ") {
            (name.to_owned(), Outcome::Passed)
        } else if let Some((name, why)) = line.strip_prefix("not ok ").map(named) {
            (name, Outcome::Failed(why))
        } else if let Some((name, what)) = line.strip_prefix("skip ").map(named) {
            (name, Outcome::Skipped(what))
        } else {
            panic!("not a line of a case: {line:?}, of {printed}");
        };
        assert_eq!(outcomes.insert(name, outcome), None, "two of {line:?}");
    }
    outcomes
}

/// Checks that a channel of a mount by root passes every case that applies to it. Unread data in it is lost.
#[track_caller]
pub fn run(mount: &Mount, channel: &str) {
    let program = Conformance::compile();
    let output = program.try_on(mount.point(), channel, "ring");
    let (printed, complained) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "channel {channel}: {}\n{printed}{complained}", output.status);
    let outcomes = outcomes(&printed);
    assert_eq!(outcomes.len(), program.list().len(), "channel {channel}: {printed}");
    let passed = outcomes.values().filter(|outcome| **outcome == Outcome::Passed).count();
    assert!(passed > 50, "channel {channel}: {printed}");
}
