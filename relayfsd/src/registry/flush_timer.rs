//! Flushes the buffers that processes wait for, at every `--flush-interval`.
//!
//! The timer of the daemon's first thread runs only while a process waits.
//!
//! ```text
//! FUSE or socket thread:  store the waiter, set `polled`, ask
//! first thread, a flush:  clear `polled`, look at the waiters, set `polled` again if there are some
//! ```
//!
//! For a waiter that is stored during a flush, either the flush finds it, or `polled` is set after the flush. So no
//! waiter is left without a flush.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, after, never};

use super::Registry;
use crate::channel::TimerRequest;
use crate::writers::{Job, Unavailable};

/// The timer for the flush of buffers that processes wait for.
pub(crate) struct FlushTimer {
    interval: Option<Duration>,
    request: Arc<TimerRequest>,
    /// Gets a message when the next flush is due.
    due: Receiver<std::time::Instant>,
}

impl FlushTimer {
    /// Creates a timer that starts when a process waits.
    ///
    /// Without an interval it never starts.
    pub(crate) fn new(interval: Option<Duration>, request: Arc<TimerRequest>) -> FlushTimer {
        FlushTimer { interval, request, due: never() }
    }

    /// Returns the receiver that gets a message when a process begins to wait.
    pub(crate) fn asked(&self) -> Receiver<()> {
        self.interval.map_or_else(never, |_| self.request.asked())
    }

    /// Returns the receiver that gets a message when the next flush is due.
    pub(crate) fn due(&self) -> &Receiver<std::time::Instant> {
        &self.due
    }

    /// Makes the next flush due after the interval.
    pub(crate) fn start(&mut self) {
        self.due = self.interval.map_or_else(never, after);
    }

    /// Flushes, and asks for the next flush if a process still waits.
    pub(crate) fn flush(&mut self, registry: &Arc<Registry>) {
        registry.flush_polled();
        self.due = never();
        self.request.done();
        // A waiter that asked before the line above got no answer.
        if registry.all().iter().any(|channel| channel.is_polled()) {
            self.request.ask();
        }
    }
}

impl Registry {
    /// Finishes the current sub-buffers whose unread data processes wait for.
    fn flush_polled(self: &Arc<Self>) {
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
