//! Directives that say which messages are written: `info,app::db=debug`, as in the crate `tracing-subscriber`.
//!
//! A directive is a level, for all messages, or `TARGET=LEVEL`, for those whose target begins with TARGET. The longest
//! such target decides. `off` lets nothing pass. A target alone lets everything pass.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use super::level::Level;
use crate::layout::levels::LEVELS_TEXT_MAX;

/// Most directives of a text.
pub const DIRECTIVES_MAX: usize = 64;
/// Longest target, in bytes.
const TARGET_MAX: usize = 255;
/// The number of `off`.
const OFF: u8 = 0;

/// A level's number, or 0 for none: messages up to that level pass.
pub type Limit = u8;

/// Checked directives. Their text is what [`limit_of`] takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directives(String);

/// Why a text is no list of directives.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DirectivesError {
    /// A directive has no known level.
    #[error("'{0}' has no level: use off, error, warn, info, debug or trace, or TARGET=LEVEL")]
    Level(String),
    /// A directive's target cannot be one.
    #[error("'{0}' has no target that messages can have: use TARGET=LEVEL, such as app::db=debug")]
    Target(String),
    /// The text is too long, or has too many directives.
    #[error("there are too many directives: at most {DIRECTIVES_MAX}, with {LEVELS_TEXT_MAX} bytes together")]
    TooMany,
}

impl Directives {
    /// Returns the directives, separated by commas; empty if there are none.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Directives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Directives {
    type Err = DirectivesError;

    /// Takes directives that are separated by commas or line ends. A line that begins with `#` means nothing.
    /// Of two directives with one target, the later one counts.
    fn from_str(text: &str) -> Result<Directives, DirectivesError> {
        let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
        let mut all: Vec<(&str, Limit)> = Vec::new();
        for directive in lines.flat_map(|line| line.split(',')).map(str::trim).filter(|one| !one.is_empty()) {
            let (target, limit) = parse(directive)?;
            all.retain(|(other, _)| *other != target);
            all.push((target, limit));
            if all.len() > DIRECTIVES_MAX {
                return Err(DirectivesError::TooMany);
            }
        }
        let one = |(target, limit): &(&str, Limit)| match *target {
            "" => name_of(*limit).to_owned(),
            target => format!("{target}={}", name_of(*limit)),
        };
        let text = all.iter().map(one).collect::<Vec<_>>().join(",");
        if text.len() > LEVELS_TEXT_MAX { Err(DirectivesError::TooMany) } else { Ok(Directives(text)) }
    }
}

/// Returns target and limit of a directive. The target is empty if it is for all messages.
fn parse(directive: &str) -> Result<(&str, Limit), DirectivesError> {
    // For an error message, which is one line of bounded length.
    let shown = || directive.chars().filter(|c| !c.is_control()).take(80).collect::<String>();
    let (target, limit) = match directive.rsplit_once('=') {
        Some((target, level)) => {
            (target.trim(), limit_named(level.trim()).ok_or_else(|| DirectivesError::Level(shown()))?)
        }
        None => match limit_named(directive) {
            Some(limit) => return Ok(("", limit)),
            None => (directive, Level::Trace.number()),
        },
    };
    let is_target = !target.is_empty() && target.len() <= TARGET_MAX && target.chars().all(is_of_target);
    if is_target { Ok((target, limit)) } else { Err(DirectivesError::Target(shown())) }
}

/// Returns whether a target may have this character. Spans and fields, as in `[span{field}]`, are not for here.
fn is_of_target(c: char) -> bool {
    c.is_alphanumeric() || c.is_ascii_graphic() && !r#",=#[]{}"'\"#.contains(c)
}

fn limit_named(name: &str) -> Option<Limit> {
    if name.eq_ignore_ascii_case("off") || name == "0" {
        return Some(OFF);
    }
    name.parse::<Level>().ok().map(Level::number)
}

fn name_of(limit: Limit) -> &'static str {
    match Level::of_number(limit) {
        None => "off",
        Some(Level::Error) => "error",
        Some(Level::Warn) => "warn",
        Some(Level::Info) => "info",
        Some(Level::Debug) => "debug",
        Some(Level::Trace) => "trace",
    }
}

/// Returns targets and limits of a text of [`Directives`]. What is none is left out. It takes no memory.
fn each(text: &[u8]) -> impl Iterator<Item = (&[u8], Limit)> {
    text.split(|byte| *byte == b',').filter_map(|directive| {
        let at = directive.iter().rposition(|byte| *byte == b'=');
        let (target, level) = match at {
            Some(at) => (&directive[..at], &directive[at + 1..]),
            None => (&b""[..], directive),
        };
        let is = |limit: &Limit| level == name_of(*limit).as_bytes();
        Some((target, (OFF..=Level::Trace.number()).find(is)?))
    })
}

