//! The C library, installed as a C programmer would, and programs linked with it.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::built::{musl_dir, not_older, profile_dir, up_to_date};
use crate::direct::with_sequences;
use crate::{Mount, Process, stdout_of, tool, workspace};

/// Returns the directory in which the library is installed, as the root of a system.
///
/// `sh tests/build.sh` installs it. The test fails if a file of the library is newer.
#[track_caller]
pub fn installed() -> PathBuf {
    installed_in(profile_dir())
}

/// Returns the directory in which the library for programs of musl is installed. It is a debug build.
#[track_caller]
pub fn installed_for_musl() -> PathBuf {
    installed_in(musl_dir("debug"))
}

/// Returns the same of a release build, for measurements. `sh tests/bench.sh libraries` installs it.
#[track_caller]
pub fn released_for_musl() -> PathBuf {
    installed_in(musl_dir("release"))
}

#[track_caller]
fn installed_in(built: PathBuf) -> PathBuf {
    let root = built.join("librelay-installed");
    let package = workspace().join("relay-producer/librelay");
    let compat = fs::read_dir(package.join("relayfs-compat/linux")).expect("the kernel's headers");
    let headers = compat.map(|entry| entry.expect("an entry").path());
    let files = ["Makefile", "librelay.map", "logf.c", "relay.h", "relay.hpp", "relay.pc.in"]
        .map(|name| package.join(name));
    let archive = up_to_date(built.join("librelay_c.a"));
    // The file that make(1) installs last.
    let last = root.join("usr/lib/pkgconfig/relay.pc");
    not_older(&last, files.into_iter().chain(headers).chain([archive]));
    root
}

/// Installs the library, which was built before, into another directory.
#[track_caller]
pub fn install(root: &Path) {
    install_by(root, &[format!("CARGO={}", env!("CARGO"))]);
}

/// Installs the library as under sudo, where cargo cannot say where it builds.
#[track_caller]
pub fn install_without_cargo(root: &Path) {
    let target = profile_dir().parent().expect("target/PROFILE").display().to_string();
    install_by(root, &["CARGO=false".to_owned(), format!("CARGO_TARGET_DIR={target}")]);
}

#[track_caller]
fn install_by(root: &Path, variables: &[String]) {
    installed(); // fails if something was not built
    let profile = if profile_dir().ends_with("release") { "release" } else { "dev" };
    let mut make = tool("make", "make");
    make.args(["--silent", "-C"]).arg(workspace().join("relay-producer/librelay"));
    make.arg("install").arg(format!("PROFILE={profile}")).arg("PREFIX=/usr");
    let mut destination = OsString::from("DESTDIR=");
    destination.push(root);
    // Without the jobs of a make that runs the tests.
    make.arg(destination).args(variables).env_remove("MAKEFLAGS");
    stdout_of(&mut make);
}

/// The directory with `librelay.so`.
pub fn libraries() -> PathBuf {
    installed().join("usr/lib")
}

/// The words that pkg-config prints for the library.
#[track_caller]
pub fn pkg_config(args: &[&str]) -> Vec<String> {
    pkg_config_in(&installed(), args)
}

#[track_caller]
fn pkg_config_in(root: &Path, args: &[&str]) -> Vec<String> {
    let mut command = tool("pkg-config", "pkg-config");
    command.env("PKG_CONFIG_LIBDIR", root.join("usr/lib/pkgconfig"));
    command.env("PKG_CONFIG_SYSROOT_DIR", root).args(args).arg("relay");
    let said = String::from_utf8(stdout_of(&mut command)).expect("text");
    said.split_whitespace().map(str::to_owned).collect()
}

/// A compiled program, linked with the library.
#[derive(Debug)]
pub struct Linked {
    dir: TempDir,
}

impl Linked {
    /// Compiles a source of the workspace; warnings are errors. A name that ends in `.cc` is C++.
    #[track_caller]
    pub fn compile(source: &str, args: &[&str]) -> Linked {
        let cc = if source.ends_with(".cc") { tool("g++", "g++") } else { tool("cc", "gcc") };
        Linked::compile_by(cc, source, args)
    }

    /// Compiles a source of the workspace by this compiler; warnings are errors.
    #[track_caller]
    pub fn compile_by(cc: Command, source: &str, args: &[&str]) -> Linked {
        Linked::compile_with(&installed(), cc, source, args)
    }

