//! Batches: many messages, and the results for each.
//! Messages are written directly if possible, else sent in frames, with several frames in flight at once.
//!
//! A batch writes directly only while none of its messages is on its way through the socket, so its messages keep their
//! order. A message that waits for room stays in this process. The daemon gets an empty message instead, and answers it
//! when there is room. A producer that waits for its reader therefore pays for one answer each time the buffer is full.
//! It loses no message if the daemon dies meanwhile.
//!
//! With shared buffers the batch outlives the connection. A message that needs a daemon waits for the next one, as long
//! as it would wait for an answer. A daemon that ends in order hands back the messages that still wait for room there,
//! and the batch sends them to the next daemon, before all others. Messages of frames without an answer may be written
//! or lost; `finish` returns their number.

mod awaiting;
mod frames;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use relay::trace::event::{Event as Builtin, id};
use relay::trace::level::Level;
use relay::wire::frame::{MESSAGE_PREFIX_LEN, WAIT_FOREVER, WRITE_HAND_BACK, WRITE_REPLY};
use relay::wire::socket::{Deadline, SendError};

pub use self::awaiting::DaemonEvent;
use self::awaiting::Outlives;
use self::frames::{HandedBack, InFlight, WINDOW};
use crate::direct::buffers::Direct;
use crate::direct::content::Content;
use crate::error::RequestError;
use crate::options::{BatchOptions, Counts, Wait};
use crate::socket::connection::{Connection, Envelope, Unsendable};
use crate::socket::reconnect::Link;
use crate::socket::replies::Reply;
use crate::socket::write_frame::{WireMessage, WriteFrame};

/// A stream of messages with a result for each.
///
/// [`push`](Self::push) writes into shared buffers, or gathers messages and sends full frames. [`send`](Self::send)
/// sends the rest at once. [`finish`](Self::finish) waits until the daemon has answered for everything. All three may
/// wait: for answers to earlier frames, and for room in the buffer if the options say so.
///
/// With shared buffers they continue when the daemon crashes. A message that needs the daemon waits for the next one,
/// without limit, or 10 s longer than for room. After an error the batch takes no more messages; `finish` then collects
/// the remaining answers. A batch that is dropped without `finish` is still written as far as it was sent, but its
/// results are lost.
///
/// After fork, a batch belongs to one of the two processes, since both have the messages that are gathered and not sent.
/// A child gets no answers for what its parent sent: `finish` says how many messages these are.
#[derive(Debug)]
pub struct Batch {
    link: Arc<Link>,
    connection: Arc<Connection>,
    options: BatchOptions,
    frame: WriteFrame,
    /// The frames without an answer, oldest first.
    in_flight: VecDeque<InFlight>,
    /// Messages that a daemon has handed back. No later message is written before them.
    handed_back: HandedBack,
    /// Whether messages are written directly. Then none is gathered, and no frame is in flight.
    direct: bool,
    counts: Counts,
    /// Messages sent to a daemon that did not answer.
    unanswered: u64,
    /// Callback about the daemon's absence, if the batch waits for the next daemon without limit.
    outlives: Option<Outlives>,
    /// Bytes of further messages that are dropped without a wait, after one waited too long.
    /// The second number is `counts.written` at that time.
    given_up: (usize, u64),
}

impl Batch {
    /// Begins a batch. `connection` need not work if it has buffers.
    pub(crate) fn new(
        link: Arc<Link>,
        connection: Arc<Connection>,
        options: BatchOptions,
    ) -> Result<Batch, RequestError> {
        connection.buffer_of(options.cpu)?;
        let frame = WriteFrame::new(connection.room);
        Ok(Batch {
            link,
            connection,
            options,
            frame,
            in_flight: VecDeque::with_capacity(WINDOW),
            handed_back: HandedBack::default(),
            direct: false,
            counts: Counts::default(),
            unanswered: 0,
            outlives: None,
            given_up: (0, 0),
        })
    }

    /// Adds a message. A message that is too big is only counted.
    /// In a timed channel it is a `raw` record.
    #[inline]
    pub fn push(&mut self, message: &[u8]) -> Result<(), RequestError> {
        if !self.direct {
            return self.gather(Content::Bytes(message));
        }
        let direct = match &self.connection.sharing {
            Ok(shared) => shared.write_bytes(self.options.cpu, message, self.options.wait == Wait::No),
            Err(_) => Direct::WrongCpu,
        };
        if direct != Direct::Written {
            return self.written_otherwise(direct, Content::Bytes(message));
        }
        self.counts.written += 1;
        Ok(())
    }

    /// Adds a text to a timed channel, as a `text` record. Other bytes than UTF-8 are written as they are.
    #[inline]
    pub fn push_text(&mut self, text: &[u8]) -> Result<(), RequestError> {
        self.push_content(Content::record(id::TEXT, text))
    }

