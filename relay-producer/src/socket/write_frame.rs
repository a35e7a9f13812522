//! Building `WRITE` frames: messages are appended in place.

use relay::trace::record::HEAD_LEN;
use relay::wire::frame::{
    Body, FrameType, HEADER_LEN, MESSAGE_PREFIX_LEN, Messages, WRITE_FIXED_LEN, WRITE_MORE, Write, begin,
    finish,
};

/// Offset of the messages in a frame.
const START: usize = HEADER_LEN + WRITE_FIXED_LEN;

/// A message as a frame carries it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WireMessage<'a> {
    /// Head of a record; a bare message has none.
    pub(crate) head: Option<u64>,
    pub(crate) payload: &'a [u8],
}

impl<'a> WireMessage<'a> {
    /// Returns an empty message, which waits for room and writes nothing.
    pub(crate) const NOTHING: WireMessage<'static> = WireMessage { head: None, payload: &[] };

    /// Returns the length without the prefix, in bytes.
    pub(crate) fn len(&self) -> usize {
        self.payload.len() + if self.head.is_some() { HEAD_LEN } else { 0 }
    }

    /// Appends prefix, head and payload.
    fn put(&self, out: &mut Vec<u8>) {
        // No message is longer than `MESSAGE_MAX`, so its length fits.
        out.extend_from_slice(&(self.len() as u32).to_le_bytes());
        if let Some(head) = self.head {
            out.extend_from_slice(&head.to_le_bytes());
        }
        out.extend_from_slice(self.payload);
    }
}

/// A `WRITE` with whole messages. Its CPU is decided when it is sent.
#[derive(Debug)]
pub(crate) struct WriteFrame {
    /// The frame; its head is still blank.
    bytes: Vec<u8>,
    /// Buffer in which the head is built.
    head: Vec<u8>,
    n_messages: u64,
}

impl WriteFrame {
    /// Creates an empty frame with memory for `capacity` bytes of messages and their prefixes.
    pub(crate) fn new(capacity: usize) -> WriteFrame {
        let mut bytes = Vec::with_capacity(START + capacity);
        bytes.resize(START, 0);
        WriteFrame { bytes, head: Vec::with_capacity(START), n_messages: 0 }
    }

    /// Returns the bytes of messages, prefixes included.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - START
    }

    /// Returns the number of messages.
    pub(crate) fn n_messages(&self) -> u64 {
        self.n_messages
    }

    /// Appends a message.
    pub(crate) fn push(&mut self, message: WireMessage<'_>) {
        message.put(&mut self.bytes);
        self.n_messages += 1;
    }

    /// Removes all messages.
    pub(crate) fn clear(&mut self) {
        self.bytes.truncate(START);
        self.n_messages = 0;
    }

    /// Removes the first messages, or all if there are fewer.
    pub(crate) fn remove_first(&mut self, n_messages: u64) {
        let mut messages = Messages(&self.bytes[START..]);
        let removed = (0..n_messages).map_while(|_| messages.next()).count() as u64;
        let end = self.bytes.len() - messages.0.len();
        self.bytes.drain(START..end);
        self.n_messages -= removed;
    }

    /// Completes the frame for sending. `to` has all fields but the messages.
    pub(crate) fn seal(&mut self, flags: u16, id: u32, to: &Write<'_>) -> &[u8] {
        begin(&mut self.head, FrameType::Write, false, flags, id);
        Write { messages: &[], ..*to }.encode(&mut self.head);
        self.bytes[..START].copy_from_slice(&self.head);
        finish(&mut self.bytes);
        &self.bytes
    }
}

/// Returns the frames of one message that is longer than a frame with `room` bytes.
pub(crate) fn pieces(
    message: WireMessage<'_>,
    room: usize,
    flags: u16,
    id: u32,
    to: Write<'_>,
) -> impl Iterator<Item = Vec<u8>> {
    let mut whole = Vec::with_capacity(MESSAGE_PREFIX_LEN + message.len());
    message.put(&mut whole);
    let mut sent = 0;
    std::iter::from_fn(move || {
        let rest = &whole[sent..];
        let messages = &rest[..rest.len().min(room)];
        sent += messages.len();
        let more = if sent < whole.len() { WRITE_MORE } else { 0 };
        (!messages.is_empty()).then(|| Write { messages, ..to }.frame(flags | more, id))
    })
}

