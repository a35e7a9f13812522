//! What a lane has delivered.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::task::AbortHandle;

use super::delivery::Delivery;
use super::hub::Waiter;
use super::meaning::shown;
use super::stops::GiveUp;
use crate::message::Subject;

/// What a lane has delivered. The lane ends with it.
pub(super) struct Arrivals {
    pub(super) subject: Subject,
    pub(super) cpu: u32,
    /// Whether the lane waits for more behind the start.
    pub(super) follow: bool,
    /// Whether its last sub-buffer in the stream is one of a timed channel, if that was looked up.
    pub(super) is_timed: Option<bool>,
    pub(super) deliveries: mpsc::Receiver<Delivery>,
    pub(super) task: AbortHandle,
    /// Counts messages that could not be used.
    pub(super) refused: Rc<Cell<u64>>,
    /// Ends reading when the lane has failed.
    pub(super) give_up: GiveUp,
    pub(super) queue: Queue,
}

/// Deliveries that are here.
#[derive(Default)]
pub(super) struct Queue {
    all: VecDeque<Delivery>,
    /// Whether all messages of the start have come.
    is_ended: bool,
}

impl Arrivals {
    /// Returns the next delivery that is here already.
    pub(super) fn take(&mut self) -> Option<Delivery> {
        self.queue.all.pop_front()
    }

    /// Returns what comes first of what is not taken, if that is here.
    pub(super) fn queued(&self) -> impl Iterator<Item = &Delivery> {
        self.queue.all.iter()
    }

    /// Waits for the next delivery. Returns whether one came: `false` behind the last of the start, or at the end.
    pub(super) fn wait(&mut self, waiter: &Waiter) -> bool {
        if self.queue.is_ended {
            return false;
        }
        match waiter.wait(self.deliveries.recv()) {
            Some(Some(delivery)) => self.put(delivery),
            Some(None) => self.fail(),
            // The end of all.
            None => self.queue.is_ended = true,
        }
        !self.queue.is_ended
    }

    /// Takes over a delivery that is here, without waiting. Returns whether there was one.
    pub(super) fn poll(&mut self) -> bool {
        match self.deliveries.try_recv() {
            Ok(delivery) => {
                self.put(delivery);
                true
            }
            Err(TryRecvError::Disconnected) => {
                if self.follow || !self.queue.is_ended {
                    self.fail();
                }
                false
            }
            Err(TryRecvError::Empty) => false,
        }
    }

    /// Gives reading up: the lane has ended before its last delivery. Only a panic ends it so.
    fn fail(&mut self) {
        self.queue.is_ended = true;
        let Subject { host, channel, .. } = &self.subject;
        self.give_up.because(format!(
            "{} {channel} cpu{}: cannot be read to its end: relay-forward has a defect; please report what it says \
             above",
            shown(host),
            self.cpu
        ));
    }

    fn put(&mut self, delivery: Delivery) {
        match &delivery {
            Delivery::End => {
                self.queue.is_ended = true;
                return;
            }
            Delivery::SubBuffer(_) => {}
            Delivery::Notice { n_refused, .. } => self.refused.set(self.refused.get() + n_refused),
        }
        self.queue.all.push_back(delivery);
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::super::stops::Stops;
    use super::*;
    use crate::message::Kind;

    #[test]
    fn lane_that_fails_is_not_at_its_end() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for (is_polled, follow, is_ended) in
            [(false, false, false), (true, false, false), (true, true, true), (true, false, true)]
        {
            let (deliver, deliveries) = mpsc::channel(1);
            let subject = Subject { host: "h".to_owned(), channel: "a".parse().unwrap(), kind: Kind::Cpu(3) };
            let stops = Stops::watch(None).unwrap();
            let mut arrivals = Arrivals {
                subject,
                cpu: 3,
                follow,
                is_timed: None,
                deliveries,
                task: runtime.spawn(async {}).abort_handle(),
                refused: Rc::default(),
                give_up: stops.give_up(),
                queue: Queue { is_ended, ..Queue::default() },
            };
            let waiter = Waiter::new(stops).unwrap();
            assert!(!arrivals.poll() && !waiter.stops.is_ended());
            // As a panic does.
            drop(deliver);
            assert!(if is_polled { !arrivals.poll() } else { !arrivals.wait(&waiter) });
            let has_failed = follow || !is_ended;
            assert_eq!(waiter.stops.is_ended(), has_failed);
            if has_failed {
                assert!(waiter.stops.why().to_string().starts_with("h a cpu3: cannot be read to its end"));
            }
            assert!(!arrivals.wait(&waiter));
        }
    }
}
