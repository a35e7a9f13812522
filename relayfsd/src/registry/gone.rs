//! The counters of channels that are gone, by name and buffer, so that sums by name never fall.
//!
//! A channel that comes back with the same name counts from zero; `metrics` adds what its name counted before. The names
//! are bounded: the one that went first is forgotten first. The state file has them as lines
//! `gone NAME:cpu0.dropped 12`, which an older release ignores.

use std::collections::BTreeMap;

use relay::ChannelName;

use crate::channel::stats::Counts;

/// Most bytes of the lines in the state file, which each save writes.
const TEXT_MAX: usize = 256 << 10;
/// Bytes of a line besides the channel's name: at most the longest counter, and a number.
const LINE_LEN: usize = 64;

/// The counters of a name.
struct Gone {
    /// Grows with each channel that goes.
    order: u64,
    by_cpu: BTreeMap<u32, Counts>,
    len: usize,
}

/// The counters of all names.
#[derive(Default)]
pub(super) struct GoneByName {
    names: BTreeMap<ChannelName, Gone>,
    last: u64,
    len: usize,
}

impl GoneByName {
    /// Adds the counters of a buffer whose channel is gone.
    pub(super) fn add(&mut self, name: &ChannelName, cpu: u32, counts: &Counts) {
        if counts.counters().all(|(_, value)| value == 0) {
            return;
        }
        self.last += 1;
        let gone = self.names.entry(name.clone()).or_insert_with(|| Gone {
            order: 0,
            by_cpu: BTreeMap::new(),
            len: 0,
        });
        gone.order = self.last;
        gone.by_cpu.entry(cpu).or_default().add(counts);
        let lines = gone.by_cpu.values().flat_map(Counts::counters).filter(|(_, value)| *value != 0).count();
        let len = lines * (name.as_str().len() + LINE_LEN);
        self.len = self.len - gone.len + len;
        gone.len = len;
        while self.len > TEXT_MAX {
            let first = self.names.iter().min_by_key(|(_, gone)| gone.order).map(|(name, _)| name.clone());
            let Some(first) = first.and_then(|name| self.names.remove(&name)) else { return };
            self.len -= first.len;
        }
    }

    /// Adds a line of a state file, if it is one of these.
    pub(super) fn add_line(&mut self, key: &str, value: u64) -> bool {
        let Some((name, cpu, counter)) = parse(key) else { return false };
        let mut counts = Counts::default();
        counts.set(counter, value);
        self.add(&name, cpu, &counts);
        true
    }

    /// Returns the lines for the state file.
    pub(super) fn lines(&self) -> impl Iterator<Item = (String, u64)> {
        let mut names: Vec<_> = self.names.iter().collect();
        names.sort_by_key(|(_, gone)| gone.order);
        names.into_iter().flat_map(|(name, gone)| {
            gone.by_cpu.iter().flat_map(move |(cpu, counts)| {
                let counters = counts.counters().filter(|(_, value)| *value != 0);
                counters.map(move |(counter, value)| (format!("{name}:cpu{cpu}.{counter}"), value))
            })
        })
    }

    /// Returns the counters by name and buffer.
    pub(super) fn all(&self) -> BTreeMap<ChannelName, BTreeMap<u32, Counts>> {
        self.names.iter().map(|(name, gone)| (name.clone(), gone.by_cpu.clone())).collect()
    }
}

/// Splits `NAME:cpu0.dropped`.
fn parse(key: &str) -> Option<(ChannelName, u32, &str)> {
    let (name, rest) = key.split_once(':')?;
    let (cpu, counter) = rest.strip_prefix("cpu")?.split_once('.')?;
    Some((name.parse().ok()?, cpu.parse().ok()?, counter))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dropped(n: u64) -> Counts {
        Counts { dropped: n, high_water: 9, ..Counts::default() }
    }

    #[test]
    fn counters_of_a_name_add_up_and_survive_as_lines() {
        let mut gone = GoneByName::default();
        let (log, err) = ("app/log".parse().unwrap(), "app/err".parse().unwrap());
        gone.add(&log, 1, &dropped(2));
        gone.add(&err, 0, &dropped(5));
        gone.add(&log, 1, &dropped(3));
        gone.add(&err, 1, &Counts { high_water: 3, ..Counts::default() });
        let lines: Vec<(String, u64)> = gone.lines().collect();
        assert_eq!(lines, [("app/err:cpu0.dropped".into(), 5), ("app/log:cpu1.dropped".into(), 5)]);
        let mut read = GoneByName::default();
        assert!(lines.iter().all(|(key, value)| read.add_line(key, *value)));
        assert_eq!(read.all()[&log][&1].dropped, 5);
        for other in ["dropped", "a:cpu0", "a:cpux.dropped", "../a:cpu0.dropped", ":"] {
            assert!(!read.add_line(other, 1), "{other}");
        }
        assert_eq!(read.lines().count(), 2);
    }

    #[test]
    fn the_name_that_went_first_is_forgotten_first() {
        let mut gone = GoneByName::default();
        let name = |n: usize| format!("channel-{n}x").parse().unwrap();
        for n in 0..10_000 {
            gone.add(&name(n), 0, &dropped(1));
        }
        let all = gone.all();
        assert!(all.len() > 1000 && gone.len <= TEXT_MAX, "{}", all.len());
        assert!(all.contains_key(&name(9_999)) && !all.contains_key(&name(0)));
        assert!(gone.lines().map(|(key, _)| key.len() + 22).sum::<usize>() <= TEXT_MAX);
    }
}
