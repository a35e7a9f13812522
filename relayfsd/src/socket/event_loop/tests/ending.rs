//! The end of the server: what was sent is taken, and what waits for room is handed back or dropped.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};

use super::long_writes::long_frames;
use frame::HEADER_LEN;

use super::*;
use crate::channel::ChannelRef;
use crate::writers::{Batch, Job, Wait, WaitEnd, close_all, reset_all};

#[test]
fn stop_takes_the_frames_in_the_sockets() {
    let mut daemon = Daemon::new();
    let (producer, channel) = daemon.producer_with("log", "subbuf-size=64K:n-subbufs=2:overwrite:global");
    let mut sent = 0;
    while sent < 2000
        && producer.try_send(&write(channel, &messages(&[b"x"])).frame(0, 3), MsgFlags::MSG_DONTWAIT).is_ok()
    {
        sent += 1;
    }
    let held = daemon.registry.hold("log").unwrap();
    daemon.server.take().unwrap().stop();
    daemon.await_counts("log", sent, 0);
    assert_eq!(producer.receive(), None);
    drop(held);
}

/// Frames come at every step of the end. One that the socket took is written.
#[test]
fn frame_sent_during_the_end_is_written_or_refused() {
    for _ in 0..50 {
        let mut daemon = Daemon::new();
        let (producer, channel) = daemon.producer_with("log", "subbuf-size=64K:n-subbufs=2:overwrite:global");
        let held = daemon.registry.hold("log").unwrap();
        let frame = write(channel, &messages(&[b"x"])).frame(0, 3);
        let begun = AtomicBool::new(false);
        let sent = std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let mut sent = 0;
                loop {
                    match producer.try_send(&frame, MsgFlags::empty()) {
                        Ok(_) => sent += 1,
                        Err(error) => break (sent, error),
                    }
                    begun.store(true, Ordering::SeqCst);
                }
            });
            await_that(|| begun.load(Ordering::SeqCst), || "nothing is sent".into());
            daemon.server.take().unwrap().stop();
            let (sent, error) = sender.join().unwrap();
            assert_eq!(error, Errno::EPIPE);
            sent
        });
        daemon.await_counts("log", sent, 0);
        drop(held);
    }
}

#[test]
fn waiting_messages_are_handed_back_on_request() {
    let mut daemon = Daemon::new();
    let (asking, channel) = daemon.producer_with("log", "subbuf-size=64K:n-subbufs=1:global");
    // A producer of an earlier release, and one that could not know what it has again.
    let (other, same) = daemon.producer_with("log", "");
    let message = [b'x'; 16 << 10];
    let (three, nothing) = (messages(&[&message[..]; 3]), messages(&[b""]));
    let forever = |channel, messages| Write { wait_ms: WAIT_FOREVER, ..write(channel, messages) };
    let flags = WRITE_REPLY | WRITE_HAND_BACK;
    asking.send(&forever(channel, &three).frame(flags, 3));
    assert_eq!(asking.reply(3), counts(3, 0, 0));
    // One of these fits. The next frame could be written whole, but would be before messages that are older.
    asking.send(&forever(channel, &three).frame(flags, 4));
    asking.send(&forever(channel, &nothing).frame(flags, 5));
    let long = vec![b'x'; frame::WRITE_ROOM + 1];
    for mut frame in long_frames(channel, &long, 40_000, flags, 6) {
        frame[HEADER_LEN + 8..HEADER_LEN + 12].copy_from_slice(&WAIT_FOREVER.to_le_bytes());
        asking.send(&frame);
    }
    asking.send(&write(channel, &three).frame(flags, 7)); // does not wait
    assert_eq!(asking.reply(7), counts(0, 3, 0));
    other.send(&forever(same, &three).frame(WRITE_REPLY, 8));
    other.send(&forever(same, &three).frame(WRITE_HAND_BACK, 9));
    other.alive();
    daemon.await_counts("log", 4, 3);

    let held = daemon.registry.hold("log").unwrap();
    daemon.server.take().unwrap().stop();
    for (id, written) in [(4, 1), (5, 0), (6, 0)] {
        assert_eq!(asking.reply(id), counts(written, 0, 0), "{id}");
    }
    assert_eq!(asking.receive(), None);
    assert_eq!(other.reply(8), counts(0, 3, 0));
    daemon.await_counts("log", 4, 3 + 3 + 3);
    drop(held);
}

