//! Channels that go while they are forwarded.

use nix::sys::signal::Signal;
use relay_producer::Channel;
use relayfs_tests::{Mount, eventually};

use crate::order::all_is_given_back;
use crate::server::{Forwarder, Server};
use crate::stored::sub_buffers;

const ARGS: &[&str] = &["--subbuf-size=4K", "--n-subbufs=4"];
/// Sub-buffers that go once around the ring.
const N: usize = 5;

/// Creates a channel, and writes a sub-buffer after the other.
#[track_caller]
fn write(mount: &Mount, text: &str) -> String {
    let channel = Channel::builder(mount.point(), "x").create(true).open().expect("a channel");
    let options = relay_producer::BatchOptions { cpu: Some(0), ..Default::default() };
    for _ in 0..N {
        assert_eq!(channel.write_batch(&[text.as_bytes()], options).expect("writing").written, 1);
        mount.poke("x", "flush");
        all_is_given_back(mount, "x");
    }
    text.repeat(N)
}

/// The next daemon removes a channel that has no producer and nothing unread, before the forwarder finds that daemon.
#[test]
fn channel_that_the_next_daemon_removes_has_no_more_than_was_written() {
    let (server, mut mount) = (Server::start(""), Mount::new(ARGS));
    let client = server.client();
    client.create(|_| {});
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &["-c", "x"]);
    let before = write(&mount, "before");
    forwarder.process().signal(Signal::SIGSTOP);
    mount.end(Signal::SIGKILL);
    mount.restart(ARGS);
    eventually("the end of the channel", || !mount.control("x", "stats").exists());
    forwarder.process().signal(Signal::SIGCONT);
    let behind = write(&mount, "behind");
    forwarder.end();
    let stored = sub_buffers(&client.read());
    let bytes: Vec<u8> = stored["relay.h.x.cpu0"].iter().flat_map(|body| body.bytes.clone()).collect();
    assert_eq!(String::from_utf8_lossy(&bytes), before + &behind);
}
