//! Decides which channels stay when the daemon ends, and makes the log lines about them.

use std::path::Path;

use relay::ChannelName;
use relay::layout::paths::shell_word;

use crate::config::options::Keep;

/// Most channels that a log line names.
const NAMED_MAX: usize = 20;

/// A channel at the daemon's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) name: ChannelName,
    /// Number of unread bytes.
    pub(crate) unread: u64,
    /// Whether a live producer has the channel's files.
    pub(crate) has_producers: bool,
    pub(crate) is_broken: bool,
}

impl Left {
    /// Returns whether the channel stays.
    pub(crate) fn stays(&self, keep: Keep) -> bool {
        match keep {
            Keep::Nothing => false,
            Keep::Unread => self.has_something(),
            Keep::All => true,
        }
    }

    /// Returns whether the channel may have data to keep.
    ///
    /// Unread data of a broken channel cannot be counted.
    fn has_something(&self) -> bool {
        self.unread > 0 || self.has_producers || self.is_broken
    }

    fn text(&self) -> String {
        let more = match (self.is_broken, self.has_producers) {
            (true, _) => " (broken)",
            (false, true) => " (a producer writes on)",
            (false, false) => "",
        };
        format!("{} {} bytes{more}", self.name, self.unread)
    }
}

/// Makes the line about channels that stay: names, place, and commands.
///
/// `None`: no channel has data.
pub(crate) fn line_of_kept(left: &[Left], dir: &Path, point: &Path) -> Option<String> {
    let names = names(left)?;
    let (word, point) = (shell_word(dir), shell_word(point));
    Some(format!(
        "unread data stays in {}: {names}; to read it: audience --state {word}; to continue with it: relayfsd {point}; \
         to remove it: rm -r {word}",
        dir.display()
    ))
}

/// Makes the line about channels whose directory was removed or moved while the daemon ran.
///
/// `None`: no channel has unread data.
pub(crate) fn line_of_lost(left: &[Left], dir: &Path) -> Option<String> {
    let names = names(left)?;
    Some(format!(
        "{} was removed or moved while relayfsd used it, and unread data with it: {names}",
        dir.display()
    ))
}

/// Makes the line about channels that `--discard` removes.
///
/// `None`: no channel has unread data.
pub(crate) fn line_of_discarded(left: &[Left]) -> Option<String> {
    let unread: Vec<Left> = left.iter().filter(|left| left.unread > 0).cloned().collect();
    Some(format!("--discard removed unread data: {}", names(&unread)?))
}

fn names(left: &[Left]) -> Option<String> {
    let mut texts: Vec<String> = left.iter().filter(|left| left.has_something()).map(Left::text).collect();
    if texts.is_empty() {
        return None;
    }
    let n_more = texts.len().saturating_sub(NAMED_MAX);
    texts.truncate(NAMED_MAX);
    let more = if n_more > 0 { format!(" and {n_more} more channels") } else { String::new() };
    Some(texts.join(", ") + &more)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(name: &str, unread: u64) -> Left {
        Left { name: name.parse().unwrap(), unread, has_producers: false, is_broken: false }
    }

    #[test]
    fn channels_with_data_or_producers_stay_by_default() {
        let empty = left("a", 0);
        let produced = Left { has_producers: true, ..left("b", 0) };
        let broken = Left { is_broken: true, ..left("c", 0) };
        for (channel, stays) in [(&empty, false), (&left("d", 1), true), (&produced, true), (&broken, true)] {
            assert_eq!(channel.stays(Keep::Unread), stays, "{channel:?}");
            assert!(channel.stays(Keep::All) && !channel.stays(Keep::Nothing));
        }
    }

    #[test]
    fn lines_name_only_channels_with_data() {
        let said = |left: &[Left]| line_of_kept(left, Path::new("/s"), Path::new("/m"));
        assert_eq!(said(&[left("a", 0)]), None);
        let line = said(&[left("a", 0), left("b", 7)]).unwrap();
        assert!(
            line.starts_with("unread data stays in /s: b 7 bytes; to read it: audience --state /s; "),
            "{line}"
        );
        let many: Vec<Left> = (0..25).map(|n| left(&format!("c{n}x"), 1)).collect();
        assert!(said(&many).unwrap().contains("c19x 1 bytes and 5 more channels; "));
        assert_eq!(line_of_lost(&[left("a", 0)], Path::new("/s")), None);
        assert_eq!(line_of_discarded(&[left("a", 0)]), None);
        let line = line_of_discarded(&[left("a", 0), left("b", 7)]).unwrap();
        assert_eq!(line, "--discard removed unread data: b 7 bytes");
    }
}
