//! Waiters for a channel's buffers, and how the daemon wakes them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::Channel;

/// Wakes a poller.
pub(crate) type Wake = Box<dyn FnOnce() + Send>;

/// The answer to poll(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PollState {
    /// No sub-buffer is finished.
    Idle,
    /// A finished sub-buffer waits.
    Readable,
    /// The channel is closed.
    Closed,
    /// The channel's files are damaged.
    Broken,
}

/// Asks the daemon's first thread to run a timer, because a process uses a buffer.
///
/// See `registry/flush_timer.rs` and `registry/anchor_timer.rs`.
pub(crate) struct TimerRequest {
    /// Whether a thread has asked since the timer last ran.
    wanted: AtomicBool,
    sender: Sender<()>,
    receiver: Receiver<()>,
}

impl TimerRequest {
    pub(crate) fn new() -> Arc<TimerRequest> {
        let (sender, receiver) = bounded(1);
        Arc::new(TimerRequest { wanted: AtomicBool::new(false), sender, receiver })
    }

    /// Asks the timer to run.
    pub(crate) fn ask(&self) {
        if !self.wanted.swap(true, Ordering::SeqCst) {
            // If the queue is full, the first thread has a request already.
            let _ = self.sender.try_send(());
        }
    }

    /// Returns the receiver that gets a message when a thread asks.
    pub(crate) fn asked(&self) -> Receiver<()> {
        self.receiver.clone()
    }

    /// Called by the first thread when the timer has run: the next thread has to ask again.
    pub(crate) fn done(&self) {
        self.wanted.store(false, Ordering::SeqCst);
    }
}

impl Channel {
    /// Returns the answer to poll(2) for a buffer.
    ///
    /// `wake` is called once, at the buffer's next switch or at its end. It is stored *before* the look at the buffer,
    /// so that the poller does not miss a switch in between.
    pub(crate) fn poll(&self, cpu: usize, file: u64, wake: Option<Wake>) -> PollState {
        if let Some(wake) = wake {
            let mut waiters = self.waiters(cpu);
            self.buffers[cpu].buffer.arm();
            match waiters.iter_mut().find(|(who, _)| *who == file) {
                Some(waiter) => waiter.1 = wake,
                None => waiters.push((file, wake)),
            }
            drop(waiters);
            self.polled.store(true, Ordering::SeqCst);
            if let Some(request) = self.flush_request.get() {
                request.ask();
            }
        }
        let has_finished = self.read_side(cpu).reader.has_finished();
        if self.closed.load(Ordering::Acquire) {
            PollState::Closed
        } else if self.is_broken() {
            PollState::Broken
        } else if has_finished {
            PollState::Readable
        } else {
            PollState::Idle
        }
    }

    /// Forgets the waiter of an open file.
    pub(crate) fn forget_waiter(&self, cpu: usize, file: u64) {
        self.waiters(cpu).retain(|(who, _)| *who != file);
    }

    /// Wakes all pollers of a buffer: they look again.
    pub(crate) fn wake(&self, cpu: usize) {
        let waiters = std::mem::take(&mut *self.waiters(cpu));
        for (_, wake) in waiters {
            wake();
        }
    }

    /// Wakes the pollers of buffers that have a finished sub-buffer.
    ///
    /// The caller found that a direct producer has rung, or is gone. Where a reader was faster and nothing is left, the
    /// pollers wait on, and producers have to ring again.
    pub(crate) fn wake_readable(&self) {
        for cpu in 0..self.n_bufs() {
            if self.waiters(cpu).is_empty() {
                continue;
            }
            let has_finished = || self.read_side(cpu).reader.has_finished();
            let readable = has_finished() || {
                self.buffers[cpu].buffer.arm();
                has_finished()
            };
            if readable {
                self.wake(cpu);
            }
        }
    }

    /// Sets where a thread with a new waiter asks for a flush.
    pub(crate) fn set_flush_request(&self, request: Arc<TimerRequest>) {
        // Set once, when the channel is created.
        let _ = self.flush_request.set(request);
    }

    /// Returns whether a process may be waiting for one of the buffers.
    pub(crate) fn is_polled(&self) -> bool {
        self.polled.load(Ordering::SeqCst)
    }

    /// Returns the polled buffers whose only unread data is in an unfinished sub-buffer.
    pub(crate) fn polled_unfinished(&self) -> Vec<usize> {
        if !self.polled.swap(false, Ordering::SeqCst) {
            return Vec::new();
        }
        let waited_for = |cpu: &usize| !self.waiters(*cpu).is_empty();
        let polled: Vec<usize> = (0..self.n_bufs()).filter(waited_for).collect();
        if !polled.is_empty() {
            self.polled.store(true, Ordering::SeqCst);
        }
        let unfinished = |cpu: &usize| self.read_side(*cpu).reader.has_unread_unfinished();
        polled.into_iter().filter(unfinished).collect()
    }

    fn waiters(&self, cpu: usize) -> MutexGuard<'_, Vec<(u64, Wake)>> {
        self.buffers[cpu].waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use relay::GeometrySpec;
    use relay::ring::writer::{SoleWriter, Writer};

    use super::*;
    use crate::channel::Named;

    /// A producer rings for a sub-buffer.
    ///
    /// A reader takes it before the daemon looks. The next ring must wake the poller.
    #[test]
    fn ring_after_a_faster_reader_wakes_the_poller() {
        let dir = tempfile::tempdir().unwrap();
        let geometry = GeometrySpec::default().build().unwrap();
        let named = Named { id: 1, name: "cpu".parse().unwrap(), geometry, permanent: true, maker: None };
        let channel = Channel::create(dir.path(), 1, named, 1).unwrap();
        let woken = Arc::new(AtomicUsize::new(0));
        let wake = Arc::clone(&woken);
        let told = move || {
            wake.fetch_add(1, Ordering::Relaxed);
        };
        assert!(matches!(channel.poll(0, 7, Some(Box::new(told))), PollState::Idle));
        let switch = || {
            Writer::new(channel.buffer(0), SoleWriter).flush().unwrap();
            channel.buffer(0).wake_wanted().expect("a process polls").rung();
        };
        switch();
        channel.read_side(0).reader.read(1, &mut Vec::new(), |_| {});
        channel.wake_readable();
        assert_eq!(woken.load(Ordering::Relaxed), 0, "there is nothing");
        switch();
        channel.wake_readable();
        assert_eq!(woken.load(Ordering::Relaxed), 1);
    }
}
