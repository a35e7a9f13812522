//! What packets mean is in the stream: also where the answer to a text is lost, where a part of it is removed, and where a
//! process ends at once.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use relayfs_tests::forwarded::from;
use relayfs_tests::{Mount, eventually, program, stdout_of, text};

use crate::lost::TIMED;
use crate::order::all_is_given_back;
use crate::server::{Client, Forwarder, Server};
use crate::stored::{header, raw, sub_buffers};

/// A way to the server that loses the answer to the first message with some bytes, or the messages of a subject.
struct Way {
    port: u16,
    lost: Arc<Mutex<Option<Vec<u8>>>>,
    misled: Arc<Mutex<Misled>>,
}

/// A subject whose messages go to another one, to which nothing listens.
#[derive(Default)]
struct Misled {
    subject: String,
    /// How many more of them do.
    n: usize,
}

impl Misled {
    /// Changes the subject in what is passed on.
    fn change(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut changed = Vec::with_capacity(bytes.len());
        let word = format!("HPUB {} ", self.subject).into_bytes();
        for byte in bytes {
            changed.push(*byte);
            if self.n > 0 && changed.ends_with(&word) {
                self.n -= 1;
                changed.insert(changed.len() - word.len() + "HPUB ".len(), b'x');
            }
        }
        changed
    }
}

impl Way {
    #[track_caller]
    fn to(server: u16) -> Way {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let lost: Arc<Mutex<Option<Vec<u8>>>> = Arc::default();
        let misled: Arc<Mutex<Misled>> = Arc::default();
        let of_all = (Arc::clone(&lost), Arc::clone(&misled));
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { return };
                let (lost, misled) = of_all.clone();
                let is_sent = Arc::new(AtomicBool::new(false));
                let ends = |from: &TcpStream, to: &TcpStream| {
                    (from.try_clone().expect("a handle"), to.try_clone().expect("a handle"))
                };
                let (up, down) = (ends(&client, &server), ends(&server, &client));
                let sent = Arc::clone(&is_sent);
                // Release and acquire: the answer comes behind the message.
                thread::spawn(move || {
                    pass(up, |bytes| {
                        let mut lost = lost.lock().expect("a lock");
                        let is_lost = |word: &Vec<u8>| bytes.windows(word.len()).any(|some| some == word);
                        sent.fetch_or(lost.take_if(|word| is_lost(word)).is_some(), Ordering::Release);
                        Some(misled.lock().expect("a lock").change(bytes))
                    });
                });
                let is_answer = |bytes: &[u8]| bytes.windows(ACK.len()).any(|some| some == ACK);
                thread::spawn(move || {
                    pass(down, |bytes| {
                        let is_lost = is_sent.load(Ordering::Acquire) && is_answer(bytes);
                        (!is_lost).then(|| bytes.to_vec())
                    });
                });
            }
        });
        Way { port, lost, misled }
    }

    /// Loses the answer to the next message for this subject.
    fn lose(&self, subject: &str) {
        *self.lost.lock().expect("a lock") = Some(format!("HPUB {subject} ").into_bytes());
    }

    /// Sends the next `n` messages of this subject to another one.
    fn mislead(&self, subject: &str, n: usize) {
        *self.misled.lock().expect("a lock") = Misled { subject: subject.to_owned(), n };
    }

    /// How many more messages are sent to another subject.
    fn n_misled(&self) -> usize {
        self.misled.lock().expect("a lock").n
    }

    fn has_lost(&self) -> bool {
        self.lost.lock().expect("a lock").is_none()
    }

    fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }
}

/// What an acknowledgement begins with.
const ACK: &[u8] = b"{\"stream\":\"relay\"";

