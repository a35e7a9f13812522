//! systemd-journald, to measure beside relayfs, if it is there.
//!
//! A private one: in a mount and a process namespace, with its journal in memory, and without a limit of messages. So each
//! message is taken. The process that sends is in the same namespaces, since the daemon looks at it in /proc.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Instant;

use crate::measure::{WRITER_CPU, on_cpu};
use crate::pages::EVENTUALLY;
use crate::{Process, private_shell};

/// Argument of a process that sends messages to the journal.
pub(crate) const SEND: &str = "send-to-journal";
const DAEMON: &str = "/lib/systemd/systemd-journald";
/// The text in place of numbers if there is none.
pub const NOT_INSTALLED: &str = "not there: apt-get install systemd";
/// The socket of messages with fields, which sd_journal_send(3) uses.
const SOCKET: &str = "/run/systemd/journal/socket";

/// Answers each line "LEN N" with nanoseconds. What is sent is in the journal then.
const SCRIPT: &str = r#"
exec 3>&1 >/run/said 2>&1
mkdir -p /run/systemd/journald.conf.d
printf '[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\nRuntimeMaxUse=64M\nReadKMsg=no\n' >/run/systemd/journald.conf.d/bench.conf
"$2" &
eventually test -S /run/systemd/journal/socket
while read -r len n; do
    nanos=$("$1" send-to-journal "$len" "$n")
    journalctl --sync 2>&1 || true
    last() { journalctl --quiet --lines=1 --output=cat _TRANSPORT=journal | grep -qx "m\{$len\}"; }
    eventually last
    echo "$nanos" >&3
done
"#;

/// A shell with a daemon of the journal.
#[derive(Debug)]
pub struct Journald {
    talk: RefCell<(ChildStdin, BufReader<ChildStdout>)>,
    _shell: Process,
}

impl Journald {
    /// Starts it. `None` if there is no such program.
    pub fn start() -> Option<Journald> {
        if !Path::new(DAEMON).exists() {
            return None;
        }
        let mut shell = private_shell(&format!("{EVENTUALLY}\n{SCRIPT}"));
        shell.arg(std::env::current_exe().expect("our own path")).arg(DAEMON);
        let mut shell = Process::start(shell.stdin(Stdio::piped()).stdout(Stdio::piped()));
        let Child { stdin, stdout, .. } = shell.child();
        let commands = stdin.take().expect("a pipe");
        let answers = BufReader::new(stdout.take().expect("a pipe"));
        Some(Journald { talk: RefCell::new((commands, answers)), _shell: shell })
    }

    /// Sends `n` messages of `len` bytes each from CPU 0. Returns the nanoseconds that one took.
    pub fn send(&self, len: usize, n: usize) -> f64 {
        let (commands, answers) = &mut *self.talk.borrow_mut();
        writeln!(commands, "{len} {n}").expect("a shell that listens");
        let mut line = String::new();
        answers.read_line(&mut line).expect("an answer");
        line.trim().parse().unwrap_or_else(|_| panic!("what the journal came to: {line:?}"))
    }
}

/// Sends messages as sd_journal_send(3) does, and prints the nanoseconds that one took.
pub(crate) fn send(len: usize, n: usize) {
    let socket = UnixDatagram::unbound().expect("a socket");
    socket.connect(SOCKET).expect("the journal's socket");
    let message = format!("PRIORITY=6\nMESSAGE={}\n", "m".repeat(len));
    let nanos = on_cpu(WRITER_CPU, || {
        let begun = Instant::now();
        for _ in 0..n {
            socket.send(message.as_bytes()).expect("sending to the journal");
        }
        begun.elapsed().as_secs_f64() * 1e9 / n as f64
    });
    println!("{nanos}");
}
