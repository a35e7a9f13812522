//! Programs, mounts and processes for the end-to-end tests, cleaned up at the end of scope.

pub mod audience;
pub mod background;
pub mod buffer;
pub mod built;
pub mod c;
pub mod classic;
pub mod clocks;
pub mod conformance;
pub mod cpus;
pub mod ctf;
pub mod direct;
pub mod disk;
pub mod ends;
pub mod forwarded;
pub mod honest;
pub mod journald;
pub mod known;
pub mod left;
pub mod librelay;
pub mod limits;
pub mod lines;
pub mod lttng;
pub mod measure;
pub mod nats;
pub mod numbered;
pub mod pages;
pub mod peer;
pub mod peers;
pub mod perfetto;
pub mod progress;
pub mod records;
pub mod refused;
pub mod slow_copies;
pub mod stopped;
pub mod streams;
pub mod stress;
pub mod take;
pub mod terminal;
pub mod ticks;
pub mod timed;
pub mod users;

/// The programs in Rust of `docs/libraries.md`, which rustdoc compiles.
#[cfg(doctest)]
#[doc = include_str!("../../docs/libraries.md")]
mod libraries {}

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use relay_producer::{BatchOptions, Channel, Counts, TransportChoice};
use tempfile::TempDir;

pub use built::{mortal_daemon, panicking_audience, program, programs};

/// Longest time that a test waits for anything.
pub const DEADLINE: Duration = Duration::from_secs(120);
/// Time between two checks of a condition.
const LOOK: Duration = Duration::from_millis(2);

/// Waits for a condition; fails the test if it does not become true within [`DEADLINE`].
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < end, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(LOOK);
    }
}

/// The directory of the workspace.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are a folder of the workspace")
}

/// A command that runs a tool of the system. If the tool is missing, fails the test and says what to install.
#[track_caller]
pub fn tool(name: &str, package: &str) -> Command {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).any(|dir| dir.join(name).is_file());
    assert!(found, "{name} is not installed: apt-get install {package}");
    Command::new(name)
}

/// Wraps a command so that it begins with the default action at SIGINT. Where the test's own starter ignores that signal, the
/// programs would inherit it. Program and arguments are taken over, nothing else.
pub fn interruptible(command: &Command) -> Command {
    let mut wrapped = tool("env", "coreutils");
    wrapped.arg("--default-signal=INT").arg(command.get_program()).args(command.get_args());
    wrapped
}

/// Runs a command to its end with this input, and returns its output.
#[track_caller]
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_owned();
    // On a separate thread: a child that prints before it has read all its input must not block.
    let feeder = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().expect("the child's output");
    feeder.join().expect("feeding a pipe");
    output
}

/// Runs a command to its end without input, and returns its output.
#[track_caller]
pub fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Runs a command that must succeed, and returns its standard output.
#[track_caller]
pub fn stdout_of(command: &mut Command) -> Vec<u8> {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {}, {}", output.status, text(&output.stderr));
    output.stdout
}

/// The one line that a failed program printed, without its name. Any other output fails the test.
#[track_caller]
pub fn complaint(name: &str, output: &Output) -> String {
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(!output.status.success(), "{name} succeeded: {stdout}{stderr}");
    assert_eq!(stdout, "", "what {name} printed");
    let line = stderr.strip_prefix(name).and_then(|rest| rest.strip_prefix(": ")?.strip_suffix('\n'));
    match line {
        Some(line) if !line.is_empty() && !line.contains('\n') => line.to_owned(),
        _ => panic!("not one line of {name}: {stderr:?}"),
    }
}

/// A command that runs a shell script, as root, in private mount and process namespaces.
///
/// Its mounts are invisible to other processes, and the processes that it leaves running end with it. It has a private
/// /dev/shm and /run, in which daemons keep their files, and none of the machine's own mounts of relayfs.
///
/// A root directory that is no mount point, as after a plain chroot, cannot be made private; it must be private
/// already.
#[track_caller]
pub fn private_shell(script: &str) -> Command {
    assert!(nix::unistd::geteuid().is_root(), "this test takes root, for a private mount namespace");
    let propagation = if is_mounted(Path::new("/")) {
        "private"
    } else {
        let table = fs::read_to_string("/proc/self/mountinfo").expect("the table of mounts");
        let is_shared = table.lines().any(|line| line.contains(" shared:"));
        let advice = "run the tests by 'unshare --mount chroot DIR'";
        assert!(!is_shared, "the root directory is no mount point, and mounts in it are shared: {advice}");
        "unchanged"
    };
    let mut command = tool("unshare", "util-linux");
    command.args(["--mount", "--propagation", propagation]);
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-euc"]);
    command
        .arg(format!(
            "for mounted in $(awk '$3 == \"fuse.relayfsd\" {{print $2}}' /proc/mounts); do
                umount -l \"$mounted\" 2>/dev/null || :
            done
            mount -t tmpfs tmpfs /dev/shm; mount -t tmpfs -o mode=755 tmpfs /run\n{script}"
        ))
        .arg("sh");
    command
}

