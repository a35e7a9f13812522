//! Subjects: `STREAM.HOST.CHANNEL.cpuN`, `STREAM.HOST.CHANNEL.metadata`, `STREAM.HOST.CHANNEL.processes`.

use std::fmt;

use relay::ChannelName;

use super::token::{from_token, to_token};

/// What the messages of a subject are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Sub-buffers of this CPU's buffer.
    Cpu(u32),
    /// The dictionary of a timed channel.
    Metadata,
    /// The processes of a timed channel.
    Processes,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Cpu(cpu) => write!(f, "cpu{cpu}"),
            Kind::Metadata => f.write_str("metadata"),
            Kind::Processes => f.write_str("processes"),
        }
    }
}

/// A subject, taken apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Subject {
    /// Name of the host.
    pub(crate) host: String,
    /// Name of the channel.
    pub(crate) channel: ChannelName,
    /// What the messages are.
    pub(crate) kind: Kind,
}

impl Subject {
    /// Returns the text of the subject in this stream.
    pub(crate) fn encode(&self, stream: &str) -> String {
        format!("{stream}.{}.{}.{}", to_token(&self.host), to_token(self.channel.as_str()), self.kind)
    }

    /// Returns the subject of this text; `None` if no forwarder writes to it.
    pub(crate) fn decode(stream: &str, text: &str) -> Option<Subject> {
        let mut tokens = text.strip_prefix(stream)?.strip_prefix('.')?.split('.');
        let (host, channel, kind) = (tokens.next()?, tokens.next()?, tokens.next()?);
        if tokens.next().is_some() {
            return None;
        }
        let kind = match kind {
            "metadata" => Kind::Metadata,
            "processes" => Kind::Processes,
            cpu => {
                let digits = cpu.strip_prefix("cpu")?;
                // One number has one subject.
                Kind::Cpu(digits.parse().ok().filter(|number: &u32| number.to_string() == digits)?)
            }
        };
        Some(Subject { host: from_token(host)?, channel: from_token(channel)?.parse().ok()?, kind })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subject(host: &str, channel: &str, kind: Kind) -> Subject {
        Subject { host: host.to_owned(), channel: channel.parse().unwrap(), kind }
    }

    #[test]
    fn a_subject_has_the_names_and_the_kind() {
        for (text, expected) in [
            ("relay.web1.cpu.cpu0", subject("web1", "cpu", Kind::Cpu(0))),
            ("relay.web1%2Eorg.app/log%2E1.cpu11", subject("web1.org", "app/log.1", Kind::Cpu(11))),
            ("relay.web1.app/log.metadata", subject("web1", "app/log", Kind::Metadata)),
            ("relay.web1.app/log.processes", subject("web1", "app/log", Kind::Processes)),
        ] {
            assert_eq!(Subject::decode("relay", text), Some(expected.clone()));
            assert_eq!(expected.encode("relay"), text);
        }
        for wrong in [
            "relay",
            "relay.web1.cpu",
            "relay.web1.cpu.cpu",
            "relay.web1.cpu.cpu-1",
            "relay.web1.cpu.cpu+1",
            "relay.web1.cpu.cpu01",
            "relay.web1.cpu.cpu4294967296",
            "relay.web1.cpu.cpu0.more",
            "relay.web1..cpu0",
            "relay..cpu.cpu0",
            "relay.web1..hidden.cpu0",
            "relay.web1.%2Ehidden.cpu0",
            "other.web1.cpu.cpu0",
            "relay2.web1.cpu.cpu0",
        ] {
            assert_eq!(Subject::decode("relay", wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn the_longest_channel_has_a_subject() {
        let channel = vec!["x".repeat(200); 4].join("/");
        let text = subject(&"h".repeat(64), &channel, Kind::Cpu(u32::MAX)).encode("relay");
        // A server refuses lines of more than 4096 bytes, which also have a reply's subject.
        assert!(text.len() < 3072);
    }

    proptest! {
        #[test]
        fn any_text_is_a_subject_as_it_is_written_or_none(text in prop_oneof![".*", "relay(\\.[a%2E/0-9cpu]*){0,5}"]) {
            if let Some(subject) = Subject::decode("relay", &text) {
                prop_assert_eq!(subject.encode("relay"), text);
            }
        }
    }
}
