//! What concerns a mount point: the directory, its daemon, room for buffers, the socket; and what is left of others.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::unistd::{AccessFlags, access, geteuid};
use relay::GeometrySpec;
use relay::cli::size::format_size;
use relay::layout::channel_files::{LOCK_FILE, id_of_control};
use relay::layout::paths::{SOCKET_LINK, STATE_BASE, shell_word, state_dir, state_dirs_name};
use relay::layout::state_file::StateFile;
use relay::system::cpus;
use relay::system::locks::lock_holder;
use relay::system::mountinfo::{self, Entry, FS_TYPE};

use super::{Finding, Verdict};
use crate::channel::Channel;
use crate::mount;
use crate::process::host_limits::{MEMORY_PART, memory_max};

/// Longest wait for a mount's answer. Beyond it, its daemon stands still.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// What most findings here are about.
const THING: &str = "mount point";
/// Space that a state directory needs besides buffers, in bytes.
const BESIDES: u64 = 1 << 20;
/// An advised size of a file system is a multiple of this, in bytes.
const ROOM: u64 = 256 << 20;

/// What a mount of relayfsd is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Daemon {
    Alive,
    Dead,
    Silent,
}

/// Returns the findings.
pub(super) fn findings(point: &Path, named: Option<&Path>) -> Vec<Finding> {
    let entries = match mountinfo::read() {
        Ok(entries) => entries,
        Err(error) => {
            return vec![Finding::fails("mount point", error.to_string(), "mount -t proc proc /proc")];
        }
    };
    // A directory that is missing has no real path.
    let real = mount::resolve(point).unwrap_or_else(|_| point.to_owned());
    let own = named.map_or_else(|| state_dir(&real, geteuid().as_raw()), Path::to_owned);
    let (directory, is_alive) = directory(&real, &entries);
    let mut findings = vec![directory];
    findings.extend(other_mounts(&real, &entries));
    findings.push(room(&own, &entries));
    if is_alive {
        findings.push(socket(&real));
    }
    findings.extend(left(&own));
    findings
}

/// Looks at the mount point. Also returns whether a daemon is at work there.
fn directory(point: &Path, entries: &[Entry]) -> (Finding, bool) {
    let (shown, word) = (point.display(), shell_word(point));
    let finding = match mountinfo::topmost(entries, point) {
        Some(entry) if entry.fs_type == FS_TYPE => match ask(point) {
            Daemon::Alive => {
                return (Finding::works(THING, format!("{shown}: a relayfsd is mounted there")), true);
            }
            Daemon::Dead => dead(THING, point),
            Daemon::Silent => silent(THING, point),
        },
        Some(entry) if entry.fs_type != "autofs" => Finding::fails(
            THING,
            format!("{shown}: {} from {} is mounted there", entry.fs_type, entry.source),
            format!("umount {word}, or use another directory"),
        ),
        _ => match mount::relayfs_around(entries, point) {
            Some(outer) => Finding::fails(
                THING,
                format!("{shown} is inside of the relayfs that is mounted on {}", outer.display()),
                "name a directory outside",
            ),
            None => unmounted(point),
        },
    };
    (finding, false)
}

