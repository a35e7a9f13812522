//! `trace`: the records of all buffers, in one order, as text.

use std::fmt;
use std::sync::Arc;

use relay::trace::merge::Merge;
use relay::trace::names::Names;
use relay::trace::packet::PacketReader;
use relay::trace::text::{Format, Lines};

use crate::channel::ChannelRef;
use crate::channel::snapshot::Snapshot;
use crate::policy::quota::{Quota, Reservation, USED_UP};

/// How much memory the text reserves at a time, in bytes.
const STEP: usize = 1 << 20;

/// Returns the text, with the memory for it. Fails with an errno.
///
/// The clock is noted before the copies. Records that are younger are left out, since another copy may lack their
/// elders.
pub(crate) fn text(memory: &Arc<Quota>, channel: &ChannelRef) -> Result<(Vec<u8>, Reservation), i32> {
    let timed = channel.timed().ok_or(libc::ESTALE)?;
    let no_memory = |why: &dyn fmt::Display| {
        log::warn!("channel {}: no memory for its trace: {why}", channel.name());
        libc::ENOMEM
    };
    let note = timed.newest_stamp();
    let copies = (0..channel.n_bufs())
        .map(|cpu| Snapshot::copy(memory, channel, cpu))
        .collect::<Result<Vec<(Vec<u8>, Reservation)>, i32>>()?;
    let mut merge = Merge::new();
    for (cpu, (packets, _)) in copies.iter().enumerate() {
        merge.push(cpu as u32, PacketReader::new(&packets[..]));
    }
    // Stamps of direct writers may be inverted across CPUs, by less than a microsecond.
    merge.set_horizon(note.saturating_sub(timed.ticks_per_second() / 1_000_000));
    let names = Names::new(timed.definitions().as_ref().clone(), &timed.processes_text());
    let mut lines = Lines::new(Format::ShortIso, timed.timeline(), names);
    let mut reserved = memory.begin(0);
    let (mut text, mut line) = (Vec::new(), Vec::new());
    while let Some(entry) = merge.next() {
        line.clear();
        lines.line(&entry, &mut line);
        if text.len() + line.len() > reserved.len() {
            let more = STEP.max(line.len());
            reserved.grow(more).map_err(|_| no_memory(&USED_UP))?;
            text.try_reserve_exact(more).map_err(|error| no_memory(&error))?;
        }
        text.extend_from_slice(&line);
    }
    reserved.shrink(text.len());
    Ok((text, reserved))
}
