//! Which subjects of a stream are asked for.

use relay::ChannelName;

use super::error::Failure;
use crate::message::{Kind, Subject, to_token};
use crate::options::{ALL_HOSTS, Options};

/// Which subjects are asked for.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    stream: String,
    /// `None`: all.
    host: Option<String>,
    /// Empty: all.
    channels: Vec<ChannelName>,
}

impl Selection {
    /// Takes what the options say.
    pub(super) fn new(options: &Options) -> Selection {
        let host = options.host.clone().filter(|host| host != ALL_HOSTS);
        Selection { stream: options.stream.clone(), host, channels: options.channel.clone() }
    }

    /// Returns the subject of this text, if it has sub-buffers that are asked for.
    pub(super) fn pick(&self, text: &str) -> Option<(Subject, u32)> {
        let subject = Subject::decode(&self.stream, text)?;
        let Kind::Cpu(cpu) = subject.kind else { return None };
        let is_host = self.host.as_ref().is_none_or(|host| *host == subject.host);
        let is_channel = self.channels.is_empty() || self.channels.contains(&subject.channel);
        (is_host && is_channel).then_some((subject, cpu))
    }

    /// Returns how many channels are named; 0: all.
    pub(super) fn n_channels(&self) -> usize {
        self.channels.len()
    }

    /// Returns a filter that all of the subjects match.
    pub(super) fn filter(&self) -> String {
        let host = self.host.as_deref().map_or("*".to_owned(), to_token);
        let channel = match &self.channels[..] {
            [channel] => to_token(channel.as_str()),
            _ => "*".to_owned(),
        };
        format!("{}.{host}.{channel}.*", self.stream)
    }

    /// Says that the stream has nothing that is asked for.
    pub(super) fn nothing(&self) -> Failure {
        let Selection { stream, host, channels } = self;
        let mut what = String::new();
        if let Some(host) = host {
            what.push_str(&format!(" of host '{host}'"));
        }
        if !channels.is_empty() {
            let names: Vec<&str> = channels.iter().map(ChannelName::as_str).collect();
            what.push_str(&format!(" of channel {}", names.join(", ")));
        }
        Failure::Nothing(format!("stream '{stream}' has nothing{what}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_picked_by_host_and_channel() {
        let selection = |host: Option<&str>, channels: &[&str]| Selection {
            stream: "relay".to_owned(),
            host: host.map(str::to_owned),
            channels: channels.iter().map(|channel| channel.parse().unwrap()).collect(),
        };
        let all = selection(None, &[]);
        assert!(all.pick("relay.a.app/log.cpu0").is_some() && all.pick("relay.a.app/log.metadata").is_none());
        assert_eq!(all.filter(), "relay.*.*.*");
        let one = selection(Some("a.org"), &["app/log"]);
        assert_eq!(one.filter(), "relay.a%2Eorg.app/log.*");
        assert!(one.pick("relay.a%2Eorg.app/log.cpu3").is_some_and(|(_, cpu)| cpu == 3));
        assert!(one.pick("relay.b.app/log.cpu3").is_none() && one.pick("relay.a%2Eorg.cpu.cpu3").is_none());
        let two = selection(None, &["a", "b"]);
        assert_eq!(two.filter(), "relay.*.*.*");
        assert!(two.pick("relay.h.b.cpu0").is_some() && two.pick("relay.h.c.cpu0").is_none());
    }
}
