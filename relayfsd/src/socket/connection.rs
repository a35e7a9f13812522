//! One connection of the socket protocol (`relay::wire::frame`): greeting, turns, refusals.
//!
//! `requests.rs` has the requests. Everything runs on the socket's thread and never waits. Frames take effect in the
//! order in which they came. What this thread cannot write by itself becomes a job. A job that finds its writer's queue
//! full is held back. The daemon does not read the socket meanwhile, so all later frames wait too, and a producer's
//! backlog stays in its own socket.

use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use log::debug;
use nix::errno::Errno;
use relay::layout::geometry::MESSAGE_MAX;
use relay::wire::frame::{
    Body, FRAME_MAX, Frame, FrameType, Hello, HelloReply, Refusal, VERSION, WRITE_REPLY,
};

use crate::socket::context::ConnectionContext;
use crate::socket::peer::Peer;
use crate::socket::refusal::FrameRefusal;
use crate::socket::requests::Requests;
use crate::socket::requests::timed::Ending;

/// Lowest version of the protocol that the daemon speaks.
const VERSION_MIN: u16 = 1;
/// Most frames of one connection before the other connections get their turn.
const FRAMES_PER_TURN: usize = 16;

/// How a connection's turn ended.
pub(crate) enum Turn {
    /// The connection's socket is empty.
    Idle,
    /// The connection's socket may have more frames.
    More,
    /// The writers have too much of this connection, or of all.
    ///
    /// The next turn comes when they ring.
    Stalled,
    /// The peer has hung up, or broke the protocol.
    Over,
}

enum State {
    AwaitingHello,
    Ready,
}

/// The daemon's side of a connection.
pub(crate) struct Connection {
    peer: Arc<Peer>,
    common: Arc<ConnectionContext>,
    state: State,
    /// Dropped last, with the last reference to the peer unless a writer still replies.
    requests: Requests,
}

impl Connection {
    pub(crate) fn new(common: Arc<ConnectionContext>, peer: Peer) -> Connection {
        let peer = Arc::new(peer);
        let requests = Requests::new(Arc::clone(&common), Arc::clone(&peer));
        Connection { peer, common, state: State::AwaitingHello, requests }
    }

    /// Handles the end of the peer: its messages are still written, but wait for room no longer.
    pub(crate) fn cancel(&self) {
        self.requests.cancel();
    }

    /// Begins the daemon's end: nothing more comes in, what has come is taken, and no message waits for room longer.
    ///
    /// The producer finds the socket closed at its next frame. So no frame can arrive behind the last look.
    pub(crate) fn begin_end(&self) {
        self.peer.close_for_frames();
        self.requests.end_waits();
    }

    /// Returns whether the peer has not sent its HELLO yet.
    pub(crate) fn is_silent(&self) -> bool {
        matches!(self.state, State::AwaitingHello)
    }

    /// Sends the peer a last error, before the connection is dropped.
    pub(crate) fn dismiss(&self, errno: Errno, text: String) {
        debug!("{}: dropped: {text}", self.peer);
        self.peer.send(&Refusal { errno: errno as i32, text }.frame(0, 0));
    }

    /// Handles a ring of the connection's doorbell.
    pub(crate) fn rung(&self) {
        self.requests.rung();
    }

    /// Reports the end of the peer's process, if the kernel tells it now. The connection has no more frames.
    pub(crate) fn report_end_of_process(&mut self) {
        if let Some(end) = self.requests.end_of_process() {
            self.requests.report_end(end);
        }
    }

    /// Takes the peer's process, if the connection is over and the end of the process is near.
    pub(crate) fn take_ending(&mut self) -> Option<Ending> {
        self.requests.take_ending()
    }