/// Returns the limit of messages with this target, if a text of [`Directives`] has one.
/// Takes no memory, so that signal handlers can call it.
pub fn limit_of(text: &[u8], target: &[u8]) -> Option<Limit> {
    let fitting = each(text).filter(|(start, _)| target.starts_with(start));
    fitting.max_by_key(|(start, _)| start.len()).map(|(_, limit)| limit)
}

/// The limits of a text of [`Directives`], over all targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The lowest limit of any directive; the highest one, if there are none.
    pub lowest: Limit,
    /// The highest limit of any directive; 0 if there are none.
    pub highest: Limit,
    /// Whether each target has a limit.
    pub is_for_all: bool,
}

impl Limits {
    /// Returns the limits of a text.
    pub fn of(text: &[u8]) -> Limits {
        let none = Limits { lowest: Level::Trace.number(), highest: OFF, is_for_all: false };
        each(text).fold(none, |limits, (target, limit)| Limits {
            lowest: limits.lowest.min(limit),
            highest: limits.highest.max(limit),
            is_for_all: limits.is_for_all || target.is_empty(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> Result<String, DirectivesError> {
        text.parse::<Directives>().map(|directives| directives.to_string())
    }

    #[test]
    fn directives_are_brought_into_one_form() {
        for (text, expected) in [
            ("", ""),
            ("\n", ""),
            ("INFO\n", "info"),
            (" warn , app::db = Debug ,, ", "warn,app::db=debug"),
            ("app", "app=trace"),
            ("app=off,0", "app=off,off"),
            ("app=1,other=5", "app=error,other=trace"),
            ("app=info,app=debug,info,error", "app=debug,error"),
            ("# a remark, info\ninfo\n  # off\napp=debug\n", "info,app=debug"),
            ("my-crate=info,http.server/x=warn,größe=info", "my-crate=info,http.server/x=warn,größe=info"),
            ("info=debug", "info=debug"),
        ] {
            let canonical = canonical(text);
            assert_eq!(canonical.as_deref(), Ok(expected), "{text:?}");
            assert_eq!(expected.parse::<Directives>().map(|again| again.to_string()), canonical);
        }
    }

    #[test]
    fn hostile_text_is_refused() {
        for (text, says) in [
            ("app=loud", "has no level"),
            ("=info", "has no target"),
            ("a b=info", "has no target"),
            ("app[span]=info", "has no target"),
            ("app{x}=info", "has no target"),
            ("a=b=info", "has no target"),
            ("a\x1b[31m=info", "has no target"),
            ("a\0=info", "has no target"),
            ("\u{202e}=info", "has no target"),
            ("\"a\"=info", "has no target"),
        ] {
            let error = canonical(text).unwrap_err().to_string();
            assert!(error.contains(says) && !error.contains(char::is_control), "{text:?}: {error}");
        }
        let long = canonical(&format!("{}=info", "t".repeat(256))).unwrap_err().to_string();
        assert!(long.len() < 200 && long.contains(&"t".repeat(80)), "{long}");
        let many = (0..=DIRECTIVES_MAX).map(|n| format!("t{n}=info")).collect::<Vec<_>>();
        assert_eq!(canonical(&many.join(",")), Err(DirectivesError::TooMany));
        assert!(canonical(&many[1..].join(",")).is_ok());
        let long = (0..5).map(|n| format!("{n}{}=info", "t".repeat(250))).collect::<Vec<_>>();
        assert_eq!(canonical(&long.join(",")), Err(DirectivesError::TooMany));
        assert!(canonical(&long[1..4].join(",")).is_ok());
    }

    #[test]
    fn longest_target_decides() {
        let text = b"warn,app=info,app::db=trace,app::web=off";
        for (target, limit) in
            [("other", 2), ("", 2), ("app", 3), ("apple", 3), ("app::db::pool", 5), ("app::web", 0)]
        {
            assert_eq!(limit_of(text, target.as_bytes()), Some(limit), "{target}");
        }
        assert_eq!(limit_of(b"app=info", b"other"), None);
        assert_eq!(limit_of(b"", b"app"), None);
        // Bytes that no daemon writes.
        assert_eq!(limit_of(b"\xff,app=loud,,=,app", b"app"), None);
        assert_eq!(Limits::of(text), Limits { lowest: 0, highest: 5, is_for_all: true });
        assert_eq!(Limits::of(b"app=info"), Limits { lowest: 3, highest: 3, is_for_all: false });
        assert_eq!(Limits::of(b""), Limits { lowest: 5, highest: 0, is_for_all: false });
    }
}
