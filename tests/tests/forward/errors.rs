//! What a server refuses: the forwarder says it once, keeps what it has, and continues when it can.

use async_nats::jetstream::stream::DiscardPolicy;
use relayfs_tests::{Mount, eventually, text};

use crate::order::{all_is_given_back, is_given_back};
use crate::server::{Forwarder, Server, free_port, usual};
use crate::stored::{raw, sub_buffers};

pub(crate) const ARGS: &[&str] = &["--subbuf-size=16K", "--n-subbufs=16"];

/// Writes some sub-buffers to CPU 0. Returns what was written.
pub(crate) fn write(mount: &Mount, what: &str) -> Vec<u8> {
    let lines: Vec<String> = (0..100).map(|n| format!("{what} {n} {}\n", "z".repeat(1000))).collect();
    let messages: Vec<&[u8]> = lines.iter().map(|line| line.as_bytes()).collect();
    assert_eq!(mount.send(0, &messages).written, 100);
    lines.concat().into_bytes()
}

#[test]
fn missing_stream_is_an_error_with_the_command() {
    let (server, mount) = (Server::start(""), Mount::new(ARGS));
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &[]);
    forwarder
        .fails(&["there is no stream 'relay': add --create, or: nats stream add relay --subjects 'relay.>'"]);
}

/// The sub-buffers that do not fit the stream stay in the buffer.
#[test]
fn full_stream_costs_nothing() {
    let (server, mount) = (Server::start(""), Mount::new(ARGS));
    let client = server.client();
    client.create(|config| (config.max_bytes, config.discard) = (40_000, DiscardPolicy::New));
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &[]);
    let written = write(&mount, "full");
    forwarder.says("stream 'relay' takes nothing: ");
    assert!(mount.stats("cpu")["total.bytes"] > mount.stats("cpu")["total.read_bytes"], "it is kept");
    client.update(|config| config.max_bytes = 1 << 20);
    all_is_given_back(&mount, "cpu");
    forwarder.says("forwarded again");
    forwarder.end();
    assert_eq!(raw(&sub_buffers(&client.read()), "h", "cpu")[0], written);
    let said = forwarder.said();
    assert_eq!(said.lines().count(), 2, "{said}");
}

/// A limit that is lowered between two looks at the stream is nothing to say: smaller parts are sent.
#[test]
fn lower_limit_of_messages_is_kept_to_without_a_word() {
    let (server, mount) = (Server::start(""), Mount::new(ARGS));
    let client = server.client();
    client.create(|_| {});
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &[]);
    let mut written = write(&mount, "before");
    all_is_given_back(&mount, "cpu");
    client.update(|config| config.max_message_size = 4000);
    written.extend(write(&mount, "behind"));
    all_is_given_back(&mount, "cpu");
    forwarder.end();
    assert_eq!(forwarder.said(), "");
    assert_eq!(raw(&sub_buffers(&client.read()), "h", "cpu")[0], written);
}

/// The complaint has the command that mends it.
#[test]
fn limit_that_the_headers_exceed_is_said_with_the_command() {
    let (server, mount) = (Server::start(""), Mount::new(ARGS));
    let client = server.client();
    client.create(|config| config.max_message_size = 300);
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &[]);
    let written = write(&mount, "kept");
    forwarder.says("stream 'relay' takes messages of 300 bytes");
    forwarder.says(": nats stream edit relay --max-msg-size=-1");
    client.update(|config| config.max_message_size = -1);
    all_is_given_back(&mount, "cpu");
    forwarder.end();
    assert_eq!(raw(&sub_buffers(&client.read()), "h", "cpu")[0], written);
}

