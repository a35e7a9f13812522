//! Messages written directly into shared buffers.
//!
//! Without restartable sequences the same calls use the socket. The last two tests run all the others in that way, and
//! where the library registers the areas of threads.

mod common;
#[allow(unreachable_pub, reason = "it is a module of another crate as well")]
#[path = "../../tests/src/refused.rs"]
mod refused;

use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::files::{Files, allowed_cpus, n_cpus, pin, pin_anywhere};
use common::{Daemon, Manners, PATIENCE, geometry, hello_reply, open_reply};
use refused::{AREAS, NO_AREAS, REFUSED, TUNABLES, without_sequences};
use relay::wire::frame::{Body, OpenReply, ShareReply};
use relay_producer::{
    BatchOptions, Channel, ConnectError, OpenError, Transport, TransportChoice, Wait, WriteError,
};
use tempfile::{TempDir, tempdir};

/// Whether threads of this process can run sequences.
/// Each test says what differs without them.
fn can_share() -> bool {
    relay::ring::writer::AnyExecutor::can_share()
}

struct Setup {
    _dir: TempDir,
    daemon: Daemon,
    files: Arc<Files>,
    channel: Arc<Channel>,
}

fn start(spec: &'static str) -> Setup {
    start_with(Manners { geometry: spec, ..Manners::default() })
}

fn start_with(manners: Manners) -> Setup {
    let dir = tempdir().unwrap();
    let files = Files::new(geometry(manners.geometry));
    let daemon = Daemon::start(&dir, manners);
    daemon.share(&files);
    let channel = Arc::new(Channel::open(&daemon.socket, "cpu").unwrap());
    let expected = if can_share() { Transport::Shared } else { Transport::Socket };
    assert_eq!(channel.transport(), expected, "{:?}", channel.why_socket());
    Setup { _dir: dir, daemon, files, channel }
}

impl Setup {
    /// Checks that this many messages went over the socket, or all of them without sequences.
    fn by_socket(&self, n_frames: usize) {
        if can_share() {
            assert_eq!(self.daemon.store().waits.len(), n_frames);
        }
    }
}

/// A message that can be checked: its writer, its number, and bytes derived from both.
fn message(writer: u8, number: u32) -> Vec<u8> {
    let len = 8 + number as usize * 7 % 90;
    let mut message = vec![writer.wrapping_add(number as u8); len];
    message[0] = writer;
    message[1] = len as u8;
    message[2..6].copy_from_slice(&number.to_le_bytes());
    message
}

/// Removes whole messages from the start of a stream, and checks each.
fn messages(stream: &mut Vec<u8>) -> Vec<(u8, u32)> {
    let (mut taken, mut at) = (Vec::new(), 0);
    while let Some(len) = stream.get(at + 1).map(|len| usize::from(*len)) {
        let Some(got) = stream.get(at..at + len) else { break };
        let number = u32::from_le_bytes(got[2..6].try_into().unwrap());
        assert_eq!(got, message(got[0], number), "a damaged message");
        taken.push((got[0], number));
        at += len;
    }
    stream.drain(..at);
    taken
}

#[test]
fn written_message_is_in_the_buffer_when_write_returns() {
    let setup = start("");
    let cpu = pin_anywhere();
    let long = vec![b'x'; 65_000];
    setup.channel.write(b"one ").unwrap();
    setup.channel.write(b"").unwrap();
    setup.channel.write_to(cpu, b"two ").unwrap();
    let counts = setup.channel.write_batch(["three ", "four "], BatchOptions::default()).unwrap();
    assert_eq!(counts.written, 2);
    let options = BatchOptions { cpu: Some(cpu), wait: Wait::Forever };
    assert_eq!(setup.channel.write_batch([&long], options).unwrap().written, 1);
    let stream = setup.files.read(cpu);
    assert!(stream == [&b"one two three four "[..], &long].concat(), "{} bytes", stream.len());
    setup.by_socket(0);
    setup.channel.flush().unwrap();
}

