//! A lane as a stream of packets for the merge, with wall times for stamps.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use relay::trace::merge::{Notice, Source};
use relay::trace::packet::{PacketHeader, ReadError};

use super::arrivals::Arrivals;
use super::delivery::{Delivery, kind, notice};
use super::hub::Waiter;
use super::meaning::{Meaning, Origin};
use super::room::Share;

/// A lane for the merge. Clones are the same lane: each ends when nothing is there.
#[derive(Clone)]
pub(super) struct Feed {
    arrivals: Rc<RefCell<Arrivals>>,
    waiter: Rc<Waiter>,
    origin: Rc<RefCell<Origin>>,
    state: Rc<RefCell<State>>,
    /// By how much stamps of all lanes are ahead of the server's clock, at most, in nanoseconds.
    lead: Rc<Cell<u64>>,
}

#[derive(Default)]
struct State {
    /// What the packet means that is being printed.
    meaning: Option<Rc<RefCell<Meaning>>>,
    /// The memory of that packet.
    share: Option<Share>,
    /// The last time of the lane.
    latest: u64,
    /// What there is to say before the packet.
    notices: VecDeque<Notice>,
    /// Whether to wait for what is not there yet.
    is_live: bool,
    /// Whether it was told that the channel is raw.
    is_raw_told: bool,
}

impl Feed {
    pub(super) fn new(
        arrivals: &Rc<RefCell<Arrivals>>,
        waiter: &Rc<Waiter>,
        origin: &Rc<RefCell<Origin>>,
        lead: &Rc<Cell<u64>>,
    ) -> Feed {
        let (arrivals, waiter, origin) = (Rc::clone(arrivals), Rc::clone(waiter), Rc::clone(origin));
        Feed { arrivals, waiter, origin, state: Rc::default(), lead: Rc::clone(lead) }
    }

    /// From now on, a packet that is not here yet is not waited for.
    pub(super) fn go_live(&self) {
        self.state.borrow_mut().is_live = true;
    }

    /// Returns what the packet means whose records the merge yields.
    pub(super) fn meaning(&self) -> Option<Rc<RefCell<Meaning>>> {
        self.state.borrow().meaning.clone()
    }

    /// Returns the channel of the lane.
    pub(super) fn origin(&self) -> &RefCell<Origin> {
        &self.origin
    }

    /// Returns the next delivery; waits for it, unless the lane is live.
    fn next(&self) -> Option<Delivery> {
        let mut arrivals = self.arrivals.borrow_mut();
        loop {
            if let Some(delivery) = arrivals.take() {
                return Some(delivery);
            }
            if self.state.borrow().is_live || !arrivals.wait(&self.waiter) {
                return arrivals.take();
            }
        }
    }
}

impl Source for Feed {
    fn next_packet(&mut self, packet: &mut Vec<u8>) -> Result<Option<PacketHeader>, ReadError> {
        self.state.borrow_mut().share = None;
        while let Some(delivery) = self.next() {
            let mut state = self.state.borrow_mut();
            let arrived = match delivery {
                Delivery::End => continue,
                Delivery::Notice { notice, .. } => {
                    state.notices.push_back(notice);
                    continue;
                }
                Delivery::SubBuffer(arrived) => arrived,
            };
            let (Some(timed), Some(meaning)) = (&arrived.timed, &arrived.of.meaning) else {
                if !std::mem::replace(&mut state.is_raw_told, true) {
                    let text = "the channel is raw here: its bytes are left out".to_owned();
                    state.notices.push_back(notice(kind::MISSING, text));
                }
                continue;
            };
            let mut bytes = arrived.bytes;
            let of_channel = self.origin.borrow_mut().meaning(arrived.instance, &meaning.timeline, timed);
            let mut latest = state.latest;
            let header = of_channel.borrow().calendar().convert(timed.header, &mut bytes, &mut latest);
            let stored = u64::try_from(arrived.stored).unwrap_or(0);
            self.lead.set(self.lead.get().max(header.end.saturating_sub(stored)));
            state.latest = latest;
            state.meaning = Some(of_channel);
            state.share = Some(arrived.share);
            *packet = bytes;
            return Ok(Some(header));
        }
        Ok(None)
    }

    fn notice(&mut self) -> Option<Notice> {
        self.state.borrow_mut().notices.pop_front()
    }
}
