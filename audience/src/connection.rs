//! A reader's connection to the daemon: one request at a time, each followed by its answer.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use relay::wire::frame::{
    ANSWER_MAX, Body, Frame, FrameError, FrameType, Hello, HelloReply, Open, OpenReply, Refusal, SHARE_READ,
    Share, ShareReply, VERSION,
};
use relay::wire::socket::{ConnectError, Deadline, Refused, Socket, find, refusal};
use relay::{ChannelName, Geometry, GeometrySpec, NameError};
use thiserror::Error;

/// Longest time for an answer. A peer that takes longer is no daemon of ours.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Why a channel cannot be read, or not any more.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The name is no channel name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The reader cannot connect to a daemon.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The daemon refused a request.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The channel has no buffer for this CPU.
    #[error("no buffer for CPU {cpu}: this channel has them for CPUs 0 to {}", n_bufs - 1)]
    NoSuchCpu {
        /// The CPU that the caller named.
        cpu: usize,
        /// Number of the channel's buffers.
        n_bufs: usize,
    },
    /// The received files are not a channel's files.
    #[error("the channel's files cannot be used: {0}")]
    Files(String),
    /// Another reader gave the taken sub-buffers back before, or they were overwritten. Reading continues with unread
    /// data.
    #[error("another reader has read these sub-buffers, or they were overwritten")]
    Stale,
    /// The daemon or the channel has gone.
    #[error("the channel has gone")]
    Gone,
    /// A system call failed.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What failed, as a verb.
        doing: &'static str,
        /// The error.
        source: io::Error,
    },
}

/// Reads the body of an answer.
type Decode<A> = fn(&[u8]) -> Result<A, FrameError>;

/// A connection with one channel open on it.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: Socket,
    path: PathBuf,
    last_id: u32,
    /// The channel's number.
    pub(crate) channel: u32,
    pub(crate) geometry: Geometry,
    pub(crate) n_bufs: usize,
}

impl Connection {
    /// Opens an existing channel of the daemon behind `mount`, a mount point or a socket.
    pub(crate) fn open(mount: &Path, name: &str) -> Result<Connection, ReadError> {
        let name: ChannelName = name.parse()?;
        let path = find(mount)?;
        let socket = Socket::connect(&path, ANSWER_LIMIT)?;
        let geometry =
            GeometrySpec::default().build().map_err(|error| ReadError::Files(error.to_string()))?;
        let mut connection = Connection { socket, path, last_id: 0, channel: 0, geometry, n_bufs: 0 };
        let hello = Hello { min_version: VERSION, max_version: VERSION, features: 0 };
        let hello = connection.ask(&hello, |body| HelloReply::decode(body))?;
        if hello.version != VERSION {
            return Err(connection.not_ours(format!("{hello:?}")));
        }
        let open = Open::new(&name, &GeometrySpec::default());
        let reply = connection.ask(&open, |body| OpenReply::decode(body))?;
        connection.channel = reply.channel;
        (connection.geometry, connection.n_bufs) =
            reply.shape().ok_or_else(|| connection.not_ours(format!("{reply:?}")))?;
        Ok(connection)
    }

    /// Asks for the channel's files; `take` gets the body and the descriptors of each reply.
    pub(crate) fn share(
        &mut self,
        mut take: impl FnMut(ShareReply, Vec<OwnedFd>) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        let id = self.send(&Share { channel: self.channel }, SHARE_READ)?;
        let mut n_arrived = 0;
        while n_arrived < self.n_bufs {
            let (reply, descriptors) = self.receive(id, FrameType::Share, |body| ShareReply::decode(body))?;
            let count = reply.count as usize;
            if reply.first as usize != n_arrived || count == 0 || count > self.n_bufs - n_arrived {
                return Err(self.not_ours(format!("{reply:?} after {n_arrived} files")));
            }
            n_arrived += count;
            take(reply, descriptors)?;
        }
        Ok(())
    }

    /// Sends a request whose answer has no content.
    pub(crate) fn request<'q>(&mut self, question: &impl Body<'q>) -> Result<(), ReadError> {
        self.ask(question, |_| Ok(()))
    }

    /// The socket, which becomes readable when the daemon has gone.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Whether the daemon has gone.
    pub(crate) fn is_over(&self) -> bool {
        self.socket.is_over()
    }

    fn ask<'q, Q: Body<'q>, A>(&mut self, question: &Q, decode: Decode<A>) -> Result<A, ReadError> {
        let id = self.send(question, 0)?;
        self.receive(id, Q::KIND, decode).map(|(answer, _)| answer)
    }

    fn send<'q>(&mut self, question: &impl Body<'q>, flags: u16) -> Result<u32, ReadError> {
        self.last_id = self.last_id.wrapping_add(1);
        // The socket has room: each earlier request was answered.
        self.socket.send(&question.frame(flags, self.last_id)).map_err(|_| ReadError::Gone)?;
        Ok(self.last_id)
    }

    fn receive<A>(
        &self,
        id: u32,
        kind: FrameType,
        decode: Decode<A>,
    ) -> Result<(A, Vec<OwnedFd>), ReadError> {
        let deadline: Deadline = Some(Instant::now() + ANSWER_LIMIT);
        let mut packet = [0; ANSWER_MAX];
        let (len, descriptors) = loop {
            match self.socket.receive_with_descriptors(&mut packet) {
                Some(received) => break received,
                None if self.socket.wait(PollFlags::POLLIN, deadline) => {}
                None => return Err(self.not_ours("no answer".into())),
            }
        };
        if len == 0 {
            return Err(ReadError::Gone);
        }
        let packet = packet.get(..len).ok_or_else(|| self.not_ours(format!("an answer of {len} bytes")))?;
        let frame = Frame::decode(packet).map_err(|(_, error)| self.not_ours(error.to_string()))?;
        if frame.kind == Refusal::KIND {
            return Err(refusal(frame.body).map_err(|why| self.not_ours(why))?.into());
        }
        if (frame.kind, frame.reply, frame.id) != (kind, true, id) {
            return Err(self.not_ours(format!("an unexpected {:?} frame", frame.kind)));
        }
        let body = decode(frame.body).map_err(|error| self.not_ours(error.to_string()))?;
        Ok((body, descriptors))
    }

    fn not_ours(&self, why: String) -> ReadError {
        ConnectError::NotOurs { socket: self.path.display().to_string(), why }.into()
    }
}
