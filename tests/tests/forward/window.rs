//! The window: all buffers get their turn, also when the server takes nothing of some.

use async_nats::jetstream::stream::DiscardPolicy;
use relayfs_tests::Mount;

use crate::order::all_is_given_back;
use crate::server::{Forwarder, Server};
use crate::stored::{raw, sub_buffers};

const ARGS: &[&str] = &["--subbuf-size=4K", "--n-subbufs=16", "--channel=two:subbuf-size=4K:n-subbufs=16"];

/// Writes five sub-buffers to a buffer. Returns what was written.
fn write(mount: &Mount, channel: &str, cpu: usize) -> Vec<u8> {
    let lines: Vec<String> = (0..5).map(|n| format!("{channel} {cpu} {n:03000}\n")).collect();
    let messages: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
    assert_eq!(mount.send_to(channel, cpu, &messages).written, 5);
    lines.concat().into_bytes()
}

/// Four buffers are behind, and one message at a time is on the way.
#[test]
fn window_of_one_serves_all_buffers() {
    let (server, mount) = (Server::start(""), Mount::new(ARGS));
    let written = ["cpu", "two"].map(|channel| [0, 1].map(|cpu| write(&mount, channel, cpu)));
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &["--create", "--window=1"]);
    ["cpu", "two"].iter().for_each(|channel| all_is_given_back(&mount, channel));
    forwarder.end();
    let stored = sub_buffers(&server.client().read());
    for (channel, written) in ["cpu", "two"].iter().zip(written) {
        assert_eq!(raw(&stored, "h", channel)[..2], written);
    }
}

/// A subject that is full has the only place for a while, and not for ever.
#[test]
fn refused_sub_buffers_hold_up_no_other_channel() {
    let (server, mount) = (Server::start(""), Mount::new(ARGS));
    let client = server.client();
    client.create(|config| {
        (config.max_messages_per_subject, config.discard) = (2, DiscardPolicy::New);
        config.discard_new_per_subject = true;
    });
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &["--window=1"]);
    let refused = write(&mount, "cpu", 0);
    forwarder.says("maximum messages per subject");
    let line = b"only one\n";
    assert_eq!(mount.send_to("two", 0, &[line]).written, 1);
    all_is_given_back(&mount, "two");
    client.update(|config| config.max_messages_per_subject = 100);
    all_is_given_back(&mount, "cpu");
    forwarder.says("forwarded again");
    forwarder.end();
    let stored = sub_buffers(&client.read());
    assert_eq!((&raw(&stored, "h", "cpu")[0], &raw(&stored, "h", "two")[0][..]), (&refused, &line[..]));
}
