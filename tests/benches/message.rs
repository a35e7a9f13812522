//! What one message costs a producer: beside memcpy, beside LTTng-UST, beside other ways out of a process, and when
//! there is no room for it. The kernel's relay is not among them: only kernel code writes there.

use std::cell::Cell;
use std::fs;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use relay::memory::mapping::Mapping;
use relay_producer::{Channel, Transport, TransportChoice, WriteError};
use relayfs_tests::journald::{self, Journald};
use relayfs_tests::librelay::Linked;
use relayfs_tests::lttng::{Lttng, NOT_INSTALLED};
use relayfs_tests::measure::{
    MESSAGE_LEN, Measurement, WRITER_CPU, alternately, head, nanos, on_cpu, row, title,
};
use relayfs_tests::peers::{append, packets, pipe, play_other_end, trace_marker};
use relayfs_tests::{Mount, stdout_of, text};

/// Lengths of messages, in bytes.
const LENGTHS: [usize; 6] = [8, 16, MESSAGE_LEN, 256, 1024, 4096];
/// Sub-buffers of the channel that is overwritten.
const GEOMETRY: &str = "subbuf-size=1M:n-subbufs=4:overwrite";
/// All of them, in bytes.
const RING_LEN: usize = 4 << 20;
/// Events that LTTng-UST is asked for at once.
const EVENTS: usize = 1_000_000;
/// Messages where each is a system call of its own.
const MESSAGES_SINGLY: usize = 300_000;
/// Messages for the journal, which takes each by itself.
const MESSAGES_JOURNALD: usize = 50_000;

fn main() -> ExitCode {
    if let Some(played) = play_other_end() {
        return played;
    }
    head("one message");
    let mount = Mount::new(&[]);
    let channel = create(&mount, "overwritten", GEOMETRY);
    lengths(&mount, &channel);
    other_ways(&mount, &channel);
    dropping(&mount, &channel);
    ExitCode::SUCCESS
}

fn create(mount: &Mount, name: &str, geometry: &str) -> Channel {
    let builder = Channel::builder(mount.point(), name).create(true);
    let channel = builder.geometry(geometry.parse().expect("a geometry")).open().expect("creating a channel");
    assert_eq!(channel.transport(), Transport::Shared, "{:?}", channel.why_socket());
    channel
}

/// How many messages are written in one go.
fn count(len: usize) -> usize {
    (3_000_000_000 / (len + 200)).min(10_000_000)
}

/// Nanoseconds of a message that there is always room for.
fn written(channel: &Channel, len: usize) -> f64 {
    nanos(WRITER_CPU, count(len), len, |message| channel.write(message).expect("a message that fits"))
}

/// The same by a C program.
fn written_in_c(mount: &Mount, writer: &Linked, len: usize) -> f64 {
    let mut command = writer.command(mount.point());
    let command = command.args([len.to_string(), count(len).to_string()]);
    let said = text(&on_cpu(WRITER_CPU, || stdout_of(command)));
    said.trim().parse().unwrap_or_else(|_| panic!("what the C program came to: {said:?}"))
}

fn lengths(mount: &Mount, channel: &Channel) {
    let lttng = Lttng::overwriting();
    let writer = Linked::compile("tests/c/write.c", &[]);
    let mut line = vec!["", "relayfs", "from C", "C more than Rust", "memcpy", "relayfs/memcpy"];
    line.extend(lttng.iter().flat_map(|_| ["LTTng-UST", "LTTng-UST/relayfs"]));
    title("one thread, 4 x 1 MiB overwritten; memcpy into such a file", "ns");
    if lttng.is_some() {
        println!("(LTTng-UST, with an equal payload, stamps each event with the time; relayfs does not)");
    } else {
        println!("(LTTng-UST: {NOT_INSTALLED})");
    }
    columns(&line);
    let ring = Ring::new();
    for len in LENGTHS {
        let mut measurements: Vec<Measurement<'_>> = vec![
            Box::new(|| written(channel, len)),
            Box::new(|| written_in_c(mount, &writer, len)),
            Box::new(|| nanos(WRITER_CPU, count(len), len, |message| ring.copy_in(message))),
        ];
        if let Some(lttng) = &lttng {
            measurements.push(Box::new(|| lttng.emit(len, EVENTS).nanos));
        }
        let all = alternately(&mut measurements);
        let (ours, in_c, memcpy) = (&all[0], &all[1], &all[2]);
        let mut line = vec![format!("{len} B")];
        line.extend([ours, in_c, &in_c.more_than(ours), memcpy, &ours.over(memcpy)].map(ToString::to_string));
        line.extend(all.get(3).iter().flat_map(|theirs| [theirs.to_string(), theirs.over(ours).to_string()]));
        columns(&line);
    }
}

