//! The directory of recordings: which files are being written, and how much room all files take.
//!
//! ```text
//! DIR/cpu0.000003 ...           files of a raw channel           DIR/000003/     a piece of a timed channel
//! DIR/app/log/...               --all: a recording for each channel
//! DIR/2026-11-22T18-00-00.123Z/ --dated: a recording, or all of them, for each start
//! ```

use std::collections::BTreeSet;
use std::fs::{self, DirEntry};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use audience_common::trace_dir::{self, METADATA, mend::LOCK, piece_number};
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::ends;
use super::recording::{has_number, is_recording};
use crate::error::Failure;

/// Most directories from the store's down to a recording: one with a date, and the components of a channel's name.
pub(crate) const DEPTH_MAX: usize = 8;
/// Time between two counts of all files.
const ONCE_MORE: Duration = Duration::from_secs(1);
/// The same when a file is complete.
const AT_ROTATION: Duration = Duration::from_millis(100);
/// Form of the name of a directory of `--dated`.
const DATE: &str = "%Y-%m-%dT%H-%M-%S%.3fZ";

/// The directory that `--output` names.
#[derive(Debug)]
pub(crate) struct Store {
    root: PathBuf,
    /// Most bytes of all files.
    limit: Option<u64>,
    /// The files and pieces that are being written.
    active: Mutex<BTreeSet<PathBuf>>,
    /// When the files were last counted.
    counted: Mutex<Option<Instant>>,
}

/// What is removed at once: a file of a raw channel, or a trace.
#[derive(Debug)]
struct Unit {
    /// Time of the last write.
    time: SystemTime,
    path: PathBuf,
    len: u64,
    is_trace: bool,
}

impl Store {
    pub(crate) fn new(root: PathBuf, limit: Option<u64>) -> Store {
        Store { root, limit, active: Mutex::default(), counted: Mutex::default() }
    }

    /// Notes that a file or a piece is being written.
    pub(crate) fn begin(&self, path: &Path) {
        self.active().insert(path.to_owned());
    }

    /// Notes that a file or a piece is complete, and keeps the limit.
    pub(crate) fn end(&self, path: &Path) -> Result<(), Failure> {
        self.active().remove(path);
        self.count(AT_ROTATION)
    }

    /// Notes that a trace has become a piece.
    pub(crate) fn moved(&self, path: &Path) {
        self.active().remove(path);
    }

    /// Removes the oldest files until all of them together are below the limit, once a second.
    pub(crate) fn keep_limit(&self) -> Result<(), Failure> {
        self.count(ONCE_MORE)
    }

    /// Removes the oldest files, when nothing is written any more.
    pub(crate) fn finish(&self) -> Result<(), Failure> {
        self.count(Duration::ZERO)
    }

    /// Counts the files unless that was done in this time, and removes the oldest.
    fn count(&self, least: Duration) -> Result<(), Failure> {
        let Some(limit) = self.limit else { return Ok(()) };
        // One thread at a time, or two would count the same files.
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if counted.is_some_and(|at| at.elapsed() < least) {
            return Ok(());
        }
        *counted = Some(Instant::now());
        let active = self.active();
        let mut units = units(&self.root);
        let mut total = units.iter().fold(0_u64, |sum, unit| sum.saturating_add(unit.len));
        units.sort_unstable_by(|a, b| (a.time, &a.path).cmp(&(b.time, &b.path)));
        for unit in units.into_iter().filter(|unit| !active.contains(&unit.path)) {
            if total <= limit {
                break;
            }
            unit.remove()?;
            total -= unit.len;
            self.remove_dated(&unit.path);
        }
        Ok(())
    }

    /// Removes the directory of an earlier start when its last file has gone. The next start looks at the newest.
    fn remove_dated(&self, path: &Path) {
        let below = path.strip_prefix(&self.root).ok().and_then(|below| below.components().next());
        let Some(dated) = below.map(|name| self.root.join(name)).filter(|dir| is_dated(dir)) else { return };
        let is_newest = dated_dirs(&self.root).last() == Some(&dated);
        if !is_newest && units(&dated).is_empty() {
            remove_rest(&dated, DEPTH_MAX);
        }
    }

    fn active(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Unit {
    fn remove(&self) -> Result<(), Failure> {
        if self.is_trace {
            return Ok(trace_dir::remove(&self.path)?);
        }
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Failure::record(&self.path, error))
            }
            _ => Ok(()),
        }
    }
}

/// Whether a directory holds a recording, or several.
pub(crate) fn is_empty(dir: &Path) -> bool {
    units(dir).is_empty()
}

/// The directories of `--dated`, the oldest first.
pub(crate) fn dated_dirs(root: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        entries(root).map(|entry| entry.path()).filter(|path| is_dated(path)).collect();
    found.sort_unstable();
    found
}

/// The name of a directory that is begun now. It comes behind those that are there, also if the clock was set back.
pub(crate) fn next_date(root: &Path) -> String {
    let last = dated_dirs(root).pop().and_then(|last| {
        let last = DateTime::strptime(DATE, last.file_name()?.to_str()?).ok()?;
        last.to_zoned(TimeZone::UTC).ok()?.timestamp().checked_add(SignedDuration::from_millis(1)).ok()
    });
    Timestamp::now().max(last.unwrap_or_default()).strftime(DATE).to_string()
}

fn is_dated(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let form = "0000-00-00T00-00-00.000Z";
    let digits: String = name.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    digits == form && path.is_dir()
}

fn entries(dir: &Path) -> impl Iterator<Item = DirEntry> {
    // What goes meanwhile takes no room.
    fs::read_dir(dir).into_iter().flatten().flatten()
}

