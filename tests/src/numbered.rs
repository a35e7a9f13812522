//! Messages that name their writer and their number, and show whether they are whole.

/// Shortest message, in bytes: the tag and the length.
pub const LEN_MIN: usize = 20;
/// The first bytes of every message.
const MAGIC: u32 = 0x2153_474d;

/// The writer of a message, and the message's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag {
    /// The process.
    pub producer: u32,
    /// Its thread.
    pub thread: u32,
    /// Number of the message among those of its thread.
    pub seq: u32,
}

/// Makes the message of a tag: `len` bytes, all determined by the tag and the length.
pub fn message(tag: Tag, len: usize) -> Vec<u8> {
    assert!(len >= LEN_MIN, "a message of {len} bytes has no place for its tag");
    let mut message = Vec::with_capacity(len + 8);
    for word in [MAGIC, tag.producer, tag.thread, tag.seq, u32::try_from(len).expect("a short message")] {
        message.extend_from_slice(&word.to_le_bytes());
    }
    let mut random =
        Random::new(u64::from(tag.seq) << 32 | u64::from(tag.producer) << 16 | u64::from(tag.thread));
    while message.len() < len {
        message.extend_from_slice(&random.next().to_le_bytes());
    }
    message.truncate(len);
    message
}

/// The tags of all messages in a stream, in order. Fails the test at the first wrong byte.
#[track_caller]
pub fn tags(stream: &[u8]) -> Vec<Tag> {
    let mut tags = Vec::new();
    let mut at = 0;
    while at < stream.len() {
        let rest = &stream[at..];
        let word = |n: usize| {
            let bytes = rest.get(4 * n..4 * n + 4).unwrap_or_else(|| panic!("a tag cut at byte {at}"));
            u32::from_le_bytes(bytes.try_into().expect("four bytes"))
        };
        assert_eq!(word(0), MAGIC, "no message begins at byte {at}, after {:?}", tags.last());
        let tag = Tag { producer: word(1), thread: word(2), seq: word(3) };
        let len = word(4) as usize;
        assert!(len <= rest.len(), "{tag:?} of {len} bytes is cut after {}", rest.len());
        assert!(rest[..len] == message(tag, len), "{tag:?} of {len} bytes, at byte {at}, is damaged");
        tags.push(tag);
        at += len;
    }
    tags
}

/// Random numbers, the same in every run (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A different sequence for every seed.
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// The next number.
    #[allow(clippy::should_implement_trait)] // it never ends
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}
