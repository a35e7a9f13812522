//! Texts of other processes, so that a terminal shows them and does nothing else.

use crate::trace::text::digits::push_hex;

/// Returns whether all bytes are letters, digits, signs or spaces of ASCII.
#[inline]
fn is_plain(bytes: &[u8]) -> bool {
    // Without a branch for each byte, so that the compiler takes vectors.
    let odd = |bytes: &[u8]| bytes.iter().fold(false, |odd, byte| odd | (byte.wrapping_sub(0x20) > 0x5e));
    let (blocks, rest) = bytes.as_chunks::<16>();
    !blocks.iter().any(|block| odd(block)) && !odd(rest)
}

/// Returns whether a string of JSON can have all bytes as they are.
#[inline]
pub(in crate::trace) fn is_plain_json(bytes: &[u8]) -> bool {
    let is_odd = |byte: &u8| (byte.wrapping_sub(0x20) > 0x5e) | (*byte == b'"') | (*byte == b'\\');
    let odd = |bytes: &[u8]| bytes.iter().fold(false, |odd, byte| odd | is_odd(byte));
    let (blocks, rest) = bytes.as_chunks::<16>();
    !blocks.iter().any(|block| odd(block)) && !odd(rest)
}

/// Returns whether a character can change how others are shown: controls, and what turns the direction of lines.
pub(in crate::trace) fn is_control(c: char) -> bool {
    let turns = ['\u{61c}', '\u{200e}', '\u{200f}', '\u{2028}', '\u{2029}', '\u{feff}'];
    c.is_control()
        || turns.contains(&c)
        || ('\u{202a}'..='\u{202e}').contains(&c)
        || ('\u{2066}'..='\u{2069}').contains(&c)
}

/// Appends a text; what is no visible UTF-8 as `\n`, `\x1b`, `\u{85}`.
#[inline]
pub(in crate::trace) fn escape(bytes: &[u8], out: &mut Vec<u8>) {
    if is_plain(bytes) {
        out.extend_from_slice(bytes);
    } else {
        escape_odd(bytes, out);
    }
}

#[cold]
fn escape_odd(bytes: &[u8], out: &mut Vec<u8>) {
    for chunk in bytes.utf8_chunks() {
        let valid = chunk.valid();
        let mut plain = 0;
        for (at, c) in valid.char_indices().filter(|(_, c)| is_control(*c)) {
            out.extend_from_slice(&valid.as_bytes()[plain..at]);
            plain = at + c.len_utf8();
            match c {
                '\n' => out.extend_from_slice(b"\\n"),
                '\r' => out.extend_from_slice(b"\\r"),
                '\t' => out.extend_from_slice(b"\\t"),
                c if c.is_ascii() => escape_byte(c as u8, out),
                c => {
                    out.extend_from_slice(b"\\u{");
                    push_code(c, out);
                    out.push(b'}');
                }
            }
        }
        out.extend_from_slice(&valid.as_bytes()[plain..]);
        chunk.invalid().iter().for_each(|byte| escape_byte(*byte, out));
    }
}

fn escape_byte(byte: u8, out: &mut Vec<u8>) {
    out.extend_from_slice(b"\\x");
    push_hex(&[byte], out);
}

/// Appends a character's number, without zeroes in front.
fn push_code(c: char, out: &mut Vec<u8>) {
    let mut digits = Vec::with_capacity(8);
    push_hex(&u32::from(c).to_be_bytes(), &mut digits);
    let zeroes = digits.iter().take_while(|digit| **digit == b'0').count();
    out.extend_from_slice(&digits[zeroes..]);
}

/// Appends a value behind `key=`: in quotes, if its end could not be seen otherwise.
pub(in crate::trace) fn escape_value(bytes: &[u8], out: &mut Vec<u8>) {
    let is_word = |byte: &u8| byte.is_ascii_graphic() && !b"\"=\\".contains(byte);
    if !bytes.is_empty() && bytes.iter().all(is_word) {
        out.extend_from_slice(bytes);
        return;
    }
    out.push(b'"');
    for piece in bytes.split_inclusive(|byte| b"\"\\".contains(byte)) {
        match piece.split_last() {
            Some((last @ (b'"' | b'\\'), before)) => {
                escape(before, out);
                out.extend_from_slice(&[b'\\', *last]);
            }
            _ => escape(piece, out),
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn escaped(bytes: &[u8]) -> String {
        let mut out = Vec::new();
        escape(bytes, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn value(bytes: &[u8]) -> String {
        let mut out = Vec::new();
        escape_value(bytes, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_a_terminal_would_obey_is_visible() {
        assert_eq!(escaped(b"plain \\ text, 100%"), "plain \\ text, 100%");
        assert_eq!(escaped("é 漢 🦀".as_bytes()), "é 漢 🦀");
        assert_eq!(escaped(b"a\nb\tc\rd\0e\x1b[31m\x7f"), "a\\nb\\tc\\rd\\x00e\\x1b[31m\\x7f");
        assert_eq!(escaped("a\u{85}\u{202e}b".as_bytes()), "a\\u{85}\\u{202e}b");
        assert_eq!(escaped(b"\xff\xc3"), "\\xff\\xc3");
        assert_eq!(escaped(b"0123456789abcde\n0123456789abcdef"), "0123456789abcde\\n0123456789abcdef");
    }

    #[test]
    fn values_show_where_they_end() {
        let cases: [(&[u8], &str); 7] = [
            (b"a", "a"),
            (b"", "\"\""),
            (b"a b", "\"a b\""),
            (b"a=b", "\"a=b\""),
            (b"a\"b\\", "\"a\\\"b\\\\\""),
            (b"a\n", "\"a\\n\""),
            ("é".as_bytes(), "\"é\""),
        ];
        for (bytes, text) in cases {
            assert_eq!(value(bytes), text);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_one_visible_line(bytes: Vec<u8>, text: String) {
            for bytes in [&bytes, text.as_bytes()] {
                prop_assert!(!escaped(bytes).contains(is_control));
                let value = value(bytes);
                prop_assert!(!value.contains(is_control) && !value.is_empty());
            }
        }
    }
}
