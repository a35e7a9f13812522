//! ATTACH, DEFINE and LEVELS, and the check of records in WRITE.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use nix::errno::Errno;
use relay::layout::geometry::RECORD_HEAD_LEN;
use relay::layout::levels::LEVELS_VERSION;
use relay::trace::Level;
use relay::trace::definition::{Definition, Field, FieldType};
use relay::trace::record::{Head, PAYLOAD_MAX};
use relay::wire::frame::{
    Attach, AttachReply, Body, Define, DefineField, DefineReply, Frame, Levels, LevelsReply,
};

use super::{Requests, failed};
use crate::channel::ChannelRef;
use crate::channel::timed::Timed;
use crate::process::pidfd::End;
use crate::socket::attached::Attached;
use crate::socket::backpressure::InFlight;
use crate::socket::context::ConnectionContext;
use crate::socket::refusal::FrameRefusal;

impl Requests {
    /// Gives the connection's process a number in a timed channel.
    pub(super) fn attach(&mut self, frame: &Frame) -> Result<(), FrameRefusal> {
        let Attach { channel: number, executable } = Attach::decode(frame.body)?;
        let channel = self.channel(number)?.clone();
        let timed = timed_of(&channel)?;
        let attached =
            self.attached.get_or_insert_with(|| Attached::new(&self.peer, executable, &self.common.epoll));
        let process = match attached.number_in(number) {
            Some(process) => process,
            None => {
                let process = timed.attach(attached.identity().clone()).map_err(|error| {
                    FrameRefusal::request(Errno::from_raw(error.errno()), about(&channel, &error))
                })?;
                attached.add(number, channel.clone(), process);
                process
            }
        };
        // A producer compares its clock with the last anchor, which may be from before the clock was set. Its records
        // may stay within a sub-buffer, so that the daemon would not hear of them.
        self.common.writers.take_anchor(&channel);
        channel.note_activity();
        let pid = attached.identity().pid;
        let reply = AttachReply { process, clock: timed.clock() as u32, pid, reserved: 0 };
        self.peer.send(&reply.frame(0, frame.id));
        Ok(())
    }

    /// Gives an event an id in a timed channel.
    pub(super) fn define(&mut self, frame: &Frame) -> Result<(), FrameRefusal> {
        let define = Define::decode(frame.body)?;
        let channel = self.channel(define.channel)?;
        let timed = timed_of(channel)?;
        let definition = definition(&define).map_err(|what| {
            FrameRefusal::request(Errno::EINVAL, about(channel, &format_args!("the definition's {what}")))
        })?;
        let id = timed
            .define(definition, self.peer.uid(), self.common.registry.memory())
            .map_err(|error| FrameRefusal::request(Errno::from_raw(error.errno()), about(channel, &error)))?;
        self.peer.send(&DefineReply { id: id.into() }.frame(0, frame.id));
        Ok(())
    }

    /// Sends a timed channel's file of levels, which the peer can only read.
    pub(super) fn levels(&mut self, frame: &Frame) -> Result<(), FrameRefusal> {
        let channel = self.channel(Levels::decode(frame.body)?.channel)?.clone();
        timed_of(&channel)?;
        self.check_descriptors(1)?;
        let file = channel.share_levels().map_err(failed)?;
        self.descriptors_in_flight += 1;
        let reply = LevelsReply { layout_version: LEVELS_VERSION };
        let sent = self.peer.send_with(&reply.frame(0, frame.id), &[file.as_raw_fd()]);
        sent.map_err(|errno| failed(errno.into()))
    }

    /// Checks the messages of a WRITE: in a timed channel each is a record of a known event.
    ///
    /// Notes the process of their threads.
    pub(super) fn check_records<'a>(
        &self,
        number: u32,
        channel: &ChannelRef,
        messages: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(), FrameRefusal> {
        let Some(timed) = channel.timed() else { return Ok(()) };
        let process = self.attached.as_ref().and_then(|attached| attached.number_in(number));
        for (index, message) in messages.enumerate() {
            let head = head_of(message, timed).map_err(|why| {
                let text = format_args!("message {index} of the frame is no record: {why}");
                FrameRefusal::request(Errno::EINVAL, about(channel, &text))
            })?;
            if let (Some(process), Some(head)) = (process, head) {
                timed.note_thread(head.tid, process);
            }
        }
        Ok(())
    }

