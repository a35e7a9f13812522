//! What is unread of a buffer, from its mapping, for a daemon that has no memory for a copy.
//!
//! The mapping shows finished sub-buffers. They are made into packets here, and given back when these are written. So a
//! full disk or a killed recorder costs nothing.

use std::fs;

use audience::{Mode, ReadError, Reader};
use nix::errno::Errno;
use relay::trace::definition::Definitions;
use relay::trace::event::Cause;
use relay::trace::packet::{HEADER_LEN, Losses, PacketHeader, PacketMaker, SubBuffer};

use crate::channel_files::Place;
use crate::error::Failure;
use crate::unread;

/// Most tries to find a moment in which no reader consumes.
const TRIES_MAX: u32 = 100;

/// A buffer's mapping.
pub(super) struct Mapped {
    reader: Reader,
    place: Place,
    cpu: usize,
    maker: PacketMaker,
}

impl Mapped {
    /// Maps a buffer. Also returns the bytes that readers have had of it before what will come. `None` if the daemon does
    /// not share it.
    pub(super) fn open(place: &Place, cpu: usize) -> Option<(Mapped, u64)> {
        let mut reader = Reader::open_cpu(&place.mount, place.channel.as_str(), cpu).ok()?;
        let read = || {
            let stats = fs::read_to_string(place.stats_path()).unwrap_or_default();
            unread::read_by_cpu(&stats).get(&cpu).copied().unwrap_or(0)
        };
        // The daemon hears of the last close of a copy a moment later, and consumes it then.
        let mut before = read();
        for _ in 0..TRIES_MAX {
            reader.rewind_to_consumed(cpu).ok()?;
            let now = read();
            if now == before {
                break;
            }
            before = now;
        }
        let maker = PacketMaker::new(cpu as u32, 0, None);
        Some((Mapped { reader, place: place.clone(), cpu, maker }, before))
    }

    /// Takes the next finished sub-buffer: puts its records into `packet`, behind the place of a header. Returns its
    /// number; `None` if there is none yet.
    pub(super) fn next(&mut self, packet: &mut Vec<u8>) -> Result<Option<u64>, Failure> {
        loop {
            packet.clear();
            packet.resize(HEADER_LEN, 0);
            let Some(found) = self.reader.next_finished(self.cpu) else { return Ok(None) };
            if found.lend().is_some_and(|bytes| !bytes.copy_to(packet)) {
                return Err(self.failure(Errno::ENOMEM.into()));
            }
            // What a writer has overwritten meanwhile counts as overwritten.
            if found.is_whole() {
                return Ok(Some(found.number));
            }
        }
    }

    /// Makes a packet of what [`Mapped::next`] has found. `losses` are the buffer's so far, `newest` is the present.
    pub(super) fn make(
        &mut self,
        number: u64,
        losses: Losses,
        newest: u64,
        definitions: &Definitions,
        packet: &mut Vec<u8>,
    ) -> Option<PacketHeader> {
        let overwrites = self.reader.geometry().mode() == Mode::Overwrite;
        let cause = if overwrites { Cause::Contended } else { Cause::Full };
        let records = packet.split_off(HEADER_LEN);
        packet.clear();
        let subbuf = SubBuffer { number, losses, newest, cause, records: &records };
        self.maker.packet(&subbuf, definitions, packet);
        PacketHeader::decode(packet.first_chunk()?, 0).ok()
    }

    /// Gives back what was taken.
    pub(super) fn release(mut self) -> Result<(), Failure> {
        match self.reader.release(self.cpu) {
            // Another reader has read it too: both have it.
            Ok(()) | Err(ReadError::Stale) => Ok(()),
            Err(ReadError::Gone) => Err(self.failure(Errno::ENODEV.into())),
            Err(error) => Err(self.failure(std::io::Error::other(error))),
        }
    }

    fn failure(&self, error: std::io::Error) -> Failure {
        Failure::read(&self.place.cpu_path(self.cpu), error)
    }
}
