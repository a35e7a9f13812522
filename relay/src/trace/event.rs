//! The built-in events: ids and payloads.
//!
//! Decoding is total: a payload that is not what its id says is [`Event::Damaged`], and is shown as bytes.

use std::fmt;

use crate::trace::level::Level;
use crate::trace::record::PAYLOAD_MAX;

/// Ids of the built-in events.
pub mod id {
    /// UTF-8 text.
    pub const TEXT: u16 = 0;
    /// Bytes.
    pub const RAW: u16 = 1;
    /// A message with level and target.
    pub const LOG: u16 = 2;
    /// The begin of a span.
    pub const SPAN_BEGIN: u16 = 3;
    /// The end of a span.
    pub const SPAN_END: u16 = 4;
    /// Messages that are not there.
    pub const LOST: u16 = 5;
    /// The begin of a clock epoch.
    pub const CLOCK: u16 = 6;
    /// A process that begins or ends.
    pub const PROCESS: u16 = 7;
    /// A line of a program's output.
    pub const OUTPUT: u16 = 8;
    /// The number of built-in events.
    pub const BUILTINS: u16 = 9;
    /// The first id that programs define.
    pub const DEFINED: u16 = 256;
}

/// Makes an enum with a number and a text for each variant.
macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $number:literal $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum $name { $($(#[$variant_doc])* $variant = $number,)* }

        impl $name {
            /// Returns the one with this number.
            pub fn of_number(number: u8) -> Option<$name> {
                match number {
                    $($number => Some($name::$variant),)*
                    _ => None,
                }
            }

            /// Returns the text for people.
            pub fn text(self) -> &'static str {
                match self {
                    $($name::$variant => $text,)*
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.text())
            }
        }
    };
}

numbered! {
    /// Why messages are not there.
    Cause {
        /// All sub-buffers were full.
        Full = 1 "buffer full",
        /// The message was longer than a sub-buffer holds.
        TooBig = 2 "too big",
        /// Another writer held the buffer.
        Contended = 3 "contended",
        /// Newer messages took the place.
        Overwritten = 4 "overwritten",
    }
}

numbered! {
    /// Why a clock epoch begins.
    Reason {
        /// The real time was set.
        Step = 1 "the real time was set",
        /// The machine slept.
        Suspend = 2 "the machine slept",
        /// The kernel changed its clock source.
        Source = 3 "the clock source changed",
    }
}

numbered! {
    /// What happened to a process.
    What {
        /// It attached to the channel.
        Begin = 1 "begins",
        /// It ended with an exit status.
        Exit = 2 "exited",
        /// A signal ended it.
        Signal = 3 "killed by signal",
    }
}

/// The status of a process that exited or was killed, where it is not known which. relayfsd writes no such record.
pub const STATUS_UNKNOWN: u32 = u32::MAX;

numbered! {
    /// Where a line of output came from.
    Stream {
        /// The standard output.
        Stdout = 1 "stdout",
        /// The standard error.
        Stderr = 2 "stderr",
    }
}

