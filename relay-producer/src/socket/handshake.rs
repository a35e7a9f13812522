//! The handshake from a path to an open channel: connect, `HELLO`, `OPEN`, `SHARE`.
//! On a timed channel `ATTACH` and `LEVELS` come before `SHARE`, and a `DEFINE` for each event that the program has
//! defined.
//!
//! It can be interrupted and continued at any point, so that a producer that must not wait still gets a new connection.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::PollFlags;
use relay::layout::geometry::TIMED_SUBBUF_SIZE_MIN;
use relay::layout::levels::LEVELS_VERSION;
use relay::wire::frame::{
    ANSWER_MAX, Attach, AttachReply, Body, DefineReply, Frame, Hello, HelloReply, Levels as AskLevels,
    LevelsReply, OPEN_CREATE, OPEN_WRITE, Open, OpenReply, Refusal, Share, ShareReply, VERSION,
};
use relay::wire::socket::{ConnectError, Deadline, Socket, refusal};
use relay::{ChannelName, Geometry, GeometryError, GeometrySpec};

use crate::definitions::{Defined, Definitions};
use crate::direct::buffers::DirectBuffers;
use crate::error::OpenError;
use crate::levels::Levels;
use crate::socket::connection::Connection;
use crate::socket::receive_files::{FileReceiver, wanted};
use crate::socket::renamed::Renamed;
use crate::socket::replies::id_of;
use crate::transport::TransportChoice;

/// Time for a daemon to open a channel. A slower peer is not a relayfs daemon.
pub(crate) const OPEN_LIMIT: Duration = Duration::from_secs(5);
/// Time for a daemon to look at the name of the program whose output this process writes. A daemon that looks later finds
/// this process's own name.
const RENAMED_MAX: Duration = Duration::from_secs(1);
/// That time in calls that may not wait so long.
const RENAMED_LEAST: Duration = Duration::from_millis(100);
/// Smallest valid frame limit of a daemon, in bytes.
const FRAME_MAX_LEAST: usize = 512;

const HELLO_ID: u32 = 1;
const OPEN_ID: u32 = 2;
/// Of `ATTACH`, `LEVELS`, each `DEFINE`, and `SHARE`: each of them is sent after the answer to the one before.
const LATER_ID: u32 = 3;
/// The errno of a daemon whose release does not know a request.
const NOT_SUPPORTED: i32 = Errno::EOPNOTSUPP as i32;
/// First id after the handshake.
pub(crate) const FIRST_FREE_ID: u32 = 4;

/// Parameters of opening a channel, also after a loss of the connection.
#[derive(Clone, Debug)]
pub(crate) struct OpenRequest {
    pub(crate) name: ChannelName,
    pub(crate) spec: GeometrySpec,
    pub(crate) create: bool,
    pub(crate) transport: TransportChoice,
    /// The events that every connection must know.
    pub(crate) definitions: Arc<Definitions>,
    /// Which messages are written.
    pub(crate) levels: Arc<Levels>,
    /// The name by which the daemon knows this process; empty: its own.
    pub(crate) program: Vec<u8>,
}

impl OpenRequest {
    /// Refuses a geometry that no daemon can accept.
    /// The daemon checks what depends on its defaults.
    pub(crate) fn check(&self) -> Result<(), GeometryError> {
        let mut least = self.spec;
        least.n_subbufs.get_or_insert(1);
        let smallest = if self.spec.timed == Some(true) { TIMED_SUBBUF_SIZE_MIN } else { 1 };
        let smallest = self.spec.header.map_or(smallest, |header| smallest.max(header.saturating_add(1)));
        least.subbuf_size.get_or_insert(smallest);
        least.build().map(drop)
    }

    fn frame(&self) -> Vec<u8> {
        let open = Open::new(&self.name, &self.spec);
        open.frame(OPEN_WRITE | if self.create { OPEN_CREATE } else { 0 }, OPEN_ID)
    }
}

