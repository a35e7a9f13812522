//! Programs in C, compiled by the test that needs them, for what only C can show.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use tempfile::TempDir;

use crate::{Process, stdout_of, tool, workspace};

/// Compiles `tests/c/SOURCE.c` with these flags.
#[track_caller]
pub fn compile(output: &Path, flags: &[&str], sources: &[&str]) {
    let mut cc = tool("cc", "gcc");
    cc.args(flags).arg("-o").arg(output);
    for source in sources {
        cc.arg(workspace().join("tests/c").join(source).with_extension("c"));
    }
    stdout_of(&mut cc);
}

/// A compiled program.
#[derive(Debug)]
pub struct Program {
    dir: TempDir,
}

impl Program {
    /// Compiles `tests/c/NAME.c`; warnings are errors.
    #[track_caller]
    pub fn compile(name: &str) -> Program {
        let source = workspace().join("tests/c").join(name).with_extension("c");
        Program::compile_with(&["-O2", "-pthread"], &[source])
    }

    /// Compiles `tests/c/NAME/*.c` as C11; warnings are errors.
    #[track_caller]
    pub fn compile_all(name: &str) -> Program {
        let entries = fs::read_dir(workspace().join("tests/c").join(name)).expect("a directory of sources");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        let sources: Vec<PathBuf> =
            paths.filter(|path| path.extension().is_some_and(|end| end == "c")).collect();
        Program::compile_with(&["-std=c11", "-O1"], &sources)
    }

    #[track_caller]
    fn compile_with(options: &[&str], sources: &[PathBuf]) -> Program {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut cc = tool("cc", "gcc");
        cc.args(options).args(["-Wall", "-Wextra", "-Werror", "-o"]).arg(dir.path().join("program"));
        stdout_of(cc.args(sources));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("a directory of ours");
        Program { dir }
    }

    /// A command that runs the program.
    pub fn command(&self) -> Command {
        Command::new(self.path())
    }

    /// The program's path, which every user may run.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("program")
    }
}

/// A running `tests/c/mapping.c`, which maps, reads and polls by commands on its standard input.
#[derive(Debug)]
pub struct Mapper {
    _process: Process,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    _program: Program,
}

impl Mapper {
    /// Starts the program.
    #[track_caller]
    pub fn start() -> Mapper {
        let program = Program::compile("mapping");
        let mut process = Process::start(program.command().stdin(Stdio::piped()).stdout(Stdio::piped()));
        let stdin = process.child().stdin.take().expect("piped");
        let stdout = BufReader::new(process.child().stdout.take().expect("piped"));
        Mapper { _process: process, stdin, stdout, _program: program }
    }

    /// Gives the program a command, and returns its answer.
    #[track_caller]
    pub fn tell(&mut self, command: &str) -> String {
        writeln!(self.stdin, "{command}").expect("the program reads");
        self.answer()
    }

    /// The program's next line.
    #[track_caller]
    pub fn answer(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("the program prints");
        line.trim_end().to_owned()
    }

    /// Makes the program open a file as number `fd`: for "r", "w" or "rw".
    #[track_caller]
    pub fn open(&mut self, fd: usize, path: &Path, how: &str) -> String {
        self.tell(&format!("open {fd} {} {how}", path.display()))
    }
}