    /// Adds a message with level and target to a timed channel, as a `log` record.
    /// The target has at most 255 bytes. Other bytes than UTF-8 are written as they are.
    pub fn push_log(&mut self, level: Level, target: &str, text: &[u8]) -> Result<(), RequestError> {
        let log = Builtin::Log { level: Some(level), target: target.as_bytes(), text };
        let mut payload = Vec::new();
        if log.encode_into(&mut payload).is_err() {
            self.count_too_big();
            return Ok(());
        }
        self.push_content(Content::record(id::LOG, &payload))
    }

    fn push_content(&mut self, content: Content<'_>) -> Result<(), RequestError> {
        if !self.direct {
            return self.gather(content);
        }
        match self.write(content) {
            Direct::Written => {
                self.counts.written += 1;
                Ok(())
            }
            direct => self.written_otherwise(direct, content),
        }
    }

    fn write(&self, content: Content<'_>) -> Direct {
        self.write_if_room(content, self.options.wait == Wait::No)
    }

    fn write_if_room(&self, content: Content<'_>, drop_if_full: bool) -> Direct {
        match &self.connection.sharing {
            Ok(shared) => shared.write(self.options.cpu, content, drop_if_full),
            Err(_) => Direct::WrongCpu,
        }
    }

    /// Handles a direct write that did not simply succeed.
    #[inline(never)]
    fn written_otherwise(&mut self, mut direct: Direct, content: Content<'_>) -> Result<(), RequestError> {
        if direct == Direct::Full && self.options.wait != Wait::No {
            direct = self.write_when_room(content)?;
        }
        if direct == Direct::NeedsSocket && !self.works() {
            direct = self.insist(content)?;
        }
        match direct {
            Direct::Written => self.counts.written += 1,
            Direct::WrittenUnheard => {
                self.counts.written += 1;
                self.reattach();
            }
            Direct::TooBig => self.counts.too_big += 1,
            Direct::Full => self.counts.dropped += 1,
            Direct::OtherKind => return Err(RequestError::NotTimed),
            // It has been counted as dropped.
            Direct::NotDefined => self.counts.dropped += 1,
            Direct::WrongCpu | Direct::NeedsSocket => {
                self.direct = false;
                return self.add_to_frame(content);
            }
            Direct::Closed | Direct::Detached if self.outlives() && !self.works() => {
                self.direct = false;
                self.find_daemon(None)?;
                return self.push_content(content);
            }
            Direct::Closed | Direct::Detached => return Err(RequestError::Disconnected),
        }
        Ok(())
    }

    /// Waits for room, and writes a message.
    /// [`Direct::Full`]: the wait was too long, and the message is counted.
    #[cold]
    fn write_when_room(&mut self, content: Content<'_>) -> Result<Direct, RequestError> {
        let (len, written) = (MESSAGE_PREFIX_LEN + content.len(), self.counts.written);
        if self.given_up.1 == written && self.given_up.0 >= len {
            // One timed-out wait serves as many messages as a frame would hold.
            self.given_up.0 -= len;
            return Ok(self.write_or_drop(content));
        }
        let until = self.options.wait.until();
        let mut direct = Direct::Full;
        while direct == Direct::Full {
            let overdue = until.is_some_and(|at| at <= Instant::now());
            if !overdue && self.await_room(until)? {
                direct = self.write(content);
                continue;
            }
            self.given_up = (self.connection.room, written);
            // The daemon has counted a message that it reports as dropped.
            return Ok(if overdue { self.write_or_drop(content) } else { direct });
        }
        Ok(direct)
    }

    /// Writes a message that must not wait any longer.
    fn write_or_drop(&self, content: Content<'_>) -> Direct {
        match (self.write_if_room(content, true), self.connection.shared()) {
            (Direct::NeedsSocket, Some(shared)) if !self.works() => {
                shared.insist(self.options.cpu, content, true)
            }
            (direct, _) => direct,
        }
    }

