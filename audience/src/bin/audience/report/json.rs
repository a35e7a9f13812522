//! JSON that may stand in an HTML script element: it has no `<`, `>` or `&`.

use std::fmt::Write;

/// Appends a text as a JSON string.
///
/// A page's parser looks for `</script` and `<!--` before JSON is parsed. Without `<` there is neither.
pub(super) fn push_text(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            // The last two end a line in older JavaScript.
            '\0'..='\x1f' | '<' | '>' | '&' | '\'' | '\x7f' | '\u{2028}' | '\u{2029}' => {
                // Writing to a String does not fail.
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Appends `"name":`.
pub(super) fn push_name(name: &str, out: &mut String) {
    push_text(name, out);
    out.push(':');
}

/// Appends an array, each element by `push`.
pub(super) fn push_all<T>(
    all: impl IntoIterator<Item = T>,
    out: &mut String,
    mut push: impl FnMut(T, &mut String),
) {
    out.push('[');
    for (n, one) in all.into_iter().enumerate() {
        if n > 0 {
            out.push(',');
        }
        push(one, out);
    }
    out.push(']');
}

/// Appends `"name":[numbers]`.
pub(super) fn push_numbers(name: &str, numbers: impl IntoIterator<Item = i128>, out: &mut String) {
    push_name(name, out);
    push_all(numbers, out, |number, out| {
        let _ = write!(out, "{number}");
    });
}

/// Appends `"name":[texts]`.
pub(super) fn push_texts<'t>(name: &str, texts: impl IntoIterator<Item = &'t str>, out: &mut String) {
    push_name(name, out);
    push_all(texts, out, push_text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_ends_a_script() {
        let mut out = String::new();
        push_text("</script><!--<img src=x onerror='alert(1)'>&amp;\"\\\n\u{2028}é", &mut out);
        assert_eq!(
            out,
            "\"\\u003c/script\\u003e\\u003c!--\\u003cimg src=x onerror=\\u0027alert(1)\\u0027\\u003e\\u0026amp;\\\"\\\\\\u000a\\u2028é\""
        );
    }

    #[test]
    fn arrays_have_commas_between() {
        let mut out = String::new();
        push_numbers("n", [1, -2, 3], &mut out);
        push_texts("t", ["a", "b"], &mut out);
        assert_eq!(out, "\"n\":[1,-2,3]\"t\":[\"a\",\"b\"]");
    }
}
