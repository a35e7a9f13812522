//! Channel names: `cpu`, `app/log`. The last component is the base filename, the others are directories.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Most components of a channel name.
pub const COMPONENTS_MAX: usize = 4;
/// Longest component of a channel name in bytes.
pub const COMPONENT_LEN_MAX: usize = 200;
/// The channel whose files are in the root of the mount, named as in kernel relay's example.
pub const DEFAULT_CHANNEL: &str = "cpu";

/// The error for a text that is not a channel name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "'{name}' is not a channel name: {COMPONENTS_MAX} components at most, separated by '/', each of 1 to {COMPONENT_LEN_MAX} \
     of A-Z a-z 0-9 . _ - and not starting with . or -"
)]
pub struct NameError {
    /// The refused text, shortened and with control characters escaped.
    pub name: String,
}

/// A checked channel name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelName(String);

impl ChannelName {
    /// Returns the name as text, components separated by `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the components in order; the last one is the base filename.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// Returns the base filename.
    /// The file of a buffer is called this, followed by the CPU's number.
    pub fn base(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// Returns the directory part without a trailing slash; empty for a channel in the root.
    pub fn dir(&self) -> &str {
        self.0.rsplit_once('/').map_or("", |(dir, _)| dir)
    }

    /// Returns whether the two channels cannot exist together.
    /// Names conflict if one is a directory of the other. They also conflict if a file of one, its name and digits, has
    /// the path of the other or of the other's directory.
    pub fn conflicts_with(&self, other: &ChannelName) -> bool {
        shared_path(&self.0, &other.0).or_else(|| shared_path(&other.0, &self.0)).is_some()
    }

    /// Returns why a new channel of this name cannot exist beside `other`, and what to do.
    /// `None` if the two do not conflict.
    pub fn conflict_with(&self, other: &ChannelName) -> Option<String> {
        let what = |cpu: &str, owner: &ChannelName| match cpu {
            "" => format!("the channel {owner}"),
            cpu => format!("the file of CPU {cpu} of channel {owner}"),
        };
        if let Some((path, cpu)) = shared_path(&other.0, &self.0) {
            let advice = match (cpu, path.len() == self.0.len()) {
                ("", _) => "choose a name outside it",
                (_, true) => "choose a name that does not end in digits",
                (_, false) => "choose a directory that does not end in digits",
            };
            return Some(format!("{path} is {}; {advice}", what(cpu, other)));
        }
        let (path, cpu) = shared_path(&self.0, &other.0)?;
        let there = if path.len() == other.0.len() {
            format!("is channel {other}")
        } else {
            format!("is the directory of channel {other}")
        };
        let wanted =
            if cpu.is_empty() { String::new() } else { format!(", and would be {}", what(cpu, self)) };
        Some(format!("{path} {there}{wanted}; choose another name"))
    }
}

/// Returns the path that both channels would use, and its digits behind the shorter name.
fn shared_path<'n>(short: &str, long: &'n str) -> Option<(&'n str, &'n str)> {
    let rest = long.strip_prefix(short).filter(|rest| !rest.is_empty())?;
    let digits = rest.split('/').next().unwrap_or("");
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| (&long[..short.len() + digits.len()], digits))
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
    fn name_splits_into_directory_and_base() {
        let channel = name("app/web/log");
        assert_eq!((channel.dir(), channel.base()), ("app/web", "log"));
        assert_eq!(channel.components().count(), 3);
        assert_eq!((name("cpu").dir(), name("cpu").base()), ("", "cpu"));
    }

    #[test]
    fn bad_name_is_refused() {
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
    fn names_that_collide_as_paths_conflict() {
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
            assert_eq!(name(a).conflict_with(&name(b)), None);
        }
    }

    #[test]
    fn conflict_is_explained_with_advice() {
        for (new, old, expected) in [
            (
                "app/log2",
                "app/log",
                "app/log2 is the file of CPU 2 of channel app/log; choose a name that does not end in digits",
            ),
            (
                "a1/b",
                "a",
                "a1 is the file of CPU 1 of channel a; choose a directory that does not end in digits",
            ),
            ("app/log", "app", "app is the channel app; choose a name outside it"),
            ("app", "app/log", "app is the directory of channel app/log; choose another name"),
            (
                "app/log",
                "app/log2",
                "app/log2 is channel app/log2, and would be the file of CPU 2 of channel app/log; choose another name",
            ),
            (
                "a",
                "a1/b",
                "a1 is the directory of channel a1/b, and would be the file of CPU 1 of channel a; choose another name",
            ),
        ] {
            assert_eq!(name(new).conflict_with(&name(old)).as_deref(), Some(expected), "{new} {old}");
        }
    }
}
