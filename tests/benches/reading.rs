//! What the ways to read give: bytes a second in mappings, and how soon who waits has what was written.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use audience::Reader;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use relay_producer::{BatchOptions, Wait};
use relayfs_tests::measure::{Values, WRITER_CPU, alternately, head, on_cpu, reader_cpu, rounds, row, title};
use relayfs_tests::{Mount, program, tool};

/// Length of the messages that are read in bulk, in bytes.
const BULK_MESSAGE_LEN: usize = 4096;
/// Bytes in one measurement of that.
const BULK: usize = 2 << 30;
/// What is ready to be recorded, in bytes.
const READY_LEN: usize = 256 << 20;
/// What one round of latencies consists of.
const WAKE_UPS: usize = 300;
/// Between two of them, so that the reader is asleep again.
const PAUSE: Duration = Duration::from_micros(500);

fn main() -> ExitCode {
    head("reading");
    bulk();
    recording();
    latency();
    ExitCode::SUCCESS
}

/// A producer that waits for room, and a reader of its mapping on another CPU, who copies every byte.
fn bulk() {
    title(&format!("{BULK_MESSAGE_LEN}-byte messages, copied by their reader, nothing lost"), "GB/s");
    let mount = Mount::new(&["--subbuf-size=256K", "--n-subbufs=8"]);
    let channel = mount.direct_channel("cpu");
    let message = vec![b'm'; BULK_MESSAGE_LEN];
    let produce = || {
        on_cpu(WRITER_CPU, || {
            let messages = std::iter::repeat_n(message.as_slice(), BULK / BULK_MESSAGE_LEN);
            let options = BatchOptions { cpu: Some(WRITER_CPU), wait: Wait::Forever };
            channel.write_batch(messages, options).expect("writing");
            channel.flush().expect("finishing the last sub-buffer");
        });
    };
    let mapped = || {
        let mut reader = Reader::open(mount.point(), "cpu").expect("mapping the buffers");
        thread::scope(|scope| {
            scope.spawn(produce);
            on_cpu(reader_cpu(), || rate(|| read_mapped(&mut reader)))
        })
    };
    let by_read = || {
        let mut file = File::open(mount.path("cpu0")).expect("opening a buffer");
        thread::scope(|scope| {
            scope.spawn(produce);
            on_cpu(reader_cpu(), || rate(|| read_file(&mut file)))
        })
    };
    let tmpfs = filled_tmpfs();
    let by_tmpfs = || {
        let mut piece = vec![0; 1 << 20];
        rate(|| {
            for _ in 0..BULK / TMPFS_LEN {
                let mut file = File::open(tmpfs.path()).expect("opening a file");
                while file.read(&mut piece).expect("reading") > 0 {}
            }
        })
    };
    let (from, mut to) = (vec![1u8; 2 << 20], vec![0u8; 2 << 20]);
    let memcpy = || {
        rate(|| {
            for _ in 0..BULK / from.len() {
                black_box(to.as_mut_slice()).copy_from_slice(black_box(&from));
            }
        })
    };
    let rates = alternately(&mut [Box::new(mapped), Box::new(by_read), Box::new(by_tmpfs), Box::new(memcpy)]);
    let names = [
        "relayfs, mapping",
        "relayfs, read() of 1 MiB",
        "tmpfs, read() of 1 MiB, no writer",
        "memcpy of 2 MiB",
    ];
    names.into_iter().zip(&rates).for_each(|(name, rates)| row(name, rates));
}

const TMPFS_LEN: usize = 64 << 20;

fn filled_tmpfs() -> tempfile::NamedTempFile {
    let mut file = tempfile::Builder::new().tempfile_in("/dev/shm").expect("a file on tmpfs");
    file.write_all(&vec![b'm'; TMPFS_LEN]).expect("filling a file on tmpfs");
    file
}

/// GB/s of something that reads all of it.
fn rate(read: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    read();
    BULK as f64 / begun.elapsed().as_secs_f64() / 1e9
}

fn read_mapped(reader: &mut Reader) {
    let (mut got, mut copy) = (0, Vec::new());
    while got < BULK {
        while let Some(sub_buffer) = reader.next_finished(WRITER_CPU) {
            copy.clear();
            sub_buffer.copy_to(&mut copy);
            got += black_box(&copy).len();
            // One after the other, so that the writer has room as soon as may be.
            reader.release(WRITER_CPU).expect("giving back");
        }
        if got < BULK {
            reader.wait(None).expect("waiting");
        }
    }
}

fn read_file(file: &mut File) {
    let (mut got, mut piece) = (0, vec![0; 1 << 20]);
    while got < BULK {
        match file.read(&mut piece).expect("reading") {
            0 => wait_readable(file),
            n => got += n,
        }
    }
}

fn wait_readable(file: &impl AsFd) {
    let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::from(1000u16)).expect("poll");
}

