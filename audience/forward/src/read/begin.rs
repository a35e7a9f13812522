//! Where in the stream to begin, for -S and -n: the end of a stream is found without reading all of it.
//!
//! A record is stamped before the server stores it, if their clocks agree. So what was stored before a moment has no
//! record of after it:
//!
//! ```text
//!   sequence  1 ... ... ... ... ... from ... ... ... last         stored in this order
//!             stamped before B      | stored from B on
//! ```
//!
//! -S begins where B is the time that is asked for. -n begins near the end, and farther from it each time until the
//! records that it keeps are all stamped after B: no record that was not read can be among the last then. How far
//! clocks are ahead of the server's is seen in the messages.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::Arc;

use relay::trace::packet::{HEADER_LEN, PacketHeader};
use tokio::task::JoinSet;

use super::calendar::newest_stamp;
use super::hub::Hub;
use super::store::{Found, Place, Store};
use crate::message::{Headers, Kind};

/// By how much clocks of hosts may be ahead of the server's beyond what was seen, in nanoseconds. With -S few messages
/// are seen, and with -n those behind the begin.
const AHEAD_SINCE: u64 = 60_000_000_000;
const AHEAD_LAST: u64 = 1_000_000_000;
/// Messages with which -n begins. It is doubled each time.
const SPAN: u64 = 64;

/// Where lanes begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Begin {
    /// Sequence from which on lanes read.
    from: u64,
    /// When that message was stored, in nanoseconds since 1970.
    stored: u64,
    /// Sequence of the first message that may have what is asked for.
    first: u64,
    /// Sequence behind the messages that are counted.
    end: u64,
    /// How many messages before `end` are read.
    span: u64,
}

impl Begin {
    /// Finds out where to begin for records of these moments, in nanoseconds since 1970. `None`: the end came first.
    pub(super) fn find(hub: &mut Hub, since: u64, until: u64, has_lines: bool) -> Option<Begin> {
        let (first, last) = (hub.extent.first.max(1), hub.extent.last);
        let mut begin = Begin { from: first, stored: 0, first, end: last.saturating_add(1), span: SPAN };
        if since > 0 {
            let lead = look_at_last(hub)?;
            let time = since.saturating_sub(lead.saturating_add(AHEAD_SINCE));
            begin.first = hub.waiter.wait(bisect(&hub.store, time, first, begin.end))?;
            begin.from = begin.first;
        }
        if has_lines {
            // What is asked for is before that, unless it was stored late. Lanes read to the end.
            if until < u64::MAX {
                begin.end = hub.waiter.wait(bisect(&hub.store, until, begin.first, begin.end))?;
            }
            begin.set(hub)?;
        }
        Some(begin)
    }

    /// Returns the sequence from which on lanes read.
    pub(super) fn from(&self) -> u64 {
        self.from
    }

    /// Whether what may have records of interest is before.
    pub(super) fn is_partial(&self) -> bool {
        self.from > self.first
    }

    /// Whether no record before is younger than the oldest of the last ones. `lead` is how far clocks are ahead.
    pub(super) fn is_enough(&self, oldest: Option<u64>, lead: u64) -> bool {
        let least = self.stored.saturating_add(lead).saturating_add(AHEAD_LAST);
        !self.is_partial() || oldest.is_some_and(|oldest| oldest >= least)
    }

    /// Begins earlier. `None`: the end came first.
    pub(super) fn widen(&mut self, hub: &Hub) -> Option<()> {
        self.span = self.span.saturating_mul(2);
        self.set(hub)
    }

    fn set(&mut self, hub: &Hub) -> Option<()> {
        self.from = behind(self.first, self.end, self.span);
        if self.is_partial() {
            let place = hub.waiter.wait(hub.store.place(self.from))?;
            self.stored = place.map_or(0, |place| u64::try_from(place.time).unwrap_or(0));
        }
        Some(())
    }
}

/// Returns the sequence that is `span` before `end`, or `first` if little would be left before.
fn behind(first: u64, end: u64, span: u64) -> u64 {
    if span.saturating_mul(2) > end.saturating_sub(first) { first } else { end - span }
}

