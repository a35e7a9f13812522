//! Messages that fit a frame: checked, counted, waiting, and written for dead producers too.

use std::sync::mpsc::{self, Sender};

use nix::sys::socket::{Shutdown, shutdown};

use super::*;
use crate::channel::{Channel, ChannelRef};
use crate::writers::{Job, reset_all};

#[test]
fn messages_and_losses_are_counted() {
    let daemon = Daemon::new();
    let (producer, channel) = daemon.producer_with("log", "subbuf-size=64:n-subbufs=2");
    let batch = messages(&[b"one", &[7; 65], b"", &[8; 61], &[9; 64], b"full"]);
    producer.send(&Write { lost: 5, ..write(channel, &batch) }.frame(WRITE_REPLY, 3));
    assert_eq!(producer.reply(3), counts(4, 1, 1));
    // Unless asked, the daemon sends no reply.
    producer.send(&write(channel, &messages(&[b"full", b"still"])).frame(0, 4));
    producer.alive();
    daemon.await_counts("log", 4, 1 + 5 + 2);
}

#[test]
fn wrong_buffer_is_refused() {
    let daemon = Daemon::new();
    let (producer, channel) = daemon.producer_with("log", "");
    let bad = Write { cpu: N_CPUS as u32, ..write(channel, b"\x01\0\0\0x") };
    producer.send(&bad.frame(0, 3));
    producer.send(&bad.frame(WRITE_REPLY, 4));
    producer.refused(4, Errno::EINVAL, "channel 'log' has no cpu 2: there are 0 to 1");
    producer.send(&Flush { channel, cpu: 7 }.frame(0, 5));
    producer.refused(5, Errno::EINVAL, "no cpu 7");
    let global = producer.open("all", "global", OPEN_CREATE).unwrap().channel;
    producer.send(&Write { channel: global, ..bad }.frame(WRITE_REPLY, 6));
    assert_eq!(producer.reply(6), counts(1, 0, 0));
    daemon.await_counts("log", 0, 0);
}

#[test]
fn wrong_lengths_write_nothing_and_end_the_connection() {
    let daemon = Daemon::new();
    let (producer, channel) = daemon.producer_with("log", "");
    let (_holder, _) = daemon.producer_with("log", "");
    producer.send(&write(channel, b"\x01\0\0\0x\xff\xff\xff\xffy").frame(0, 3));
    producer.dropped(3, Errno::EPROTO, "malformed write");
    daemon.await_counts("log", 0, 0);

    let (short, _) = daemon.producer_with("log", "");
    let mut frame = Flush { channel, cpu: 0 }.frame(0, 4);
    frame.pop();
    short.send(&frame);
    short.dropped(4, Errno::EPROTO, "20 bytes, the packet has 19");

    let (long, _) = daemon.producer_with("log", "");
    long.send(&vec![1; frame::FRAME_MAX + 1]);
    long.dropped(0, Errno::EMSGSIZE, "65537");
}

#[test]
fn messages_of_dead_producer_are_written() {
    let daemon = Daemon::new();
    let (_holder, _) = daemon.producer_with("log", "");
    for round in 1..=20 {
        let (producer, channel) = daemon.producer_with("log", "");
        // The producer takes no replies: the daemon's next recv() fails with ECONNRESET, before the packets that are
        // there.
        for _ in 0..50 {
            producer.send(&write(channel, &messages(&[b"last words"])).frame(WRITE_REPLY, 3));
        }
        if round % 2 == 0 {
            shutdown(producer.socket.as_raw_fd(), Shutdown::Both).unwrap();
        }
        drop(producer);
        daemon.await_counts("log", round * 50, 0);
    }
}

