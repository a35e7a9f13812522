//! Recovers the channels that an earlier daemon left, by dying or by keeping them.
//!
//! ```text
//! state file sound?               no:  everything is moved to quarantine
//! each channel it names: sound?   no:  the channel's files are moved to quarantine
//!                                 yes: the channel continues where it stopped
//! files that it does not name     half created or half removed, no producer knows them: removed
//! ```
//!
//! Everything is checked before it is changed, and each step can be repeated: after a start that is killed, the next
//! start can begin again. A quarantine is a directory `quarantine-N`, in the form of a state directory, for people to look
//! at.

use std::collections::HashSet;
use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::mem::offset_of;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use relay::layout::abi::{BufferBlock, ControlHeader};
use relay::layout::mount_point::Point;
use relay::layout::state_file::{ChannelEntry, STATE_FILE, StateFile};

use crate::channel::files::{Files, FindError, is_shortage};
use crate::channel::{Channel, Named};
use crate::kill_point;
use crate::state::state_dir::{DirError, StateDir};

/// Most buffers of a damaged channel that are marked as closed.
const TOLD_MAX: u64 = 1 << 14;

/// The state that continues.
#[derive(Default)]
pub(crate) struct Recovered {
    /// The state file's values, apart from the channels.
    pub(crate) state: StateFile,
    /// The sound channels.
    pub(crate) channels: Vec<Channel>,
}

/// Takes over the contents of the state directory.
///
/// `point` is this daemon's mount point. With `any_point`, the contents may be of another one.
pub(crate) fn recover(
    dir: &StateDir,
    point: &Point,
    any_point: bool,
    n_cpus: usize,
) -> Result<Recovered, DirError> {
    // A start that lacks descriptors says nothing about what is there.
    let state_path = dir.path().join(STATE_FILE);
    if let Err(source) = fs::File::open(&state_path)
        && is_shortage(&source)
    {
        return Err(DirError::Io { path: state_path, source });
    }
    let mut left = match StateFile::read(dir.path()) {
        Ok(Some(left)) if any_point || is_of(&left, point) => left,
        found => {
            match found {
                Ok(Some(other)) => {
                    quarantine_all(
                        dir,
                        &format!("it is of another mount point: {}, not {point}", other.point),
                    )?;
                }
                Ok(None) if dir.entries()?.iter().any(|path| is_control(path)) => {
                    quarantine_all(dir, &format!("there is no file '{STATE_FILE}'"))?;
                }
                // No channel was ever complete, so no producer knows any.
                Ok(None) => clear_leftovers(dir, &HashSet::new())?,
                Err(reason) => quarantine_all(dir, &reason)?,
            }
            let salt = new_salt();
            let state = StateFile { point: point.to_string(), epoch: 1, salt, ..StateFile::default() };
            return Ok(Recovered { state, channels: Vec::new() });
        }
    };
    left.epoch = left.epoch.saturating_add(1);
    left.point = point.to_string();
    kill_point!("adopt-read");
    let mut channels = Vec::new();
    for entry in std::mem::take(&mut left.channels) {
        let named = Named {
            id: entry.id,
            name: entry.name.clone(),
            geometry: entry.geometry,
            permanent: false, // this daemon's command line decides
            maker: None,
        };
        let expected = if entry.geometry.global() { 1 } else { n_cpus };
        let adopted = if entry.n_bufs == expected {
            Channel::adopt(dir.path(), left.epoch, named, entry.n_bufs)
        } else {
            Err(FindError::Unsound(format!(
                "it has {} buffers, and this machine {n_cpus} CPUs",
                entry.n_bufs
            )))
        };
        match adopted {
            Ok(channel) => channels.push(channel),
            Err(FindError::Shortage { path, source }) => return Err(DirError::Io { path, source }),
            Err(FindError::Unsound(reason)) => quarantine(dir, &left, &entry, &reason)?,
        }
        kill_point!("adopt-channel");
    }
    let known = channels.iter().flat_map(Channel::paths).collect();
    clear_leftovers(dir, &known)?;
    kill_point!("adopt-cleared");
    Ok(Recovered { state: left, channels })
}

