//! Flushes the buffers that processes wait for, at every `--flush-interval`.
//!
//! The daemon's first thread looks only while a process waits.
//!
//! ```text
//! FUSE or socket thread:  store the waiter, set `polled`, ask
//! first thread, a look:   clear `polled`, look at the waiters, set `polled` again if there are some
//! ```
//!
//! For a waiter that is stored during a look, either the look finds it, or `polled` is set after the look. So no waiter
//! is left without looks.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, after, never};

use super::Registry;
use crate::channel::Looks;
use crate::writers::{Job, Unavailable};

/// The times at which the first thread looks.
pub(crate) struct Schedule {
    interval: Option<Duration>,
    looks: Arc<Looks>,
    /// Gets a message when the next look is due.
    due: Receiver<std::time::Instant>,
}

impl Schedule {
    /// Creates a schedule without looks until a process waits.
    ///
    /// Without an interval there are none at all.
    pub(crate) fn new(interval: Option<Duration>, looks: Arc<Looks>) -> Schedule {
        Schedule { interval, looks, due: never() }
    }

    /// Returns the receiver that gets a message when a process begins to wait.
    pub(crate) fn asked(&self) -> Receiver<()> {
        self.interval.map_or_else(never, |_| self.looks.asked())
    }

    /// Returns the receiver that gets a message when the next look is due.
    pub(crate) fn due(&self) -> &Receiver<std::time::Instant> {
        &self.due
    }

    /// Makes the next look due after the interval.
    pub(crate) fn plan(&mut self) {
        self.due = self.interval.map_or_else(never, after);
    }

    /// Looks, and plans the next look if a process still waits.
    pub(crate) fn look(&mut self, registry: &Arc<Registry>) {
        registry.finish_polled();
        self.due = never();
        self.looks.done();
        // A waiter that asked before the line above got no answer.
        if registry.all().iter().any(|channel| channel.is_polled()) {
            self.looks.ask();
        }
    }
}

impl Registry {
    /// Finishes the current sub-buffers whose unread data processes wait for.
    fn finish_polled(self: &Arc<Self>) {
        for channel in self.all().iter().filter(|channel| !channel.is_broken()) {
            for cpu in channel.polled_unfinished() {
                let Some(held) = self.hold_id(channel.id()) else { break };
                let name = channel.name().clone();
                let done = Box::new(move |done: Result<(), Unavailable>| {
                    if let Err(unavailable) = done {
                        log::debug!("channel {name}: flush: {unavailable}");
                    }
                });
                self.writers.submit_now(Job::FlushUnread { channel: held, cpu, done });
            }
        }
    }
}
