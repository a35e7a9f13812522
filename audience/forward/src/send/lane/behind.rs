//! Finds what was stored of earlier tries, behind the last message that was known.
//!
//! A message expects the last one that was known, or one of the same run. So what is stored of a try is directly
//! behind that one in the subject. Other programs' messages may follow, and hide it.

use super::store::Run;
use super::{Bodies, Lane};
use crate::send::link::Unstored;
use crate::send::written::Written;

impl Lane {
    /// Takes the bodies out that are stored behind the last message that was known. The last message was asked for.
    pub(super) async fn settle_behind(
        &mut self,
        run: &mut Run,
        bodies: &mut impl Bodies,
    ) -> Result<(), Unstored> {
        let Some(last) = self.last.as_ref() else { return Ok(()) };
        let (end, mut ours) = (last.sequence, None);
        // All before a message of this process are stored.
        let is_ours = last.written.as_ref().is_some_and(|written| self.is_ours(written, run));
        let mut at = self.known.filter(|_| !is_ours).map_or(u64::MAX, |known| known.saturating_add(1));
        while at <= end {
            let Some(found) = self.link.next(&self.subject, at).await? else { break };
            let Some(written) = self.read(&found) else { break };
            if self.is_ours(&written, run) {
                ours = Some((written, found.sequence));
            } else if self.has_stored || written.headers.instance != self.instance {
                break;
            } else if let Some(history) = &mut self.history {
                history.add_behind(found.sequence, &written);
            }
            at = found.sequence.saturating_add(1);
        }
        if let Some((written, sequence)) = ours {
            self.pop_until(&written, sequence, run, bodies);
        }
        self.known = Some(end);
        Ok(())
    }

    /// Returns the sequence of the message with which a process before has stored the first body, if one has.
    pub(super) async fn stored_before(&self, run: &Run) -> Result<Option<u64>, Unstored> {
        // Once this process has stored a message, none of a process before can come.
        let Some(body) = run.bodies.front().filter(|_| !self.has_stored) else { return Ok(None) };
        let number = body.headers.number;
        let stored = self.history.as_ref().and_then(|history| history.stored(number));
        let Some(sequence) = stored else { return Ok(None) };
        let found = self.link.message(sequence).await?;
        let is_stored = found.filter(|found| found.sequence == sequence).is_some_and(|found| {
            let ends = |written: Written| {
                let payload = found.message.as_ref().map(|message| &message.payload[..]);
                written.ends(self.instance, number, payload.unwrap_or_default(), &body.proof)
            };
            self.read(&found).is_some_and(ends)
        });
        Ok(is_stored.then_some(sequence))
    }
}
