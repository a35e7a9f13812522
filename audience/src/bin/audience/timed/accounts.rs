//! The losses of a buffer, as a reader reports them: each once, where it happened, with its cause.
//!
//! A packet says how many messages its buffer has lost so far. Its copy also says, in records at the packet's start, how
//! many were lost since the packet before, and why. The first packet of a copy has no such records, since the daemon
//! does not know what its reader has had. So this file compares the totals. For what the records do not say, the
//! channel's counters tell the causes apart.

use relay::trace::event::Cause;
use relay::trace::packet::{HEADER_LEN, PacketHeader, lost_of, put_lost};
use relay::trace::record::Records;

use crate::losses::Losses;

/// Lost messages, and why. Without a cause: another program has read the begin of them, and the buffer counts none.
pub(crate) type Lost = (u64, Option<Cause>);

/// Returns the messages that a buffer has lost.
pub(crate) fn total(lost: &[Lost]) -> u64 {
    let counted = lost.iter().filter(|(_, cause)| cause.is_some());
    counted.fold(0, |sum: u64, (messages, _)| sum.saturating_add(*messages))
}

/// What a reader has reported of a buffer's losses.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Accounts {
    /// All messages lost so far.
    lost: u64,
    too_big: u64,
    contended: u64,
}

impl Accounts {
    /// Begins with losses that are reported already.
    pub(crate) fn new(before: &Losses) -> Accounts {
        Accounts { lost: before.messages(), too_big: before.too_big(), contended: before.contended() }
    }

    /// Returns the numbers that [`Accounts::from_words`] takes.
    pub(crate) fn words(&self) -> [u64; 3] {
        [self.lost, self.too_big, self.contended]
    }

    /// Continues with what another reader has reported.
    pub(crate) fn from_words([lost, too_big, contended]: [u64; 3]) -> Accounts {
        Accounts { lost, too_big, contended }
    }

    /// Continues with another daemon. A channel that was created again counts from zero.
    pub(crate) fn go_on(&mut self, before: &Losses, now: &Losses) {
        if now.messages() < self.lost {
            *self = Accounts::new(before);
        }
    }

    /// Returns the losses up to a packet's end that are not reported yet, the oldest first.
    ///
    /// `now` are the channel's counters.
    pub(crate) fn packet(&mut self, header: &PacketHeader, records: &[u8], now: &Losses) -> Vec<Lost> {
        let mut known: Vec<Lost> = leading(records).0;
        let mut left = self.grow(header.discarded);
        // The packet's own records are about the newest of the losses.
        for (messages, _) in known.iter_mut().rev().filter(|(_, cause)| cause.is_some()) {
            *messages = (*messages).min(left);
            left -= *messages;
        }
        let mut lost = self.explain(left, now);
        for (messages, cause) in known.into_iter().filter(|(messages, _)| *messages > 0) {
            self.count(messages, cause);
            lost.push((messages, cause));
        }
        lost
    }

    /// Returns the losses so far that are not reported yet: those behind the last packet.
    pub(crate) fn rest(&mut self, now: &Losses) -> Vec<Lost> {
        let left = self.grow(now.messages());
        self.explain(left, now)
    }

    /// How far the total has grown.
    fn grow(&mut self, total: u64) -> u64 {
        let grown = total.saturating_sub(self.lost);
        self.lost = self.lost.max(total);
        grown
    }

    fn explain(&mut self, mut left: u64, now: &Losses) -> Vec<Lost> {
        let causes = [
            (now.too_big().saturating_sub(self.too_big), Cause::TooBig),
            (now.contended().saturating_sub(self.contended), Cause::Contended),
            (u64::MAX, Cause::Full),
        ];
        let mut lost = Vec::new();
        for (most, cause) in causes {
            let messages = left.min(most);
            if messages > 0 {
                self.count(messages, Some(cause));
                lost.push((messages, Some(cause)));
                left -= messages;
            }
        }
        lost
    }

    fn count(&mut self, messages: u64, cause: Option<Cause>) {
        match cause {
            Some(Cause::TooBig) => self.too_big = self.too_big.saturating_add(messages),
            Some(Cause::Contended) => self.contended = self.contended.saturating_add(messages),
            Some(Cause::Full | Cause::Overwritten) | None => {}
        }
    }
}

/// The reports of losses at the start of a packet, and how many bytes they take.
pub(crate) fn leading(packet_records: &[u8]) -> (Vec<Lost>, usize) {
    let (mut lost, mut end) = (Vec::new(), 0);
    let mut records = Records::new(packet_records);
    while let Some(report) = records.next().and_then(|record| lost_of(&record.ok()?)) {
        lost.push(report);
        end = records.at();
    }
    (lost, end)
}