/// Passes on what is made of what comes, until that is nothing. Then the connection is over.
fn pass((mut from, mut to): (TcpStream, TcpStream), mut make: impl FnMut(&[u8]) -> Option<Vec<u8>>) {
    let mut chunk = vec![0; 1 << 16];
    while let Ok(len @ 1..) = from.read(&mut chunk) {
        let Some(made) = make(&chunk[..len]) else { break };
        if to.write_all(&made).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

/// Checks that the last packet names the last message of this kind.
#[track_caller]
fn names_the_last(client: &Client, name: &str, subject: &str) {
    let (packet, text) = (client.last("relay.h.box.cpu0"), client.last(subject));
    assert_eq!(header(&packet, name), text.sequence.to_string(), "{name}");
}

#[test]
fn packet_names_the_text_whose_answer_is_lost() {
    let (server, mount) = (Server::start(""), Mount::new(TIMED));
    let client = server.client();
    client.create(|_| {});
    let way = Way::to(server.port());
    let mut forwarder = Forwarder::start(&mount, &way.url(), "h", &[]);
    for (name, kind) in [("Relay-Dictionary", "metadata"), ("Relay-Processes", "processes")] {
        let subject = format!("relay.h.box.{kind}");
        assert_eq!(mount.send_to("box", 0, &[b"before"]).written, 1);
        all_is_given_back(&mount, "box");
        names_the_last(&client, name, &subject);
        // The next process sends its texts, too.
        forwarder.end();
        way.lose(&subject);
        forwarder.restart();
        assert_eq!(mount.send_to("box", 0, &[b"behind"]).written, 1);
        all_is_given_back(&mount, "box");
        eventually("a lost answer", || way.has_lost());
        names_the_last(&client, name, &subject);
    }
    forwarder.end();
}

/// A text in parts, of which the first, one in the middle and the last are removed by their numbers.
#[test]
fn text_that_loses_a_part_is_sent_again() {
    let (server, mount) = (Server::start("max_payload: 1600"), Mount::new(TIMED));
    let client = server.client();
    client.create(|_| {});
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &[]);
    assert_eq!(mount.send_to("box", 0, &[b"before"]).written, 1);
    all_is_given_back(&mount, "box");
    let subject = "relay.h.box.metadata";
    for place in [0, 1, 2] {
        let parts: Vec<(u64, String)> = {
            let messages = client.read();
            let parts = messages.iter().filter(|message| message.subject.as_str() == subject);
            parts.map(|message| (message.sequence, header(message, "Relay-Part").to_owned())).collect()
        };
        let n_parts = parts.last().and_then(|(_, part)| part.split('/').nth(1)?.parse().ok());
        let n_parts: usize = n_parts.expect("parts");
        assert!(n_parts > 2, "{parts:?}");
        let text = &parts[parts.len() - n_parts..];
        let end = text[n_parts - 1].0;
        client.delete_message([text[0].0, text[1].0, end][place]);
        let last = format!("{n_parts}/{n_parts}");
        eventually("the text", || {
            let found = client.find_last(subject);
            found.is_some_and(|found| found.sequence > end && header(&found, "Relay-Part") == last)
        });
    }
    forwarder.end();
}

/// Each process ends before the next look at the processes is due.
#[test]
fn processes_of_a_moment_have_their_names() {
    let (server, mount) = (Server::start(""), Mount::new(TIMED));
    let mut forwarder = Forwarder::start(&mount, &server.url(), "h", &["--create"]);
    for n in 0..8 {
        let mut producer = Command::new(program("relay-producer"));
        producer.args(["-c", "box", "-m"]).arg(mount.point()).arg(format!("of process {n}"));
        stdout_of(&mut producer);
        all_is_given_back(&mount, "box");
    }
    let lines = text(&stdout_of(&mut from(&server.url(), &["-c", "box"])));
    let named = lines.lines().filter(|line| line.contains(" relay-producer[")).count();
    assert_eq!(named, 8, "{lines}");
    forwarder.end();
}

/// A stream that was just created answers a moment before it takes messages. That is nothing to say, unless it lasts.
#[test]
fn stream_that_takes_messages_a_moment_later_is_no_trouble() {
    let (server, mount) = (Server::start(""), Mount::new(TIMED));
    let way = Way::to(server.port());
    way.mislead("relay.h.cpu.cpu0", 1);
    let mut forwarder = Forwarder::start(&mount, &way.url(), "h", &["--create"]);
    assert_eq!(mount.send(0, &[b"early"]).written, 1);
    all_is_given_back(&mount, "cpu");
    assert_eq!((way.n_misled(), forwarder.said().as_str()), (0, "relay-forward: stream 'relay' created\n"));
    way.mislead("relay.h.cpu.cpu0", usize::MAX);
    assert_eq!(mount.send(0, &[b" later"]).written, 1);
    forwarder.says("stream 'relay' is there, and nothing takes messages for it; trying again");
    way.mislead("", 0);
    all_is_given_back(&mount, "cpu");
    forwarder.end();
    assert_eq!(raw(&sub_buffers(&server.client().read()), "h", "cpu")[0], b"early later");
    assert_eq!(forwarder.said().lines().count(), 3, "{}", forwarder.said());
}
