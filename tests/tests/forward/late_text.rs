//! A text that comes late, when the next one is on the way: each packet names the text that has its events.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use relayfs_tests::Mount;
use relayfs_tests::peer::Peer;
use relayfs_tests::timed::{define, open, record, write};

use crate::lost::TIMED;
use crate::order::all_is_given_back;
use crate::server::{Forwarder, Server};
use crate::stored::header;

const SUBJECT: &str = "relay.h.box.metadata";
/// An event of the second text alone.
const EVENT: &str = "defined later";

/// Returns the port of a way to the server. Texts without the event go to another subject, to which nothing listens.
/// The first of them comes directly in front of the first text with the event.
#[track_caller]
fn way_to(server: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("its address").port();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { return };
            let (mut from, mut to) =
                (server.try_clone().expect("a handle"), client.try_clone().expect("a handle"));
            thread::spawn(move || std::io::copy(&mut from, &mut to));
            thread::spawn(move || pass(client, server));
        }
    });
    port
}

fn pass(client: TcpStream, mut server: TcpStream) {
    let mut client = BufReader::new(client);
    let (mut late, mut is_there) = (None, false);
    while let Some(mut frame) = frame(&mut client) {
        if frame.starts_with(format!("HPUB {SUBJECT} ").as_bytes()) && !is_there {
            is_there = frame.windows(EVENT.len()).any(|word| word == EVENT.as_bytes());
            if is_there {
                frame.splice(0..0, late.take().unwrap_or_default());
            } else {
                late.get_or_insert_with(|| frame.clone());
                frame.insert("HPUB ".len(), b'x');
            }
        }
        if server.write_all(&frame).is_err() {
            return;
        }
    }
}

/// Reads a line of the protocol, with the message that follows it.
fn frame(from: &mut impl BufRead) -> Option<Vec<u8>> {
    let mut frame = Vec::new();
    from.read_until(b'\n', &mut frame).ok().filter(|len| *len > 0)?;
    let line = String::from_utf8_lossy(&frame);
    if line.starts_with("HPUB ") || line.starts_with("PUB ") {
        let len: u64 = line.split_whitespace().last()?.parse().ok()?;
        from.take(len + 2).read_to_end(&mut frame).ok()?;
    }
    Some(frame)
}

#[test]
fn text_is_not_taken_for_one_before_that_comes_late() {
    let (server, mount) = (Server::start(""), Mount::new(TIMED));
    let client = server.client();
    client.create(|_| {});
    let url = format!("nats://127.0.0.1:{}", way_to(server.port()));
    let mut forwarder = Forwarder::start(&mount, &url, "h", &[]);
    assert_eq!(mount.send_to("box", 0, &[b"before"]).written, 1);
    forwarder.says("nothing takes messages for it; trying again");
    let peer = Peer::hello(&mount);
    let channel = open(&peer, "box", "timed").channel;
    let id = define(&peer, channel, EVENT, &[]).expect("an event");
    let id = id.try_into().expect("a number of 16 bits");
    write(&peer, channel, 1, &[record(id, 1, b"")]).expect("a record");
    all_is_given_back(&mount, "box");
    forwarder.end();
    let messages = client.read();
    let packet = messages.iter().find(|message| message.subject.ends_with(".box.cpu1")).expect("a packet");
    let named: u64 = header(packet, "Relay-Dictionary").parse().expect("a sequence");
    let text = messages.iter().find(|message| message.sequence == named).expect("a dictionary");
    let of_texts = messages.iter().filter(|message| message.subject.as_str() == SUBJECT);
    assert_eq!(of_texts.count(), 2, "the late one and the other");
    assert!(String::from_utf8_lossy(&text.payload).contains(EVENT), "{named}");
}
