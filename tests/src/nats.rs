//! A NATS server for a test, and a client that publishes whatever a test wants.
//!
//! The client speaks the protocol itself. So it can also publish what no library would.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Stdio;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{DEADLINE, Process, eventually, tool};

/// The option for JetStream.
const JETSTREAM: &[&str] = &["--jetstream"];

/// A server with a temporary store.
#[derive(Debug)]
pub struct NatsServer {
    process: Process,
    dir: TempDir,
    port: u16,
    monitor: u16,
}

/// What a server has counted since its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Messages from clients: requests, and what they publish.
    pub messages: u64,
    /// Connections that were made.
    pub connections: u64,
}

impl NatsServer {
    /// Starts a server on a free port. `args` are further options.
    #[track_caller]
    pub fn start(args: &[&str]) -> NatsServer {
        NatsServer::start_with(&[JETSTREAM, args].concat())
    }

    /// Starts a server without JetStream: a client can answer in its place.
    #[track_caller]
    pub fn without_jetstream() -> NatsServer {
        NatsServer::start_with(&[])
    }

    #[track_caller]
    fn start_with(args: &[&str]) -> NatsServer {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let process = NatsServer::run(&dir, "-1", args);
        let mut server = NatsServer { process, dir, port: 0, monitor: 0 };
        server.wait_for_ports();
        server
    }

    fn run(dir: &TempDir, port: &str, args: &[&str]) -> Process {
        let path = |name: &str| dir.path().join(name);
        let mut command = tool("nats-server", "nats-server");
        command.args(["-a", "127.0.0.1", "-p", port, "-m", "-1", "-sd"]).arg(path("store"));
        command.arg("--ports_file_dir").arg(dir.path()).arg("--log").arg(path("log")).args(args);
        Process::start(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()))
    }

    /// Waits until the server says where it listens.
    #[track_caller]
    fn wait_for_ports(&mut self) {
        let file = self.dir.path().join(format!("nats-server_{}.ports", self.process.pid()));
        eventually("ports of nats-server", || {
            assert!(self.process.is_running(), "nats-server has ended: {}", self.log());
            let text = fs::read_to_string(&file).unwrap_or_default();
            let port = |scheme: &str| {
                let after = text.split(&format!("\"{scheme}://127.0.0.1:")).nth(1);
                after.and_then(|rest| rest.split('"').next()?.parse().ok())
            };
            let (Some(port), Some(monitor)) = (port("nats"), port("http")) else { return false };
            (self.port, self.monitor) = (port, monitor);
            true
        });
    }

    /// Returns what the server has counted.
    #[track_caller]
    pub fn counted(&self) -> Counted {
        let mut stream = TcpStream::connect(("127.0.0.1", self.monitor)).expect("the server's monitor");
        stream.write_all(b"GET /varz HTTP/1.0\r\n\r\n").expect("asking the monitor");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer of the monitor");
        let number = |name: &str| -> u64 {
            let after = answer.split(&format!("\"{name}\": ")).nth(1);
            let digits = after.and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next());
            digits.and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("no {name} in {answer}"))
        };
        Counted { messages: number("in_msgs"), connections: number("total_connections") }
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// The server's URL.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The directory of its store.
    pub fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    /// Kills the server.
    pub fn kill(&mut self) {
        self.process.signal(Signal::SIGKILL);
        self.process.wait();
    }

    /// Starts the server again, on the same port and with the same store.
    #[track_caller]
    pub fn restart(&mut self, args: &[&str]) {
        let port = self.port;
        self.process = NatsServer::run(&self.dir, &port.to_string(), &[JETSTREAM, args].concat());
        self.wait_for_ports();
        assert_eq!(self.port, port);
    }

    /// Returns a client.
    #[track_caller]
    pub fn client(&self) -> NatsClient {
        NatsClient::connect(self.port)
    }
}

/// A client of the plain protocol.
#[derive(Debug)]
pub struct NatsClient {
    stream: BufReader<TcpStream>,
}

