//! `audience record` of a raw channel that is reset while a sub-buffer is copied.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::signal::Signal;
use relayfs_tests::audience::{Recorder, record};
use relayfs_tests::direct::on_cpu;
use relayfs_tests::slow_copies::{ARGS, MESSAGE, SUBBUF_SIZE, fill};
use relayfs_tests::{Mount, eventually, tool};

/// Whether a thread keeps a CPU busy: until this is dropped, also by a test that fails.
struct Busy(Arc<AtomicBool>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Starts a recorder of CPU 0 that shares a CPU with a thread which leaves it little time. A write(2) of it takes long then,
/// and no signal would halt it there.
#[track_caller]
fn slow(mount: &Mount, dir: &Path, niceness: &str, args: &[&str]) -> Recorder {
    let mut command = tool("taskset", "util-linux");
    let recorder = record(mount.point(), dir, &["--cpu", "0"]);
    command.args(["-c", "1", "nice", "-n", niceness]).arg(recorder.get_program()).args(recorder.get_args());
    command.args(args).env_remove("RELAYFS").stdin(Stdio::null());
    let recorder = Recorder::run(&mut command, mount.point(), dir);
    recorder.is_ready();
    recorder
}

/// Fills a sub-buffer, and another one behind a reset while the first one is recorded. Then it does `what`. Returns whether
/// the first one was still recorded, as one: a recorder flushes what it meets unread, and may divide it.
#[track_caller]
fn reset_in_a_copy(mount: &Mount, dir: &Path, byte: u8, mut what: impl FnMut()) -> bool {
    let channel = mount.channel("cpu");
    let recorded = || fs::metadata(dir.join("cpu0")).map_or(0, |found| found.len() as usize);
    thread::scope(|scope| {
        let busy = Busy(AtomicBool::new(true).into());
        let is_busy = Arc::clone(&busy.0);
        // Relaxed: the flag says nothing about other memory.
        let work = move || {
            while is_busy.load(Ordering::Relaxed) {
                std::hint::spin_loop()
            }
        };
        scope.spawn(move || on_cpu(1, work));
        let produced = || mount.stats("cpu")["cpu0.produced"];
        let before = produced();
        fill(&channel, byte);
        mount.poke("cpu", "flush");
        eventually("a copy", || recorded() > 0);
        let is_one = produced() == before + 1;
        mount.poke("cpu", "reset");
        fill(&channel, byte + 1);
        what();
        is_one && (1..SUBBUF_SIZE).contains(&recorded())
    })
}

/// Records resets until one comes in the middle of a copy: `attempt` fills a directory with this byte and the next one, and
/// says whether it has caught that, with the recorder that is there in the end. Checks what was recorded.
#[track_caller]
fn assert_not_mixed(mount: &Mount, mut attempt: impl FnMut(&Path, u8) -> (bool, Recorder)) {
    let (mut byte, mut seen) = (0, Vec::new());
    eventually("a reset in the middle of a copy", || {
        byte += 2;
        let dir = mount.beside(&format!("recorded-{byte}"));
        let (is_caught, mut recorder) = attempt(&dir, byte);
        assert_eq!(recorder.end(Signal::SIGINT), 0, "{}", recorder.said());
        seen = recorder.recorded(0);
        is_caught
    });
    let is_one = |message: &[u8]| message.len() == MESSAGE && message.iter().all(|byte| *byte == message[0]);
    assert!(seen.chunks(MESSAGE).all(is_one), "mixed messages");
    seen.dedup();
    assert_eq!(seen, [byte + 1], "what was copied when the reset came is no whole sub-buffer");
}

#[test]
fn sub_buffer_that_is_reset_while_it_is_recorded_is_not_mixed() {
    let mount = Mount::new(ARGS);
    assert_not_mixed(&mount, |dir, byte| {
        let recorder = slow(&mount, dir, "19", &[]);
        (reset_in_a_copy(&mount, dir, byte, || {}), recorder)
    });
}

/// Another recorder continues the recording.
#[test]
fn recorder_that_is_killed_behind_a_reset_leaves_nothing_mixed() {
    let mount = Mount::new(ARGS);
    assert_not_mixed(&mount, |dir, byte| {
        // It copies twice.
        let mut recorder = slow(&mount, dir, "10", &["--append"]);
        let is_caught = reset_in_a_copy(&mount, dir, byte, || {
            recorder.process.signal(Signal::SIGKILL);
            recorder.process.wait();
        });
        let recorder = Recorder::start_into(mount.point(), dir, &["--cpu", "0", "--append"]);
        recorder.is_ready();
        mount.poke("cpu", "flush");
        eventually("what came behind the reset", || {
            fs::read(dir.join("cpu0")).is_ok_and(|recorded| recorded.ends_with(&[byte + 1; MESSAGE]))
        });
        (is_caught, recorder)
    });
}
