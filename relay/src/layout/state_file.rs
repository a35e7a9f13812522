//! The file `state` in a state directory: the list of channels.
//! The next daemon finds the channels by it, and so does a reader of what a dead daemon left behind.
//!
//! ```text
//! relayfs-state 1
//! point 45:1234:1764415650.123456789 /mnt/relay
//! epoch 3
//! last_id 7
//! salt 3456789012
//! end clean
//! gone dropped 12
//! channel 1 permanent 65536 8 0 no-overwrite percpu 4 app/log
//! ```
//!
//! The line `end clean` exists if the last daemon ended without being killed or crashing.
//!
//! `salt` is mixed into inode numbers, so that channels of different directories have different ones. A file of an
//! older release has no salt, and its inode numbers were not mixed; it counts as 0.
//!
//! A line `channel` has these words:
//! * the number that the files' names begin with
//! * the lifetime: that of the daemon (`permanent`), or as long as a process holds the channel (`held`)
//! * size and number of sub-buffers, bytes of header, mode
//! * `percpu` or `global`, for a timed channel `percpu,timed` or `global,timed`
//! * number of buffers, and name
//!
//! The file is text so that people can read it after a crash.

use std::fmt::Write as _;
use std::io::{self, Read};
use std::num::NonZeroU32;
use std::path::Path;
use std::str::FromStr;

use thiserror::Error;

use crate::layout::channel_files::open_regular;
use crate::{ChannelName, Geometry, GeometrySpec, Mode};

/// Name of the file in the state directory.
pub const STATE_FILE: &str = "state";
/// Longest state file, in bytes.
/// A daemon's highest number of channels takes at most 1 KiB each.
pub const STATE_FILE_MAX: usize = 64 << 20;

/// First line: the kind of file and the version of its format.
const MAGIC: &str = "relayfs-state 1";

/// Contents of a state file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateFile {
    /// The mount point, see [`crate::layout::mount_point::Point`].
    /// Any text, if a peer has written it.
    pub point: String,
    /// Number of daemons so far, one after another.
    pub epoch: u32,
    /// Highest number that a channel or directory was given.
    pub last_id: u32,
    /// Whether the last daemon ended without being killed or crashing.
    pub ended: bool,
    /// Number that inode numbers are mixed with; 0 is not written.
    pub salt: u32,
    /// The channels.
    pub channels: Vec<ChannelEntry>,
    /// Counters of channels that no longer exist, by their names in `stats`.
    pub gone: Vec<(String, u64)>,
}

/// A channel in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelEntry {
    /// Its number. Its files are `ID.control`, `ID.data0`, ...
    pub id: u32,
    /// Whether the channel lived as long as its daemon.
    /// For people only: the next daemon uses its command line.
    pub permanent: bool,
    /// Its shape.
    pub geometry: Geometry,
    /// Number of its buffers.
    pub n_bufs: usize,
    /// Its name.
    pub name: ChannelName,
}

