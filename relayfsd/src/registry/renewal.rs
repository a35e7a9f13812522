//! Broken channels: who waits for them is let go, and they are made anew.

use std::sync::Arc;

use relay::GeometrySpec;

use super::{Create, Held, OpenError, Registry};
use crate::channel::Channel;

impl Registry {
    /// Sees to it that nobody waits for room in a channel that is broken.
    pub(super) fn watch(self: &Arc<Self>, channel: &Channel) {
        let registry = Arc::downgrade(self);
        channel.on_broken(Box::new(move || {
            if let Some(registry) = registry.upgrade() {
                registry.writers.sweep();
            }
        }));
    }

    /// Puts a new channel in the place of a broken one, or nothing if that is not one of the command line's: who wants it opens
    /// it. Who has the broken one keeps it, and gets errors. Its counts go with it: they are anybody's.
    fn renew(self: &Arc<Self>, broken: &Channel) -> Result<(), OpenError> {
        let mut channels = self.lock();
        if channels.closed {
            return Err(OpenError::Closed);
        }
        let name = broken.name();
        if channels.remove(broken) {
            self.forget(&channels, broken);
            log::warn!("channel {name}: removed, since it was broken");
        }
        drop(channels);
        if broken.permanent() {
            let geometry = broken.geometry();
            let spec = GeometrySpec {
                subbuf_size: Some(geometry.subbuf_size() as u64),
                n_subbufs: Some(geometry.n_subbufs() as u64),
                header: Some(geometry.header() as u64),
                mode: Some(geometry.mode()),
                global: Some(geometry.global()),
            };
            let (held, _) = self.open(name, spec, Create::Permanent)?;
            held.make_permanent(); // somebody may have been faster
            held.tell_no_sooner_than(broken);
        }
        Ok(())
    }
}

impl Held {
    /// Has a broken channel made anew.
    pub(crate) fn renew(&self) -> Result<(), OpenError> {
        self.registry.renew(&self.channel)
    }
}
