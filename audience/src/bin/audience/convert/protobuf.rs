//! Writes messages of Protocol Buffers: the few kinds of fields that Perfetto's packets have.

/// Kinds of fields on the wire.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH: u64 = 2;
/// Most bytes of a varint.
const VARINT_MAX: usize = 10;

/// A message that grows field by field.
#[derive(Debug, Default)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    /// Returns the bytes so far.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Forgets all fields, and keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Adds an unsigned number, or a bool.
    pub(crate) fn number(&mut self, field: u32, value: u64) -> &mut Message {
        self.key(field, VARINT);
        self.varint(value);
        self
    }

    /// Adds a signed number, as `int64` and `int32` have it.
    pub(crate) fn signed(&mut self, field: u32, value: i64) -> &mut Message {
        self.number(field, value.cast_unsigned())
    }

    /// Adds a floating-point number.
    pub(crate) fn double(&mut self, field: u32, value: f64) -> &mut Message {
        self.key(field, FIXED64);
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// Adds a text. What is no UTF-8 in it is replaced, since a reader refuses it.
    pub(crate) fn text(&mut self, field: u32, value: &[u8]) -> &mut Message {
        let value = String::from_utf8_lossy(value);
        self.key(field, LENGTH);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value.as_bytes());
        self
    }

    /// Adds bytes as a text of hexadecimal digits.
    pub(crate) fn hex(&mut self, field: u32, value: &[u8]) -> &mut Message {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        self.key(field, LENGTH);
        self.varint(2 * value.len() as u64);
        let digit = |four: u8| DIGITS[usize::from(four)];
        self.0.extend(value.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]));
        self
    }

    /// Adds a message, whose fields `fill` adds.
    pub(crate) fn message(&mut self, field: u32, fill: impl FnOnce(&mut Message)) -> &mut Message {
        self.key(field, LENGTH);
        let start = self.0.len();
        fill(self);
        // The length stands in front, and is known behind.
        let end = self.0.len();
        self.varint((end - start) as u64);
        let mut length = [0; VARINT_MAX];
        let length = &mut length[..self.0.len() - end];
        length.copy_from_slice(&self.0[end..]);
        self.0.copy_within(start..end, start + length.len());
        self.0[start..start + length.len()].copy_from_slice(length);
        self
    }

    fn key(&mut self, field: u32, kind: u64) {
        self.varint(u64::from(field) << 3 | kind);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(fill: impl FnOnce(&mut Message)) -> Vec<u8> {
        let mut message = Message::default();
        fill(&mut message);
        message.0
    }

    /// The examples of the format's documentation, and what follows from them.
    #[test]
    fn fields_are_encoded_as_documented() {
        let number = |message: &mut Message| {
            message.number(1, 150);
        };
        assert_eq!(bytes(number), [0x08, 0x96, 0x01]);
        let inner = bytes(|message| {
            message.message(3, number);
        });
        assert_eq!(inner, [0x1a, 0x03, 0x08, 0x96, 0x01]);
        let others = bytes(|message| {
            message.text(2, b"testing").text(1, b"a\xff").hex(1, b"\x0f\xa0").double(1, 1.0).signed(1, -2);
        });
        let mut expected = b"\x12\x07testing".to_vec();
        expected.extend_from_slice("\x0a\x04a\u{fffd}\x0a\x040fa0\x09".as_bytes());
        expected.extend([0, 0, 0, 0, 0, 0, 0xf0, 0x3f, 0x08, 0xfe]);
        expected.extend([0xff; 8]);
        expected.push(1);
        assert_eq!(others, expected);
    }

    #[test]
    fn long_messages_have_long_lengths() {
        let text = [b'x'; 300];
        let outer = bytes(|message| {
            message.message(1, |inner| {
                inner.message(2, |inner| {
                    inner.text(3, &text);
                });
            });
            message.number(4, 1);
        });
        let head = [0x0a, 0xb2, 0x02, 0x12, 0xaf, 0x02, 0x1a, 0xac, 0x02];
        assert_eq!(outer[..head.len()], head);
        assert_eq!(outer[head.len()..], [&text[..], &[0x20, 1]].concat());
    }
}
