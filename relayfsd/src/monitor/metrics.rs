//! The text of `metrics`, for Prometheus.
//!
//! Counters by channel and buffer include those of earlier channels of the same name, and of names that are gone. So a
//! counter falls only when a damaged channel is made again, or when [`Registry`] forgets a name.

use std::collections::BTreeMap;
use std::sync::Arc;

use relay::ChannelName;

use super::Daemon;
use super::exposition::{Exposition, Family, Kind};
use crate::channel::Channel;
use crate::channel::clients::Use;
use crate::channel::stats::{Counts, nanoseconds};
use crate::registry::Registry;

const fn counter(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: Kind::Counter, help }
}

const fn gauge(name: &'static str, help: &'static str) -> Family {
    Family { name, kind: Kind::Gauge, help }
}

/// The counters of `stats` that only grow.
const COUNTERS: &[(&str, Family)] = &[
    ("produced", counter("relayfs_produced_subbufs_total", "Sub-buffers finished.")),
    (
        "consumed",
        counter("relayfs_consumed_subbufs_total", "Sub-buffers given back by reading, overwriting or reset."),
    ),
    ("bytes", counter("relayfs_written_bytes_total", "Bytes written, headers included.")),
    ("messages", counter("relayfs_messages_total", "Messages written by any process; timed channels only.")),
    ("written", counter("relayfs_daemon_messages_total", "Messages that relayfsd wrote for a client.")),
    ("dropped", counter("relayfs_dropped_messages_total", "Messages refused because the buffer was full.")),
    ("dropped_bytes", counter("relayfs_dropped_bytes_total", "Bytes that these messages would have taken.")),
    ("full", counter("relayfs_full_total", "Times that a writer found the buffer full.")),
    (
        "too_big",
        counter("relayfs_too_big_messages_total", "Messages longer than a sub-buffer or than 1 MiB."),
    ),
    (
        "contended",
        counter("relayfs_contended_messages_total", "Messages whose writer was interrupted each time."),
    ),
    ("read_bytes", counter("relayfs_read_bytes_total", "Bytes given to readers.")),
    ("read_subbufs", counter("relayfs_read_subbufs_total", "Sub-buffers given back by reading.")),
    (
        "overwritten_bytes",
        counter("relayfs_overwritten_bytes_total", "Unread bytes given up for newer messages."),
    ),
    (
        "overwritten_subbufs",
        counter("relayfs_overwritten_subbufs_total", "Sub-buffers given up for newer messages."),
    ),
    (
        "discarded_bytes",
        counter("relayfs_discarded_bytes_total", "Unread bytes thrown away by reset or by seeking."),
    ),
    (
        "discarded_subbufs",
        counter("relayfs_discarded_subbufs_total", "Sub-buffers thrown away by reset or by seeking."),
    ),
    (
        "corrected",
        counter("relayfs_corrected_numbers_total", "Impossible numbers found in the buffer, and corrected."),
    ),
];
/// The numbers of `stats` that are lengths or those of a moment.
const GAUGES: &[(&str, Family)] = &[
    ("high_water", gauge("relayfs_high_water_subbufs", "Most unread sub-buffers seen at a time.")),
    (
        "longest_dropped",
        gauge("relayfs_longest_dropped_bytes", "Bytes of the longest message refused for lack of room."),
    ),
    (
        "longest_too_big",
        gauge("relayfs_longest_too_big_bytes", "Bytes of the longest message that was too big."),
    ),
];
/// The times of `stats`, in nanoseconds there and in seconds here.
const TIMES: &[(&str, Family)] = &[
    (
        "last_dropped",
        gauge(
            "relayfs_last_dropped_time_seconds",
            "When a message was last refused for lack of room; 0: never.",
        ),
    ),
    (
        "last_too_big",
        gauge("relayfs_last_too_big_time_seconds", "When a message was last too big; 0: never."),
    ),
    (
        "last_contended",
        gauge(
            "relayfs_last_contended_time_seconds",
            "When a message was last interrupted each time; 0: never.",
        ),
    ),
    (
        "last_overwritten",
        gauge("relayfs_last_overwritten_time_seconds", "When unread data was last given up; 0: never."),
    ),
];
/// Nanoseconds of a second.
const NANOSECONDS: f64 = 1e9;

/// A buffer of a channel that is or was there.
struct Row<'a> {
    channel: &'a str,
    cpu: String,
    counts: Counts,
    is_there: bool,
    is_timed: bool,
}