/// Looks at a directory on which nothing is mounted.
fn unmounted(point: &Path) -> Finding {
    let shown = point.display();
    match fs::metadata(point) {
        Ok(status) if status.is_dir() => usable(point, &status),
        Ok(_) => Finding::fails(THING, format!("{shown}: not a directory"), "name a directory"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Finding::fails(
            THING,
            format!("{shown}: there is no such directory"),
            format!("mkdir -p {}", shell_word(point)),
        ),
        Err(error) => Finding::fails(THING, format!("{shown}: {error}"), "name another directory"),
    }
}

/// fusermount3 mounts only where the user may write.
fn usable(point: &Path, status: &fs::Metadata) -> Finding {
    let shown = point.display();
    let may_write = access(point, AccessFlags::W_OK | AccessFlags::X_OK);
    if geteuid().is_root() || may_write.is_ok() {
        return Finding::works(THING, format!("{shown} is free"));
    }
    let text = format!("{shown} belongs to uid {}: this user may not mount there", status.uid());
    Finding::fails(THING, text, format!("as root: chown {} {}", geteuid(), shell_word(point)))
}

fn dead(thing: &'static str, point: &Path) -> Finding {
    let word = shell_word(point);
    let by = if geteuid().is_root() { "umount" } else { "fusermount3 -u" };
    Finding::fails(
        thing,
        format!("{}: the relayfsd of this mount has died; its buffers are kept", point.display()),
        format!("relayfsd {word}, which continues it; or {by} {word}"),
    )
}

fn silent(thing: &'static str, point: &Path) -> Finding {
    let text =
        format!("{}: the relayfsd of this mount does not answer within {ANSWER_MAX:?}", point.display());
    Finding::fails(
        thing,
        text,
        "look at its state in ps -C relayfsd; a stopped one continues by kill -CONT PID",
    )
}

/// The mounts of relayfsd elsewhere whose daemons are gone.
fn other_mounts(point: &Path, entries: &[Entry]) -> Vec<Finding> {
    let others = entries.iter().filter(|entry| entry.fs_type == FS_TYPE && entry.point != point);
    let findings = others.filter_map(|entry| match ask(&entry.point) {
        Daemon::Alive => None,
        Daemon::Dead => Some(dead("stale mount", &entry.point)),
        Daemon::Silent => Some(silent("other mount", &entry.point)),
    });
    // They do not keep a relayfsd from working on this mount point.
    findings.map(|finding| Finding { verdict: Verdict::Costs, ..finding }).collect()
}

/// Asks a mount for its root. The thread that asks stays behind if the daemon stands still.
fn ask(point: &Path) -> Daemon {
    let (sender, receiver) = channel();
    let path = point.to_owned();
    let asked =
        thread::Builder::new().spawn(move || sender.send(mount::is_dead_mount(&path)).unwrap_or_default());
    match asked.ok().and_then(|_| receiver.recv_timeout(ANSWER_MAX).ok()) {
        Some(true) => Daemon::Dead,
        Some(false) => Daemon::Alive,
        None => Daemon::Silent,
    }
}

/// The file system of the buffers.
fn room(own: &Path, entries: &[Entry]) -> Finding {
    const THING: &str = "room";
    const SMALLER: &str = "or --n-subbufs 2 --subbuf-size 64K";
    // The daemon creates it, and what is missing above it.
    let Some((dir, status)) = own.ancestors().find_map(|dir| Some((dir, statfs(dir).ok()?))) else {
        return Finding::fails(
            THING,
            format!("{}: out of reach", own.display()),
            "name another by --state-dir",
        );
    };
    let channel = default_channel();
    let bytes = |blocks: u64| blocks.saturating_mul(u64::try_from(status.block_size()).unwrap_or(0));
    let free = bytes(status.blocks_available());
    let shown = format!("{} for {}", format_free(free), own.display());
    // A ramfs has no limit, and says 0 of 0.
    if status.blocks() != 0 && free < channel + BESIDES {
        let text = format!(
            "{shown} is free: too little for the buffers of channel cpu, {}",
            format_free(channel + BESIDES)
        );
        let size =
            (bytes(status.blocks()) - free + channel * MEMORY_PART + BESIDES).div_ceil(ROOM) * (ROOM >> 20);
        let mount = mount_of(dir, entries);
        let mend =
            format!("mount -o remount,size={size}M {mount}; in a container: --shm-size {size}m; {SMALLER}");
        return Finding::fails(THING, text, mend);
    }
    let max = memory_max(dir);
    if max < channel {
        let text = format!(
            "{shown} is free, and --max-memory is {} by default: too little for the buffers of channel cpu, {}",
            format_free(max),
            format_free(channel)
        );
        return Finding::fails(THING, text, format!("--max-memory {}; {SMALLER}", format_size(channel)));
    }
    if status.filesystem_type() != TMPFS_MAGIC {
        let text = format!("{shown} is free, and no tmpfs: each message costs writes to a disk");
        return Finding::costs(THING, text, format!("--state-dir below {STATE_BASE}"));
    }
    Finding::works(THING, format!("{shown} is free; --max-memory is {} by default", format_free(max)))
}

/// The mount point of the file system that a directory is in, as a word for the shell.
fn mount_of(dir: &Path, entries: &[Entry]) -> String {
    let dir = mount::resolve(dir).unwrap_or_else(|_| dir.to_owned());
    let entry = mountinfo::topmost(entries, &dir).or_else(|| mountinfo::around(entries, &dir));
    shell_word(entry.map_or(&dir, |entry| &entry.point))
}

/// Bytes of channel `cpu` with the daemon's defaults.
fn default_channel() -> u64 {
    let geometry = GeometrySpec::default().build();
    geometry.map_or(0, |geometry| Channel::memory_needed(&geometry, cpus::count()))
}

/// Shows a size in whole units, at least 16 of them: K, M or G.
fn format_free(bytes: u64) -> String {
    let unit = [1u64 << 30, 1 << 20, 1 << 10].into_iter().find(|unit| bytes >= 16 * unit).unwrap_or(1);
    format_size(bytes - bytes % unit)
}

/// Whether this user's producers can connect to the daemon of a mount.
fn socket(point: &Path) -> Finding {
    const THING: &str = "socket";
    let socket = match fs::read_link(point.join(SOCKET_LINK)) {
        Ok(socket) => socket,
        Err(error) => {
            let text = format!("{}: {error}: this user may not enter the mount", point.display());
            return Finding::costs(
                THING,
                text,
                "mount as root, or with --group and user_allow_other in /etc/fuse.conf",
            );
        }
    };
    let shown = socket.display();
    match access(&socket, AccessFlags::W_OK) {
        Ok(()) => Finding::works(THING, format!("{shown}: this user may send")),
        Err(Errno::ENOENT) => Finding::costs(
            THING,
            format!("{shown} is not visible here: producers here cannot send"),
            "make its directory visible beside the mount point, in a container by a bind mount",
        ),
        Err(_) => {
            let mode = fs::metadata(&socket).map_or_else(
                |_| String::new(),
                |status| format!(" (mode {:04o}, group {})", status.mode() & 0o7777, status.gid()),
            );
            Finding::costs(
                THING,
                format!("{shown}: this user may not send{mode}"),
                "start relayfsd with --group NAME of a group of this user, or with --socket-mode 0666",
            )
        }
    }
}

/// What daemons of this user have left, and what they did not trust.
fn left(own: &Path) -> Vec<Finding> {
    let base = Path::new(STATE_BASE).join(state_dirs_name(geteuid().as_raw()));
    let mut dirs = names_in(&base);
    if !dirs.iter().any(|dir| dir == own) {
        dirs.push(own.to_owned());
    }
    let mut findings = Vec::new();
    for dir in dirs.iter().filter(|dir| dir.is_dir()) {
        let is_at_work = lock_holder(&dir.join(LOCK_FILE)).is_some();
        if !is_at_work && holds_channels(dir) {
            let state = StateFile::read(dir).ok().flatten();
            let point = state.and_then(|state| state.point.parse::<relay::layout::mount_point::Point>().ok());
            let of =
                point.as_ref().map_or_else(String::new, |point| format!(", of {}", point.path().display()));
            let start = point.map_or_else(
                || format!("relayfsd --state-dir {} MOUNTPOINT", shell_word(dir)),
                |point| format!("relayfsd {}", shell_word(point.path())),
            );
            let text = format!("{}{of}: a relayfsd that is gone has left its channels", dir.display());
            let word = shell_word(dir);
            let mend = format!(
                "{start} continues them; audience --state {word} reads them; rm -r {word} removes them"
            );
            findings.push(Finding { thing: "left", verdict: Verdict::Works, text, mend: Some(mend) });
        }
        for quarantine in names_in(dir).iter().filter(|path| is_quarantine(path)) {
            let text = format!("{}: files that a relayfsd did not trust", quarantine.display());
            let word = shell_word(quarantine);
            findings.push(Finding::costs(
                "quarantine",
                text,
                format!("audience --state {word}; rm -r {word}"),
            ));
        }
    }
    findings
}

fn is_quarantine(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("quarantine-"))
}

fn holds_channels(dir: &Path) -> bool {
    let is_control = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| id_of_control(name).is_some())
    };
    names_in(dir).iter().any(is_control)
}

/// The paths in a directory, in order. None if it cannot be read.
fn names_in(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort_unstable();
    paths
}
