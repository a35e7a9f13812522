//! Takes finished sub-buffers out of the buffers, as the stream has them.

use std::rc::Rc;

use audience::Mode;
use relay::trace::packet::{Losses, PacketMaker};

use super::{Forwarding, NoDictionary};
use crate::send::cpu::Taken;
use crate::send::feed::{OfPacket, Outgoing};
use crate::send::packets::{Packet, Packets};
use crate::send::texts::Texts;

impl Forwarding<'_> {
    /// Returns what the stream gets of a sub-buffer.
    pub(super) fn outgoing(&mut self, cpu: usize, taken: &Taken) -> Result<Outgoing, NoDictionary> {
        let (instance, geometry) = (self.source.instance, self.geometry);
        let Taken { number, position, losses, .. } = *taken;
        let (body, packet) = if geometry.timed() {
            let (Packet { bytes, timeline, end }, texts) = self.packet(cpu, taken)?;
            (self.job.spare.lend(bytes), Some(OfPacket { texts, timeline, end }))
        } else {
            (taken.bytes.clone(), None)
        };
        Ok(Outgoing { instance, number, geometry, position, losses, body, packet })
    }

    /// Copies the next sub-buffer of a CPU that is not stored yet, and not on the way. Gives back those that are
    /// stored.
    pub(super) fn take(&mut self, cpu: usize) -> Option<Taken> {
        let state = self.cpus.get_mut(cpu)?;
        if let Some(taken) = state.taken.take() {
            return Some(taken);
        }
        while let Some(found) = self.source.reader.next_finished(cpu) {
            let (number, cut) = (found.number, found.cut());
            if state.stored.is_some_and(|stored| number <= stored) {
                self.source.release_until(cpu, number);
                continue;
            }
            // Another reader has read one before it. It is given back when it is stored.
            if state.fed.is_some_and(|fed| number <= fed) {
                continue;
            }
            let mut bytes = self.job.spare.take(found.len());
            found.copy_to(&mut bytes);
            // What a writer overwrites meanwhile counts as overwritten. In no-overwrite mode it may do so if another
            // reader has read it, or after a reset.
            if found.is_whole() {
                let losses = Losses { lost: found.lost, too_big: found.too_big };
                let position = found.begin.wrapping_add(cut as u64);
                let cut = cut.min(bytes.len());
                return Some(Taken { number, position, losses, cut, bytes: self.job.spare.lend(bytes) });
            }
        }
        None
    }

    /// Makes the packet of a sub-buffer.
    fn packet(&mut self, cpu: usize, taken: &Taken) -> Result<(Packet, Rc<Texts>), NoDictionary> {
        let Some(state) = self.cpus.get_mut(cpu) else { return Err(NoDictionary) };
        if self.packets.is_none() {
            let (host, overwrites) = (self.job.host.as_str(), self.geometry.mode() == Mode::Overwrite);
            let (link, files) = (&self.job.link, self.source.files.clone());
            let begun = Packets::begin(link, files, (host, self.channel), self.source.instance, overwrites);
            match begun {
                Ok(begun) => *self.packets = Some(begun),
                Err(error) => {
                    let why = format!("channel '{}': its dictionary cannot be read: {error}", self.channel);
                    self.job.link.troubles.set(self.channel.as_str(), &why);
                    // The daemon may have gone.
                    self.source.arm();
                    self.lacks_dictionary = true;
                    return Err(NoDictionary);
                }
            }
            self.job.link.troubles.clear(self.channel.as_str());
        }
        let Some(packets) = self.packets.as_mut() else { return Err(NoDictionary) };
        self.lacks_dictionary = false;
        let records = taken.bytes.get(taken.cut..).unwrap_or_default();
        // An event that a living daemon does not know is no event. A dead one may have known it.
        if !packets.learn(records) && self.source.is_gone && !self.is_replaced {
            return Err(NoDictionary);
        }
        let maker = state.maker.get_or_insert_with(|| {
            let (end, losses) = state.before;
            let at_first = (taken.number == 0).then(Losses::default);
            PacketMaker::new(cpu as u32, end, losses.or(at_first))
        });
        if taken.cut > 0 {
            maker.note_cut();
        }
        Ok((
            packets.make(maker, taken.number, taken.losses, records, &self.job.spare),
            Rc::clone(&packets.texts),
        ))
    }
}
