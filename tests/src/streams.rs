//! Divides the bytes that a reader gets into [messages](crate::known), and checks them.
//!
//! All messages must be whole, and each writer's messages must be in order.

use std::collections::{BTreeMap, VecDeque};

use crate::known::{Found, Message, NUMBERED_MIN, Pattern};

/// The stream of one buffer that was read so far.
#[derive(Debug)]
pub struct Received<'a> {
    pattern: &'a Pattern,
    /// The beginning of a message that is not whole yet.
    rest: Vec<u8>,
    /// Stream position of `rest`.
    at: u64,
    /// With resets: positions at which reads ended.
    ///
    /// Any of these reads may have been the last before a reset.
    ends: Option<VecDeque<u64>>,
    /// Messages of at least this length may come in any order.
    any_order_from: usize,
    /// Messages whose end a reset has discarded.
    pub cuts: u64,
    /// Messages, of any length.
    pub messages: u64,
    /// Messages that are too short to be numbered, by length.
    pub short: [u64; NUMBERED_MIN],
    /// The numbered messages of each writer.
    pub writers: BTreeMap<u32, Numbers>,
}

/// Numbers of received messages, all different.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    bits: Vec<u64>,
    /// One more than the highest number.
    end: u64,
    /// How many numbers there are.
    count: u64,
}

impl<'a> Received<'a> {
    /// A stream of which nothing was read yet. With `resets`, a message may be cut where a read ended.
    pub fn new(pattern: &'a Pattern, resets: bool) -> Received<'a> {
        Received {
            pattern,
            rest: Vec::new(),
            at: 0,
            ends: resets.then(VecDeque::new),
            any_order_from: usize::MAX,
            cuts: 0,
            messages: 0,
            short: [0; NUMBERED_MIN],
            writers: BTreeMap::new(),
        }
    }

    /// The same stream, where a writer's messages of at least `len` bytes may come in any order.
    pub fn in_any_order_from(self, len: usize) -> Received<'a> {
        Received { any_order_from: len, ..self }
    }

    /// Takes the bytes that a read returned.
    #[track_caller]
    pub fn take(&mut self, bytes: &[u8]) {
        let mut rest = std::mem::take(&mut self.rest);
        rest.extend_from_slice(bytes);
        if let Some(ends) = &mut self.ends {
            ends.push_back(self.at + rest.len() as u64);
        }
        let mut begin = 0;
        while begin < rest.len() {
            begin += match self.pattern.find(&rest[begin..]) {
                Found::Whole(message) => self.count(message),
                Found::Part => break,
                Found::Wrong { right } => {
                    let at = self.at + begin as u64;
                    self.cut(at, right, rest[begin]).unwrap_or_else(|| {
                        let text = &rest[begin..rest.len().min(begin + right + 32)];
                        panic!("no message at byte {at}, only {right} bytes are right: {text:02x?}")
                    })
                }
            };
        }
        rest.drain(..begin);
        (self.rest, self.at) = (rest, self.at + begin as u64);
        let at = self.at;
        if let Some(ends) = &mut self.ends {
            while ends.front().is_some_and(|end| *end + (NUMBERED_MIN as u64) < at) {
                ends.pop_front();
            }
        }
    }

    /// Bytes taken.
    pub fn bytes(&self) -> u64 {
        self.at + self.rest.len() as u64
    }

    /// Ends the stream: no more bytes will come.
    #[track_caller]
    pub fn finish(&mut self) {
        let is_cut = !self.rest.is_empty();
        assert!(!is_cut || self.ends.is_some(), "the last message is cut");
        self.cuts += u64::from(is_cut);
    }

    fn count(&mut self, message: Message) -> usize {
        self.messages += 1;
        match message {
            Message::Short { len } => self.short[len] += 1,
            Message::Numbered { writer, seq, len } => {
                let numbers = self.writers.entry(writer).or_default();
                let seq = u64::from(seq);
                let in_order = len >= self.any_order_from || numbers.end <= seq;
                assert!(in_order, "writer {writer}: {seq} comes after {}", numbers.end - 1);
                numbers.add(seq);
            }
        }
        message.len()
    }

    /// Length of the part that a reset has left of the message at `at`, if a reset can have cut it.
    fn cut(&mut self, at: u64, right: usize, first: u8) -> Option<usize> {
        let ends = self.ends.as_ref()?;
        let to = at + right as u64;
        let len = if first == self.pattern.first_of_numbered() {
            let end = match right < NUMBERED_MIN {
                // It cannot be known which bytes of a head are right.
                true => ends.iter().find(|end| **end > at && **end <= to),
                false => ends.iter().find(|end| **end == to),
            };
            (end? - at) as usize
        } else {
            // Short messages of one length look alike, so the cut may be in any of the last ones.
            let near = |end: &&u64| **end + NUMBERED_MIN as u64 > at && **end <= to;
            ends.iter().find(near).map(|_| right)?
        };
        self.cuts += 1;
        (len > 0).then_some(len)
    }
}

impl Numbers {
    /// How many numbers there are.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// One more than the highest number.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Adds another set of numbers, which must all be different.
    #[track_caller]
    pub fn merge(&mut self, other: &Numbers) {
        self.bits.resize(self.bits.len().max(other.bits.len()), 0);
        for (bits, others) in self.bits.iter_mut().zip(&other.bits) {
            assert_eq!(*bits & others, 0, "a message was read twice");
            *bits |= others;
        }
        self.end = self.end.max(other.end);
        self.count += other.count;
    }

    fn add(&mut self, number: u64) {
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if self.bits.len() <= word {
            self.bits.resize(word + 1, 0);
        }
        assert_eq!(self.bits[word] & bit, 0, "message {number} was read twice");
        self.bits[word] |= bit;
        self.end = self.end.max(number + 1);
        self.count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_cut_by_a_reset_are_counted_and_never_misread() {
        let pattern = Pattern::default();
        let message = |len, seq| {
            let mut message = vec![0; len];
            pattern.put(&mut message, 1, seq);
            message
        };
        for first in [2, 5, 23, 24, 40, 300] {
            for next in [1, 5, 23, 40] {
                for cut in 1..first {
                    let mut received = Received::new(&pattern, true);
                    received.take(&message(first, 0)[..cut]);
                    for seq in 1..30 {
                        received.take(&message(next, seq));
                    }
                    received.take(&message(100, 30));
                    // Parts of cut short messages can form a whole one.
                    assert!(received.messages == 30 || first == next, "{first} {next} {cut}");
                    assert_eq!(received.cuts, 1, "{first} {next} {cut}");
                    assert_eq!(received.writers[&1].end(), 31);
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "no message at byte")]
    fn cut_message_without_resets_fails() {
        let pattern = Pattern::default();
        let mut message = vec![0; 50];
        pattern.put(&mut message, 1, 0);
        let mut received = Received::new(&pattern, false);
        received.take(&message[..30]);
        received.take(&message);
    }
}
