//! A trusted process makes a channel's control file far longer than the memory, and may write anything into it.
//! Clients map only the length of the channel: mapping takes memory for all of it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use relay::GeometrySpec;
use relay::layout::abi;
use relay::layout::state_file::{STATE_FILE, StateFile};
use relay::memory::mapping::Mapping;
use relayfs_tests::direct::with_sequences;
use relayfs_tests::disk::Disk;
use relayfs_tests::{Mount, exit_code, program, run, stdout_of, text};
use tempfile::TempDir;

/// The new length of the control file.
const FAR_TOO_LONG: u64 = 1 << 40;

/// A mount whose files are on a small disk.
struct Scene {
    mount: Mount,
    state: PathBuf,
    disk: Disk,
    /// Used bytes of the disk at the beginning.
    used: u64,
    _dir: TempDir,
}

impl Scene {
    fn new() -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(dir.path().join("disk"), "16M");
        let state = disk.path().join("state");
        let args = ["--state-dir", state.to_str().unwrap(), "--subbuf-size=4K", "--n-subbufs=4"];
        let mount = Mount::prepared(&args, with_sequences);
        let used = disk.used();
        Scene { mount, state, disk, used, _dir: dir }
    }

    /// Returns the control file of the only channel.
    fn control(&self) -> PathBuf {
        let text = fs::read_to_string(self.state.join(STATE_FILE)).unwrap();
        let channels = StateFile::parse(&text).unwrap().channels;
        assert_eq!(channels.len(), 1, "{text}");
        self.state.join(format!("{}.control", channels[0].id))
    }

    #[track_caller]
    fn assert_no_memory_was_taken(&self) {
        // Except perhaps the state file.
        assert!(self.disk.used() <= self.used + 8192, "{} bytes, and once {}", self.disk.used(), self.used);
    }
}

fn lengthen(control: &Path) -> File {
    let file = File::options().read(true).write(true).open(control).unwrap();
    file.set_len(FAR_TOO_LONG).unwrap();
    file
}

/// Returns exit status, standard output and standard error of `audience --state`.
fn look(state: &Path, args: &[&str]) -> (i32, String, String) {
    let output = run(Command::new(program("audience")).arg("--state").arg(state).args(args));
    (exit_code(output.status), text(&output.stdout), text(&output.stderr))
}

#[test]
fn producers_and_readers_map_only_the_channels_length() {
    let scene = Scene::new();
    let _file = lengthen(&scene.control());
    let mut producer = Command::new(program("relay-producer"));
    producer.arg("-m").arg(scene.mount.point()).args(["--cpu=0", "--flush", "--transport=shared", "direct"]);
    stdout_of(with_sequences(&mut producer));
    scene.assert_no_memory_was_taken();
    let read = stdout_of(Command::new(program("test-mapped")).arg(scene.mount.point()).arg("cpu"));
    assert_eq!(text(&read), "direct\n");
    scene.assert_no_memory_was_taken();
}

#[test]
fn state_of_lengthened_channel_is_an_error() {
    let mut scene = Scene::new();
    scene.mount.send(0, &[b"unread"]);
    let control = scene.control();
    let needed = fs::metadata(&control).unwrap().len();
    scene.mount.end(Signal::SIGKILL);
    let file = lengthen(&control);
    let (code, printed, said) = look(&scene.state, &[]);
    let expected = format!("it has {FAR_TOO_LONG} bytes instead of {needed}; the others are left alone\n");
    assert!(code == 1 && printed == "unread" && said.contains(&expected), "{code}: {printed}: {said}");
    scene.assert_no_memory_was_taken();
    // A header that asks for all of it.
    let huge = "subbuf-size=64:n-subbufs=65536".parse::<GeometrySpec>().unwrap().build().unwrap();
    let header = abi::control_header(&huge, 60_000);
    assert!(header.check(&huge, 60_000, FAR_TOO_LONG).is_ok() && header.control_len() > FAR_TOO_LONG / 4);
    Mapping::new(&file, 4096).unwrap().put_header(header);
    fs::remove_file(scene.state.join(STATE_FILE)).unwrap();
    let id = control.file_stem().unwrap().to_str().unwrap();
    let (code, printed, said) = look(&scene.state, &["-c", id]);
    assert!(
        code == 1 && printed.is_empty() && said.contains("bytes instead of"),
        "{code}: {printed}: {said}"
    );
    scene.assert_no_memory_was_taken();
}