impl NatsClient {
    /// Connects to a server on this port.
    #[track_caller]
    pub fn connect(port: u16) -> NatsClient {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection to nats-server");
        stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        stream.set_nodelay(true).expect("a socket option");
        let mut client = NatsClient { stream: BufReader::new(stream) };
        assert!(client.line().starts_with("INFO "));
        client
            .send(b"CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true}\r\nSUB answer 1\r\n");
        client
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).expect("writing to nats-server");
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("a line of nats-server");
        line
    }

    /// Waits for the next message of our subscription; returns its body.
    #[track_caller]
    fn answer(&mut self) -> String {
        loop {
            let line = self.line();
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.first().copied() {
                Some("PING") => self.send(b"PONG\r\n"),
                Some("MSG" | "HMSG") => {
                    let len: usize = words.last().expect("a length").parse().expect("a length");
                    let mut body = vec![0; len + 2];
                    self.stream.read_exact(&mut body).expect("a body");
                    return String::from_utf8_lossy(&body).trim_end().to_owned();
                }
                Some("INFO" | "PONG") => {}
                _ => panic!("nats-server says {line:?}"),
            }
        }
    }

    /// Asks the server, and returns its answer.
    #[track_caller]
    pub fn request(&mut self, subject: &str, body: &str) -> String {
        self.send(format!("PUB {subject} answer {}\r\n{body}\r\n", body.len()).as_bytes());
        self.answer()
    }

    /// Answers requests on a subject until the server ends: `answer` gets a request's subject and body, and returns
    /// headers and body. `None`: no answer.
    pub fn serve(mut self, subject: &str, mut answer: impl FnMut(&str, &str) -> Option<(Vec<u8>, Vec<u8>)>) {
        self.send(format!("SUB {subject} 2\r\n").as_bytes());
        let mut line = String::new();
        while let Ok(1..) = self.stream.read_line(&mut line) {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let ["PING"] = words[..] {
                self.send(b"PONG\r\n");
            }
            if let ["MSG", subject, _, reply, len] = words[..] {
                let mut body = vec![0; len.parse::<usize>().expect("a length") + 2];
                self.stream.read_exact(&mut body).expect("a body");
                if let Some((headers, body)) = answer(subject, String::from_utf8_lossy(&body).trim_end()) {
                    let (len, total) = (headers.len(), headers.len() + body.len());
                    let first = format!("HPUB {reply} {len} {total}\r\n");
                    self.send(&[first.as_bytes(), &headers, &body, b"\r\n"].concat());
                }
            }
            line.clear();
        }
    }

    /// Creates a stream for the subjects `NAME.>`. `more` are further fields, each behind a comma.
    #[track_caller]
    pub fn create_stream(&mut self, name: &str, more: &str) {
        let body = format!("{{\"name\":\"{name}\",\"subjects\":[\"{name}.>\"],\"storage\":\"file\"{more}}}");
        let answer = self.request(&format!("$JS.API.STREAM.CREATE.{name}"), &body);
        assert!(!answer.contains("\"error\""), "{answer}");
    }

    /// Publishes a message; returns its sequence in the stream.
    #[track_caller]
    pub fn publish(&mut self, subject: &str, headers: &[(&str, &str)], body: &[u8]) -> u64 {
        let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        self.publish_with(subject, format!("NATS/1.0\r\n{lines}\r\n").as_bytes(), body)
    }

    /// Publishes a message whose headers are these bytes.
    #[track_caller]
    pub fn publish_with(&mut self, subject: &str, headers: &[u8], body: &[u8]) -> u64 {
        let (len, total) = (headers.len(), headers.len() + body.len());
        // In one piece: what follows a first small piece waits for an acknowledgement of the network.
        let first = format!("HPUB {subject} answer {len} {total}\r\n");
        self.send(&[first.as_bytes(), headers, body, b"\r\n"].concat());
        let answer = self.answer();
        let sequence = answer.split("\"seq\":").nth(1).and_then(|rest| {
            let digits = rest.trim_start().split(|c: char| !c.is_ascii_digit()).next()?;
            digits.parse().ok()
        });
        sequence.unwrap_or_else(|| panic!("{subject} is not stored: {answer}"))
    }
}
