//! Other programs publish on our subjects. They can do so, and it costs nothing.

use async_nats::jetstream::message::StreamMessage;
use nix::sys::signal::Signal;
use relayfs_tests::{Mount, eventually};

use crate::errors::{ARGS, write};
use crate::order::all_is_given_back;
use crate::server::{Client, Forwarder, Server};
use crate::stored::{header, raw, sub_buffers};

const SUBJECT: &str = "relay.h.cpu.cpu0";
/// The body of all foreign messages.
const FOREIGN: &[u8] = b"foreign";
/// Headers that no client can read.
const UNREADABLE: &[u8] = b"NATS/1.0\r\nno colon\r\n\r\n";

/// Returns the sub-buffers of CPU 0, and how many messages were unreadable.
#[track_caller]
fn ours(client: &Client) -> (Vec<u8>, u64) {
    let (messages, unreadable) = client.read_readable();
    let ours: Vec<StreamMessage> =
        messages.into_iter().filter(|message| &message.payload[..] != FOREIGN).collect();
    (raw(&sub_buffers(&ours), "h", "cpu").swap_remove(0), unreadable)
}

#[test]
fn foreign_messages_are_passed_over() {
    let (server, mount) = (Server::start(""), Mount::new(ARGS));
    let client = server.client();
    client.create(|_| {});
    let mut raw_client = server.raw_client();
    let mut disturb = || {
        raw_client.publish(SUBJECT, &[], FOREIGN);
        raw_client.publish(SUBJECT, &[("Relay-Format", "1"), ("Relay-Instance", "no")], FOREIGN);
        raw_client.publish_with(SUBJECT, UNREADABLE, FOREIGN);
    };
    disturb();
    let mut written = write(&mount, "before");
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &[]);
    all_is_given_back(&mount, "cpu");
    for round in ["one", "two"] {
        disturb();
        written.extend(write(&mount, round));
        all_is_given_back(&mount, "cpu");
    }
    forwarder.end();
    assert_eq!(ours(&client), (written, 3));
    assert_eq!(forwarder.said(), "");
}

/// Messages say that sub-buffers are stored which are not.
#[test]
fn forged_messages_give_nothing_back() {
    let (server, mount) = (Server::start(""), Mount::new(ARGS));
    let client = server.client();
    client.create(|_| {});
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &[]);
    let mut written = write(&mount, "before");
    all_is_given_back(&mount, "cpu");
    forwarder.end();
    let next = header(&client.last(SUBJECT), "Relay-Number").parse::<u64>().expect("a number") + 1;
    // A forger copies the last message, with other numbers, and with an id as ours or none.
    let mut raw_client = server.raw_client();
    let mut forge = |number: u64, has_id: bool| {
        let last = client.read_readable().0.into_iter().rfind(|message| &message.payload[..] != FOREIGN);
        let last = last.expect("a message of ours");
        let number = number.to_string();
        let of_last = header(&last, "Relay-Number");
        let id = header(&last, "Nats-Msg-Id").replace(&format!("/{of_last}/"), &format!("/{number}/"));
        let mut headers = vec![("Relay-Number", number.as_str())];
        for name in [
            "Relay-Format",
            "Relay-Instance",
            "Relay-Geometry",
            "Relay-Position",
            "Relay-Lost",
            "Relay-Lost-Too-Big",
        ] {
            headers.push((name, header(&last, name)));
        }
        if has_id {
            headers.push(("Nats-Msg-Id", &id));
        }
        raw_client.publish(SUBJECT, &headers, FOREIGN);
    };
    written.extend(write(&mount, "behind"));
    for (number, has_id) in [(next, true), (next + 1, true), (next + 2, false), (u64::MAX, true)] {
        forge(number, has_id);
    }
    forwarder.restart();
    all_is_given_back(&mount, "cpu");
    forge(next + 100, false);
    written.extend(write(&mount, "later"));
    all_is_given_back(&mount, "cpu");
    forwarder.end();
    assert_eq!(ours(&client), (written, 0));
    assert_eq!(forwarder.said(), "");
}

#[test]
fn foreign_message_hides_no_sub_buffer() {
    killed_before_it_gives_back(0, |server, _| {
        let mut raw_client = server.raw_client();
        for _ in 0..5 {
            raw_client.publish(SUBJECT, &[], FOREIGN);
        }
    });
}

/// nats-server 2.9 finds no last message of the subject then.
#[test]
fn deleted_message_hides_no_sub_buffer() {
    killed_before_it_gives_back(0, |server, client| {
        let sequence = server.raw_client().publish(SUBJECT, &[], FOREIGN);
        client.delete_message(sequence);
    });
}

/// The look back goes twice as far each time, and meets more messages of the subject at once than it takes.
#[test]
fn messages_in_front_hide_no_sub_buffer() {
    killed_before_it_gives_back(2100, |server, _| {
        let mut raw_client = server.raw_client();
        for _ in 0..4500 {
            raw_client.publish("relay.other", &[], FOREIGN);
        }
        raw_client.publish(SUBJECT, &[], FOREIGN);
    });
}

/// The daemon is killed before it hears of an acknowledgement, and then the forwarder. What other programs do follows.
/// The subject has `n_before` foreign messages before.
#[track_caller]
fn killed_before_it_gives_back(n_before: usize, disturb: impl FnOnce(&Server, &Client)) {
    let (server, mut mount) = (Server::start(""), Mount::new(ARGS));
    let client = server.client();
    client.create(|_| {});
    let mut raw_client = server.raw_client();
    for _ in 0..n_before {
        raw_client.publish(SUBJECT, &[], FOREIGN);
    }
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &[]);
    let mut written = write(&mount, "first");
    all_is_given_back(&mount, "cpu");
    let before = client.count();
    server.halt();
    written.extend(write(&mount, "second"));
    forwarder.says("does not answer");
    mount.end(Signal::SIGKILL);
    server.resume();
    eventually("sub-buffers in the stream", || client.count() > before);
    forwarder.kill();
    disturb(&server, &client);
    mount.restart(ARGS);
    forwarder.restart();
    all_is_given_back(&mount, "cpu");
    forwarder.end();
    assert_eq!(ours(&client), (written, 0));
}