/// Puts these reports into a packet, in place of those that it has. Returns its header.
pub(crate) fn restate(header: PacketHeader, packet: &mut Vec<u8>, lost: &[Lost]) -> PacketHeader {
    let (before, len) = leading(&packet[HEADER_LEN..]);
    if before == lost {
        return header;
    }
    let mut reports = Vec::new();
    for (messages, cause) in lost {
        put_lost(header.begin, *messages, *cause, &mut reports);
    }
    packet.splice(HEADER_LEN..HEADER_LEN + len, reports.iter().copied());
    let header =
        PacketHeader { records_len: header.records_len - len as u64 + reports.len() as u64, ..header };
    packet[..HEADER_LEN].copy_from_slice(&header.encode());
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use relay::trace::record::Record;

    fn packet(discarded: u64, lost: &[Lost]) -> (PacketHeader, Vec<u8>) {
        let mut packet = vec![0; HEADER_LEN];
        Record { stamp: 7, id: 0, tid: 5, payload: b"text" }.encode_into(&mut packet);
        let records_len = (packet.len() - HEADER_LEN) as u64;
        let header = PacketHeader { cpu: 0, begin: 7, end: 7, records_len, padding: 0, number: 0, discarded };
        packet[..HEADER_LEN].copy_from_slice(&header.encode());
        (restate(header, &mut packet, lost), packet)
    }

    fn stats(dropped: u64, too_big: u64, contended: u64) -> Losses {
        Losses::new(dropped, too_big, contended)
    }

    #[test]
    fn each_loss_is_reported_once_with_its_cause() {
        let mut accounts = Accounts::new(&stats(1, 1, 0));
        let mut next = |discarded, lost: &[Lost], now| {
            let (header, packet) = packet(discarded, lost);
            accounts.packet(&header, &packet[HEADER_LEN..], &now)
        };
        // The first packet of a copy.
        assert_eq!(next(2, &[], stats(1, 1, 0)), []);
        assert_eq!(
            next(7, &[], stats(3, 3, 1)),
            [(2, Some(Cause::TooBig)), (1, Some(Cause::Contended)), (2, Some(Cause::Full))]
        );
        // The next one says what happened in between.
        assert_eq!(next(9, &[(2, Some(Cause::TooBig))], stats(3, 5, 1)), [(2, Some(Cause::TooBig))]);
        // Its losses were reported in part, when no packet was there.
        assert_eq!(next(10, &[(3, Some(Cause::Full))], stats(4, 5, 1)), [(1, Some(Cause::Full))]);
        assert_eq!(next(10, &[(1, None)], stats(4, 5, 1)), [(1, None)], "cut by another reader");
        assert_eq!(next(8, &[], stats(4, 5, 1)), [], "another process has lowered the counters");
        assert_eq!(accounts.rest(&stats(5, 6, 1)), [(1, Some(Cause::TooBig)), (1, Some(Cause::Full))]);
        assert_eq!(accounts.rest(&stats(5, 6, 1)), []);
    }

    #[test]
    fn what_another_reader_has_cut_counts_as_no_loss() {
        assert_eq!(total(&[(1, None), (2, Some(Cause::Full))]), 2);
    }

    #[test]
    fn another_channel_counts_from_zero() {
        let mut accounts = Accounts::new(&stats(5, 0, 0));
        // The same channel: its last reader's counts may be behind.
        accounts.go_on(&stats(3, 0, 0), &stats(6, 0, 0));
        assert_eq!(accounts.rest(&stats(6, 0, 0)), [(1, Some(Cause::Full))]);
        accounts.go_on(&stats(0, 0, 0), &stats(2, 0, 0));
        assert_eq!(accounts.rest(&stats(2, 0, 0)), [(2, Some(Cause::Full))]);
    }

    #[test]
    fn reports_of_a_packet_are_replaced() {
        let lost = [(3, Some(Cause::Full)), (1, Some(Cause::TooBig))];
        let (header, mut bytes) = packet(4, &lost);
        assert_eq!(leading(&bytes[HEADER_LEN..]).0, lost);
        assert_eq!(header.packet_len(), bytes.len() as u64);
        let again = restate(header, &mut bytes, &lost[1..]);
        assert_eq!(leading(&bytes[HEADER_LEN..]).0, lost[1..]);
        assert_eq!(again.packet_len(), bytes.len() as u64);
        let none = restate(again, &mut bytes, &[]);
        assert_eq!((none, bytes), packet(4, &[]));
    }
}