/// Returns the first sequence from `low` on whose message was stored at a time or later; `high` if there is none.
async fn bisect(store: &Store, time: u64, mut low: u64, mut high: u64) -> u64 {
    while low < high {
        let middle = low + (high - low) / 2;
        match store.place(middle).await {
            Some(Place { sequence, time: stored }) if stored < i128::from(time) => {
                low = sequence.max(middle).saturating_add(1);
            }
            Some(_) | None => high = middle,
        }
    }
    low.min(high)
}

/// Looks at the last message of each subject, and returns by how much their stamps are ahead of the server's clock.
/// `None`: the end came first.
fn look_at_last(hub: &mut Hub) -> Option<u64> {
    let subjects: Vec<(String, u32)> = hub
        .found
        .iter()
        .filter_map(|subject| Some((subject.clone(), hub.selection.pick(subject)?.1)))
        .collect();
    let seen = hub.waiter.wait(last_messages(&hub.store, subjects))?;
    let lead = seen.values().map(|(_, lead)| *lead).max().unwrap_or(0);
    hub.timed = seen.into_iter().map(|(subject, (is_timed, _))| (subject, is_timed)).collect();
    Some(lead)
}

async fn last_messages(store: &Arc<Store>, subjects: Vec<(String, u32)>) -> BTreeMap<String, (bool, u64)> {
    let mut tasks = JoinSet::new();
    for (subject, cpu) in subjects {
        let store = Arc::clone(store);
        tasks.spawn(async move {
            let found = store.last(&subject).await;
            seen(&found, cpu).map(|seen| (subject, seen))
        });
    }
    let mut all = BTreeMap::new();
    while let Some(done) = tasks.join_next().await {
        // A task that has failed has said so.
        all.extend(done.unwrap_or_else(|error| resume_unwind(error.into_panic())));
    }
    all
}

/// Returns whether a message is of a timed channel, and by how much it is ahead of the server's clock.
fn seen(found: &Found, cpu: u32) -> Option<(bool, u64)> {
    let Found::Message(message) = found else { return None };
    let sub_buffer = Headers::decode(Kind::Cpu(cpu), &message.headers).ok()?.sub_buffer?;
    let Some(meaning) = sub_buffer.meaning else { return Some((false, 0)) };
    let timeline = &meaning.timeline;
    let packet = message.payload.first_chunk::<HEADER_LEN>();
    let end = packet.and_then(|bytes| PacketHeader::decode(bytes, 0).ok()).map(|header| header.end);
    // The anchors are of the time of the packet, too: a part that is not the first one has no header.
    let end = end.map_or(0, |end| timeline.realtime(end.min(newest_stamp(timeline))));
    let newest = timeline.anchors().map(|anchor| anchor.realtime).fold(end, u64::max);
    let stored = u64::try_from(Place::of(message).time).unwrap_or(0);
    Some((true, newest.saturating_sub(stored)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_grow_to_the_first_message() {
        assert_eq!(behind(1, 1001, 64), 937);
        assert_eq!(behind(1, 1001, 500), 501);
        assert_eq!(behind(1, 1001, 501), 1);
        assert_eq!(behind(900, 1001, 64), 900);
        assert_eq!(behind(1, 1, 64), 1);
        assert_eq!(behind(5, 1, u64::MAX), 5);
    }

    #[test]
    fn last_records_are_known_if_none_before_can_be_younger() {
        let begin = Begin { from: 500, stored: 10_000_000_000, first: 1, end: 1000, span: 500 };
        assert!(begin.is_enough(Some(11_000_000_000), 0));
        assert!(!begin.is_enough(Some(10_999_999_999), 0) && !begin.is_enough(None, 0));
        assert!(begin.is_enough(Some(14_000_000_000), 3_000_000_000));
        assert!(!begin.is_enough(Some(13_999_999_999), 3_000_000_000));
        let all = Begin { from: 1, ..begin };
        assert!(all.is_enough(None, 0));
    }
}
