//! Names as tokens of a subject: bytes that a token cannot have are `%XX`.

use std::fmt::Write;

/// Returns a name as one token of a subject.
pub(crate) fn to_token(name: &str) -> String {
    let mut token = String::with_capacity(name.len());
    for byte in name.bytes() {
        if is_plain(byte) {
            token.push(byte.into());
        } else {
            // Writing to a string does not fail.
            let _ = write!(token, "%{byte:02X}");
        }
    }
    token
}

/// Returns the name of a token; `None` if [`to_token`] makes no such token.
pub(crate) fn from_token(token: &str) -> Option<String> {
    let mut name = Vec::with_capacity(token.len());
    let mut bytes = token.bytes();
    while let Some(byte) = bytes.next() {
        if is_plain(byte) {
            name.push(byte);
        } else if byte == b'%' {
            let byte = digit(bytes.next()?)? << 4 | digit(bytes.next()?)?;
            // One name has one token.
            name.push(Some(byte).filter(|byte| !is_plain(*byte))?);
        } else {
            return None;
        }
    }
    String::from_utf8(name).ok().filter(|name| !name.is_empty())
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_/-".contains(&byte)
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_subject_cannot_have_is_escaped() {
        assert_eq!(to_token("app/log-1_A"), "app/log-1_A");
        assert_eq!(to_token("web1.example.org"), "web1%2Eexample%2Eorg");
        assert_eq!(to_token("a*> %\n\u{e4}"), "a%2A%3E%20%25%0A%C3%A4");
        for wrong in ["", "a.b", "a b", "a%", "a%2", "a%2e", "a%41", "a%GG", "%FF", "*", ">"] {
            assert_eq!(from_token(wrong), None, "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn any_name_comes_back(name in ".+") {
            let token = to_token(&name);
            prop_assert!(token.bytes().all(|byte| is_plain(byte) || byte == b'%'));
            prop_assert_eq!(from_token(&token), Some(name));
        }

        #[test]
        fn any_token_is_made_of_its_name_or_refused(token in prop_oneof![".*", "[%0-9A-F]*"]) {
            if let Some(name) = from_token(&token) {
                prop_assert_eq!(to_token(&name), token);
            }
        }
    }
}
