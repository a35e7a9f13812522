//! Cuts standard input into messages.
//!
//! It uses large reads, allocates no memory for messages, and holds no message back when the input pauses.

use std::io::{self, Read};
use std::os::fd::AsFd;

use memchr::memchr_iter;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Bytes of one read.
const READ_SIZE: usize = 256 << 10;

/// The end of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// After each of these bytes, which belong to the messages they end.
    After(u8),
    /// After this many bytes.
    Every(usize),
}

/// The receiver of the messages.
pub(crate) trait Sink {
    /// The error of the receiver.
    type Error: From<io::Error>;
    /// Takes a message, the `number`th, counted from 1.
    fn message(&mut self, number: u64, message: &[u8]) -> Result<(), Self::Error>;
    /// Takes the beginning of a message over the limit; further parts and its end follow.
    /// False: it is left, and the message is skipped.
    fn part(&mut self, part: &[u8]) -> Result<bool, Self::Error>;
    /// Takes note of a message over the limit, which was skipped.
    fn skipped(&mut self, number: u64) -> Result<(), Self::Error>;
    /// Called when there is no more input at the moment.
    fn pause(&mut self) -> Result<(), Self::Error>;
}

/// Feeds `sink` with all messages of `source`.
/// Messages of more than `limit` bytes are skipped, unless the sink takes them in parts. One that happens to be in memory
/// as a whole is left to the sink. Memory holds at most the limit and one read.
pub(crate) fn feed<R: Read + AsFd, S: Sink>(
    mut source: R,
    cut: Cut,
    limit: usize,
    sink: &mut S,
) -> Result<(), S::Error> {
    let mut buffer = vec![0; limit + READ_SIZE];
    // Bytes of an unfinished message at the start of the buffer.
    let mut kept = 0;
    // Whether the beginning of the present message was discarded.
    let mut skipping = false;
    let mut number = 1;
    loop {
        let len = match source.read(&mut buffer[kept..kept + READ_SIZE]) {
            Ok(0) => break,
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        let filled = &buffer[..kept + len];
        let mut start = 0;
        match cut {
            Cut::After(end) => {
                for at in memchr_iter(end, &filled[kept..]) {
                    let message = &filled[start..=kept + at];
                    if std::mem::take(&mut skipping) {
                        sink.skipped(number)?;
                    } else {
                        sink.message(number, message)?;
                    }
                    start += message.len();
                    number += 1;
                }
            }
            Cut::Every(len) => {
                for message in filled.chunks_exact(len) {
                    sink.message(number, message)?;
                    start += len;
                    number += 1;
                }
            }
        }
        kept = filled.len() - start;
        if start > 0 {
            buffer.copy_within(start..start + kept, 0);
        }
        if kept > limit || skipping {
            skipping = skipping || !sink.part(&buffer[..kept])?;
            kept = 0;
        }
        if !has_more(&source) {
            sink.pause()?;
        }
    }
    if skipping {
        sink.skipped(number)
    } else if kept > 0 {
        sink.message(number, &buffer[..kept])
    } else {
        Ok(())
    }
}

/// Returns whether a read would return at once; the end of input counts.
fn has_more(source: &impl AsFd) -> bool {
    // If poll fails, the next read tells why.
    poll(&mut [PollFd::new(source.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO) != Ok(0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::BorrowedFd;
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[derive(Debug, PartialEq)]
    enum Event {
        Message(u64, Vec<u8>),
        Skipped(u64),
    }
    use Event::{Message, Skipped};

    #[derive(Default)]
    struct Events {
        list: Vec<Event>,
        /// Parts of the present message, if it takes any.
        parts: Option<Vec<u8>>,
    }

    impl Sink for Events {
        type Error = io::Error;

        fn message(&mut self, number: u64, message: &[u8]) -> io::Result<()> {
            let mut whole = self.parts.as_mut().map(std::mem::take).unwrap_or_default();
            whole.extend_from_slice(message);
            self.list.push(Message(number, whole));
            Ok(())
        }

        fn part(&mut self, part: &[u8]) -> io::Result<bool> {
            Ok(self.parts.as_mut().map(|parts| parts.extend_from_slice(part)).is_some())
        }

        fn skipped(&mut self, number: u64) -> io::Result<()> {
            self.list.push(Skipped(number));
            Ok(())
        }

        fn pause(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Returns its bytes in pieces of one length. The descriptor can be any.
    struct Pieces<'a>(&'a [u8], usize, io::Stdin);

    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let len = self.1.min(buffer.len());
            self.0.read(&mut buffer[..len])
        }
    }

    impl AsFd for Pieces<'_> {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.2.as_fd()
        }
    }

    fn events(text: &[u8], cut: Cut, limit: usize, read: usize) -> Vec<Event> {
        let mut events = Events::default();
        feed(Pieces(text, read, io::stdin()), cut, limit, &mut events).unwrap();
        events.list
    }

    #[test]
    fn lines_keep_their_newline_if_they_have_one() {
        for read in 1..20 {
            let got = events(b"one\n\ntwo\nthree", Cut::After(b'\n'), 100, read);
            let lines = [&b"one\n"[..], b"\n", b"two\n", b"three"];
            let expected = lines.iter().zip(1..).map(|(line, number)| Message(number, line.to_vec()));
            assert_eq!(got, expected.collect::<Vec<_>>(), "reads of {read}");
        }
        assert_eq!(events(b"", Cut::After(b'\n'), 100, 9), []);
        assert_eq!(
            events(b"a\0b\n\0", Cut::After(0), 100, 2),
            [Message(1, b"a\0".to_vec()), Message(2, b"b\n\0".to_vec())]
        );
    }

    #[test]
    fn chunks_are_cut_by_length_alone() {
        for read in 1..9 {
            let got = events(b"abcdefgh", Cut::Every(3), 3, read);
            let expected =
                [Message(1, b"abc".to_vec()), Message(2, b"def".to_vec()), Message(3, b"gh".to_vec())];
            assert_eq!(got, expected, "reads of {read}");
        }
    }

    #[test]
    fn line_over_the_limit_is_skipped() {
        let long = "x".repeat(3 * READ_SIZE);
        let text = format!("first\n{long}\nthird\n{long}");
        for read in [1000, 4099, READ_SIZE] {
            let got = events(text.as_bytes(), Cut::After(b'\n'), 8192, read);
            let expected =
                [Message(1, b"first\n".to_vec()), Skipped(2), Message(3, b"third\n".to_vec()), Skipped(4)];
            assert_eq!(got, expected, "reads of {read}");
        }
        let line = [b'x'; 100];
        assert_eq!(
            events(&line, Cut::After(b'\n'), 100, 7),
            [Message(1, line.to_vec())],
            "exactly the limit"
        );
    }

    #[test]
    fn line_over_the_limit_comes_in_parts_if_they_are_taken() {
        let long = "x".repeat(3 * READ_SIZE);
        let text = format!("first\n{long}\nthird\n{long}");
        for read in [1000, 4099, READ_SIZE] {
            let mut events = Events { parts: Some(Vec::new()), ..Events::default() };
            feed(Pieces(text.as_bytes(), read, io::stdin()), Cut::After(b'\n'), 8192, &mut events).unwrap();
            // The end of the input may end in a part.
            if let Some(last) = events.parts.take().filter(|last| !last.is_empty()) {
                events.list.push(Message(4, last));
            }
            let lines = ["first\n", &format!("{long}\n"), "third\n", &long];
            let expected =
                lines.iter().zip(1..).map(|(line, number)| Message(number, line.as_bytes().into()));
            assert!(events.list.into_iter().eq(expected), "reads of {read}");
        }
    }

    /// Sends a signal at every pause, and ignores messages.
    struct Pauses(mpsc::Sender<()>);

    impl Sink for Pauses {
        type Error = io::Error;

        fn message(&mut self, _: u64, _: &[u8]) -> io::Result<()> {
            Ok(())
        }

        fn part(&mut self, _: &[u8]) -> io::Result<bool> {
            Ok(false)
        }

        fn skipped(&mut self, _: u64) -> io::Result<()> {
            Ok(())
        }

        fn pause(&mut self) -> io::Result<()> {
            self.0.send(()).map_err(io::Error::other)
        }
    }

    #[test]
    fn pause_of_open_input_is_noticed() {
        let (input, mut output) = io::pipe().unwrap();
        let (sender, pauses) = mpsc::channel();
        let feeder = thread::spawn(move || feed(input, Cut::After(b'\n'), 100, &mut Pauses(sender)));
        for _ in 0..3 {
            output.write_all(b"line\n").unwrap();
            pauses.recv().unwrap();
        }
        drop(output);
        feeder.join().unwrap().unwrap();
    }
}
