//! What `.relay/status` says at one moment.
//!
//! The text is the daemon's, which may be of another release: unknown lines are passed over, and missing numbers are 0.

use std::time::Instant;

/// Defines the numbers of a buffer by their names in the text.
macro_rules! numbers {
    ($($name:ident,)*) => {
        /// The numbers of one buffer, or the sums of several.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub(crate) struct Numbers {
            $(pub(crate) $name: u64,)*
        }

        impl Numbers {
            fn set(&mut self, name: &str, value: u64) {
                match name {
                    $(stringify!($name) => self.$name = value,)*
                    _ => {}
                }
            }

            /// Returns the names and values, in the order of the text.
            pub(crate) fn named(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$((stringify!($name), self.$name)),*].into_iter()
            }
        }
    };
}

numbers! {
    produced,
    consumed,
    bytes,
    written,
    dropped,
    too_big,
    contended,
    read_bytes,
    read_subbufs,
    overwritten_bytes,
    overwritten_subbufs,
    discarded_bytes,
    discarded_subbufs,
    high_water,
    corrected,
    messages,
    full,
    dropped_bytes,
    longest_dropped,
    longest_too_big,
    last_dropped,
    last_too_big,
    last_contended,
    last_overwritten,
    unread_bytes,
    oldest_unread,
    recent_ms,
    recent_full,
    recent_dropped,
    recent_dropped_bytes,
    recent_overwritten_bytes,
}

impl Numbers {
    /// Returns the finished sub-buffers that no reader has given back.
    pub(crate) fn unread_subbufs(&self) -> u64 {
        self.produced.saturating_sub(self.consumed)
    }

    /// Returns the messages that were refused, for all causes.
    pub(crate) fn lost(&self) -> u64 {
        self.dropped.saturating_add(self.too_big).saturating_add(self.contended)
    }

    /// Returns when a message or unread data was last lost; 0: never.
    pub(crate) fn last_lost(&self) -> u64 {
        [self.last_dropped, self.last_too_big, self.last_contended, self.last_overwritten]
            .into_iter()
            .max()
            .unwrap_or(0)
    }
}

/// A process that uses a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Client {
    /// 0: unknown.
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    /// `direct` or `socket` of a writer; `read`, `take` or `map` of a reader.
    pub(crate) way: String,
    /// The buffer that a reader reads; `None`: all, or none in particular.
    pub(crate) cpu: Option<usize>,
    /// `None`: the process is gone, or cannot be seen.
    pub(crate) command: Option<String>,
}

/// A channel at one moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct ChannelLook {
    pub(crate) name: String,
    /// Nanoseconds since 1970, as all times.
    pub(crate) time: u64,
    pub(crate) created: u64,
    pub(crate) overwrites: bool,
    pub(crate) is_timed: bool,
    pub(crate) is_global: bool,
    pub(crate) subbuf_size: u64,
    pub(crate) n_subbufs: u64,
    pub(crate) header: u64,
    pub(crate) memory_bytes: u64,
    /// Whether producers of an earlier daemon write it.
    pub(crate) has_orphans: bool,
    /// Why the channel is damaged.
    pub(crate) broken: Option<String>,
    pub(crate) clock: Option<String>,
    pub(crate) clock_epoch: u64,
    pub(crate) buffers: Vec<Numbers>,
    pub(crate) writers: Vec<Client>,
    pub(crate) readers: Vec<Client>,
}

/// All channels at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    pub(crate) at: Instant,
    pub(crate) version: String,
    pub(crate) time: u64,
    pub(crate) started: u64,
    uptime: u64,
    pub(crate) epoch: u64,
    pub(crate) memory_bytes: u64,
    pub(crate) memory_max_bytes: u64,
    pub(crate) connections: u64,
    pub(crate) connections_max: u64,
    pub(crate) open_files: u64,
    pub(crate) channels: Vec<ChannelLook>,
}

/// Most buffers of a channel: a number beyond is no CPU's.
const BUFFERS_MAX: usize = 1 << 14;

impl Look {
    /// Reads the text.
    pub(crate) fn parse(text: &str) -> Look {
        let mut look = Look {
            at: Instant::now(),
            version: String::new(),
            time: 0,
            started: 0,
            uptime: 0,
            epoch: 0,
            memory_bytes: 0,
            memory_max_bytes: 0,
            connections: 0,
            connections_max: 0,
            open_files: 0,
            channels: Vec::new(),
        };
        for line in text.lines() {
            let Some((key, value)) = line.split_once(' ') else { continue };
            if key == "channel" {
                look.channels.push(ChannelLook { name: value.to_owned(), ..ChannelLook::default() });
            } else if let Some(channel) = look.channels.last_mut() {
                channel.set(key, value);
            } else {
                look.set(key, value);
            }
        }
        look
    }

