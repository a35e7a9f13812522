//! Reports of losses at the start of packets: `lost` records of thread 0. Those of programs have a thread.

use crate::trace::event::{Cause, Event, id};
use crate::trace::record::Record;

/// Appends a report of losses.
pub fn put_lost(stamp: u64, messages: u64, cause: Option<Cause>, out: &mut Vec<u8>) {
    let mut payload = Vec::new();
    // The payload of this event is never too long.
    let _ = Event::Lost { messages, cause }.encode_into(&mut payload);
    Record { stamp, id: id::LOST, tid: 0, payload: &payload }.encode_into(out);
}

/// Returns what a report of losses says: how many messages, and why. `None` for another record.
pub fn lost_of(record: &Record<'_>) -> Option<(u64, Option<Cause>)> {
    match Event::decode(record.id, record.payload) {
        Event::Lost { messages, cause } if record.tid == 0 => Some((messages, cause)),
        _ => None,
    }
}
