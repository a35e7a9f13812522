//! Daemons in the background, as users start them, ended with the test.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread;
use std::time::Instant;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, geteuid};
use relay::layout::paths;
use tempfile::TempDir;

use crate::{DEADLINE, LOOK, eventually, is_mounted, program, run, text, tool};

/// A directory to mount on. All mounts on it are unmounted at the end of the test.
#[derive(Debug)]
pub struct Place {
    dir: TempDir,
    point: PathBuf,
    /// Its earlier paths.
    former: Vec<PathBuf>,
}

impl Place {
    /// Creates an empty directory.
    pub fn new() -> Place {
        Place::named("relay")
    }

    /// Creates an empty directory of this name, or path.
    pub fn named(name: &str) -> Place {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let point = dir.path().join(name);
        fs::create_dir_all(&point).expect("a directory to mount on");
        Place { dir, point, former: Vec::new() }
    }

    /// Renames the first directory of the mount point's path, so that the mount point has this path.
    #[track_caller]
    pub fn rename(&mut self, path: &str) {
        let point = self.dir.path().join(path);
        let first = |point: &Path| {
            let below = point.strip_prefix(self.dir.path()).expect("a path below the directory");
            self.dir.path().join(below.iter().next().expect("a name"))
        };
        fs::rename(first(&self.point), first(&point)).expect("another name");
        self.former.push(std::mem::replace(&mut self.point, point));
    }

    /// The mount point.
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// A path below the mount point.
    pub fn path(&self, below: &str) -> PathBuf {
        self.point.join(below)
    }

    /// A scratch path beside the mount point.
    pub fn beside(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The command `relayfsd ARGS MOUNTPOINT`.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program("relayfsd"));
        command.args(args).arg(&self.point);
        command
    }

    /// Runs `relayfsd ARGS MOUNTPOINT`, and finds the daemon that it leaves running.
    ///
    /// The command must succeed and print nothing.
    #[track_caller]
    pub fn start(&self, args: &[&str]) -> Daemon {
        self.start_by(&mut self.command(args))
    }

    /// Runs a command that starts a daemon for this mount point, and finds the daemon.
    #[track_caller]
    pub fn start_by(&self, command: &mut Command) -> Daemon {
        let output = try_to_start(command);
        let said = text(&[output.stdout, output.stderr].concat());
        assert!(output.status.success() && said.is_empty(), "{command:?}: {}: {said}", output.status);
        Daemon::find(&self.point)
    }

    /// Whether something is mounted on it.
    pub fn is_mounted(&self) -> bool {
        is_mounted(&self.point)
    }

    /// Unmounts it by umount(8).
    ///
    /// A file that this process has closed may be open for a moment in a process that another test just starts.
    #[track_caller]
    pub fn unmount(&self) {
        eventually("umount", || run(tool("umount", "mount").arg(&self.point)).status.success());
    }

    /// The default directory of the buffers.
    pub fn state_dir(&self) -> PathBuf {
        state_dir(&self.point)
    }

    /// The default directory of the socket.
    pub fn socket_dir(&self) -> PathBuf {
        socket_dir(&self.point)
    }

    /// Fails the test if a daemon has left its mount or its directories.
    #[track_caller]
    pub fn assert_clean(&self) {
        assert!(!self.is_mounted(), "{} is still mounted", self.point.display());
        for dir in [self.state_dir(), self.socket_dir()] {
            let kind = fs::symlink_metadata(&dir).map_err(|error| error.kind()).map(drop);
            assert_eq!(kind, Err(ErrorKind::NotFound), "{} was left behind", dir.display());
        }
    }
}

impl Default for Place {
    fn default() -> Self {
        Place::new()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        while self.is_mounted() && umount2(&self.point, MntFlags::MNT_DETACH).is_ok() {}
        self.former.iter().chain([&self.point]).for_each(|point| remove_leftovers(point));
    }
}

fn state_dir(point: &Path) -> PathBuf {
    paths::state_dir(point, geteuid().as_raw())
}

fn socket_dir(point: &Path) -> PathBuf {
    let runtime_dir = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let socket = paths::socket_path(point, geteuid().as_raw(), runtime_dir.as_deref());
    socket.parent().expect("a socket is in a directory").to_owned()
}

/// Removes the directories of a killed daemon. All daemons of the mount point must have ended.
pub(crate) fn remove_leftovers(point: &Path) {
    let _ = fs::remove_dir_all(state_dir(point));
    let _ = fs::remove_dir_all(socket_dir(point));
}

/// Runs a command that may leave a daemon running. The daemon becomes a child of the test, which can wait for it.
#[track_caller]
pub fn try_to_start(command: &mut Command) -> Output {
    set_child_subreaper(true).expect("asking for orphans");
    // The output ends when all processes have closed it, so a daemon that keeps it open is noticed.
    run(command)
}

/// A daemon in the background. At the end of the test it gets SIGTERM, and SIGKILL if it does not end.
#[derive(Debug)]
pub struct Daemon {
    pid: Pid,
    status: Option<i32>,
}

impl Daemon {
    /// Finds the daemon that was started for a mount point.
    #[track_caller]
    pub fn find(point: &Path) -> Daemon {
        let mut found = Vec::new();
        eventually("a daemon for the mount point", || {
            found = daemons(point);
            found.len() == 1 // there are two while the daemon starts
        });
        Daemon { pid: found[0], status: None }
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends it a signal.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill(self.pid, signal).expect("signalling a daemon of ours");
    }

    /// Waits for its end, and returns its exit status as a shell does.
    #[track_caller]
    pub fn wait(&mut self) -> i32 {
        eventually("the end of the daemon", || self.has_ended());
        self.status.expect("set above")
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        if self.status.is_none() {
            self.status = match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(_, code)) => Some(code),
                Ok(WaitStatus::Signaled(_, signal, _)) => Some(128 + signal as i32),
                // Its parent has not ended yet, so it is not our child yet.
                Ok(_) | Err(Errno::ECHILD) => None,
                Err(errno) => panic!("waiting for a daemon: {errno}"),
            };
        }
        self.status.is_some()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            let end = Instant::now() + DEADLINE;
            while !self.has_ended() && kill(self.pid, signal).is_ok() && Instant::now() < end {
                thread::sleep(LOOK);
            }
        }
    }
}

/// The processes named relayfsd that have this mount point as an argument.
fn daemons(point: &Path) -> Vec<Pid> {
    let is_ours = |pid: i32| {
        let cmdline = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut args = cmdline.split(|&b| b == 0);
        let name = args.next().map(|path| Path::new(OsStr::from_bytes(path)).file_name());
        name == Some(Some(OsStr::new("relayfsd"))) && args.any(|arg| arg == point.as_os_str().as_bytes())
    };
    let entries = fs::read_dir("/proc").expect("the table of processes");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| is_ours(*pid)).map(Pid::from_raw).collect()
}