#[test]
fn message_without_room_is_refused_and_counted() {
    let setup = start("subbuf-size=64:n-subbufs=2");
    let cpu = pin_anywhere();
    let outcomes: Vec<_> = (0..100).map(|_| setup.channel.write(&[b'x'; 32])).collect();
    setup.channel.flush().unwrap();
    assert_eq!(setup.files.lost(), 96);
    if can_share() {
        assert_eq!(outcomes, [vec![Ok(()); 4], vec![Err(WriteError::Full); 96]].concat());
        assert_eq!(setup.files.buffers[cpu].block().dropped.load(Ordering::Relaxed), 96);
    }
    assert_eq!(setup.files.read(cpu), [b'x'; 128]);
    let counts = setup.channel.write_batch([[b'y'; 32]; 6], BatchOptions::default()).unwrap();
    assert_eq!((counts.written, counts.dropped), (4, 2));
    assert_eq!(setup.files.lost(), 98);
    setup.by_socket(0);
}

#[test]
fn too_big_message_is_refused_and_counted() {
    let setup = start("subbuf-size=100:header=10");
    let cpu = pin_anywhere();
    let max = 90;
    // Longer than the header leaves room for, than a sub-buffer, than a direct write, than any message.
    let lengths = [95, 101, 70_000, 2 << 20];
    for len in lengths {
        assert_eq!(setup.channel.write(&vec![0; len]), Err(WriteError::TooBig { len, max }));
    }
    let counts = setup.channel.write_batch(lengths.map(|len| vec![0; len]), BatchOptions::default()).unwrap();
    assert_eq!(counts.too_big, 4);
    setup.channel.flush().unwrap();
    assert_eq!(setup.files.lost(), 8);
    if can_share() {
        assert_eq!(setup.files.buffers[cpu].block().too_big.load(Ordering::Relaxed), 8);
    }
    setup.by_socket(0);
}

#[test]
fn long_message_too_big_behind_a_header_is_counted_by_the_daemon() {
    let setup = start("subbuf-size=200K:header=100K");
    let (len, max) = (150_000, 100 << 10);
    assert_eq!(setup.channel.write(&vec![0; len]), Err(WriteError::TooBig { len, max }));
    setup.channel.flush().unwrap();
    assert_eq!(setup.files.lost(), 1);
}

#[test]
fn message_for_another_cpu_goes_over_the_socket() {
    let dir = tempdir().unwrap();
    let daemon = Daemon::start(&dir, Manners::default());
    let cpu = pin_anywhere();
    // Also on a machine with a single CPU.
    let (other, n_bufs) = (cpu + 1, n_cpus() + 1);
    let files = Files::with(geometry(""), n_bufs, 1);
    daemon.share_apart(&files);
    let channel = Channel::open(&daemon.socket, "cpu").unwrap();
    channel.write_to(other, b"1").unwrap();
    let options = BatchOptions { cpu: Some(other), ..BatchOptions::default() };
    channel.write_batch(["2", "3"], options).unwrap();
    let arrived = daemon.store().messages.clone();
    assert_eq!(arrived, [b"1", b"2", b"3"].map(|message| (other as u32, message.to_vec())));
    let error = channel.write_to(n_bufs, b"nowhere").unwrap_err();
    assert!(matches!(error, WriteError::NoSuchCpu(_)), "{error}");
    channel.write_to(cpu, b"here").unwrap();
    channel.write_batch(["and here"], BatchOptions { cpu: Some(cpu), ..options }).unwrap();
    assert_eq!(files.read(cpu), if can_share() { &b"hereand here"[..] } else { b"" });
}

#[test]
fn long_message_is_written_before_the_next_one() {
    let setup = start("subbuf-size=1M");
    let cpu = pin_anywhere();
    let long = vec![b'x'; 200_000];
    for batched in [false, true] {
        if batched {
            let mut batch = setup.channel.batch(BatchOptions::default()).unwrap();
            for message in [&b"before"[..], &long, b"after"] {
                batch.push(message).unwrap();
            }
            assert_eq!(batch.finish().unwrap().written, 3);
        } else {
            setup.channel.write(b"before").unwrap();
            setup.channel.write(&long).unwrap();
            setup.channel.write(b"after").unwrap();
            setup.channel.flush().unwrap();
        }
        assert!(setup.files.read(cpu) == [b"before", &long[..], b"after"].concat());
    }
    // Each message is longer than a frame, and answered.
    setup.by_socket(8);
}

