//! Tests of `state_dir.rs`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn place_that_the_daemon_chose_begins_at_its_base() {
    let place = Place::below(&[Path::new("/run/user/5"), Path::new("/run")], Path::new("/run/relayfs/a"));
    assert_eq!((place.base.as_path(), place.own.len()), (Path::new("/run"), 2));
    assert_eq!(place.path(), Path::new("/run/relayfs/a"));
    assert_eq!(Place::below(&[Path::new("/run")], Path::new("/x/y")), Place::named(Path::new("/x/y")));
    assert_eq!(Place::named(Path::new("/x/y")).base, Path::new("/x"));
}

#[test]
fn own_empty_directories_are_created_and_removed() {
    let base = tempfile::tempdir().unwrap();
    let place = |name: &str| Place::below(&[base.path()], &base.path().join("relayfs").join(name));
    let mut a = Dir::open(&place("a"), 0o755).unwrap();
    let mut b = Dir::open(&place("b"), 0o700).unwrap();
    assert_eq!((mode(&a.path), mode(&b.path)), (0o755, 0o700));
    a.remove_if_empty();
    assert!(!a.path.exists() && b.path.exists());
    b.remove_if_empty();
    assert!(!base.path().join("relayfs").exists());
}

#[test]
fn named_directory_that_existed_stays() {
    let base = tempfile::tempdir().unwrap();
    let (old, new) = (base.path().join("old"), base.path().join("new"));
    fs::create_dir(&old).unwrap();
    fs::set_permissions(&old, fs::Permissions::from_mode(0o755)).unwrap();
    for path in [&old, &new] {
        let state = StateDir::claim(&Place::named(path)).unwrap();
        fs::write(state.path().join("buffer"), "x").unwrap();
    }
    assert_eq!(fs::read_dir(&old).unwrap().count(), 0);
    assert!(!new.exists());
}

/// A waiting start may mark the directory just before the ending daemon removes it.
#[test]
fn directory_with_only_a_waiting_starts_mark_is_claimed_and_removed() {
    let base = tempfile::tempdir().unwrap();
    let place = Place::below(&[base.path()], &base.path().join("state"));
    fs::create_dir(place.path()).unwrap();
    want(&place);
    let state = StateDir::claim(&place).unwrap();
    unwant(&place);
    assert!(!state.keep.get(), "nothing was left");
    want(&place);
    drop(state);
    assert!(!place.path().exists());
    fs::create_dir(place.path()).unwrap();
    want(&place);
    fs::write(place.path().join("other"), "").unwrap();
    assert!(matches!(StateDir::claim(&place), Err(DirError::NotEmpty(path)) if path == place.path()));
}

#[test]
fn links_and_directories_writable_for_others_are_refused() {
    let base = tempfile::tempdir().unwrap();
    let (target, link, open) =
        (base.path().join("target"), base.path().join("link"), base.path().join("open"));
    fs::create_dir(&target).unwrap();
    symlink(&target, &link).unwrap();
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o770)).unwrap();
    fs::write(base.path().join("file"), "").unwrap();

    let claim = |path: &Path| StateDir::claim(&Place::below(&[base.path()], path)).unwrap_err();
    assert!(matches!(claim(&link), DirError::NotDirectory(path) if path == link));
    assert!(matches!(claim(&link.join("below")), DirError::NotDirectory(path) if path == link));
    assert!(matches!(claim(&base.path().join("file")), DirError::NotDirectory(_)));
    assert!(matches!(claim(&open.join("below")), DirError::Writable(path) if path == open));
    assert!(matches!(StateDir::claim(&Place::named(Path::new("/no/such"))), Err(DirError::Io { .. })));
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
}

#[test]
fn directory_of_another_user_is_refused() {
    let foreign = if geteuid().is_root() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(dir.path(), Some(12345), None).unwrap();
        dir
    } else {
        // This user owns its own directories, so the test takes one of root's.
        let error = Dir::open(&Place::named(Path::new("/usr")), 0o700).unwrap_err();
        assert!(matches!(error, DirError::Foreign { uid: 0, .. }));
        return;
    };
    let error = StateDir::claim(&Place::named(foreign.path())).unwrap_err();
    assert!(matches!(error, DirError::Foreign { uid: 12345, .. }), "{error}");
}

#[test]
fn second_claim_fails_and_names_the_first_process() {
    let base = tempfile::tempdir().unwrap();
    let place = Place::below(&[base.path()], &base.path().join("state"));
    let first = StateDir::claim(&place).unwrap();
    assert_eq!(mode(first.path()), 0o700);
    let error = StateDir::claim(&place).unwrap_err();
    let pid = std::process::id();
    assert!(matches!(error, DirError::Locked { pid: Some(id), .. } if id == pid), "{error}");
    assert!(error.to_string().contains(&format!("(process {pid})")));
    drop(first);
    assert!(!place.path().exists());
    drop(StateDir::claim(&place).unwrap());
}

#[test]
fn only_files_of_a_dead_daemon_are_cleared() {
    let base = tempfile::tempdir().unwrap();
    let dir = base.path().join("state");
    fs::create_dir_all(dir.join("app")).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(dir.join("app/log0"), "x").unwrap();
    fs::write(dir.join("cpu0"), "x").unwrap();

    let error = StateDir::claim(&Place::named(&dir)).unwrap_err();
    assert!(matches!(error, DirError::NotEmpty(_)), "no lock, so not ours: {error}");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 2);
    fs::write(dir.join("lock"), "of another program").unwrap();
    assert!(matches!(StateDir::claim(&Place::named(&dir)), Err(DirError::NotEmpty(_))));

    fs::write(dir.join("lock"), "relayfsd 1\n").unwrap();
    let state = StateDir::claim(&Place::named(&dir)).unwrap();
    assert_eq!(state.entries().unwrap().len(), 2);
    let aside = state.new_quarantine().unwrap();
    fs::write(aside.join("evidence"), "").unwrap();
    // An earlier version called them so.
    fs::create_dir(dir.join("refused-1")).unwrap();
    fs::write(dir.join("refused-1/evidence"), "").unwrap();
    assert_eq!(state.entries().unwrap().len(), 2);

    // The files stay after a daemon whose start fails, and after one that keeps them.
    drop(state);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 5);
    let state = StateDir::claim(&Place::named(&dir)).unwrap();
    state.set_keep(true);
    drop(state);
    let state = StateDir::claim(&Place::named(&dir)).unwrap();
    assert_eq!(state.entries().unwrap().len(), 2);
    state.set_keep(false);
    drop(state);
    for quarantine in [&aside, &dir.join("refused-1")] {
        assert!(quarantine.join("evidence").exists(), "the daemon removes no quarantine directory");
    }
    let state = StateDir::claim(&Place::named(&dir)).unwrap();
    assert!(state.entries().unwrap().is_empty());
    assert_ne!(state.new_quarantine().unwrap(), aside);
}
