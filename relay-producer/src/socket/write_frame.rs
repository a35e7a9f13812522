//! Building `WRITE` frames: messages are appended in place.

use relay::wire::frame::{
    Body, FrameType, HEADER_LEN, MESSAGE_PREFIX_LEN, WRITE_FIXED_LEN, WRITE_MORE, Write, begin, finish,
};

/// Offset of the messages in a frame.
const START: usize = HEADER_LEN + WRITE_FIXED_LEN;

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
    pub(crate) fn push(&mut self, message: &[u8]) {
        self.bytes.extend_from_slice(&prefix(message));
        self.bytes.extend_from_slice(message);
        self.n_messages += 1;
    }

    /// Removes all messages.
    pub(crate) fn clear(&mut self) {
        self.bytes.truncate(START);
        self.n_messages = 0;
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
    message: &[u8],
    room: usize,
    flags: u16,
    id: u32,
    to: Write<'_>,
) -> impl Iterator<Item = Vec<u8>> {
    let whole = [&prefix(message)[..], message].concat();
    let mut sent = 0;
    std::iter::from_fn(move || {
        let rest = &whole[sent..];
        let messages = &rest[..rest.len().min(room)];
        sent += messages.len();
        let more = if sent < whole.len() { WRITE_MORE } else { 0 };
        (!messages.is_empty()).then(|| Write { messages, ..to }.frame(flags | more, id))
    })
}

/// Returns the bytes before a message.
/// No message is longer than `MESSAGE_MAX`, so its length fits.
fn prefix(message: &[u8]) -> [u8; MESSAGE_PREFIX_LEN] {
    (message.len() as u32).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use relay::wire::frame::{Frame, Messages, WRITE_REPLY};

    use super::*;

    const TO: Write<'static> = Write { channel: 7, cpu: 3, wait_ms: 0, lost: 5, messages: &[] };

    #[test]
    fn cleared_frame_is_reused() {
        let mut frame = WriteFrame::new(100);
        for round in 0..3 {
            frame.push(b"one");
            frame.push(b"");
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
    fn only_last_piece_ends_a_long_message() {
        let message: Vec<u8> = (0..=255).cycle().take(1000).collect();
        // At 1004 the message fills its frame exactly.
        for room in [1004, 1003, 502, 100, 7] {
            let frames: Vec<_> = pieces(&message, room, WRITE_REPLY, 9, TO).collect();
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