#[test]
fn unanswered_long_message_does_not_block() {
    let setup = start_with(Manners { geometry: "subbuf-size=1M", hold: Some(b"long"), ..Manners::default() });
    pin_anywhere();
    let started = Instant::now();
    setup.channel.write(&[&b"long"[..], &[0; 100_000]].concat()).unwrap();
    if can_share() {
        assert!(started.elapsed() >= Duration::from_millis(100));
    }
    assert!(started.elapsed() < PATIENCE);
    setup.channel.write(b"after").unwrap();
    setup.daemon.release();
}

#[test]
fn long_message_without_room_is_refused() {
    let setup = start("subbuf-size=100K:n-subbufs=1");
    pin_anywhere();
    setup.channel.write(&[0; 50_000]).unwrap();
    let written = setup.channel.write(&[0; 90_000]);
    setup.channel.flush().unwrap();
    assert_eq!(written, if can_share() { Err(WriteError::Full) } else { Ok(()) });
    assert_eq!(setup.files.lost(), 1);
}

/// A refusal by the daemon is not reported as a lack of room.
#[test]
fn refused_message_has_the_daemons_errno() {
    let setup = start_with(Manners { refused: Some(5), ..Manners::default() });
    pin_anywhere();
    let written = setup.channel.write(&[0; 90_000]);
    assert_eq!(written, if can_share() { Err(WriteError::Refused { errno: 5 }) } else { Ok(()) });
    let said = WriteError::Refused { errno: 5 }.to_string();
    assert_eq!(said, "the daemon refused the message: I/O error; flush the channel for its reason");
}

#[test]
fn closed_channel_takes_no_message_until_the_new_one_is_found() {
    let setup = start("");
    let cpu = pin_anywhere();
    setup.channel.write(b"before").unwrap();
    setup.channel.flush().unwrap();
    setup.files.close();
    if can_share() {
        assert_eq!(setup.channel.write(b"lost"), Err(WriteError::Disconnected));
    } else {
        setup.daemon.hang_up();
        assert_eq!(setup.channel.write(b"lost"), Err(WriteError::Disconnected));
    }
    let new = Files::new(geometry(""));
    setup.daemon.share(&new);
    until_it_works(|| setup.channel.write(b"after"));
    setup.channel.flush().unwrap();
    assert_eq!(setup.channel.write_batch(["batched"], BatchOptions::default()).unwrap().written, 1);
    assert_eq!(setup.files.read(cpu), b"before");
    assert_eq!(new.read(cpu), b"afterbatched");
    setup.by_socket(0);
}

/// Repeats a call until it succeeds.
fn until_it_works<T, E: std::fmt::Debug>(mut call: impl FnMut() -> Result<T, E>) -> T {
    let started = Instant::now();
    loop {
        match call() {
            Ok(value) => return value,
            Err(error) => assert!(started.elapsed() < PATIENCE, "{error:?}"),
        }
        thread::yield_now();
    }
}

/// Repeats a call until it fails.
fn until_it_fails<T, E>(mut call: impl FnMut() -> Result<T, E>) -> E {
    let started = Instant::now();
    loop {
        assert!(started.elapsed() < PATIENCE, "the call keeps succeeding");
        if let Err(error) = call() {
            return error;
        }
    }
}

#[test]
fn lost_daemon_is_noticed_and_next_one_found_by_all_threads() {
    let setup = start("subbuf-size=4K:overwrite");
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        // Writers that never stop, while their buffers are replaced.
        for writer in 0..3 {
            let (channel, ended) = (&setup.channel, &ended);
            scope.spawn(move || {
                let started = Instant::now();
                for number in 0.. {
                    let _ = channel.write(&message(writer, number));
                    if ended.load(Ordering::Relaxed) || started.elapsed() > 3 * PATIENCE {
                        break;
                    }
                }
            });
        }
        for round in 0..3 {
            until_it_works(|| setup.channel.write(b""));
            let mut batch = until_it_works(|| setup.channel.batch(BatchOptions::default()));
            let new = Files::new(geometry("subbuf-size=4K:overwrite"));
            setup.daemon.share(&new);
            setup.daemon.hang_up();
            assert_eq!(until_it_fails(|| setup.channel.write(&message(round, 0))), WriteError::Disconnected);
            until_it_fails(|| {
                batch.push(&message(round, 0))?;
                batch.send()
            });
        }
        ended.store(true, Ordering::Relaxed);
    });
}