#[test]
fn deleted_stream_is_created_again() {
    let (server, mount) = (Server::start(""), Mount::new(ARGS));
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &["--create"]);
    let before = write(&mount, "before");
    all_is_given_back(&mount, "cpu");
    let client = server.client();
    assert!(client.info().is_some_and(|info| info.config.allow_direct), "readers may ask any copy");
    assert_eq!(raw(&sub_buffers(&client.read()), "h", "cpu")[0], before);
    client.delete();
    let behind = write(&mount, "behind");
    all_is_given_back(&mount, "cpu");
    forwarder.end();
    let bodies = sub_buffers(&client.read());
    let bytes: Vec<u8> = bodies["relay.h.cpu.cpu0"].iter().flat_map(|body| body.bytes.clone()).collect();
    assert_eq!(text(&bytes), text(&behind));
    assert_eq!(forwarder.said(), "relay-forward: stream 'relay' created\n".repeat(2));
}

/// Without --create the forwarder waits for the stream, and says how to make it.
#[test]
fn deleted_stream_is_waited_for() {
    let (mut server, mount) = (Server::start(""), Mount::new(ARGS));
    let client = server.client();
    client.create(|_| {});
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &[]);
    write(&mount, "before");
    all_is_given_back(&mount, "cpu");
    client.delete();
    write(&mount, "behind");
    eventually("a forwarder that misses the stream", || {
        if server.revive() {
            client.delete_if_there();
        }
        forwarder.said().contains("there is no stream 'relay'")
    });
    eventually("the stream", || {
        server.revive();
        client.try_create(&usual())
    });
    eventually("all", || {
        server.revive();
        is_given_back(&mount, "cpu")
    });
    forwarder.end();
}

/// Server and daemon come after the forwarder.
#[test]
fn server_that_comes_later_is_waited_for() {
    let port = free_port();
    let mut mount = Mount::new(ARGS);
    let url = format!("nats://127.0.0.1:{port}");
    let mut forwarder = Forwarder::start(&mount, &url, "h", &["--create"]);
    let written = write(&mount, "early");
    forwarder.says(&format!("no connection to 127.0.0.1:{port}"));
    let server = Server::on_port(port, "");
    all_is_given_back(&mount, "cpu");
    forwarder.says("connected to");
    mount.end(nix::sys::signal::Signal::SIGTERM);
    forwarder.says("waiting for");
    mount.restart(ARGS);
    let more = write(&mount, "late");
    all_is_given_back(&mount, "cpu");
    forwarder.end();
    let bodies = sub_buffers(&server.client().read());
    let bytes: Vec<u8> = bodies["relay.h.cpu.cpu0"].iter().flat_map(|body| body.bytes.clone()).collect();
    assert_eq!(text(&bytes), text(&[written, more].concat()));
}

/// Two mount points under one name of a host.
#[test]
fn second_forwarder_of_a_host_is_noticed() {
    let server = Server::start("");
    let mounts = [Mount::new(ARGS), Mount::new(ARGS)];
    let mut forwarders =
        mounts.each_ref().map(|mount| Forwarder::start(mount, &server.url(), "h", &["--create"]));
    let mut ended = false;
    eventually("an error of one of them", || {
        mounts.iter().zip(&mut forwarders).for_each(|(mount, forwarder)| {
            mount.send(0, &[&[b'x'; 15_000]]);
            ended |= !forwarder.process().is_running();
        });
        ended
    });
    let said = forwarders.each_ref().map(Forwarder::said).concat();
    assert!(said.contains("another forwarder writes to relay.h.cpu.cpu0"), "{said}");
}

/// Channels are forwarded when they come, and are not kept when their producers go.
#[test]
fn channels_come_and_go() {
    let (server, mount) = (Server::start(""), Mount::new(ARGS));
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &["--create"]);
    let channel =
        relay_producer::Channel::builder(mount.point(), "app/log").create(true).open().expect("a channel");
    channel.write(b"of a guest").expect("writing");
    eventually("the message to be given back", || mount.stats("app/log")["total.read_bytes"] == 10);
    drop(channel);
    eventually("the channel to go", || !mount.control("app/log", "stats").exists());
    forwarder.end();
    let messages = server.client().read();
    let found = messages.iter().any(|message| {
        message.subject.starts_with("relay.h.app/log.cpu") && &message.payload[..] == b"of a guest"
    });
    assert!(found, "the message");
}
