//! Takes the anchors of timed channels once a second, while processes write or read them.
//!
//! ```text
//! thread that writes or reads:   set `busy`; if it was not set: ask
//! direct writer:                 rings its bell at the next switch, since the last anchor armed the buffer
//! first thread, an anchor:       clear `busy`, arm the buffers, look whether the writers have moved: set `busy` again
//! ```
//!
//! A channel at rest has no anchors, and the timer does not run. Each anchor arms the buffers, so a direct writer rings
//! at most once a second for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, at, never};

use super::Registry;
use crate::channel::TimerRequest;
use crate::channel::timed::Timed;

/// Time between two anchors of the timer.
const INTERVAL: Duration = Duration::from_secs(1);

/// The timer for anchors.
pub(crate) struct AnchorTimer {
    request: Arc<TimerRequest>,
    last: Option<Instant>,
    /// Gets a message when the next anchor is due.
    due: Receiver<Instant>,
}

impl AnchorTimer {
    /// Creates a timer that starts when a process writes or reads.
    pub(crate) fn new(request: Arc<TimerRequest>) -> AnchorTimer {
        AnchorTimer { request, last: None, due: never() }
    }

    /// Returns the receiver that gets a message when a process begins to write or read.
    pub(crate) fn asked(&self) -> Receiver<()> {
        self.request.asked()
    }

    /// Returns the receiver that gets a message when the next anchors are due.
    pub(crate) fn due(&self) -> &Receiver<Instant> {
        &self.due
    }

    /// Makes the next anchors due a second after the last ones.
    pub(crate) fn start(&mut self) {
        let now = Instant::now();
        self.due = at(self.last.map_or(now, |last| last + INTERVAL));
    }

    /// Takes the anchors of busy channels, and asks for the next ones if a channel is still busy.
    pub(crate) fn take(&mut self, registry: &Arc<Registry>) {
        (self.due, self.last) = (never(), Some(Instant::now()));
        registry.take_due_anchors();
        self.request.done();
        // A process that asked before the line above got no answer.
        if registry.all().iter().any(|channel| channel.timed().is_some_and(Timed::is_busy)) {
            self.request.ask();
        }
    }
}

impl Registry {
    /// Takes the anchors of the channels that processes have written or read since the last look.
    fn take_due_anchors(self: &Arc<Self>) {
        for channel in self.all().iter().filter(|channel| !channel.is_broken()) {
            if channel.anchor_is_due()
                && let Some(held) = self.hold_id(channel.id())
            {
                self.writers.take_anchor(&held);
            }
        }
    }
}
