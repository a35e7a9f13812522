//! Channels that are made and removed as directories: mkdir(2) and rmdir(2) in `.relay/channels`.
//!
//! A user makes a channel as a producer does with `--create`, within the same limits. It lives until the directory is
//! removed, or the daemon ends. No name is a directory of another, so `mkdir -p app/log` first makes a channel `app`.
//! The next mkdir(2) inside of that channel, which no client has used, makes it a part of the name `app/log`. The
//! directory keeps the channel's id, since the process that made it may stand in it.

use std::sync::{Arc, MutexGuard, PoisonError};

use nix::libc;
use relay::{ChannelName, GeometrySpec};

use super::{Channels, Create, Registry};
use crate::channel::Channel;
use crate::policy::quota::is_trusted;

impl Registry {
    /// Creates a channel for mkdir(2), with the daemon's geometry, and passes its id, or an errno, to `done`.
    ///
    /// `inside` is the channel in whose directory it is made. The creator's thread calls `done`.
    pub(crate) fn make_directory(
        self: &Arc<Self>,
        name: ChannelName,
        inside: Option<u32>,
        uid: u32,
        done: impl FnOnce(Result<u32, i32>) + Send + 'static,
    ) {
        let registry = self.clone();
        let order = move || {
            let emptied = inside.map_or(Ok(None), |outer| registry.make_room_inside(outer, uid).map(Some));
            let made = emptied.as_ref().map_err(|errno| *errno).and_then(|_| {
                let opened = registry.open(&name, GeometrySpec::default(), Create::UntilRemoved(uid));
                match opened {
                    Ok((held, true)) => Ok(held.id()),
                    Ok((_, false)) => Err(libc::EEXIST),
                    Err(error) => {
                        log::info!("mkdir by uid {uid}: {error}");
                        Err(error.errno())
                    }
                }
            });
            if let Ok(Some(dir)) = emptied {
                registry.lock().end_dir(&dir);
            }
            done(made);
        };
        self.creator.order(uid, Box::new(order));
    }

    /// Removes a channel for rmdir(2), if mkdir(2) made it, it has nothing unread, and no client uses it.
    pub(crate) fn remove_directory(&self, id: u32, uid: u32) -> Result<(), i32> {
        self.remove_made(id, uid, |channel| match channel.unread() {
            0 => Ok(()),
            _ if channel.is_broken() => Ok(()),
            _ => Err(libc::ENOTEMPTY),
        })
        .map(drop)
    }

    /// Removes the channel whose directory is to be a part of a longer name, and returns that directory's path.
    ///
    /// The channel must be as mkdir(2) made it. The directory stays until [`Channels::end_dir`].
    fn make_room_inside(&self, id: u32, uid: u32) -> Result<String, i32> {
        let mut channels = self.remove_made(id, uid, |channel| {
            let total = channel.total();
            let is_untouched = total.bytes == 0 && total.dropped == 0 && !channel.is_shared();
            if is_untouched { Ok(()) } else { Err(libc::EEXIST) }
        })?;
        let path = channels.1.name().to_string();
        channels.0.begin_dir(&path, id);
        Ok(path)
    }

    fn remove_made(
        &self,
        id: u32,
        uid: u32,
        check: impl FnOnce(&Channel) -> Result<(), i32>,
    ) -> Result<(MutexGuard<'_, Channels>, Arc<Channel>), i32> {
        // A thread that creates a channel may be about to put another one in this one's place.
        let _creating = self.creating.lock().unwrap_or_else(PoisonError::into_inner);
        let mut channels = self.lock();
        let channel = channels.by_id.get(&id).map(|(channel, _)| channel.clone()).ok_or(libc::ENOENT)?;
        let maker = channel.maker().filter(|_| channel.permanent()).ok_or(libc::EPERM)?;
        if maker != uid && !is_trusted(uid) {
            return Err(libc::EPERM);
        }
        // First what the caller can see: of connections and files that are closed, the daemon hears later.
        check(&channel)?;
        if channels.ending || channel.is_held() || channel.has_producers() {
            return Err(libc::EBUSY);
        }
        self.remove_locked(&mut channels, &channel);
        Ok((channels, channel))
    }

    /// Removes a channel that no client holds, and adds its counts to those of removed channels.
    pub(super) fn remove_locked(&self, channels: &mut Channels, channel: &Arc<Channel>) {
        if !channels.remove(channel) {
            return;
        }
        let total = channel.total();
        if !channel.is_broken() {
            channels.add_gone(channel.name(), &channel.all_counts());
        }
        // A producer that has lost its descriptors may still map the buffers: its messages are refused from then on, not
        // lost. Behind the removal: a daemon that dies before it leaves a channel that its successor can continue.
        let is_written = channel.may_be_written_directly();
        self.forget(channels, channel);
        channel.give_up_buffers();
        if is_written {
            self.writers.give_up(channel);
        }
        log::info!("channel {}: gone; {} dropped, {} too big", channel.name(), total.dropped, total.too_big);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;
    use std::thread::yield_now;
    use std::time::{Duration, Instant};

    use relay::layout::position::Position;
    use relay::ring::buffer::Buffer;

    use super::*;
    use crate::registry::Limits;
    use crate::state::recovery::Recovered;
    use crate::writers::Writers;

    fn is_blocked(buffer: &Buffer) -> bool {
        buffer.widths().blocked(Position(buffer.block().state.load(Ordering::Acquire)))
    }

    /// Writers on the buffer's CPU change `state` without a lock, and would lose the store of another CPU.
    #[test]
    fn buffer_that_is_given_up_is_closed_by_its_writer_alone() {
        for breaks in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let limits = Limits { memory: 64 << 20, channels: 4 };
            let path = dir.path().to_owned();
            let writers = Arc::new(Writers::new(1));
            let registry =
                Registry::new(path, 1, limits, GeometrySpec::default(), Recovered::default(), writers)
                    .unwrap();
            let name = "app".parse().unwrap();
            let (held, _) = registry.open(&name, GeometrySpec::default(), Create::ForHolders(0)).unwrap();
            // A producer that keeps its mappings, but loses its connection.
            let _files = held.share(true).unwrap();
            let channel = registry.all()[0].clone();
            let buffer = channel.buffer(0).clone();
            let writing = channel.lock_to_write(0);
            if breaks {
                buffer.block().begun.store(u64::MAX, Ordering::Relaxed);
                drop(channel.read_side(0));
                assert!(channel.is_broken());
            } else {
                drop(held);
                assert!(registry.all().is_empty());
            }
            assert_eq!((buffer.block().closed.load(Ordering::Relaxed), is_blocked(&buffer)), (1, false));
            drop(writing);
            let deadline = Instant::now() + Duration::from_secs(60);
            while !is_blocked(&buffer) {
                assert!(Instant::now() < deadline, "nothing closes the buffer");
                yield_now();
            }
        }
    }
}
