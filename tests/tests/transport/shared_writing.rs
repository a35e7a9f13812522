//! Messages that producers write into the mounted buffers, and those that they still send over the socket. The rules
//! of one buffer are in `write.rs` and `histories.rs`, many producers at once in `together.rs`.

use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use relay_producer::{BatchOptions, Counts, Wait};
use relayfs_tests::buffer::{READABLE, poll_now};
use relayfs_tests::direct::{is_without_sequences, on_cpu, with_sequences};
use relayfs_tests::numbered::{Random, Tag, message, tags};
use relayfs_tests::{DEADLINE, Mount, eventually, exit_code, program, run, run_with_input, text, tool};

const LONGEST_DIRECT: usize = 64 << 10;

/// Calls a function at the end of a test, also after a panic.
struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        self.0();
    }
}

fn on_cpu_0(wait: Wait) -> BatchOptions {
    BatchOptions { cpu: Some(0), wait }
}

/// Returns the number of messages that the daemon should have written, of `direct` ones of a producer and `others`.
fn counted(direct: u64, others: u64) -> u64 {
    others + if is_without_sequences() { direct } else { 0 }
}

/// Reads a file to its end, and calls `each` for each piece.
fn read_in_pieces(mount: &Mount, file: &str, mut each: impl FnMut(&[u8])) {
    let mut file = File::open(mount.path(file)).unwrap();
    let mut piece = vec![0; 1 << 20];
    loop {
        let len = file.read(&mut piece).unwrap();
        if len == 0 {
            return;
        }
        each(&piece[..len]);
    }
}

/// One sub-buffer of 64 bytes, three of 64 MiB: messages that fit are written to the last byte, others are dropped.
#[test]
fn sub_buffers_of_any_size_are_filled_to_the_last_byte() {
    const M: usize = 1 << 20;
    for (size, n_subbufs, len) in [
        (64, 1, 20),
        (64, 1, 64),
        (64, 3, 64),
        (64, 3, 63),
        (64, 8, 1),
        (64 * M, 1, LONGEST_DIRECT),
        (64 * M, 3, LONGEST_DIRECT - 1),
    ] {
        let what = format!("messages of {len} in {size} x {n_subbufs}");
        let args = [format!("--subbuf-size={size}"), format!("--n-subbufs={n_subbufs}")];
        let mount = Mount::new(&[&args[0], &args[1], "--max-memory=2G"]);
        let channel = mount.direct_channel("cpu");
        let n_room = n_subbufs * (size / len);
        let message = |i: usize| vec![(i % 251) as u8; len];
        let messages = (0..n_room + 5).map(message);
        let counts = on_cpu(0, || channel.write_batch(messages, on_cpu_0(Wait::No))).unwrap();
        let written = n_room as u64;
        assert_eq!(counts, Counts { written, dropped: 5, too_big: 0 }, "{what}");
        let mut at = 0;
        read_in_pieces(&mount, "cpu0", |piece| {
            let mut rest = piece;
            while !rest.is_empty() {
                let (part, next) = rest.split_at(rest.len().min(len - at % len));
                assert!(part.iter().all(|byte| *byte == (at / len % 251) as u8), "{what}, at {at}");
                (at, rest) = (at + part.len(), next);
            }
        });
        assert_eq!(at, n_room * len, "{what}");
        let stats = mount.stats("cpu");
        assert_eq!((stats["cpu0.dropped"], stats["cpu0.written"]), (5, counted(written, 0)), "{what}");
        assert_eq!(on_cpu(0, || channel.write_batch([message(0)], on_cpu_0(Wait::No))).unwrap().written, 1);
    }
}

/// A thread writes to the buffer of its CPU. It sends messages for other CPUs, and long ones, over the socket.
#[test]
fn messages_for_other_cpus_and_long_ones_go_over_the_socket() {
    let mount = Mount::new(&["--subbuf-size=2M"]);
    let channel = mount.direct_channel("cpu");
    for here in 0..channel.n_bufs() {
        let before = mount.stats("cpu");
        on_cpu(here, || {
            for cpu in 0..channel.n_bufs() {
                channel.write_to(cpu, format!("from {here} to {cpu}").as_bytes()).unwrap();
            }
        });
        channel.flush().unwrap();
        let stats = mount.stats("cpu");
        for cpu in 0..channel.n_bufs() {
            let name = format!("cpu{cpu}.written");
            let other = u64::from(cpu != here);
            assert_eq!(stats[&name] - before[&name], counted(1 - other, other), "from {here} to {cpu}");
            assert_eq!(text(&mount.read(&format!("cpu{cpu}"))), format!("from {here} to {cpu}"));
        }
    }
    let before = mount.stats("cpu");
    on_cpu(0, || {
        for len in [LONGEST_DIRECT, LONGEST_DIRECT + 1, 1 << 20] {
            // With an answer: otherwise a slow daemon would drop a long message.
            let counts = channel.write_batch([vec![b'x'; len]], BatchOptions::default()).unwrap();
            assert_eq!(counts.written, 1);
        }
    });
    assert_eq!(mount.stats("cpu")["cpu0.written"] - before["cpu0.written"], counted(1, 2));
    assert_eq!(mount.read("cpu0").len(), 2 * LONGEST_DIRECT + 1 + (1 << 20));
}

