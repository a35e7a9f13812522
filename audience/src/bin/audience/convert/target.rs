//! Where the result goes: a file that gets its name when it is complete, or standard output.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Arc, OnceLock};

use audience_common::signals::{self, Stop};

use crate::error::Failure;
use crate::output::{self, Output};

/// Mode of the file: other users might not have been allowed to read the buffers.
const MODE: u32 = 0o600;
/// The name of standard output.
const STDOUT: &str = "-";

/// Where the result goes.
pub(crate) enum Target {
    Stdout(Output),
    /// A device or a pipe, which no rename may replace.
    Special {
        path: PathBuf,
        file: File,
    },
    File(Replacement),
}

/// A file under a hidden name. It is removed unless it gets its name.
pub(crate) struct Replacement {
    path: PathBuf,
    temporary: PathBuf,
    file: File,
}

/// The file that goes if a signal ends the process early.
pub(crate) struct Leftover(Arc<OnceLock<PathBuf>>);

impl Leftover {
    /// Catches signals, before there is a file that they could leave.
    pub(crate) fn catch_signals() -> Result<(Stop, Leftover), Failure> {
        let file: Arc<OnceLock<PathBuf>> = Arc::default();
        let left = Leftover(Arc::clone(&file));
        let stop = signals::catch(Some(signals::END_MAX), move || {
            if let Some(path) = file.get() {
                let _ = fs::remove_file(path);
            }
        })?;
        Ok((stop, left))
    }
}

impl Target {
    /// Opens the target of this name.
    /// A file with a hidden name becomes the one that `left` removes.
    pub(crate) fn create(path: &Path, left: &Leftover) -> Result<Target, Failure> {
        if path == Path::new(STDOUT) {
            output::check()?;
            return Ok(Target::Stdout(Output::new()?));
        }
        let failure = |error| Failure::convert(path, error);
        let path = match fs::metadata(path) {
            Ok(found) if found.is_file() => fs::canonicalize(path).map_err(failure)?,
            Ok(_) => {
                let file = OpenOptions::new().write(true).open(path).map_err(failure)?;
                return Ok(Target::Special { path: path.to_owned(), file });
            }
            // Where there is none, or a symbolic link to none, the name itself is given.
            Err(_) => path.to_owned(),
        };
        let (temporary, file) = temporary(&path).map_err(|error| Failure::convert(&path, error))?;
        let _ = left.0.set(temporary.clone()); // set once
        Ok(Target::File(Replacement { path, temporary, file }))
    }

    /// Writes all of the bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let (path, file) = match self {
            Target::Stdout(output) => return output.write(bytes),
            Target::Special { path, file } | Target::File(Replacement { path, file, .. }) => (path, file),
        };
        file.write_all(bytes).map_err(|error| Failure::convert(path, error))
    }

    /// Gives the file its name.
    pub(crate) fn finish(self) -> Result<(), Failure> {
        match self {
            Target::File(file) => {
                fs::rename(&file.temporary, &file.path).map_err(|error| Failure::convert(&file.path, error))
            }
            _ => Ok(()),
        }
    }
}

/// Creates a file beside this path, under a hidden name that no file has.
fn temporary(path: &Path) -> io::Result<(PathBuf, File)> {
    let name = path.file_name().ok_or(ErrorKind::IsADirectory)?.to_string_lossy();
    let mut number = 0;
    loop {
        let temporary = path.with_file_name(format!(".{name}.{}.{number}", process::id()));
        match OpenOptions::new().write(true).create_new(true).mode(MODE).open(&temporary) {
            // A process of this number was killed here.
            Err(error) if error.kind() == ErrorKind::AlreadyExists && number < 100 => number += 1,
            opened => return Ok((temporary, opened?)),
        }
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        // After a rename there is none.
        let _ = fs::remove_file(&self.temporary);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn create(path: &Path) -> Result<Target, Failure> {
        Target::create(path, &Leftover(Arc::default()))
    }

    #[test]
    fn file_appears_when_it_is_complete() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace");
        fs::write(&path, "old").unwrap();
        let mut target = create(&path).unwrap();
        target.write(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        target.finish().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        let mut target = create(&path).unwrap();
        target.write(b"newer").unwrap();
        drop(target);
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn links_and_devices_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (path, link, device) =
            (dir.path().join("trace"), dir.path().join("link"), dir.path().join("null"));
        fs::write(&path, "old").unwrap();
        symlink(&path, &link).unwrap();
        symlink("/dev/null", &device).unwrap();
        for target in [&link, &device] {
            let mut target = create(target).unwrap();
            target.write(b"new").unwrap();
            target.finish().unwrap();
        }
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert!([link, device].iter().all(|link| fs::symlink_metadata(link).unwrap().is_symlink()));
        assert!(matches!(create(dir.path()), Err(Failure::Convert { .. })));
        assert!(matches!(create(&dir.path().join("none/trace")), Err(Failure::Convert { .. })));
    }
}