/// What may be removed below a directory.
fn units(root: &Path) -> Vec<Unit> {
    let mut found = Vec::new();
    collect(root, DEPTH_MAX, &mut found);
    found
}

fn collect(dir: &Path, depth: usize, found: &mut Vec<Unit>) {
    if depth == 0 {
        return;
    }
    let is_trace = dir.join(METADATA).is_file();
    // Elsewhere a channel may have the name of a piece.
    let is_recording_dir = dir.join(LOCK).exists() || is_trace;
    found.extend(is_trace.then(|| Unit::trace(dir)));
    for entry in entries(dir) {
        let (path, name) = (entry.path(), entry.file_name());
        let Ok(kind) = entry.file_type() else { continue };
        let name = name.to_str().unwrap_or_default();
        let is_piece = is_recording_dir && piece_number(&path).is_some() && !path.join(LOCK).exists();
        if kind.is_dir() && is_piece {
            found.push(Unit::trace(&path));
        } else if kind.is_dir() && !name.starts_with('.') {
            collect(&path, depth - 1, found);
        } else if kind.is_file() && is_recording(name) && (!is_trace || has_number(name)) {
            found.extend(entry.metadata().ok().map(|of| Unit {
                time: of.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                path,
                len: of.len(),
                is_trace: false,
            }));
        }
    }
}

impl Unit {
    /// The files of a trace.
    fn trace(dir: &Path) -> Unit {
        let mut unit = Unit { time: SystemTime::UNIX_EPOCH, path: dir.to_owned(), len: 0, is_trace: true };
        for entry in entries(dir) {
            let name = entry.file_name();
            if name.to_str().is_some_and(trace_dir::is_ours)
                && let Ok(of) = entry.metadata()
            {
                unit.len += of.len();
                unit.time = unit.time.max(of.modified().unwrap_or(SystemTime::UNIX_EPOCH));
            }
        }
        unit
    }
}

/// Removes what recorders leave beside recordings, and the directories that are empty then.
fn remove_rest(dir: &Path, depth: usize) {
    for entry in entries(dir) {
        let name = entry.file_name();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if depth > 1 {
                remove_rest(&entry.path(), depth - 1);
            }
        } else if name == LOCK || name == ends::NAME {
            let _ = fs::remove_file(entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    /// Makes files of 100 bytes, each a second younger than the one before.
    fn make(root: &Path, files: &[&str]) {
        for (age, name) in files.iter().enumerate() {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, [0; 100]).unwrap();
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1000 + age as u64);
            File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        }
    }

    fn left(root: &Path) -> Vec<String> {
        let mut found: Vec<String> = units(root)
            .iter()
            .map(|unit| unit.path.strip_prefix(root).unwrap().to_str().unwrap().to_owned())
            .collect();
        found.sort_unstable();
        found
    }

    #[test]
    fn oldest_files_go_first_and_active_ones_stay() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        make(
            root,
            &[
                "raw/.lock",
                "raw/cpu0.000000",
                "timed/log/.lock",
                "timed/log/000000/cpu0",
                "timed/log/000000/metadata",
                "raw/cpu1.000000",
                "raw/cpu0.000001",
                "timed/log/000001/cpu0",
                "timed/log/000001/metadata",
                "notes",
            ],
        );
        let all =
            ["raw/cpu0.000000", "raw/cpu0.000001", "raw/cpu1.000000", "timed/log/000000", "timed/log/000001"];
        assert_eq!(left(root), all);
        let store = |limit| Store::new(root.to_owned(), limit);
        store(None).finish().unwrap();
        store(Some(700)).finish().unwrap();
        assert_eq!(left(root), all);
        let busy = store(Some(500));
        busy.begin(&root.join("raw/cpu0.000000"));
        busy.finish().unwrap();
        assert_eq!(left(root), [all[0], all[1], all[2], all[4]]);
        busy.end(&root.join("raw/cpu0.000000")).unwrap();
        assert_eq!(left(root).len(), 4, "just counted");
        store(Some(300)).finish().unwrap();
        assert_eq!(left(root), [all[1], all[4]]);
        store(Some(0)).finish().unwrap();
        assert!(left(root).is_empty() && is_empty(root));
        assert!(root.join("notes").exists());
    }

    #[test]
    fn dated_directory_goes_with_its_last_file() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = ("2026-11-22T18-00-00.123Z", "2026-11-22T19-00-00.123Z");
        make(dir.path(), &[".lock"]);
        for date in [old, new] {
            make(&dir.path().join(date), &[".lock", "cpu/.lock", "cpu/.recorder", "cpu/cpu0.000000"]);
        }
        assert_eq!(dated_dirs(dir.path()), [dir.path().join(old), dir.path().join(new)]);
        Store::new(dir.path().to_owned(), Some(0)).finish().unwrap();
        assert_eq!(dated_dirs(dir.path()), [dir.path().join(new)]);
        assert!(!is_dated(dir.path()));
        let next = next_date(dir.path());
        assert!(next.len() == new.len() && *next > *new, "{next}");
        // The clock was set back.
        fs::create_dir(dir.path().join("2999-12-31T23-59-59.999Z")).unwrap();
        assert_eq!(next_date(dir.path()), "3000-01-01T00-00-00.000Z");
    }

    #[test]
    fn a_channel_may_have_the_name_of_a_piece() {
        let dir = tempfile::tempdir().unwrap();
        make(
            dir.path(),
            &[
                ".lock",
                "app/000000/.lock",
                "app/000000/000001/cpu0",
                "app/000000/000001/metadata",
                "000007/.lock",
                "000007/cpu0",
            ],
        );
        assert_eq!(left(dir.path()), ["000007/cpu0", "app/000000/000001"]);
    }
}
