//! What a lane has delivered.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::delivery::Delivery;
use super::hub::Waiter;
use crate::message::Subject;

/// What a lane has delivered. The lane ends with it.
pub(super) struct Arrivals {
    pub(super) subject: Subject,
    pub(super) cpu: u32,
    /// Whether its last sub-buffer in the stream is one of a timed channel, if that was looked up.
    pub(super) is_timed: Option<bool>,
    pub(super) deliveries: mpsc::Receiver<Delivery>,
    pub(super) task: AbortHandle,
    /// Counts messages that could not be used.
    pub(super) refused: Rc<Cell<u64>>,
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
        let got = waiter.wait(self.deliveries.recv()).flatten();
        self.put(got.unwrap_or(Delivery::End));
        !self.queue.is_ended
    }

    /// Takes over a delivery that is here, without waiting. Returns whether there was one.
    pub(super) fn poll(&mut self) -> bool {
        let Ok(delivery) = self.deliveries.try_recv() else { return false };
        self.put(delivery);
        true
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