/// Returns the text.
pub(crate) fn text(registry: &Registry, daemon: &Daemon) -> String {
    let mut out = Exposition::default();
    of_daemon(&mut out, registry, daemon);
    let channels = registry.all();
    let sound: Vec<&Arc<Channel>> = channels.iter().filter(|channel| !channel.is_broken()).collect();
    of_channels(&mut out, &channels);
    let gone = registry.gone_by_name();
    let rows = rows(&sound, &gone);
    let value = |counts: &Counts, name: &str| {
        counts.named().find(|(other, _)| *other == name).map_or(0.0, |(_, value)| value as f64)
    };
    for (name, family) in COUNTERS {
        let rows = rows.iter().filter(|row| *name != "messages" || row.is_timed);
        out.family(family, rows.map(|row| (row.labels(), value(&row.counts, name))));
    }
    let there = || rows.iter().filter(|row| row.is_there);
    for (name, family) in GAUGES {
        out.family(family, there().map(|row| (row.labels(), value(&row.counts, name))));
    }
    for (name, family) in TIMES {
        out.family(family, there().map(|row| (row.labels(), value(&row.counts, name) / NANOSECONDS)));
    }
    of_buffers(&mut out, &sound);
    out.into_text()
}

impl Row<'_> {
    fn labels(&self) -> Vec<(&'static str, &str)> {
        vec![("channel", self.channel), ("cpu", &self.cpu)]
    }
}

/// Returns the buffers that are there, and those that are gone.
fn rows<'a>(
    sound: &[&'a Arc<Channel>],
    gone: &'a BTreeMap<ChannelName, BTreeMap<u32, Counts>>,
) -> Vec<Row<'a>> {
    let mut rows: BTreeMap<(&str, u32), Row<'_>> = BTreeMap::new();
    let row = |channel, cpu: u32| Row {
        channel,
        cpu: cpu.to_string(),
        counts: Counts::default(),
        is_there: false,
        is_timed: false,
    };
    for (name, by_cpu) in gone {
        for (cpu, counts) in by_cpu {
            let row = rows.entry((name.as_str(), *cpu)).or_insert_with(|| row(name.as_str(), *cpu));
            row.counts.add(counts);
            // A channel that counted messages was timed.
            row.is_timed |= counts.messages > 0;
        }
    }
    for channel in sound {
        for (cpu, counts) in channel.all_counts().iter().enumerate() {
            let name = channel.name().as_str();
            let row = rows.entry((name, cpu as u32)).or_insert_with(|| row(name, cpu as u32));
            row.counts.add(counts);
            (row.is_there, row.is_timed) = (true, row.is_timed || channel.geometry().timed());
        }
    }
    rows.into_values().collect()
}

fn of_daemon(out: &mut Exposition, registry: &Registry, daemon: &Daemon) {
    let (connections, connections_max) = registry.connections();
    let memory = registry.memory();
    let version = env!("CARGO_PKG_VERSION");
    let info = gauge("relayfs_build_info", "The release of relayfsd, always 1.");
    out.family(&info, [(vec![("version", version)], 1.0)]);
    for (family, value) in [
        (
            gauge("relayfs_start_time_seconds", "When relayfsd began to serve, in seconds since 1970."),
            nanoseconds(daemon.started) as f64 / NANOSECONDS,
        ),
        (
            gauge("relayfs_uptime_seconds", "Seconds since relayfsd began to serve."),
            daemon.uptime.as_secs_f64(),
        ),
        (
            counter("relayfs_restarts_total", "Daemons that used the state directory before this one."),
            f64::from(registry.epoch().saturating_sub(1)),
        ),
        (gauge("relayfs_memory_bytes", "Memory of channels and of open copies."), memory.used() as f64),
        (gauge("relayfs_memory_max_bytes", "Limit of that memory, --max-memory."), memory.max() as f64),
        (
            gauge("relayfs_connections", "Connections at the socket: producers, and readers of mappings."),
            connections as f64,
        ),
        (
            gauge("relayfs_connections_max", "Limit of connections, --max-connections."),
            connections_max as f64,
        ),
        (gauge("relayfs_open_files", "Files of the mount that are open."), daemon.open_files as f64),
        (gauge("relayfs_channels", "Channels that are there."), registry.all().len() as f64),
    ] {
        out.family(&family, [(vec![], value)]);
    }
}

