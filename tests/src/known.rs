//! Messages for stress, of which every byte is known.
//!
//! Their first bytes tell them apart, and a message that was cut is never taken for a whole one.
//!
//! ```text
//! numbered  0xf5 "MSG" | writer u32 | seq u32 | length u32 | check u64 | body       24 bytes and more
//! short     length times the byte 0xc0 + length                                     1 to 23 bytes
//! ```
//!
//! The check covers the words before it, and selects the piece of a fixed pattern that is the body. Bytes of check and
//! body are below 0x80, so no beginning of a message looks like the rest of a cut one.

use crate::numbered::Random;

/// Shortest numbered message, in bytes. Shorter messages have no room for their writer.
pub const NUMBERED_MIN: usize = 24;
/// Longest message, in bytes.
pub const LEN_MAX: usize = 1 << 20;
/// Number of positions at which pieces of the pattern begin.
const STARTS: usize = 1 << 16;
const MAGIC: [u8; 4] = [0xf5, b'M', b'S', b'G'];
const SHORT: u8 = 0xc0;
const BELOW_0X80: u64 = 0x7f7f_7f7f_7f7f_7f7f;

/// A message in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// A message that names its writer.
    Numbered {
        /// The writer.
        writer: u32,
        /// Number of the message among the writer's.
        seq: u32,
        /// Its length in bytes.
        len: usize,
    },
    /// A message that is too short for that.
    Short {
        /// Its length in bytes.
        len: usize,
    },
}

/// The result of a look at the start of some bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// A whole message.
    Whole(Message),
    /// Bytes that may be the beginning of a message.
    Part,
    /// No message; `right` bytes could be the beginning of a message.
    Wrong {
        /// Number of bytes that are right, or cannot be checked.
        right: usize,
    },
}

/// The bytes that bodies are pieces of.
#[derive(Debug)]
pub struct Pattern(Vec<u8>);

impl Default for Pattern {
    fn default() -> Pattern {
        let mut random = Random::new(0);
        let mut bytes = Vec::with_capacity(LEN_MAX + STARTS);
        while bytes.len() < LEN_MAX + STARTS {
            bytes.extend_from_slice(&(random.next() & BELOW_0X80).to_le_bytes());
        }
        Pattern(bytes)
    }
}

impl Pattern {
    /// Fills `message` with a message; a short one if it is too short to be numbered. Can run in a signal handler.
    pub fn put(&self, message: &mut [u8], writer: u32, seq: u32) {
        let len = message.len();
        let Some((head, body)) = message.split_at_mut_checked(NUMBERED_MIN) else {
            return message.fill(SHORT + len as u8);
        };
        let check = check(writer, seq, len as u32);
        head[..4].copy_from_slice(&MAGIC);
        head[4..8].copy_from_slice(&writer.to_le_bytes());
        head[8..12].copy_from_slice(&seq.to_le_bytes());
        head[12..16].copy_from_slice(&(len as u32).to_le_bytes());
        head[16..].copy_from_slice(&check.to_le_bytes());
        body.copy_from_slice(self.body(check, body.len()));
    }

    /// Finds the message at the start of `bytes`, which are not empty.
    pub fn find(&self, bytes: &[u8]) -> Found {
        let short = usize::from(bytes[0].wrapping_sub(SHORT));
        if (1..NUMBERED_MIN).contains(&short) {
            let right = bytes.iter().take(short).take_while(|byte| **byte == bytes[0]).count();
            return match right {
                right if right == short => Found::Whole(Message::Short { len: short }),
                right if right == bytes.len() => Found::Part,
                right => Found::Wrong { right },
            };
        }
        let right = bytes.iter().zip(&MAGIC).take_while(|(byte, magic)| byte == magic).count();
        if right < MAGIC.len() {
            return if right == bytes.len() { Found::Part } else { Found::Wrong { right } };
        }
        let Some((head, rest)) = bytes.split_at_checked(NUMBERED_MIN) else { return Found::Part };
        let word = |n: usize| u32::from_le_bytes(head[4 * n..4 * n + 4].try_into().expect("four bytes"));
        let (writer, seq, len) = (word(1), word(2), word(3));
        let check = check(writer, seq, len);
        let len = len as usize;
        if head[16..] != check.to_le_bytes() || !(NUMBERED_MIN..=LEN_MAX).contains(&len) {
            return Found::Wrong { right: NUMBERED_MIN - 1 };
        }
        let there = &rest[..rest.len().min(len - NUMBERED_MIN)];
        let expected = self.body(check, there.len());
        if there != expected {
            let right = there.iter().zip(expected).take_while(|(byte, right)| byte == right).count();
            return Found::Wrong { right: NUMBERED_MIN + right };
        }
        if bytes.len() < len { Found::Part } else { Found::Whole(Message::Numbered { writer, seq, len }) }
    }

    /// The first byte of every numbered message, and of no short one.
    pub fn first_of_numbered(&self) -> u8 {
        MAGIC[0]
    }

    fn body(&self, check: u64, len: usize) -> &[u8] {
        let start = (check >> 8) as usize % STARTS;
        &self.0[start..start + len]
    }
}

impl Message {
    /// Its length in bytes.
    pub fn len(&self) -> usize {
        match self {
            Message::Numbered { len, .. } | Message::Short { len } => *len,
        }
    }

    /// Always false: a message is never empty.
    pub fn is_empty(&self) -> bool {
        false
    }
}

fn check(writer: u32, seq: u32, len: u32) -> u64 {
    let seed = u64::from(writer) << 40 ^ u64::from(len) << 24 ^ u64::from(seq);
    Random::new(seed).next() & BELOW_0X80
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_messages_are_found_and_cut_ones_are_not() {
        let pattern = Pattern::default();
        for len in (1..60).chain([1000]) {
            let mut message = vec![0; len];
            pattern.put(&mut message, 7, 8);
            let Found::Whole(found) = pattern.find(&message) else { panic!("{len} bytes") };
            assert_eq!(found.len(), len);
            for cut in 1..len {
                assert_eq!(pattern.find(&message[..cut]), Found::Part, "{cut} of {len}");
                let mut next = vec![0; if len == 30 { 20 } else { 30 }];
                pattern.put(&mut next, 9, 10);
                let joined = [&message[..cut], &next, &next].concat();
                // The joined bytes are short, so they may be too few to decide.
                assert!(!matches!(pattern.find(&joined), Found::Whole(_)), "{cut} of {len}");
            }
        }
    }
}
