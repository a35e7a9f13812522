//! Looks at buffers that processes wait for, at every `--flush-interval`, and only while a process waits.
//!
//! ```text
//! FUSE or socket thread: store the waiter, set `polled`, ask      first thread: on a look: clear `polled`, look at the waiters,
//!                                                                               set `polled` again if there are some
//! ```
//!
//! A waiter that is stored during a look is either found by it, or sets `polled` after it; so no waiter is left without looks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, after, bounded, never};

use crate::registry::Registry;

/// Where a thread with a new waiter asks for looks.
pub(crate) struct Looks {
    /// Whether looks were asked for, and go on.
    wanted: AtomicBool,
    sender: Sender<()>,
    receiver: Receiver<()>,
}

impl Looks {
    pub(crate) fn new() -> Arc<Looks> {
        let (sender, receiver) = bounded(1);
        Arc::new(Looks { wanted: AtomicBool::new(false), sender, receiver })
    }

    /// Asks for looks: a waiter was stored.
    pub(crate) fn ask(&self) {
        if !self.wanted.swap(true, Ordering::SeqCst) {
            // One that is there already does as well.
            let _ = self.sender.try_send(());
        }
    }
}

/// When the first thread looks.
pub(crate) struct Schedule {
    interval: Option<Duration>,
    looks: Arc<Looks>,
    /// Something comes when the next look is due.
    due: Receiver<std::time::Instant>,
}

impl Schedule {
    /// No looks until a process waits; none at all without an interval.
    pub(crate) fn new(interval: Option<Duration>, looks: Arc<Looks>) -> Schedule {
        Schedule { interval, looks, due: never() }
    }

    /// Something comes when a process waits for the first time, or again.
    pub(crate) fn asked(&self) -> Receiver<()> {
        self.interval.map_or_else(never, |_| self.looks.receiver.clone())
    }

    /// Something comes when the next look is due.
    pub(crate) fn due(&self) -> &Receiver<std::time::Instant> {
        &self.due
    }

    /// The next look is due after the interval.
    pub(crate) fn plan(&mut self) {
        self.due = self.interval.map_or_else(never, after);
    }

    /// Looks, and plans the next look if a process still waits.
    pub(crate) fn look(&mut self, registry: &Arc<Registry>) {
        registry.finish_polled();
        self.due = never();
        self.looks.wanted.store(false, Ordering::SeqCst);
        // A waiter that asked before the line above was not heard.
        if registry.all().iter().any(|channel| channel.is_polled()) {
            self.looks.ask();
        }
    }
}
