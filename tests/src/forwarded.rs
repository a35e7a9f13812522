//! What a forwarder puts into a stream, made by a test, and a reader of the stream.

use std::fs;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use relay::GeometrySpec;
use relay::trace::event::id;
use relay::trace::metadata::Metadata;
use relay::trace::packet::{HEADER_LEN, PacketHeader, Packets};
use relay::trace::record::Record;
use tempfile::TempDir;

use crate::nats::{NatsClient, NatsServer};
use crate::{Mount, Process, eventually, exit_code, program};

/// Geometry of channels that are made up.
const GEOMETRY: &str = "subbuf-size=4K:n-subbufs=4:timed";
/// When the clock of a made-up channel is zero, in nanoseconds since 1970: a second of 2023.
const BEGIN: u64 = 1_700_000_000_000_000_000;

/// The command `relay-forward --from URL ARGS`.
pub fn from(url: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program("relay-forward"));
    command.arg("--from").arg(url).args(args);
    command
}

/// A channel of a host, as a forwarder writes it.
#[derive(Clone, Debug)]
pub struct Origin {
    /// Name of the host, as a token.
    pub host: String,
    /// Name of the channel.
    pub channel: String,
    /// Identifies the channel.
    pub instance: u64,
    /// The channel's geometry.
    pub geometry: String,
    /// Clock and anchors, as headers.
    pub clock: Vec<(String, String)>,
    /// Sequences of the texts.
    pub texts: Option<(u64, u64)>,
}

impl Origin {
    /// Makes up a timed channel that no daemon has, with CLOCK_MONOTONIC, whose zero is a second of 2023.
    pub fn made_up(host: &str, channel: &str) -> Origin {
        Origin::made_up_at(host, channel, BEGIN)
    }

    /// The same, with a clock that is zero at this time, in nanoseconds since 1970.
    pub fn made_up_at(host: &str, channel: &str, begin: u64) -> Origin {
        let anchor = format!("0 0 0 {begin} 0");
        let clock = [("Relay-Clock", "monotonic 1000000000"), ("Relay-Anchor", &anchor)];
        Origin {
            host: host.to_owned(),
            channel: channel.to_owned(),
            instance: 1,
            geometry: GEOMETRY.to_owned(),
            clock: clock.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
            texts: None,
        }
    }

    /// Takes what a daemon says about a timed channel, and publishes its texts.
    #[track_caller]
    pub fn of(mount: &Mount, host: &str, channel: &str, client: &mut NatsClient) -> Origin {
        let file = |name| fs::read_to_string(mount.control(channel, name)).expect("a control file");
        let mut origin = Origin {
            host: host.to_owned(),
            channel: channel.to_owned(),
            instance: 7,
            geometry: String::new(),
            clock: Vec::new(),
            texts: None,
        };
        let metadata = file("metadata");
        let geometry =
            metadata.lines().find_map(|line| line.trim().strip_prefix("geometry = \"")?.strip_suffix("\";"));
        origin.geometry = geometry.expect("a geometry").to_owned();
        for line in file("clock").lines() {
            let (word, rest) = line.split_once(' ').expect("words");
            let name = if word == "clock" { "Relay-Clock" } else { "Relay-Anchor" };
            origin.clock.push((name.to_owned(), rest.to_owned()));
        }
        origin.send_texts(&metadata, &file("processes"), client);
        origin
    }

    /// Publishes the texts.
    pub fn send_texts(&mut self, metadata: &str, processes: &str, client: &mut NatsClient) {
        let instance = format!("{:016x}", self.instance);
        let headers = [("Relay-Format", "1"), ("Relay-Instance", instance.as_str()), ("Relay-Number", "0")];
        let mut send = |kind, text: &str| client.publish(&self.subject(kind), &headers, text.as_bytes());
        let dictionary = send("metadata", metadata);
        self.texts = Some((dictionary, send("processes", processes)));
    }

    /// Publishes the texts of a channel that is made up: its dictionary, without events, and processes.
    #[track_caller]
    pub fn send_own_texts(&mut self, processes: &str, client: &mut NatsClient) {
        let geometry = self.geometry.parse::<GeometrySpec>().and_then(GeometrySpec::build);
        let (clock, anchors) = self.clock.split_first().expect("a clock");
        let anchors = anchors.iter().flat_map(|(_, value)| value.split(','));
        let anchors: String = anchors.map(|anchor| format!("anchor {anchor}\n")).collect();
        let metadata = Metadata {
            hostname: "h".to_owned(),
            channel: self.channel.clone(),
            geometry: geometry.expect("a geometry"),
            release: "0.1.0".to_owned(),
            timeline: format!("clock {}\n{anchors}", clock.1).parse().expect("a clock"),
        };
        self.send_texts(&metadata.write(""), processes, client);
    }

    /// Returns a subject of the channel.
    pub fn subject(&self, kind: &str) -> String {
        format!("relay.{}.{}.{kind}", self.host, self.channel)
    }

