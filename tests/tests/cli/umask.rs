//! What the daemon makes may be opened by those it is meant for, whatever the umask of who starts it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use relayfs_tests::background::Place;
use relayfs_tests::program;

/// Permissions of a directory and all that is in it, by name.
fn modes(dir: &Path) -> BTreeMap<String, u32> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mode = |path: &Path| fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777;
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let all = entries.map(|path| (name(&path), mode(&path)));
    all.chain([(".".to_owned(), mode(dir))]).collect()
}

/// Neither a umask that takes nothing away, nor one that takes everything.
#[test]
fn whoever_starts_it_has_no_say_in_permissions() {
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
