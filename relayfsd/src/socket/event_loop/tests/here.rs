//! Which thread writes a frame: the one that receives it, or the writer of its buffer behind earlier jobs.

use std::sync::mpsc::{self, Sender};

use super::*;
use crate::channel::ChannelRef;
use crate::writers::{Job, Unavailable};

/// Frames that are certainly enough for a look whether a channel is still shared.
const MANY: u64 = 1000;

/// A job that its writer does not finish until this is dropped.
struct Busy {
    _release: Sender<()>,
}

impl Busy {
    fn new(daemon: &Daemon, channel: &ChannelRef) -> Busy {
        let (begun, has_begun) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let done = Box::new(move |_: Result<(), Unavailable>| {
            begun.send(()).unwrap();
            let _ = released.recv();
        });
        daemon.writers.submit_now(Job::Flush { channel: channel.clone(), cpu: 0, done });
        has_begun.recv_timeout(PATIENCE).unwrap();
        Busy { _release: release }
    }
}

fn send(producer: &Producer, channel: u32, message: &[u8], id: u32) {
    producer.send(&write(channel, &messages(&[message])).frame(WRITE_REPLY, id));
}

/// Waits until the buffer's writer has no job left, so that the next frame is written without it.
fn settle(daemon: &Daemon, producer: &Producer, channel: u32) {
    send(producer, channel, b"", 1);
    assert_eq!(producer.reply(1), counts(1, 0, 0));
    daemon.writers.settle(PATIENCE);
}

/// Reads to the end, and gives back what is finished.
fn unread(channel: &ChannelRef) -> Vec<u8> {
    let (mut bytes, mut len) = (Vec::new(), usize::MAX);
    while bytes.len() != len {
        len = bytes.len();
        channel.read_side(0).reader.read(1 << 20, &mut Vec::new(), |lent| assert!(lent.copy_to(&mut bytes)));
    }
    bytes
}

#[test]
fn frame_is_written_while_the_writer_is_busy_elsewhere() {
    let daemon = Daemon::new();
    for (name, other, geometry) in [("log", "other", ""), ("all", "others", "global")] {
        let (producer, channel) = daemon.producer_with(name, geometry);
        let (_other, _) = daemon.producer_with(other, geometry);
        settle(&daemon, &producer, channel);
        let busy = Busy::new(&daemon, &daemon.registry.hold(other).unwrap());
        send(&producer, channel, b"now", 3);
        assert_eq!(producer.reply(3), counts(1, 0, 0), "{name}");
        producer.send(&Flush { channel, cpu: 0 }.frame(0, 4));
        producer.done(FrameType::Flush, 4);
        drop(busy);
        assert_eq!(unread(&daemon.registry.hold(name).unwrap()), b"now", "{name}");
    }
}

#[test]
fn frames_stay_behind_earlier_jobs_of_their_buffer() {
    let daemon = Daemon::new();
    let (producer, channel) = daemon.producer_with("log", "");
    let held = daemon.registry.hold("log").unwrap();
    settle(&daemon, &producer, channel);
    let busy = Busy::new(&daemon, &held);
    for (id, message) in [&b"a"[..], b"b", b"c"].into_iter().enumerate() {
        send(&producer, channel, message, id as u32);
        // The daemon has taken the frame.
        producer.alive();
    }
    assert_eq!(unread(&held), b"");
    drop(busy);
    (0..3).for_each(|id| assert_eq!(producer.reply(id), counts(1, 0, 0)));
    daemon.writers.settle(PATIENCE);
    send(&producer, channel, b"d", 3);
    assert_eq!(producer.reply(3), counts(1, 0, 0));
    assert_eq!(unread(&held), b"abcd");
}

/// What has no room waits with its buffer's writer. What follows may overtake it only if it does not wait.
#[test]
fn rest_of_a_frame_waits_and_keeps_its_place() {
    let daemon = Daemon::new();
    let (producer, channel) = daemon.producer_with("log", "subbuf-size=64:n-subbufs=1:global");
    let held = daemon.registry.hold("log").unwrap();
    settle(&daemon, &producer, channel);
    let wait = |batch: &[&[u8]], id| {
        let batch = messages(batch);
        let write = Write { wait_ms: WAIT_FOREVER, lost: 2, ..write(channel, &batch) };
        producer.send(&write.frame(WRITE_REPLY, id));
    };
    wait(&[&[b'a'; 40], &[b'b'; 40], &[b'c'; 20]], 3);
    wait(&[&[b'd'; 60]], 4);
    send(&producer, channel, &[b'x'; 64], 5);
    assert_eq!(producer.reply(5), counts(0, 1, 0));
    let mut read = unread(&held);
    daemon.writers.make_room(&held, 0);
    assert_eq!(producer.reply(3), counts(3, 0, 0), "the first message counts once");
    // The next batch has found no room, and finished the sub-buffer.
    daemon.writers.settle(PATIENCE);
    read.extend(unread(&held));
    daemon.writers.make_room(&held, 0);
    assert_eq!(producer.reply(4), counts(1, 0, 0));
    read.extend(unread(&held));
    let expected = [[b'a'; 40].as_slice(), &[b'b'; 40], &[b'c'; 20], &[b'd'; 60]].concat();
    assert_eq!(read, expected);
    // The empty message of `settle` counts, and each frame's losses once.
    daemon.await_counts("log", 1 + 4, 1 + 2 * 2);
}

#[test]
fn shared_channel_is_left_to_its_writer_until_its_producers_are_gone() {
    let daemon = Daemon::new();
    let (producer, channel) = daemon.producer_with("log", "overwrite");
    let held = daemon.registry.hold("log").unwrap();
    settle(&daemon, &producer, channel);
    // As a producer has them that got them by SHARE.
    let files = held.share(true).unwrap();
    let (_other, _) = daemon.producer_with("other", "");
    let other = daemon.registry.hold("other").unwrap();
    for _ in 0..MANY {
        send(&producer, channel, b"x", 3);
        assert_eq!(producer.reply(3), counts(1, 0, 0));
    }
    let busy = Busy::new(&daemon, &other);
    send(&producer, channel, b"x", 4);
    producer.alive();
    assert_eq!(held.total().written, 1 + MANY);
    drop(busy);
    assert_eq!(producer.reply(4), counts(1, 0, 0));

    drop(files);
    for _ in 0..MANY {
        send(&producer, channel, b"x", 5);
        assert_eq!(producer.reply(5), counts(1, 0, 0));
    }
    settle(&daemon, &producer, channel);
    let busy = Busy::new(&daemon, &other);
    send(&producer, channel, b"x", 6);
    assert_eq!(producer.reply(6), counts(1, 0, 0));
    drop(busy);
}

/// The daemon never waits for a producer that takes no replies.
#[test]
fn producer_that_takes_no_replies_holds_up_no_other() {
    let daemon = Daemon::new();
    let (stopped, same) = daemon.producer_with("log", "overwrite:global");
    let (producer, channel) = daemon.producer_with("log", "");
    let frame = write(same, &messages(&[b"stopped"])).frame(WRITE_REPLY, 3);
    let mut sent = 0;
    // Until the daemon has hung up.
    while stopped.try_send(&frame, MsgFlags::empty()).is_ok() {
        sent += 1;
        send(&producer, channel, b"x", 4);
        assert_eq!(producer.reply(4), counts(1, 0, 0));
    }
    let written = || daemon.registry.hold("log").unwrap().total().written;
    assert!(written() > sent, "{} of {sent} and as many", written());
}