    /// Returns how the peer's process ended, if it has and the kernel tells now.
    pub(crate) fn end_of_process(&self) -> Option<End> {
        self.attached.as_ref()?.end()
    }

    /// Leaves a record of the process's end in the channels, once its messages are written.
    pub(crate) fn report_end(&mut self, end: End) {
        if let Some(attached) = self.attached.take() {
            let writers = Arc::clone(&self.common.writers);
            attached.report(end, &self.writes_in_flight, writers, &self.common.epoll);
        }
    }

    /// Takes the process of a connection that is over, if the end of the process is near.
    pub(crate) fn take_ending(&mut self) -> Option<Ending> {
        let attached = self.attached.take()?;
        if !attached.is_ending() {
            attached.forget(&self.common.epoll);
            return None;
        }
        Some(Ending {
            attached,
            in_flight: Arc::clone(&self.writes_in_flight),
            common: Arc::clone(&self.common),
        })
    }
}

/// A process whose connection is over, and whose end the kernel has not told yet.
pub(crate) struct Ending {
    attached: Attached,
    in_flight: Arc<InFlight>,
    common: Arc<ConnectionContext>,
}

impl Ending {
    /// Reports the end if the kernel tells now. Otherwise returns the process.
    pub(crate) fn report(self) -> Option<Ending> {
        let Some(end) = self.attached.end() else { return Some(self) };
        let Ending { attached, in_flight, common } = self;
        attached.report(end, &in_flight, Arc::clone(&common.writers), &common.epoll);
        None
    }
}

fn timed_of(channel: &ChannelRef) -> Result<&Timed, FrameRefusal> {
    channel.timed().ok_or_else(|| {
        let text = "it is a raw channel: only timed ones have processes and events";
        FrameRefusal::request(Errno::EINVAL, about(channel, &text))
    })
}

fn about(channel: &ChannelRef, what: &dyn std::fmt::Display) -> String {
    format!("channel '{}': {what}", channel.name())
}

/// Returns a record's head, or what is wrong with it. No bytes are no record, but the wait for room.
fn head_of(message: &[u8], timed: &Timed) -> Result<Option<Head>, String> {
    if message.is_empty() {
        return Ok(None);
    }
    let Some((head, payload)) = message.split_first_chunk::<RECORD_HEAD_LEN>() else {
        let len = message.len();
        return Err(format!(
            "it has {len} bytes, and its head {RECORD_HEAD_LEN}; the channel is timed: update the producer"
        ));
    };
    let head = Head::of_word(u64::from_le_bytes(*head));
    // Of a payload that is too long for any record, the head says the longest length. The message counts as too big.
    if usize::from(head.len) != payload.len().min(PAYLOAD_MAX) {
        Err(format!("its head says {} bytes, and {} follow", head.len, payload.len()))
    } else if !timed.knows(head.id) {
        Err(format!("event {} is not defined: define it first", head.id))
    } else {
        Ok(Some(head))
    }
}

/// Returns the event of a frame, or what of it makes no sense.
fn definition(define: &Define<'_>) -> Result<Definition, &'static str> {
    let text = |bytes: &[u8], what| str::from_utf8(bytes).map(str::to_owned).map_err(|_| what);
    let level = match define.level {
        0 => None,
        level => Some(Level::of_number(level).ok_or("level is none of 0 to 5")?),
    };
    let field = |field: &DefineField<'_>| {
        let kind = FieldType::of_number(field.kind).ok_or("field has a type that is none of 1 to 6")?;
        Ok(Field { name: text(field.name, "field has a name that is not UTF-8")?, kind })
    };
    Ok(Definition {
        name: text(define.name, "name is not UTF-8")?,
        level,
        target: text(define.target, "target is not UTF-8")?,
        file: text(define.file, "file is not UTF-8")?,
        line: define.line,
        fields: define.fields.iter().map(field).collect::<Result<_, &'static str>>()?,
    })
}
