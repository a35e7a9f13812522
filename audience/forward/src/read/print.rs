//! Prints records of all hosts, channels and CPUs in one order.
//!
//! What is in the stream at the start is merged exactly: each lane is waited for. With `--follow`, what comes then
//! waits for a while, so that other hosts' messages of the same time can come, too. Clocks of hosts need not agree
//! with ours: a packet that has waited lets everything pass that is not younger than its last record.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use audience_common::filter::Filter;
use audience_common::output::Output;
use audience_common::print::{Look, Printer};
use relay::trace::merge::{Entry, Merge};
use relay::trace::text::Lines;

use super::begin::Begin;
use super::calendar::newest_stamp;
use super::content::Content;
use super::delivery::Delivery;
use super::error::Failure;
use super::feed::Feed;
use super::hub::{Hub, LOOK_AGAIN};
use super::meaning::{Origin, empty_lines};
use super::raw;
use crate::message::Subject;
use crate::options::Read;
use crate::output::say;

/// Bytes of packets that wait, at most. Beyond that the oldest are printed before their time.
const HELD_MAX: usize = 64 << 20;
/// Sub-buffers of a lane that are taken at a time, with --follow.
const ROUND_MAX: usize = 16;
/// Records between two looks for a signal.
const RECORDS: u64 = 1024;

/// Prints what is asked for.
pub(super) fn run(hub: &mut Hub, read: &Read) -> Result<(), Failure> {
    let filter = Filter::new(&read.show)?;
    let (since, until) = (filter.since(), filter.until());
    let found = Begin::find(hub, since, until, read.show.lines.is_some());
    let Some(mut begin) = found else { return hub.end() };
    let mut output = Output::new()?;
    let printer = Printer::new(&read.show, &mut output, |notice| say(notice))?;
    let look = Look::new(&read.show);
    // All lines have the channel, if there may be several.
    let has_channel = hub.selection.n_channels() != 1;
    let lines = empty_lines(&look);
    let mut timed = Timed {
        look,
        has_channel,
        feeds: Vec::new(),
        origins: BTreeMap::new(),
        merge: Merge::new(),
        printer,
        lines,
        lead: Rc::default(),
    };
    loop {
        hub.begin(begin.from());
        match Content::find(hub, begin.is_partial())? {
            None => return hub.end(),
            Some(Content::Raw) => {
                drop(timed);
                return match read.show.given() {
                    Some(option) => {
                        Err(Failure::Raw(format!("the channel is raw: {option} needs a timed channel")))
                    }
                    None => raw::print(hub, &mut output),
                };
            }
            Some(Content::Timed) => {
                timed.print_start(hub, read)?;
                if begin.is_enough(timed.printer.oldest_of_last(), timed.lead.get()) {
                    return timed.finish(hub, read);
                }
            }
            Some(Content::Unknown) if begin.is_partial() => {}
            Some(Content::Unknown) => return Err(hub.nothing()?),
        }
        if hub.waiter.stops.is_ended() || begin.widen(hub).is_none() {
            return timed.finish(hub, read);
        }
        timed.forget();
    }
}

/// Records of timed channels, in one order.
struct Timed<'o> {
    look: Look,
    /// Whether lines have the channel, too.
    has_channel: bool,
    /// One for each lane of the hub, in the same order.
    feeds: Vec<Lane>,
    /// By host and channel.
    origins: BTreeMap<(String, String), Rc<RefCell<Origin>>>,
    /// Its CPUs are the lanes.
    merge: Merge<Feed>,
    printer: Printer<'o>,
    /// For lanes without a packet.
    lines: Lines,
    /// By how much stamps are ahead of the server's clock, at most, in nanoseconds.
    lead: Rc<Cell<u64>>,
}

/// A lane of the merge.
struct Lane {
    feed: Feed,
    cpu: u32,
}

