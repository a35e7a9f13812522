//! Finds the state of a mount point that had another path before: a directory was renamed.
//!
//! State directories are named after the mount point's path. A start that finds nothing under its own name looks at the
//! other state directories of this user. A state file identifies the mounted directory by numbers that a rename does
//! not change.

use std::path::{Path, PathBuf};

use relay::layout::mount_point::Point;
use relay::layout::state_file::StateFile;

use crate::kill_point;
use crate::state::state_dir::{DirError, Place, StateDir};
use crate::state::takeover;

/// Returns the state directory to start with.
///
/// This is `own`, or, if `own` has no channels, the one that the mount point had under a former path. That one then
/// gets the name of `own`.
pub(crate) fn find(own: StateDir, place: &Place, point: &Point) -> Result<StateDir, DirError> {
    if own.holds_channels()? {
        return Ok(own);
    }
    let Some(path) = siblings(own.path()).into_iter().find(|path| is_of(path, point)) else { return Ok(own) };
    let mut moved = match takeover::claim(point.path(), &place.beside(&path)) {
        Ok(moved) if is_of(&path, point) => moved,
        // Another start took the directory over before this one locked it.
        Ok(_) => return Ok(own),
        Err(error) => {
            log::warn!(
                "{}: cannot take over the state of {} under a former path: {error}",
                path.display(),
                point.path().display()
            );
            return Ok(own);
        }
    };
    kill_point!("moved-found");
    let mut own = own;
    // The exchange is atomic: at every moment, a daemon finds a locked directory under its own name.
    own.exchange(&mut moved)?;
    kill_point!("moved-exchanged");
    own.give_quarantines_to(&moved)?;
    log::warn!(
        "{} was left of {} under another path, and is {} now",
        own.path().display(),
        point.path().display(),
        moved.path().display()
    );
    Ok(moved)
}

/// Returns the other directories with the same parent.
fn siblings(own: &Path) -> Vec<PathBuf> {
    let Some(entries) = own.parent().and_then(|parent| std::fs::read_dir(parent).ok()) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path != own && path.is_dir());
    paths.sort_unstable();
    paths
}

/// Returns whether a directory has channels of this mount point.
fn is_of(dir: &Path, point: &Point) -> bool {
    // The daemon of that path reports a damaged state file.
    let Ok(Some(state)) = StateFile::read(dir) else { return false };
    !state.channels.is_empty() && state.point.parse().is_ok_and(|other| point.is_same_directory(&other))
}
