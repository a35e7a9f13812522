//! What mount(2) and umount(2) of a relayfs do, and what this process was told by them.

use std::ffi::OsStr;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::sys::stat::{SFlag, stat};
use relay::mountinfo::{self, FS_TYPE};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

/// The daemon that mounts, and the environment variable that says where it is, if not in PATH.
const DAEMON: &str = "relayfsd";
const DAEMON_ENV: &str = "RELAYFSD";
/// The set-user-ID helper that unmounts for those who may not.
const FUSERMOUNT: &str = "fusermount3";
/// How long we give a daemon that was started at the same time as ours, and first, to become usable.
const OTHERS_START_MAX: Duration = Duration::from_millis(250);
/// Time between two looks at whether it is.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Flags that mean something to relayfsd, and their names there.
const FLAGS: [(MsFlags, &str); 3] =
    [(MsFlags::MS_RDONLY, "ro"), (MsFlags::MS_NOEXEC, "noexec"), (MsFlags::MS_NOATIME, "noatime")];

/// The arguments of a mount(2).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request<'a> {
    pub(crate) source: Option<&'a OsStr>,
    pub(crate) point: &'a Path,
    pub(crate) flags: MsFlags,
    pub(crate) options: Option<&'a OsStr>,
}

/// A mount that this process made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Own {
    point: PathBuf,
    number: u64,
}

impl Own {
    /// Somebody may have unmounted ours, and mounted another there.
    fn is_there(&self) -> bool {
        is_mounted(&self.point) && mount_number(&self.point) == Some(self.number)
    }
}

/// What an umount(2) is about.
#[derive(Debug)]
pub(crate) enum Unmount {
    /// Nothing that we know of.
    PassOn,
    /// A place where what is mounted is not this process's.
    Refused,
    /// What this process has mounted.
    Own(Own),
}

/// What the last mount(2) of a place was told.
#[derive(Debug)]
struct Answer {
    point: PathBuf,
    /// Nothing: there was a relayfs already, or what was mounted has been unmounted by others.
    own: Option<Own>,
}

/// One for each place.
static ANSWERS: Mutex<Vec<Answer>> = Mutex::new(Vec::new());

/// Mounts, and returns when the mount is usable. `EBUSY`: there is a relayfs already.
pub(crate) fn mount(request: Request) -> Result<(), Errno> {
    let point = mountinfo::resolve(request.point).map_err(|error| errno(&error))?;
    if is_alive(&point) {
        return busy(&point);
    }
    match stat(&point) {
        Ok(status) if SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT != SFlag::S_IFDIR => {
            return Err(Errno::ENOTDIR);
        }
        _ => {}
    }
    match run_daemon(&point, request) {
        Ok(()) => {
            let own = mount_number(&point).map(|number| Own { point: point.clone(), number });
            remember(&point, own);
            Ok(())
        }
        Err(_) if appears(&point) => busy(&point),
        Err((errno, reason)) => {
            say(&format!("cannot mount {}: {reason}", point.display()));
            Err(errno)
        }
    }
}

/// What an umount(2) of this path means.
pub(crate) fn what_to_unmount(path: &Path) -> Unmount {
    let Ok(point) = mountinfo::resolve(path) else { return Unmount::PassOn };
    let mut answers = answers();
    let Some(answer) = answers.iter_mut().find(|answer| answer.point == point) else {
        return Unmount::PassOn;
    };
    let Some(own) = &answer.own else { return Unmount::Refused };
    if own.is_there() {
        Unmount::Own(own.clone())
    } else {
        answer.own = None;
        Unmount::Refused
    }
}

/// Ours was tried to be unmounted, by the system call; what it takes besides.
pub(crate) fn unmounted(own: &Own, tried: Result<(), Errno>, lazily: bool) -> Result<(), Errno> {
    match tried {
        Err(Errno::EPERM) => by_helper(&own.point, lazily)?,
        other => other?,
    }
    answers().retain(|answer| answer.own.as_ref() != Some(own));
    Ok(())
}

fn by_helper(point: &Path, lazily: bool) -> Result<(), Errno> {
    let mut command = Command::new(FUSERMOUNT);
    command.arg("-u").args(lazily.then_some("-z")).arg("--").arg(point);
    let cannot = |reason: String| say(&format!("cannot unmount {}: {reason}", point.display()));
    match outcome(&mut command) {
        Ok(_) if !is_mounted(point) => Ok(()),
        Ok(output) => {
            cannot(one_line(&output.stderr));
            // Its exit status does not tell why; to be busy is the usual reason.
            Err(Errno::EBUSY)
        }
        Err(error) => {
            cannot(format!("{FUSERMOUNT} (package fuse3): {error}"));
            Err(Errno::EPERM)
        }
    }
}

