//! Broken channels: the registry releases their waiters, and recreates them.

use std::sync::{Arc, PoisonError};

use relay::GeometrySpec;

use super::{Create, OpenError, Registry};
use crate::channel::{Channel, ChannelRef};

impl Registry {
    /// Connects a new channel to the writers and to the first thread.
    ///
    /// When the channel breaks, the writers drop the batches that wait for room in it, and close it for direct producers.
    /// The first thread learns of pollers, and of the use of timed channels.
    pub(super) fn watch(self: &Arc<Self>, channel: &Arc<Channel>) {
        channel.set_flush_request(Arc::clone(&self.flush_request));
        if let Some(timed) = channel.timed() {
            timed.set_request(Arc::clone(&self.anchor_request));
        }
        // Weak: the writers' jobs hold channels, and a strong reference would close a circle.
        let (writers, broken) = (Arc::downgrade(&self.writers), Arc::downgrade(channel));
        channel.on_broken(Box::new(move || {
            if let (Some(writers), Some(broken)) = (writers.upgrade(), broken.upgrade()) {
                writers.sweep();
                if broken.may_be_written_directly() {
                    writers.give_up(&broken);
                }
            }
        }));
    }

    /// Recreates a broken channel on the creator's thread, which passes the result to `done`.
    pub(crate) fn recreate(
        self: &Arc<Self>,
        broken: &ChannelRef,
        done: impl FnOnce(Result<(), OpenError>) + Send + 'static,
    ) {
        let (registry, broken) = (self.clone(), broken.clone());
        self.creator.order(0, Box::new(move || done(registry.replace_broken(&broken))));
    }

    /// Replaces a broken channel of the command line or of mkdir(2), or removes any other broken channel.
    ///
    /// A producer that wants a removed channel opens it again. Holders of the broken one keep it, and get errors. Its
    /// counters are lost: a peer may have written anything there. Runs on the creator's thread.
    fn replace_broken(self: &Arc<Self>, broken: &Channel) -> Result<(), OpenError> {
        let _creating = self.creating.lock().unwrap_or_else(PoisonError::into_inner);
        let mut channels = self.lock();
        if channels.closed {
            return Err(OpenError::Closed);
        }
        let Some(broken) = channels.by_id.get(&broken.id()).map(|(channel, _)| channel.clone()) else {
            return Ok(()); // another caller was faster
        };
        let name = broken.name();
        if broken.permanent() {
            drop(channels);
            let spec = GeometrySpec::from(*broken.geometry());
            let create = broken.maker().map_or(Create::Permanent, Create::UntilRemoved);
            self.make(name, spec, create, Some(&broken))?;
        } else {
            channels.remove(&broken);
            self.forget(&channels, &broken);
        }
        log::warn!("channel {name}: removed, since it was broken");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;
    use crate::registry::Limits;
    use crate::state::recovery::Recovered;
    use crate::writers::Writers;

    /// The caller does not wait for the new channel's allocation, and gets the result later.
    #[test]
    fn broken_channel_is_recreated_on_the_creators_thread() {
        let dir = tempfile::tempdir().unwrap();
        let limits = Limits { memory: 64 << 20, channels: 4 };
        let path = dir.path().to_owned();
        let writers = Arc::new(Writers::new(1));
        let registry =
            Registry::new(path, 1, limits, GeometrySpec::default(), Recovered::default(), writers).unwrap();
        let (broken, _) =
            registry.open(&"cpu".parse().unwrap(), GeometrySpec::default(), Create::Permanent).unwrap();
        let paths = broken.paths();
        File::options().write(true).open(&paths[1]).unwrap().set_len(0).unwrap();
        assert!(broken.is_broken_or_cut(None));
        let (sender, receiver) = channel();
        registry.recreate(&broken, move |result| {
            sender.send((result.is_ok(), thread::current().name().map(str::to_owned))).unwrap();
        });
        assert_eq!(receiver.recv().unwrap(), (true, Some("creator".to_owned())));
        let recreated = registry.hold("cpu").unwrap();
        assert!(recreated.id() != broken.id() && !recreated.is_broken() && !paths[0].exists());
    }
}
