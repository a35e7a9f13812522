//! Closes buffers for direct producers.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::bounded;
use relay::ring::writer::AnyExecutor;

use super::{Job, Writers, on_all};
use crate::channel::{Channel, ChannelRef};

/// Closes every buffer of a channel for direct producers, and waits at most `limit` for that.
pub(crate) fn close_all(writers: &Writers, channel: &ChannelRef, limit: Duration) {
    // Also for each CPU that the daemon cannot use, where no job runs.
    channel.give_up_buffers();
    let (sender, receiver) = bounded(1);
    let done = move |_| sender.send(()).unwrap_or_default(); // an error: the wait below has ended
    on_all(writers, channel, done, |channel, cpu, done| Job::Close { channel, cpu, done });
    // Where a job has failed, producers find the buffer closed at their next switch.
    let _ = receiver.recv_timeout(limit);
}

impl Writers {
    /// Closes the buffers of a broken channel, or of one that is gone, for direct producers. Never waits.
    ///
    /// Each buffer is closed on its CPU: writers there do not lock `state`, and would lose the store of another CPU. Where
    /// no thread can do that, producers find the buffer closed at their next switch.
    pub(crate) fn give_up(&self, channel: &Arc<Channel>) {
        if !AnyExecutor::can_share() {
            return;
        }
        for (cpu, queue) in self.queues.iter().take(channel.n_bufs()).enumerate() {
            if queue.start(&self.on_room).is_ok() {
                // Cannot fail: the thread keeps its receiving ends for ever.
                let _ = queue.files.send(Job::GiveUp { channel: Arc::clone(channel), cpu }.into());
            }
        }
    }
}
