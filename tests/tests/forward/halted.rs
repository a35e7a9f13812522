//! The daemon ends between an acknowledgement and what the forwarder gives back for it.

use nix::sys::signal::Signal;
use relayfs_tests::{Mount, eventually};

use crate::order::all_is_given_back;
use crate::server::{Forwarder, Server};

const ARGS: &[&str] = &["--subbuf-size=4K", "--n-subbufs=8", "--flush-interval=never"];

/// Then `cat` reads past what the forwarder has taken.
#[test]
fn forwarder_goes_on_where_another_reader_stopped() {
    let (server, mut mount) = (Server::start(""), Mount::new(ARGS));
    let client = server.client();
    client.create(|_| {});
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &["--flush-interval=never"]);
    let message = |byte: u8| vec![byte; 4096];
    assert_eq!(mount.send(0, &[&message(b'a')]).written, 1);
    assert_eq!(mount.send(0, &[b"flushed"]).written, 1);
    eventually("a sub-buffer", || client.count() == 1);
    server.halt();
    mount.poke("cpu", "flush");
    forwarder.says("does not answer");
    mount.end(Signal::SIGKILL);
    server.resume();
    eventually("another sub-buffer", || client.count() == 2);
    mount.restart(ARGS);
    assert_eq!(mount.send(0, &[b"for cat"]).written, 1);
    eventually("what cat reads", || mount.read("cpu0").ends_with(b"for cat"));
    let behind: Vec<Vec<u8>> = (b'p'..b's').map(message).collect();
    let behind: Vec<&[u8]> = behind.iter().map(|message| &message[..]).collect();
    assert_eq!(mount.send(0, &behind).written, 3);
    mount.poke("cpu", "flush");
    all_is_given_back(&mount, "cpu");
    forwarder.end();
    let messages = client.read();
    let bytes: Vec<u8> = messages.iter().flat_map(|message| message.payload.to_vec()).collect();
    assert!(bytes.ends_with(&behind.concat()), "{} bytes", bytes.len());
}