/// The error for a text that is not a state file.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StateFileError {
    /// The first line is wrong.
    #[error("it does not begin with '{MAGIC}': another release's, or no state file")]
    Magic,
    /// The text is longer than a state file can be.
    #[error("it is longer than {STATE_FILE_MAX} bytes")]
    TooLong,
    /// A line cannot be parsed.
    #[error("line {line}: {what}")]
    Line {
        /// Number of the line, from 1.
        line: usize,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Numbers or names of channels collide.
    #[error("{0}")]
    Channels(&'static str),
    /// A required line is missing.
    #[error("there is no line '{0}'")]
    Missing(&'static str),
}

impl StateFile {
    /// Reads the file of a state directory; `None` if it does not exist.
    /// The error names the file.
    pub fn read(dir: &Path) -> Result<Option<StateFile>, String> {
        let path = dir.join(STATE_FILE);
        let with_path = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let file = match open_regular(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result.map_err(|error| with_path(&error))?,
        };
        let mut text = String::new();
        file.take(STATE_FILE_MAX as u64 + 1).read_to_string(&mut text).map_err(|error| with_path(&error))?;
        StateFile::parse(&text).map(Some).map_err(|error| with_path(&error))
    }

    /// Parses the text of a state file. The text is not trusted: every value returned is valid.
    pub fn parse(text: &str) -> Result<StateFile, StateFileError> {
        if text.len() > STATE_FILE_MAX {
            return Err(StateFileError::TooLong);
        }
        let is_text = |line: &str| !line.contains(char::is_control);
        if let Some(line) = text.split('\n').position(|line| !is_text(line)) {
            return Err(StateFileError::Line { line: line + 1, what: "a character that is no text" });
        }
        let mut lines = text.lines();
        if lines.next() != Some(MAGIC) || !text.ends_with('\n') {
            return Err(StateFileError::Magic);
        }
        let (mut point, mut epoch, mut last_id, mut salt) = (None, None, None, None);
        let mut state = StateFile::default();
        for (line, number) in lines.zip(2..) {
            let (key, rest) = line.split_once(' ').unwrap_or((line, ""));
            let fresh = match key {
                "point" => point.replace(rest.to_owned()).is_none(),
                "epoch" => parse(rest).map(|n: u32| epoch.replace(n).is_none()).unwrap_or(false),
                "last_id" => parse(rest).map(|n: u32| last_id.replace(n).is_none()).unwrap_or(false),
                "end" => rest == "clean" && !std::mem::replace(&mut state.ended, true),
                "salt" => parse(rest).is_some_and(|n: NonZeroU32| salt.replace(n.get()).is_none()),
                "gone" => rest
                    .split_once(' ')
                    .and_then(|(name, value)| Some((name.to_owned(), parse(value)?)))
                    .map(|count| state.gone.push(count))
                    .is_some(),
                "channel" => ChannelEntry::parse(rest).map(|entry| state.channels.push(entry)).is_some(),
                _ => false,
            };
            if !fresh {
                let what = match key {
                    "point" | "epoch" | "last_id" | "salt" => "no number, or a second one of its kind",
                    "end" => "not 'clean', or a second one",
                    "gone" => "no name and count",
                    "channel" => "no channel",
                    _ => "unknown",
                };
                return Err(StateFileError::Line { line: number, what });
            }
        }
        state.point = point.ok_or(StateFileError::Missing("point"))?;
        state.epoch = epoch.ok_or(StateFileError::Missing("epoch"))?;
        state.last_id = last_id.ok_or(StateFileError::Missing("last_id"))?;
        state.salt = salt.unwrap_or(0);
        state.check_channels()?;
        Ok(state)
    }

    /// Checks that no two channels share a number or collide by name.
    fn check_channels(&self) -> Result<(), StateFileError> {
        let mut ids: Vec<u32> = self.channels.iter().map(|channel| channel.id).collect();
        ids.sort_unstable();
        let mut names: Vec<&ChannelName> = self.channels.iter().map(|channel| &channel.name).collect();
        names.sort_unstable();
        let wrong = if ids.windows(2).any(|pair| pair[0] == pair[1]) {
            "two channels have the same number"
        } else if ids.last().is_some_and(|id| *id > self.last_id) || ids.first() == Some(&0) {
            "a channel's number was never given"
        } else if names.windows(2).any(|pair| pair[0] == pair[1]) {
            "two channels have the same name"
        } else if exclude_each_other(&names) {
            "two channels have names that exclude each other"
        } else {
            return Ok(());
        };
        Err(StateFileError::Channels(wrong))
    }

    /// Returns the text of the file.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        self.write_to(&mut text).expect("writing to a string");
        text
    }

    fn write_to(&self, text: &mut String) -> std::fmt::Result {
        let point: String = self.point.chars().filter(|c| !c.is_control()).collect();
        writeln!(text, "{MAGIC}\npoint {point}\nepoch {}\nlast_id {}", self.epoch, self.last_id)?;
        if self.salt != 0 {
            writeln!(text, "salt {}", self.salt)?;
        }
        if self.ended {
            writeln!(text, "end clean")?;
        }
        for (name, value) in &self.gone {
            writeln!(text, "gone {name} {value}")?;
        }
        for ChannelEntry { id, permanent, geometry, n_bufs, name } in &self.channels {
            let life = if *permanent { "permanent" } else { "held" };
            let scope = scope_of(geometry);
            let (size, n_subbufs) = (geometry.subbuf_size(), geometry.n_subbufs());
            let (header, mode) = (geometry.header(), geometry.mode());
            writeln!(text, "channel {id} {life} {size} {n_subbufs} {header} {mode} {scope} {n_bufs} {name}")?;
        }
        Ok(())
    }
}

impl ChannelEntry {
    /// Parses the words behind `channel`.
    fn parse(text: &str) -> Option<ChannelEntry> {
        let words: Vec<&str> = text.split(' ').collect();
        let [id, life, size, n_subbufs, header, mode, scope, n_bufs, name] = words.as_slice() else {
            return None;
        };
        let (global, timed) = SCOPES.iter().find(|(word, ..)| word == scope).map(|(_, of)| *of)?;
        let spec = GeometrySpec {
            subbuf_size: Some(parse(size)?),
            n_subbufs: Some(parse(n_subbufs)?),
            header: Some(parse(header)?),
            mode: Some(match *mode {
                "no-overwrite" => Mode::NoOverwrite,
                "overwrite" => Mode::Overwrite,
                _ => return None,
            }),
            global: Some(global),
            timed: Some(timed),
        };
        let permanent = match *life {
            "permanent" => true,
            "held" => false,
            _ => return None,
        };
        let geometry = spec.build().ok()?;
        let n_bufs = parse(n_bufs).filter(|n| geometry.can_have(*n))?;
        Some(ChannelEntry { id: parse(id)?, permanent, geometry, n_bufs, name: name.parse().ok()? })
    }
}

/// Words of a channel's scope, each with whether the channel is global, and whether it is timed.
const SCOPES: [(&str, (bool, bool)); 4] = [
    ("percpu", (false, false)),
    ("global", (true, false)),
    ("percpu,timed", (false, true)),
    ("global,timed", (true, true)),
];

fn scope_of(geometry: &Geometry) -> &'static str {
    let of = (geometry.global(), geometry.timed());
    SCOPES.iter().find(|(_, scope)| *scope == of).expect("all four are there").0
}