#[cfg(test)]
mod tests {
    use relay::wire::frame::{Frame, WRITE_REPLY};

    use super::*;

    const TO: Write<'static> = Write { channel: 7, cpu: 3, wait_ms: 0, lost: 5, messages: &[] };

    fn bare(payload: &[u8]) -> WireMessage<'_> {
        WireMessage { head: None, payload }
    }

    #[test]
    fn head_of_a_record_comes_behind_the_length() {
        let record = WireMessage { head: Some(0x0708_0605_0403_0201), payload: b"xy" };
        let mut frame = WriteFrame::new(0);
        frame.push(record);
        let expected = b"\x0a\0\0\0\x01\x02\x03\x04\x05\x06\x08\x07xy";
        assert_eq!((record.len(), frame.len()), (10, expected.len()));
        let packet = frame.seal(0, 1, &TO).to_vec();
        assert_eq!(Write::decode(Frame::decode(&packet).unwrap().body).unwrap().messages, expected);
        let parts = pieces(record, 5, 0, 1, TO)
            .map(|packet| Write::decode(Frame::decode(&packet).unwrap().body).unwrap().messages.to_vec());
        assert_eq!(parts.collect::<Vec<_>>().concat(), expected);
    }

    #[test]
    fn cleared_frame_is_reused() {
        let mut frame = WriteFrame::new(100);
        for round in 0..3 {
            frame.push(bare(b"one"));
            frame.push(WireMessage::NOTHING);
            assert_eq!((frame.n_messages(), frame.len()), (2, 11));
            let packet = frame.seal(WRITE_REPLY, 40 + round, &TO);
            let decoded = Frame::decode(packet).unwrap();
            assert_eq!(
                (decoded.kind, decoded.flags, decoded.id),
                (FrameType::Write, WRITE_REPLY, 40 + round)
            );
            let write = Write::decode(decoded.body).unwrap();
            assert_eq!((write.channel, write.cpu, write.lost), (7, 3, 5));
            assert_eq!(Messages(write.messages).map(Result::unwrap).collect::<Vec<_>>(), [&b"one"[..], b""]);
            frame.clear();
        }
    }

    #[test]
    fn removed_messages_leave_the_later_ones() {
        for removed in [0, 1, 2, 3, 4, u64::MAX] {
            let mut frame = WriteFrame::new(100);
            let all = [&b"one"[..], b"", b"three"];
            all.iter().for_each(|message| frame.push(bare(message)));
            frame.remove_first(removed);
            let left = &all[all.len().min(usize::try_from(removed).unwrap_or(usize::MAX))..];
            assert_eq!(frame.n_messages(), left.len() as u64);
            let write = Write::decode(Frame::decode(frame.seal(0, 1, &TO)).unwrap().body).unwrap();
            assert_eq!(Messages(write.messages).map(Result::unwrap).collect::<Vec<_>>(), left);
        }
    }

    #[test]
    fn only_last_piece_ends_a_long_message() {
        let message: Vec<u8> = (0..=255).cycle().take(1000).collect();
        // At 1004 the message fills its frame exactly.
        for room in [1004, 1003, 502, 100, 7] {
            let frames: Vec<_> = pieces(bare(&message), room, WRITE_REPLY, 9, TO).collect();
            assert_eq!(frames.len(), 1004_usize.div_ceil(room));
            let mut joined = Vec::new();
            for (i, packet) in frames.iter().enumerate() {
                let frame = Frame::decode(packet).unwrap();
                let more = if i + 1 < frames.len() { WRITE_MORE } else { 0 };
                assert_eq!((frame.id, frame.flags), (9, WRITE_REPLY | more));
                joined.extend_from_slice(Write::decode(frame.body).unwrap().messages);
            }
            assert_eq!(joined, [&1000u32.to_le_bytes()[..], &message].concat());
        }
    }
}
