//! The frames of a batch: sending them, collecting their answers, and sending again what a daemon hands back.
//!
//! A daemon that ends in order answers every frame. Its answer counts the first messages of the frame, and the others
//! are handed back. The batch keeps the frames in flight for this, if their messages wait for room. It sends the
//! messages that it got back to the next daemon: in their order, once each, and before all later messages.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use relay::wire::frame::{WRITE_HAND_BACK, WRITE_REPLY, WriteReply};
use relay::wire::socket::{Deadline, SendError};

use super::Batch;
use crate::direct::content::Content;
use crate::error::RequestError;
use crate::options::{Counts, Wait};
use crate::socket::connection::Envelope;
use crate::socket::replies::Reply;
use crate::socket::write_frame::{WireMessage, WriteFrame};

/// Most frames in flight.
/// They are few enough that their replies never fill a socket, and enough to keep both sides busy.
pub(super) const WINDOW: usize = 8;

/// A frame, or a long message, without an answer.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) id: u32,
    n_messages: u64,
    /// Its messages, if the daemon may hand them back.
    kept: Option<Kept>,
}

/// Messages that may have to be sent again.
#[derive(Debug)]
enum Kept {
    Frame(WriteFrame),
    /// Head and payload, see [`WireMessage`].
    Long(Option<u64>, Vec<u8>),
}

/// The messages that a daemon has handed back, and the memory of frames that were answered.
#[derive(Debug, Default)]
pub(super) struct HandedBack {
    /// Oldest first.
    queue: VecDeque<Kept>,
    /// How many at the front are older than the frames in flight. The others are newer.
    older: usize,
    /// Whether the connection's daemon has handed messages back. It is ending, and takes no more.
    daemon_ends: bool,
    /// Frames without messages.
    spare: Vec<WriteFrame>,
}

impl HandedBack {
    /// Returns whether nothing is to be sent again.
    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Notes that the batch has another daemon, and no frames in flight.
    pub(super) fn has_new_daemon(&mut self) {
        (self.older, self.daemon_ends) = (0, false);
    }

    /// Keeps a frame's memory for the next one.
    fn recycle(&mut self, mut frame: WriteFrame) {
        if self.spare.len() < WINDOW {
            frame.clear();
            self.spare.push(frame);
        }
    }
}

impl Batch {
    /// Sends the gathered messages.
    pub fn send(&mut self) -> Result<(), RequestError> {
        if self.frame.n_messages() == 0 && self.handed_back.queue.is_empty() {
            return Ok(());
        }
        let sent = self.by_daemon(Batch::send_gathered);
        self.frame.clear();
        sent
    }

    fn send_gathered(&mut self) -> Result<(), RequestError> {
        if self.frame.n_messages() == 0 {
            return Ok(());
        }
        let room = self.connection.room;
        let next = self.handed_back.spare.pop().unwrap_or_else(|| WriteFrame::new(room));
        let frame = std::mem::replace(&mut self.frame, next);
        self.send_frame(frame).map_err(|(frame, error)| {
            let unused = std::mem::replace(&mut self.frame, frame);
            self.handed_back.recycle(unused);
            error
        })
    }

    /// Sends a frame, or returns it with the error.
    fn send_frame(&mut self, mut frame: WriteFrame) -> Result<(), (WriteFrame, RequestError)> {
        match self.transmit(&mut frame) {
            Ok(id) => {
                let n_messages = frame.n_messages();
                let kept = if self.may_get_back() {
                    Some(Kept::Frame(frame))
                } else {
                    self.handed_back.recycle(frame);
                    None
                };
                self.in_flight.push_back(InFlight { id, n_messages, kept });
                Ok(())
            }
            Err(error) => Err((frame, error)),
        }
    }

    fn transmit(&mut self, frame: &mut WriteFrame) -> Result<u32, RequestError> {
        if self.in_flight.len() >= WINDOW {
            self.collect_for_room()?;
        }
        let id = self.connection.expect();
        match self.deliver(frame, id) {
            Ok(()) => Ok(id),
            Err(error) => {
                self.connection.forget(id);
                Err(error)
            }
        }
    }

    fn deliver(&mut self, frame: &mut WriteFrame, id: u32) -> Result<(), RequestError> {
        let envelope = self.envelope(id)?;
        while !self.in_flight.is_empty() {
            match self.connection.send(frame, envelope) {
                // The answer to an earlier frame shows that the daemon has emptied the socket up to that frame.
                Err(SendError::Full) => self.collect_for_room()?,
                sent => return Ok(sent?),
            }
        }
        let (deadline, connection) = (self.deadline(), &self.connection);
        Ok(connection.when_room(deadline, || connection.send(frame, envelope))?)
    }

    /// Sends a message that is longer than a frame.
    pub(super) fn send_long(&mut self, content: Content<'_>) -> Result<(), RequestError> {
        let mut head = None;
        self.by_daemon(|batch| {
            let connection = Arc::clone(&batch.connection);
            // It has been looked at; only a channel of the other kind takes it no more.
            let message = connection.message(content).map_err(|_| RequestError::Disconnected)?;
            head = message.head;
            batch.try_send_long(message)
        })?;
        if self.may_get_back() {
            self.keep_long(head, content.payload().to_vec());
        }
        Ok(())
    }

