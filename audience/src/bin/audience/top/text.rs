//! The last lines of a channel, read from copies, so that nothing is consumed.
//!
//! A channel that has not changed since the last look is not read again. In no-overwrite mode the copies have what is
//! unread; what a reader takes before the next look is not shown.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use relay::cli::one_line::one_line;

use crate::channel_files::Place;
use crate::monitor::look::ChannelLook;

/// Bytes of a copy's end that are read.
const TAIL: u64 = 32 << 10;
/// Lines that are kept.
const LINES_MAX: usize = 200;

/// The lines, and of which channel; how much that had when they were read.
#[derive(Debug, Default)]
pub(super) struct Text {
    channel: String,
    lines: Vec<String>,
    seen: Option<u64>,
}

impl Text {
    /// Returns the lines. Reads them again if the channel has changed, or is another one.
    pub(super) fn read(&mut self, mount: &Path, channel: &ChannelLook) -> &[String] {
        if self.channel != channel.name {
            *self = Text { channel: channel.name.clone(), ..Text::default() };
        }
        let bytes = channel.buffers.iter().fold(0, |sum: u64, buffer| {
            sum.wrapping_add(buffer.bytes)
                .wrapping_add(buffer.read_bytes)
                .wrapping_add(buffer.discarded_bytes)
        });
        if self.seen == Some(bytes) {
            return &self.lines;
        }
        let Ok(name) = channel.name.parse() else { return &self.lines };
        let place = Place { mount: mount.to_owned(), channel: name };
        let lines = if channel.is_timed {
            tail(&place.control_path("trace"))
        } else {
            let of = |cpu| {
                let lines = tail(&place.control_path("snapshot").join(format!("cpu{cpu}")))?;
                Ok(lines.into_iter().map(|line| format!("cpu{cpu} {line}")).collect::<Vec<_>>())
            };
            (0..channel.buffers.len()).map(of).collect::<io::Result<Vec<_>>>().map(|all| all.concat())
        };
        match lines {
            Ok(lines) => (self.lines, self.seen) = (lines, Some(bytes)),
            Err(error) => self.lines = vec![format!("cannot read it: {error}")],
        }
        self.lines.drain(..self.lines.len().saturating_sub(LINES_MAX));
        &self.lines
    }
}

/// Returns the last whole lines of a file of text, or of bytes.
fn tail(path: &Path) -> io::Result<Vec<String>> {
    let file = File::open(path)?;
    let begin = file.metadata()?.len().saturating_sub(TAIL);
    let mut bytes = vec![0; TAIL as usize];
    let mut len = 0;
    while len < bytes.len() {
        match file.read_at(&mut bytes[len..], begin + len as u64)? {
            0 => break,
            n => len += n,
        }
    }
    let text = String::from_utf8_lossy(&bytes[..len]);
    let mut lines = text.lines();
    if begin > 0 {
        lines.next(); // cut
    }
    Ok(lines.map(|line| one_line(line).into_owned()).collect())
}