#[test]
fn bell_rings_once_for_each_arming() {
    let setup = start("subbuf-size=64:overwrite");
    let cpu = pin_anywhere();
    let switch = || (0..10).for_each(|_| setup.channel.write(&[0; 64]).unwrap());
    switch();
    assert_eq!(setup.files.rings(), 0, "no process waits");
    for _ in 0..3 {
        setup.files.buffers[cpu].arm();
        switch();
        let rings = if can_share() { 1 } else { 0 };
        assert_eq!(setup.files.rings(), rings);
        switch();
        assert_eq!(setup.files.rings(), 0);
        if !can_share() {
            break;
        }
    }
    setup.channel.flush().unwrap();
}

#[test]
fn waiting_batch_loses_no_message_and_keeps_its_order() {
    for spec in ["subbuf-size=128:n-subbufs=2", "subbuf-size=4K:n-subbufs=4", "subbuf-size=200K:n-subbufs=1"]
    {
        let setup = start(spec);
        let cpu = pin_anywhere();
        let n_messages = 100_000;
        let reader = thread::spawn({
            let files = setup.files.clone();
            move || {
                let (mut stream, mut next, started) = (Vec::new(), 0, Instant::now());
                while next < n_messages {
                    stream.extend(files.read(cpu));
                    for got in messages(&mut stream) {
                        assert_eq!(got, (7, next));
                        next += 1;
                    }
                    assert!(started.elapsed() < 3 * PATIENCE, "{next} messages came");
                    thread::yield_now();
                }
            }
        });
        let options = BatchOptions { wait: Wait::Forever, ..BatchOptions::default() };
        let counts = setup.channel.write_batch((0..n_messages).map(|number| message(7, number)), options);
        assert_eq!(counts.unwrap().written, n_messages.into());
        reader.join().unwrap();
        assert_eq!(setup.files.lost(), 0);
    }
}

#[test]
fn migrating_threads_keep_their_order_on_each_cpu() {
    let setup = start("subbuf-size=1000:n-subbufs=5");
    let cpus = allowed_cpus();
    let (n_writers, n_messages) = (4, 30_000);
    let ended = AtomicBool::new(false);
    let (mut written, mut read) = (0, 0);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut streams = vec![Vec::new(); n_cpus()];
            let mut next = vec![vec![0; n_writers]; n_cpus()];
            let mut read = 0;
            loop {
                let last = ended.load(Ordering::Acquire);
                for cpu in 0..n_cpus() {
                    streams[cpu].extend(setup.files.read(cpu));
                    for (writer, number) in messages(&mut streams[cpu]) {
                        let next = &mut next[cpu][usize::from(writer)];
                        assert!(number >= *next, "{number} of {writer} after {next}");
                        *next = number + 1;
                        read += 1;
                    }
                }
                if last {
                    assert!(streams.iter().all(Vec::is_empty), "part of a message at the end");
                    return read;
                }
                thread::yield_now();
            }
        });
        let writers: Vec<_> = (0..n_writers)
            .map(|writer| {
                let (channel, cpus) = (&setup.channel, &cpus);
                scope.spawn(move || {
                    let mut written = 0;
                    for number in 0..n_messages {
                        if number % 50 == 0 {
                            pin(cpus[(number as usize / 50 * 7 + writer) % cpus.len()]);
                        }
                        let message = message(writer as u8, number);
                        let done = channel.write(&message);
                        assert!(matches!(done, Ok(()) | Err(WriteError::Full)), "{done:?}");
                        written += u64::from(done.is_ok());
                    }
                    written
                })
            })
            .collect();
        written = writers.into_iter().map(|writer| writer.join().unwrap()).sum();
        setup.channel.flush().unwrap();
        ended.store(true, Ordering::Release);
        read = reader.join().unwrap();
    });
    assert_eq!(read + setup.files.lost(), n_writers as u64 * u64::from(n_messages));
    if can_share() {
        assert_eq!(read, written);
    }
}

