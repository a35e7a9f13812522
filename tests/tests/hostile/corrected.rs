//! Words of a control file with impossible values. The daemon corrects and counts most of them, and logs them once a
//! second at most. A wrong position of reader or writer cannot be corrected: the channel is broken.

use std::fs::{self, File};
use std::io::Read;
use std::mem::offset_of;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Instant;

use nix::sys::signal::Signal;
use relay::layout::abi::{BLOCK_LEN, BUFFERS_OFFSET, BufferBlock, RECORD_LEN, Record};
use relayfs_tests::{Mount, eventually, text};

/// Corrections in a row; the log has a line or two about them.
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

    /// Sets a word of buffer 0's block, or of the records behind it.
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

/// The daemon corrects a word once, and reads return what was written.
#[test]
fn wrong_word_is_corrected_and_counted() {
    for mode in ["no-overwrite", "overwrite"] {
        let scene = Scene::new(mode);
        let mount = &scene.mount;
        mount.send(0, &[&[b'a'; 3000], &[b'b'; 3000]]);
        assert_eq!(mount.read("cpu0").len(), 6000);
        assert_eq!(scene.corrected(), 0, "{mode}");
        // Only the daemon moves the reader.
        scene.set(std::mem::offset_of!(BufferBlock, consumed), 0);
        mount.send(0, &[&[b'c'; 3000]]);
        assert_eq!(mount.read("cpu0"), [b'c'; 3000]);
        assert_eq!(scene.corrected(), 1, "{mode}: consumed");
        // The daemon has not closed the buffer.
        scene.set(std::mem::offset_of!(BufferBlock, closed), 1);
        assert_eq!(scene.corrected(), 2, "{mode}: closed");
        assert_eq!(mount.send(0, &[&[b'd'; 3000]]).written, 1);
        // A ring has a fixed number of sub-buffers.
        scene.set(std::mem::offset_of!(BufferBlock, high_water), u64::MAX);
        assert_eq!(scene.corrected(), 3, "{mode}: high_water");
        assert!(mount.stats("cpu")["cpu0.high_water"] <= 4);
        // Padding is at most a sub-buffer. 'd' is in number 3, which is finished.
        mount.poke("cpu", "flush");
        let record = BLOCK_LEN + 2 * 3 * RECORD_LEN;
        scene.set(record + std::mem::offset_of!(Record, padding), 1 << 40);
        assert_eq!(mount.read("cpu0"), b"");
        assert!(scene.corrected() > 3, "{mode}: padding");
        // The daemon ignores the value that the file has for the count itself.
        let corrected = scene.corrected();
        scene.set(std::mem::offset_of!(BufferBlock, corrected), 77_777);
        assert_eq!(scene.corrected(), corrected);
        assert!(scene.log().contains("channel cpu: buffer 0: corrected 1 numbers"), "{}", scene.log());
    }
}

/// A record whose stream position does not follow the one before it is corrected once.
#[test]
fn misplaced_record_is_corrected_once() {
    let scene = Scene::new("no-overwrite");
    scene.mount.send(0, &[&[b'a'; 3000], &[b'b'; 3000], &[b'c'; 3000]]);
    let begin = BLOCK_LEN + 2 * RECORD_LEN + std::mem::offset_of!(Record, begin);
    scene.set(begin, scene.get(begin) + 5);
    let bytes = scene.mount.read("cpu0");
    assert_eq!(bytes, [[b'a'; 3000], [b'b'; 3000], [b'c'; 3000]].concat(), "all is there");
    // At that record, and at the next one, which is right.
    assert_eq!(scene.corrected(), 2);
}

/// The kernel takes no size above that of a signed number: any look at such a file would be EIO.
#[test]
fn impossible_size_hides_no_file() {
    for mode in ["no-overwrite", "overwrite"] {
        let scene = Scene::new(mode);
        let mount = &scene.mount;
        mount.send(0, &[b"before"]);
        scene.set(BLOCK_LEN + offset_of!(Record, begin), u64::MAX - 100);
        let found = fs::metadata(mount.path("cpu0")).expect("its attributes");
        assert_eq!(found.len(), i64::MAX as u64, "{mode}");
        fs::write(mount.control("cpu", "reset"), "1").expect("a reset");
        mount.send(0, &[b"after"]);
        // Not as `fs::read`, which first asks for memory of the file's size.
        let mut bytes = [0; 100];
        let len = File::open(mount.path("cpu0")).and_then(|mut file| file.read(&mut bytes));
        assert_eq!(&bytes[..len.expect("a channel that is whole")], b"after", "{mode}");
    }
}

/// A thousand corrections make one line a second in the log.
#[test]
fn corrections_are_logged_once_a_second() {
    let scene = Scene::new("no-overwrite");
    let began = Instant::now();
    // A word may change again after the reply, before the daemon corrects it.
    eventually("many corrections", || {
        for _ in 0..MANY {
            scene.set(std::mem::offset_of!(BufferBlock, consumed), u64::MAX);
            scene.mount.read("cpu0");
        }
        scene.corrected() >= MANY / 2
    });
    let lines = scene.log().lines().count() as u64;
    assert!((1..=began.elapsed().as_secs() + 1).contains(&lines), "{}", scene.log());
}

/// Words that are no positions, or too far from the reader's, break the channel.
#[test]
fn impossible_position_breaks_channel() {
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
            // From the log line on.
            scene.mount.send(0, &[b"unread"]);
            scene.set(word, value);
            let error = fs::read(scene.mount.path("cpu0")).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "{mode} {word} {value:#x}");
            assert!(scene.log().contains(said), "{mode}: {}", scene.log());
            scene.mount.poke("cpu", "reset");
            scene.mount.send(0, &[b"again"]);
            assert_eq!(scene.mount.read("cpu0"), b"again");
            // The recreated channel has another number.
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
fn reset_recreates_channel_with_unseen_damage() {
    for mode in ["no-overwrite", "overwrite"] {
        let scene = Scene::new(mode);
        scene.mount.send(0, &[b"lost"]);
        scene.set(offset_of!(BufferBlock, state), u64::MAX);
        scene.mount.poke("cpu", "reset");
        scene.mount.send(0, &[b"again"]);
        assert_eq!(text(&scene.mount.read("cpu0")), "again", "{mode}");
    }
}
