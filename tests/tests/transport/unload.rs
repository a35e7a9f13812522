//! A library that writes shared buffers can be unloaded: threads keep nothing of it, and continue.

use std::process::Command;

use relayfs_tests::direct::with_sequences;
use relayfs_tests::{Mount, program, run, text};

/// How often the library is loaded and unloaded.
const ROUNDS: usize = 20;
/// The message that it writes again and again: more than half of the smallest sub-buffer.
const MESSAGE: &str = "a message of a library that may be gone\n";

/// The last call of a thread leaves nothing behind, whichever it is.
#[test]
fn library_can_be_unloaded_after_direct_writes() {
    let (program, library) = (program("test-unload"), program("examples/libtest_plugin.so"));
    let tried = (301 * ROUNDS) as u64;
    for (last, args) in [
        ("a message behind others", &["--subbuf-size=1M", "--n-subbufs=4"][..]),
        ("each message in a new sub-buffer", &["--subbuf-size=64", "--n-subbufs=4", "--overwrite"]),
        ("a message for which there is no room", &["--subbuf-size=64", "--n-subbufs=4"]),
    ] {
        let mount = Mount::with_sequences(args);
        let mut command = Command::new(&program);
        command.arg(mount.point()).arg(&library).args([&ROUNDS.to_string(), MESSAGE]);
        let output = run(with_sequences(&mut command));
        assert!(output.status.success(), "{last}: {}: {}", output.status, text(&output.stderr));
        let written: u64 = text(&output.stdout).trim().parse().expect("a number of messages");

        let files = (0..).map(|cpu| format!("cpu{cpu}")).take_while(|file| mount.path(file).exists());
        let read: String = files.map(|file| text(&mount.read(&file))).collect();
        let n_read = (read.len() / MESSAGE.len()) as u64;
        assert!(read == MESSAGE.repeat(n_read as usize), "{last}: {read}");
        let stats = mount.stats("cpu");
        assert_eq!(stats["total.dropped"], tried - written, "{last}: {stats:?}");
        let overwritten = stats["total.overwritten_bytes"] / MESSAGE.len() as u64;
        assert_eq!(n_read + overwritten, written, "{last}: {stats:?}");
    }
}