/// Whether it is a relayfs that is seen at a place, from [`mountinfo::resolve`].
fn is_mounted(point: &Path) -> bool {
    let entries = mountinfo::read().unwrap_or_default();
    mountinfo::topmost(&entries, point).is_some_and(|entry| entry.fs_type == FS_TYPE)
}

/// The number of the mount that is seen at a place, one that is never given again where the kernel has such (Linux 6.8).
fn mount_number(point: &Path) -> Option<u64> {
    /// The constant of statx(2).
    const STATX_MNT_ID_UNIQUE: u32 = 0x4000;
    let number = |wanted: StatxFlags| {
        // Without asking the daemon, who may be dead.
        let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
        let answer = statx(CWD, point, flags, wanted).ok()?;
        (answer.stx_mask & wanted.bits() != 0).then_some(answer.stx_mnt_id)
    };
    number(StatxFlags::from_bits_retain(STATX_MNT_ID_UNIQUE)).or_else(|| number(StatxFlags::MNT_ID))
}

/// Whether a relayfs is mounted there, and not what a dead daemon has left.
fn is_alive(point: &Path) -> bool {
    is_mounted(point) && !matches!(stat(point), Err(Errno::ENOTCONN | Errno::ECONNABORTED))
}

/// Whether somebody else's becomes usable within a short time.
fn appears(point: &Path) -> bool {
    let deadline = Instant::now() + OTHERS_START_MAX;
    while !is_alive(point) {
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(LOOK_AGAIN);
    }
    true
}

/// Runs relayfsd, which returns when the mount is usable. The error is what a mount(2) fails with, and for people.
fn run_daemon(point: &Path, request: Request) -> Result<(), (Errno, String)> {
    let program = std::env::var_os(DAEMON_ENV).filter(|path| !path.is_empty());
    let program = program.as_deref().unwrap_or(OsStr::new(DAEMON));
    let mut command = Command::new(program);
    for (flag, name) in FLAGS {
        if request.flags.contains(flag) {
            command.args(["-o", name]);
        }
    }
    let not_empty = |text: &&OsStr| !text.is_empty();
    if let Some(options) = request.options.filter(not_empty) {
        command.arg("-o").arg(options);
    }
    command.arg("--").args(request.source.filter(not_empty)).arg(point);
    match outcome(&mut command) {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err((Errno::EIO, one_line(&output.stderr))),
        // The program has its children reaped by others, or by nobody.
        Err(error) if error.raw_os_error() == Some(Errno::ECHILD as i32) => match is_alive(point) {
            true => Ok(()),
            false => {
                Err((Errno::EIO, format!("{DAEMON} failed, and this program does not wait for its children")))
            }
        },
        // What the kernel says of a type that it does not know.
        Err(error) if error.kind() == ErrorKind::NotFound && program == DAEMON => {
            let reason =
                format!("there is no {DAEMON} in PATH; {DAEMON_ENV}=/path/to/{DAEMON} says where it is");
            Err((Errno::ENODEV, reason))
        }
        Err(error) => Err((Errno::ENODEV, format!("cannot run {}: {error}", program.display()))),
    }
}

/// Runs a program of the system's to its end.
fn outcome(command: &mut Command) -> io::Result<Output> {
    // Nothing of the program that we are in is to live on in a daemon: neither its output, whose reader would wait, nor
    // what it has preloaded.
    command
        .env_remove("LD_PRELOAD")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
}

fn answers() -> MutexGuard<'static, Vec<Answer>> {
    // Whatever panicked, each answer is whole.
    ANSWERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// There is a relayfs already, and it stays that of whoever made it, be it this process.
fn busy(point: &Path) -> Result<(), Errno> {
    let is_own = answers().iter().any(|a| a.point == point && a.own.as_ref().is_some_and(Own::is_there));
    if !is_own {
        remember(point, None);
    }
    Err(Errno::EBUSY)
}

fn remember(point: &Path, own: Option<Own>) {
    let mut answers = answers();
    answers.retain(|answer| answer.point != point);
    answers.push(Answer { point: point.to_owned(), own });
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// A program's complaint as one line, without its name.
fn one_line(complaint: &[u8]) -> String {
    let complaint = String::from_utf8_lossy(complaint);
    let lines = complaint.lines().map(str::trim).filter(|line| !line.is_empty());
    let lines: Vec<&str> = lines.map(|line| line.strip_prefix("relayfsd: ").unwrap_or(line)).collect();
    if lines.is_empty() { "it failed and did not say why".to_owned() } else { lines.join("; ") }
}

/// One line on the program's standard error: errno alone tells little.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "relayfs: {line}");
}
