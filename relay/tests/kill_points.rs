//! A writer that is killed at any place of a restartable sequence leaves whole messages only, and a buffer that the next
//! writer goes on with. Run with `cargo test -p relay --features kill-points --test kill_points`.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;
use relay::buffer::Buffer;
use relay::reader::Reader;
use relay::rseq::{Thread, die_at};
use relay::shm::Mapping;
use relay::writer::{Placed, Writer};
use relay::{Geometry, GeometrySpec, abi};

const DIR: &str = "RELAY_KILL_POINTS_DIR";
/// Sub-buffers of 100 bytes: the third message of 40 switches.
const SUBBUF_SIZE: u64 = 100;

fn geometry() -> Geometry {
    let mode = std::env::var("RELAY_KILL_POINTS_MODE").unwrap_or_default();
    let spec = GeometrySpec { subbuf_size: Some(SUBBUF_SIZE), n_subbufs: Some(3), ..mode.parse().unwrap() };
    spec.build().unwrap()
}

fn create(dir: &Path, geometry: &Geometry) -> Buffer {
    let header = abi::control_header(geometry, 1);
    for (name, len) in [("control", header.control_len()), ("data", abi::data_len(geometry))] {
        File::create_new(dir.join(name)).unwrap().set_len(len).unwrap();
    }
    let buffer = open(dir, geometry);
    buffer.init(0);
    buffer
}

fn open(dir: &Path, geometry: &Geometry) -> Buffer {
    let map = |name: &str| {
        let file = File::options().read(true).write(true).open(dir.join(name)).unwrap();
        Arc::new(Mapping::new(&file, file.metadata().unwrap().len()).unwrap())
    };
    let header = abi::control_header(geometry, 1);
    Buffer::new(map("control"), map("data"), *geometry, &header, 0).unwrap()
}

/// Writes messages of 40 equal letters, and dies in the sequence of the last one at a place, if that is not 0.
fn write(buffer: &Buffer, letters: &[u8], point: u32) {
    let cpu = sched_getcpu().unwrap();
    let mut cpus = CpuSet::new();
    cpus.set(cpu).unwrap();
    sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
    let thread = Thread::current().expect("a C library that registers restartable sequences (glibc 2.35)");
    let writer = Writer::new(buffer, thread.on(cpu as u32));
    let (last, others) = letters.split_last().unwrap();
    for letter in others {
        assert_eq!(writer.write(&[*letter; 40]).unwrap().placed, Placed::Written);
    }
    die_at(point);
    assert_eq!(writer.write(&[*last; 40]).unwrap().placed, Placed::Written);
}

/// The process that dies: does nothing unless it is started by the test below.
#[test]
fn victim() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let var = |name: &str| std::env::var(name).unwrap();
    let point = var("RELAY_KILL_POINTS_POINT").parse().unwrap();
    write(&open(Path::new(&dir), &geometry()), var("RELAY_KILL_POINTS_LETTERS").as_bytes(), point);
}

#[test]
fn a_writer_that_dies_anywhere_leaves_whole_messages() {
    for mode in ["no-overwrite", "overwrite"] {
        // The last message is appended, or begins the second sub-buffer, or the third.
        for letters in ["ab", "abc", "abcde"] {
            for point in 1..=5 {
                let dir = tempfile::tempdir().unwrap();
                let spec: GeometrySpec = mode.parse().unwrap();
                let spec = GeometrySpec { subbuf_size: Some(SUBBUF_SIZE), n_subbufs: Some(3), ..spec };
                let geometry = spec.build().unwrap();
                let buffer = create(dir.path(), &geometry);
                let status = Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", "victim", "--nocapture", "--test-threads=1"])
                    .env(DIR, dir.path())
                    .env("RELAY_KILL_POINTS_MODE", mode)
                    .env("RELAY_KILL_POINTS_LETTERS", letters)
                    .env("RELAY_KILL_POINTS_POINT", point.to_string())
                    .stdout(std::process::Stdio::null())
                    .status()
                    .unwrap();
                let case = format!("{mode}, {letters}, point {point}");
                assert_eq!(status.signal(), Some(4), "{case}: dies of SIGILL");

                // The next writer knows nothing of it.
                write(&buffer, b"z", 0);
                let committed = letters.len() - usize::from(point < 5);
                let mut expected = letters.as_bytes()[..committed].to_vec();
                expected.push(b'z');
                let mut bytes = Vec::new();
                Reader::new(buffer.clone())
                    .read(1 << 20, &mut Vec::new(), |got| bytes.extend_from_slice(got));
                let messages: Vec<u8> = bytes.chunks(40).map(|message| message[0]).collect();
                assert!(bytes.chunks(40).all(|message| *message == [message[0]; 40]), "{case}: {bytes:?}");
                assert_eq!(messages, expected, "{case}");
            }
        }
    }
}
