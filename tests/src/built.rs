//! What the tests run: programs and libraries that `sh tests/build.sh` has built. A test builds nothing.
//!
//! A test that finds a program missing, or older than one of its sources, fails with the command to run.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The programs and libraries that users get.
const PRODUCTS: [&str; 5] =
    ["relayfsd", "relay-producer", "audience", "relay-forward", "librelayfs_preload.so"];

/// Returns the path of one of the project's programs or libraries.
#[track_caller]
pub fn program(name: &str) -> PathBuf {
    up_to_date(profile_dir().join(name))
}

/// Returns the directory of the programs, with all in it that users get.
#[track_caller]
pub fn programs() -> PathBuf {
    for name in PRODUCTS {
        program(name);
    }
    profile_dir()
}

/// Returns a daemon that dies at the place which `RELAYFSD_KILL_AT` names.
///
/// The places are in `relayfsd/src/process/kill_point.rs`. It is a debug build, whatever the profile of the tests.
#[track_caller]
pub fn mortal_daemon() -> PathBuf {
    let target = profile_dir().parent().expect("target/PROFILE").to_owned();
    up_to_date(target.join("kill-points/debug/relayfsd"))
}

/// Returns an `audience` that panics at the place which `AUDIENCE_PANIC_AT` names.
///
/// The places are those of `audience/src/bin/audience/panic_point.rs`. It is a debug build.
#[track_caller]
pub fn panicking_audience() -> PathBuf {
    let target = profile_dir().parent().expect("target/PROFILE").to_owned();
    up_to_date(target.join("kill-points/debug/audience"))
}

/// Returns `relay-producer` as a program of musl. It is linked statically, and a debug build.
#[track_caller]
pub fn musl_producer() -> PathBuf {
    up_to_date(musl_dir("debug").join("relay-producer"))
}

/// Returns `relay-producer` with a glibc that is linked statically. It is a debug build.
#[track_caller]
pub fn static_producer() -> PathBuf {
    let target = profile_dir().parent().expect("target/PROFILE").to_owned();
    up_to_date(target.join("static/debug/relay-producer"))
}

/// The directory of what is built for programs of musl, in a profile.
pub(crate) fn musl_dir(profile: &str) -> PathBuf {
    profile_dir().parent().expect("target/PROFILE").join("x86_64-unknown-linux-musl").join(profile)
}

/// Returns the directory of the profile that this test was built with: `target/PROFILE`.
pub(crate) fn profile_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("our own path");
    exe.parent().and_then(Path::parent).expect("target/PROFILE/deps/test").to_owned()
}

/// Checks that a file which cargo built is not older than its sources, and returns its path.
#[track_caller]
pub(crate) fn up_to_date(path: PathBuf) -> PathBuf {
    // Beside each of them cargo lists the sources of the workspace that it was built from.
    let list = path.with_extension("d");
    match fs::read_to_string(&list) {
        Ok(list) => not_older(&path, sources(&list)),
        Err(error) => panic!("{}: {error}: {}", list.display(), advice()),
    }
    path
}

/// Returns the paths in a rule of make(1): `TARGET: SOURCE...`, in which a backslash stands before each space.
fn sources(rule: &str) -> Vec<PathBuf> {
    let (_, sources) = rule.split_once(": ").unwrap_or_default();
    let marked = sources.trim_end().replace("\\ ", "\0");
    marked.split(' ').filter(|path| !path.is_empty()).map(|path| path.replace('\0', " ").into()).collect()
}

/// Checks that no source is newer than a file.
#[track_caller]
pub(crate) fn not_older(path: &Path, sources: impl IntoIterator<Item = PathBuf>) {
    let built = changed(path);
    for source in sources {
        let is_newer = changed(&source) > built;
        assert!(!is_newer, "{} is older than {}: {}", path.display(), source.display(), advice());
    }
}

#[track_caller]
fn changed(path: &Path) -> SystemTime {
    let time = fs::metadata(path).and_then(|metadata| metadata.modified());
    time.unwrap_or_else(|error| panic!("{}: {error}: {}", path.display(), advice()))
}

/// Says how the programs are built for this test's profile.
fn advice() -> String {
    let option = if profile_dir().ends_with("release") { " --release" } else { "" };
    format!("build the programs first: sh tests/build.sh{option}")
}