/// `audience record` of a full buffer, and `cat` of a file on tmpfs, both into a file there. Whole processes.
fn recording() {
    title(&format!("{} MiB into a file on tmpfs", READY_LEN >> 20), "GB/s");
    let mount = Mount::new(&["--subbuf-size=1M", "--n-subbufs=256", "--max-memory=2G"]);
    let channel = mount.direct_channel("cpu");
    let message = vec![b'm'; BULK_MESSAGE_LEN];
    let dir = tempfile::Builder::new().tempdir_in("/dev/shm").expect("a directory on tmpfs");
    let whole = |command: &mut Command| {
        let begun = Instant::now();
        let status = command.stdin(Stdio::null()).stderr(Stdio::null()).status().expect("a program");
        assert!(status.success());
        READY_LEN as f64 / begun.elapsed().as_secs_f64() / 1e9
    };
    let record = || {
        let messages = std::iter::repeat_n(message.as_slice(), READY_LEN / BULK_MESSAGE_LEN);
        let options = BatchOptions { cpu: Some(WRITER_CPU), ..BatchOptions::default() };
        channel.write_batch(messages, options).expect("filling the buffer");
        channel.flush().expect("finishing the last sub-buffer");
        let recorded = dir.path().join("recorded");
        let mut command = Command::new(program("audience"));
        command.arg("record").arg("--mount").arg(mount.point()).arg("-o").arg(&recorded);
        let rate = whole(command.args(["--cpu", &WRITER_CPU.to_string(), "--duration", "1ms"]));
        let len = fs::metadata(recorded.join(format!("cpu{WRITER_CPU}"))).expect("the recording").len();
        assert_eq!(len, READY_LEN as u64);
        fs::remove_dir_all(&recorded).expect("removing a recording");
        rate
    };
    let from = dir.path().join("from");
    fs::write(&from, vec![b'm'; READY_LEN]).expect("a file on tmpfs");
    let cat = || {
        let to = dir.path().join("to");
        let rate = whole(tool("cat", "coreutils").arg(&from).stdout(File::create(&to).expect("a file")));
        fs::remove_file(&to).expect("removing a file");
        rate
    };
    let rates = alternately(&mut [Box::new(record), Box::new(cat)]);
    ["audience record, mapping", "cat of a file"]
        .into_iter()
        .zip(&rates)
        .for_each(|(name, rates)| row(name, rates));
}

/// From just before the write that finishes a sub-buffer until its reader, who was asleep, has it; on another CPU.
fn latency() {
    title(
        "a reader asleep has what was written",
        "us: median of each round's medians; of its 99th percentiles",
    );
    let mount = Mount::new(&["--subbuf-size=100", "--n-subbufs=64"]);
    let channel = mount.direct_channel("cpu");
    let write = || channel.write(&[b'm'; 64]).expect("room");
    // Every message finishes the sub-buffer of the one before.
    on_cpu(WRITER_CPU, write);
    let mut ways: [(&str, Vec<f64>, Vec<f64>); 3] = [
        ("pipe", vec![], vec![]),
        ("relayfs, poll() and read() of the file", vec![], vec![]),
        ("relayfs, mapping and bell", vec![], vec![]),
    ];
    for _ in 0..rounds() {
        let (mut out, mut input) = std::io::pipe().expect("a pipe");
        let times = wake_ups(
            || input.write_all(&[b'm'; 64]).expect("writing to a pipe"),
            move || {
                wait_readable(&out);
                out.read_exact(&mut [0; 64]).expect("reading a pipe");
            },
        );
        push(&mut ways[0], times);
        let mut file = File::open(mount.path("cpu0")).expect("opening a buffer");
        let times = wake_ups(write, move || {
            wait_readable(&file);
            while file.read(&mut [0; 4096]).expect("reading") == 0 {}
        });
        push(&mut ways[1], times);
        drop(fs::read(mount.path("cpu0")));
        let mut reader = Reader::open_cpu(mount.point(), "cpu", WRITER_CPU).expect("mapping the buffers");
        // Of the last round the unfinished one is left, read or not.
        let times = wake_ups(write, move || {
            reader.wait(None).expect("waiting");
            let mut bytes = Vec::new();
            while let Some(sub_buffer) = reader.next_finished(WRITER_CPU) {
                sub_buffer.copy_to(&mut bytes);
            }
            reader.release(WRITER_CPU).expect("giving back");
        });
        push(&mut ways[2], times);
        drop(fs::read(mount.path("cpu0")));
    }
    for (name, medians, tails) in ways {
        row(name, format!("{}; {}", Values::from(medians), Values::from(tails)));
    }
}

fn push(way: &mut (&str, Vec<f64>, Vec<f64>), mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    way.1.push(times[times.len() / 2]);
    way.2.push(times[times.len() * 99 / 100]);
}

/// Microseconds from before each `write` until `read` has returned.
fn wake_ups(mut write: impl FnMut(), mut read: impl FnMut() + Send + 'static) -> Vec<f64> {
    let (sender, told): (_, Receiver<Instant>) = sync_channel(1);
    let reader = thread::spawn(move || {
        on_cpu(reader_cpu(), || {
            for _ in 0..WAKE_UPS {
                read();
                sender.send(Instant::now()).expect("the writer listens");
            }
        });
    });
    let times = on_cpu(WRITER_CPU, || {
        (0..WAKE_UPS)
            .map(|_| {
                thread::sleep(PAUSE);
                let begun = Instant::now();
                write();
                told.recv().expect("the reader").duration_since(begun).as_secs_f64() * 1e6
            })
            .collect()
    });
    reader.join().expect("the reader");
    times
}
