//! Other transports between processes, to measure beside relayfs.
//!
//! The process at the other end is the bench's program with other arguments.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

use crate::Process;
use crate::journald;
use crate::measure::{WRITER_CPU, on_cpu, reader_cpu};

/// Argument of a process that reads its standard input to the end.
const DRAIN: &str = "drain-standard-input";
/// Argument of a process that sends back what it reads from its standard input, a socket.
const SEND_BACK: &str = "send-back-standard-input";
/// Argument of a process that reads a number of bytes from a relay's file.
const READ_RELAY: &str = "read-relay";
/// Bytes asked for in one read.
const READ_LEN: usize = 128 << 10;
/// The kernel's file that writes messages into the trace.
const TRACE_MARKER: &str = "/sys/kernel/tracing/trace_marker";

/// Plays the other end if this process was started for that. `main` of a bench calls this first.
pub fn play_other_end() -> Option<ExitCode> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        [DRAIN] => on_cpu(reader_cpu(), drain),
        [SEND_BACK] => on_cpu(reader_cpu(), send_back),
        [READ_RELAY, path, bytes] => {
            let expected = bytes.parse().expect("a number");
            on_cpu(reader_cpu(), || read_relay(Path::new(path), expected));
        }
        [journald::SEND, len, n] => {
            journald::send(len.parse().expect("a length"), n.parse().expect("a number"));
        }
        _ => return None,
    }
    Some(ExitCode::SUCCESS)
}

/// Another process that reads. It prints a byte when it is ready; its standard output ends with it.
#[derive(Debug)]
pub struct Reader(Process);

impl Reader {
    /// Starts a process that reads `input` to its end.
    pub fn of(input: impl Into<Stdio>) -> Reader {
        Reader::start(&[DRAIN], input.into())
    }

    /// Starts a process that reads `bytes` bytes of a relay's file.
    ///
    /// It reads 128 KiB with each read(2), and polls for more.
    pub fn of_relay(path: &Path, bytes: usize) -> Reader {
        let path = path.to_str().expect("a path of text");
        Reader::start(&[READ_RELAY, path, &bytes.to_string()], Stdio::null())
    }

    fn start(args: &[&str], input: Stdio) -> Reader {
        let mut command = Command::new(std::env::current_exe().expect("our own path"));
        command.args(args).stdin(input).stdout(Stdio::piped());
        let mut reader = Process::start(&mut command);
        let mut ready = [0];
        reader.child().stdout.as_mut().expect("a pipe").read_exact(&mut ready).expect("the reader");
        Reader(reader)
    }

    /// Waits until it has read everything.
    pub fn wait(mut self) {
        self.0.stdout();
        assert!(self.0.wait().success());
    }
}

fn say_ready() {
    let mut output = std::io::stdout();
    output.write_all(b"r").and_then(|()| output.flush()).expect("telling that we are ready");
}

fn drain() {
    let input = std::io::stdin().as_fd().try_clone_to_owned().expect("another descriptor");
    let (mut input, mut bytes) = (File::from(input), vec![0; READ_LEN]);
    say_ready();
    while input.read(&mut bytes).expect("reading our input") > 0 {}
}

fn send_back() {
    let input = std::io::stdin().as_fd().try_clone_to_owned().expect("another descriptor");
    let (mut socket, mut bytes) = (File::from(input), vec![0; READ_LEN]);
    say_ready();
    loop {
        match socket.read(&mut bytes).expect("receiving a packet") {
            0 => return,
            len => socket.write_all(&bytes[..len]).expect("sending it back"),
        }
    }
}

fn read_relay(path: &Path, expected: usize) {
    let mut file = File::open(path).expect("opening a buffer");
    let (mut bytes, mut total) = (vec![0; READ_LEN], 0);
    say_ready();
    while total < expected {
        match file.read(&mut bytes).expect("reading a buffer") {
            0 => {
                let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
                poll(&mut fds, PollTimeout::NONE).expect("waiting for a buffer");
            }
            n => total += n,
        }
    }
    assert_eq!(total, expected, "bytes read");
}

/// Writes to a pipe that another process reads to its end.
pub fn pipe(bytes: &[u8], writes: usize) -> Duration {
    let (input, output) = std::io::pipe().expect("a pipe");
    write_to(OwnedFd::from(output).into(), OwnedFd::from(input), bytes, writes)
}

/// Sends packets to another process that receives them all.
pub fn packets(bytes: &[u8], sends: usize) -> Duration {
    let (near, far) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .expect("a pair of sockets");
    write_to(near.into(), far, bytes, sends)
}

/// Sends packets to another process that sends each back, and waits for that.
pub fn sent_back(bytes: &[u8], sends: usize) -> Duration {
    let (near, far) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .expect("a pair of sockets");
    let (mut near, mut answer) = (File::from(near), vec![0; READ_LEN]);
    let reader = Reader::start(&[SEND_BACK], far.into());
    on_cpu(WRITER_CPU, || {
        let begun = Instant::now();
        for _ in 0..sends {
            near.write_all(bytes).expect("writing to a process");
            assert_eq!(near.read(&mut answer).expect("the packet that comes back"), bytes.len());
        }
        drop(near);
        reader.wait();
        begun.elapsed()
    })
}

fn write_to(mut near: File, far: OwnedFd, bytes: &[u8], writes: usize) -> Duration {
    let reader = Reader::of(far);
    on_cpu(WRITER_CPU, || {
        let begun = Instant::now();
        for _ in 0..writes {
            near.write_all(bytes).expect("writing to a process");
        }
        drop(near);
        reader.wait();
        begun.elapsed()
    })
}

/// Appends to a new file on tmpfs.
pub fn append(bytes: &[u8], writes: usize) -> Duration {
    let mut file = tempfile::tempfile_in("/dev/shm").expect("a file on tmpfs");
    on_cpu(WRITER_CPU, || {
        let begun = Instant::now();
        for _ in 0..writes {
            file.write_all(bytes).expect("writing to a file on tmpfs");
        }
        begun.elapsed()
    })
}

/// Opens the kernel's trace_marker; the error says why it cannot be opened.
pub fn trace_marker() -> Result<File, String> {
    let opened = OpenOptions::new().write(true).open(TRACE_MARKER);
    opened.map_err(|error| match error.kind() {
        ErrorKind::NotFound => format!("no {TRACE_MARKER}"),
        _ => format!("{TRACE_MARKER}: {error}"),
    })
}
