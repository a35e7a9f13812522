//! The stream loses what was in it: the dictionary is sent again, before what needs it.

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::DiscardPolicy;
use relayfs_tests::{Mount, eventually};

use crate::errors::write;
use crate::order::all_is_given_back;
use crate::server::{Forwarder, Server};
use crate::stored::{header, sub_buffers, texts};

pub(crate) const TIMED: &[&str] =
    &["--subbuf-size=16K", "--n-subbufs=16", "--channel=box:timed:subbuf-size=16K"];

/// Checks that each packet names a dictionary that is there.
#[track_caller]
fn have_dictionaries(messages: &[StreamMessage]) {
    let mut n_packets = 0;
    for message in messages.iter().filter(|message| message.subject.contains(".box.cpu")) {
        n_packets += 1;
        let sequence: u64 = header(message, "Relay-Dictionary").parse().expect("a sequence");
        let named = messages.iter().find(|other| other.sequence == sequence).expect("a dictionary");
        assert!(named.subject.ends_with(".metadata") && sequence < message.sequence, "{sequence}");
    }
    assert!(n_packets > 0);
}

#[test]
fn stream_that_is_created_again_has_the_dictionary() {
    let (server, mount) = (Server::start(""), Mount::new(TIMED));
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &["--create"]);
    let client = server.client();
    for text in ["before", "behind"] {
        assert_eq!(mount.send_to("box", 0, &[text.as_bytes()]).written, 1);
        all_is_given_back(&mount, "box");
        let messages = client.read();
        have_dictionaries(&messages);
        assert_eq!(texts(&sub_buffers(&messages), "h", "box")[0], [text]);
        client.delete();
    }
    forwarder.end();
}

/// A channel at rest, whose texts are gone, and packets that need them may be read later.
#[test]
fn purged_stream_gets_the_texts_again() {
    let (server, mount) = (Server::start(""), Mount::new(TIMED));
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &["--create"]);
    let client = server.client();
    assert_eq!(mount.send_to("box", 0, &[b"before"]).written, 1);
    all_is_given_back(&mount, "box");
    client.purge();
    eventually("the dictionary", || client.find_last("relay.h.box.metadata").is_some());
    assert_eq!(mount.send_to("box", 0, &[b"behind"]).written, 1);
    all_is_given_back(&mount, "box");
    forwarder.end();
    let messages = client.read();
    have_dictionaries(&messages);
    assert_eq!(texts(&sub_buffers(&messages), "h", "box")[0], ["behind"]);
}

/// The stream keeps its first and last message.
#[test]
fn removed_texts_are_sent_again() {
    let (server, mount) = (Server::start(""), Mount::new(TIMED));
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &["--create"]);
    let client = server.client();
    write(&mount, "first");
    all_is_given_back(&mount, "cpu");
    assert_eq!(mount.send_to("box", 0, &[b"before"]).written, 1);
    all_is_given_back(&mount, "box");
    for subject in ["relay.h.box.metadata", "relay.h.box.processes"] {
        let before = client.last(subject).sequence;
        client.purge_subject(subject);
        eventually("the text", || client.find_last(subject).is_some_and(|last| last.sequence > before));
    }
    forwarder.end();
    assert_eq!(texts(&sub_buffers(&client.read()), "h", "box")[0], ["before"]);
}

/// A busy channel makes the stream drop its oldest messages, and the texts of a quiet one are among them.
#[test]
fn quiet_channel_keeps_its_dictionary() {
    let (server, mount) = (Server::start(""), Mount::new(TIMED));
    let client = server.client();
    client.create(|config| (config.max_messages, config.discard) = (20, DiscardPolicy::Old));
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &[]);
    assert_eq!(mount.send_to("box", 0, &[b"quiet"]).written, 1);
    all_is_given_back(&mount, "box");
    let first = client.last("relay.h.box.metadata").sequence;
    while client.count() < first + 100 {
        write(&mount, "busy");
        all_is_given_back(&mount, "cpu");
    }
    eventually("the dictionary in the stream", || client.find_last("relay.h.box.metadata").is_some());
    forwarder.end();
}