/// A connection whose channel is not open yet.
#[derive(Debug)]
pub(crate) struct Handshake {
    socket: Arc<Socket>,
    path: PathBuf,
    stage: Stage,
    /// Buffers that this process has mapped, and may get again.
    mapped: Option<Arc<DirectBuffers>>,
    begun: Instant,
}

/// The request that the next answer belongs to.
#[derive(Debug)]
enum Stage {
    Hello,
    Open(HelloReply),
    Attach(Opened, Renamed),
    Levels(Opened),
    /// The events that are still to be defined; the last one has been sent.
    Define(Opened, Vec<Arc<Defined>>),
    Share(Opened, Box<FileReceiver>),
}

/// The daemon's answers about itself and the channel.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) hello: HelloReply,
    pub(crate) reply: OpenReply,
    pub(crate) geometry: Geometry,
    n_bufs: usize,
    /// This process's number on a timed channel; 0 if the daemon gave none.
    pub(crate) process: u32,
    /// Number of this process in the daemon's PID namespace; 0 if the daemon gave none.
    pub(crate) pid: u32,
    /// Ids of the program's events. Those that the daemon has refused have none.
    pub(crate) ids: Vec<(Arc<Defined>, u16)>,
    /// The file of a timed channel's levels.
    levels: Option<File>,
}

/// State of a handshake after the time it was given.
pub(crate) enum Progress {
    Done(Connection),
    Waiting(Handshake),
}

impl Handshake {
    /// Connects and sends `HELLO`, and waits at most `wait` for a listener whose queue is full.
    /// `mapped` are the buffers of the channel's earlier connection.
    pub(crate) fn begin(
        path: &Path,
        wait: Duration,
        mapped: Option<Arc<DirectBuffers>>,
    ) -> Result<Handshake, OpenError> {
        let socket = Arc::new(Socket::connect(path, wait)?);
        let (stage, begun) = (Stage::Hello, Instant::now());
        let handshake = Handshake { socket, path: path.into(), stage, mapped, begun };
        handshake.send(&Hello { min_version: VERSION, max_version: VERSION, features: 0 }.frame(0, HELLO_ID));
        Ok(handshake)
    }

    /// Returns whether the daemon has used up its time.
    pub(crate) fn is_overdue(&self) -> bool {
        self.begun.elapsed() > OPEN_LIMIT
    }

    /// Returns the error for a daemon that has used up its time.
    pub(crate) fn overdue(&self, limit: Duration) -> OpenError {
        ConnectError::Silent { socket: self.socket_shown(), seconds: limit.as_secs() }.into()
    }

    /// Continues until the channel is open or the deadline has passed.
    pub(crate) fn advance(
        mut self,
        request: &OpenRequest,
        deadline: Deadline,
    ) -> Result<Progress, OpenError> {
        let mut packet = [0; ANSWER_MAX];
        loop {
            let Some((len, descriptors)) = self.socket.receive_with_descriptors(&mut packet) else {
                if self.has_answer_by(deadline) {
                    continue;
                }
                return Ok(Progress::Waiting(self));
            };
            if len == 0 {
                return Err(ConnectError::HungUp { socket: self.socket_shown() }.into());
            }
            let packet =
                packet.get(..len).ok_or_else(|| self.not_ours(format!("an answer of {len} bytes")))?;
            self = match self.answered(packet, descriptors, request)? {
                Progress::Waiting(handshake) => handshake,
                done => return Ok(done),
            };
        }
    }

    /// Waits for the next answer until the deadline, and returns whether it has come.
    ///
    /// While the daemon looks at this process's name, it is that of another program: for [`RENAMED_MAX`] at most, and
    /// for [`RENAMED_LEAST`] also past the deadline.
    fn has_answer_by(&mut self, deadline: Deadline) -> bool {
        if let Stage::Attach(_, renamed) = &mut self.stage
            && let Some(since) = renamed.since()
        {
            let (least, most) = (since + RENAMED_LEAST, since + RENAMED_MAX);
            let until = deadline.map_or(most, |deadline| deadline.clamp(least, most));
            if self.socket.wait(PollFlags::POLLIN, Some(until)) {
                return true;
            }
            // This call may wait for long, and no other one may come for long.
            renamed.end();
        }
        self.socket.wait(PollFlags::POLLIN, deadline)
    }

