//! The library reads in mappings: whole sub-buffers, each once, given back by number, with a bell.

use std::thread;
use std::time::{Duration, Instant};

use audience::{ReadError, Reader};
use nix::sys::signal::Signal;
use relay_producer::{BatchOptions, Wait};
use relayfs_tests::direct::on_cpu;
use relayfs_tests::users::{
    GROUP, NOBODY, USER, by_user, copied_for_all, gid_of, mount_for_all, program_for_all,
};
use relayfs_tests::{DEADLINE, Mount, exit_code, program, run, text, tool};

fn deadline() -> Option<Instant> {
    Some(Instant::now() + DEADLINE)
}

/// Takes all finished sub-buffers of a CPU, and gives them back.
#[track_caller]
fn take(reader: &mut Reader, cpu: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(sub_buffer) = reader.next_finished(cpu) {
        assert!(sub_buffer.is_whole());
        sub_buffer.copy_to(&mut bytes);
    }
    reader.release(cpu).expect("giving back");
    bytes
}

/// A waiting producer and a reader of its mapping: every byte once, in order, and the files agree that it was read.
#[test]
fn reader_of_mappings_loses_nothing_of_waiting_producer() {
    const MESSAGES: u64 = 200_000;
    for subbuf_size in ["4K", "64K"] {
        let mount = Mount::new(&["--subbuf-size", subbuf_size, "--n-subbufs=3"]);
        let mut reader = Reader::open(mount.point(), "cpu").unwrap();
        assert_eq!(reader.n_bufs(), mount.channel("cpu").n_bufs());
        let channel = mount.direct_channel("cpu");
        let writer = thread::spawn(move || {
            on_cpu(0, || {
                let messages = (0..MESSAGES).map(u64::to_le_bytes);
                let options = BatchOptions { cpu: Some(0), wait: Wait::Forever };
                let counts = channel.write_batch(messages, options).unwrap();
                assert_eq!(counts.written, MESSAGES);
            });
            channel.flush().unwrap();
        });
        let mut next = 0;
        while next < MESSAGES {
            assert!(reader.wait(deadline()).unwrap(), "more to come, after {next}");
            for message in take(&mut reader, 0).chunks(8) {
                assert_eq!(message, next.to_le_bytes());
                next += 1;
            }
        }
        writer.join().unwrap();
        let stats = mount.stats("cpu");
        assert_eq!(stats["cpu0.read_bytes"], 8 * MESSAGES);
        assert_eq!((stats["cpu0.dropped"], stats["cpu0.discarded_bytes"]), (0, 0));
        assert!(mount.read("cpu0").is_empty());
    }
}

/// The second reader that gives back the same range gets an error, gives back nothing, and continues with unread
/// data.
#[test]
fn second_reader_of_same_range_gets_error() {
    let mount = Mount::new(&["--subbuf-size=4K", "--n-subbufs=4"]);
    let (mut one, mut other) =
        (Reader::open(mount.point(), "cpu").unwrap(), Reader::open_cpu(mount.point(), "cpu", 0).unwrap());
    for message in ["first", "second", "third"] {
        mount.send(0, &[message.as_bytes()]);
        mount.poke("cpu", "flush");
    }
    assert_eq!(one.next_finished(0).unwrap().number, 0);
    assert_eq!(other.next_finished(0).unwrap().number, 0);
    assert_eq!(other.next_finished(0).unwrap().number, 1);
    one.release(0).unwrap();
    assert!(matches!(other.release(0), Err(ReadError::Stale)));
    let second = other.next_finished(0).unwrap();
    assert_eq!((second.number, second.len()), (1, 6));
    assert_eq!(take(&mut other, 0), b"third");
    assert_eq!(mount.stats("cpu")["cpu0.consumed"], 3);
    assert!(one.next_finished(0).is_none(), "what the other has read is not seen");
    one.release(0).unwrap();
    // Its files are only those of its CPU.
    assert!(other.next_finished(1).is_none());
    other.release(1).unwrap();
}

