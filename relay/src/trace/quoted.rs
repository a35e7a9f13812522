//! Names in quotes, in CTF text.

use std::fmt::Write;

/// Appends a name in quotes, so that it stays in its line, its string and its comment.
pub(super) fn quote(name: &str, out: &mut String) {
    out.push('"');
    let mut before = ' ';
    for c in name.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            // The end of a comment.
            '/' if before == '*' => out.push_str("\\057"),
            c if c.is_ascii_control() => {
                let _ = write!(out, "\\{:03o}", u32::from(c));
            }
            c => out.push(c),
        }
        before = c;
    }
    out.push('"');
}

/// Takes a name in quotes off the front, as [`quote`] writes it.
pub(super) fn unquote<'a>(text: &mut &'a str) -> Option<String> {
    let mut name = String::new();
    let mut rest = text.strip_prefix('"')?;
    loop {
        let special = rest.find(['"', '\\'])?;
        let (plain, behind): (&'a str, &'a str) = rest.split_at(special);
        name.push_str(plain);
        if let Some(behind) = behind.strip_prefix('"') {
            *text = behind;
            return Some(name);
        }
        let escaped = &behind[1..];
        if let Some(c) = escaped.chars().next().filter(|c| ['"', '\\'].contains(c)) {
            name.push(c);
            rest = &escaped[1..];
        } else {
            let code = u8::from_str_radix(escaped.get(..3)?, 8).ok()?;
            name.push(char::from(code));
            rest = &escaped[3..];
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_cannot_be_quoted_so_is_refused() {
        for wrong in ["", "a", "\"", "\"a", "\"\\", "\"\\0", "\"\\00\"", "\"\\é00\"", "\"\\777\""] {
            assert_eq!(unquote(&mut &wrong[..]), None, "{wrong:?}");
        }
        let mut text = "\"a\\\"\\\\\\012\" rest";
        assert_eq!(unquote(&mut text).as_deref(), Some("a\"\\\n"));
        assert_eq!(text, " rest");
    }

    proptest! {
        #[test]
        fn any_name_is_read_back(name in "\\PC*|[\"\\\\*/\n0-9]*|[\\x00-\\x7f]*", behind: String) {
            let mut text = String::new();
            quote(&name, &mut text);
            prop_assert!(!text.contains("*/") && !text.contains(char::is_control));
            text.push_str(&behind);
            let mut rest = &text[..];
            prop_assert_eq!(unquote(&mut rest), Some(name));
            prop_assert_eq!(rest, behind);
        }

        #[test]
        fn any_text_is_read(text: String) {
            unquote(&mut &text[..]);
            unquote(&mut &format!("\"\\{text}")[..]);
        }
    }
}
