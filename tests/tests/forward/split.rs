//! Parts of a sub-buffer, when the server takes other sizes than at the first part.

use async_nats::jetstream::stream::DiscardPolicy;
use relayfs_tests::{Mount, eventually};

use crate::order::all_is_given_back;
use crate::server::{Forwarder, Server};
use crate::stored::{header, raw, sub_buffers};

/// The server takes one part, and comes back with another `max_payload`. There are as many parts, of other sizes.
#[track_caller]
fn pass(before: &str, behind: &str) {
    let mut server = Server::start(before);
    let mount = Mount::new(&["--subbuf-size=4K", "--n-subbufs=4"]);
    let client = server.client();
    client.create(|config| {
        (config.max_messages_per_subject, config.discard) = (1, DiscardPolicy::New);
        config.discard_new_per_subject = true;
    });
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &[]);
    let written: Vec<u8> = (0..400).flat_map(|n| format!("{n:09}\n").into_bytes()).collect();
    assert_eq!(mount.send(0, &[&written]).written, 1);
    forwarder.says("maximum messages per subject");
    assert_eq!(header(&client.last("relay.h.cpu.cpu0"), "Relay-Part"), "1/2");
    server.kill();
    server.restart_with(behind);
    eventually("the stream", || client.info().is_some());
    client.update(|config| config.max_messages_per_subject = 100);
    all_is_given_back(&mount, "cpu");
    forwarder.end();
    let messages = client.read();
    assert_eq!(header(&messages[messages.len() - 1], "Relay-Part"), "2/2");
    assert_eq!(raw(&sub_buffers(&messages), "h", "cpu")[0], written);
}

#[test]
fn sub_buffer_is_whole_after_a_larger_limit() {
    pass("max_payload: 3000", "max_payload: 3300");
}

#[test]
fn sub_buffer_is_whole_after_a_smaller_limit() {
    pass("max_payload: 3300", "max_payload: 3000");
}
