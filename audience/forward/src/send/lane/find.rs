//! What a subject had at the start.

use super::{Answer, Lane, Last};
use crate::send::history::History;
use crate::send::link::{Found, Unstored};
use crate::send::pauses::Pauses;
use crate::send::written::Proof;

impl Lane {
    /// Returns whether the stream has a sub-buffer already, from the time before this process. `None`: it does not
    /// answer.
    ///
    /// It is asked for the first sub-buffer of the buffer, and for those behind it until one is not there.
    pub(crate) async fn find(&mut self, number: u64, proof: &Proof, tries: u32) -> Option<Answer> {
        let mut pauses = Pauses::new(tries);
        loop {
            match self.try_find(number, proof).await {
                Ok(answer) => {
                    self.link.troubles.clear(&self.subject);
                    return Some(answer);
                }
                Err(why) => {
                    if !self.wait(why, &mut pauses).await {
                        return None;
                    }
                }
            }
        }
    }

    async fn try_find(&mut self, number: u64, proof: &Proof) -> Result<Answer, Unstored> {
        if self.history.is_none() {
            self.history = Some(self.look_back(number).await?);
        }
        let history = self.history.as_ref();
        let before = history.and_then(History::before);
        let Some(sequence) = history.and_then(|history| history.stored(number)) else {
            return Ok(Answer { is_stored: false, end: before });
        };
        let found = self.link.message(sequence).await?;
        let end = found.as_ref().and_then(|found| {
            let written = self.read(found).filter(|_| found.sequence == sequence)?;
            written.ends(self.instance, number, payload(found), proof).then(|| written.end())
        });
        Ok(Answer { is_stored: end.is_some(), end: end.or(before) })
    }

    /// Reads the subject backwards, as far as it matters.
    async fn look_back(&mut self, first: u64) -> Result<History, Unstored> {
        self.last = None;
        self.refresh().await?;
        // What comes behind it later is none of the history.
        self.known = self.last.as_ref().map(|last| last.sequence);
        let (mut history, instance) = (History::default(), self.instance);
        let Some(Last { sequence: mut end, written, .. }) =
            self.last.clone().filter(|last| last.sequence > 0)
        else {
            return Ok(history);
        };
        let mut is_open = history.add(end, written.as_ref(), instance, first);
        // The server knows no way back. So it is asked for what comes behind an earlier place, twice as far each time,
        // unless there are too many.
        let mut step: u64 = 1;
        while is_open && end > 1 {
            let begin = end.saturating_sub(step).max(1);
            let (mut at, mut seen) = (begin, Vec::new());
            while at < end && seen.len() <= History::step_max() {
                match self.link.next(&self.subject, at).await? {
                    Some(found) if (at..end).contains(&found.sequence) => {
                        seen.push((found.sequence, self.read(&found)));
                        at = found.sequence + 1;
                    }
                    _ => break,
                }
            }
            // A step of one has at most one message.
            if seen.len() > History::step_max() && step > 1 {
                step /= 2;
                continue;
            }
            for (sequence, written) in seen.iter().rev() {
                is_open = is_open && history.add(*sequence, written.as_ref(), instance, first);
            }
            let next = if seen.len() <= History::step_max() / 2 { step.saturating_mul(2) } else { step };
            (end, step) = (begin, next);
        }
        Ok(history)
    }
}

fn payload(found: &Found) -> &[u8] {
    found.message.as_ref().map(|message| &message.payload[..]).unwrap_or_default()
}
