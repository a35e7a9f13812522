//! A daemon that ends hands back the messages that wait for room: the next one gets them, once and in order.

mod common;

use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use common::{Daemon, Manners, PATIENCE, Peer, geometry, hello_reply, open_by_socket, open_reply};
use relay::wire::frame::{Body, Frame, Messages, WRITE_HAND_BACK, WRITE_MORE, Write, WriteReply};
use relay_producer::{Batch, BatchOptions, DaemonEvent, RequestError, Wait};
use tempfile::tempdir;

const FOREVER: BatchOptions = BatchOptions { cpu: Some(0), wait: Wait::Forever };

/// Answers until the channel is open.
fn greet(peer: &Peer) {
    for answer in [hello_reply().frame(0, 1), open_reply(&geometry(""), false).frame(0, 2)] {
        peer.receive();
        peer.send(&answer);
    }
}

/// A daemon of which each connection takes `n_taken` messages, and hands back all that come later.
/// `taken` gets the messages of all connections.
fn serve(peer: &Peer, n_taken: usize, taken: &Mutex<Vec<Vec<u8>>>) {
    greet(peer);
    let (mut left, mut long) = (n_taken, Vec::new());
    while let Some(packet) = peer.receive() {
        let frame = Frame::decode(&packet).unwrap();
        assert!(frame.flags & WRITE_HAND_BACK != 0, "a frame that waits");
        long.extend_from_slice(Write::decode(frame.body).unwrap().messages);
        if frame.flags & WRITE_MORE != 0 {
            continue;
        }
        let mut reply = WriteReply::default();
        for message in Messages(&std::mem::take(&mut long)).take(left) {
            taken.lock().unwrap().push(message.unwrap().to_vec());
            reply.written += 1;
        }
        left -= reply.written as usize;
        peer.send(&reply.frame(0, frame.id));
    }
}

fn outliving(channel: &relay_producer::Channel, options: BatchOptions) -> Batch {
    let mut batch = channel.batch(options).unwrap();
    batch.outlive_daemons(|_: DaemonEvent| {});
    batch
}

#[test]
fn handed_back_messages_are_sent_once_and_in_order() {
    // More frames than can be in flight, and messages longer than a frame among them.
    fn message(number: usize) -> Vec<u8> {
        match number % 20 {
            7 => format!("{number} {}", "x".repeat(70_000)).into_bytes(),
            _ => number.to_string().into_bytes(),
        }
    }
    for n_taken in [1, 4, 5, 30] {
        let n_messages = 15 * n_taken.min(6);
        let taken: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let dir = tempdir().unwrap();
        let daemon = Daemon::start_script(&dir, {
            let taken = Arc::clone(&taken);
            move |peer| serve(peer, n_taken, &taken)
        });
        let channel = open_by_socket(&daemon);
        let (sender, ended) = mpsc::channel();
        // A batch that sends the same messages again and again would never end.
        thread::spawn(move || {
            let mut batch = outliving(&channel, FOREVER);
            for number in 0..n_messages {
                batch.push(&message(number)).unwrap();
                if number % 3 == 0 {
                    batch.send().unwrap();
                }
            }
            sender.send(batch.finish().unwrap()).unwrap();
        });
        let counts = ended.recv_timeout(PATIENCE).expect("the batch ends");
        assert_eq!((counts.written, counts.dropped), (n_messages as u64, 0));
        assert!(*taken.lock().unwrap() == (0..n_messages).map(message).collect::<Vec<_>>(), "{n_taken}");
        assert_eq!(daemon.accepted(), n_messages.div_ceil(n_taken));
    }
}

/// A batch that has no next daemon reports that, and never that a message is written which is not.
#[test]
fn batch_without_a_next_daemon_fails() {
    let taken: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let dir = tempdir().unwrap();
    let daemon = Daemon::start_script(&dir, {
        let taken = Arc::clone(&taken);
        move |peer| serve(peer, 2, &taken)
    });
    let channel = open_by_socket(&daemon);
    let error = channel.write_batch(["a", "b", "c"], FOREVER).unwrap_err();
    assert!(matches!(error.cause, RequestError::Disconnected), "{error}");
    assert_eq!(error.counts.written, 2);
    assert_eq!(*taken.lock().unwrap(), [b"a", b"b"]);
}

/// An earlier release ignores the flag: it drops what waits at its end, and counts it.
#[test]
fn earlier_daemon_drops_and_counts() {
    let dir = tempdir().unwrap();
    let daemon = Daemon::start(&dir, Manners { dropped_over: 3, ..Manners::default() });
    let channel = open_by_socket(&daemon);
    let mut batch =
        outliving(&channel, BatchOptions { wait: Wait::AtMost(Duration::from_secs(9)), ..FOREVER });
    for message in ["one", "dropped", "two"] {
        batch.push(message.as_bytes()).unwrap();
    }
    let counts = batch.finish().unwrap();
    assert_eq!((counts.written, counts.dropped), (2, 1));
    assert_eq!(daemon.accepted(), 1);
}

/// Messages that do not wait are never handed back, so their frames are not kept.
#[test]
fn messages_that_do_not_wait_ask_for_nothing() {
    let dir = tempdir().unwrap();
    let daemon = Daemon::start_script(&dir, |peer| {
        greet(peer);
        while let Some(packet) = peer.receive() {
            let frame = Frame::decode(&packet).unwrap();
            assert_eq!(frame.flags & WRITE_HAND_BACK, 0);
            // Too few, from a daemon that counts wrongly.
            peer.send(&WriteReply::default().frame(0, frame.id));
        }
    });
    let channel = open_by_socket(&daemon);
    let counts = channel.write_batch(["a", "b"], BatchOptions { cpu: Some(0), wait: Wait::No }).unwrap();
    assert_eq!((counts.written, counts.dropped), (0, 0));
}
