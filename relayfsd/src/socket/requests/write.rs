//! WRITE and FLUSH: frames become jobs of the writers; several frames become a long message.

use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use relay::wire::frame::{
    ALL_CPUS, Body, Flush, Frame, FrameType, Messages, Refusal, WAIT_FOREVER, WRITE_HAND_BACK, WRITE_MORE,
    WRITE_REPLY, Write, WriteReply, done,
};

use super::{Requests, buffer_of};
use crate::policy::quota::Reservation;
use crate::socket::reassembly::{AssemblyError, Reassembly};
use crate::socket::refusal::FrameRefusal;
use crate::writers::here::Here;
use crate::writers::{Batch, Gather, Job, Wait};

/// Most messages of a frame that the socket's thread writes by itself.
///
/// More of them take longer than handing the frame to a writer, and other connections wait meanwhile.
const HERE_MAX: usize = 1024;

/// A message in several frames, all with the same id.
pub(super) enum Long {
    Assembling(LongWrite),
    /// The message with this id was refused: its further frames are discarded.
    Swallowing(u32),
}

/// An incomplete message. Channel, CPU and wait are those of its first frame.
pub(super) struct LongWrite {
    id: u32,
    answer: bool,
    /// The connection's number of the channel.
    channel: u32,
    /// Complete except for the message.
    batch: Batch,
    message: Reassembly,
}

impl Requests {
    pub(super) fn write(&mut self, frame: &Frame, long: Option<Long>) -> Result<(), FrameRefusal> {
        let write = Write::decode(frame.body)?;
        let (id, more, answer) = (frame.id, frame.flags & WRITE_MORE != 0, frame.flags & WRITE_REPLY != 0);
        // Without a reply the producer could not know what it has again.
        let hand_back = answer && frame.flags & WRITE_HAND_BACK != 0;
        match long {
            Some(Long::Swallowing(begun)) if begun == id => {
                self.long = more.then_some(Long::Swallowing(id));
                Ok(())
            }
            Some(Long::Assembling(begun)) if begun.id == id => {
                self.continue_long(begun, write.messages, more)
            }
            _ if more => self.begin_long(id, answer, hand_back, &write),
            _ => self.write_whole(id, answer, hand_back, &write),
        }
    }

    /// Handles a frame with whole messages.
    fn write_whole(
        &mut self,
        id: u32,
        answer: bool,
        hand_back: bool,
        write: &Write,
    ) -> Result<(), FrameRefusal> {
        // All lengths are checked before any message is written: a frame is written whole, or refused.
        let n_messages = Messages(write.messages).try_fold(0, |n, message| message.map(|_| n + 1))?;
        let channel = self.channel(write.channel)?;
        let cpu = buffer_of(channel, write.cpu)?;
        self.check_records(write.channel, channel, Messages(write.messages).flatten())?;
        // Batches that may be handed back keep their order among themselves, which only their writer knows.
        let is_of_ending = write.wait_ms != 0 && self.wait_end.is_set();
        let here = match is_of_ending || n_messages > HERE_MAX {
            true => None,
            false => self.common.writers.write_here(channel, cpu, write),
        };
        if let Some(Here { len, counts }) = &here
            && *len == write.messages.len()
        {
            if answer {
                self.peer.send(&counts.frame(0, id));
            }
            return Ok(());
        }
        let mut batch = self.batch(write, hand_back)?;
        let mut rest = write.messages;
        if let Some(Here { len, counts }) = here {
            (batch.lost, batch.counts, rest) = (0, counts, &rest[len..]);
        }
        // The next packet overwrites the memory of this one. The copy is as long as the messages.
        batch.bytes = rest.to_vec();
        self.submit_batch(batch, id, answer, None);
        Ok(())
    }

    /// Handles the first frame of a long message.
    fn begin_long(
        &mut self,
        id: u32,
        answer: bool,
        hand_back: bool,
        write: &Write,
    ) -> Result<(), FrameRefusal> {
        // Stays so if a check below fails.
        self.long = Some(Long::Swallowing(id));
        let mut batch = self.batch(write, hand_back)?;
        match Reassembly::begin(&self.common.budget, self.peer.uid(), write.messages) {
            Ok(message) => {
                batch.single = true;
                self.long =
                    Some(Long::Assembling(LongWrite { id, answer, channel: write.channel, batch, message }));
                Ok(())
            }
            Err(error) => {
                if error == AssemblyError::NoMemory {
                    // The daemon's limit, so one more lost message of the channel, whether the producer wants answers
                    // or not.
                    (batch.lost, batch.wait) = (batch.lost + 1, Wait::No);
                    self.submit_batch(batch, id, false, None);
                }
                Err(error.into())
            }
        }
    }

