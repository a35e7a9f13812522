//! Attaches to a timed channel, writes a record, and waits for a line.
//!
//! `test-attached SOCKET CHANNEL TEXT [close]` prints its number in the channel, then waits. Then it writes a last record
//! without waiting for an answer, and exits with the status that the line says; for an empty line it aborts. With
//! `close` it closes the channel first.

use std::io::stdin;
use std::path::Path;
use std::process::{abort, exit};

use relay::wire::frame::{Body, Close, HelloReply, Write};
use relayfs_tests::peer::{Peer, hello, messages};
use relayfs_tests::timed;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, socket, channel, text, rest @ ..] = args.as_slice() else { panic!("SOCKET CHANNEL TEXT") };
    let peer = Peer::connect_to(Path::new(socket));
    peer.ask::<HelloReply>(&hello(1, 1)).unwrap();
    let channel = timed::open(&peer, channel, "timed").channel;
    let number = timed::attach(&peer, channel).process;
    let pid = std::process::id();
    timed::write(&peer, channel, 0, &[timed::record(0, pid, text.as_bytes())]).unwrap();
    println!("{number}");
    let mut line = String::new();
    stdin().read_line(&mut line).expect("a line");
    if rest.first().is_some_and(|word| word == "close") {
        peer.send(&Close { channel }.frame(0, 5));
        peer.receive().expect("an answer");
    } else {
        let last = messages(&[&timed::record(0, pid, b"last words")]);
        peer.send(&Write { channel, cpu: 0, wait_ms: 0, lost: 0, messages: &last }.frame(0, 6));
    }
    match line.trim() {
        "" => abort(),
        status => exit(status.parse().expect("a status")),
    }
}
