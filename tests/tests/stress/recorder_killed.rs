//! `audience record` of a timed channel, killed at 50 moments: babeltrace2 reads what it has left.

use std::process::Stdio;

use nix::sys::signal::Signal;
use relay_producer::BatchOptions;
use relayfs_tests::audience::{Recorder, record};
use relayfs_tests::ctf::agree;
use relayfs_tests::{Mount, Process, exit_code, run, text};

use crate::turn;

/// Writes texts into a CPU's buffer, as far as there is room.
fn send(mount: &Mount, cpu: usize, texts: impl IntoIterator<Item = String>) {
    let channel = mount.channel("app/log");
    let mut batch =
        channel.batch(BatchOptions { cpu: Some(cpu), ..BatchOptions::default() }).expect("a batch");
    texts.into_iter().for_each(|text| batch.push_text(text.as_bytes()).expect("a text"));
    batch.finish().expect("writing");
}

/// Whole packets, except for a torn end that the next recorder cuts.
#[test]
fn killed_recorder_leaves_a_trace() {
    let _turn = turn();
    let mount = Mount::new(&["--channel=app/log:timed:subbuf-size=16K:n-subbufs=8"]);
    for round in 0..50_u32 {
        let dir = mount.beside(&format!("killed-{round}"));
        let mut recorder = Recorder::start_into(mount.point(), &dir, &["-c", "app/log"]);
        // Somewhere in the first sub-buffers, at another place each time.
        let mut sent = 0;
        while !dir.join("metadata").exists() || sent < 1 + round * 7 % 40 {
            send(&mount, (sent % 2) as usize, (0..50).map(|n| format!("{round} {sent} {n}")));
            sent += 1;
        }
        recorder.process.signal(Signal::SIGKILL);
        recorder.process.wait();
        let output = run(record(mount.point(), &dir, &["-c", "app/log"]).stdin(Stdio::null()));
        assert!(text(&output.stderr).contains("holds a recording already"), "{}", text(&output.stderr));
        agree(&dir);
    }
    // The daemon has what no recorder has consumed.
    let mut last = Process::start(
        record(mount.point(), &mount.beside("last"), &["-c", "app/log", "--duration=1ms"])
            .stderr(Stdio::null()),
    );
    assert_eq!(exit_code(last.wait()), 0);
    agree(&mount.beside("last"));
}