/// Bytes as text, for messages.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A child process, killed at the end of the test if it still runs.
#[derive(Debug)]
pub struct Process(Child);

impl Process {
    /// Starts a command.
    #[track_caller]
    pub fn start(command: &mut Command) -> Process {
        Process(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }

    /// The child itself.
    pub fn child(&mut self) -> &mut Child {
        &mut self.0
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id().cast_signed())
    }

    /// Sends the process a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("signalling our own child");
    }

    /// Waits for the process's end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the end of a process", || {
            status = self.0.try_wait().expect("waiting for our own child");
            status.is_some()
        });
        status.expect("set above")
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().expect("waiting for our own child").is_none()
    }

    /// The whole standard output of a process that has ended. It must have been started with a pipe for it.
    pub fn stdout(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut pipe = self.0.stdout.take().expect("a pipe for standard output");
        pipe.read_to_end(&mut bytes).expect("reading a pipe");
        bytes
    }

    /// The whole standard error of a process that has ended. It must have been started with a pipe for it.
    pub fn stderr(&mut self) -> String {
        let mut said = String::new();
        let mut pipe = self.0.stderr.take().expect("a pipe for standard error");
        pipe.read_to_string(&mut said).expect("reading a pipe");
        said
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// A mounted relayfs in a temporary directory. Fields drop in order: first the daemon ends, then the directory goes.
#[derive(Debug)]
pub struct Mount {
    daemon: Process,
    dir: TempDir,
    point: PathBuf,
}

impl Mount {
    /// Runs `relayfsd -f ARGS` and waits until the mount is usable.
    #[track_caller]
    pub fn new(args: &[&str]) -> Mount {
        Mount::prepared(args, |command| command)
    }

    /// The same, with a command that the test has prepared.
    #[track_caller]
    pub fn prepared(args: &[&str], prepare: impl FnOnce(&mut Command) -> &mut Command) -> Mount {
        cpus::stay_online();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let point = dir.path().join("relay");
        fs::create_dir(&point).expect("a directory to mount on");
        let daemon = serve(&point, args, prepare);
        Mount { daemon, dir, point }
    }

    /// [`Mount::new`] with restartable sequences, even if the tests run without them.
    #[track_caller]
    pub fn with_sequences(args: &[&str]) -> Mount {
        Mount::prepared(args, direct::with_sequences)
    }

    /// Runs `relayfsd -f ARGS` again on the mount point, after the last daemon has ended.
    #[track_caller]
    pub fn restart(&mut self, args: &[&str]) {
        self.restart_prepared(args, |command| command);
    }

    /// The same, with a command that the test has prepared.
    #[track_caller]
    pub fn restart_prepared(&mut self, args: &[&str], prepare: impl FnOnce(&mut Command) -> &mut Command) {
        self.daemon = serve(&self.point, args, prepare);
    }

    /// [`Mount::restart`] with restartable sequences.
    #[track_caller]
    pub fn restart_with_sequences(&mut self, args: &[&str]) {
        self.daemon = serve(&self.point, args, direct::with_sequences);
    }

    /// The mount point.
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// A path below the mount point.
    pub fn path(&self, below: &str) -> PathBuf {
        self.point.join(below)
    }

    /// A path of a control file of a channel.
    pub fn control(&self, channel: &str, file: &str) -> PathBuf {
        self.path(".relay/channels").join(channel).join(file)
    }

    /// A scratch path beside the mount, removed with it.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The daemon.
    pub fn daemon(&mut self) -> &mut Process {
        &mut self.daemon
    }

    /// Opens a channel for writing by the socket: the daemon answers for every message, and counts it.
    #[track_caller]
    pub fn channel(&self, name: &str) -> Channel {
        let builder = Channel::builder(&self.point, name).transport(TransportChoice::Socket);
        builder.open().expect("opening a channel")
    }

    /// Opens a channel for writing directly.
    ///
    /// The channel uses the socket if the tests run without restartable sequences.
    #[track_caller]
    pub fn direct_channel(&self, name: &str) -> Channel {
        let channel = Channel::open(&self.point, name).expect("opening a channel");
        direct::assert_direct(&channel);
        channel
    }

    /// Writes messages to a CPU's buffer of channel `cpu` by the socket; returns the counts.
    #[track_caller]
    pub fn send(&self, cpu: usize, messages: &[&[u8]]) -> Counts {
        self.send_to("cpu", cpu, messages)
    }

    /// Writes messages to a buffer of a channel by the socket, and returns the daemon's counts.
    #[track_caller]
    pub fn send_to(&self, channel: &str, cpu: usize, messages: &[&[u8]]) -> Counts {
        let options = BatchOptions { cpu: Some(cpu), ..BatchOptions::default() };
        self.channel(channel).write_batch(messages, options).expect("writing a batch")
    }

    /// Writes 1 to a control file.
    #[track_caller]
    pub fn poke(&self, channel: &str, file: &str) {
        fs::write(self.control(channel, file), "1").expect("writing 1 to a control file");
    }

    /// Reads a buffer's file to its end.
    #[track_caller]
    pub fn read(&self, file: &str) -> Vec<u8> {
        fs::read(self.path(file)).expect("reading a buffer")
    }

    /// The counters in a channel's `stats`.
    #[track_caller]
    pub fn stats(&self, channel: &str) -> BTreeMap<String, u64> {
        let text = fs::read_to_string(self.control(channel, "stats")).expect("reading stats");
        let parse = |line: &str| {
            let (name, value) = line.split_once(' ').unwrap_or_else(|| panic!("stats line {line:?}"));
            (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("stats line {line:?}")))
        };
        text.lines().map(parse).collect()
    }

    /// Whether all is read of a channel, which has something.
    #[track_caller]
    pub fn is_read(&self, channel: &str) -> bool {
        let stats = self.stats(channel);
        stats["total.bytes"] > 0 && stats["total.bytes"] == stats["total.read_bytes"]
    }

    /// Unmounts when no process has a file open. The kernel closes files a moment after their programs, and a child that
    /// another thread starts has them until it runs its program.
    #[track_caller]
    pub fn unmount(&self) {
        eventually("umount", || run(tool("umount", "mount").arg(self.point())).status.success());
    }

    /// Detaches the mount while files may be open, as root or by fusermount3.
    #[track_caller]
    pub fn detach(&self) {
        let mut command = if nix::unistd::geteuid().is_root() {
            let mut command = tool("umount", "mount");
            command.arg("-l");
            command
        } else {
            let mut command = tool("fusermount3", "fuse3");
            command.args(["-u", "-z"]);
            command
        };
        stdout_of(command.arg(&self.point));
    }

    /// Ends the daemon with a signal, and returns its exit status.
    #[track_caller]
    pub fn end(&mut self, signal: Signal) -> ExitStatus {
        self.daemon.signal(signal);
        self.daemon.wait()
    }
}