/// Returns whether two of the names conflict, see [`ChannelName::conflicts_with`].
/// A name conflicts only with its own prefixes, so only prefixes are looked up. Comparing all pairs would take too long
/// for the longest file.
fn exclude_each_other(sorted: &[&ChannelName]) -> bool {
    let is_there = |text: &str| sorted.binary_search_by(|name| name.as_str().cmp(text)).ok();
    sorted.iter().any(|name| {
        let text = name.as_str();
        let mut cuts = (1..text.len()).filter(|at| matches!(text.as_bytes()[*at], b'/' | b'0'..=b'9'));
        cuts.any(|at| is_there(&text[..at]).is_some_and(|short| sorted[short].conflicts_with(name)))
    })
}

/// Parses a number without sign or leading zeros, so that each value has exactly one text.
fn parse<T: FromStr + ToString>(text: &str) -> Option<T> {
    text.parse().ok().filter(|n: &T| n.to_string() == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "relayfs-state 1\npoint 45:1234 /mnt/relay\nepoch 3\nlast_id 7\nsalt 9\nend clean\ngone dropped 12\n\
        channel 1 permanent 65536 8 0 no-overwrite percpu 4 app/log\nchannel 7 held 4096 2 16 overwrite global 1 b\n\
        channel 6 held 4096 2 0 overwrite percpu,timed 4 c\nchannel 5 held 64 2 0 overwrite global,timed 1 d\n";

    #[test]
    fn written_state_is_read() {
        let state = StateFile::parse(SAMPLE).unwrap();
        assert_eq!((state.epoch, state.last_id, state.salt, state.channels.len()), (3, 7, 9, 4));
        let older = StateFile::parse(&SAMPLE.replace("salt 9\n", "")).unwrap();
        assert_eq!(older, StateFile { salt: 0, ..state.clone() });
        assert_eq!(state.point, "45:1234 /mnt/relay");
        assert!(state.ended);
        assert_eq!(state.gone, [("dropped".to_owned(), 12)]);
        assert!(state.channels[0].permanent && !state.channels[1].permanent);
        assert_eq!(state.channels[1].geometry.mode(), Mode::Overwrite);
        assert_eq!(
            state.channels.iter().map(|entry| entry.geometry.timed()).collect::<Vec<_>>(),
            [false, false, true, true]
        );
        assert_eq!(state.to_text(), SAMPLE);
    }

    #[test]
    fn invalid_text_is_refused_with_its_line() {
        let message = |from: &str, to: &str| {
            let text = SAMPLE.replacen(from, to, 1);
            assert_ne!(text, SAMPLE, "{from}");
            StateFile::parse(&text).unwrap_err().to_string()
        };
        for (from, to, part) in [
            ("state 1", "state 2", "another release"),
            ("relayfs-state 1\n", "", "another release"),
            (" d\n", " d", "another release"),
            ("epoch 3", "epoch +3", "line 3"),
            ("epoch 3", "epoch 3\nepoch 3", "line 4"),
            ("epoch 3\n", "", "'epoch'"),
            ("last_id 7", "last_id 6", "never given"),
            ("end clean", "end", "line 6"),
            ("end clean", "end clean\nend clean", "line 7"),
            ("salt 9", "salt 0", "line 5"),
            ("salt 9", "salt 4294967296", "line 5"),
            ("salt 9", "salt 9\nsalt 9", "line 6"),
            ("gone dropped 12", "gone dropped", "line 7"),
            ("gone", "what", "line 7: unknown"),
            ("channel 1 ", "channel 7 ", "same number"),
            ("channel 1 ", "channel 0 ", "never given"),
            ("app/log", "b", "same name"),
            ("app/log", "b/log", "exclude each other"),
            ("app/log", "b77", "exclude each other"),
            ("app/log", "../log", "line 8"),
            ("app/log", "app log", "line 8"),
            ("65536", "0", "line 8"),
            ("65536", "99999999999999999999", "line 8"),
            (" 8 0 ", " 8 65536 ", "line 8"),
            ("percpu 4", "percpu 0", "line 8"),
            ("global 1", "global 2", "line 9"),
            ("held", "for ever", "line 9"),
            ("overwrite global", "overwriting global", "line 9"),
            ("percpu,timed 4", "percpu,timed 0", "line 10"),
            ("percpu,timed", "timed,percpu", "line 10"),
            ("percpu,timed", "percpu,", "line 10"),
            ("0 overwrite percpu,timed", "1 overwrite percpu,timed", "line 10"),
            ("held 64 2", "held 63 2", "line 11"),
        ] {
            let message = message(from, to);
            assert!(message.contains(part), "{from} -> {to}: {message}");
        }
        assert_eq!(StateFile::parse(&"x".repeat(STATE_FILE_MAX + 1)), Err(StateFileError::TooLong));
    }

    /// A file of nearly the longest length is parsed within the time of a test.
    #[test]
    fn long_file_is_parsed() {
        let head = SAMPLE.lines().take(3).map(|line| format!("{line}\n")).collect::<String>();
        let text = (1..=100_000).fold(format!("{head}last_id 100000\n"), |text, id| {
            text + &format!("channel {id} held 64 2 0 no-overwrite percpu 2 a/b{id}x\n")
        });
        assert_eq!(StateFile::parse(&text).unwrap().channels.len(), 100_000);
    }

    /// Changes every byte to every value of ASCII.
    #[test]
    fn changed_byte_is_refused_or_read_exactly() {
        for at in 0..SAMPLE.len() {
            for byte in 0..128 {
                let mut bytes = SAMPLE.as_bytes().to_vec();
                bytes[at] = byte;
                let changed = String::from_utf8(bytes).expect("ASCII");
                if let Ok(state) = StateFile::parse(&changed) {
                    assert_eq!(state.to_text(), changed);
                }
            }
        }
    }
}
