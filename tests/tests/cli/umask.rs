//! The daemon's files and directories have their modes, whatever the umask of its parent.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use relayfs_tests::background::Place;
use relayfs_tests::program;

/// Returns the permissions of a directory and all its entries, by name.
fn modes(dir: &Path) -> BTreeMap<String, u32> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777;
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let all = entries.map(|path| (name(&path), mode(&path)));
    all.chain([(".".to_owned(), mode(dir))]).collect()
}

/// With a umask that removes no permission, and one that removes all.
#[test]
fn umask_of_parent_changes_no_permissions() {
    for umask in ["0", "0777"] {
        let place = Place::new();
        let log = place.beside("log");
        let mut shell = Command::new("sh");
        shell.args(["-c", "umask $0; exec \"$@\"", umask]).arg(program("relayfsd"));
        shell.args(["--channel=log:global", "--log-file"]).arg(&log).arg(place.point());
        let _daemon = place.start_by(&mut shell);
        let mut state = modes(&place.state_dir());
        assert_eq!(state.remove("."), Some(0o700), "umask {umask}: {state:?}");
        assert!(state.contains_key("state") && state.contains_key("1.control"), "{state:?}");
        assert!(state.values().all(|mode| *mode == 0o600), "umask {umask}: {state:?}");
        let socket = modes(&place.socket_dir());
        assert_eq!((socket["."], socket["socket"]), (0o755, 0o600), "umask {umask}: {socket:?}");
        assert_eq!(modes(log.parent().unwrap())["log"], 0o640, "umask {umask}");
    }
}