    /// Takes an answer, and sends the next request if there is one.
    fn answered(
        mut self,
        packet: &[u8],
        descriptors: Vec<OwnedFd>,
        request: &OpenRequest,
    ) -> Result<Progress, OpenError> {
        // The placeholder does not matter: the answer decides the next stage.
        self.stage = match std::mem::replace(&mut self.stage, Stage::Hello) {
            Stage::Hello => {
                let hello = self.answer::<HelloReply>(packet, HELLO_ID)?;
                if hello.version != VERSION || (hello.frame_max as usize) < FRAME_MAX_LEAST {
                    return Err(self.not_ours(format!("{hello:?}")));
                }
                self.send(&request.frame());
                Stage::Open(hello)
            }
            Stage::Open(hello) => {
                let reply = self.answer::<OpenReply>(packet, OPEN_ID)?;
                let (geometry, n_bufs) = reply.shape().ok_or_else(|| self.not_ours(format!("{reply:?}")))?;
                let (process, pid, ids, levels) = (0, 0, Vec::new(), None);
                let opened = Opened { hello, reply, geometry, n_bufs, process, pid, ids, levels };
                if !geometry.timed() {
                    return self.ask_for_files(opened, request);
                }
                let renamed = Renamed::to(&request.program);
                // Root's daemon may not look.
                let executable = fs::read_link("/proc/self/exe").unwrap_or_default();
                let executable = executable.as_os_str().as_bytes();
                self.send(&Attach { channel: reply.channel, executable }.frame(0, LATER_ID));
                Stage::Attach(opened, renamed)
            }
            Stage::Attach(mut opened, renamed) => {
                let answer = self.answer::<AttachReply>(packet, LATER_ID);
                drop(renamed);
                match answer {
                    Ok(reply) => (opened.process, opened.pid) = (reply.process, reply.pid),
                    // Records then have their threads alone.
                    Err(OpenError::Refused(_)) => {}
                    Err(error) => return Err(error),
                }
                self.send(&AskLevels { channel: opened.reply.channel }.frame(0, LATER_ID));
                Stage::Levels(opened)
            }
            Stage::Levels(mut opened) => {
                match self.answer::<LevelsReply>(packet, LATER_ID) {
                    Ok(LevelsReply { layout_version: LEVELS_VERSION }) => {
                        opened.levels = descriptors.into_iter().next().map(File::from);
                    }
                    // A file of a later layout, or a daemon of an earlier release: only the program's levels count.
                    Ok(_) | Err(OpenError::Refused(_)) => {}
                    Err(error) => return Err(error),
                }
                return self.define_next(opened, request.definitions.all(), request);
            }
            Stage::Define(mut opened, mut left) => {
                match self.answer::<DefineReply>(packet, LATER_ID) {
                    Ok(reply) => {
                        let id = id_of(reply).ok_or_else(|| self.not_ours(format!("{reply:?}")))?;
                        opened.ids.extend(left.pop().map(|defined| (defined, id)));
                    }
                    // A write of this event then fails.
                    Err(OpenError::Refused(_)) => drop(left.pop()),
                    Err(error) => return Err(error),
                }
                return self.define_next(opened, left, request);
            }
            Stage::Share(opened, mut files) => {
                match self.answer::<ShareReply>(packet, LATER_ID) {
                    Ok(reply) => files.receive(reply, descriptors).map_err(|why| self.not_ours(why))?,
                    Err(OpenError::Refused(refused)) => {
                        let why = match refused.errno {
                            NOT_SUPPORTED => format!("the daemon does not share buffers: {}", refused.text),
                            _ => refused.text,
                        };
                        return self.done(opened, Err(why), request);
                    }
                    Err(error) => return Err(error),
                }
                if files.is_complete() {
                    let shared = files.finish(&self.socket, opened.process, opened.pid);
                    return self.done(opened, shared, request);
                }
                Stage::Share(opened, files)
            }
        };
        Ok(Progress::Waiting(self))
    }

