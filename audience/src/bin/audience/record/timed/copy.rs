//! Takes what is unread of a CPU, and appends it to the trace.

use std::collections::btree_map::Entry;
use std::io::BufReader;
use std::time::Instant;

use audience_common::note::newest_stamp;
use audience_common::trace_dir::stream::StreamFile;
use relay::trace::event::id;
use relay::trace::packet::{self, HEADER_LEN, PacketHeader, PacketReader};
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

impl Recorder<'_> {
    /// Records what is unread of a CPU. Returns the number of bytes.
    pub(super) fn copy(&mut self, cpu: usize) -> Result<u64, Failure> {
        let path = self.job.place.control_path(&format!("take/cpu{cpu}"));
        let take = match Take::open(&path) {
            Err(failure) if failure.is_out_of_memory() => return self.copy_mapped(cpu, failure),
            opened => opened?,
        };
        let before = self.cpus.get(&cpu).map_or(0, |cpu| cpu.recorded);
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
        Ok(self.cpus.get(&cpu).map_or(0, |cpu| cpu.recorded) - before)
    }

    /// Records what is unread of a CPU from the mapping, if there is one; otherwise fails with `failure`.
    fn copy_mapped(&mut self, cpu: usize, failure: Failure) -> Result<u64, Failure> {
        let Some((mut mapped, read)) = Mapped::open(&self.job.place, cpu) else { return Err(failure) };
        // Only what is finished is seen there.
        flush(&self.job.place);
        self.read.insert(cpu, read);
        self.may_come_again(cpu);
        let before = self.cpus.get(&cpu).map_or(0, |cpu| cpu.recorded);
        let now = self.counters.get(&cpu).copied().unwrap_or_default();
        let losses = packet::Losses { lost: now.messages(), too_big: now.too_big() };
        let mut packet = std::mem::take(&mut self.packet);
        while let Some(number) = mapped.next(&mut packet)? {
            self.learn(&packet)?;
            let newest = self.timeline.as_ref().map_or(u64::MAX, newest_stamp);
            let made = mapped.make(number, losses, newest, &self.definitions, &mut packet);
            let Some(header) = made else { continue };
            self.append(cpu, header, &mut packet)?;
        }
        self.packet = packet;
        mapped.release()?;
        Ok(self.cpus.get(&cpu).map_or(0, |cpu| cpu.recorded) - before)
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
