//! Messages over the socket: whole, in order and counted; only callers that ask for it wait.

mod common;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use common::{Daemon, Manners};
use relay::layout::geometry::MESSAGE_MAX;
use relay::wire::frame::WAIT_FOREVER;
use relay_producer::{BatchOptions, Channel, Counts, RequestError, Wait, WriteError};
use tempfile::{TempDir, tempdir};

fn start(manners: Manners) -> (TempDir, Daemon, Arc<Channel>) {
    let dir = tempdir().unwrap();
    let daemon = Daemon::start(&dir, manners);
    let channel = Arc::new(Channel::open(&daemon.socket, "cpu").unwrap());
    (dir, daemon, channel)
}

/// Returns bytes that vary.
fn long_message(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

/// Writes until there is no room, and returns the number of written messages.
fn fill(channel: &Channel) -> usize {
    let message = [b'x'; 4096];
    let n = (0..100_000).take_while(|_| channel.write_to(0, &message).is_ok()).count();
    assert_eq!(channel.write_to(0, &message), Err(WriteError::Full));
    n
}

#[test]
fn messages_arrive_whole_and_in_order() {
    let (_dir, daemon, channel) = start(Manners::default());
    let lengths = [0, 1, 64, 4096, 65_499, 65_504, 65_505, 100_000, MESSAGE_MAX, 5];
    // The default geometry takes 256 KiB; the buffer counts longer messages as too big.
    let expected: Vec<_> =
        lengths.iter().filter(|len| **len <= 256 << 10).map(|len| (2, long_message(*len))).collect();
    for len in lengths {
        let written = channel.write_to(2, &long_message(len));
        let max = 256 << 10;
        assert_eq!(written, if len > max { Err(WriteError::TooBig { len, max }) } else { Ok(()) });
    }
    daemon.wait_for("all messages", |store| store.messages.len() == expected.len());
    let store = daemon.store();
    assert!(store.messages == expected);
    assert_eq!((store.lost, store.given_up), (0, 0));
}

#[test]
fn message_without_a_cpu_goes_to_the_callers() {
    let (_dir, daemon, channel) = start(Manners::default());
    let cpu = nix::sched::sched_getcpu().unwrap();
    let mut only = nix::sched::CpuSet::new();
    only.set(cpu).unwrap();
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &only).unwrap();
    channel.write(b"single").unwrap();
    channel.write_batch(["batched"], BatchOptions::default()).unwrap();
    daemon.wait_for("both", |store| store.messages.len() == 2);
    assert!(daemon.store().messages.iter().all(|(to, _)| *to == cpu as u32));
}

#[test]
fn cpu_without_a_buffer_is_refused_except_by_a_global_channel() {
    let (_dir, _daemon, channel) = start(Manners::default());
    let n_bufs = channel.n_bufs();
    let error = channel.write_to(n_bufs, b"x").unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("no buffer for CPU {n_bufs}: this channel has them for CPUs 0 to {}", n_bufs - 1)
    );
    let options = BatchOptions { cpu: Some(n_bufs), ..BatchOptions::default() };
    assert!(matches!(channel.batch(options), Err(RequestError::NoSuchCpu(_))));

    let (_dir, daemon, channel) = start(Manners { geometry: "global", ..Manners::default() });
    channel.write_to(n_bufs, b"x").unwrap();
    channel.write(b"y").unwrap();
    daemon.wait_for("both", |store| store.messages.len() == 2);
}

#[test]
fn full_socket_drops_and_next_frame_reports_the_number() {
    let (_dir, daemon, channel) = start(Manners::default());
    daemon.take_messages(false);
    let arrived = fill(&channel);
    for _ in 0..9 {
        assert_eq!(channel.write_to(0, &[b'x'; 4096]), Err(WriteError::Full));
    }
    assert_eq!(channel.write_to(1, b"x"), Err(WriteError::Full), "lost on the way to another CPU");
    daemon.take_messages(true);
    daemon.wait_for("what was in the socket", |store| store.messages.len() == arrived);
    channel.write_to(0, b"one more").unwrap();
    daemon.wait_for("the next frame to CPU 0", |store| store.messages.len() == arrived + 1);
    // One more than 9: `fill` ends with one loss.
    assert_eq!(daemon.store().lost, 11);
    channel.flush().unwrap();
    assert_eq!(daemon.store().lost, 12, "a flush tells of the others");
}

