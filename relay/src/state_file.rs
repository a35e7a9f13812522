//! The file `state` in a state directory: which channels' files are there, and what a daemon has to know to go on from
//! them. It is small, text, and replaced as a whole.
//!
//! ```text
//! relayfs-state 1
//! point DEV:INO /mnt/my\040relay
//! epoch 3
//! last_id 7
//! channel ID permanent|held SUBBUF_SIZE N_SUBBUFS HEADER no-overwrite|overwrite percpu|global N_BUFS NAME
//! gone NAME VALUE
//! ```
//!
//! The first four lines come in this order, then any number of channels, then any number of counts. Whoever reads it
//! believes nothing: each line has exactly this form, or the whole file is refused, and the error names the line.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fmt::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::{ChannelName, Geometry, GeometrySpec, Mode};

/// First word of the file.
const MAGIC: &str = "relayfs-state";
/// Version of this format.
pub const STATE_VERSION: u32 = 1;
/// Longest file that is looked at, in bytes.
pub const STATE_LEN_MAX: usize = 16 << 20;
/// Longest path of a mount point, in bytes: PATH_MAX.
const POINT_LEN_MAX: usize = 4096;
/// Most buffers of a channel.
const N_BUFS_MAX: u32 = 1 << 16;
/// Longest name of a count, in bytes.
const COUNT_NAME_MAX: usize = 64;
/// Most bytes of a wrong line that an error shows.
const SHOWN_MAX: usize = 80;

/// The directory that was mounted on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// Device and inode number of the directory.
    pub identity: (u64, u64),
    /// Its path.
    pub path: PathBuf,
}

/// A channel, as the file names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelEntry {
    /// Its number, with which its files' names begin.
    pub id: u32,
    /// Whether it lives as long as the daemon, and not only while somebody holds it or it has unread data.
    pub permanent: bool,
    /// Its geometry.
    pub geometry: Geometry,
    /// Number of its buffers.
    pub n_bufs: u32,
    /// Its name.
    pub name: ChannelName,
}

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateFile {
    /// The directory that was mounted on.
    pub point: Point,
    /// Raised by each daemon that adopts.
    pub epoch: u64,
    /// The highest number that was given to a channel or a directory.
    pub last_id: u32,
    /// The channels there are.
    pub channels: Vec<ChannelEntry>,
    /// What channels that are gone had counted: names and values, in the order of the file.
    pub gone: Vec<(String, u64)>,
}

/// The text of the file.
impl fmt::Display for StateFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (device, inode) = self.point.identity;
        writeln!(f, "{MAGIC} {STATE_VERSION}")?;
        writeln!(f, "point {device}:{inode} {}", escape(&self.point.path))?;
        writeln!(f, "epoch {}", self.epoch)?;
        writeln!(f, "last_id {}", self.last_id)?;
        for channel in &self.channels {
            writeln!(f, "{channel}")?;
        }
        self.gone.iter().try_for_each(|(name, value)| writeln!(f, "gone {name} {value}"))
    }
}

/// Its line, without the end.
impl fmt::Display for ChannelEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let geometry = &self.geometry;
        write!(
            f,
            "channel {} {} {} {} {} {} {} {} {}",
            self.id,
            if self.permanent { "permanent" } else { "held" },
            geometry.subbuf_size(),
            geometry.n_subbufs(),
            geometry.header(),
            geometry.mode(),
            if geometry.global() { "global" } else { "percpu" },
            self.n_bufs,
            self.name
        )
    }
}

impl StateFile {
    /// The text of the file; [`parse`] brings back what this was made of.
    pub fn to_text(&self) -> String {
        self.to_string()
    }
}