#[test]
fn files_in_many_replies_are_mapped() {
    for (n_bufs, at_once) in [(n_cpus(), 1), (n_cpus() + 70, 30)] {
        let dir = tempdir().unwrap();
        let daemon = Daemon::start(&dir, Manners { geometry: "subbuf-size=4K", ..Manners::default() });
        let files = Files::with(geometry("subbuf-size=4K"), n_bufs, at_once);
        daemon.share(&files);
        let channel = Channel::open(&daemon.socket, "cpu").unwrap();
        assert_eq!(channel.why_socket().is_none(), can_share());
        assert_eq!(channel.n_bufs(), n_bufs);
        let cpu = pin_anywhere();
        channel.write(b"x").unwrap();
        channel.flush().unwrap();
        assert_eq!(files.read(cpu), b"x");
    }
}

/// Opens a channel that cannot have shared buffers, and returns the reason.
/// It tries both the automatic and the required transport.
fn refused(daemon: &Daemon) -> String {
    let channel = Channel::open(&daemon.socket, "cpu").unwrap();
    assert_eq!(channel.transport(), Transport::Socket);
    channel.write_batch(["by the socket"], BatchOptions::default()).unwrap();
    let builder = Channel::builder(&daemon.socket, "cpu").transport(TransportChoice::Shared);
    let error = builder.open().unwrap_err();
    assert!(matches!(error, OpenError::NotShared { .. }), "{error}");
    let why = channel.why_socket().unwrap();
    assert_eq!(
        error.to_string(),
        format!("cannot write shared buffers: {why}; transport 'auto' or 'socket' works without them")
    );
    why
}

#[test]
fn refused_files_are_a_reason_for_the_socket() {
    let dir = tempdir().unwrap();
    let daemon = Daemon::start(&dir, Manners { unshared: (1, "not you"), ..Manners::default() });
    let why = refused(&daemon);
    assert!(!can_share() || why == "not you", "{why}");
    drop(daemon);
    let daemon = Daemon::start(&dir, Manners::default());
    let why = refused(&daemon);
    assert!(!can_share() || why == "the daemon does not share buffers: unknown frame type 0x6", "{why}");
    drop(daemon);
    let daemon = Daemon::start(&dir, Manners { geometry: "global", ..Manners::default() });
    assert_eq!(refused(&daemon), "a global channel is written by the daemon alone");
}

#[test]
fn requested_socket_is_used() {
    let setup = start("");
    let builder = Channel::builder(&setup.daemon.socket, "cpu").transport(TransportChoice::Socket);
    let channel = builder.open().unwrap();
    assert_eq!(channel.transport(), Transport::Socket);
    assert_eq!(channel.why_socket().as_deref(), Some("it was asked for"));
    channel.write(b"x").unwrap();
    channel.flush().unwrap();
    assert_eq!(setup.daemon.store().waits.len(), 1);
}

#[test]
fn unusable_files_are_a_reason_for_the_socket() {
    fn overwrite(files: &Files, at: u64, bytes: &[u8]) {
        files.control.write_all_at(bytes, at).unwrap();
    }
    type Damage = fn(&Files);
    let cases: [(&str, Damage); 8] = [
        ("control file cannot be used: it has 0 bytes", |files| files.control.set_len(0).unwrap()),
        ("control file cannot be used: its parts do not fit", |files| files.control.set_len(4096).unwrap()),
        ("control file cannot be used: it is no control file", |files| overwrite(files, 0, b"R")),
        ("control file cannot be used: its layout is of another release", |files| overwrite(files, 8, &[9])),
        ("control file cannot be used: its layout is of another release", |files| overwrite(files, 16, &[2])),
        ("control file cannot be used: its geometry", |files| overwrite(files, 36, &[1])),
        ("control file cannot be used: its parts do not fit", |files| overwrite(files, 64, &[0; 8])),
        ("the file of buffer 0 cannot be used: it has 5 bytes", |files| files.data[0].set_len(5).unwrap()),
    ];
    for (expected, damage) in cases {
        let dir = tempdir().unwrap();
        let daemon = Daemon::start(&dir, Manners { geometry: "subbuf-size=64K", ..Manners::default() });
        let files = Files::new(geometry("subbuf-size=64K"));
        damage(&files);
        daemon.share_apart(&files);
        let why = refused(&daemon);
        assert!(!can_share() || why.contains(expected), "{expected}: {why}");
    }
}

