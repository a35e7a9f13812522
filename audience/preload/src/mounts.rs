//! Answers mount(2) and umount(2) of a relayfs, and remembers what this process mounted.

use std::ffi::OsStr;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::mount::MsFlags;
use nix::sys::stat::{SFlag, stat};
use relay::system::mountinfo::{self, FS_TYPE};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use crate::start_daemon::{DAEMON, Ended, FUSERMOUNT, appears, run};

/// The environment variable with the path of relayfsd, in place of the one in PATH.
const DAEMON_ENV: &str = "RELAYFSD";
/// Exit status of relayfsd after wrong usage.
const USAGE: i32 = 2;
/// The mount flags that relayfsd knows, and their names as its options.
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
    /// Whether the mount is still there. Another process may have unmounted it, and mounted another one.
    fn is_there(&self) -> bool {
        is_mounted(&self.point) && mount_number(&self.point) == Some(self.number)
    }
}

/// What an umount(2) concerns.
#[derive(Debug)]
pub(crate) enum Unmount {
    /// A path at which this library has not answered a mount(2).
    PassOn,
    /// A path at which something is mounted that is not this process's.
    Refused,
    /// A mount that this process made.
    Own(Own),
}

/// The answer to the last mount(2) of a path.
#[derive(Debug)]
struct Answer {
    point: PathBuf,
    /// `None` if there was a relayfs already, or another process has unmounted ours.
    own: Option<Own>,
}

/// One answer for each path.
static ANSWERS: Mutex<Vec<Answer>> = Mutex::new(Vec::new());

/// Mounts a relayfs, and returns when it is usable. `EBUSY` if there is a relayfs already.
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
        Err(_) if appears(|| is_alive(&point)) => busy(&point),
        Err((errno, reason)) => {
            say(&format!("cannot mount {}: {reason}", point.display()));
            Err(errno)
        }
    }
}

/// Decides what an umount(2) of this path means.
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

/// Completes an unmount of ours after umount(2).
///
/// If that was not permitted, fusermount3 unmounts.
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
        Ok(ended) => {
            cannot(ended.reason());
            // The exit status does not say why. The usual reason is that the mount is busy.
            Err(Errno::EBUSY)
        }
        Err(error) => {
            cannot(format!("{FUSERMOUNT} (package fuse3): {error}"));
            Err(Errno::EPERM)
        }
    }
}

/// Whether the visible mount at a path is a relayfs. The path is from [`mountinfo::resolve`].
fn is_mounted(point: &Path) -> bool {
    let entries = mountinfo::read().unwrap_or_default();
    mountinfo::topmost(&entries, point).is_some_and(|entry| entry.fs_type == FS_TYPE)
}

/// The number of the visible mount at a path. From Linux 6.8 on, the kernel never reuses such a number.
/// 6.8).
fn mount_number(point: &Path) -> Option<u64> {
    /// The constant of statx(2).
    const STATX_MNT_ID_UNIQUE: u32 = 0x4000;
    let number = |wanted: StatxFlags| {
        // Without a request to the daemon, which may be dead.
        let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
        let answer = statx(CWD, point, flags, wanted).ok()?;
        (answer.stx_mask & wanted.bits() != 0).then_some(answer.stx_mnt_id)
    };
    number(StatxFlags::from_bits_retain(STATX_MNT_ID_UNIQUE)).or_else(|| number(StatxFlags::MNT_ID))
}

/// Whether a relayfs with a living daemon is mounted at a path.
fn is_alive(point: &Path) -> bool {
    is_mounted(point) && !matches!(stat(point), Err(Errno::ENOTCONN | Errno::ECONNABORTED))
}

/// Runs relayfsd, which returns when the mount is usable. The error holds mount(2)'s errno and a text for people.
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
        Ok(Ended { status: Some(status), .. }) if status.success() => Ok(()),
        Ok(Ended { status: None, .. }) if is_alive(point) => Ok(()),
        Ok(ended) => {
            let is_usage = ended.status.and_then(|status| status.code()) == Some(USAGE);
            Err((if is_usage { Errno::EINVAL } else { Errno::EIO }, ended.reason()))
        }
        // The kernel's error for a type that it does not know.
        Err(error) if error.kind() == ErrorKind::NotFound && program == DAEMON => {
            let reason =
                format!("there is no {DAEMON} in PATH; {DAEMON_ENV}=/path/to/{DAEMON} says where it is");
            Err((Errno::ENODEV, reason))
        }
        Err(error) => Err((Errno::ENODEV, format!("cannot run {}: {error}", program.display()))),
    }
}

/// Runs a program to its end, without the preloaded libraries.
fn outcome(command: &mut Command) -> io::Result<Ended> {
    // The libraries preloaded into this program must not live on in a daemon.
    run(command.env_remove("LD_PRELOAD"))
}

fn answers() -> MutexGuard<'static, Vec<Answer>> {
    // A panic elsewhere leaves each answer whole.
    ANSWERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers EBUSY: a relayfs is mounted already.
///
/// It still belongs to the process that mounted it, perhaps this process.
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

/// Prints one line on the program's standard error, because errno alone says little.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "relayfs: {line}");
}
