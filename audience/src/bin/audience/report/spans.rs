//! Spans as bars on the lines of their threads.

use std::collections::HashMap;

/// Most spans in a page.
const SPANS_MAX: usize = 100_000;
/// Most open spans. A trace is hostile input.
const OPEN_MAX: usize = 1 << 16;
/// Deepest row of a thread's spans; deeper ones share it.
const DEPTH_MAX: usize = 15;
/// Bytes of a name that are kept.
const NAME_MAX: usize = 100;

/// A span that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bar {
    pub(super) begin: u64,
    pub(super) end: u64,
    /// The thread's line.
    pub(super) line: usize,
    pub(super) depth: usize,
    pub(super) name: String,
    /// Whether its end is missing.
    pub(super) is_open: bool,
}

#[derive(Debug)]
struct Open {
    begin: u64,
    line: usize,
    depth: usize,
    name: String,
}

/// The spans of a report.
#[derive(Debug, Default)]
pub(super) struct Spans {
    pub(super) bars: Vec<Bar>,
    /// The names of lines.
    pub(super) lines: Vec<String>,
    by_name: HashMap<String, usize>,
    /// By channel, process and span id.
    open: HashMap<(usize, u32, u64), Open>,
    /// The rows of each line that are taken.
    taken: HashMap<usize, Vec<bool>>,
    /// Spans that are left out.
    pub(super) left_out: u64,
}

impl Spans {
    /// Begins a span of a thread; `writer` names the thread.
    pub(super) fn begin(&mut self, key: (usize, u32, u64), writer: &str, name: &[u8], time: u64) {
        if self.bars.len() + self.open.len() >= SPANS_MAX || self.open.len() >= OPEN_MAX {
            self.left_out += 1;
            return;
        }
        let line = match self.by_name.get(writer) {
            Some(line) => *line,
            None => {
                self.lines.push(writer.to_owned());
                self.by_name.insert(writer.to_owned(), self.lines.len() - 1);
                self.lines.len() - 1
            }
        };
        self.end(key, time, true);
        let rows = self.taken.entry(line).or_insert_with(|| vec![false; DEPTH_MAX + 1]);
        let depth = rows.iter().position(|taken| !taken).unwrap_or(DEPTH_MAX);
        rows[depth] = true;
        let name = String::from_utf8_lossy(&name[..name.len().min(NAME_MAX)]).into_owned();
        self.open.insert(key, Open { begin: time, line, depth, name });
    }

    /// Ends a span, if it is open.
    pub(super) fn end(&mut self, key: (usize, u32, u64), time: u64, is_open: bool) {
        let Some(Open { begin, line, depth, name }) = self.open.remove(&key) else { return };
        if let Some(row) = self.taken.get_mut(&line).and_then(|rows| rows.get_mut(depth)) {
            *row = false;
        }
        self.bars.push(Bar { begin, end: time.max(begin), line, depth, name, is_open });
    }

    /// Ends the spans of a process, or of a whole channel.
    pub(super) fn end_all(&mut self, channel: usize, process: Option<u32>, time: u64) {
        let of =
            |key: &&(usize, u32, u64)| key.0 == channel && process.is_none_or(|process| process == key.1);
        let mut keys: Vec<_> = self.open.keys().filter(of).copied().collect();
        keys.sort_unstable();
        keys.into_iter().for_each(|key| self.end(key, time, true));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_spans_have_rows() {
        let mut spans = Spans::default();
        spans.begin((0, 1, 1), "app[1]", b"outer", 10);
        spans.begin((0, 1, 2), "app[1]", b"inner", 20);
        spans.begin((0, 1, 3), "app[2]", b"other", 25);
        spans.end((0, 1, 2), 30, false);
        spans.begin((0, 1, 4), "app[1]", b"next", 40);
        spans.end((0, 1, 9), 45, false);
        spans.end_all(0, Some(1), 50);
        let found: Vec<_> =
            spans.bars.iter().map(|bar| (&bar.name[..], bar.line, bar.depth, bar.end, bar.is_open)).collect();
        assert_eq!(
            found,
            [
                ("inner", 0, 1, 30, false),
                ("outer", 0, 0, 50, true),
                ("other", 1, 0, 50, true),
                ("next", 0, 1, 50, true)
            ]
        );
        assert_eq!(spans.lines, ["app[1]", "app[2]"]);
    }

    #[test]
    fn hostile_spans_take_bounded_memory() {
        let mut spans = Spans::default();
        for id in 0..2 * OPEN_MAX as u64 {
            spans.begin((0, 1, id), "app", &[b'n'; 5000], id);
        }
        assert_eq!((spans.open.len(), spans.left_out), (OPEN_MAX, OPEN_MAX as u64));
        spans.end_all(0, None, u64::MAX);
        assert!(spans.open.is_empty() && spans.bars.iter().all(|bar| bar.depth <= DEPTH_MAX));
    }
}
