//! Finds other channels with unread data, for a reader whose channel has none.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::mem::offset_of;
use std::os::unix::fs::FileExt;

use relay::ChannelName;
use relay::layout::abi::ControlHeader;

use crate::amount::amount;
use crate::channel_files::{Place, known};
use crate::losses::split;

/// Most channels that are checked.
const LOOKED_AT_MAX: usize = 100;
/// Most channels that the message names.
const NAMED_MAX: usize = 5;

/// Returns a line about the other channels with unread data; `None` if there are none.
pub(crate) fn elsewhere(place: &Place) -> Option<String> {
    let others = known(&place.mount).into_iter().filter(|name| *name != place.channel.as_str());
    let found: Vec<String> = others
        .take(LOOKED_AT_MAX)
        .filter_map(|name| {
            let bytes = of_channel(&Place { channel: name.parse::<ChannelName>().ok()?, ..place.clone() })?;
            (bytes > 0).then(|| format!("{name} ({})", amount(bytes as f64)))
        })
        .collect();
    let more = match found.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let named = found.get(..found.len().min(NAMED_MAX)).filter(|named| !named.is_empty())?.join(", ");
    Some(format!(
        "channel '{}' has nothing unread; other channels have: {named}{more}; -c NAME reads one",
        place.channel
    ))
}

/// Returns the unread bytes in all buffers of a channel, without headers that stand alone.
///
/// `None`: the channel has gone, or its files may not be read.
pub(crate) fn of_channel(place: &Place) -> Option<u64> {
    let mut header = [0; 4];
    let control = File::open(place.control_path("control")).ok()?;
    control.read_exact_at(&mut header, offset_of!(ControlHeader, header) as u64).ok()?;
    Some(unread_of(&fs::read_to_string(place.stats_path()).ok()?, u32::from_le_bytes(header).into()))
}

/// Unread bytes by the text of `stats`. A buffer in which only a sub-buffer's header is unread counts as empty.
fn unread_of(stats: &str, header: u64) -> u64 {
    by_cpu(stats).into_values().filter(|unread| *unread > header).fold(0, u64::saturating_add)
}

/// Unread bytes of each buffer, by the text of `stats`.
pub(crate) fn by_cpu(stats: &str) -> BTreeMap<usize, u64> {
    let mut buffers: BTreeMap<usize, u64> = BTreeMap::new();
    for (cpu, name, value) in stats.lines().filter_map(split) {
        let unread = buffers.entry(cpu).or_default();
        match name {
            "bytes" => *unread = unread.wrapping_add(value),
            "read_bytes" | "overwritten_bytes" | "discarded_bytes" => *unread = unread.wrapping_sub(value),
            _ => {}
        }
    }
    buffers
}

/// Bytes of each buffer that readers have had, by the text of `stats`.
pub(crate) fn read_by_cpu(stats: &str) -> BTreeMap<usize, u64> {
    let read = stats.lines().filter_map(split).filter(|(_, name, _)| *name == "read_bytes");
    read.map(|(cpu, _, bytes)| (cpu, bytes)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unread_bytes_are_neither_read_nor_lost() {
        let stats = "cpu0.bytes 100\ncpu0.read_bytes 60\ncpu0.overwritten_bytes 10\ncpu0.discarded_bytes 5\n\
                     cpu1.bytes 16\ncpu1.read_bytes 0\ntotal.bytes 116\n";
        assert_eq!(unread_of(stats, 16), 25, "a header alone is nothing");
        assert_eq!(unread_of(stats, 0), 41);
        assert_eq!(unread_of("", 0), 0);
        assert_eq!(read_by_cpu(stats), BTreeMap::from([(0, 60), (1, 0)]));
    }
}
