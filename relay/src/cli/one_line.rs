//! Texts with names that others chose, as one line that a terminal can show.

use std::borrow::Cow;

/// Returns the text with its control characters escaped, so that it stays one line and moves no cursor.
pub fn one_line(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return text.into();
    }
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escaped).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(one_line("channel ä"), "channel ä");
        assert_eq!(one_line("a\nb\x1b[0m"), "a\\nb\\u{1b}[0m");
    }
}