    fn set(&mut self, key: &str, value: &str) {
        let number = || value.parse().unwrap_or(0);
        match key {
            "relayfs" => self.version = value.to_owned(),
            "time" => self.time = number(),
            "started" => self.started = number(),
            "uptime" => self.uptime = number(),
            "epoch" => self.epoch = number(),
            "memory_bytes" => self.memory_bytes = number(),
            "memory_max_bytes" => self.memory_max_bytes = number(),
            "connections" => self.connections = number(),
            "connections_max" => self.connections_max = number(),
            "open_files" => self.open_files = number(),
            _ => {}
        }
    }

    /// Returns for how long the daemon has served, in nanoseconds. A daemon of an earlier release does not say it.
    pub(crate) fn uptime(&self) -> u64 {
        if self.uptime > 0 { self.uptime } else { self.time.saturating_sub(self.started) }
    }

    /// Returns the channel of a name.
    pub(crate) fn channel(&self, name: &str) -> Option<&ChannelLook> {
        self.channels.iter().find(|channel| channel.name == name)
    }
}

impl ChannelLook {
    fn set(&mut self, key: &str, value: &str) {
        let number = || value.parse().unwrap_or(0);
        if let Some((cpu, name)) = key.strip_prefix("cpu").and_then(|rest| rest.split_once('.')) {
            if let Some(cpu) = cpu.parse().ok().filter(|cpu| *cpu < BUFFERS_MAX) {
                if self.buffers.len() <= cpu {
                    self.buffers.resize(cpu + 1, Numbers::default());
                }
                self.buffers[cpu].set(name, number());
            }
            return;
        }
        match key {
            "time" => self.time = number(),
            "created" => self.created = number(),
            "mode" => {
                let has = |word| value.split(' ').any(|found| found == word);
                (self.overwrites, self.is_timed, self.is_global) =
                    (has("overwrite"), has("timed"), has("global"));
            }
            "subbuf_size" => self.subbuf_size = number(),
            "n_subbufs" => self.n_subbufs = number(),
            "header" => self.header = number(),
            // Numbers that are 0 have no line.
            "buffers" => {
                let n_buffers = value.parse().unwrap_or(0).min(BUFFERS_MAX);
                self.buffers.resize(self.buffers.len().max(n_buffers), Numbers::default());
            }
            "memory_bytes" => self.memory_bytes = number(),
            "orphans" => self.has_orphans = true,
            "broken" => self.broken = Some(value.to_owned()),
            "clock" => self.clock = Some(value.to_owned()),
            "clock_epoch" => self.clock_epoch = number(),
            "writer" => self.writers.extend(client(value, false)),
            "reader" => self.readers.extend(client(value, true)),
            _ => {}
        }
    }

    /// Returns the words of the mode.
    pub(crate) fn mode(&self) -> String {
        let overwrite = if self.overwrites { "overwrite" } else { "no-overwrite" };
        let timed = if self.is_timed { " timed" } else { "" };
        let global = if self.is_global { " global" } else { "" };
        format!("{overwrite}{timed}{global}")
    }
}

/// Reads `PID UID WAY [CPU] COMMAND`.
fn client(text: &str, reads: bool) -> Option<Client> {
    let mut words = text.splitn(if reads { 5 } else { 4 }, ' ');
    let (pid, uid) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let way = words.next()?.to_owned();
    let cpu = if reads { words.next()?.strip_prefix("cpu").and_then(|cpu| cpu.parse().ok()) } else { None };
    let command = words.next().filter(|command| *command != "?").map(str::to_owned);
    Some(Client { pid, uid, way, cpu, command })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_the_daemon_is_read() {
        let look = Look::parse(
            "relayfs 0.1.0\ntime 9\nmemory_bytes 7\nnews 1\n\nchannel app/log\nmode no-overwrite timed\nsubbuf_size 64\n\
             cpu1.produced 5\ncpu1.consumed 3\ncpu1.dropped 2\ncpu1.other 8\ncpu99999.produced 1\nwriter 8 0 direct a b\n\
             reader 9 1000 read cpu1 cat\nreader 0 7 map - ?\nwriter x\n\nchannel b\nbuffers 3\nbroken its files are gone\n",
        );
        assert_eq!((look.version.as_str(), look.time, look.memory_bytes), ("0.1.0", 9, 7));
        let log = look.channel("app/log").unwrap();
        assert_eq!((log.mode().as_str(), log.subbuf_size, log.buffers.len()), ("no-overwrite timed", 64, 2));
        assert_eq!((log.buffers[1].unread_subbufs(), log.buffers[1].lost()), (2, 2));
        let writer = Client { pid: 8, uid: 0, way: "direct".into(), cpu: None, command: Some("a b".into()) };
        assert_eq!(log.writers, [writer]);
        assert_eq!((log.readers[0].cpu, log.readers[0].command.as_deref()), (Some(1), Some("cat")));
        assert_eq!((log.readers[1].cpu, &log.readers[1].command), (None, &None));
        let b = look.channel("b").unwrap();
        assert_eq!((b.broken.as_deref(), b.buffers.len()), (Some("its files are gone"), 3));
        assert!(Look::parse("\u{0} \n \nchannel").channels.is_empty());
    }
}
