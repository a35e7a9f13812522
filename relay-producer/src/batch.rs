//! Batches: many messages, and the results for each.
//! Messages are written directly if possible, else sent in frames, with several frames in flight at once.
//!
//! A batch writes directly only while none of its messages is on its way through the socket, so its messages keep their
//! order. A message that waits for room stays in this process. The daemon gets an empty message instead, and answers it
//! when there is room. A producer that waits for its reader therefore pays for one answer each time the buffer is full.
//! It loses no message if the daemon dies meanwhile.
//!
//! With shared buffers the batch outlives the connection. A message that needs a daemon waits for the next one, as long
//! as it would wait for an answer. Messages of frames without an answer may be written or lost; `finish` returns their
//! number.

mod awaiting;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use relay::wire::frame::{MESSAGE_PREFIX_LEN, WAIT_FOREVER, WRITE_REPLY, WriteReply};
use relay::wire::socket::{Deadline, SendError};

pub use self::awaiting::DaemonEvent;
use self::awaiting::Outlives;
use crate::direct::buffers::Direct;
use crate::error::RequestError;
use crate::options::{BatchOptions, Counts, Wait};
use crate::socket::connection::{Connection, Envelope};
use crate::socket::reconnect::Link;
use crate::socket::replies::Reply;
use crate::socket::write_frame::WriteFrame;

