//! Takes what is unread of a CPU, and appends it to the trace: finished sub-buffers in place, the rest by a copy.

use std::collections::btree_map::Entry;
use std::io::BufReader;
use std::time::Instant;

use audience_common::note::newest_stamp;
use audience_common::trace_dir::stream::StreamFile;
use relay::trace::event::id;
use relay::trace::packet::{HEADER_LEN, PacketHeader, PacketReader};
use relay::trace::record::Records;

use super::Recorder;
use super::mapped::Mapped;
use super::piece::Piece;
use crate::error::Failure;
use crate::record::flush;
use crate::timed::accounts::{self, Lost};
use crate::timed::take::Take;

/// Bytes that one read of a copy asks for.
const BLOCK: usize = 1 << 20;
/// Bytes of sub-buffers after which they are given back, so that the writer has room.
const ROUND: u64 = 1 << 20;

impl Recorder<'_> {
    /// Records the finished sub-buffers of a CPU, as far as one round takes them, or what is unread if there is none.
    /// Returns the number of bytes.
    pub(super) fn copy(&mut self, cpu: usize, is_finished: bool) -> Result<u64, Failure> {
        // Sub-buffers in place spare the daemon a copy. A buffer that fills slowly is not worth a mapping.
        if is_finished || self.mapped.contains_key(&cpu) {
            let bytes = self.copy_finished(cpu)?.unwrap_or(0);
            if bytes > 0 {
                return Ok(bytes);
            }
        }
        self.copy_unread(cpu)
    }

    /// Records all that is unread of a CPU, by a copy that the daemon makes. Returns the number of bytes.
    pub(super) fn copy_unread(&mut self, cpu: usize) -> Result<u64, Failure> {
        let path = self.job.place.control_path(&format!("take/cpu{cpu}"));
        let take = match Take::open(&path) {
            Err(failure) if failure.is_out_of_memory() => {
                // Only what is finished is seen in the mapping.
                flush(&self.job.place);
                return self.copy_finished(cpu)?.ok_or(failure);
            }
            opened => opened?,
        };
        // It knows nothing of what the copy consumes.
        self.mapped.remove(&cpu);
        let before = self.recorded_of(cpu);
        let mut packets = PacketReader::new(BufReader::with_capacity(BLOCK, take.look()?));
        let mut packet = std::mem::take(&mut self.packet);
        loop {
            let read = packets.read(&mut packet).map_err(|error| Failure::packets(&path, error))?;
            let Some(header) = read else { break };
            if let Err(failure) = self.append(cpu, header, &mut packet) {
                // The next round has the same packets.
                self.may_come_again(cpu);
                return Err(failure);
            }
        }
        self.packet = packet;
        drop(packets);
        take.consume()?;
        Ok(self.recorded_of(cpu) - before)
    }

    /// Records finished sub-buffers of a CPU from the mapping. Returns the number of bytes; `None` if there is no mapping.
    fn copy_finished(&mut self, cpu: usize) -> Result<Option<u64>, Failure> {
        let mut mapped = match self.mapped.remove(&cpu) {
            Some(known) => known,
            None => Mapped::open(&self.job.place, cpu).map(|(mapped, read)| {
                self.read.insert(cpu, read);
                self.may_come_again(cpu);
                mapped
            }),
        };
        let copied = mapped.as_mut().map(|mapped| self.copy_mapped(cpu, mapped)).transpose();
        match &copied {
            Ok(_) => drop(self.mapped.insert(cpu, mapped)),
            // Another mapping begins with what is unread, and the next round has the same packets.
            Err(_) => self.may_come_again(cpu),
        }
        copied
    }

    fn copy_mapped(&mut self, cpu: usize, mapped: &mut Mapped) -> Result<u64, Failure> {
        let before = self.recorded_of(cpu);
        let mut packet = std::mem::take(&mut self.packet);
        for _ in 0..mapped.n_subbufs() {
            let Some(found) = mapped.next(&mut packet)? else { break };
            self.learn(&packet)?;
            let newest = self.timeline.as_ref().map_or(u64::MAX, newest_stamp);
            if let Some(header) = mapped.make(found, newest, &self.definitions, &mut packet) {
                self.append(cpu, header, &mut packet)?;
            }
            if self.recorded_of(cpu) - before >= ROUND {
                break;
            }
        }
        self.packet = packet;
        mapped.release()?;
        Ok(self.recorded_of(cpu) - before)
    }

    fn recorded_of(&self, cpu: usize) -> u64 {
        self.cpus.get(&cpu).map_or(0, |cpu| cpu.recorded)
    }

    /// Notes that the next packets of a CPU may have been recorded.
    fn may_come_again(&mut self, cpu: usize) {
        let read = self.read.get(&cpu).copied().unwrap_or(0);
        if let Some(state) = self.cpus.get_mut(&cpu) {
            state.may_come_again(read);
        }
    }

    /// Appends a packet to the trace, and before that its events to the metadata.
    fn append(&mut self, cpu: usize, header: PacketHeader, packet: &mut Vec<u8>) -> Result<(), Failure> {
        // Before the packet is noted as seen: if the daemon has died, the next one has the packet again.
        self.learn(packet.get(..HEADER_LEN + header.records_len as usize).unwrap_or(packet))?;
        let read = self.read.get(&cpu).copied().unwrap_or(0);
        let Some(state) = self.cpus.get_mut(&cpu) else { return Ok(()) };
        state.live.counters = self.counters.get(&cpu).copied().unwrap_or_default();
        let Some((header, lost)) = state.live.pass(header, packet) else { return Ok(()) };
        state.read = read;
        if header.records_len == 0 {
            return state.pass_over(&header);
        }
        self.append_whole(cpu, &header, &lost, packet)
    }

    /// Reads the channel's texts again if the packet has an event that is younger.
    fn learn(&mut self, packet: &[u8]) -> Result<(), Failure> {
        if self.unknown(packet).is_none() {
            return Ok(());
        }
        self.read_texts()?;
        match &self.piece {
            Some(piece) => Ok(self.texts.write(&piece.dir)?),
            None => Ok(()),
        }
    }

    pub(super) fn append_whole(
        &mut self,
        cpu: usize,
        header: &PacketHeader,
        lost: &[Lost],
        packet: &mut Vec<u8>,
    ) -> Result<(), Failure> {
        // What the channel does not know is fatal to CTF readers: its bytes are kept without the id.
        while let Some(at) = self.unknown(packet) {
            packet[at..at + 2].copy_from_slice(&id::RAW.to_le_bytes());
        }
        let piece = match &mut self.piece {
            Some(piece) => piece,
            none => none.insert(Piece::begin(self.job, self.number, &self.texts)?),
        };
        let stream = match piece.streams.entry(cpu) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                piece.since.get_or_insert_with(Instant::now);
                entry.insert(StreamFile::create(&piece.dir, cpu)?)
            }
        };
        let Some(state) = self.cpus.get_mut(&cpu) else { return Ok(()) };
        state.append(stream, self.number, header, accounts::total(lost), packet)
    }

    /// Returns where in a packet the id of the first record is that the metadata does not have.
    fn unknown(&self, packet: &[u8]) -> Option<usize> {
        let mut records = Records::new(packet.get(HEADER_LEN..)?);
        loop {
            let at = HEADER_LEN + records.at();
            let record = records.next()?.ok()?;
            if record.id >= id::BUILTINS && self.definitions.get(record.id).is_none() {
                return Some(at + 8);
            }
        }
    }
}
