//! How a channel is opened.

use std::path::{Path, PathBuf};
use std::time::Instant;

use relay::wire::socket::find;
use relay::{GeometrySpec, Mode};

use crate::channel::Channel;
use crate::error::OpenError;
use crate::socket::handshake::{Handshake, OPEN_LIMIT, OpenRequest, Progress};
use crate::transport::TransportChoice;

/// How a channel is to be opened; made by [`Channel::builder`].
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

    /// Whether to create the channel if there is none of that name. One that exists keeps its geometry.
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// The geometry of a channel that is created; what it leaves out is left to the daemon.
    pub fn geometry(mut self, spec: GeometrySpec) -> Self {
        self.spec = spec.or(&self.spec);
        self
    }

    /// What a channel that is created does when its buffers are full.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.spec.mode = Some(mode);
        self
    }

    /// Whether a channel that is created has one buffer for all CPUs.
    pub fn global(mut self, global: bool) -> Self {
        self.spec.global = Some(global);
        self
    }

    /// How messages are to get into the buffers, now and after every loss of the connection.
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
        match handshake.go_on(&request, Some(Instant::now() + OPEN_LIMIT))? {
            Progress::Done(connection) => Ok(Channel::new(self.mount, request, connection)),
            Progress::Waiting(handshake) => Err(handshake.overdue()),
        }
    }
}