#[test]
fn waiting_producer_is_held_up_and_loses_nothing() {
    let daemon = Daemon::new();
    let (producer, channel) = daemon.producer_with("log", "subbuf-size=64K:n-subbufs=1:global");
    let held = daemon.registry.hold("log").unwrap();
    // Two of the messages fit.
    let batch = messages(&[&[b'x'; 32 << 10]]);
    let frame = Write { wait_ms: WAIT_FOREVER, ..write(channel, &batch) }.frame(WRITE_REPLY, 3);
    let mut sent = 0;
    while producer.try_send(&frame, MsgFlags::MSG_DONTWAIT).is_ok() {
        sent += 1;
        assert!(sent < 1000, "the daemon takes everything, although no reader makes room");
    }
    assert!(sent > 2);
    for answered in 0..sent {
        if answered % 2 == 0 {
            reset_all(&daemon.writers, &held, |failed| assert!(failed.is_empty()));
        }
        assert_eq!(producer.reply(3), counts(1, 0, 0));
    }
    daemon.await_counts("log", sent, 0);
}

#[test]
fn batches_of_dead_producer_wait_no_longer() {
    let daemon = Daemon::new();
    let (other, channel) = daemon.producer_with("log", "subbuf-size=64K:n-subbufs=1:global");
    let (waiting, same) = daemon.producer_with("log", "");
    let batch = messages(&[&[b'x'; 32 << 10]]);
    let frame = Write { wait_ms: WAIT_FOREVER, ..write(same, &batch) }.frame(0, 3);
    let mut sent = 0;
    while waiting.try_send(&frame, MsgFlags::MSG_DONTWAIT).is_ok() {
        sent += 1;
    }
    drop(waiting);
    daemon.await_counts("log", 2, sent - 2);
    other.send(&write(channel, &messages(&[b"x"])).frame(WRITE_REPLY, 4));
    assert_eq!(other.reply(4), counts(0, 1, 0));
}

#[test]
fn many_producers_share_one_writer() {
    const FRAMES: u64 = 300;
    let daemon = Daemon::new();
    let (_holder, _) = daemon.producer_with("log", "subbuf-size=64K:n-subbufs=2:overwrite:global");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let (producer, channel) = daemon.producer_with("log", "");
                let batch = messages(&[&b"0123456789abcdef"[..]; 1000]);
                for _ in 1..FRAMES {
                    producer.send(&write(channel, &batch).frame(0, 3));
                }
                producer.send(&write(channel, &batch).frame(WRITE_REPLY, 4));
                assert_eq!(producer.reply(4), counts(1000, 0, 0));
            });
        }
    });
    daemon.await_counts("log", 8 * FRAMES * 1000, 0);
}

/// A client that has the answer may remove the channel.
#[test]
fn writer_lets_go_of_a_channel_before_it_answers() {
    type Answer = Sender<bool>;
    type MakeJob = fn(ChannelRef, &Arc<Channel>, Answer) -> Job;
    fn telling<R>(channel: &Arc<Channel>, answer: Answer) -> Box<dyn FnOnce(R) + Send> {
        let channel = Arc::clone(channel);
        Box::new(move |_| answer.send(channel.is_held()).unwrap())
    }
    let jobs: [MakeJob; 5] = [
        |channel, held, answer| {
            let done = telling(held, answer);
            Job::Message { channel, cpu: 0, bytes: b"x".to_vec(), is_own: false, done }
        },
        |channel, held, answer| Job::FlushUnread { done: telling(held, answer), channel, cpu: 0 },
        |channel, held, answer| Job::Flush { done: telling(held, answer), channel, cpu: 0 },
        |channel, held, answer| Job::Reset { done: telling(held, answer), channel, cpu: 0 },
        |channel, held, answer| Job::Close { done: telling(held, answer), channel, cpu: 0 },
    ];
    let daemon = Daemon::new();
    let spec = "subbuf-size=64:n-subbufs=2:global".parse().unwrap();
    daemon.registry.open_permanent(&"log".parse().unwrap(), spec).unwrap();
    let channel = &daemon.registry.all()[0];
    for (number, job) in jobs.into_iter().enumerate() {
        let (answer, is_held) = mpsc::channel();
        daemon.writers.submit_now(job(daemon.registry.hold("log").unwrap(), channel, answer));
        assert!(!is_held.recv_timeout(PATIENCE).unwrap(), "job {number}");
    }
}
