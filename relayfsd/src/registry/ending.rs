//! The channels at the daemon's end: which stay for the next daemon, and which go.
//!
//! ```text
//! begin_end   connections that are cut let go of no channel, since their producers may write on
//! close_all   nothing is opened any more, pollers wake; with --discard every channel ends here
//!   ...       files that are open are read on, until they are closed or their time is over
//! finish      no read is under way any more; what has something unread, or a live producer, stays
//! ```

use std::sync::Arc;
use std::time::Duration;

use super::{Channels, Registry};
use crate::channel::Channel;
use crate::config::options::Keep;
use crate::kill_point;
use crate::state::end_report::Left;
use crate::writers;

/// How long the writers have to end a channel's buffers.
pub(super) const CLOSE_MAX: Duration = Duration::from_millis(500);

impl Registry {
    /// Keeps every channel until [`Self::finish`] decides. To be called before connections are cut: a channel that only they
    /// held may have a live producer that writes it directly, and would lose what comes.
    pub(crate) fn begin_end(&self) {
        self.lock().ending = true;
    }

    /// Ends opening, and wakes pollers. With [`Keep::Nothing`] ends the channels and returns what they had unread; otherwise
    /// producers write on, and [`Self::finish`] decides.
    pub(crate) fn close_all(self: &Arc<Self>, keep: Keep) -> Vec<Left> {
        self.lock().closed = true;
        // A channel that is being made finds that out.
        drop(self.creating.lock());
        let mut discarded = Vec::new();
        for channel in self.all() {
            channel.close();
            if keep == Keep::Nothing {
                // First the producers that write directly, so that what is counted below is all there will be.
                self.close_buffers(&channel);
                discarded.push(left(&channel, channel.unread()));
                channel.take_files();
            }
        }
        if keep == Keep::Nothing {
            // Should the rest of the end be cut short: the next daemon takes nothing of this over.
            let channels = Channels { last_id: self.lock().last_id, ..Channels::default() };
            if let Err(error) = self.save(&channels) {
                log::warn!("{error}");
            }
        }
        kill_point!("end-closed");
        discarded
    }

    /// Whether a channel would stay if the daemon ended now. Readers may go on reading.
    pub(crate) fn has_left(&self, keep: Keep) -> bool {
        self.all().iter().any(|channel| channel.has_files() && left(channel, channel.unread()).stays(keep))
    }

    /// The last thing: waits for reads that are under way, and lets no other begin, so that what stays says exactly what was
    /// read. Returns the channels that stay; the files of the others are removed, unless no channel stays: then the whole
    /// directory goes.
    pub(crate) fn finish(self: &Arc<Self>, keep: Keep) -> Vec<Left> {
        let all: Vec<Arc<Channel>> = self.all().into_iter().filter(|channel| channel.has_files()).collect();
        for channel in all.iter().filter(|channel| !left(channel, channel.unread()).stays(keep)) {
            self.close_buffers(channel);
        }
        let (mut stay, mut gone) = (Vec::new(), Vec::new());
        for channel in all {
            let total = channel.total();
            let left = left(&channel, channel.freeze());
            if left.stays(keep) {
                stay.push(left);
            } else {
                // Its name goes first.
                gone.extend(channel.take_files().map(|files| (files, total)));
            }
        }
        kill_point!("end-frozen");
        let mut channels = self.lock();
        gone.iter().for_each(|(_, total)| channels.gone.add(total));
        let mut saved = self.save_ended(&channels);
        kill_point!("end-saved");
        if !stay.is_empty() {
            gone.iter().for_each(|(files, _)| files.remove());
            // Where there is no room to say so, the removed files make some.
            saved = saved.or_else(|_| self.save_ended(&channels));
        }
        if let Err(error) = saved {
            log::warn!("the state file does not say that this is a clean end: {error}");
        }
        stay
    }

    /// Ends all channels, of which nothing is to stay. Files that are open are read on; the directory may be another daemon's.
    pub(crate) fn abandon(self: &Arc<Self>) {
        for channel in self.all() {
            self.close_buffers(&channel);
            channel.take_files();
        }
    }

    /// Tells producers that write directly that the channel is over.
    fn close_buffers(self: &Arc<Self>, channel: &Channel) {
        if channel.is_shared()
            && let Some(held) = self.hold_id(channel.id())
        {
            writers::close_all(self.writers(), &held, CLOSE_MAX);
        }
    }
}

fn left(channel: &Channel, unread: u64) -> Left {
    let is_broken = channel.is_broken();
    Left {
        name: channel.name().clone(),
        unread: if is_broken { 0 } else { unread },
        has_producers: channel.has_producers(),
        is_broken,
    }
}