/// What a file says, or which line is wrong, and why.
pub fn parse(text: &str) -> Result<StateFile, String> {
    if text.len() > STATE_LEN_MAX {
        return Err(format!("it has {} bytes, more than {STATE_LEN_MAX}", text.len()));
    }
    let Some(body) = text.strip_suffix('\n') else {
        return Err(if text.is_empty() { "it is empty" } else { "its last line has no end" }.to_owned());
    };
    let mut lines = body.split('\n').enumerate().map(|(i, line)| Line { number: i + 1, text: line });
    let mut next = |what: &str| lines.next().ok_or_else(|| format!("it ends before the line '{what}'"));

    let first = next(MAGIC)?;
    match first.words(MAGIC, 1)?[0] {
        version if version == STATE_VERSION.to_string() => {}
        _ => return Err(first.wrong(&format!("this release knows version {STATE_VERSION}"))),
    }
    let point = next("point")?;
    let point = point.point()?;
    let epoch = next("epoch")?;
    let epoch = epoch.number(epoch.words("epoch", 1)?[0])?;
    let last = next("last_id")?;
    let last_id = last.number(last.words("last_id", 1)?[0])?;

    let mut file = StateFile { point, epoch, last_id, channels: Vec::new(), gone: Vec::new() };
    let (mut ids, mut names, mut counts) = (HashSet::new(), HashSet::new(), HashSet::new());
    for line in lines {
        if line.text.starts_with("gone ") {
            let (name, value) = line.count()?;
            if !counts.insert(name) {
                return Err(line.wrong("there is another count of this name"));
            }
            file.gone.push((name.to_owned(), value));
            continue;
        }
        if !file.gone.is_empty() {
            return Err(line.wrong("a line 'gone' was expected"));
        }
        let channel = line.channel()?;
        if channel.id > last_id {
            return Err(line.wrong(&format!("the highest number is said to be {last_id}")));
        }
        if !ids.insert(channel.id) {
            return Err(line.wrong("there is another channel of this number"));
        }
        if !names.insert(channel.name.clone()) {
            return Err(line.wrong("there is another channel of this name"));
        }
        file.channels.push(channel);
    }
    conflict(&names).map_or(Ok(file), Err)
}

/// Two channels that cannot exist together, if there are any, as an error. A name conflicts with what it begins with, so
/// only that is looked for: all with all would take for ever where there are many.
fn conflict(names: &HashSet<ChannelName>) -> Option<String> {
    names.iter().find_map(|long| {
        let text = long.as_str();
        let short = (1..text.len())
            .filter(|at| matches!(text.as_bytes()[*at], b'/' | b'0'..=b'9'))
            .filter_map(|at| names.get(&text[..at].parse::<ChannelName>().ok()?))
            .find(|short| short.conflicts_with(long))?;
        Some(format!("channels '{short}' and '{long}' cannot exist together"))
    })
}

/// A line, for what is wrong with it.
struct Line<'t> {
    number: usize,
    text: &'t str,
}

impl<'t> Line<'t> {
    fn wrong(&self, why: &str) -> String {
        let shown: String = self.text.chars().take(SHOWN_MAX).flat_map(char::escape_debug).collect();
        format!("line {}, '{shown}': {why}", self.number)
    }

