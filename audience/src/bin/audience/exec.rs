//! `--exec`: runs a program with a preloaded library that makes mount(2) know the type relayfs.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use thiserror::Error;

use crate::mount;

const LIBRARY: &str = "librelayfs_preload.so";
/// Directories of the library, relative to the directory of this program.
const PLACES: [&str; 2] = ["", "../lib/relayfs"];
/// The variable that names the libraries that ld.so(8) preloads.
const PRELOAD_ENV: &str = "LD_PRELOAD";
/// The variable that tells the library where relayfsd is.
const DAEMON_ENV: &str = "RELAYFSD";

/// Why the program does not run.
#[derive(Debug, Error)]
pub(crate) enum ExecError {
    #[error("cannot find out where this program is, and the library {LIBRARY} beside it: {0}")]
    Ourselves(io::Error),
    #[error("the library {LIBRARY} is missing: it belongs into {} or {}", .0.display(), .0.join(PLACES[1]).display())]
    NoLibrary(PathBuf),
    #[error("{PRELOAD_ENV} cannot name {}: a colon or a space separates names there", .0.display())]
    Unnameable(PathBuf),
    #[error("cannot run '{}': {source}", program.display())]
    Program { program: OsString, source: io::Error },
}

impl ExecError {
    /// Exit status as of env(1) and nice(1).
    ///
    /// So a script can tell it from a failure of the program.
    pub(crate) fn status(&self) -> u8 {
        match self {
            ExecError::Program { source, .. } if source.kind() == io::ErrorKind::NotFound => 127,
            ExecError::Program { .. } => 126,
            _ => 1,
        }
    }
}

/// Replaces this process by the program. Returns only if that fails.
pub(crate) fn exec(program: &OsStr, args: &[OsString]) -> ExecError {
    let library = match library() {
        Ok(library) => library,
        Err(error) => return error,
    };
    let mut command = Command::new(program);
    command.args(args).env(PRELOAD_ENV, preloaded(library, env::var_os(PRELOAD_ENV)));
    if let (None, Some(daemon)) = (env::var_os(DAEMON_ENV), mount::beside_us()) {
        command.env(DAEMON_ENV, daemon);
    }
    ExecError::Program { program: program.to_owned(), source: command.exec() }
}

fn library() -> Result<PathBuf, ExecError> {
    let ourselves = env::current_exe().map_err(ExecError::Ourselves)?;
    let dir = ourselves.parent().unwrap_or(Path::new("/"));
    let library = PLACES.iter().map(|place| dir.join(place).join(LIBRARY)).find(|path| path.is_file());
    let library = library.ok_or_else(|| ExecError::NoLibrary(dir.to_owned()))?;
    let separator = |byte: &u8| *byte == b':' || byte.is_ascii_whitespace();
    if library.as_os_str().as_bytes().iter().any(separator) {
        return Err(ExecError::Unnameable(library));
    }
    Ok(library)
}

/// Puts our library before the libraries that the environment names.
fn preloaded(library: PathBuf, others: Option<OsString>) -> OsString {
    let mut names = library.into_os_string();
    if let Some(others) = others.filter(|others| !others.is_empty()) {
        names.push(":");
        names.push(others);
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_of_the_environment_stay_preloaded() {
        let preloaded = |others: Option<&str>| preloaded("/l/x.so".into(), others.map(OsString::from));
        assert_eq!(preloaded(None), "/l/x.so");
        assert_eq!(preloaded(Some("")), "/l/x.so");
        assert_eq!(preloaded(Some("a.so b.so")), "/l/x.so:a.so b.so");
    }
}