fn of_channels(out: &mut Exposition, channels: &[Arc<Channel>]) {
    let named = |channel: &'_ Arc<Channel>| channel.name().as_str().to_owned();
    let names: Vec<String> = channels.iter().map(named).collect();
    let mut each = |family: Family, value: &dyn Fn(&Channel) -> f64| {
        let samples = channels.iter().zip(&names);
        out.family(
            &family,
            samples.map(|(channel, name)| (vec![("channel", name.as_str())], value(channel))),
        );
    };
    each(gauge("relayfs_channel_broken", "1 if the channel is damaged and gives EIO."), &|channel| {
        f64::from(u8::from(channel.is_broken()))
    });
    each(gauge("relayfs_channel_memory_bytes", "Memory of the channel's files."), &|channel| {
        channel.memory() as f64
    });
    each(gauge("relayfs_channel_subbuf_size_bytes", "Size of a sub-buffer."), &|channel| {
        channel.geometry().subbuf_size() as f64
    });
    each(gauge("relayfs_channel_subbufs", "Sub-buffers in each buffer."), &|channel| {
        channel.geometry().n_subbufs() as f64
    });
    let uses: Vec<Vec<Use>> = channels.iter().map(|channel| channel.clients().uses()).collect();
    let count = |of: fn(&Use) -> bool| {
        uses.iter().map(|uses| uses.iter().filter(|what| of(what)).count()).collect::<Vec<usize>>()
    };
    for (family, label, kinds) in [
        (
            gauge("relayfs_channel_producers", "Connections that write the channel, by transport."),
            "transport",
            [("direct", count(|what| *what == Use::Direct)), ("socket", count(|what| *what == Use::Socket))]
                .to_vec(),
        ),
        (
            gauge("relayfs_channel_readers", "Open files and connections that consume, by way."),
            "way",
            [
                ("read", count(|what| matches!(what, Use::Read(_)))),
                ("take", count(|what| matches!(what, Use::Take(_)))),
                ("map", count(|what| *what == Use::Map)),
            ]
            .to_vec(),
        ),
    ] {
        let samples = kinds.iter().flat_map(|(kind, counts)| {
            let labels = move |name: &'_ String| (name.clone(), *kind);
            names.iter().map(labels).zip(counts)
        });
        let samples: Vec<_> = samples.collect();
        out.family(
            &family,
            samples
                .iter()
                .map(|((name, kind), n)| (vec![("channel", name.as_str()), (label, *kind)], **n as f64)),
        );
    }
    let timed = || channels.iter().zip(&names).filter_map(|(channel, name)| Some((channel.timed()?, name)));
    out.family(
        &gauge("relayfs_channel_clock_info", "The clock of a timed channel, always 1."),
        timed().map(|(timed, name)| (vec![("channel", name.as_str()), ("clock", timed.clock().name())], 1.0)),
    );
    out.family(
        &gauge("relayfs_channel_clock_epoch", "Clock epochs begun: time was set, or the machine slept."),
        timed().map(|(timed, name)| (vec![("channel", name.as_str())], timed.epoch() as f64)),
    );
}

fn of_buffers(out: &mut Exposition, sound: &[&Arc<Channel>]) {
    let (mut unread, mut subbufs) = (Vec::new(), Vec::new());
    let mut oldest = Vec::new();
    for channel in sound {
        let timeline = channel.timed().map(|timed| timed.timeline());
        for cpu in 0..channel.n_bufs() {
            let side = channel.read_side(cpu);
            let (bytes, stamp) = (side.reader.unread_data(), side.reader.oldest_unread());
            let finished = side.reader.n_finished();
            drop(side);
            let (name, cpu) = (channel.name().as_str(), cpu.to_string());
            if let Some((timeline, stamp)) = timeline.as_ref().zip(stamp) {
                let time = timeline.realtime(stamp).min(crate::channel::stats::now());
                oldest.push((name, cpu.clone(), time as f64 / NANOSECONDS));
            }
            subbufs.push((name, cpu.clone(), finished as f64));
            unread.push((name, cpu, bytes as f64));
        }
    }
    for (family, samples) in [
        (gauge("relayfs_unread_bytes", "Bytes that no reader has got yet."), &unread),
        (gauge("relayfs_unread_subbufs", "Finished sub-buffers that no reader has given back."), &subbufs),
        (
            gauge("relayfs_oldest_unread_time_seconds", "Time of the oldest unread record, timed channels."),
            &oldest,
        ),
    ] {
        out.family(
            &family,
            samples
                .iter()
                .map(|(name, cpu, value)| (vec![("channel", *name), ("cpu", cpu.as_str())], *value)),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A number that is added to `stats` gets a metric, or stands here as one without.
    #[test]
    fn every_number_of_stats_has_a_metric() {
        let known: Vec<&str> =
            [COUNTERS, GAUGES, TIMES].into_iter().flatten().map(|(name, _)| *name).collect();
        for (name, _) in Counts::default().named() {
            assert!(known.contains(&name) || name.starts_with("old_"), "{name}");
        }
        for (name, _) in Counts::default().counters() {
            assert!(COUNTERS.iter().any(|(counter, _)| *counter == name), "{name}");
        }
    }
}
