//! What a daemon left for a mount point that had another path then: one of its directories was renamed.
//!
//! State directories are called after paths. A start that finds nothing under its own name looks at the others of this user:
//! the state file says which directory was mounted on, by numbers that a rename does not change.

use std::path::{Path, PathBuf};

use relay::layout::mount_point::Point;
use relay::layout::state_file::StateFile;

use crate::kill_point;
use crate::state::state_dir::{DirError, Place, StateDir};
use crate::state::takeover;

/// The state directory to start with: `own`, or, if that holds nothing, what was left of the mount point under a former path.
/// That one gets `own`'s name then.
pub(crate) fn find(own: StateDir, place: &Place, point: &Point) -> Result<StateDir, DirError> {
    if own.holds_channels()? {
        return Ok(own);
    }
    let Some(path) = siblings(own.path()).into_iter().find(|path| is_of(path, point)) else { return Ok(own) };
    let mut moved = match takeover::claim(point.path(), &place.beside(&path)) {
        Ok(moved) if is_of(&path, point) => moved,
        // Another start took it before it was locked here.
        Ok(_) => return Ok(own),
        Err(error) => {
            log::warn!(
                "{}: it was left of {}, and cannot be taken over: {error}",
                path.display(),
                point.path().display()
            );
            return Ok(own);
        }
    };
    kill_point!("moved-found");
    let mut own = own;
    // What a daemon finds under its own name from now on is locked, at every moment.
    own.exchange(&mut moved)?;
    kill_point!("moved-exchanged");
    own.give_refused_to(&moved)?;
    log::warn!(
        "{} was left of {} under another path, and is {} now",
        own.path().display(),
        point.path().display(),
        moved.path().display()
    );
    Ok(moved)
}

/// The other directories beside it.
fn siblings(own: &Path) -> Vec<PathBuf> {
    let Some(entries) = own.parent().and_then(|parent| std::fs::read_dir(parent).ok()) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| path != own && path.is_dir());
    paths.sort_unstable();
    paths
}

/// Whether channels of this mount point are left there.
fn is_of(dir: &Path, point: &Point) -> bool {
    // A state file that makes no sense is for the daemon of its own path to tell.
    let Ok(Some(state)) = StateFile::read(dir) else { return false };
    !state.channels.is_empty() && state.point.parse().is_ok_and(|other| point.is_same_directory(&other))
}