/// A record's meaning. `None` in a field is a number without meaning, written as 0.
///
/// Texts are bytes: what another process wrote need not be UTF-8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A message.
    Text(&'a [u8]),
    /// Bytes.
    Raw(&'a [u8]),
    /// A message with level and target.
    Log {
        /// How serious the message is.
        level: Option<Level>,
        /// Part of the program that writes, at most 255 bytes.
        target: &'a [u8],
        /// The message.
        text: &'a [u8],
    },
    /// The begin of a span.
    SpanBegin {
        /// Number of the span.
        span: u64,
        /// Number of the span around it, 0 for none.
        parent: u64,
        /// Name of the span.
        name: &'a [u8],
        /// `key=value`, separated by spaces.
        fields: &'a [u8],
    },
    /// The end of a span.
    SpanEnd {
        /// Number of the span.
        span: u64,
    },
    /// Messages that are not there.
    Lost {
        /// How many.
        messages: u64,
        /// Why.
        cause: Option<Cause>,
    },
    /// The begin of a clock epoch.
    Clock {
        /// Number of the epoch.
        epoch: u64,
        /// CLOCK_MONOTONIC in nanoseconds.
        monotonic: u64,
        /// CLOCK_REALTIME in nanoseconds.
        realtime: u64,
        /// Why the epoch begins.
        reason: Option<Reason>,
    },
    /// A process that begins or ends.
    Process {
        /// Number of the process.
        pid: u32,
        /// What happened.
        what: Option<What>,
        /// Exit status, or number of the signal; or [`STATUS_UNKNOWN`].
        status: u32,
        /// Name of the command.
        command: &'a [u8],
    },
    /// A line of a program's output.
    Output {
        /// Where the line came from.
        stream: Option<Stream>,
        /// The line, without its newline.
        text: &'a [u8],
    },
    /// A payload of an event that is not built in.
    Other(&'a [u8]),
    /// A payload that is not what its id says.
    Damaged(&'a [u8]),
}

/// A payload, or a part of it, that is longer than its length can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes are too long for a record; the most are {max}")]
pub struct TooLong {
    /// Length in bytes.
    pub len: usize,
    /// The most bytes.
    pub max: usize,
}

/// Takes values off the front of a payload.
pub(super) struct Payload<'a>(pub(super) &'a [u8]);

impl<'a> Payload<'a> {
    pub(super) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.bytes(1).map(|bytes| bytes[0])
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.bytes(2)?.try_into().ok().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.bytes(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.bytes(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    /// Bytes behind their length of 16 bits.
    pub(super) fn sized(&mut self) -> Option<&'a [u8]> {
        let len = self.u16()?;
        self.bytes(usize::from(len))
    }
}

impl<'a> Event<'a> {
    /// Returns what a record with this id and payload means.
    #[inline]
    pub fn decode(id: u16, payload: &'a [u8]) -> Event<'a> {
        match id {
            id::TEXT => Event::Text(payload),
            id::RAW => Event::Raw(payload),
            id::BUILTINS.. => Event::Other(payload),
            id => {
                let mut rest = Payload(payload);
                let event = Event::parts(id, &mut rest);
                event.filter(|_| rest.0.is_empty()).unwrap_or(Event::Damaged(payload))
            }
        }
    }

    fn parts(id: u16, payload: &mut Payload<'a>) -> Option<Event<'a>> {
        Some(match id {
            id::LOG => {
                let level = Level::of_number(payload.u8()?);
                let len = payload.u8()?;
                Event::Log { level, target: payload.bytes(usize::from(len))?, text: payload.sized()? }
            }
            id::SPAN_BEGIN => Event::SpanBegin {
                span: payload.u64()?,
                parent: payload.u64()?,
                name: payload.sized()?,
                fields: payload.sized()?,
            },
            id::SPAN_END => Event::SpanEnd { span: payload.u64()? },
            id::LOST => Event::Lost { messages: payload.u64()?, cause: Cause::of_number(payload.u8()?) },
            id::CLOCK => Event::Clock {
                epoch: payload.u64()?,
                monotonic: payload.u64()?,
                realtime: payload.u64()?,
                reason: Reason::of_number(payload.u8()?),
            },
            id::PROCESS => Event::Process {
                pid: payload.u32()?,
                what: What::of_number(payload.u8()?),
                status: payload.u32()?,
                command: payload.sized()?,
            },
            id::OUTPUT => Event::Output { stream: Stream::of_number(payload.u8()?), text: payload.sized()? },
            _ => return None,
        })
    }

    /// Returns the id of a built-in event; `None` for what is none.
    pub fn id(&self) -> Option<u16> {
        match self {
            Event::Text(_) => Some(id::TEXT),
            Event::Raw(_) => Some(id::RAW),
            Event::Log { .. } => Some(id::LOG),
            Event::SpanBegin { .. } => Some(id::SPAN_BEGIN),
            Event::SpanEnd { .. } => Some(id::SPAN_END),
            Event::Lost { .. } => Some(id::LOST),
            Event::Clock { .. } => Some(id::CLOCK),
            Event::Process { .. } => Some(id::PROCESS),
            Event::Output { .. } => Some(id::OUTPUT),
            Event::Other(_) | Event::Damaged(_) => None,
        }
    }

    /// Appends the payload to `out`. Nothing is appended if a part is too long for its length.
    pub fn encode_into(&self, out: &mut Vec<u8>) -> Result<(), TooLong> {
        self.check()?;
        self.pieces(|piece| out.extend_from_slice(piece));
        Ok(())
    }

    /// Checks that the lengths in the payload can say how long its parts are.
    fn check(&self) -> Result<(), TooLong> {
        let mut len = 0;
        self.pieces(|piece| len += piece.len());
        if let Event::Log { target, .. } = self
            && target.len() > usize::from(u8::MAX)
        {
            return Err(TooLong { len: target.len(), max: usize::from(u8::MAX) });
        }
        if len > PAYLOAD_MAX { Err(TooLong { len, max: PAYLOAD_MAX }) } else { Ok(()) }
    }

    /// Gives the payload's parts in their order. Lengths that do not fit are cut; see [`Event::check`].
    #[inline]
    fn pieces(&self, mut put: impl FnMut(&[u8])) {
        let sized = |bytes: &[u8]| (bytes.len() as u16).to_le_bytes();
        match *self {
            Event::Text(bytes) | Event::Raw(bytes) | Event::Other(bytes) | Event::Damaged(bytes) => {
                put(bytes)
            }
            Event::Log { level, target, text } => {
                put(&[level.map_or(0, Level::number), target.len() as u8]);
                put(target);
                put(&sized(text));
                put(text);
            }
            Event::SpanBegin { span, parent, name, fields } => {
                put(&span.to_le_bytes());
                put(&parent.to_le_bytes());
                put(&sized(name));
                put(name);
                put(&sized(fields));
                put(fields);
            }
            Event::SpanEnd { span } => put(&span.to_le_bytes()),
            Event::Lost { messages, cause } => {
                put(&messages.to_le_bytes());
                put(&[cause.map_or(0, |cause| cause as u8)]);
            }
            Event::Clock { epoch, monotonic, realtime, reason } => {
                put(&epoch.to_le_bytes());
                put(&monotonic.to_le_bytes());
                put(&realtime.to_le_bytes());
                put(&[reason.map_or(0, |reason| reason as u8)]);
            }
            Event::Process { pid, what, status, command } => {
                put(&pid.to_le_bytes());
                put(&[what.map_or(0, |what| what as u8)]);
                put(&status.to_le_bytes());
                put(&sized(command));
                put(command);
            }
            Event::Output { stream, text } => {
                put(&[stream.map_or(0, |stream| stream as u8)]);
                put(&sized(text));
                put(text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn samples() -> Vec<Event<'static>> {
        vec![
            Event::Text(b"text"),
            Event::Raw(b"\0\xff"),
            Event::Log { level: Some(Level::Warn), target: b"app::db", text: b"slow" },
            Event::SpanBegin { span: 7, parent: 0, name: b"query", fields: b"rows=3" },
            Event::SpanEnd { span: 7 },
            Event::Lost { messages: 12, cause: Some(Cause::Full) },
            Event::Clock { epoch: 1, monotonic: 2, realtime: 3, reason: Some(Reason::Suspend) },
            Event::Process { pid: 9, what: Some(What::Signal), status: 6, command: b"app" },
            Event::Output { stream: Some(Stream::Stderr), text: b"a line" },
        ]
    }

    #[test]
    fn every_event_is_decoded_as_it_was() {
        for (number, event) in samples().into_iter().enumerate() {
            assert_eq!(event.id(), Some(number as u16));
            let mut payload = Vec::new();
            event.encode_into(&mut payload).unwrap();
            assert_eq!(Event::decode(number as u16, &payload), event);
            let short = payload.len() - 1;
            if number > 1 {
                assert_eq!(
                    Event::decode(number as u16, &payload[..short]),
                    Event::Damaged(&payload[..short])
                );
                payload.push(0);
                assert_eq!(Event::decode(number as u16, &payload), Event::Damaged(&payload));
            }
        }
        assert_eq!(samples().len(), usize::from(id::BUILTINS));
    }

    #[test]
    fn payloads_lie_as_the_document_says() {
        let bytes = |event: Event<'_>| {
            let mut out = Vec::new();
            event.encode_into(&mut out).unwrap();
            out
        };
        let log = Event::Log { level: Some(Level::Info), target: b"db", text: b"ok" };
        assert_eq!(bytes(log), b"\x03\x02db\x02\0ok");
        let output = Event::Output { stream: Some(Stream::Stdout), text: b"x" };
        assert_eq!(bytes(output), b"\x01\x01\0x");
        let process = Event::Process { pid: 1, what: Some(What::Exit), status: 2, command: b"c" };
        assert_eq!(bytes(process), b"\x01\0\0\0\x02\x02\0\0\0\x01\0c");
    }

    #[test]
    fn what_is_too_long_is_refused_whole() {
        let mut out = Vec::new();
        let long = vec![b'x'; PAYLOAD_MAX + 1];
        let log = Event::Log { level: None, target: &long[..256], text: b"" };
        assert_eq!(log.encode_into(&mut out), Err(TooLong { len: 256, max: 255 }));
        assert_eq!(Event::Text(&long).encode_into(&mut out), Err(TooLong { len: 65536, max: 65535 }));
        let log = Event::Log { level: None, target: b"", text: &long[..PAYLOAD_MAX - 3] };
        assert_eq!(log.encode_into(&mut out), Err(TooLong { len: 65536, max: 65535 }));
        assert!(out.is_empty());
        let log = Event::Log { level: None, target: b"", text: &long[..PAYLOAD_MAX - 4] };
        assert_eq!(log.encode_into(&mut out), Ok(()));
    }

    proptest! {
        #[test]
        fn any_payload_is_shown(id in 0u16..300, payload: Vec<u8>) {
            let event = Event::decode(id, &payload);
            let mut again = Vec::new();
            event.encode_into(&mut again).unwrap();
            prop_assert_eq!(again.len(), payload.len());
        }
    }
}
