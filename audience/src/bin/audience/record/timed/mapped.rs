//! The finished sub-buffers of a CPU, from the buffer's mapping.
//!
//! They are made into packets here, and given back when these are written. So a full disk or a killed recorder costs
//! nothing, and the daemon copies nothing.

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

/// A sub-buffer that was taken.
pub(super) struct Found {
    number: u64,
    /// Messages lost up to its end.
    losses: Losses,
    /// Whether another reader has had the begin of its first record.
    is_cut: bool,
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

    /// Returns the number of sub-buffers in the buffer.
    pub(super) fn n_subbufs(&self) -> usize {
        self.reader.geometry().n_subbufs()
    }

    /// Takes the next finished sub-buffer: puts its records into `packet`, behind the place of a header. `None` if there
    /// is none yet.
    pub(super) fn next(&mut self, packet: &mut Vec<u8>) -> Result<Option<Found>, Failure> {
        loop {
            packet.clear();
            packet.resize(HEADER_LEN, 0);
            let Some(found) = self.reader.next_finished(self.cpu) else { return Ok(None) };
            let losses = Losses { lost: found.lost, too_big: found.too_big };
            let (number, cut) = (found.number, found.cut());
            if found.lend().is_some_and(|bytes| !bytes.copy_to(packet)) {
                return Err(self.failure(Errno::ENOMEM.into()));
            }
            // What a writer has overwritten meanwhile counts as overwritten.
            if found.is_whole() {
                packet.drain(HEADER_LEN..(HEADER_LEN + cut).min(packet.len()));
                return Ok(Some(Found { number, losses, is_cut: cut > 0 }));
            }
        }
    }

    /// Makes a packet of what [`Mapped::next`] has found. `newest` is the present.
    pub(super) fn make(
        &mut self,
        found: Found,
        newest: u64,
        definitions: &Definitions,
        packet: &mut Vec<u8>,
    ) -> Option<PacketHeader> {
        let overwrites = self.reader.geometry().mode() == Mode::Overwrite;
        let Found { number, losses, is_cut } = found;
        if is_cut {
            self.maker.note_cut();
        }
        let cause = if overwrites { Cause::Contended } else { Cause::Full };
        let records = packet.split_off(HEADER_LEN);
        packet.clear();
        let subbuf = SubBuffer { number, losses, newest, cause, records: &records };
        self.maker.packet(&subbuf, definitions, packet);
        PacketHeader::decode(packet.first_chunk()?, 0).ok()
    }

    /// Gives back what was taken.
    pub(super) fn release(&mut self) -> Result<(), Failure> {
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
