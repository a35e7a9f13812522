//! The daemon stands still, and the forwarder with it.

use std::fs;
use std::os::unix::process::ExitStatusExt;

use nix::sys::signal::Signal;
use relayfs_tests::stopped::Stopped;
use relayfs_tests::{Mount, eventually};

use crate::errors::{ARGS, write};
use crate::order::all_is_given_back;
use crate::server::{Forwarder, Server};
use crate::stored::{raw, sub_buffers};

/// A request to the daemon waits for ever then, and signals that the forwarder catches do not end the wait.
#[test]
fn signal_ends_the_forwarder_of_a_stopped_daemon() {
    let (server, mut mount) = (Server::start(""), Mount::new(ARGS));
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &["--create"]);
    let mut written = write(&mount, "before");
    all_is_given_back(&mount, "cpu");
    let stopped = Stopped::between_requests(mount.daemon().pid(), forwarder.process().pid());
    let at = format!("/proc/{}/wchan", forwarder.process().pid());
    eventually("a forwarder that waits for the daemon", || {
        fs::read_to_string(&at).expect("where it sleeps").contains("request_wait_answer")
    });
    forwarder.process().signal(Signal::SIGTERM);
    let status = forwarder.process().wait();
    assert_eq!(status.signal(), Some(Signal::SIGTERM as i32), "{}", forwarder.said());
    drop(stopped);
    forwarder.restart();
    written.extend(write(&mount, "behind"));
    all_is_given_back(&mount, "cpu");
    forwarder.end();
    assert_eq!(raw(&sub_buffers(&server.client().read()), "h", "cpu")[0], written);
}