impl Timed<'_> {
    /// Prints what was in the stream at the start, or keeps the last of it.
    fn print_start(&mut self, hub: &Hub, read: &Read) -> Result<(), Failure> {
        self.add_lanes(hub);
        for (index, lane) in self.feeds.iter().enumerate() {
            self.merge.push(index as u32, lane.feed.clone());
        }
        if !read.follow {
            self.merge.set_horizon(self.printer.until());
        }
        self.print(hub)
    }

    /// Forgets what was kept, and the lanes it came from.
    fn forget(&mut self) {
        self.printer.forget_last();
        self.feeds.clear();
        self.merge = Merge::new();
        self.lead.set(0);
    }

    /// Prints what is kept, and with `--follow` what comes.
    fn finish(&mut self, hub: &mut Hub, read: &Read) -> Result<(), Failure> {
        let stops = &hub.waiter.stops;
        if stops.is_ended() && (!read.follow || !stops.is_signalled()) {
            return Err(stops.why());
        }
        if !read.follow || stops.is_ended() {
            return Ok(self.printer.finish()?);
        }
        self.printer.print_all()?;
        self.follow(hub, read.hold())
    }

    /// Makes the lanes of the hub known to the merge, all or those that have come.
    fn add_lanes(&mut self, hub: &Hub) {
        for lane in &hub.lanes[self.feeds.len()..] {
            let (subject, cpu) = {
                let lane = lane.borrow();
                (lane.subject.clone(), lane.cpu)
            };
            let origin = self.origin(&subject);
            self.feeds.push(Lane { feed: Feed::new(lane, &hub.waiter, &origin, &self.lead), cpu });
        }
    }

    fn origin(&mut self, subject: &Subject) -> Rc<RefCell<Origin>> {
        let key = (subject.host.clone(), subject.channel.to_string());
        let new = || Rc::new(RefCell::new(Origin::new(&self.look, subject, self.has_channel)));
        Rc::clone(self.origins.entry(key).or_insert_with(new))
    }

    /// Prints what the merge yields.
    fn print(&mut self, hub: &Hub) -> Result<(), Failure> {
        let Timed { feeds, merge, printer, lines, .. } = self;
        while let Some(entry) = merge.next() {
            let Some(lane) = feeds.get(entry.cpu as usize) else { continue };
            let entry = Entry { cpu: lane.cpu, ..entry };
            let origin = lane.feed.origin().borrow();
            match lane.feed.meaning() {
                Some(meaning) => printer.entry(&entry, meaning.borrow_mut().lines(), &origin.prefix)?,
                None => printer.entry(&entry, lines, &origin.prefix)?,
            }
            if printer.n_records().is_multiple_of(RECORDS) && hub.waiter.stops.is_ended() {
                break;
            }
        }
        Ok(printer.flush()?)
    }

    /// Prints what comes, until the end.
    fn follow(&mut self, hub: &mut Hub, hold: Duration) -> Result<(), Failure> {
        for lane in &self.feeds {
            lane.feed.go_live();
        }
        // Packets that wait: since when, the time of their last record, their length.
        let mut held: VecDeque<(Instant, u64, usize)> = VecDeque::new();
        let mut n_bytes = 0;
        loop {
            let is_ending = hub.waiter.stops.is_ended();
            hub.add_appeared();
            let n_known = self.feeds.len();
            self.add_lanes(hub);
            for lane in &self.feeds[n_known..] {
                lane.feed.go_live();
            }
            for (index, lane) in hub.lanes.iter().enumerate() {
                let mut arrivals = lane.borrow_mut();
                let n_before = arrivals.queued().count();
                let mut n_taken = 0;
                while n_taken < ROUND_MAX && n_bytes < HELD_MAX && arrivals.poll() {
                    n_taken += 1;
                }
                let mut came = false;
                for delivery in arrivals.queued().skip(n_before) {
                    came = true;
                    if let Delivery::SubBuffer(arrived) = delivery
                        && let (Some(timed), Some(meaning)) = (&arrived.timed, &arrived.of.meaning)
                    {
                        n_bytes += arrived.bytes.len();
                        let end = timed.header.end.min(newest_stamp(&meaning.timeline));
                        let end = meaning.timeline.realtime(end);
                        held.push_back((Instant::now(), end, arrived.bytes.len()));
                    }
                }
                if came {
                    self.merge.push(index as u32, self.feeds[index].feed.clone());
                }
            }
            let mut horizon = 0;
            while let Some((since, end, bytes)) = held.front().copied()
                && (is_ending || since.elapsed() >= hold || n_bytes >= HELD_MAX)
            {
                horizon = horizon.max(end);
                n_bytes -= bytes;
                held.pop_front();
            }
            // If nothing waits, nothing is to come that is older.
            self.merge.set_horizon(if held.is_empty() { u64::MAX } else { horizon });
            self.print(hub)?;
            if is_ending {
                return match hub.waiter.stops.is_signalled() {
                    true => Ok(self.printer.finish()?),
                    false => Err(hub.waiter.stops.why()),
                };
            }
            let rest = held.front().map_or(LOOK_AGAIN, |(since, ..)| hold.saturating_sub(since.elapsed()));
            hub.pause(rest.min(LOOK_AGAIN));
        }
    }
}