/// Runs `relayfsd -f ARGS` on a mount point and waits until the mount is usable.
#[track_caller]
fn serve(point: &Path, args: &[&str], prepare: impl FnOnce(&mut Command) -> &mut Command) -> Process {
    let mut command = Command::new(program("relayfsd"));
    command.arg("-f").args(args).arg(point).stdin(Stdio::null()).stderr(Stdio::piped());
    let mut daemon = Process::start(prepare(&mut command));
    eventually("the mount", || {
        assert!(daemon.is_running(), "relayfsd ended: {}", daemon.stderr());
        point.join(".relay/version").exists()
    });
    daemon
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.daemon.is_running() {
            self.daemon.signal(Signal::SIGTERM);
            let end = Instant::now() + DEADLINE;
            while self.daemon.is_running() && Instant::now() < end {
                std::thread::sleep(LOOK);
            }
        }
        // A failed test may have left a mount.
        while is_mounted(&self.point) {
            let unmounted = nix::mount::umount2(&self.point, nix::mount::MntFlags::MNT_DETACH).is_ok()
                || Command::new("fusermount3")
                    .args(["-u", "-z"])
                    .arg(&self.point)
                    .status()
                    .is_ok_and(|s| s.success());
            if !unmounted {
                break;
            }
        }
        background::remove_leftovers(&self.point);
    }
}

/// Whether a path is a mount point.
pub fn is_mounted(point: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("the table of mounts");
    // Escaped as in mountinfo.
    let point = point.to_str().expect("a path of text").replace('\\', "\\134").replace(' ', "\\040");
    table.lines().any(|line| line.split(' ').nth(4) == Some(point.as_str()))
}

/// A process's exit status as a shell reports it.
pub fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
