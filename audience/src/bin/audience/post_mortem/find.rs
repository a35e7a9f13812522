//! Finds the state directory of a mount point, and all state directories that this user can read.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::geteuid;
use relay::layout::channel_files::id_of_control;
use relay::layout::mount_point::Point;
use relay::layout::paths::{STATE_BASE, instance_name, state_dirs_name};
use relay::layout::state_file::{STATE_FILE, StateFile};
use relay::system::mountinfo;

/// The mount point that a path means.
struct Meant {
    path: PathBuf,
    /// `None` while something is mounted on the path, or if the directory is gone.
    point: Option<Point>,
}

impl Meant {
    fn by(path: &Path) -> Meant {
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let path = mountinfo::resolve(&absolute).unwrap_or_else(|_| {
            // The directory is gone; its parent may still be there.
            let parent = absolute.parent().and_then(|parent| mountinfo::resolve(parent).ok());
            parent.zip(absolute.file_name()).map_or(absolute.clone(), |(parent, name)| parent.join(name))
        });
        Meant { point: Point::of(&path).ok(), path }
    }

    /// Whether a state directory belonged to a daemon of this mount point.
    fn has(&self, dir: &Path) -> bool {
        let is_other = |point: &Point| self.point.as_ref().is_some_and(|own| own.is_same_directory(point));
        point_of(dir).is_some_and(|point| point.path() == self.path || is_other(&point))
    }
}

/// Finds the state directory, with channels, that this user's last daemon left of a mount point.
pub(crate) fn of_mount(mount: &Path) -> Option<PathBuf> {
    of_mount_among(mount, &of_user(geteuid().as_raw()))
}

/// Finds the state directory of a mount point: this user's, or else another user's.
pub(crate) fn of_mount_of_anybody(mount: &Path) -> Option<PathBuf> {
    of_mount(mount).or_else(|| of_mount_among(mount, &all()))
}

fn of_mount_among(mount: &Path, dirs: &[PathBuf]) -> Option<PathBuf> {
    let meant = Meant::by(mount);
    let name = instance_name(&meant.path);
    let by_name =
        dirs.iter().find(|dir| dir.file_name().is_some_and(|found| *found == *name) && holds_channels(dir));
    by_name.or_else(|| dirs.iter().find(|dir| meant.has(dir) && holds_channels(dir))).cloned()
}

/// Every state directory that this user can read; for root, the directories of all users.
pub(crate) fn all() -> Vec<PathBuf> {
    let mut users: Vec<u32> = names_in(Path::new(STATE_BASE))
        .iter()
        .filter_map(|name| name.strip_prefix("relayfs-")?.parse().ok())
        .collect();
    users.sort_unstable();
    users.into_iter().flat_map(of_user).collect()
}

/// A user's state directories. Leaves out base directories that another user has planted.
fn of_user(uid: u32) -> Vec<PathBuf> {
    let base = Path::new(STATE_BASE).join(state_dirs_name(uid));
    if !fs::symlink_metadata(&base).is_ok_and(|status| status.is_dir() && status.uid() == uid) {
        return Vec::new();
    }
    // The name of the directory of sockets begins with a dot.
    let mut names = names_in(&base);
    names.retain(|name| !name.starts_with('.'));
    names.sort_unstable();
    names.into_iter().map(|name| base.join(name)).filter(|path| path.is_dir()).collect()
}

/// The directories in a state directory in which the next daemon put files that it did not trust.
///
/// Daemons of earlier versions called them `refused-N`.
pub(crate) fn quarantines_in(dir: &Path) -> Vec<PathBuf> {
    let mut names = names_in(dir);
    names.retain(|name| ["quarantine-", "refused-"].iter().any(|begin| name.starts_with(begin)));
    names.sort_unstable();
    names.into_iter().map(|name| dir.join(name)).collect()
}

/// Whether a directory holds a channel, or files that may have been a channel.
pub(crate) fn holds_channels(dir: &Path) -> bool {
    match StateFile::read(dir) {
        Ok(Some(state)) => !state.channels.is_empty(),
        Ok(None) => names_in(dir).iter().any(|name| id_of_control(name).is_some()),
        Err(_) => true,
    }
}

/// Whether a path is a state directory, and not a mount point.
pub(crate) fn is_state_dir(dir: &Path) -> bool {
    dir.join(STATE_FILE).is_file() || names_in(dir).iter().any(|name| id_of_control(name).is_some())
}

/// The mount point that a state directory names.
pub(crate) fn point_of(dir: &Path) -> Option<Point> {
    StateFile::read(dir).ok()??.point.parse().ok()
}

/// Names in a directory that are valid UTF-8; none if the directory cannot be read.
fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}