#[test]
fn losses_are_reported_at_the_end() {
    let (_dir, daemon, channel) = start(Manners::default());
    daemon.take_messages(false);
    let arrived = fill(&channel);
    daemon.take_messages(true);
    daemon.wait_for("what was in the socket", |store| store.messages.len() == arrived);
    drop(channel);
    daemon.wait_for("the losses", |store| store.lost == 2);
}

#[test]
fn incomplete_long_message_leaves_nothing_behind() {
    let (_dir, daemon, channel) = start(Manners { geometry: "subbuf-size=1M", ..Manners::default() });
    daemon.take_messages(false);
    // It begins, since the socket holds several frames. The socket does not hold all of it twice.
    let long = long_message(MESSAGE_MAX);
    let written = (0..10).map(|_| channel.write_to(0, &long)).take_while(Result::is_ok).count();
    assert!(written < 10);
    daemon.take_messages(true);
    daemon.wait_for("the complete ones", |store| store.messages.len() == written);
    channel.write_to(0, b"after it").unwrap();
    daemon.wait_for("the next one", |store| store.messages.len() == written + 1);
    let store = daemon.store();
    assert_eq!((store.lost, store.given_up), (1, 1));
    assert_eq!(store.messages[written].1, b"after it");
}

#[test]
fn long_message_waiting_for_room_blocks_no_other_writer() {
    let (_dir, daemon, channel) = start(Manners { geometry: "subbuf-size=1M", ..Manners::default() });
    daemon.take_messages(false);
    let long = long_message(MESSAGE_MAX);
    let batch = thread::spawn({
        let (channel, long) = (channel.clone(), long.clone());
        move || {
            let options = BatchOptions { wait: Wait::Forever, ..BatchOptions::default() };
            channel.write_batch(std::iter::repeat_n(long, 5), options)
        }
    });
    // Writes return all the time, and soon fail. The test takes no packet from the socket until they have.
    let mut lost = 0;
    while lost < 100 {
        lost += usize::from(channel.write_to(0, b"short") == Err(WriteError::Full));
    }
    daemon.take_messages(true);
    assert_eq!(batch.join().unwrap().unwrap(), Counts { written: 5, ..Counts::default() });
    channel.flush().unwrap();
    let store = daemon.store();
    assert_eq!((store.lost, store.given_up), (lost as u64, 0));
    assert_eq!(store.messages.iter().filter(|(_, message)| *message == long).count(), 5);
    assert!(store.messages.iter().all(|(_, message)| *message == long || message == b"short"));
}

#[test]
fn batch_counts_its_messages() {
    let manners = Manners { geometry: "subbuf-size=100K", dropped_over: 99, ..Manners::default() };
    let (_dir, daemon, channel) = start(manners);
    // Many frames, with two messages longer than a frame among them, one of which exceeds the message limit.
    let messages = (0..200_000).map(|i| match i {
        70_000 => long_message(90_000),
        80_000 => long_message(MESSAGE_MAX),
        90_000 => long_message(MESSAGE_MAX + 1),
        _ => format!("message {i:06}").into_bytes(),
    });
    let counts =
        channel.write_batch(messages, BatchOptions { cpu: Some(1), ..BatchOptions::default() }).unwrap();
    assert_eq!(counts, Counts { written: 199_997, dropped: 1, too_big: 2 });
    channel.flush().unwrap();
    let store = daemon.store();
    assert!(store.messages.is_sorted(), "messages are out of order");
    assert_eq!(store.messages.len(), 199_997);
    assert_eq!(store.lost, 1, "the one that no frame could hold");
    assert!(store.waits.iter().all(|wait| *wait == 0));
}

