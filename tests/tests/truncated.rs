//! Somebody whom the daemon trusts with a channel's files truncates them: that channel is damaged, but the daemon and its
//! other channels go on, whatever is asked of it.

use std::fs::{self, File};
use std::path::Path;

use nix::sys::signal::Signal;
use relayfs_tests::{Mount, exit_code, run, tool};

/// Things that have the daemon look into a channel's files. None may hang, whatever else becomes of them.
const LOOKS: &[&str] = &[
    "cat evil0 evil1",
    "echo message >.relay/channels/evil/msg",
    "cat .relay/channels/evil/stats",
    "cat .relay/channels/evil/snapshot/cpu0",
    "cat .relay/channels/evil/control",
    "echo 1 >.relay/channels/evil/flush",
    "echo 0 1 >.relay/channels/evil/consumed/cpu0",
    "ls -l evil0 evil1 .relay/channels/evil/snapshot",
    "echo 1 >.relay/channels/evil/reset",
];

/// The file of a channel's in the state directory; the second channel has number 2.
fn truncate(dir: &Path, name: &str) {
    File::options()
        .write(true)
        .open(dir.join(name))
        .expect("a file of a channel")
        .set_len(0)
        .expect("truncating");
}

#[test]
fn a_truncated_file_is_the_end_of_nothing_else() {
    for (file, mode) in
        [("2.data0", ""), ("2.control", ""), ("2.data0", ":overwrite"), ("2.control", ":overwrite")]
    {
        let beside = tempfile::tempdir().unwrap();
        let state = beside.path().join("state");
        let evil = format!("evil:subbuf-size=4K:n-subbufs=4{mode}");
        let mut mount =
            Mount::new(&["--state-dir", state.to_str().unwrap(), "--channel", "good", "--channel", &evil]);
        let files: Vec<_> = fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        // Which number it has, its geometry says.
        let number = (1..9)
            .find(|n| {
                fs::metadata(state.join(format!("{n}.data0"))).is_ok_and(|found| found.len() == 4 * 4096)
            })
            .unwrap_or_else(|| panic!("no files of the channel among {files:?}"));
        for cpu in 0..2 {
            mount.send_to("evil", cpu, &[&[b'm'; 3000], &[b'm'; 3000], &[b'm'; 3000]]);
        }
        truncate(&state, &file.replace('2', &number.to_string()));
        for look in LOOKS {
            let mut command = tool("timeout", "coreutils");
            let output = run(command.args(["20", "sh", "-c", look]).current_dir(mount.point()));
            assert_ne!(exit_code(output.status), 124, "{file}{mode}: {look}");
            assert!(mount.daemon().is_running(), "{file}{mode}: {look}");
        }
        mount.send_to("good", 0, &[b"unharmed"]);
        assert_eq!(mount.read("good0"), b"unharmed", "{file}{mode}");
        assert!(mount.end(Signal::SIGTERM).success(), "{file}{mode}");
    }
}