    /// Compiles a source of the workspace for the library that is installed in a directory; warnings are errors.
    /// With an argument `-static` or `-static-pie` the program has the whole library.
    #[track_caller]
    pub fn compile_with(root: &Path, mut cc: Command, source: &str, args: &[&str]) -> Linked {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("a directory of ours");
        cc.args(["-O2", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"])
            .arg(dir.path().join("program"));
        cc.args(args).arg(workspace().join(source));
        let whole = args.iter().find(|arg| arg.starts_with("-static")).map(|_| "--static");
        let words: Vec<&str> = ["--cflags", "--libs"].into_iter().chain(whole).collect();
        stdout_of(cc.args(pkg_config_in(root, &words)));
        Linked { dir }
    }

    /// The program's path.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("program")
    }

    /// A command that runs the program, for a mount.
    pub fn command(&self, mount: &Path) -> Command {
        let mut command = Command::new(self.path());
        prepare(&mut command, mount);
        command
    }
}

/// Compilers for C++: that of the system, and one whose library has `std::format`, which that of Debian 12 has not.
#[track_caller]
pub fn cplusplus_compilers() -> [Command; 2] {
    let mut with_format = tool("clang++-19", "clang-19");
    let library = Path::new("/usr/lib/llvm-19/include/c++/v1/format");
    assert!(library.exists(), "libc++ is not installed: apt-get install libc++-19-dev libc++abi-19-dev");
    with_format.arg("-stdlib=libc++");
    [tool("g++", "g++"), with_format]
}

/// Makes a command use the library and a mount.
pub fn prepare<'a>(command: &'a mut Command, mount: &Path) -> &'a mut Command {
    command.env("LD_LIBRARY_PATH", libraries()).env("RELAYFS", mount)
}

/// A running `tests/c/api.c`, which calls the library by commands on its standard input.
#[derive(Debug)]
pub struct Caller {
    process: Process,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Caller {
    /// Starts the program.
    #[track_caller]
    pub fn start(mount: &Path) -> Caller {
        static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
        // Compiled once for all tests of a process. The file stays until another process replaces it.
        let program = PROGRAM.get_or_init(|| {
            let (linked, place) = (Linked::compile("tests/c/api.c", &[]), libraries().join("api"));
            let new = libraries().join(format!("api-{}", std::process::id()));
            // By another process: a child of this one may have a file open for writing that was copied here.
            stdout_of(tool("install", "coreutils").args(["-m", "755"]).arg(linked.path()).arg(&new));
            fs::rename(&new, &place).expect("renaming a program");
            place
        });
        Caller::run(Command::new(program), mount)
    }

    /// Starts the program on CPU 0, writing directly.
    ///
    /// It does so even if the tests run without restartable sequences.
    #[track_caller]
    pub fn direct(mount: &Mount) -> Caller {
        drop(Caller::start(mount.point())); // compiles it
        let mut command = Command::new(libraries().join("api"));
        with_sequences(&mut command);
        let mut caller = Caller::run(command, mount.point());
        caller.expect(&[("go 0", "0")]);
        caller
    }

    /// Starts the program by a command that the test has prepared.
    #[track_caller]
    pub fn run(mut command: Command, mount: &Path) -> Caller {
        prepare(&mut command, mount).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::start(&mut command);
        let stdin = process.child().stdin.take();
        let stdout = BufReader::new(process.child().stdout.take().expect("piped"));
        Caller { process, stdin, stdout }
    }

    /// Gives the program a command, and returns its answer.
    #[track_caller]
    pub fn tell(&mut self, command: &str) -> String {
        writeln!(self.stdin.as_mut().expect("open"), "{command}").expect("the program reads");
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("the program prints");
        assert!(!line.is_empty(), "it ended at: {command}");
        line.trim_end().to_owned()
    }

    /// Gives the program commands, and checks its answers.
    #[track_caller]
    pub fn expect(&mut self, dialogue: &[(&str, &str)]) {
        for (command, answer) in dialogue {
            assert_eq!(self.tell(command), *answer, "{command}");
        }
    }

    /// Ends the program by the end of its input, and checks that it succeeds.
    #[track_caller]
    pub fn end(mut self) {
        self.stdin = None;
        assert!(self.process.wait().success(), "the end of the program");
    }
}
