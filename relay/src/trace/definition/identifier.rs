//! Identifiers of CTF text for names that programs choose.

use std::collections::HashSet;

/// Words that mean something in CTF text: its keywords, and the types that `metadata` names.
const RESERVED: &[&str] = &[
    "_Bool",
    "_Complex",
    "_Imaginary",
    "align",
    "byte",
    "byte_order",
    "callsite",
    "char",
    "clock",
    "const",
    "double",
    "enum",
    "env",
    "event",
    "f64",
    "false",
    "fields",
    "float",
    "floating_point",
    "i64",
    "int",
    "integer",
    "long",
    "short",
    "signed",
    "stream",
    "string",
    "struct",
    "trace",
    "true",
    "ts64",
    "typealias",
    "typedef",
    "u16",
    "u32",
    "u64",
    "u8",
    "unsigned",
    "utf8",
    "variant",
    "void",
];

/// The identifiers of one event.
///
/// Two of them may not differ only by an underscore in front: readers drop it, and then refuse the event.
#[derive(Debug)]
pub(super) struct Identifiers {
    /// What readers see.
    taken: HashSet<String>,
}

/// What a reader of CTF sees of an identifier.
fn seen(identifier: &str) -> &str {
    identifier.strip_prefix('_').unwrap_or(identifier)
}

/// The name of the field that has the length of a field.
pub(super) fn length_of(identifier: &str) -> String {
    format!("_{identifier}_len")
}

impl Identifiers {
    /// Begins an event, whose first field is `_len`.
    pub(super) fn new() -> Identifiers {
        Identifiers { taken: HashSet::from(["len".to_owned()]) }
    }

    /// Returns the identifier of the next field; it and its length's are then taken.
    pub(super) fn next(&mut self, name: &str, has_length: bool) -> String {
        let plain = plain(name);
        let numbered = (2u32..).map(|number| format!("{plain}_{number}"));
        let is_free = |identifier: &String| {
            let is_free = |identifier: &str| !self.taken.contains(seen(identifier));
            is_free(identifier) && (!has_length || is_free(&length_of(identifier)))
        };
        let mut free = std::iter::once(plain.clone()).chain(numbered).filter(is_free);
        // There are more numbers than fields.
        let identifier = free.next().unwrap_or_default();
        self.taken.insert(seen(&identifier).to_owned());
        if has_length {
            self.taken.insert(seen(&length_of(&identifier)).to_owned());
        }
        identifier
    }
}

/// Replaces what no identifier may have.
fn plain(name: &str) -> String {
    let is_part = |c: char| c.is_ascii_alphanumeric();
    let mut plain: String = name.chars().map(|c| if is_part(c) { c } else { '_' }).collect();
    if plain.bytes().all(|byte| byte == b'_') {
        plain = "field".to_owned();
    }
    if plain.starts_with(|c: char| c.is_ascii_digit()) {
        plain.insert(0, '_');
    }
    if RESERVED.contains(&plain.as_str()) {
        plain.push('_');
    }
    plain
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_become_identifiers() {
        let cases = [
            ("rows", "rows"),
            ("http.status", "http_status"),
            ("1st", "_1st"),
            ("event", "event_"),
            ("u64", "u64_"),
            ("é", "field"),
            ("___", "field"),
            ("a b", "a_b"),
            ("_len", "_len_2"),
            ("len", "len_2"),
            ("x*/\n", "x___"),
        ];
        for (name, identifier) in cases {
            assert_eq!(Identifiers::new().next(name, false), identifier, "{name:?}");
        }
    }

    #[test]
    fn identifiers_are_unique_as_readers_see_them() {
        let mut identifiers = Identifiers::new();
        assert_eq!(identifiers.next("a.b", false), "a_b");
        assert_eq!(identifiers.next("a-b", false), "a_b_2");
        assert_eq!(identifiers.next("_a_b", false), "_a_b_3");
        assert_eq!(identifiers.next("host_len", false), "host_len");
        assert_eq!(identifiers.next("host", true), "host_2");
        assert_eq!(identifiers.next("host_2_len", false), "host_2_len_2");
    }

    proptest! {
        #[test]
        fn any_names_become_unique_identifiers(names in proptest::collection::vec(("\\PC{0,4}|[_a-b.]{0,3}", any::<bool>()), 0..33)) {
            let mut identifiers = Identifiers::new();
            let mut all = HashSet::new();
            for (name, has_length) in &names {
                let identifier = identifiers.next(name, *has_length);
                let first = identifier.chars().next().unwrap();
                prop_assert!(first.is_ascii_alphabetic() || first == '_');
                prop_assert!(identifier.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'));
                prop_assert!(!RESERVED.contains(&identifier.as_str()));
                prop_assert!(all.insert(seen(&identifier).to_owned()));
                if *has_length {
                    prop_assert!(all.insert(seen(&length_of(&identifier)).to_owned()));
                }
            }
        }
    }
}
