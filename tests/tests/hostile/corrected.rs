//! Single words of a control file are changed as nobody may: most are corrected, counted, and told once a second at most;
//! where reader and writer are cannot be guessed, and then the channel is broken.

use std::fs::{self, File};
use std::mem::offset_of;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Instant;

use nix::sys::signal::Signal;
use relay::layout::abi::{BLOCK_LEN, BUFFERS_OFFSET, BufferBlock, RECORD_LEN, Record};
use relayfs_tests::{Mount, text};

/// Corrections in a row, which are told in a line or two.
const MANY: u64 = 1000;

/// A mount with a channel "cpu" of four sub-buffers of 4 KiB.
struct Scene {
    mount: Mount,
    log: PathBuf,
    control: File,
    _dir: tempfile::TempDir,
}

impl Scene {
    fn new(mode: &str) -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let (state, log) = (dir.path().join("state"), dir.path().join("log"));
        let args = ["--state-dir", state.to_str().unwrap(), "--subbuf-size=4K", "--n-subbufs=4"];
        let more: &[&str] = if mode == "overwrite" { &["--overwrite"] } else { &[] };
        let mount = Mount::prepared(&[&args, more].concat(), |command| {
            command.stderr(File::create(&log).expect("a file for the daemon's log"))
        });
        let control = File::options().read(true).write(true).open(state.join("1.control")).unwrap();
        Scene { mount, log, control, _dir: dir }
    }

    /// Sets a word of buffer 0's block, or of what is behind it.
    fn set(&self, offset: usize, value: u64) {
        self.control.write_all_at(&value.to_le_bytes(), (BUFFERS_OFFSET + offset) as u64).unwrap();
    }

    fn get(&self, offset: usize) -> u64 {
        let mut bytes = [0; 8];
        self.control.read_exact_at(&mut bytes, (BUFFERS_OFFSET + offset) as u64).unwrap();
        u64::from_le_bytes(bytes)
    }

    fn corrected(&self) -> u64 {
        self.mount.stats("cpu")["cpu0.corrected"]
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

/// What can be put right, is: each once, and what was written is read.
#[test]
fn what_can_be_is_corrected_and_counted() {
    for mode in ["no-overwrite", "overwrite"] {
        let scene = Scene::new(mode);
        let mount = &scene.mount;
        mount.send(0, &[&[b'a'; 3000], &[b'b'; 3000]]);
        assert_eq!(mount.read("cpu0").len(), 6000);
        assert_eq!(scene.corrected(), 0, "{mode}");
        // Where the reader is, only the daemon says.
        scene.set(std::mem::offset_of!(BufferBlock, consumed), 0);
        mount.send(0, &[&[b'c'; 3000]]);
        assert_eq!(mount.read("cpu0"), [b'c'; 3000]);
        assert_eq!(scene.corrected(), 1, "{mode}: consumed");
        // Nobody closed it.
        scene.set(std::mem::offset_of!(BufferBlock, closed), 1);
        assert_eq!(scene.corrected(), 2, "{mode}: closed");
        assert_eq!(mount.send(0, &[&[b'd'; 3000]]).written, 1);
        // A ring has no more sub-buffers than it has.
        scene.set(std::mem::offset_of!(BufferBlock, high_water), u64::MAX);
        assert_eq!(scene.corrected(), 3, "{mode}: high_water");
        assert!(mount.stats("cpu")["cpu0.high_water"] <= 4);
        // No more padding than a sub-buffer: 'd' is in number 3, and finished.
        mount.poke("cpu", "flush");
        let record = BLOCK_LEN + 2 * 3 * RECORD_LEN;
        scene.set(record + std::mem::offset_of!(Record, padding), 1 << 40);
        assert_eq!(mount.read("cpu0"), b"");
        assert!(scene.corrected() > 3, "{mode}: padding");
        // What the count itself says in the file, does not count.
        let corrected = scene.corrected();
        scene.set(std::mem::offset_of!(BufferBlock, corrected), 77_777);
        assert_eq!(scene.corrected(), corrected);
        assert!(scene.log().contains("channel cpu: buffer 0: corrected 1 numbers"), "{}", scene.log());
    }
}

/// A record that goes on elsewhere than the one before it has ended.
#[test]
fn a_record_that_does_not_fit_is_counted_once() {
    let scene = Scene::new("no-overwrite");
    scene.mount.send(0, &[&[b'a'; 3000], &[b'b'; 3000], &[b'c'; 3000]]);
    let begin = BLOCK_LEN + 2 * RECORD_LEN + std::mem::offset_of!(Record, begin);
    scene.set(begin, scene.get(begin) + 5);
    let bytes = scene.mount.read("cpu0");
    assert_eq!(bytes, [[b'a'; 3000], [b'b'; 3000], [b'c'; 3000]].concat(), "all is there");
    // There, and behind it, where all is right again.
    assert_eq!(scene.corrected(), 2);
}

/// A thousand corrections, and a line a second.
#[test]
fn it_is_told_once_a_second_at_most() {
    let scene = Scene::new("no-overwrite");
    let began = Instant::now();
    for _ in 0..MANY {
        scene.set(std::mem::offset_of!(BufferBlock, consumed), u64::MAX);
        scene.mount.read("cpu0");
    }
    // A word may be changed again before the daemon has put it right that replied already.
    assert!((MANY / 2..=MANY).contains(&scene.corrected()), "{}", scene.corrected());
    let lines = scene.log().lines().count() as u64;
    assert!((1..=began.elapsed().as_secs() + 1).contains(&lines), "{}", scene.log());
}

/// Words that are no positions, or too far from where the reader is.
#[test]
fn what_cannot_be_breaks_the_channel() {
    use std::mem::offset_of;
    for mode in ["no-overwrite", "overwrite"] {
        let mut scene = Scene::new(mode);
        let (state, begun) = (offset_of!(BufferBlock, state), offset_of!(BufferBlock, begun));
        // Sub-buffers of 4 KiB: 13 bits of offset, 2 of slot.
        for (word, value, said) in [
            (state, 5000, "buffer 0: its word 'state' says 0x1388, which is no position in it"),
            (begun, 1, "buffer 0: its word 'begun' says 0x1"),
            (state, 1 << 63, "sub-buffers behind the writer, which cannot be"),
        ] {
            // From where it is told.
            scene.mount.send(0, &[b"unread"]);
            scene.set(word, value);
            let error = fs::read(scene.mount.path("cpu0")).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "{mode} {word} {value:#x}");
            assert!(scene.log().contains(said), "{mode}: {}", scene.log());
            scene.mount.poke("cpu", "reset");
            scene.mount.send(0, &[b"anew"]);
            assert_eq!(scene.mount.read("cpu0"), b"anew");
            // It has another number now.
            let dir = scene.log.with_file_name("state");
            let mut entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
            let path = entries.find(|path| path.extension().is_some_and(|e| e == "control")).unwrap();
            scene.control = File::options().read(true).write(true).open(path).unwrap();
        }
        assert!(scene.mount.end(Signal::SIGTERM).success());
        assert_eq!(scene.log().matches("broken, and not used any more").count(), 3, "{}", scene.log());
    }
}

/// `reset` finds damage that no look has found yet, and recreates the channel.
#[test]
fn reset_of_a_channel_with_unseen_damage_makes_it_anew() {
    for mode in ["no-overwrite", "overwrite"] {
        let scene = Scene::new(mode);
        scene.mount.send(0, &[b"lost"]);
        scene.set(offset_of!(BufferBlock, state), u64::MAX);
        scene.mount.poke("cpu", "reset");
        scene.mount.send(0, &[b"anew"]);
        assert_eq!(text(&scene.mount.read("cpu0")), "anew", "{mode}");
    }
}
