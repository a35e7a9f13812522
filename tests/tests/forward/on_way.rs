//! Several messages of a subject on the way: each linked to the one before it in the line, whatever comes between.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use async_nats::jetstream::message::StreamMessage;
use relayfs_tests::{Mount, eventually};

use crate::order::all_is_given_back;
use crate::server::{Forwarder, Server};
use crate::stored::{header, raw, sub_buffers, texts};
use crate::way::{SEVERAL, Way};

const ARGS: &[&str] =
    &["--subbuf-size=4K", "--n-subbufs=256", "--channel=box:timed:subbuf-size=4K:n-subbufs=256"];
/// Sub-buffers of each buffer.
const N: usize = 200;

/// What is in the buffers: a raw and a timed channel, each with two CPUs.
struct Written {
    raw: [Vec<u8>; 2],
    texts: [Vec<String>; 2],
}

/// Fills the buffers with a message for each sub-buffer.
#[track_caller]
fn fill(mount: &Mount) -> Written {
    let text = |cpu: usize, n: usize| format!("{cpu} {n:03000}");
    let all = [0, 1].map(|cpu| (0..N).map(|n| text(cpu, n)).collect::<Vec<String>>());
    for channel in ["cpu", "box"] {
        for (cpu, texts) in all.iter().enumerate() {
            let messages: Vec<&[u8]> = texts.iter().map(|text| text.as_bytes()).collect();
            for some in messages.chunks(50) {
                assert_eq!(mount.send_to(channel, cpu, some).written as usize, some.len());
            }
        }
        mount.poke(channel, "flush");
    }
    Written { raw: all.each_ref().map(|texts| texts.concat().into_bytes()), texts: all }
}

/// Whether a message was sent behind one of its subject that was on the way.
fn is_behind(message: &StreamMessage) -> bool {
    message.headers.get("Nats-Expected-Last-Subject-Sequence").is_none()
}

/// Checks that each sub-buffer is there once, and in order. Returns how many messages were behind one on the way.
#[track_caller]
fn check(messages: &[StreamMessage], written: &Written) -> usize {
    let stored = sub_buffers(messages);
    assert_eq!(raw(&stored, "h", "cpu")[..2], written.raw);
    assert_eq!(texts(&stored, "h", "box")[..2], written.texts);
    for pair in messages.windows(2) {
        let [before, message] = pair else { unreachable!("two of them") };
        let Some(id) = message.headers.get("Nats-Expected-Last-Msg-Id") else { continue };
        assert_eq!(before.sequence + 1, message.sequence);
        assert_eq!(id.as_str(), header(before, "Nats-Msg-Id"));
    }
    let ours = || messages.iter().filter(|message| message.headers.get("Relay-Format").is_some());
    let is_linked = |message: &StreamMessage| message.headers.get("Nats-Expected-Last-Msg-Id").is_some();
    assert!(ours().all(|message| is_linked(message) || !is_behind(message)), "each expects something");
    ours().filter(|message| is_behind(message)).count()
}

/// A message names the one before only if that one is on the way.
#[test]
fn several_messages_of_a_subject_are_on_the_way() {
    let (server, mount) = (Server::start(""), Mount::new(ARGS));
    let written = fill(&mount);
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &["--create"]);
    ["cpu", "box"].iter().for_each(|channel| all_is_given_back(&mount, channel));
    forwarder.end();
    let n_behind = check(&server.client().read(), &written);
    assert!(n_behind > N, "{n_behind} of {}", 4 * N);
}

/// For a message that expects the last one of its subject, the server reads that one from its files. So subjects that have
/// messages on the way go on while others send.
#[test]
fn subjects_do_not_end_the_runs_of_others() {
    let (server, mount) = (Server::start(""), Mount::new(ARGS));
    let written = fill(&mount);
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &["--create"]);
    ["cpu", "box"].iter().for_each(|channel| all_is_given_back(&mount, channel));
    forwarder.end();
    let messages = server.client().read();
    let n_behind = check(&messages, &written);
    let is_of_other = |pair: &&[StreamMessage]| pair[0].subject != pair[1].subject && is_behind(&pair[1]);
    let n_others = messages.windows(2).filter(is_of_other).count();
    assert!(n_others > N / 10, "{n_others} of {n_behind}");
}

