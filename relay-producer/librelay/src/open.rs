//! Requests to open a channel, and open channels.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use relay::system::next_try::NextTry;
use relay::{GeometrySpec, Mode};
use relay_producer::{Appender, Channel, Transport};

use crate::control::Control;
use crate::error;
use crate::event::Events;
use crate::handle::Shape;
use crate::place::Place;

/// The channel that a program asks for.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) mount: PathBuf,
    /// The channel's name.
    pub(crate) name: String,
    pub(crate) subbuf_size: usize,
    pub(crate) n_subbufs: usize,
    pub(crate) is_global: bool,
    /// Bytes that `subbuf_start` reserved; `None` without that callback.
    pub(crate) reserved: Option<usize>,
    /// Whether a new channel is timed.
    pub(crate) is_timed: bool,
}

/// An open channel with its control files and callbacks.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) channel: Channel,
    pub(crate) control: Control,
    pub(crate) callbacks: crate::callback::Callbacks,
    /// Return value of `create_buf_file`.
    pub(crate) file: Option<&'static Place>,
    pub(crate) events: Events,
    /// When the macros may try to define an event.
    pub(crate) next_try: NextTry,
}

/// Makes a path absolute, so that it stays the same if the program changes its directory.
pub(crate) fn absolute(mount: &Path) -> Result<PathBuf, Errno> {
    std::path::absolute(mount).map_err(|error| error::of_io(&error))
}

impl Open {
    /// Returns an appender, if messages are written directly and without a callback.
    pub(crate) fn appender(&self) -> Option<Appender> {
        let is_direct =
            self.callbacks.subbuf_start.is_none() && self.channel.transport() == Transport::Shared;
        is_direct.then(|| self.channel.appender())
    }
}

impl Request {
    /// Opens the channel, or creates it.
    pub(crate) fn open(&self) -> Result<Channel, Errno> {
        let mut spec = GeometrySpec {
            subbuf_size: Some(self.subbuf_size as u64),
            n_subbufs: Some(self.n_subbufs as u64),
            ..GeometrySpec::default()
        };
        spec.global = Some(self.is_global);
        spec.header = Some(self.reserved.unwrap_or(0) as u64);
        spec.mode = Some(if self.reserved.is_some() { Mode::Overwrite } else { Mode::NoOverwrite });
        // Otherwise the daemon decides, as for every program that does not say.
        spec.timed = self.is_timed.then_some(true);
        let builder = Channel::builder(&self.mount, &self.name).create(true).geometry(spec);
        let channel = builder.open().map_err(|error| error::of_open(&error))?;
        match self.reserved {
            Some(_) if channel.is_timed() || channel.transport() == Transport::Socket => Err(Errno::ENOTSUP),
            Some(reserved) if reserved > channel.geometry().header() => Err(Errno::EINVAL),
            _ => Ok(channel),
        }
    }

    /// Returns the geometry that the program sees before the channel is open.
    pub(crate) fn shape(&self) -> Shape {
        Shape {
            subbuf_size: self.subbuf_size,
            n_subbufs: self.n_subbufs,
            n_bufs: 1,
            header: 0,
            is_global: self.is_global,
            overwrite: self.reserved.is_some(),
        }
    }
}

/// Returns the geometry that the program sees of an open channel.
pub(crate) fn shape_of(channel: &Channel) -> Shape {
    let geometry = channel.geometry();
    Shape {
        subbuf_size: geometry.subbuf_size(),
        n_subbufs: geometry.n_subbufs(),
        n_bufs: channel.n_bufs(),
        header: geometry.header(),
        is_global: geometry.global(),
        overwrite: geometry.mode() == Mode::Overwrite,
    }
}