/// Returns whether the state is of this mount point's path, or of its directory.
///
/// The directory may have had another path before.
///
/// The path counts although its directory may have other numbers now: it was removed and created again, or its
/// container was started again. People and producers know the path, and must find the data that was written there.
fn is_of(left: &StateFile, point: &Point) -> bool {
    let Ok(other) = left.point.parse::<Point>() else { return false };
    let is_same = other.is_same_directory(point);
    if !is_same && other.path() == point.path() {
        log::info!(
            "{}: what is left there was written to another directory of this path",
            point.path().display()
        );
    }
    is_same || other.path() == point.path()
}

/// Returns a random salt for inode numbers; not 0, which stands for older releases.
///
/// With a new salt, tools that remember an inode and an offset start over with the files of a new directory.
fn new_salt() -> u32 {
    // The standard library takes these from the kernel's random numbers.
    let random = RandomState::new().build_hasher().finish();
    (random as u32).max(1)
}

/// Moves a damaged channel to a quarantine directory, and closes it for its producers.
fn quarantine(dir: &StateDir, state: &StateFile, entry: &ChannelEntry, reason: &str) -> Result<(), DirError> {
    let aside = dir.new_quarantine()?;
    log::error!("channel {}: quarantined in {}: {reason}", entry.name, aside.display());
    let files = Files::of(dir.path(), entry.id, entry.n_bufs, entry.geometry.timed());
    tell_writers(files.control());
    for path in files.all() {
        move_to(path, &aside)?;
        kill_point!("adopt-aside");
    }
    let state = StateFile { channels: vec![entry.clone()], ..state.clone() };
    let path = aside.join(STATE_FILE);
    fs::write(&path, state.to_text()).map_err(|source| DirError::Io { path, source })
}

/// Moves everything in the state directory to a quarantine directory.
fn quarantine_all(dir: &StateDir, reason: &str) -> Result<(), DirError> {
    let aside = dir.new_quarantine()?;
    log::error!("{}: all contents quarantined in {}: {reason}", dir.path().display(), aside.display());
    let mut paths = dir.entries()?;
    // Control files last: as long as one is there, a start without a state file moves the rest to quarantine too.
    paths.sort_by_key(|path| is_control(path));
    for path in paths {
        if is_control(&path) {
            tell_writers(&path);
        }
        move_to(&path, &aside)?;
        kill_point!("adopt-all-aside");
    }
    Ok(())
}

fn is_control(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "control")
}

fn move_to(path: &Path, dir: &Path) -> Result<(), DirError> {
    let name = path.file_name().unwrap_or_default();
    match fs::rename(path, dir.join(name)) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(DirError::Io { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Marks the buffers of a control file as closed, for producers that still write to them.
///
/// They notice at their next switch, as far as the control file is good for that. The mark is written, not mapped: the
/// file may have been made longer than there is memory.
fn tell_writers(control: &Path) {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let opened = fs::OpenOptions::new().read(true).write(true).custom_flags(flags).open(control);
    let Ok(file) = opened else { return };
    let mut header = [0; size_of::<ControlHeader>()];
    if file.read_exact_at(&mut header, 0).is_err() {
        return;
    }
    let word = |at| header[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let n_bufs = word(offset_of!(ControlHeader, n_bufs)) & u64::from(u32::MAX);
    let (first, stride) =
        (word(offset_of!(ControlHeader, buffers_offset)), word(offset_of!(ControlHeader, buffer_stride)));
    let len = file.metadata().map_or(0, |status| status.len());
    for index in 0..n_bufs.min(TOLD_MAX) {
        let block = stride.checked_mul(index).and_then(|at| at.checked_add(first));
        let at = block.and_then(|at| at.checked_add(offset_of!(BufferBlock, closed) as u64));
        let Some(at) = at.filter(|at| *at < len.saturating_sub(8)) else { return };
        // If this fails, the producers continue to write data that no reader gets.
        let _ = file.write_all_at(&1u64.to_ne_bytes(), at);
    }
}

/// Removes files that no producer knows.
fn clear_leftovers(dir: &StateDir, known: &HashSet<PathBuf>) -> Result<(), DirError> {
    let state_file = dir.path().join(STATE_FILE);
    for path in dir.entries()? {
        if !known.contains(&path) && path != state_file {
            dir.remove_entry(&path)?;
            log::info!("{}: removed, it was half made or half removed", path.display());
        }
    }
    Ok(())
}
