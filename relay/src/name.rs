//! Channel names: `cpu`, `app/log`. The last component is the base filename, the others are directories.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Most components of a channel name.
pub const COMPONENTS_MAX: usize = 4;
/// Longest component of a channel name in bytes.
pub const COMPONENT_LEN_MAX: usize = 200;
/// The channel whose files stand in the root of the mount, as kernel relay's example has it.
pub const DEFAULT_CHANNEL: &str = "cpu";

/// Why a text is not a channel name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "'{name}' is not a channel name: {COMPONENTS_MAX} components at most, separated by '/', each of 1 to {COMPONENT_LEN_MAX} \
     of A-Z a-z 0-9 . _ - and not starting with . or -"
)]
pub struct NameError {
    /// The refused text, shortened and with control characters escaped, so that it can be shown.
    pub name: String,
}

/// A checked channel name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelName(String);

impl ChannelName {
    /// The name as text, components separated by `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The components in order; the last one is the base filename.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// The base filename: buffers appear as this, followed by the CPU's number.
    pub fn base(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// The directory part, without a slash at its end; empty for a channel in the root.
    pub fn dir(&self) -> &str {
        self.0.rsplit_once('/').map_or("", |(dir, _)| dir)
    }

    /// Whether the two cannot exist together: one would be a directory of the other, or a file name of one
    /// (its name and digits) could be the name of the other or of its directory.
    pub fn conflicts_with(&self, other: &ChannelName) -> bool {
        let clash = |short: &str, long: &str| {
            let rest = long.strip_prefix(short);
            rest.is_some_and(|rest| {
                let first = rest.split('/').next().unwrap_or("");
                !rest.is_empty() && first.bytes().all(|b| b.is_ascii_digit())
            })
        };
        clash(&self.0, &other.0) || clash(&other.0, &self.0)
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ChannelName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let component = |part: &str| {
            (1..=COMPONENT_LEN_MAX).contains(&part.len())
                && !part.starts_with(['.', '-'])
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        if text.split('/').count() <= COMPONENTS_MAX && text.split('/').all(component) {
            Ok(ChannelName(text.to_owned()))
        } else {
            Err(NameError { name: text.chars().take(64).flat_map(char::escape_debug).collect() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ChannelName {
        text.parse().unwrap()
    }

    #[test]
    fn parts() {
        let channel = name("app/web/log");
        assert_eq!((channel.dir(), channel.base()), ("app/web", "log"));
        assert_eq!(channel.components().count(), 3);
        assert_eq!((name("cpu").dir(), name("cpu").base()), ("", "cpu"));
    }

    #[test]
    fn bad_names_are_refused() {
        let long = "x".repeat(201);
        for bad in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            ".relay",
            "a/.b",
            "-a",
            "a b",
            "a:b",
            "a,b",
            "ä",
            "a\n",
            "a/b/c/d/e",
            &long,
        ] {
            assert!(bad.parse::<ChannelName>().is_err(), "{bad:?}");
        }
        assert!("a\n".parse::<ChannelName>().unwrap_err().to_string().contains("a\\n"));
    }

    #[test]
    fn names_that_would_collide_as_paths_conflict() {
        for (a, b) in [
            ("a", "a1"),
            ("a", "a/b"),
            ("app/log", "app/log7"),
            ("a", "a1/b"),
            ("a", "a0/b/c"),
            ("x/a", "x/a/b"),
        ] {
            assert!(name(a).conflicts_with(&name(b)), "{a} {b}");
            assert!(name(b).conflicts_with(&name(a)), "{b} {a}");
        }
        for (a, b) in [
            ("a", "b"),
            ("a", "ab"),
            ("a", "a1b"),
            ("a", "a1b/c"),
            ("app/log", "app/err"),
            ("a", "b/a1"),
            ("a", "a"),
        ] {
            assert!(!name(a).conflicts_with(&name(b)), "{a} {b}");
        }
    }
}
