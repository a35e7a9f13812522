//! Opening a channel with options.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use relay::layout::paths::mount_by_environment;
use relay::trace::directives::Directives;
use relay::wire::socket::find;
use relay::{GeometrySpec, Mode};

use crate::channel::Channel;
use crate::error::OpenError;
use crate::levels::Levels;
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
    levels: Directives,
    program: Vec<u8>,
}

impl Builder {
    pub(crate) fn new(mount: &Path, name: &str) -> Builder {
        Builder {
            mount: mount.to_owned(),
            name: name.to_owned(),
            create: false,
            spec: GeometrySpec::default(),
            transport: TransportChoice::Auto,
            levels: Directives::default(),
            program: Vec::new(),
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

    /// Sets whether a new channel is timed: it then has records with time stamps instead of bare messages.
    /// An existing channel stays what it is.
    pub fn timed(mut self, timed: bool) -> Self {
        self.spec.timed = Some(timed);
        self
    }

    /// Sets the transport of messages, now and after every loss of the connection.
    pub fn transport(mut self, choice: TransportChoice) -> Self {
        self.transport = choice;
        self
    }

    /// Sets which messages with a level are written, as long as the channel's file `level` says nothing else about them.
    ///
    /// ```
    /// # fn main() -> Result<(), relay_producer::DirectivesError> {
    /// let builder = relay_producer::Channel::builder("/mnt/relay", "app/log").levels("info,app::db=debug".parse()?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn levels(mut self, levels: Directives) -> Self {
        self.levels = levels;
        self
    }

    /// Sets the name by which the daemon knows this process, of a timed channel: that of the program whose output it writes.
    ///
    /// See [`Channel::output`]. While this process attaches to the channel, its first thread has that name, for 1 s at most.
    /// Any call that connects to the next daemon may wait for that: 0.1 s, or longer if it waits for the daemon in any case.
    /// A daemon that looks later finds the process's own name, also if the call waits on.
    pub fn program(mut self, name: &OsStr) -> Self {
        self.program = name.as_bytes().to_vec();
        self
    }

    /// Returns the levels of the program alone.
    pub(crate) fn own_levels(&self) -> Arc<Levels> {
        Arc::new(Levels::new(self.levels.clone()))
    }

    /// Returns the channel's name as it was given.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Opens the channel.
    pub fn open(self) -> Result<Channel, OpenError> {
        let levels = self.own_levels();
        self.open_with(levels, OPEN_LIMIT)
    }

    /// Opens the channel. `levels` are what [`Self::own_levels`] has returned. A daemon has this time to answer.
    pub(crate) fn open_with(self, levels: Arc<Levels>, limit: Duration) -> Result<Channel, OpenError> {
        let request = OpenRequest {
            name: self.name.parse()?,
            spec: self.spec,
            create: self.create,
            transport: self.transport,
            definitions: Arc::default(),
            levels,
            program: self.program,
        };
        request.check()?;
        let socket = find(&self.mount)?;
        let handshake = Handshake::begin(&socket, limit, None)?;
        match handshake.advance(&request, Some(Instant::now() + limit))? {
            Progress::Done(connection) => Ok(Channel::new(self.mount, request, connection)),
            Progress::Waiting(handshake) => Err(handshake.overdue(limit)),
        }
    }
}

/// A timed channel of this name, created if it does not exist, of the relayfs that `$RELAYFS` names, else of /mnt/relay.
impl From<&str> for Builder {
    fn from(name: &str) -> Builder {
        Builder::new(&mount_by_environment(), name).create(true).timed(true)
    }
}
