//! What is begun for a CPU, and what comes of it: see the states in `cpu.rs`.

use std::rc::Rc;

use super::{Forwarding, NoDictionary};
use crate::send::cpu::Done;
use crate::send::feed::Outgoing;
use crate::send::lane::{Lane, Put};
use crate::send::window::Room;
use crate::send::written::Proof;

impl Forwarding<'_> {
    /// Begins what can be begun of a CPU.
    pub(super) fn begin(&mut self, cpu: usize) {
        let Some(state) = self.cpus.get_mut(cpu) else { return };
        if state.rests() {
            return;
        }
        let Some(mut lane) = state.lane.take() else {
            self.feed(cpu);
            return;
        };
        if state.feed.len() > 0 {
            self.store(cpu, lane);
            return;
        }
        if state.taken.is_none() && !self.source.reader.has_finished(cpu) {
            state.note_nothing();
            state.lane = Some(lane);
            return;
        }
        let (len, window) = (self.geometry.subbuf_size(), &self.job.window);
        let Some(room) = state.room.take().or_else(|| window.try_enter(len)) else {
            let window = window.clone();
            self.tasks.spawn_local(async move { (cpu, lane, Ok(Done::Entered(window.enter(len).await))) });
            return;
        };
        let Some(taken) = self.take(cpu) else {
            // Another reader may have read past what was taken here: that is settled first.
            self.source.release_until(cpu, u64::MAX);
            self.put_back(cpu, lane);
            return;
        };
        let (is_known, tries) = self.cpus.get(cpu).map_or((true, 1), |state| (state.is_known, state.tries()));
        if !is_known {
            let timed = self.geometry.timed();
            let proof = if timed { Proof::Packet } else { Proof::Bytes(taken.bytes.clone()) };
            self.tasks.spawn_local(async move {
                let answer = lane.find(taken.number, &proof, tries).await;
                (cpu, lane, Ok(Done::Found(taken, room, answer)))
            });
            return;
        }
        match self.outgoing(cpu, &taken) {
            Ok(outgoing) => {
                self.push(cpu, outgoing, room);
                self.store(cpu, lane);
            }
            // It stays in the buffer, and the room is for others.
            Err(NoDictionary) => {
                self.put_back(cpu, lane);
                self.refused(cpu);
            }
        }
    }

    /// Stores what is in the feed of a CPU.
    fn store(&mut self, cpu: usize, mut lane: Lane) {
        let Some(state) = self.cpus.get_mut(cpu) else { return };
        let (feed, tries) = (Rc::clone(&state.feed), state.tries());
        state.is_storing = true;
        self.tasks.spawn_local(async move {
            let put = feed.store(&mut lane, tries).await;
            (cpu, lane, put.map(Done::Put))
        });
        self.feed(cpu);
    }

    /// Takes further sub-buffers of a CPU while others are on the way.
    fn feed(&mut self, cpu: usize) {
        let (len, window) = (self.geometry.subbuf_size(), self.job.window.clone());
        // One is ready when the next answer comes.
        let max = self.job.link.line.share() + 1;
        // Without a daemon, what is on the way ends first. Then the next one is looked for.
        while !self.source.is_gone {
            let Some(state) = self.cpus.get_mut(cpu) else { return };
            let is_there = state.taken.is_some() || self.source.reader.has_finished(cpu);
            if !state.is_storing || state.feed.len() >= max || !is_there {
                return;
            }
            let Some(room) = state.room.take().or_else(|| window.try_enter(len)) else { return };
            let Some(taken) = self.take(cpu) else { return };
            match self.outgoing(cpu, &taken) {
                Ok(outgoing) => self.push(cpu, outgoing, room),
                Err(NoDictionary) => {
                    if let Some(state) = self.cpus.get_mut(cpu) {
                        (state.taken, state.room) = (Some(taken), Some(room));
                    }
                    return;
                }
            }
        }
    }

    /// Puts a sub-buffer into the feed of a CPU.
    fn push(&mut self, cpu: usize, outgoing: Outgoing, room: Room) {
        if let Some(state) = self.cpus.get_mut(cpu) {
            state.fed = Some(outgoing.number);
            state.feed.push(outgoing, room);
        }
    }

    /// Gives back what is stored of a CPU's feed.
    pub(super) fn give_back(&mut self, cpu: usize) {
        let Some(state) = self.cpus.get_mut(cpu) else { return };
        let stored = state.feed.take_stored();
        for (number, end) in &stored {
            state.note_stored(*number, *end);
        }
        if let Some((number, _)) = stored.last() {
            self.source.release_until(cpu, *number);
        }
    }

    /// Puts the lane of a CPU back.
    fn put_back(&mut self, cpu: usize, lane: Lane) {
        if let Some(state) = self.cpus.get_mut(cpu) {
            state.lane = Some(lane);
        }
    }

    /// Leaves a sub-buffer that was taken in its buffer, for a later try.
    fn refused(&mut self, cpu: usize) {
        if let Some(state) = self.cpus.get_mut(cpu) {
            state.note_refused();
            self.source.take_again(cpu);
        }
    }

    /// Takes the result of a CPU's task.
    pub(super) fn done(&mut self, cpu: usize, lane: Lane, done: Done) {
        self.give_back(cpu);
        let Some(state) = self.cpus.get_mut(cpu) else { return };
        (state.lane, state.is_storing) = (Some(lane), false);
        match done {
            Done::Entered(room) => state.room = room,
            Done::Found(taken, _, Some(answer)) if answer.is_stored => {
                state.note_stored(taken.number, answer.end.unwrap_or(state.before));
                self.source.release_until(cpu, taken.number);
            }
            Done::Found(taken, room, Some(answer)) => {
                state.is_known = true;
                // The answer has what was stored before the first that was looked for.
                if state.stored.is_none() {
                    state.before = answer.end.unwrap_or(state.before);
                }
                (state.taken, state.room) = (Some(taken), Some(room));
            }
            Done::Put(Put::Stored) => {}
            // It stays in the buffer, and the room is for others.
            Done::Found(_, _, None) | Done::Put(Put::Refused) => self.refused(cpu),
        }
    }
}