    /// Handles a further frame of a long message; the last, unless `more` follow.
    fn continue_long(&mut self, mut begun: LongWrite, piece: &[u8], more: bool) -> Result<(), FrameRefusal> {
        let added = begun.message.add(piece);
        if more && added.is_ok() {
            self.long = Some(Long::Assembling(begun));
            return Ok(());
        }
        let LongWrite { id, answer, channel, mut batch, message } = begun;
        match added {
            Ok(()) => {}
            Err(error @ AssemblyError::GivenUp) => {
                self.long = more.then_some(Long::Swallowing(id));
                self.lose(batch, id, answer, &error);
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        let bytes = message.finish()?;
        self.check_records(channel, &batch.channel, [&bytes[..]].into_iter())?;
        // A message that waits may stay for ever.
        let mut memory = None;
        if batch.wait != Wait::No {
            match self.common.long_waiting.claim(self.peer.uid(), bytes.len()) {
                Ok(claim) => memory = Some(claim),
                Err(_) => {
                    self.lose(batch, id, answer, &AssemblyError::NoMemoryToWait);
                    return Ok(());
                }
            }
        }
        batch.bytes = bytes;
        self.submit_batch(batch, id, answer, memory);
        Ok(())
    }

    /// Makes a batch for a WRITE, still without messages.
    fn batch(&mut self, write: &Write, hand_back: bool) -> Result<Batch, FrameRefusal> {
        let channel = self.channel(write.channel)?.clone();
        let wait = match write.wait_ms {
            0 => Wait::No,
            WAIT_FOREVER => Wait::Forever,
            ms => Wait::Until(Instant::now() + Duration::from_millis(ms.into())),
        };
        self.has_waited |= wait != Wait::No;
        Ok(Batch {
            cpu: buffer_of(&channel, write.cpu)?,
            channel,
            bytes: Vec::new(),
            single: false,
            lost: write.lost.into(),
            counts: WriteReply::default(),
            wait,
            hand_back: hand_back && wait != Wait::No,
            wait_end: Arc::clone(&self.wait_end),
            done: None,
        })
    }

    /// Counts a message as lost for want of memory, and tells the producer if it wants answers.
    fn lose(&mut self, mut batch: Batch, id: u32, answer: bool, why: &AssemblyError) {
        (batch.lost, batch.wait) = (batch.lost + 1, Wait::No);
        self.submit_batch(batch, id, false, None);
        if answer {
            let refusal = Refusal { errno: Errno::ENOBUFS as i32, text: why.to_string() };
            self.peer.send(&refusal.frame(0, id));
        }
    }

    fn submit_batch(&mut self, mut batch: Batch, id: u32, answer: bool, memory: Option<Reservation>) {
        let (peer, permit) = (Arc::clone(&self.peer), self.writes_in_flight.permit(batch.bytes.len()));
        batch.done = Some(Box::new(move |result| {
            // Before the reply: a peer that has it may send as much again.
            drop(memory);
            match result {
                _ if !answer => {}
                Ok(reply) => peer.send(&reply.frame(0, id)),
                Err(error) => {
                    peer.send(&Refusal { errno: error.errno(), text: error.to_string() }.frame(0, id));
                }
            }
            drop(permit);
        }));
        self.submit(Job::Write(batch));
    }

    /// Makes a job for each buffer, and one answer when all are done.
    ///
    /// It names the failed buffers.
    pub(super) fn flush(&mut self, frame: &Frame) -> Result<(), FrameRefusal> {
        let flush = Flush::decode(frame.body)?;
        let channel = self.channel(flush.channel)?.clone();
        let cpus = match flush.cpu {
            ALL_CPUS => 0..channel.n_bufs(),
            cpu => buffer_of(&channel, cpu).map(|cpu| cpu..cpu + 1)?,
        };
        let (peer, id) = (Arc::clone(&self.peer), frame.id);
        let all = Gather::new(move |mut failed| {
            failed.sort_by_key(|error| error.cpu);
            let Some(first) = failed.first() else {
                return peer.send(&done(FrameType::Flush, id));
            };
            let texts: Vec<_> = failed.iter().map(ToString::to_string).collect();
            peer.send(&Refusal { errno: first.errno(), text: texts.join("; ") }.frame(0, id));
        });
        for cpu in cpus {
            if !self.common.writers.flush_here(&channel, cpu) {
                self.submit(Job::Flush { channel: channel.clone(), cpu, done: all.part() });
            }
        }
        Ok(())
    }
}
