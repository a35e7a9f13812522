//! Opening a channel with options.

use std::path::{Path, PathBuf};
use std::time::Instant;

use relay::wire::socket::find;
use relay::{GeometrySpec, Mode};

use crate::channel::Channel;
use crate::error::OpenError;
use crate::socket::handshake::{Handshake, OPEN_LIMIT, OpenRequest, Progress};
use crate::transport::TransportChoice;

/// Options for opening a channel; made by [`Channel::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    mount: PathBuf,
    name: String,
    create: bool,
    spec: GeometrySpec,
    transport: TransportChoice,
}

impl Builder {
    pub(crate) fn new(mount: &Path, name: &str) -> Builder {
        Builder {
            mount: mount.to_owned(),
            name: name.to_owned(),
            create: false,
            spec: GeometrySpec::default(),
            transport: TransportChoice::Auto,
        }
    }

    /// Sets whether to create the channel if it does not exist.
    /// An existing one keeps its geometry.
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// Sets the geometry of a new channel. The daemon chooses missing values.
    pub fn geometry(mut self, spec: GeometrySpec) -> Self {
        self.spec = spec.or(&self.spec);
        self
    }

    /// Sets what writers of a new channel do when its buffers are full.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.spec.mode = Some(mode);
        self
    }

    /// Sets whether a new channel has one buffer for all CPUs.
    pub fn global(mut self, global: bool) -> Self {
        self.spec.global = Some(global);
        self
    }

    /// Sets the transport of messages, now and after every loss of the connection.
    pub fn transport(mut self, choice: TransportChoice) -> Self {
        self.transport = choice;
        self
    }

    /// Opens the channel.
    pub fn open(self) -> Result<Channel, OpenError> {
        let request = OpenRequest {
            name: self.name.parse()?,
            spec: self.spec,
            create: self.create,
            transport: self.transport,
        };
        request.check()?;
        let socket = find(&self.mount)?;
        let handshake = Handshake::begin(&socket, OPEN_LIMIT, None)?;
        match handshake.advance(&request, Some(Instant::now() + OPEN_LIMIT))? {
            Progress::Done(connection) => Ok(Channel::new(self.mount, request, connection)),
            Progress::Waiting(handshake) => Err(handshake.overdue()),
        }
    }
}
