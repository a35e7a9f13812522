//! What a forwarder puts into a stream, made by a test: copies of a channel as messages.

use std::fs;
use std::process::Command;

use relay::trace::packet::Packets;

use crate::nats::NatsClient;
use crate::{Mount, program};

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
