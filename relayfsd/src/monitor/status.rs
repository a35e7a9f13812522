//! The text of `status`: all that a look at a channel needs, in one file.
//!
//! ```text
//! relayfs 0.1.0                          of the daemon; not in a channel's own file
//! time 1764451800123456789               nanoseconds since 1970, as all times
//! ...
//!                                        an empty line
//! channel app/log
//! mode no-overwrite timed
//! cpu0.dropped 3                         the lines of stats, and more, without zeroes
//! writer 812 0 direct relay-producer     pid, uid, transport, command
//! reader 990 1000 read cpu0 cat          pid, uid, way, buffer, command
//! ```
//!
//! Lines are only added, and readers pass over those that they do not know.

use std::fmt::Write as _;

use relay::cli::one_line::one_line;

use super::Daemon;
use crate::channel::Channel;
use crate::channel::clients::Client;
use crate::channel::recent::Change;
use crate::channel::stats::{nanoseconds, now};
use crate::registry::Registry;

/// The command of a process that cannot be seen.
const UNKNOWN: &str = "?";

/// Returns the text of `.relay/status`: the daemon, and every channel.
pub(crate) fn of_all(registry: &Registry, daemon: &Daemon) -> String {
    let channels = registry.all();
    let (connections, connections_max) = registry.connections();
    let memory = registry.memory();
    let mut text = concat!("relayfs ", env!("CARGO_PKG_VERSION"), "\n").to_owned();
    for (key, value) in [
        ("time", now()),
        ("started", nanoseconds(daemon.started)),
        ("uptime", u64::try_from(daemon.uptime.as_nanos()).unwrap_or(u64::MAX)),
        ("epoch", registry.epoch().into()),
        ("channels", channels.len() as u64),
        ("memory_bytes", memory.used() as u64),
        ("memory_max_bytes", memory.max() as u64),
        ("connections", connections as u64),
        ("connections_max", connections_max as u64),
        ("open_files", daemon.open_files as u64),
    ] {
        line(&mut text, key, value);
    }
    for channel in channels {
        text.push('\n');
        text += &of_channel(&channel);
    }
    text
}

/// Returns the text of a channel's `status`.
pub(crate) fn of_channel(channel: &Channel) -> String {
    let geometry = channel.geometry();
    let mut text = format!("channel {}\n", channel.name());
    line(&mut text, "time", now());
    line(&mut text, "created", nanoseconds(channel.created()));
    let (timed, global) =
        (if geometry.timed() { " timed" } else { "" }, if geometry.global() { " global" } else { "" });
    line(&mut text, "mode", format_args!("{}{timed}{global}", geometry.mode()));
    line(&mut text, "subbuf_size", geometry.subbuf_size());
    line(&mut text, "n_subbufs", geometry.n_subbufs());
    line(&mut text, "header", geometry.header());
    line(&mut text, "buffers", channel.n_bufs());
    line(&mut text, "memory_bytes", channel.memory());
    line(&mut text, "permanent", u8::from(channel.permanent()));
    if channel.is_inherited() {
        line(&mut text, "orphans", 1);
    }
    for client in channel.clients().look() {
        write_client(&mut text, &client);
    }
    if let Some(why) = channel.broken_reason() {
        // The numbers of a broken channel mean nothing.
        line(&mut text, "broken", one_line(why));
        return text;
    }
    if let Some(timed) = channel.timed() {
        line(&mut text, "clock", timed.clock().name());
        line(&mut text, "clock_ticks_per_second", timed.ticks_per_second());
        line(&mut text, "clock_epoch", timed.epoch());
    }
    for cpu in 0..channel.n_bufs() {
        write_buffer(&mut text, channel, cpu);
    }
    text
}

fn write_buffer(text: &mut String, channel: &Channel, cpu: usize) {
    let counts = channel.counts(cpu);
    let (unread, oldest, change) = {
        let mut side = channel.read_side(cpu);
        (side.reader.unread_data(), side.reader.oldest_unread(), side.recent.since(&counts))
    };
    let oldest = channel.timed().zip(oldest);
    let oldest = oldest.map_or(0, |(timed, stamp)| timed.timeline().realtime(stamp).min(now()));
    let Change { time, full, dropped, dropped_bytes, overwritten_bytes } = change.unwrap_or_default();
    let more = [
        ("unread_bytes", unread),
        ("oldest_unread", oldest),
        ("recent_ms", time.as_millis() as u64),
        ("recent_full", full),
        ("recent_dropped", dropped),
        ("recent_dropped_bytes", dropped_bytes),
        ("recent_overwritten_bytes", overwritten_bytes),
    ];
    for (key, value) in counts.named().chain(more).filter(|(_, value)| *value != 0) {
        writeln!(text, "cpu{cpu}.{key} {value}").expect("writing to a string");
    }
}

fn write_client(text: &mut String, client: &Client) {
    let Client { pid, uid, command, what } = client;
    let kind = if what.writes() { "writer" } else { "reader" };
    let command = command.as_deref().unwrap_or(UNKNOWN);
    line(text, kind, format_args!("{pid} {uid} {what} {}", one_line(command)));
}

fn line(text: &mut String, key: &str, value: impl std::fmt::Display) {
    writeln!(text, "{key} {value}").expect("writing to a string");
}
