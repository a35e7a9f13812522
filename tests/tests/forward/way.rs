//! A way to the server on which messages wait where a test says so, however fast forwarder and server are.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

/// Bytes that are more than one message.
pub(crate) const SEVERAL: usize = 3 * 4096;

/// A way to the server on which a forwarder's messages can be held.
pub(crate) struct Way {
    port: u16,
    pub(crate) gates: Arc<[Gate; 2]>,
}

/// Holds what is on one connection: all, or from the first message for the stream on.
#[derive(Default)]
pub(crate) struct Gate {
    state: Mutex<Held>,
    changed: Condvar,
}

#[derive(Default)]
struct Held {
    is_closed: bool,
    /// How many more messages pass until the gate closes by itself.
    n_left: Option<usize>,
    bytes: usize,
}

impl Gate {
    pub(crate) fn close(&self) {
        self.state.lock().expect("a gate").is_closed = true;
    }

    /// Closes behind this many messages, or a few less.
    pub(crate) fn close_behind(&self, n: usize) {
        self.state.lock().expect("a gate").n_left = Some(n);
    }

    pub(crate) fn open(&self) {
        self.state.lock().expect("a gate").is_closed = false;
        self.changed.notify_all();
    }

    pub(crate) fn held(&self) -> usize {
        self.state.lock().expect("a gate").bytes
    }

    fn hold(&self, bytes: usize) {
        let mut state = self.state.lock().expect("a gate");
        state.bytes = bytes;
        drop(self.changed.wait_while(state, |held| held.is_closed).expect("a gate"));
    }

    /// Whether what comes now is held. It has `n` messages.
    fn is_closed_to(&self, n: usize) -> bool {
        let mut state = self.state.lock().expect("a gate");
        if let Some(n_left) = state.n_left {
            state.n_left = n_left.checked_sub(n);
            state.is_closed |= n > n_left;
        }
        state.is_closed
    }
}

impl Way {
    /// The first connection has the first gate, and later ones the second.
    #[track_caller]
    pub(crate) fn to(server: u16) -> Way {
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

    pub(crate) fn url(&self) -> String {
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
        let n_messages = waiting.windows(5).filter(|word| word == b"HPUB ").count();
        if gate.is_closed_to(n_messages) && (!only_messages || n_messages > 0) {
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