/// A process that may run on one CPU only writes to that buffer directly, and to the others over the socket.
#[test]
fn message_for_forbidden_cpu_goes_over_the_socket() {
    let mount = Mount::prepared(&[], with_sequences);
    let written = || ["cpu0", "cpu1"].map(|cpu| mount.stats("cpu")[&format!("{cpu}.written")]);
    for (on, to, counted) in
        [("0", None, [0, 0]), ("1", None, [0, 0]), ("1", Some("0"), [1, 0]), ("0", Some("1"), [1, 1])]
    {
        let mut command = tool("taskset", "util-linux");
        command.args(["-c", on]).arg(program("relay-producer")).arg("-m").arg(mount.point());
        command.args(to.map(|cpu| format!("--cpu={cpu}"))).args(["--transport=shared", "message"]);
        let output = run(with_sequences(&mut command));
        assert_eq!((exit_code(output.status), text(&output.stderr)), (0, String::new()));
        assert_eq!(text(&mount.read(&format!("cpu{}", to.unwrap_or(on)))), "message\n", "on {on} to {to:?}");
        assert_eq!(written(), counted, "on {on} to {to:?}");
    }
}

/// Flushing finishes the sub-buffer of earlier direct messages, and the sub-buffers of all other CPUs.
#[test]
fn flush_finishes_earlier_direct_messages() {
    let mount = Mount::new(&["--n-subbufs=64", "--subbuf-size=4K"]);
    let channel = mount.direct_channel("cpu");
    let n_bufs = channel.n_bufs();
    let files: Vec<File> =
        (0..n_bufs).map(|cpu| File::open(mount.path(&format!("cpu{cpu}"))).unwrap()).collect();
    for round in 1..=50 {
        on_cpu(0, || {
            channel.write(format!("{round} ").as_bytes()).unwrap();
            channel.flush().unwrap();
        });
        assert!(files.iter().all(|file| poll_now(file) == READABLE));
        let stats = mount.stats("cpu");
        for cpu in 0..n_bufs {
            assert_eq!(stats[&format!("cpu{cpu}.produced")], round);
        }
        assert_eq!(text(&mount.read("cpu0")), format!("{round} "));
        (1..n_bufs).for_each(|cpu| assert_eq!(mount.read(&format!("cpu{cpu}")), b""));
    }
    assert_eq!(mount.stats("cpu")["total.written"], counted(50, 0));
}

/// A batch that waits for room loses nothing to a reader that reads only full buffers, and continues directly when
/// there is room.
#[test]
fn waiting_batch_loses_nothing_and_continues_directly() {
    const N: u32 = 20_000;
    let mount = Mount::new(&["--subbuf-size=4096", "--n-subbufs=2"]);
    let channel = mount.direct_channel("cpu");
    let done = AtomicBool::new(false);
    let stream = thread::scope(|scope| {
        scope.spawn(|| {
            let message = |seq| message(Tag { producer: 0, thread: 0, seq }, 20 + seq as usize % 400);
            let counts =
                on_cpu(0, || channel.write_batch((0..N).map(message), on_cpu_0(Wait::AtMost(DEADLINE))))
                    .unwrap();
            assert_eq!(counts, Counts { written: N.into(), ..Counts::default() });
            done.store(true, Ordering::SeqCst);
        });
        let (mut stream, mut block) = (Vec::new(), [0; 4096]);
        let mut file = File::open(mount.path("cpu0")).unwrap();
        while !done.load(Ordering::SeqCst) {
            eventually("a full buffer, or the end", || {
                let stats = mount.stats("cpu");
                stats["cpu0.produced"] - stats["cpu0.consumed"] == 2 || done.load(Ordering::SeqCst)
            });
            let len = file.read(&mut block).unwrap();
            stream.extend_from_slice(&block[..len]);
        }
        file.read_to_end(&mut stream).unwrap();
        stream
    });
    assert!(tags(&stream).iter().map(|tag| tag.seq).eq(0..N), "each of them once, in order");
    let stats = mount.stats("cpu");
    assert_eq!(stats["cpu0.dropped"], 0);
    assert_eq!(stats["cpu0.written"] < N.into(), !is_without_sequences(), "{}", stats["cpu0.written"]);

    // A batch with a time limit gives up, and returns the number of lost messages.
    mount.poke("cpu", "reset");
    let wait = Wait::AtMost(Duration::from_millis(30));
    let counts = on_cpu(0, || channel.write_batch([[0; 1024]; 12], on_cpu_0(wait))).unwrap();
    assert_eq!((counts.written, counts.dropped), (8, 4));
    assert_eq!(mount.stats("cpu")["cpu0.dropped"], 4);
}

