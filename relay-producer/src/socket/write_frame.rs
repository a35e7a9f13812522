//! `WRITE` frames as they are built: messages are appended where they will be sent from.

use relay::wire::frame::{
    Body, FrameType, HEADER_LEN, MESSAGE_PREFIX_LEN, WRITE_FIXED_LEN, WRITE_MORE, Write, begin, finish,
};

/// Where the messages of a frame begin.
const START: usize = HEADER_LEN + WRITE_FIXED_LEN;

/// A `WRITE` with whole messages. Which CPU it is for is decided when it is sent.
#[derive(Debug)]
pub(crate) struct WriteFrame {
    /// The frame, its head still blank.
    bytes: Vec<u8>,
    /// Where the head is made.
    head: Vec<u8>,
    n_messages: u64,
}

impl WriteFrame {
    /// An empty frame, with memory for `capacity` bytes of messages and their prefixes.
    pub(crate) fn new(capacity: usize) -> WriteFrame {
        let mut bytes = Vec::with_capacity(START + capacity);
        bytes.resize(START, 0);
        WriteFrame { bytes, head: Vec::with_capacity(START), n_messages: 0 }
    }

    /// Bytes of messages, prefixes included.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - START
    }

    /// Number of messages.
    pub(crate) fn n_messages(&self) -> u64 {
        self.n_messages
    }

    /// Appends a message.
    pub(crate) fn push(&mut self, message: &[u8]) {
        self.bytes.extend_from_slice(&prefix(message));
        self.bytes.extend_from_slice(message);
        self.n_messages += 1;
    }

    /// Takes all messages out.
    pub(crate) fn clear(&mut self) {
        self.bytes.truncate(START);
        self.n_messages = 0;
    }

    /// The frame, ready to be sent. `to` says everything but the messages.
    pub(crate) fn seal(&mut self, flags: u16, id: u32, to: &Write<'_>) -> &[u8] {
        begin(&mut self.head, FrameType::Write, false, flags, id);
        Write { messages: &[], ..*to }.encode(&mut self.head);
        self.bytes[..START].copy_from_slice(&self.head);
        finish(&mut self.bytes);
        &self.bytes
    }
}

/// The frames of one message that is longer than a frame with `room` bytes.
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

/// What stands before a message. No message is longer than `MESSAGE_MAX`, so its length fits.
fn prefix(message: &[u8]) -> [u8; MESSAGE_PREFIX_LEN] {
    (message.len() as u32).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use relay::wire::frame::{Frame, Messages, WRITE_REPLY};

    use super::*;

    const TO: Write<'static> = Write { channel: 7, cpu: 3, wait_ms: 0, lost: 5, messages: &[] };

    #[test]
    fn a_frame_is_used_again_and_again() {
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
    fn a_long_message_is_cut_and_only_its_last_piece_ends_it() {
        let message: Vec<u8> = (0..=255).cycle().take(1000).collect();
        // The last one fills its frame exactly.
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