#[test]
fn batch_passes_its_wait_to_the_daemon() {
    let (_dir, daemon, channel) = start(Manners::default());
    let waits = [Wait::No, Wait::AtMost(Duration::from_micros(1500)), Wait::Forever];
    for wait in waits {
        channel.write_batch(["x"], BatchOptions { wait, ..BatchOptions::default() }).unwrap();
    }
    assert_eq!(daemon.store().waits, [0, 2, WAIT_FOREVER]);
}

#[test]
fn waiting_batch_blocks_no_other_writer() {
    let (_dir, daemon, channel) = start(Manners { hold: Some(b"wait"), ..Manners::default() });
    let options = BatchOptions { wait: Wait::Forever, ..BatchOptions::default() };
    let waiting = thread::spawn({
        let channel = channel.clone();
        move || channel.write_batch(["wait for it"], options)
    });
    daemon.wait_for("the batch", |store| store.held.len() == 1);
    channel.write(b"meanwhile").unwrap();
    assert_eq!(channel.write_batch(["also"], BatchOptions::default()).unwrap().written, 1);
    channel.flush().unwrap();
    assert!(!waiting.is_finished());
    daemon.release();
    assert_eq!(waiting.join().unwrap().unwrap().written, 1);
}

#[test]
fn batch_takes_messages_one_by_one() {
    let (_dir, daemon, channel) = start(Manners::default());
    let mut batch = channel.batch(BatchOptions::default()).unwrap();
    for round in 1..=3 {
        batch.push(b"one").unwrap();
        batch.push(b"two").unwrap();
        batch.send().unwrap();
        batch.send().unwrap();
        daemon.wait_for("what was sent", |store| store.messages.len() == 2 * round);
    }
    assert_eq!(batch.finish().unwrap().written, 6);
    batch.push(b"seven").unwrap();
    assert_eq!(batch.finish().unwrap().written, 7, "the batch continues");
    assert_eq!(batch.counts().written, 7);
    // A batch dropped with an answer outstanding disturbs no later call.
    batch.push(b"eight").unwrap();
    batch.send().unwrap();
    drop(batch);
    channel.flush().unwrap();
}

#[test]
fn flush_comes_after_earlier_messages() {
    let (_dir, daemon, channel) = start(Manners::default());
    for i in 0..50 {
        channel.write(format!("{i}").as_bytes()).unwrap();
    }
    channel.flush().unwrap();
    assert_eq!(daemon.store().flushes, [50]);
}

#[test]
fn many_threads_write_whole_messages() {
    let (_dir, daemon, channel) = start(Manners { geometry: "subbuf-size=1M", ..Manners::default() });
    let n_threads = 8;
    let started = Instant::now();
    let threads: Vec<_> = (0..n_threads)
        .map(|me| {
            let channel = channel.clone();
            thread::spawn(move || {
                let mut lost = 0;
                for i in 0..300 {
                    let message = format!("{me} {i:05}").into_bytes();
                    match i % 100 {
                        10 => {
                            let options = BatchOptions { cpu: Some(me), wait: Wait::Forever };
                            assert_eq!(channel.write_batch([message], options).unwrap().written, 1);
                        }
                        20 => {
                            let long = [message, long_message(200_000)].concat();
                            lost += usize::from(channel.write_to(me, &long).is_err());
                        }
                        30 => {
                            channel.flush().unwrap();
                            lost += usize::from(channel.write_to(me, &message).is_err());
                        }
                        _ => lost += usize::from(channel.write_to(me, &message).is_err()),
                    }
                }
                lost
            })
        })
        .collect();
    let lost: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    channel.flush().unwrap();
    assert!(started.elapsed() < common::PATIENCE);
    let store = daemon.store();
    assert_eq!(store.messages.len() + lost, n_threads * 300);
    assert_eq!(store.lost, lost as u64);
    for me in 0..n_threads {
        let mine: Vec<_> = store.messages.iter().filter(|(cpu, _)| *cpu as usize == me).collect();
        assert!(mine.is_sorted(), "thread {me} is out of order");
        assert!(mine.iter().all(|(_, message)| message.starts_with(format!("{me} ").as_bytes())));
    }
}