    /// Returns the headers of a sub-buffer.
    pub fn headers(&self, number: u64, lost: u64) -> Vec<(String, String)> {
        let mut headers: Vec<(String, String)> = [
            ("Relay-Format", "1".to_owned()),
            ("Relay-Instance", format!("{:016x}", self.instance)),
            ("Relay-Geometry", self.geometry.clone()),
            ("Relay-Number", number.to_string()),
            ("Relay-Position", "0".to_owned()),
            ("Relay-Lost", lost.to_string()),
            ("Relay-Lost-Too-Big", "0".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec();
        headers.extend(self.clock.iter().cloned());
        if let Some((dictionary, processes)) = self.texts {
            headers.push(("Relay-Dictionary".to_owned(), dictionary.to_string()));
            headers.push(("Relay-Processes".to_owned(), processes.to_string()));
        }
        headers
    }

    /// Publishes a body of a CPU, in this many parts.
    pub fn send(
        &self,
        cpu: usize,
        number: u64,
        lost: u64,
        parts: usize,
        body: &[u8],
        client: &mut NatsClient,
    ) {
        let headers = self.headers(number, lost);
        let len = body.len().div_ceil(parts).max(1);
        let chunks: Vec<&[u8]> = if body.is_empty() { vec![body] } else { body.chunks(len).collect() };
        for (n, chunk) in chunks.iter().enumerate() {
            let part = format!("{}/{}", n + 1, chunks.len());
            let mut headers: Vec<(&str, &str)> =
                headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            if chunks.len() > 1 {
                headers.push(("Relay-Part", &part));
            }
            client.publish(&self.subject(&format!("cpu{cpu}")), &headers, chunk);
        }
    }

    /// Publishes a sub-buffer with one text, `HOST.CPU.NUMBER`.
    pub fn send_text(&self, cpu: u32, number: u64, lost: u64, stamp: u64, client: &mut NatsClient) {
        let packet = packet(cpu, number, lost, stamp, &format!("{}.{cpu}.{number}", self.host));
        self.send(cpu as usize, number, lost, 1, &packet, client);
    }

    /// Publishes a copy of what is in a CPU's buffer, each sub-buffer in this many parts. Returns how many there were.
    #[track_caller]
    pub fn send_copy(&self, mount: &Mount, cpu: usize, parts: usize, client: &mut NatsClient) -> usize {
        let copy = fs::read(mount.control(&self.channel, &format!("snapshot/cpu{cpu}"))).expect("a copy");
        let mut n = 0;
        let mut at = 0;
        for packet in Packets::new(&copy) {
            let header = packet.expect("a packet").header;
            let end = at + header.packet_len() as usize;
            self.send(cpu, header.number, header.discarded, parts, &copy[at..end], client);
            (n, at) = (n + 1, end);
        }
        n
    }
}

/// Returns a packet with one text.
pub fn packet(cpu: u32, number: u64, discarded: u64, stamp: u64, message: &str) -> Vec<u8> {
    let mut packet = vec![0; HEADER_LEN];
    Record { stamp, id: id::TEXT, tid: 7, payload: message.as_bytes() }.encode_into(&mut packet);
    let records_len = (packet.len() - HEADER_LEN) as u64;
    let header = PacketHeader { cpu, begin: stamp, end: stamp, records_len, padding: 0, number, discarded };
    packet[..HEADER_LEN].copy_from_slice(&header.encode());
    packet
}

/// A running `relay-forward --from URL -f`.
#[derive(Debug)]
pub struct Follower {
    process: Process,
    dir: TempDir,
}

impl Follower {
    /// Starts it; its output goes into files.
    #[track_caller]
    pub fn start(server: &NatsServer, args: &[&str]) -> Follower {
        Follower::of(&server.url(), args)
    }

    /// Starts it with servers of these URLs.
    #[track_caller]
    pub fn of(urls: &str, args: &[&str]) -> Follower {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = |name| fs::File::create(dir.path().join(name)).expect("a file");
        let mut command: Command = from(urls, args);
        command.arg("-f").stdin(Stdio::null()).stdout(file("out")).stderr(file("err"));
        Follower { process: Process::start(&mut command), dir }
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Returns what it has printed.
    pub fn out(&self) -> String {
        self.read("out")
    }

    /// Returns what it has said.
    pub fn said(&self) -> String {
        self.read("err")
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).expect("a file")
    }

    /// Waits until the texts are these.
    #[track_caller]
    pub fn has(&self, expected: &[&str]) {
        eventually(&format!("{expected:?}, and {}", self.said()), || {
            let out = self.out();
            let words: Vec<&str> = out.lines().filter_map(|line| line.rsplit(": ").next()).collect();
            words == expected
        });
    }

    /// Ends it as a service manager does, and returns what it has said.
    #[track_caller]
    pub fn end(mut self) -> String {
        self.process.signal(Signal::SIGTERM);
        assert_eq!(exit_code(self.process.wait()), 0, "{}", self.said());
        self.said()
    }
}