fn columns(values: &[impl AsRef<str>]) {
    let mut widths = std::iter::once(8).chain(std::iter::repeat(26));
    let line =
        values.iter().map(|value| format!("{:<1$}", value.as_ref(), widths.next().unwrap_or_default()));
    println!("  {}", line.collect::<String>().trim_end());
}

/// Memory like that of a channel, of which nobody knows.
struct Ring {
    memory: Mapping,
    at: Cell<usize>,
}

impl Ring {
    fn new() -> Ring {
        let file = tempfile::tempfile_in("/dev/shm").expect("a file on tmpfs");
        file.set_len(RING_LEN as u64).expect("room on tmpfs");
        Ring { memory: Mapping::new(&file, RING_LEN as u64).expect("mapping it"), at: Cell::new(0) }
    }

    #[inline(always)]
    fn copy_in(&self, message: &[u8]) {
        let mut at = self.at.get();
        if at + message.len() > RING_LEN {
            at = 0;
        }
        self.memory.copy_in(at, message);
        self.at.set(at + message.len());
    }
}

fn other_ways(mount: &Mount, channel: &Channel) {
    title(&format!("other ways, {MESSAGE_LEN} B each, one at a time, until all have arrived"), "ns");
    let message = [b'm'; MESSAGE_LEN];
    // A channel that no process writes directly: where one does, see the bench `socket`.
    let socket = Channel::builder(mount.point(), "by-socket").transport(TransportChoice::Socket);
    let socket = socket.create(true).geometry(GEOMETRY.parse().expect("a geometry"));
    let socket = socket.open().expect("opening a channel");
    let each = |taken: Duration| taken.as_secs_f64() * 1e9 / MESSAGES_SINGLY as f64;
    let (marker, journal) = (trace_marker(), Journald::start());
    let mut names = vec![
        "relayfs",
        "relayfs by socket",
        "pipe, to a process that reads",
        "SOCK_SEQPACKET, to a process that receives",
        "append to a file on tmpfs",
    ];
    let mut measurements: Vec<Measurement<'_>> = vec![
        Box::new(|| written(channel, MESSAGE_LEN)),
        Box::new(|| each(by_socket(&socket, &message))),
        Box::new(|| each(pipe(&message, MESSAGES_SINGLY))),
        Box::new(|| each(packets(&message, MESSAGES_SINGLY))),
        Box::new(|| each(append(&message, MESSAGES_SINGLY))),
    ];
    if let Ok(marker) = &marker {
        names.push("ftrace's trace_marker");
        measurements.push(Box::new(move || {
            nanos(WRITER_CPU, MESSAGES_SINGLY, MESSAGE_LEN, |message| {
                let mut marker = marker;
                marker.write_all(message).expect("writing to the trace");
            })
        }));
    }
    if let Some(journal) = &journal {
        names.push("journald, by its socket");
        measurements.push(Box::new(|| journal.send(MESSAGE_LEN, MESSAGES_JOURNALD)));
    }
    let all = alternately(&mut measurements);
    for (name, values) in names.into_iter().zip(&all) {
        row(name, format_args!("{values:<36}{} of relayfs", values.over(&all[0])));
    }
    if let Err(why) = &marker {
        row("ftrace's trace_marker", format_args!("not there: {why}"));
    }
    if journal.is_none() {
        row("journald", journald::NOT_INSTALLED);
    }
}

fn by_socket(channel: &Channel, message: &[u8]) -> Duration {
    on_cpu(WRITER_CPU, || {
        let begun = Instant::now();
        for _ in 0..MESSAGES_SINGLY {
            while let Err(error) = channel.write(message) {
                assert_eq!(error, WriteError::Full);
                std::thread::yield_now();
            }
        }
        channel.flush().expect("the answer, which comes after all messages");
        begun.elapsed()
    })
}

fn dropping(mount: &Mount, channel: &Channel) {
    title(&format!("a message that finds no room, {MESSAGE_LEN} B"), "ns");
    let full = create(mount, "full", "subbuf-size=1M:n-subbufs=4");
    let message = [b'm'; MESSAGE_LEN];
    on_cpu(WRITER_CPU, || while full.write(&message).is_ok() {});
    let drop = || {
        nanos(WRITER_CPU, count(MESSAGE_LEN), MESSAGE_LEN, |message| {
            assert_eq!(full.write(message), Err(WriteError::Full))
        })
    };
    let all = alternately(&mut [Box::new(|| written(channel, MESSAGE_LEN)), Box::new(drop)]);
    let dropped = fs::read_to_string(mount.control("full", "stats")).expect("reading stats");
    assert!(!dropped.contains("\ndropped 0\n"), "what is dropped is counted: {dropped}");
    row("written", &all[0]);
    row("dropped", format_args!("{:<36}{} of one that is written", all[1], all[1].over(&all[0])));
}