/// One is on the way if the window is one.
#[test]
fn window_of_one_has_one_message_on_the_way() {
    let (server, mount) = (Server::start(""), Mount::new(ARGS));
    let written = fill(&mount);
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &["--create", "--window=1"]);
    ["cpu", "box"].iter().for_each(|channel| all_is_given_back(&mount, channel));
    forwarder.end();
    let messages = server.client().read();
    assert_eq!(check(&messages, &written), 0);
    assert!(messages.iter().all(|message| message.headers.get("Nats-Expected-Last-Msg-Id").is_none()));
}

/// Parts are messages, too.
#[test]
fn parts_of_a_sub_buffer_are_on_the_way_together() {
    let (server, mount) = (Server::start("max_payload: 2048"), Mount::new(ARGS));
    let written = fill(&mount);
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &["--create"]);
    ["cpu", "box"].iter().for_each(|channel| all_is_given_back(&mount, channel));
    forwarder.end();
    let messages = server.client().read();
    assert!(check(&messages, &written) > 2 * N);
    let is_part = |message: &&StreamMessage| {
        message.headers.get("Relay-Part").is_some_and(|part| part.as_str().starts_with("2/"))
            && is_behind(message)
    };
    assert!(messages.iter().filter(is_part).count() > 0);
}

/// Then sequences are others than the forwarder expects, all the time.
#[test]
fn other_programs_write_to_the_stream_all_the_time() {
    let (server, mount) = (Server::start(""), Mount::new(ARGS));
    let client = server.client();
    client.create(|_| {});
    let written = fill(&mount);
    let stop = AtomicBool::new(false);
    let n_foreign = thread::scope(|scope| {
        let foreign = scope.spawn(|| {
            let mut client = server.raw_client();
            let mut n = 0;
            // Acquire: pairs with the store of the test.
            while !stop.load(Ordering::Acquire) {
                client.publish("relay.other", &[], b"foreign");
                n += 1;
            }
            n
        });
        let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &[]);
        ["cpu", "box"].iter().for_each(|channel| all_is_given_back(&mount, channel));
        forwarder.end();
        assert_eq!(forwarder.said(), "");
        // Release: pairs with the load of the publisher.
        stop.store(true, Ordering::Release);
        foreign.join().expect("the publisher")
    });
    let messages = client.read();
    check(&messages, &written);
    let is_foreign = |message: &StreamMessage| &message.subject[..] == "relay.other";
    assert_eq!(messages.iter().filter(|message| is_foreign(message)).count(), n_foreign);
    let n_between = messages.windows(2).filter(|pair| is_foreign(&pair[0]) && !is_foreign(&pair[1])).count();
    assert!(n_between > 10, "{n_between} of {n_foreign}");
}

/// The server stands still with messages on the way. Some are stored when it runs again.
#[test]
fn halted_server_stores_each_once() {
    let (server, mount) = (Server::start(""), Mount::new(ARGS));
    let client = server.client();
    client.create(|_| {});
    let written = fill(&mount);
    let way = Way::to(server.port());
    let [gate, _] = &*way.gates;
    gate.close_behind(N / 2);
    let mut forwarder = Forwarder::start(&mount, &way.url(), "h", &[]);
    eventually("several messages on the way", || gate.held() > SEVERAL);
    server.halt();
    gate.open();
    forwarder.says("does not answer");
    server.resume();
    ["cpu", "box"].iter().for_each(|channel| all_is_given_back(&mount, channel));
    forwarder.end();
    check(&client.read(), &written);
}

/// Forwarder and server are killed in turn, with messages on the way.
#[test]
fn killed_forwarder_and_server_store_each_once() {
    let (mut server, mount) = (Server::start(""), Mount::new(ARGS));
    let client = server.client();
    client.create(|_| {});
    let written = fill(&mount);
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &[]);
    for round in 1..=6 {
        eventually("more messages", || client.count() > 60 * round);
        if round % 2 == 0 {
            server.kill();
            server.restart();
        } else {
            forwarder.kill();
            forwarder.restart();
        }
    }
    ["cpu", "box"].iter().for_each(|channel| all_is_given_back(&mount, channel));
    forwarder.end();
    check(&client.read(), &written);
}