    /// Keeps the long message that was just sent.
    fn keep_long(&mut self, head: Option<u64>, payload: Vec<u8>) {
        if let Some(sent) = self.in_flight.back_mut() {
            sent.kept = Some(Kept::Long(head, payload));
        }
    }

    /// Sends a long message. If it fails, nothing is in flight.
    fn try_send_long(&mut self, message: WireMessage<'_>) -> Result<(), RequestError> {
        // This thread takes no replies while its frames go out.
        self.collect_all()?;
        self.takes_more()?;
        let deadline = self.deadline();
        let id = self.connection.expect();
        let sent = self.envelope(id).and_then(|envelope| {
            let send = || self.connection.send_long(message, envelope, deadline);
            Ok(self.connection.when_room(deadline, send)?)
        });
        match sent {
            Ok(()) => self.in_flight.push_back(InFlight { id, n_messages: 1, kept: None }),
            Err(_) => self.connection.forget(id),
        }
        sent
    }

    fn envelope(&self, id: u32) -> Result<Envelope, RequestError> {
        let cpu = self.connection.buffer_of(self.options.cpu)?;
        let flags = if self.may_get_back() { WRITE_REPLY | WRITE_HAND_BACK } else { WRITE_REPLY };
        Ok(Envelope { cpu, flags, id, wait_ms: self.options.wait.millis() })
    }

    /// Returns whether a daemon may hand this batch's messages back.
    fn may_get_back(&self) -> bool {
        self.options.wait != Wait::No
    }

    /// Returns an error if the daemon has handed messages back: others must not be written before those.
    fn takes_more(&self) -> Result<(), RequestError> {
        if self.handed_back.daemon_ends { Err(RequestError::Disconnected) } else { Ok(()) }
    }

    /// Sends what a daemon has handed back.
    pub(super) fn send_handed_back(&mut self) -> Result<(), RequestError> {
        self.takes_more()?;
        while let Some(kept) = self.handed_back.queue.pop_front() {
            let sent = match kept {
                Kept::Frame(frame) => {
                    self.send_frame(frame).map_err(|(frame, error)| (Kept::Frame(frame), error))
                }
                Kept::Long(head, payload) => {
                    match self.try_send_long(WireMessage { head, payload: &payload }) {
                        Ok(()) => {
                            self.keep_long(head, payload);
                            Ok(())
                        }
                        Err(error) => Err((Kept::Long(head, payload), error)),
                    }
                }
            };
            if let Err((kept, error)) = sent {
                // Behind older ones that have come back meanwhile.
                self.handed_back.queue.insert(self.handed_back.older, kept);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Waits until daemons have answered for everything that was sent, and sends again what is handed back.
    pub(super) fn settle(&mut self) -> Result<(), RequestError> {
        loop {
            self.collect_all()?;
            if self.handed_back.queue.is_empty() {
                return Ok(());
            }
            self.by_daemon(|_| Ok(()))?;
        }
    }

    /// Waits for the answer to the oldest frame, to send another one.
    fn collect_for_room(&mut self) -> Result<(), RequestError> {
        self.collect(self.deadline())?;
        self.takes_more()
    }

    /// Waits for the answer to the oldest frame.
    fn collect(&mut self, deadline: Deadline) -> Result<(), RequestError> {
        let Some(InFlight { id, n_messages, kept }) = self.in_flight.pop_front() else { return Ok(()) };
        if !self.connection.is_own() {
            // The parent gets the answer, and would wait for one that a child has taken.
            self.unanswered += n_messages;
            return Ok(());
        }
        match self.connection.reply(id, deadline).and_then(Reply::counts) {
            Ok(counts) => {
                self.count(counts);
                match kept {
                    Some(kept) if counts.total() < n_messages => self.take_back(kept, counts.total()),
                    Some(Kept::Frame(frame)) => {
                        self.handed_back.recycle(frame);
                        Ok(())
                    }
                    _ => Ok(()),
                }
            }
            Err(RequestError::Disconnected) if self.survives() => {
                self.unanswered += n_messages;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn count(&mut self, WriteReply { written, dropped, too_big }: WriteReply) {
        // The numbers are the daemon's: wrong ones must not end this process.
        let Counts { written: w, dropped: d, too_big: t } = self.counts;
        self.counts = Counts {
            written: w.saturating_add(written),
            dropped: d.saturating_add(dropped),
            too_big: t.saturating_add(too_big),
        };
    }

    /// Takes the messages behind the first `n_handled` back from a daemon that ends.
    #[cold]
    fn take_back(&mut self, mut kept: Kept, n_handled: u64) -> Result<(), RequestError> {
        // A daemon that only says that it ends must not get the same messages again and again.
        self.connection.set_gone();
        self.handed_back.daemon_ends = true;
        if !self.survives() {
            return Err(RequestError::Disconnected);
        }
        if let Kept::Frame(frame) = &mut kept {
            frame.remove_first(n_handled);
        }
        self.handed_back.queue.insert(self.handed_back.older, kept);
        self.handed_back.older += 1;
        Ok(())
    }

    /// Waits for all answers, and returns the first error.
    pub(super) fn collect_all(&mut self) -> Result<(), RequestError> {
        let mut result = Ok(());
        while !self.in_flight.is_empty() {
            // A daemon that missed one deadline does not get another one.
            let overdue = matches!(result, Err(RequestError::NoReply));
            let deadline = if overdue { Some(Instant::now()) } else { self.deadline() };
            result = result.and(self.collect(deadline));
        }
        result
    }
}
