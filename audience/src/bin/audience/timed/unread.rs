//! What is unread of a buffer, as packets: a copy, or the records themselves where the daemon has no memory for a copy.
//!
//! The records come from the buffer's file, which consumes them. So a reader that dies before it has printed them loses
//! them, and says that beforehand.

use std::fs::{self, File};
use std::io::{self, Cursor, ErrorKind, Read};
use std::sync::Once;

use relay::trace::event::Cause;
use relay::trace::packet::{self, PacketMaker, SubBuffer};
use relay::trace::record::Records;

use super::meaning::Meaning;
use super::take::Take;
use crate::channel_files::Place;
use crate::error::Failure;
use crate::losses::Losses;
use crate::output::say;
use audience_common::note::newest_stamp;

/// Bytes of one read.
const BLOCK: usize = 1 << 20;
/// Most bytes that are read at a time, apart from the rest of a record. A writer may be as fast as this reader.
const READ_MAX: usize = 64 << 20;
/// Most packets without records in front of the one with records: a buffer has no more sub-buffers.
const SUBBUFS_MAX: u64 = 1 << 16;

/// What is unread of a buffer.
pub(crate) enum Unread {
    /// A copy, which is consumed when the reader says so.
    Copy(Take),
    /// Packets of records that are consumed already.
    Consumed(Vec<u8>),
}

impl Unread {
    /// Makes a copy of what is unread of a buffer, or consumes it. `losses` are the buffer's so far.
    pub(crate) fn take(place: &Place, cpu: usize, losses: &Losses) -> Result<Unread, Failure> {
        static SAID: Once = Once::new();
        let path = place.control_path(&format!("take/cpu{cpu}"));
        match Take::open(&path) {
            Err(failure) if failure.is_out_of_memory() => {
                SAID.call_once(|| {
                    say(format_args!(
                        "no memory for a copy of {}: records are read without one, and those that are not printed when \
                         audience is killed are lost; raise relayfsd --max-memory",
                        place.cpu_path(cpu).display()
                    ));
                });
                consume(place, cpu, losses).map(Unread::Consumed)
            }
            copied => copied.map(Unread::Copy),
        }
    }

    /// Returns the length of the packets in bytes.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Unread::Copy(take) => take.len(),
            Unread::Consumed(packets) => packets.len() as u64,
        }
    }

    /// Returns a reader of the packets, which consumes nothing.
    pub(crate) fn look(&mut self) -> Result<Box<dyn Read>, Failure> {
        Ok(match self {
            Unread::Copy(take) => Box::new(take.look()?),
            Unread::Consumed(packets) => Box::new(Cursor::new(std::mem::take(packets))),
        })
    }

    /// Consumes what was read.
    pub(crate) fn consume(self) -> Result<(), Failure> {
        match self {
            Unread::Copy(take) => take.consume(),
            Unread::Consumed(_) => Ok(()),
        }
    }
}

/// Reads the records of a buffer, which consumes them, and makes packets of them.
fn consume(place: &Place, cpu: usize, losses: &Losses) -> Result<Vec<u8>, Failure> {
    // Before anything is consumed: this may fail for the same reason.
    let meaning = Meaning::of_channel(place)?;
    let first = next_number(place, cpu)?;
    let path = place.cpu_path(cpu);
    let file = File::open(&path).map_err(|error| Failure::open(&path, error))?;
    let records = read(file).map_err(|error| Failure::read(&path, error))?;
    if records.is_empty() {
        return Ok(Vec::new());
    }
    let last = next_number(place, cpu).unwrap_or(first).clamp(first, first.saturating_add(SUBBUFS_MAX));
    let cause = if place.overwrites() { Cause::Contended } else { Cause::Full };
    let newest = newest_stamp(&meaning.timeline);
    let mut packets = Vec::new();
    let mut put = |number, losses, records: &[u8]| {
        let subbuf = SubBuffer { number, losses, newest, cause, records };
        PacketMaker::new(cpu as u32, 0, None).packet(&subbuf, &meaning.definitions, &mut packets);
    };
    // The bytes do not say where a sub-buffer ends. Packets without records leave no gap in the numbers.
    (first..last).for_each(|number| put(number, packet::Losses::default(), &[]));
    put(last, packet::Losses { lost: losses.messages(), too_big: losses.too_big() }, &records);
    Ok(packets)
}

/// Reads what is unread, in whole records as far as they are whole.
fn read(mut from: impl Read) -> io::Result<Vec<u8>> {
    let (mut bytes, mut whole) = (Vec::new(), 0);
    loop {
        let start = bytes.len();
        bytes.resize(start + BLOCK, 0);
        let got = match from.read(&mut bytes[start..]) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {
                bytes.truncate(start);
                continue;
            }
            got => got?,
        };
        bytes.truncate(start + got);
        let mut records = Records::new(&bytes[whole..]);
        while records.next().is_some_and(|record| record.is_ok()) {}
        whole += records.at();
        // The rest of a damaged record has no end.
        if got == 0 || whole == bytes.len() && whole >= READ_MAX || bytes.len() >= 2 * READ_MAX {
            return Ok(bytes);
        }
    }
}

/// Returns the number of the sub-buffer that comes next.
fn next_number(place: &Place, cpu: usize) -> Result<u64, Failure> {
    let path = place.control_path(&format!("consumed/cpu{cpu}"));
    let text = fs::read_to_string(&path).map_err(|error| Failure::open(&path, error))?;
    Ok(text.trim().parse().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use relay::trace::record::Record;

    use super::*;

    /// Gives a few bytes at a time.
    struct Dribble<'a>(&'a [u8]);

    impl Read for Dribble<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let len = out.len().min(7);
            self.0.read(&mut out[..len])
        }
    }

    #[test]
    fn all_that_is_there_is_read_also_if_it_is_damaged() {
        let mut bytes = Vec::new();
        for stamp in 0..100 {
            Record { stamp, id: 0, tid: 1, payload: b"text" }.encode_into(&mut bytes);
        }
        assert_eq!(read(Dribble(&bytes)).unwrap(), bytes);
        bytes.extend([0xff; 30]);
        assert_eq!(read(Dribble(&bytes)).unwrap(), bytes);
        assert!(read(Dribble(b"")).unwrap().is_empty());
    }
}