/// Most frames in flight.
/// They are few enough that their replies never fill a socket, and enough to keep both sides busy.
const WINDOW: usize = 8;

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
#[derive(Debug)]
pub struct Batch {
    link: Arc<Link>,
    connection: Arc<Connection>,
    options: BatchOptions,
    frame: WriteFrame,
    /// Ids of the frames without an answer, oldest first, and the number of messages in each.
    in_flight: VecDeque<(u32, u64)>,
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
            direct: false,
            counts: Counts::default(),
            unanswered: 0,
            outlives: None,
            given_up: (0, 0),
        })
    }

    /// Adds a message. A message that is too big is only counted.
    #[inline]
    pub fn push(&mut self, message: &[u8]) -> Result<(), RequestError> {
        if !self.direct {
            return self.gather(message);
        }
        match self.write(message) {
            Direct::Written => {
                self.counts.written += 1;
                Ok(())
            }
            direct => self.written_otherwise(direct, message),
        }
    }

    #[inline(always)]
    fn write(&self, message: &[u8]) -> Direct {
        self.write_if_room(message, self.options.wait == Wait::No)
    }

    #[inline(always)]
    fn write_if_room(&self, message: &[u8], drop_if_full: bool) -> Direct {
        match &self.connection.sharing {
            Ok(shared) => shared.write(self.options.cpu, message, drop_if_full),
            Err(_) => Direct::WrongCpu,
        }
    }

    /// Handles a direct write that did not simply succeed.
    #[inline(never)]
    fn written_otherwise(&mut self, mut direct: Direct, message: &[u8]) -> Result<(), RequestError> {
        if direct == Direct::Full && self.options.wait != Wait::No {
            direct = self.write_when_room(message)?;
        }
        if direct == Direct::TooLongOrInterrupted && !self.works() {
            direct = self.insist(message)?;
        }
        match direct {
            Direct::Written => self.counts.written += 1,
            Direct::WrittenUnheard => {
                self.counts.written += 1;
                self.reattach();
            }
            Direct::TooBig => self.counts.too_big += 1,
            Direct::Full => self.counts.dropped += 1,
            Direct::WrongCpu | Direct::TooLongOrInterrupted => {
                self.direct = false;
                return self.add_to_frame(message);
            }
            Direct::Closed | Direct::Detached if self.outlives() && !self.works() => {
                self.direct = false;
                self.find_daemon(None)?;
                return self.push(message);
            }
            Direct::Closed | Direct::Detached => return Err(RequestError::Disconnected),
        }
        Ok(())
    }

    /// Waits for room, and writes a message.
    /// [`Direct::Full`]: the wait was too long, and the message is counted.
    #[cold]
    fn write_when_room(&mut self, message: &[u8]) -> Result<Direct, RequestError> {
        let (len, written) = (MESSAGE_PREFIX_LEN + message.len(), self.counts.written);
        if self.given_up.1 == written && self.given_up.0 >= len {
            // One timed-out wait serves as many messages as a frame would hold.
            self.given_up.0 -= len;
            return Ok(self.write_or_drop(message));
        }
        let until = self.options.wait.until();
        let mut direct = Direct::Full;
        while direct == Direct::Full {
            let overdue = until.is_some_and(|at| at <= Instant::now());
            if !overdue && self.await_room(until)? {
                direct = self.write(message);
                continue;
            }
            self.given_up = (self.connection.room, written);
            // The daemon has counted a message that it reports as dropped.
            return Ok(if overdue { self.write_or_drop(message) } else { direct });
        }
        Ok(direct)
    }

    /// Writes a message that must not wait any longer.
    fn write_or_drop(&self, message: &[u8]) -> Direct {
        match (self.write_if_room(message, true), self.connection.shared()) {
            (Direct::TooLongOrInterrupted, Some(shared)) if !self.works() => {
                shared.insist(self.options.cpu, message, true)
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
        nothing.push(b"");
        let (envelope, deadline) = (Envelope { cpu, flags: WRITE_REPLY, id, wait_ms }, self.deadline());
        let connection = &self.connection;
        if let Err(error) = connection.when_room(deadline, || connection.send(&mut nothing, envelope)) {
            connection.forget(id);
            // The connection has ended: try again.
            return if error == SendError::Gone && self.survives() { Ok(true) } else { Err(error.into()) };
        }
        match connection.reply(id, deadline).and_then(Reply::counts) {
            // A wait without limit ends when there is room, or with the channel, which the next try finds.
            Ok(WriteReply { dropped, .. }) => Ok(dropped == 0 || until.is_none()),
            Err(RequestError::Disconnected) if self.survives() => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Writes a message directly that should go over the socket.
    /// [`Direct::TooLongOrInterrupted`]: this failed.
    #[cold]
    fn insist(&mut self, message: &[u8]) -> Result<Direct, RequestError> {
        let Some(shared) = self.connection.shared() else { return Ok(Direct::Detached) };
        let direct = shared.insist(self.options.cpu, message, self.options.wait == Wait::No);
        if direct == Direct::Full && self.options.wait != Wait::No {
            self.write_when_room(message)
        } else {
            Ok(direct)
        }
    }

    fn deadline(&self) -> Deadline {
        self.options.wait.deadline()
    }

    /// Adds a message to the frame, unless messages can be written directly again.
    #[inline]
    fn gather(&mut self, message: &[u8]) -> Result<(), RequestError> {
        let len = MESSAGE_PREFIX_LEN + message.len();
        if self.frame.n_messages() == 0 || self.frame.len() + len > self.connection.room {
            return self.gather_slowly(message);
        }
        self.frame.push(message);
        Ok(())
    }

    #[cold]
    fn gather_slowly(&mut self, message: &[u8]) -> Result<(), RequestError> {
        if self.frame.n_messages() > 0 {
            self.send()?;
        }
        if self.becomes_direct()? {
            let direct = self.write(message);
            return self.written_otherwise(direct, message);
        }
        self.add_to_frame(message)
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
        self.collect_all()?;
        self.direct = true;
        Ok(true)
    }

    /// Adds a message to the frame, which is sent first if it has no room.
    fn add_to_frame(&mut self, message: &[u8]) -> Result<(), RequestError> {
        if message.len() > self.connection.message_max {
            self.count_too_big();
            return Ok(());
        }
        if self.frame.len() + MESSAGE_PREFIX_LEN + message.len() > self.connection.room {
            self.send()?;
        }
        if MESSAGE_PREFIX_LEN + message.len() > self.connection.room {
            return self.send_long(message);
        }
        self.frame.push(message);
        Ok(())
    }

    /// Counts a message that is too big even for [`push`](Self::push).
    pub fn count_too_big(&mut self) {
        self.counts.too_big += 1;
        if self.connection.shared().is_some_and(|shared| shared.count_too_big(self.options.cpu)) {
            return;
        }
        // The protocol has no other counter for a message that the daemon never saw.
        if let Ok(cpu) = self.connection.buffer_of(self.options.cpu) {
            self.connection.add_lost(cpu, 1);
        }
    }

    /// Sends the gathered messages.
    pub fn send(&mut self) -> Result<(), RequestError> {
        if self.frame.n_messages() == 0 {
            return Ok(());
        }
        let sent = self.by_daemon(Batch::send_frame);
        self.frame.clear();
        sent
    }

    fn send_frame(&mut self) -> Result<(), RequestError> {
        if self.in_flight.len() >= WINDOW {
            self.collect(self.deadline())?;
        }
        let id = self.connection.expect();
        let sent = self.deliver(id);
        self.sent(id, self.frame.n_messages(), sent)
    }

    fn deliver(&mut self, id: u32) -> Result<(), RequestError> {
        let envelope = self.envelope(id)?;
        while !self.in_flight.is_empty() {
            match self.connection.send(&mut self.frame, envelope) {
                // The answer to an earlier frame shows that the daemon has emptied the socket up to that frame.
                Err(SendError::Full) => self.collect(self.deadline())?,
                sent => return Ok(sent?),
            }
        }
        let (deadline, connection, frame) = (self.deadline(), &self.connection, &mut self.frame);
        Ok(connection.when_room(deadline, || connection.send(frame, envelope))?)
    }

    fn send_long(&mut self, message: &[u8]) -> Result<(), RequestError> {
        self.by_daemon(|batch| batch.try_send_long(message))
    }

    fn try_send_long(&mut self, message: &[u8]) -> Result<(), RequestError> {
        // This thread takes no replies while its frames go out.
        self.collect_all()?;
        let deadline = self.deadline();
        let id = self.connection.expect();
        let sent = self.envelope(id).and_then(|envelope| {
            let send = || self.connection.send_long(message, envelope, deadline);
            Ok(self.connection.when_room(deadline, send)?)
        });
        self.sent(id, 1, sent)
    }

    /// Lists a sent frame as in flight, or makes the connection forget one that was not sent.
    fn sent(&mut self, id: u32, n_messages: u64, sent: Result<(), RequestError>) -> Result<(), RequestError> {
        match sent {
            Ok(()) => self.in_flight.push_back((id, n_messages)),
            Err(_) => self.connection.forget(id),
        }
        sent
    }

    fn envelope(&self, id: u32) -> Result<Envelope, RequestError> {
        let cpu = self.connection.buffer_of(self.options.cpu)?;
        Ok(Envelope { cpu, flags: WRITE_REPLY, id, wait_ms: self.options.wait.millis() })
    }

    /// Waits for the answer to the oldest frame.
    fn collect(&mut self, deadline: Deadline) -> Result<(), RequestError> {
        let Some((id, n_messages)) = self.in_flight.pop_front() else { return Ok(()) };
        match self.connection.reply(id, deadline).and_then(Reply::counts) {
            Ok(WriteReply { written, dropped, too_big }) => {
                // The numbers are the daemon's: wrong ones must not end this process.
                let Counts { written: w, dropped: d, too_big: t } = self.counts;
                self.counts = Counts {
                    written: w.saturating_add(written),
                    dropped: d.saturating_add(dropped),
                    too_big: t.saturating_add(too_big),
                };
                Ok(())
            }
            Err(RequestError::Disconnected) if self.survives() => {
                self.unanswered += n_messages;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Waits for all answers, and returns the first error.
    fn collect_all(&mut self) -> Result<(), RequestError> {
        let mut result = Ok(());
        while !self.in_flight.is_empty() {
            // A daemon that missed one deadline does not get another one.
            let overdue = matches!(result, Err(RequestError::NoReply));
            let deadline = if overdue { Some(Instant::now()) } else { self.deadline() };
            result = result.and(self.collect(deadline));
        }
        result
    }

    /// Sends the gathered messages, waits for all answers, and returns the counts.
    pub fn finish(&mut self) -> Result<Counts, RequestError> {
        let sent = self.send();
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
        for &(id, _) in &self.in_flight {
            self.connection.forget(id);
        }
    }
}