    /// The words behind the first one, which is `kind`; there are `count` of them.
    fn words(&self, kind: &str, count: usize) -> Result<Vec<&'t str>, String> {
        // No more than can be right: a line may have any length.
        let mut words: Vec<&str> = self.text.splitn(count + 2, ' ').collect();
        if words[0] != kind {
            return Err(self.wrong(&format!("a line '{kind}' was expected")));
        }
        words.remove(0);
        if words.len() == count && words.iter().all(|word| !word.is_empty()) {
            Ok(words)
        } else {
            Err(self.wrong(&format!("'{kind}' takes {count} words, with one space between them")))
        }
    }

    /// A number as this file writes it: in digits, without sign or leading zeroes.
    fn number<N: FromStr + ToString>(&self, word: &str) -> Result<N, String> {
        let number = word.parse::<N>().ok().filter(|number| number.to_string() == word);
        number.ok_or_else(|| self.wrong("a number is wrong, or too large"))
    }

    fn point(&self) -> Result<Point, String> {
        let words = self.words("point", 2)?;
        let (device, inode) =
            words[0].split_once(':').ok_or_else(|| self.wrong("DEVICE:INODE was expected"))?;
        let identity = (self.number(device)?, self.number(inode)?);
        let path = unescape(words[1]).filter(|path| {
            path.is_absolute() && path.as_os_str().len() <= POINT_LEN_MAX && escape(path) == words[1]
        });
        let path =
            path.ok_or_else(|| self.wrong("the path is not absolute, or not written as it should be"))?;
        Ok(Point { identity, path })
    }

    fn channel(&self) -> Result<ChannelEntry, String> {
        let words = self.words("channel", 9)?;
        let one_of = |word: &str, no: &str, yes: &str| match word {
            word if word == no => Ok(false),
            word if word == yes => Ok(true),
            _ => Err(self.wrong(&format!("'{no}' or '{yes}' was expected"))),
        };
        let id = self.number(words[0])?;
        let permanent = one_of(words[1], "held", "permanent")?;
        let overwrite = one_of(words[5], "no-overwrite", "overwrite")?;
        let global = one_of(words[6], "percpu", "global")?;
        let spec = GeometrySpec {
            subbuf_size: Some(self.number(words[2])?),
            n_subbufs: Some(self.number(words[3])?),
            header: Some(self.number(words[4])?),
            mode: Some(if overwrite { Mode::Overwrite } else { Mode::NoOverwrite }),
            global: Some(global),
        };
        let geometry = spec.build().map_err(|error| self.wrong(&error.to_string()))?;
        let n_bufs: u32 = self.number(words[7])?;
        if id == 0 {
            return Err(self.wrong("channels are numbered from 1"));
        }
        if !(1..=if global { 1 } else { N_BUFS_MAX }).contains(&n_bufs) {
            return Err(self.wrong("no channel has so many buffers"));
        }
        let name = words[8].parse::<ChannelName>().map_err(|error| self.wrong(&error.to_string()))?;
        Ok(ChannelEntry { id, permanent, geometry, n_bufs, name })
    }

    fn count(&self) -> Result<(&'t str, u64), String> {
        let words = self.words("gone", 2)?;
        let name = words[0];
        let is_name = name.len() <= COUNT_NAME_MAX
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if is_name { Ok((name, self.number(words[1])?)) } else { Err(self.wrong("that is no count's name")) }
    }
}

/// As the kernel's table of mounts has it, `\040` for a space, and the same for all that is not printable ASCII.
fn escape(path: &Path) -> String {
    path.as_os_str().as_bytes().iter().fold(String::new(), |mut text, &b| {
        if b.is_ascii_graphic() && !b"\\#".contains(&b) {
            text.push(b.into());
        } else {
            let _ = write!(text, "\\{b:03o}"); // a string takes everything
        }
        text
    })
}

