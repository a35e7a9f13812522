//! The name of the program whose output a process writes, while the process attaches to a timed channel.

mod common;

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::yield_now;
use std::time::Instant;

use common::{Daemon, PATIENCE, Peer, geometry, hello_reply, open_reply};
use relay::wire::frame::{AttachReply, Body, Frame, FrameType, OpenReply, Refusal};
use relay_producer::{Channel, TransportChoice};
use tempfile::tempdir;

/// The tests have one name, that of their process.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn name() -> String {
    fs::read_to_string("/proc/self/comm").unwrap()
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "{what}");
        yield_now();
    }
}

/// Serves a connection as a daemon of a timed channel. At ATTACH, `answers` says whether it answers.
fn serve(peer: &Peer, answers: impl Fn() -> bool) {
    while let Some(packet) = peer.receive() {
        let frame = Frame::decode(&packet).unwrap();
        match frame.kind {
            FrameType::Hello => peer.send(&hello_reply().frame(0, frame.id)),
            FrameType::Open => {
                let geometry = geometry("timed");
                let reply = OpenReply::new(3, &geometry, open_reply(&geometry, false).n_bufs as usize, false);
                peer.send(&reply.frame(0, frame.id));
            }
            FrameType::Attach if !answers() => {}
            FrameType::Attach => {
                peer.send(&AttachReply { process: 7, clock: 1, pid: 0, reserved: 0 }.frame(0, frame.id))
            }
            FrameType::Levels => {
                peer.send(&Refusal { errno: 95, text: "no levels".into() }.frame(0, frame.id));
            }
            FrameType::Write => return,
            kind => panic!("unexpected {kind:?}"),
        }
    }
}

/// Nothing calls the library again after the last look.
#[test]
fn process_has_its_name_while_a_daemon_does_not_answer() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempdir().unwrap();
    let own = name();
    // Whether the daemon has seen the name of the program, and ATTACH frames after that, which it does not answer.
    let (was_renamed, unanswered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (renamed, asked) = (Arc::clone(&was_renamed), Arc::clone(&unanswered));
    let daemon = Daemon::start_script(&dir, move |peer| {
        serve(peer, || {
            let answers = !renamed.load(Ordering::SeqCst);
            if answers {
                renamed.store(name() == "program\n", Ordering::SeqCst);
            } else {
                asked.fetch_add(1, Ordering::SeqCst);
            }
            answers
        });
    });
    let builder = Channel::builder(&daemon.socket, "cpu").transport(TransportChoice::Socket);
    let builder = builder.program("program".as_ref());
    let mut channel = builder.clone().open().unwrap();
    // The process has its name again after a time, and a busy machine may give the daemon no CPU for so long.
    eventually("the name of the program", || {
        assert_eq!(name(), own);
        let is_seen = was_renamed.load(Ordering::SeqCst);
        if !is_seen {
            channel = builder.clone().open().unwrap();
        }
        is_seen
    });
    // The daemon ends the connection at the first message.
    eventually("no other connection", || {
        let _ = channel.write(b"message");
        unanswered.load(Ordering::SeqCst) == 1
    });
    eventually("the name of the program stays", || name() == own);
}

/// The daemon answers once the process has its name again, and the call that opens the channel has waited until then.
#[test]
fn process_has_its_name_while_a_call_waits() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let (dir, own) = (tempdir().unwrap(), name());
    let expected = own.clone();
    let daemon = Daemon::start_script(&dir, move |peer| {
        serve(peer, || {
            eventually("the name of the program stays", || name() == expected);
            true
        });
    });
    let builder = Channel::builder(&daemon.socket, "cpu").transport(TransportChoice::Socket);
    let channel = builder.program("program".as_ref()).open().unwrap();
    assert_eq!(name(), own);
    drop(channel);
}