    /// Waits until there may be room.
    /// False: there was none in time, and one message is counted as dropped.
    fn await_room(&mut self, until: Deadline) -> Result<bool, RequestError> {
        if !self.works() {
            match self.find_daemon(until) {
                Ok(()) => {}
                // The caller finds that the time is up.
                Err(_) if until.is_some_and(|at| at <= Instant::now()) && self.survives() => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        let cpu = self.connection.buffer_of(self.options.cpu)?;
        let left = until.map(|at| at.saturating_duration_since(Instant::now()));
        let wait_ms = left.map_or(WAIT_FOREVER, |left| Wait::AtMost(left).millis());
        let id = self.connection.expect();
        let mut nothing = WriteFrame::new(MESSAGE_PREFIX_LEN);
        nothing.push(WireMessage::NOTHING);
        let envelope = Envelope { cpu, flags: WRITE_REPLY | WRITE_HAND_BACK, id, wait_ms };
        let deadline = self.deadline();
        let connection = &self.connection;
        if let Err(error) = connection.when_room(deadline, || connection.send(&mut nothing, envelope)) {
            connection.forget(id);
            // The connection has ended: try again.
            return if error == SendError::Gone && self.survives() { Ok(true) } else { Err(error.into()) };
        }
        match connection.reply(id, deadline).and_then(Reply::counts) {
            // A daemon that hands the empty message back is ending. The next try waits for the next daemon.
            Ok(counts) if counts.total() == 0 => {
                self.connection.set_gone();
                Ok(true)
            }
            // A wait without limit ends when there is room, or with the channel, which the next try finds.
            Ok(counts) => Ok(counts.dropped == 0 || until.is_none()),
            Err(RequestError::Disconnected) if self.survives() => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Writes a message directly that should go over the socket.
    /// [`Direct::NeedsSocket`]: this failed.
    #[cold]
    fn insist(&mut self, content: Content<'_>) -> Result<Direct, RequestError> {
        let Some(shared) = self.connection.shared() else { return Ok(Direct::Detached) };
        let direct = shared.insist(self.options.cpu, content, self.options.wait == Wait::No);
        if direct == Direct::Full && self.options.wait != Wait::No {
            self.write_when_room(content)
        } else {
            Ok(direct)
        }
    }

    fn deadline(&self) -> Deadline {
        self.options.wait.deadline()
    }

    /// Adds a message to the frame, unless messages can be written directly again.
    #[inline]
    fn gather(&mut self, content: Content<'_>) -> Result<(), RequestError> {
        if self.frame.n_messages() > 0
            && let Ok(message) = self.connection.message(content)
            && self.frame.len() + MESSAGE_PREFIX_LEN + message.len() <= self.connection.room
        {
            self.frame.push(message);
            return Ok(());
        }
        self.gather_slowly(content)
    }

    #[cold]
    fn gather_slowly(&mut self, content: Content<'_>) -> Result<(), RequestError> {
        if self.frame.n_messages() > 0 {
            self.send()?;
        }
        if self.becomes_direct()? {
            let direct = self.write(content);
            return self.written_otherwise(direct, content);
        }
        self.add_to_frame(content)
    }

    /// Returns to direct writing if this thread can, after waiting for all frames in flight.
    fn becomes_direct(&mut self) -> Result<bool, RequestError> {
        let here = self.connection.shared().map(|shared| shared.is_here(self.options.cpu));
        match here {
            None if self.connection.is_gone() && self.outlives() => {
                self.find_daemon(None)?;
                return self.becomes_direct();
            }
            None if self.connection.is_gone() => return Err(RequestError::Disconnected),
            None | Some(false) => return Ok(false),
            Some(true) => {}
        }
        self.settle()?;
        self.direct = true;
        Ok(true)
    }

    /// Adds a message to the frame, which is sent first if it has no room.
    fn add_to_frame(&mut self, content: Content<'_>) -> Result<(), RequestError> {
        let message = match self.connection.message(content) {
            Ok(message) => message,
            Err(Unsendable::OtherKind) => return Err(RequestError::NotTimed),
            // A batch has no events of the program, so the first of the two it is.
            Err(Unsendable::TooBig | Unsendable::NotDefined) => {
                self.count_too_big();
                return Ok(());
            }
        };
        let len = MESSAGE_PREFIX_LEN + message.len();
        if self.frame.n_messages() > 0 && self.frame.len() + len > self.connection.room {
            self.send()?;
            // Perhaps with another connection.
            return self.add_to_frame(content);
        }
        if len > self.connection.room {
            return self.send_long(content);
        }
        self.frame.push(message);
        Ok(())
    }

    /// Counts a message that is too big even for [`push`](Self::push).
    pub fn count_too_big(&mut self) {
        self.counts.too_big += 1;
        if self.connection.shared().is_some_and(|shared| shared.count_too_big(self.options.cpu, 0)) {
            return;
        }
        // The protocol has no other counter for a message that the daemon never saw.
        if let Ok(cpu) = self.connection.buffer_of(self.options.cpu) {
            self.connection.add_lost(cpu, 1);
        }
    }

    /// Looks whether the daemon is there, and goes over to the next one if not.
    /// See [`Channel::look_for_daemon`](crate::Channel::look_for_daemon). An error is about messages that the last daemon
    /// has not answered.
    pub fn look_for_daemon(&mut self) -> Result<(), RequestError> {
        // Also while the thread is on another CPU: its next message may be written directly again. Without buffers, sending
        // finds the daemon's end.
        if self.connection.shared().is_some() && !self.works() && self.link.look_for_daemon() {
            self.collect_all()?;
            self.reattach();
        }
        Ok(())
    }

    /// Sends the gathered messages, waits for all answers, and returns the counts.
    pub fn finish(&mut self) -> Result<Counts, RequestError> {
        let sent = self.send().and_then(|()| self.settle());
        // After an error, too.
        let collected = self.collect_all();
        let unanswered = match std::mem::take(&mut self.unanswered) {
            0 => Ok(()),
            messages => Err(RequestError::Unanswered { messages }),
        };
        sent.and(collected).and(unanswered).map(|()| self.counts)
    }

    /// Returns the counts so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        // A child has the list of replies as it was at the fork, perhaps with a lock that another thread had.
        for frame in self.in_flight.iter().filter(|_| self.connection.is_own()) {
            self.connection.forget(frame.id);
        }
    }
}
