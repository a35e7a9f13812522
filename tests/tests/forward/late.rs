//! Messages that come late: behind what the forwarder has asked, and in front of what it sends then.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use nix::sys::signal::Signal;
use relayfs_tests::{Mount, eventually};

use crate::order::all_is_given_back;
use crate::server::{Forwarder, Server};
use crate::stored::{raw, sub_buffers};

const ARGS: &[&str] = &["--subbuf-size=4K", "--n-subbufs=256"];
const SUBJECT: &str = "relay.h.cpu.cpu0";
/// Sub-buffers of the buffer.
const N: usize = 200;
/// Bytes that are more than one message.
const SEVERAL: usize = 3 * 4096;
/// Bytes of a sub-buffer's message.
const LEN: usize = 4096;

/// A way to the server on which a forwarder's messages can be held.
struct Way {
    port: u16,
    gates: Arc<[Gate; 2]>,
}

/// Holds what is on one connection: all, or from the first message for the stream on.
#[derive(Default)]
struct Gate {
    state: Mutex<Held>,
    changed: Condvar,
}

#[derive(Default)]
struct Held {
    is_closed: bool,
    bytes: usize,
}

impl Gate {
    fn close(&self) {
        self.state.lock().expect("a gate").is_closed = true;
    }

    fn open(&self) {
        self.state.lock().expect("a gate").is_closed = false;
        self.changed.notify_all();
    }

    fn held(&self) -> usize {
        self.state.lock().expect("a gate").bytes
    }

    fn hold(&self, bytes: usize) {
        let mut state = self.state.lock().expect("a gate");
        state.bytes = bytes;
        drop(self.changed.wait_while(state, |held| held.is_closed).expect("a gate"));
    }

    fn is_closed(&self) -> bool {
        self.state.lock().expect("a gate").is_closed
    }
}

impl Way {
    /// The first connection has the first gate, and later ones the second.
    #[track_caller]
    fn to(server: u16) -> Way {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let gates: Arc<[Gate; 2]> = Arc::default();
        let all = Arc::clone(&gates);
        thread::spawn(move || {
            for (n, client) in listener.incoming().flatten().enumerate() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { return };
                let gates = Arc::clone(&all);
                let (mut from, mut to) =
                    (server.try_clone().expect("a handle"), client.try_clone().expect("a handle"));
                thread::spawn(move || std::io::copy(&mut from, &mut to));
                thread::spawn(move || pass(client, server, &gates[n.min(1)], n > 0));
            }
        });
        Way { port, gates }
    }

    fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }
}

/// Passes on what a client sends. The gate holds all, or what has messages for the stream.
fn pass(mut client: TcpStream, mut server: TcpStream, gate: &Gate, only_messages: bool) {
    let mut waiting = Vec::new();
    let mut chunk = vec![0; 1 << 16];
    // What a killed client has sent is passed on.
    while let Ok(len) = client.read(&mut chunk) {
        waiting.extend_from_slice(&chunk[..len]);
        let has_messages = || waiting.windows(5).any(|word| word == b"HPUB ");
        if gate.is_closed() && (!only_messages || has_messages()) {
            // All that the client has sent before it stands still or ends.
            if !only_messages && len > 0 && waiting.len() <= SEVERAL {
                continue;
            }
            gate.hold(waiting.len());
        }
        if server.write_all(&waiting).is_err() || len == 0 {
            return;
        }
        waiting.clear();
    }
}

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
    let mut forwarder = Forwarder::start(&mount, &way.url(), "h", &[]);
    eventually("messages behind others", || client.count() > 60);
    first.close();
    second.close();
    eventually("several messages on the way", || first.held() > SEVERAL);
    forwarder.kill();
    let before = client.count();
    forwarder.restart();
    eventually("a message of the next forwarder", || second.held() > 0);
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
    let mut forwarder = Forwarder::start(&mount, &way.url(), "h", &[]);
    eventually("messages behind others", || client.count() > 60);
    first.close();
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
