//! Payloads of records, composed for one write.
//!
//! Those of up to 1 KiB are composed on the stack, longer ones on the heap. A text that is longer than a record is cut
//! at the end of a character, and gets a mark.

use relay::trace::definition::Value;
use relay::trace::level::Level;

/// Longest payload that is composed on the stack, in bytes.
pub(crate) const ON_STACK_MAX: usize = 1024;
/// Stands for what was cut off.
const MARK: &[u8] = "…".as_bytes();
/// Bytes of a `log` payload besides its texts.
const LOG_FIXED: usize = 4;
/// Longest target of a `log` record, in bytes.
const TARGET_MAX: usize = u8::MAX as usize;

/// The parts of a payload, which lie behind each other.
#[derive(Clone, Copy)]
pub(crate) struct Parts<'a, const N: usize>(pub(crate) [&'a [u8]; N]);

impl<const N: usize> Parts<'_, N> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.0.iter().map(|part| part.len()).sum()
    }

    /// Calls `act` with the payload.
    #[inline(always)]
    pub(crate) fn with<T>(&self, act: impl FnOnce(&[u8]) -> T) -> T {
        // Filling more than is needed with zeroes would cost more than the rest.
        match self.len() {
            0..=96 => self.on_stack::<96, T>(act),
            97..=256 => self.on_stack::<256, T>(act),
            257..=ON_STACK_MAX => self.on_stack::<ON_STACK_MAX, T>(act),
            _ => act(&self.0.concat()),
        }
    }

    #[inline(always)]
    fn on_stack<const ROOM: usize, T>(&self, act: impl FnOnce(&[u8]) -> T) -> T {
        let mut room = [0; ROOM];
        let mut at = 0;
        for part in self.0 {
            room[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        act(&room[..at])
    }
}

/// Calls `act` with the payload of a `log` record, whose text is cut if it is longer than `max` bytes allow.
#[inline(always)]
pub(crate) fn with_log<T>(
    level: Level,
    target: &[u8],
    text: &[u8],
    max: usize,
    act: impl FnOnce(&[u8]) -> T,
) -> T {
    if target.len() > TARGET_MAX || LOG_FIXED + target.len() + text.len() > max {
        return with_long_log(level, target, text, max, act);
    }
    let head = [level.number(), target.len() as u8];
    let len = (text.len() as u16).to_le_bytes();
    Parts([&head, target, &len, text]).with(act)
}

#[cold]
#[inline(never)]
fn with_long_log<T>(level: Level, target: &[u8], text: &[u8], max: usize, act: impl FnOnce(&[u8]) -> T) -> T {
    let room = max.saturating_sub(LOG_FIXED);
    // In a channel of tiny sub-buffers the text has half of the room.
    let target = &cut(target, TARGET_MAX.min(room / 2));
    let text = cut(text, room - target.len());
    let head = [level.number(), target.len() as u8];
    let len = (text.len() as u16).to_le_bytes();
    act(&[&head[..], target, &len, &text].concat())
}

/// Returns the text, with a mark at its end if it has to be cut to `max` bytes.
#[cold]
pub(crate) fn cut(text: &[u8], max: usize) -> Vec<u8> {
    if text.len() <= max {
        return text.to_vec();
    }
    let end = max.saturating_sub(MARK.len());
    // At the start of a character, which has at most 4 bytes, if it is UTF-8.
    let is_start = |at: &usize| text[*at] & 0xc0 != 0x80;
    let end = (end.saturating_sub(3)..=end).rev().find(is_start).unwrap_or(end);
    if MARK.len() <= max { [&text[..end], MARK].concat() } else { Vec::new() }
}

/// Calls `act` with the payload of an event's values. `Err`: its length, which is over `max`.
#[inline(always)]
pub(crate) fn with_values<T>(
    values: &[Value<'_>],
    max: usize,
    act: impl FnOnce(&[u8]) -> T,
) -> Result<T, usize> {
    let len = values.iter().map(Value::encoded_len).sum();
    if len > max {
        return Err(len);
    }
    Ok(match len {
        0..=96 => act(put_values(values, &mut [0; 96])),
        97..=ON_STACK_MAX => act(put_values(values, &mut [0; ON_STACK_MAX])),
        _ => act(put_values(values, &mut vec![0; len])),
    })
}

/// Puts values behind each other. `room` has room for all, and lengths fit.
#[inline(always)]
fn put_values<'a>(values: &[Value<'_>], room: &'a mut [u8]) -> &'a [u8] {
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        room[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    for value in values {
        match *value {
            Value::U64(number) => put(&number.to_le_bytes()),
            Value::I64(number) => put(&number.to_le_bytes()),
            Value::F64(number) => put(&number.to_le_bytes()),
            Value::Bool(is) => put(&[u8::from(is)]),
            Value::Str(bytes) | Value::Bytes(bytes) => {
                put(&(bytes.len() as u16).to_le_bytes());
                put(bytes);
            }
        }
    }
    &room[..at]
}

#[cfg(test)]
mod tests {
    use relay::trace::event::{Event, id};

    use super::*;

    fn log(target: &str, text: &str, max: usize) -> Vec<u8> {
        with_log(Level::Warn, target.as_bytes(), text.as_bytes(), max, <[u8]>::to_vec)
    }

    #[test]
    fn log_of_any_length_is_what_the_format_says() {
        for len in [0, 1, 86, 87, 88, 250, 1000, 1015, 1016, 2000, 65_526] {
            let text = "x".repeat(len);
            let payload = log("a::b", &text, 65_535);
            let expected = Event::Log { level: Some(Level::Warn), target: b"a::b", text: text.as_bytes() };
            assert_eq!(Event::decode(id::LOG, &payload), expected, "{len} bytes");
        }
    }

    #[test]
    fn long_text_is_cut_at_a_character_and_marked() {
        for max in 48..80 {
            let payload = log("target", &"aä€😀".repeat(20), max);
            let Event::Log { target: b"target", text, .. } = Event::decode(id::LOG, &payload) else {
                panic!("{payload:?}")
            };
            let text = str::from_utf8(text).unwrap();
            let kept = text.strip_suffix('…').unwrap();
            assert!("aä€😀".repeat(20).starts_with(kept), "{text}");
            assert!(payload.len() <= max && payload.len() + 4 > max, "{} of {max}", payload.len());
            let text = cut("€".repeat(100).as_bytes(), max);
            let text = str::from_utf8(&text).unwrap();
            assert!(text.ends_with("€…") && text.len() <= max && text.len() + 3 > max, "{text}");
        }
        // Bytes that are no text are cut where they must be.
        assert_eq!(cut(&[0x80; 100], 50), [&[0x80; 47][..], "…".as_bytes()].concat());
        // A target without measure, in the smallest sub-buffer and in a large one.
        for max in [48, 65_535] {
            let payload = log(&"t".repeat(1000), &"x".repeat(100_000), max);
            let Event::Log { target, text, .. } = Event::decode(id::LOG, &payload) else {
                panic!("{payload:?}")
            };
            assert!(
                target.ends_with("…".as_bytes()) && text.ends_with("…".as_bytes()) && payload.len() == max
            );
            assert!(target.len() <= 255 && text.len() > max / 3);
        }
    }

    #[test]
    fn values_make_the_payload_of_their_definition() {
        use relay::trace::definition::{Definition, Field, FieldType};
        let field = |kind: FieldType| Field { name: kind.name().into(), kind };
        let definition = Definition {
            name: "all".into(),
            level: None,
            target: String::new(),
            file: String::new(),
            line: 0,
            fields: FieldType::ALL.map(field).into(),
        };
        for len in [0, 10, 100, 2000] {
            let text = "t".repeat(len);
            let values = [
                Value::U64(u64::MAX),
                Value::I64(-1),
                Value::F64(0.5),
                Value::Bool(true),
                Value::Str(text.as_bytes()),
                Value::Bytes(&[0, 255]),
            ];
            let mut expected = Vec::new();
            definition.encode(&values, &mut expected).unwrap();
            assert_eq!(with_values(&values, 65_535, <[u8]>::to_vec), Ok(expected.clone()));
            assert_eq!(with_values(&values, expected.len() - 1, <[u8]>::to_vec), Err(expected.len()));
        }
    }
}