/// Undoes [`escape`]; `None` if there is an escape that is none.
fn unescape(text: &str) -> Option<PathBuf> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first == b'\\' {
            let (digits, tail) = tail.split_at_checked(3)?;
            let digit = |b: u8| (b'0'..=b'7').contains(&b).then(|| u32::from(b - b'0'));
            let value = digit(digits[0])? << 6 | digit(digits[1])? << 3 | digit(digits[2])?;
            bytes.push(u8::try_from(value).ok()?);
            rest = tail;
        } else {
            bytes.push(first);
        }
    }
    Some(OsString::from_vec(bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "relayfs-state 1\npoint 64768:131 /mnt/relay\nepoch 3\nlast_id 7\n";

    fn with(lines: &[&str]) -> Result<StateFile, String> {
        parse(&format!("{HEAD}{}", lines.iter().map(|line| format!("{line}\n")).collect::<String>()))
    }

    #[test]
    fn a_whole_file_comes_back() {
        let text = format!(
            "{HEAD}channel 1 permanent 262144 4 0 no-overwrite percpu 2 cpu\n\
             channel 7 held 1000 3 16 overwrite global 1 app/log\n\
             gone dropped 3\ngone read_bytes 18446744073709551615\n"
        );
        let file = parse(&text).unwrap();
        assert_eq!(file.point, Point { identity: (64768, 131), path: "/mnt/relay".into() });
        assert_eq!((file.epoch, file.last_id), (3, 7));
        assert!(file.channels[0].permanent && !file.channels[1].permanent);
        assert_eq!(file.channels[0].geometry.to_string(), "subbuf-size=256K:n-subbufs=4");
        let log = &file.channels[1];
        assert_eq!((log.id, log.n_bufs, log.name.as_str()), (7, 1, "app/log"));
        assert_eq!(log.geometry.to_string(), "subbuf-size=1000:n-subbufs=3:overwrite:global:header=16");
        assert_eq!(file.gone, [("dropped".to_owned(), 3), ("read_bytes".to_owned(), u64::MAX)]);
        assert_eq!(file.to_text(), text);
        assert_eq!(parse(HEAD).unwrap().to_text(), HEAD, "without channels, too");
    }

    #[test]
    fn any_path_comes_back() {
        let all: Vec<u8> = (1..=255).collect();
        for bytes in [&b"/"[..], b"/mnt/a b\\040\t\n#", &[b"/", &all[..]].concat()] {
            let path = PathBuf::from(OsString::from_vec(bytes.to_vec()));
            let file = StateFile { point: Point { identity: (0, u64::MAX), path }, ..parse(HEAD).unwrap() };
            let text = file.to_text();
            assert!(text.is_ascii() && text.lines().count() == 4, "{text}");
            assert_eq!(parse(&text), Ok(file));
        }
        assert_eq!(escape(Path::new("/mnt/my relay")), "/mnt/my\\040relay");
    }

    /// Each of these is refused, with the number of its line and a reason.
    #[test]
    fn lines_of_another_form_are_refused() {
        let channel = "channel 1 held 64 2 0 no-overwrite percpu 2 a";
        assert!(with(&[channel]).is_ok());
        let long = format!("channel 1 held 64 2 0 no-overwrite percpu 2 {}", "x".repeat(100_000));
        for (line, why) in [
            ("", "'channel' was expected"),
            ("what 1", "'channel' was expected"),
            ("gone", "'channel' was expected"),
            ("gone dropped", "2 words"),
            ("gone dropped 1 2", "2 words"),
            ("gone Dropped 1", "no count's name"),
            ("gone dropped -1", "number"),
            ("gone dropped 18446744073709551616", "number"),
            ("channel 1 held 64 2 0 no-overwrite percpu 2", "9 words"),
            ("channel  1 held 64 2 0 no-overwrite percpu 2 a", "9 words"),
            ("channel 1 held 64 2 0 no-overwrite percpu 2 a ", "9 words"),
            ("channel 1 held 64 2 0 no-overwrite percpu 2 a\r", "not a channel name"),
            ("channel 1 held 64 2 0 no-overwrite percpu 2 ../a", "not a channel name"),
            (&long, "not a channel name"),
            ("channel 0 held 64 2 0 no-overwrite percpu 2 a", "from 1"),
            ("channel 8 held 64 2 0 no-overwrite percpu 2 a", "highest number"),
            ("channel 01 held 64 2 0 no-overwrite percpu 2 a", "number"),
            ("channel +1 held 64 2 0 no-overwrite percpu 2 a", "number"),
            ("channel 4294967296 held 64 2 0 no-overwrite percpu 2 a", "number"),
            ("channel 1 Held 64 2 0 no-overwrite percpu 2 a", "'held' or 'permanent'"),
            ("channel 1 held 64 2 0 overwrit percpu 2 a", "'no-overwrite' or 'overwrite'"),
            ("channel 1 held 64 2 0 overwrite cpu 2 a", "'percpu' or 'global'"),
            ("channel 1 held 0 2 0 overwrite percpu 2 a", "out of range"),
            ("channel 1 held 64 0 0 overwrite percpu 2 a", "out of range"),
            ("channel 1 held 64 2 64 overwrite percpu 2 a", "no room"),
            ("channel 1 held 67108864 65536 0 overwrite percpu 2 a", "too many for one buffer"),
            ("channel 1 held 64 2 0 overwrite percpu 0 a", "so many buffers"),
            ("channel 1 held 64 2 0 overwrite global 2 a", "so many buffers"),
            ("channel 1 held 64 2 0 overwrite percpu 65537 a", "so many buffers"),
            ("last_id 9", "'channel' was expected"),
        ] {
            let error = with(&[line]).unwrap_err();
            assert!(error.starts_with("line 5, ") && error.contains(why), "{line:.99}: {error}");
            assert!(error.len() < 500, "{error}");
        }
        let error = with(&["gone dropped 1", channel]).unwrap_err();
        assert!(error.starts_with("line 6, "), "{error}");
    }

    #[test]
    fn heads_of_another_form_are_refused() {
        for (from, to, line) in [
            ("relayfs-state 1", "relayfs-state 2", "line 1, "),
            ("relayfs-state 1", "relayfs-state 01", "line 1, "),
            ("relayfs-state 1", "relayfs-state", "line 1, "),
            ("relayfs-state 1", "\u{feff}relayfs-state 1", "line 1, "),
            ("64768:131", "64768", "line 2, "),
            ("64768:131", "64768:", "line 2, "),
            ("64768:131", "-1:131", "line 2, "),
            ("/mnt/relay", "mnt/relay", "line 2, "),
            ("/mnt/relay", "/mnt/my relay", "line 2, "),
            ("/mnt/relay", "/mnt\\04", "line 2, "),
            ("/mnt/relay", "/mnt\\777", "line 2, "),
            ("/mnt/relay", "/mnt\\141", "line 2, "),
            ("/mnt/relay", "/ä", "line 2, "),
            ("epoch 3", "epoch three", "line 3, "),
            ("epoch 3\n", "", "line 3, "),
            ("last_id 7", "last_id 4294967296", "line 4, "),
            ("last_id 7\n", "", "it ends before"),
            ("last_id 7\n", "last_id 7", "its last line has no end"),
        ] {
            let text = HEAD.replace(from, to);
            assert_ne!(text, HEAD);
            let error = parse(&text).unwrap_err();
            assert!(error.starts_with(line), "{to}: {error}");
        }
        assert_eq!(parse("").unwrap_err(), "it is empty");
        assert!(parse("\n").unwrap_err().starts_with("line 1, "));
        assert!(parse(&"\n".repeat(STATE_LEN_MAX + 1)).unwrap_err().contains("more than"));
        let point = format!("/{}", "x".repeat(POINT_LEN_MAX));
        assert!(parse(&HEAD.replace("/mnt/relay", &point)).is_err());
    }

    #[test]
    fn what_cannot_be_there_twice_or_together_is_refused() {
        let line = |id: u32, name: &str| format!("channel {id} held 64 2 0 no-overwrite percpu 2 {name}");
        let two = |first: &str, second: &str| with(&[first, second]);
        assert!(two(&line(1, "a"), &line(2, "b")).is_ok());
        assert!(two(&line(1, "a"), &line(1, "b")).unwrap_err().contains("line 6"));
        assert!(two(&line(1, "a"), &line(2, "a")).unwrap_err().contains("of this name"));
        assert!(two("gone dropped 1", "gone dropped 1").unwrap_err().contains("of this name"));
        for (a, b) in [("a", "a1"), ("a", "a/b"), ("app/log", "app/log7"), ("a", "a1/b"), ("x/a", "x/a/b")] {
            for (a, b) in [(a, b), (b, a)] {
                assert!(
                    two(&line(1, a), &line(2, b)).unwrap_err().contains("cannot exist together"),
                    "{a} {b}"
                );
            }
        }
        for (a, b) in [("a", "a1b"), ("a", "ab"), ("a1", "a2"), ("app/log", "app/logger")] {
            assert!(two(&line(1, a), &line(2, b)).is_ok(), "{a} {b}");
        }
    }

    /// A file of the longest length that is looked at does not take for ever.
    #[test]
    fn many_channels_are_read_quickly() {
        let mut text = HEAD.replace("last_id 7", "last_id 4294967295");
        for id in 1..=200_000 {
            text += &format!("channel {id} held 64 2 0 no-overwrite percpu 2 a/b{id}x\n");
        }
        assert_eq!(parse(&text).unwrap().channels.len(), 200_000);
    }

    /// Whatever one byte is changed to, it is refused, or it says what is written there.
    #[test]
    fn no_change_of_a_byte_is_misunderstood() {
        let text = format!("{HEAD}channel 1 held 64 2 0 no-overwrite percpu 2 app/log\ngone dropped 3\n");
        for at in 0..text.len() {
            for b in 0..128 {
                let mut bytes = text.clone().into_bytes();
                bytes[at] = b;
                let changed = String::from_utf8(bytes).expect("ASCII");
                if let Ok(file) = parse(&changed) {
                    assert_eq!(file.to_text(), changed);
                }
            }
        }
    }
}