/// The end is no reason to hand back what can be written.
#[test]
fn messages_with_room_are_written_at_the_end() {
    let mut daemon = Daemon::new();
    let (producer, channel) = daemon.producer_with("log", "subbuf-size=64K:n-subbufs=2:overwrite:global");
    let batch = messages(&[b"x"]);
    let frame =
        Write { wait_ms: WAIT_FOREVER, ..write(channel, &batch) }.frame(WRITE_REPLY | WRITE_HAND_BACK, 3);
    let mut sent = 0;
    while sent < 100 && producer.try_send(&frame, MsgFlags::MSG_DONTWAIT).is_ok() {
        sent += 1;
    }
    let held = daemon.registry.hold("log").unwrap();
    daemon.server.take().unwrap().stop();
    daemon.await_counts("log", sent, 0);
    (0..sent).for_each(|_| assert_eq!(producer.reply(3), counts(1, 0, 0)));
    drop(held);
}

/// Messages that wait for room of a channel, from a producer that takes them back.
struct Waiting<'a> {
    daemon: &'a Daemon,
    channel: ChannelRef,
    wait_end: Arc<WaitEnd>,
    replies: (Sender<WriteReply>, Receiver<WriteReply>),
}

impl Waiting<'_> {
    fn new<'a>(daemon: &'a Daemon, channel: &ChannelRef) -> Waiting<'a> {
        Waiting { daemon, channel: channel.clone(), wait_end: Arc::default(), replies: mpsc::channel() }
    }

    fn submit(&self, message: &[u8]) {
        let sender = self.replies.0.clone();
        let batch = Batch {
            channel: self.channel.clone(),
            cpu: 0,
            bytes: messages(&[message]),
            single: false,
            lost: 0,
            counts: WriteReply::default(),
            wait: Wait::Forever,
            hand_back: true,
            wait_end: Arc::clone(&self.wait_end),
            done: Some(Box::new(move |result| sender.send(result.unwrap()).unwrap())),
        };
        assert!(self.daemon.writers.submit(Job::Write(batch)).is_ok());
    }

    /// Returns how many messages the next reply counts: the others are handed back.
    fn counted(&self) -> u64 {
        self.replies.1.recv_timeout(PATIENCE).unwrap().total()
    }
}

/// Room that a reader makes during the end lets no message overtake those that were handed back.
#[test]
fn nothing_is_written_behind_handed_back_messages() {
    let daemon = Daemon::new();
    let (_holder, _) = daemon.producer_with("log", "subbuf-size=64:n-subbufs=1:global");
    let held = daemon.registry.hold("log").unwrap();
    let waiting = Waiting::new(&daemon, &held);
    waiting.submit(&[b'x'; 64]);
    assert_eq!(waiting.counted(), 1);
    waiting.submit(b"waits");
    daemon.writers.settle(PATIENCE);
    assert!(waiting.wait_end.daemon_ends());
    daemon.writers.sweep();
    assert_eq!(waiting.counted(), 0);
    reset_all(&daemon.writers, &held, |failed| assert!(failed.is_empty()));
    waiting.submit(b"overtakes");
    assert_eq!(waiting.counted(), 0);
    assert_eq!(held.total().written, 1);
}

/// A writer may come to a message only when the end has closed its buffer. That is no loss.
#[test]
fn message_for_a_closed_buffer_is_handed_back_at_the_end() {
    let daemon = Daemon::new();
    let (_holder, _) = daemon.producer_with("log", "subbuf-size=64:n-subbufs=2:global");
    let held = daemon.registry.hold("log").unwrap();
    let waiting = Waiting::new(&daemon, &held);
    assert!(waiting.wait_end.daemon_ends());
    close_all(&daemon.writers, &held, PATIENCE);
    waiting.submit(b"late");
    assert_eq!(waiting.counted(), 0);
    assert_eq!((held.total().written, held.total().dropped), (0, 0));
}
