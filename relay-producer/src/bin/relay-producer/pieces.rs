//! Cuts lines that are longer than a record into pieces.

/// Returns the length of the first piece of a line that is longer than `limit`, which is not 0.
/// No character of UTF-8 text is cut, unless the limit is shorter than one.
fn first_piece(line: &[u8], limit: usize) -> usize {
    let is_start = |at: &usize| line[*at] & 0xc0 != 0x80;
    (limit.saturating_sub(3).max(1)..=limit).rev().find(is_start).unwrap_or(limit)
}

/// Returns the pieces of a line, at least one, each of at most `limit` bytes.
pub(crate) fn pieces(line: &[u8], limit: usize) -> impl Iterator<Item = &[u8]> {
    let (limit, mut rest) = (limit.max(1), Some(line));
    std::iter::from_fn(move || {
        let line = rest.take()?;
        if line.len() <= limit {
            return Some(line);
        }
        let (piece, behind) = line.split_at(first_piece(line, limit));
        rest = Some(behind);
        Some(piece)
    })
}

/// A stream's bytes, cut into lines without their newlines.
#[derive(Debug)]
pub(crate) struct Lines {
    /// The beginning of a line that has not ended.
    kept: Vec<u8>,
    /// Whether a piece of that line has been given out.
    continues: bool,
    limit: usize,
}

impl Lines {
    /// Begins a stream whose lines are given out in pieces of at most `limit` bytes.
    pub(crate) fn new(limit: usize) -> Lines {
        Lines { kept: Vec::new(), continues: false, limit: limit.max(1) }
    }

    /// Gives out longer or shorter pieces from now on.
    pub(crate) fn set_limit(&mut self, limit: usize) {
        self.limit = limit.max(1);
    }

    /// Takes the next bytes, and calls `give` with each piece that they complete.
    pub(crate) fn take(&mut self, bytes: &[u8], mut give: impl FnMut(&[u8])) {
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', bytes) {
            let line = &bytes[start..end];
            start = end + 1;
            if self.kept.is_empty() && !self.continues {
                pieces(line, self.limit).for_each(&mut give);
            } else {
                self.kept.extend_from_slice(line);
                self.end(&mut give);
            }
        }
        self.kept.extend_from_slice(&bytes[start..]);
        let mut given = 0;
        while self.kept.len() - given > self.limit {
            let len = first_piece(&self.kept[given..], self.limit);
            give(&self.kept[given..given + len]);
            given += len;
            self.continues = true;
        }
        self.kept.drain(..given);
    }

    /// Ends the stream, or a line: gives out what is left of it.
    pub(crate) fn end(&mut self, mut give: impl FnMut(&[u8])) {
        if !(self.continues && self.kept.is_empty()) {
            pieces(&self.kept, self.limit).for_each(&mut give);
        }
        self.kept.clear();
        self.continues = false;
    }

    /// Returns whether a line has begun and not ended.
    pub(crate) fn is_inside(&self) -> bool {
        !self.kept.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[u8], read: usize, limit: usize) -> Vec<Vec<u8>> {
        let (mut lines, mut got) = (Lines::new(limit), Vec::new());
        text.chunks(read).for_each(|bytes| lines.take(bytes, |line| got.push(line.to_vec())));
        if lines.is_inside() {
            lines.end(|line| got.push(line.to_vec()));
        }
        got
    }

    #[test]
    fn lines_are_the_same_however_they_arrive() {
        let text = b"one\n\ntwo\r\n\0\xff\nlonger than ten bytes\nexactly 10\nlast";
        let expected: [&[u8]; 9] =
            [b"one", b"", b"two\r", b"\0\xff", b"longer tha", b"n ten byte", b"s", b"exactly 10", b"last"];
        for read in 1..=text.len() {
            assert_eq!(lines(text, read, 10), expected, "reads of {read}");
        }
        assert!(lines(b"", 1, 10).is_empty());
        assert_eq!(lines(b"\n", 1, 10), [b""]);
    }

    #[test]
    fn characters_stay_whole_in_pieces() {
        let text = "aä€😀".repeat(20);
        for limit in 4..20 {
            let got = lines(text.as_bytes(), 7, limit);
            assert!(got.iter().all(|piece| piece.len() <= limit && std::str::from_utf8(piece).is_ok()));
            assert_eq!(got.concat(), text.as_bytes(), "limit {limit}");
        }
        // Neither text without an end, nor a limit below a character's length, holds anything up.
        let got = lines(&[0x80; 50], 50, 7);
        assert!(got.len() <= 8 && got.concat() == [0x80; 50]);
        assert_eq!(lines("€€".as_bytes(), 6, 2).concat(), "€€".as_bytes());
        assert_eq!(pieces(b"", 5).collect::<Vec<_>>(), [b""]);
    }
}