    /// Does the jobs that were held back, then takes some frames.
    ///
    /// `packet` is scratch space for a frame.
    pub(crate) fn turn(&mut self, packet: &mut [u8]) -> Turn {
        for _ in 0..FRAMES_PER_TURN {
            if !self.requests.resume() {
                return Turn::Stalled;
            }
            let flow = match self.peer.receive(packet) {
                Err(Errno::EAGAIN) => return Turn::Idle,
                Ok(0) | Err(_) => return Turn::Over,
                Ok(len) => match packet.get(..len) {
                    Some(packet) => self.handle_packet(packet),
                    None => {
                        let text =
                            format!("packet of {len} bytes is longer than a frame may be, {FRAME_MAX}");
                        self.refuse(0, true, FrameRefusal::connection(Errno::EMSGSIZE, text))
                    }
                },
            };
            if flow.is_break() {
                return Turn::Over;
            }
        }
        Turn::More
    }

    /// Handles a packet or refuses it. Breaks if the connection is over.
    fn handle_packet(&mut self, packet: &[u8]) -> ControlFlow<()> {
        let (id, answered, result) = match Frame::decode(packet) {
            Ok(frame) => {
                let answered =
                    frame.kind != FrameType::Write || frame.reply || frame.flags & WRITE_REPLY != 0;
                (frame.id, answered, self.handle(&frame))
            }
            Err((id, error)) => (id, true, Err(error.into())),
        };
        result.map_or_else(|refused| self.refuse(id, answered, refused), ControlFlow::Continue)
    }

    /// Sends the reason of a refusal, if the peer wants an answer or the connection ends.
    fn refuse(&self, id: u32, answered: bool, refused: FrameRefusal) -> ControlFlow<()> {
        let (refusal, flow) = match (refused, &self.state) {
            (FrameRefusal::Request(refusal), State::Ready) => (refusal, ControlFlow::Continue(())),
            (FrameRefusal::Request(refusal) | FrameRefusal::Connection(refusal), _) => {
                (refusal, ControlFlow::Break(()))
            }
        };
        debug!("{}: refused: {}", self.peer, refusal.text);
        if answered || flow.is_break() {
            self.peer.send(&refusal.frame(0, id));
        }
        flow
    }

    fn handle(&mut self, frame: &Frame) -> Result<(), FrameRefusal> {
        match (&self.state, frame.kind) {
            (State::AwaitingHello, FrameType::Hello) if !frame.reply => self.hello(frame),
            (State::AwaitingHello, _) => {
                Err(FrameRefusal::connection(Errno::EPROTO, "the first frame must be a HELLO"))
            }
            (State::Ready, FrameType::Hello) => {
                Err(FrameRefusal::connection(Errno::EPROTO, "a second HELLO"))
            }
            (State::Ready, _) => self.requests.handle(frame),
        }
    }

    fn hello(&mut self, frame: &Frame) -> Result<(), FrameRefusal> {
        let Hello { min_version, max_version, features: _ } = Hello::decode(frame.body)?;
        if min_version > max_version || min_version > VERSION || max_version < VERSION_MIN {
            let text = format!(
                "no common protocol version: the producer speaks {min_version} to {max_version}, \
                 this daemon {VERSION_MIN} to {VERSION}; update the older of the two"
            );
            return Err(FrameRefusal::connection(Errno::EPROTONOSUPPORT, text));
        }
        let reply = HelloReply {
            version: max_version.min(VERSION),
            frame_max: FRAME_MAX as u32,
            message_max: MESSAGE_MAX as u32,
            n_cpus: self.common.registry.n_cpus() as u32,
            features: 0,
        };
        self.state = State::Ready;
        self.peer.send(&reply.frame(0, frame.id));
        Ok(())
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.peer.as_fd()
    }
}

/// Ends the connection. Later replies from the writers' threads are still sent.
impl Drop for Connection {
    fn drop(&mut self) {
        debug!("{}: over", self.peer);
        self.cancel();
        self.requests.abandon();
        self.peer.stop_receiving();
        self.requests.give_up_bell();
    }
}
