//! [`io::Write`] for a channel: for code that writes to any file.

use std::fmt;
use std::io::{self, IoSlice, Write};

use relay::trace::event::id;

use super::Channel;
use crate::direct::content::RecordOf;
use crate::error::WriteError;

/// Each call of [`write`](io::Write::write), `write_all`, `write_vectored` or `write!` is one message, whole.
///
/// On a raw channel the message is the bytes as they are. On a timed channel it is a `text` record, without the newline
/// at its end. No bytes are no message.
///
/// ```no_run
/// use std::io::Write;
///
/// let channel = relay_producer::Channel::open("/mnt/relay", "cpu")?;
/// writeln!(&channel, "{} rows", 3)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// **Errors.** What is too long for a message is [`InvalidInput`](io::ErrorKind::InvalidInput), and not cut. No room is
/// [`StorageFull`](io::ErrorKind::StorageFull), without a daemon it is [`NotConnected`](io::ErrorKind::NotConnected).
/// The message is then lost, and counted as by [`Channel::write`]. The inner error is a [`WriteError`].
///
/// **Parts of a line.** Nothing joins them. On a timed channel each part is a record. A raw channel has no framing: other
/// messages may come between the parts, and a thread that moves writes the next part into another CPU's buffer. So give a
/// line in one call; a [`LineWriter`](io::LineWriter) around the channel does that for code that writes in parts.
///
/// **Flush** does nothing: a message that was written is on its way. [`Channel::flush`] finishes the sub-buffers, and
/// takes room.
impl Write for &Channel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_message(bytes)?;
        Ok(bytes.len())
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match parts {
            [part] => self.write(part),
            parts => {
                let parts: Vec<&[u8]> = parts.iter().map(|part| &part[..]).collect();
                self.write(&parts.concat())
            }
        }
    }

    fn write_fmt(&mut self, args: fmt::Arguments<'_>) -> io::Result<()> {
        if let Some(text) = args.as_str() {
            return Ok(self.write_message(text.as_bytes())?);
        }
        let mut text = String::new();
        fmt::write(&mut text, args)
            .map_err(|_| io::Error::other("a value of the message cannot be formatted"))?;
        Ok(self.write_message(text.as_bytes())?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Channel {
    /// Writes a message as [`io::Write`] promises it.
    fn write_message(&self, bytes: &[u8]) -> Result<(), WriteError> {
        if bytes.is_empty() {
            Ok(())
        } else if self.is_timed() {
            let text = bytes.strip_suffix(b"\n").unwrap_or(bytes);
            self.route.write_record(RecordOf::built_in(id::TEXT), text)
        } else {
            self.route.write(None, bytes)
        }
    }
}