/// A reset during writes discards only unread data. Each byte and each loss is counted.
#[test]
fn reset_during_writes_discards_unread_data_only() {
    for mode in ["--header=16", "--overwrite"] {
        let mount = Mount::new(&["--subbuf-size=4096", "--n-subbufs=3", mode]);
        let channel = mount.direct_channel("cpu");
        let done = AtomicBool::new(false);
        let (n_bytes, n_dropped) = thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let (mut random, mut n_bytes, mut n_dropped) = (Random::new(7), 0, 0);
                on_cpu(0, || {
                    while !done.load(Ordering::SeqCst) {
                        let message = vec![b'm'; random.below(1000)];
                        let counts = channel.write_batch([&message], on_cpu_0(Wait::No)).unwrap();
                        assert_eq!(counts.written + counts.dropped, 1);
                        n_bytes += counts.written * message.len() as u64;
                        n_dropped += counts.dropped;
                    }
                });
                (n_bytes, n_dropped)
            });
            // The scope waits for the other thread even if this one panics.
            let _end = OnDrop(|| done.store(true, Ordering::SeqCst));
            let bytes = || mount.stats("cpu")["cpu0.bytes"];
            for i in 0..100 {
                mount.poke("cpu", "reset");
                let before = bytes();
                eventually("some messages more, or a full buffer", || {
                    let stats = mount.stats("cpu");
                    bytes() > before || stats["cpu0.produced"] - stats["cpu0.consumed"] == 3
                });
                if i % 3 == 0 {
                    mount.poke("cpu", "flush");
                }
            }
            done.store(true, Ordering::SeqCst);
            writer.join().unwrap()
        });
        mount.poke("cpu", "reset");
        let stats = mount.stats("cpu");
        let stat = |name: &str| stats[&format!("cpu0.{name}")];
        assert_eq!(stat("dropped"), n_dropped, "{mode}");
        let headers = stat("bytes") - n_bytes;
        assert!(if mode == "--overwrite" { headers == 0 } else { headers > 0 && headers.is_multiple_of(16) });
        let unread = if mode == "--overwrite" { 0 } else { 16 };
        let accounted = stat("discarded_bytes") + stat("overwritten_bytes") + unread;
        assert_eq!(stat("bytes"), accounted, "{mode}");
        assert!(stat("discarded_bytes") > 0, "{mode}: or this test shows nothing");
    }
}

/// `relay-producer` counts too big messages by their cause, even those that it never sends.
#[test]
fn command_counts_skipped_messages() {
    let mount = Mount::prepared(&["--subbuf-size", "4096"], with_sequences);
    let (fits, over, huge) = ("f".repeat(4095), "o".repeat(4096), "h".repeat(5 << 20));
    let input = format!("one\n{fits}\n{over}\n\n{huge}\nsix\n{huge}");
    let mut command = tool("taskset", "util-linux");
    command.args(["-c", "0"]).arg(program("relay-producer")).arg("-m").arg(mount.point());
    let output = run_with_input(with_sequences(&mut command).arg("--transport=shared"), input.as_bytes());
    assert_eq!(exit_code(output.status), 3);
    let said = text(&output.stderr);
    let last =
        "relay-producer: 3 of 7 messages dropped: 3 longer than a message of this channel may be, 4096 bytes";
    assert_eq!(said.lines().last(), Some(last), "{said}");
    assert!(mount.read("cpu0") == format!("one\n{fits}\n\nsix\n").as_bytes());
    let stats = mount.stats("cpu");
    assert_eq!((stats["cpu0.too_big"], stats["cpu0.dropped"], stats["cpu0.written"]), (3, 0, 0));
}
