//! Messages that come late: behind what the forwarder has asked, and in front of what it sends then.

use nix::sys::signal::Signal;
use relayfs_tests::{Mount, eventually};

use crate::order::all_is_given_back;
use crate::server::{Forwarder, Server};
use crate::stored::{raw, sub_buffers};
use crate::way::{SEVERAL, Way};

const ARGS: &[&str] = &["--subbuf-size=4K", "--n-subbufs=256"];
const SUBJECT: &str = "relay.h.cpu.cpu0";
/// Sub-buffers of the buffer.
const N: usize = 200;
/// Messages that pass before others are held: then several are on the way.
const N_PASSED: usize = 60;
/// Bytes of a sub-buffer's message.
const LEN: usize = 4096;

/// Fills a buffer with a message for each sub-buffer. Returns them.
#[track_caller]
fn fill(mount: &Mount) -> Vec<u8> {
    let all: Vec<Vec<u8>> = (0..N).map(|n| format!("{n:03000}").into_bytes()).collect();
    let messages: Vec<&[u8]> = all.iter().map(|text| &text[..]).collect();
    for some in messages.chunks(50) {
        assert_eq!(mount.send_to("cpu", 0, some).written as usize, some.len());
    }
    mount.poke("cpu", "flush");
    all.concat()
}

/// The next forwarder finds out what is there. Then the messages of the one that was killed reach the server.
#[test]
fn messages_of_a_killed_forwarder_come_after_the_question() {
    let (server, mount) = (Server::start(""), Mount::new(ARGS));
    let client = server.client();
    client.create(|_| {});
    let way = Way::to(server.port());
    let [first, second] = &*way.gates;
    let written = fill(&mount);
    first.close_behind(N_PASSED);
    second.close();
    let mut forwarder = Forwarder::start(&mount, &way.url(), "h", &[]);
    eventually("several messages on the way", || first.held() > SEVERAL);
    forwarder.kill();
    forwarder.restart();
    eventually("a message of the next forwarder", || second.held() > 0);
    let before = client.count();
    first.open();
    eventually("late messages", || client.count() >= before + (SEVERAL / LEN) as u64);
    second.open();
    all_is_given_back(&mount, "cpu");
    forwarder.end();
    assert_eq!(raw(&sub_buffers(&client.read()), "h", "cpu")[0], written);
    assert_eq!(forwarder.said(), "");
}

/// The forwarder stands still while its messages are stored, and another program's behind them.
#[test]
fn foreign_message_hides_none_that_was_not_answered_in_time() {
    let (server, mount) = (Server::start(""), Mount::new(ARGS));
    let client = server.client();
    client.create(|_| {});
    let way = Way::to(server.port());
    let [first, _] = &*way.gates;
    let written = fill(&mount);
    first.close_behind(N_PASSED);
    let mut forwarder = Forwarder::start(&mount, &way.url(), "h", &[]);
    eventually("several messages on the way", || first.held() > SEVERAL);
    forwarder.says("does not answer");
    forwarder.process().signal(Signal::SIGSTOP);
    let before = client.count();
    first.open();
    eventually("late messages", || client.count() >= before + (SEVERAL / LEN) as u64);
    server.raw_client().publish(SUBJECT, &[], b"foreign");
    forwarder.process().signal(Signal::SIGCONT);
    all_is_given_back(&mount, "cpu");
    forwarder.end();
    let (messages, _) = client.read_readable();
    let ours = messages.into_iter().filter(|message| &message.payload[..] != b"foreign").collect::<Vec<_>>();
    assert_eq!(raw(&sub_buffers(&ours), "h", "cpu")[0], written);
}