    /// Sends the last of the definitions that are left, or asks for the files if none is left.
    fn define_next(
        mut self,
        opened: Opened,
        left: Vec<Arc<Defined>>,
        request: &OpenRequest,
    ) -> Result<Progress, OpenError> {
        let Some(defined) = left.last() else { return self.ask_for_files(opened, request) };
        self.send(&defined.request(opened.reply.channel).frame(0, LATER_ID));
        self.stage = Stage::Define(opened, left);
        Ok(Progress::Waiting(self))
    }

    /// Asks for the channel's buffers, if this process can use them.
    fn ask_for_files(mut self, opened: Opened, request: &OpenRequest) -> Result<Progress, OpenError> {
        if let Err(why) = wanted(request.transport, &opened.geometry) {
            return self.done(opened, Err(why), request);
        }
        self.send(&Share { channel: opened.reply.channel }.frame(0, LATER_ID));
        let files = FileReceiver::new(opened.geometry, opened.n_bufs, self.mapped.take());
        self.stage = Stage::Share(opened, Box::new(files));
        Ok(Progress::Waiting(self))
    }

    /// Completes the handshake: the channel is open.
    fn done(
        self,
        opened: Opened,
        shared: Result<Arc<DirectBuffers>, String>,
        request: &OpenRequest,
    ) -> Result<Progress, OpenError> {
        match shared {
            Err(why) if request.transport == TransportChoice::Shared => Err(OpenError::NotShared { why }),
            shared => {
                request.levels.attach(opened.levels.as_ref());
                Ok(Progress::Done(Connection::new(self.socket, self.path, &opened, shared)))
            }
        }
    }

    fn send(&self, packet: &[u8]) {
        // The socket is empty, so it has room, unless it has ended. The daemon may have sent its reason before that.
        let _ = self.socket.send(packet);
    }

    /// Returns the body of an expected answer.
    fn answer<'a, B: Body<'a>>(&self, packet: &'a [u8], id: u32) -> Result<B, OpenError> {
        let frame = Frame::decode(packet).map_err(|(_, error)| self.not_ours(error.to_string()))?;
        if frame.kind == Refusal::KIND {
            return Err(refusal(frame.body).map_err(|error| self.not_ours(error))?.into());
        }
        if (frame.kind, frame.reply, frame.id) != (B::KIND, true, id) {
            return Err(self.not_ours(format!("an unexpected {:?} frame", frame.kind)));
        }
        B::decode(frame.body).map_err(|error| self.not_ours(error.to_string()))
    }

    fn not_ours(&self, why: String) -> OpenError {
        ConnectError::NotOurs { socket: self.socket_shown(), why }.into()
    }

    fn socket_shown(&self) -> String {
        self.path.display().to_string()
    }
}

#[cfg(test)]
mod tests {
    use relay::trace::directives::Directives;

    use super::*;

    fn check(spec: &str) -> Result<(), GeometryError> {
        OpenRequest {
            name: "cpu".parse().unwrap(),
            spec: spec.parse().unwrap(),
            create: true,
            transport: TransportChoice::Auto,
            definitions: Arc::default(),
            levels: Arc::new(Levels::new(Directives::default())),
            program: Vec::new(),
        }
        .check()
    }

    #[test]
    fn geometry_that_no_daemon_can_accept_is_refused() {
        for good in
            ["", "subbuf-size=64M", "n-subbufs=65536", "header=300K", "subbuf-size=1:n-subbufs=1", "timed"]
        {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in [
            "subbuf-size=0",
            "n-subbufs=0",
            "subbuf-size=4G",
            "header=64M",
            "subbuf-size=16:header=16",
            "timed:header=8",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}
