//! Texts in a buffer of fixed size: composed without memory, and cut with a mark where the room ends.

use std::fmt::{self, Write};

/// Stands for what was cut off.
const MARK: &str = "…";
/// Longest value that is put in quotes without memory, in bytes: the payload of a message that takes none.
const QUOTED_ON_STACK_MAX: usize = 256;

/// A text that grows in a buffer.
#[derive(Debug)]
pub(crate) struct Cut<'a> {
    room: &'a mut [u8],
    len: usize,
    is_cut: bool,
}

impl<'a> Cut<'a> {
    /// Returns an empty text with this room.
    pub(crate) fn new(room: &'a mut [u8]) -> Cut<'a> {
        Cut { room, len: 0, is_cut: false }
    }

    /// Returns whether the text was longer than the room.
    pub(crate) fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// Ends the text, with a mark if it is cut, and returns its length in bytes.
    #[inline(always)]
    pub(crate) fn finish(self) -> usize {
        if self.is_cut { marked(self.room, self.len) } else { self.len }
    }

    /// Appends a text, or what has room of it.
    #[inline(always)]
    pub(crate) fn push(&mut self, text: &str) -> fmt::Result {
        match self.room.get_mut(self.len..self.len + text.len()) {
            Some(room) if !self.is_cut => {
                room.copy_from_slice(text.as_bytes());
                self.len += text.len();
                Ok(())
            }
            _ => self.push_some(text),
        }
    }

    #[cold]
    fn push_some(&mut self, text: &str) -> fmt::Result {
        if !self.is_cut {
            self.is_cut = true;
            let end = text.floor_char_boundary(self.room.len() - self.len);
            self.room[self.len..self.len + end].copy_from_slice(&text.as_bytes()[..end]);
            self.len += end;
        }
        // Ends the formatting of a value that may be long.
        Err(fmt::Error)
    }

    /// Appends ` key=value`, without a space at the begin of the text. A value is in quotes if its end could not be
    /// seen otherwise.
    pub(crate) fn pair(&mut self, key: &str, value: fmt::Arguments<'_>) {
        // An error says that the text is cut, or comes from the value; what it has written stays.
        let _ = if self.len == 0 { Ok(()) } else { self.push(" ") };
        self.word(format_args!("{key}"));
        let _ = self.push("=");
        self.word(value);
    }

    /// Appends a value, in quotes if it has to be.
    fn word(&mut self, value: fmt::Arguments<'_>) {
        let start = self.len;
        let _ = self.write_fmt(value);
        let written = &self.room[start..self.len];
        let is_plain = |byte: &u8| byte.is_ascii_graphic() && !b"\"'=\\".contains(byte);
        if written.is_empty() && !self.is_cut || !written.iter().all(is_plain) {
            self.quote(start);
        }
    }

    /// Puts what begins at `start` in quotes.
    #[cold]
    fn quote(&mut self, start: usize) {
        let written = &self.room[start..self.len];
        // A message whose payload is short takes no memory.
        let (mut on_stack, on_heap);
        let copy: &[u8] = if written.len() <= QUOTED_ON_STACK_MAX {
            on_stack = [0; QUOTED_ON_STACK_MAX];
            on_stack[..written.len()].copy_from_slice(written);
            &on_stack[..written.len()]
        } else {
            on_heap = written.to_vec();
            &on_heap
        };
        let text = String::from_utf8_lossy(copy);
        let was_cut = std::mem::take(&mut self.is_cut);
        self.len = start;
        let _ = write!(self, "{text:?}");
        self.is_cut |= was_cut;
    }
}

impl Write for Cut<'_> {
    #[inline(always)]
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text)
    }
}

/// Puts the mark behind a text that fills its room, and returns the length of both.
#[cold]
fn marked(room: &mut [u8], len: usize) -> usize {
    let Some(most) = room.len().checked_sub(MARK.len()) else { return 0 };
    let mut end = len.min(most);
    // A character of UTF-8 has at most three bytes behind its first one.
    while end < len && end > 0 && room[end] & 0xc0 == 0x80 {
        end -= 1;
    }
    room[end..end + MARK.len()].copy_from_slice(MARK.as_bytes());
    end + MARK.len()
}

/// Returns a text without NUL, cut to `max` bytes, and `_` for an empty one: what a definition takes as a name.
pub(crate) fn name(text: &str, max: usize) -> String {
    let text = text.replace('\0', "\u{fffd}");
    match text.len() {
        0 => "_".to_owned(),
        len if len <= max => text,
        _ => text[..text.floor_char_boundary(max - MARK.len())].to_owned() + MARK,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(len: usize, write: impl FnOnce(&mut Cut<'_>)) -> String {
        let mut room = vec![0; len];
        let mut cut = Cut::new(&mut room);
        write(&mut cut);
        let len = cut.finish();
        String::from_utf8(room[..len].to_vec()).unwrap()
    }

    fn push(cut: &mut Cut<'_>, text: &str) {
        assert_eq!(cut.push(text).is_err(), cut.is_cut());
    }

    #[test]
    fn text_is_cut_at_a_character_and_marked() {
        let text = "aä€😀".repeat(10);
        for len in 0..110 {
            let got = cut(len, |cut| text.chars().for_each(|c| push(cut, c.encode_utf8(&mut [0; 4]))));
            let whole = cut(len, |cut| push(cut, &text));
            for got in [&got, &whole] {
                let kept = got.strip_suffix(MARK).unwrap_or(got);
                assert!(text.starts_with(kept) && got.len() <= len, "{got} in {len}");
                assert_eq!(got.ends_with(MARK), len < text.len() && len >= MARK.len(), "{got} in {len}");
            }
        }
    }

    #[test]
    fn values_whose_end_is_not_clear_are_in_quotes() {
        let all = cut(200, |cut| {
            cut.pair("rows", format_args!("{}", 3));
            cut.pair("text", format_args!("a b"));
            cut.pair("empty", format_args!(""));
            cut.pair("k=1", format_args!("\"\n"));
        });
        assert_eq!(all, r#"rows=3 text="a b" empty="" "k=1"="\"\n""#);
        assert_eq!(cut(12, |cut| cut.pair("key", format_args!("a value that is long"))), "key=\"a va…");
        assert_eq!(cut(12, |cut| cut.pair("key", format_args!("0123456789"))), "key=01234…");
    }

    #[test]
    fn names_are_what_a_definition_takes() {
        assert_eq!(name("", 200), "_");
        assert_eq!(name("a\0b", 200), "a\u{fffd}b");
        let long = name(&"ä".repeat(200), 200);
        assert!(long.ends_with(MARK) && long.len() <= 200 && long.len() > 195);
    }
}