/// Answers of a wrong daemon to SHARE.
#[test]
fn invalid_answer_to_share_is_an_error() {
    let share = |first, count| ShareReply { layout_version: 1, first, count }.frame(0, 3);
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("first: 1", vec![share(1, 1)]),
        ("count: 4000000000", vec![share(0, 4_000_000_000)]),
        ("count: 0", vec![share(0, 1), share(1, 0)]),
        ("unexpected Hello", vec![hello_reply().frame(0, 3)]),
        ("unexpected Share", vec![ShareReply { layout_version: 1, first: 0, count: 2 }.frame(0, 4)]),
    ];
    for (expected, answers) in cases {
        let dir = tempdir().unwrap();
        let daemon = Daemon::start_script(&dir, move |peer| {
            peer.receive();
            peer.send(&hello_reply().frame(0, 1));
            peer.receive();
            peer.send(&OpenReply { n_bufs: 2, ..open_reply(&geometry(""), false) }.frame(0, 2));
            peer.receive();
            answers.iter().for_each(|answer| peer.send(answer));
            peer.receive();
        });
        let opened = Channel::open(&daemon.socket, "cpu");
        if can_share() {
            let error = opened.unwrap_err();
            assert!(matches!(error, OpenError::Connect(ConnectError::NotOurs { .. })), "{expected}: {error}");
            assert!(error.to_string().contains(expected), "{expected}: {error}");
        }
    }
}

#[test]
fn unknown_layout_or_missing_descriptor_is_a_reason_for_the_socket() {
    for (version, expected) in [(7, "have layout 7, this release knows 1"), (1, "0 of 4 descriptors came")] {
        let dir = tempdir().unwrap();
        let daemon = Daemon::start_script(&dir, move |peer| {
            peer.receive();
            peer.send(&hello_reply().frame(0, 1));
            peer.receive();
            peer.send(&OpenReply { n_bufs: 2, ..open_reply(&geometry(""), false) }.frame(0, 2));
            peer.receive();
            peer.send(&ShareReply { layout_version: version, first: 0, count: 2 }.frame(0, 3));
            peer.receive();
        });
        let channel = Channel::open(&daemon.socket, "cpu").unwrap();
        let why = channel.why_socket().unwrap();
        assert!(!can_share() || why.contains(expected), "{expected}: {why}");
    }
}

/// Runs all tests above in another process, which has the sequences that `prepare` gives it.
fn run_all_again(name: &str, prepare: impl FnOnce(&mut Command) -> &mut Command) {
    let mut again = Command::new(std::env::current_exe().unwrap());
    let output = prepare(again.env(AGAIN, "1")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    assert!(said.contains(&format!("test {name} ... ok")), "{said}");
}

/// Set in the other process.
const AGAIN: &str = "RELAYFS_TESTS_AGAIN";

/// Where the kernel refuses the areas of threads.
#[test]
fn without_sequences_every_message_goes_over_the_socket() {
    let refused = std::env::var(AREAS).is_ok_and(|areas| areas == REFUSED);
    assert_eq!(can_share(), !refused);
    if std::env::var_os(AGAIN).is_none() {
        run_all_again("without_sequences_every_message_goes_over_the_socket", without_sequences);
    }
}

/// Where the C library registers no areas, and this library its own.
#[test]
fn with_own_areas_messages_are_written_directly() {
    if std::env::var_os(AGAIN).is_none() {
        run_all_again("with_own_areas_messages_are_written_directly", |command| {
            command.env(TUNABLES, NO_AREAS)
        });
    }
}
