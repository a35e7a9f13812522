//! The CTF text of a timed channel, as of now.

use std::fs;

use relay::trace::metadata::Metadata;

use super::Timed;
use crate::channel::Channel;

/// Returns the text; nothing for a raw channel.
pub(crate) fn text(channel: &Channel) -> String {
    let Some(timed) = channel.timed() else { return String::new() };
    let metadata = metadata(channel, timed);
    timed.with_events(|events| metadata.write(events))
}

/// Returns the length of the text in bytes, without making all of it.
pub(crate) fn len(channel: &Channel) -> u64 {
    let Some(timed) = channel.timed() else { return 0 };
    let events = timed.with_events(|events| events.len());
    (metadata(channel, timed).write("").len() + events) as u64
}

fn metadata(channel: &Channel, timed: &Timed) -> Metadata {
    let hostname = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    Metadata {
        hostname: hostname.trim_end().to_owned(),
        channel: channel.name().to_string(),
        geometry: *channel.geometry(),
        release: env!("CARGO_PKG_VERSION").to_owned(),
        timeline: timed.timeline(),
    }
}
