//! One connection of the socket protocol (`relay::wire::frame`): greeting, order and turns, and who is told what is wrong.
//! What the requests do is in `requests.rs`.
//!
//! Everything runs on the socket thread and never waits. Frames take effect in the order in which they came: a job
//! that finds its writer's queue full is held back, and with it everything behind it, since the socket is not read
//! meanwhile; so a producer's backlog stays in its own socket.

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
use crate::socket::refusal::Refused;
use crate::socket::requests::Requests;

/// Lowest version of the protocol that is spoken here.
const VERSION_MIN: u16 = 1;
/// Frames that one connection may bring before it is the others' turn.
const FRAMES_PER_TURN: usize = 16;

/// How a connection's turn ended.
pub(crate) enum Turn {
    /// Its socket is empty.
    Idle,
    /// Its socket may have more.
    More,
    /// The writers have enough of it, or of all: it gets its next turn when they ring.
    Stalled,
    /// The peer has hung up, or is not worth talking to.
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
    requests: Requests,
}

impl Connection {
    pub(crate) fn new(common: Arc<ConnectionContext>, peer: Peer) -> Connection {
        let peer = Arc::new(peer);
        let requests = Requests::new(Arc::clone(&common), Arc::clone(&peer));
        Connection { peer, common, state: State::AwaitingHello, requests }
    }

    /// The peer has gone: what it sent is still written, but waits for room no longer.
    pub(crate) fn cancel(&self) {
        self.requests.cancel();
    }

    /// Whether it has yet to say hello.
    pub(crate) fn is_silent(&self) -> bool {
        matches!(self.state, State::AwaitingHello)
    }

    /// The last thing that the peer is told.
    pub(crate) fn dismiss(&self, errno: Errno, text: String) {
        debug!("{}: dropped: {text}", self.peer);
        self.peer.send(&Refusal { errno: errno as i32, text }.frame(0, 0));
    }

    /// Its bell was rung.
    pub(crate) fn rung(&self) {
        self.requests.rung();
    }

    /// Does what was held back, then takes some frames. `packet` is scratch space for one of them.
    pub(crate) fn turn(&mut self, packet: &mut [u8]) -> Turn {
        for _ in 0..FRAMES_PER_TURN {
            if !self.requests.go_on() {
                return Turn::Stalled;
            }
            let flow = match self.peer.receive(packet) {
                Err(Errno::EAGAIN) => return Turn::Idle,
                Ok(0) | Err(_) => return Turn::Over,
                Ok(len) => match packet.get(..len) {
                    Some(packet) => self.take(packet),
                    None => {
                        let text =
                            format!("packet of {len} bytes is longer than a frame may be, {FRAME_MAX}");
                        self.refuse(0, true, Refused::connection(Errno::EMSGSIZE, text))
                    }
                },
            };
            if flow.is_break() {
                return Turn::Over;
            }
        }
        Turn::More
    }

    /// Obeys a packet or refuses it; breaks if the connection is over.
    fn take(&mut self, packet: &[u8]) -> ControlFlow<()> {
        let (id, answered, result) = match Frame::decode(packet) {
            Ok(frame) => {
                let answered =
                    frame.kind != FrameType::Write || frame.reply || frame.flags & WRITE_REPLY != 0;
                (frame.id, answered, self.obey(&frame))
            }
            Err((id, error)) => (id, true, Err(error.into())),
        };
        result.map_or_else(|refused| self.refuse(id, answered, refused), ControlFlow::Continue)
    }

    /// Says what is wrong with a frame, if the peer wants an answer to it or gets no other one any more.
    fn refuse(&self, id: u32, answered: bool, refused: Refused) -> ControlFlow<()> {
        let (refusal, flow) = match (refused, &self.state) {
            (Refused::Request(refusal), State::Ready) => (refusal, ControlFlow::Continue(())),
            (Refused::Request(refusal) | Refused::Connection(refusal), _) => {
                (refusal, ControlFlow::Break(()))
            }
        };
        debug!("{}: refused: {}", self.peer, refusal.text);
        if answered || flow.is_break() {
            self.peer.send(&refusal.frame(0, id));
        }
        flow
    }

    fn obey(&mut self, frame: &Frame) -> Result<(), Refused> {
        match (&self.state, frame.kind) {
            (State::AwaitingHello, FrameType::Hello) if !frame.reply => self.hello(frame),
            (State::AwaitingHello, _) => {
                Err(Refused::connection(Errno::EPROTO, "the first frame must be a HELLO"))
            }
            (State::Ready, FrameType::Hello) => Err(Refused::connection(Errno::EPROTO, "a second HELLO")),
            (State::Ready, _) => self.requests.obey(frame),
        }
    }

    fn hello(&mut self, frame: &Frame) -> Result<(), Refused> {
        let Hello { min_version, max_version, features: _ } = Hello::decode(frame.body)?;
        if min_version > max_version || min_version > VERSION || max_version < VERSION_MIN {
            let text = format!(
                "no common protocol version: the producer speaks {min_version} to {max_version}, \
                 this daemon {VERSION_MIN} to {VERSION}; update the older of the two"
            );
            return Err(Refused::connection(Errno::EPROTONOSUPPORT, text));
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

/// Whatever ended it. Replies that are still to come from the writers' threads are sent nevertheless.
impl Drop for Connection {
    fn drop(&mut self) {
        debug!("{}: over", self.peer);
        self.cancel();
        self.requests.abandon();
        self.peer.stop_receiving();
        self.requests.give_up_bell();
    }
}