/// `cat` reads what is written so far, and the reader of mappings the rest.
#[test]
fn bytes_that_cat_has_read_do_not_come_again() {
    for mode in [&[][..], &["--overwrite"]] {
        let mount = Mount::new(&[&["--subbuf-size=4K", "--n-subbufs=4"], mode].concat());
        let mut reader = Reader::open(mount.point(), "cpu").unwrap();
        for round in 0..6 {
            mount.send(0, &[b"for cat"]);
            assert_eq!(mount.read("cpu0"), b"for cat");
            mount.send(0, &[b"for the other"]);
            mount.poke("cpu", "flush");
            // The daemon publishes a read shortly after its reply, with the lock that this look takes.
            assert_eq!(mount.stats("cpu")["cpu0.read_bytes"], 20 * round + 7);
            assert_eq!(text(&take(&mut reader, 0)), "for the other", "{mode:?}, round {round}");
        }
    }
}

#[test]
fn switch_and_end_wake_waiting_reader() {
    let mut mount = Mount::new(&["--subbuf-size=4K"]);
    let mut reader = Reader::open(mount.point(), "cpu").unwrap();
    assert!(!reader.wait(Some(Instant::now() + Duration::from_millis(20))).unwrap());
    let last = mount.channel("cpu").n_bufs() - 1;
    for round in 0..20u8 {
        let waiting = thread::spawn(move || {
            assert!(reader.wait(deadline()).unwrap());
            reader
        });
        // An unfinished sub-buffer wakes no reader.
        let channel = mount.direct_channel("cpu");
        on_cpu(last, || channel.write(&[round; 100]).unwrap());
        channel.sync().unwrap();
        mount.poke("cpu", "flush");
        reader = waiting.join().unwrap();
        let got = take(&mut reader, last);
        assert!(got == [round; 100], "round {round}: {} bytes", got.len());
        (0..last).for_each(|cpu| assert!(take(&mut reader, cpu).is_empty())); // the flush finished these, too
    }
    mount.send(0, &[b"last"]);
    mount.poke("cpu", "flush");
    (0..reader.n_bufs()).for_each(|cpu| assert!(take(&mut reader, cpu).len() <= 4));
    let waiting = thread::spawn(move || {
        let waited = reader.wait(deadline());
        assert!(matches!(waited, Err(ReadError::Gone)), "{waited:?}");
    });
    assert!(mount.end(Signal::SIGTERM).success());
    waiting.join().unwrap();
}

/// In overwrite mode, numbers show the skipped sub-buffers. The reader gives back none that the writer has taken.
#[test]
fn reader_skips_overwritten_sub_buffers() {
    let mount = Mount::new(&["--subbuf-size=4K", "--n-subbufs=4", "--overwrite"]);
    let mut reader = Reader::open(mount.point(), "cpu").unwrap();
    let write = |n: u8| assert_eq!(mount.send(0, &[&[n; 3000]]).written, 1);
    (0..3).for_each(write);
    assert_eq!(reader.next_finished(0).unwrap().number, 0);
    (3..10).for_each(write);
    assert!(matches!(reader.release(0), Err(ReadError::Stale)));
    let numbers: Vec<u64> = std::iter::from_fn(|| Some(reader.next_finished(0)?.number)).collect();
    assert_eq!(numbers, [6, 7, 8]);
    reader.release(0).unwrap();
    assert_eq!(mount.read("cpu0"), [9; 3000]);
}

/// The right to read the mount's files is the right to map the buffers, without privilege.
#[test]
fn user_who_may_read_may_map() {
    let mount = mount_for_all(&["--group", GROUP, "--socket-mode=0666"]);
    let mapped = program_for_all("test-mapped");
    let by = |uid, gid| run(by_user(uid, gid, &mapped).arg(mount.point()).arg("cpu"));
    for (uid, gid) in [(0, 0), (NOBODY, gid_of(GROUP))] {
        mount.send(1, &[b"for those who may"]);
        mount.poke("cpu", "flush");
        let output = by(uid, gid);
        assert_eq!(text(&output.stdout), "for those who may", "uid {uid}: {}", text(&output.stderr));
    }
    // A supplementary group counts too, which only the process has.
    mount.send(1, &[b"for those of the group"]);
    mount.poke("cpu", "flush");
    let copied = copied_for_all(&[program("test-mapped")]);
    let mut command = tool("setpriv", "util-linux");
    command.args(["--reuid=1000", "--regid=1000", &format!("--groups={GROUP}")]);
    let output = run(command.arg(copied.path().join("test-mapped")).arg(mount.point()).arg("cpu"));
    assert_eq!(text(&output.stdout), "for those of the group", "{}", text(&output.stderr));

    let output = by(USER, USER);
    assert_eq!(exit_code(output.status), 1);
    assert_eq!(text(&output.stderr), format!("uid {USER} may not read the channel's files\n"));
}
