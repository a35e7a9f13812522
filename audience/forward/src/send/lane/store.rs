//! Stores bodies in a subject, one behind the other.
//!
//! ```text
//! last known? --no--> ask for the last message
//!     |
//!     +-- bodies whose last part is there, or in front of it: stored
//!     +-- a part that this try sent: the next part, or else the first one
//!            |
//!            +--> on the way, and behind it further ones, as far as the line allows
//!                    |
//!                    +-- acknowledged: that is the last message now
//!                    +-- the message before it in the line is not the last one: it is not stored. From there on, again
//!                    +-- no answer, no connection: the last message is not known; pause, again
//! ```
//!
//! After the first message that is not acknowledged, nothing more is sent until all on the way are answered.

use std::collections::VecDeque;
use std::rc::Rc;

use bytes::Bytes;

use super::body::{Bodies, Body, One};
use super::{Lane, Last};
use crate::error::Failure;
use crate::message::Headers;
use crate::send::line::{Sent, Slot, ToSend};
use crate::send::link::Unstored;
use crate::send::pauses::Pauses;
use crate::send::written::{Plan, Proof, Written, id};

/// Most plans of bodies that were given up.
const PAST_MAX: usize = 256;

/// What became of bodies.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Put {
    /// All are stored.
    Stored,
    /// The server did not take one in the given tries.
    Refused,
}

/// Bodies that are not stored, and messages on the way, both in order.
#[derive(Default)]
pub(super) struct Run {
    pub(super) bodies: VecDeque<Body>,
    on_way: VecDeque<OnWay>,
    /// Whether one of the messages is not stored.
    is_broken: bool,
    /// Why that is not certain, or what keeps it from being stored.
    trouble: Option<Unstored>,
}

/// A message on the way.
struct OnWay {
    sent: Sent,
    headers: Headers,
    token: u64,
    /// The sequence that the first of the run expects.
    before: u64,
    /// Whether it is behind another one of the run.
    is_behind: bool,
    /// Whether it is linked to the one before it in the line.
    is_linked: bool,
    /// How many connections were lost before.
    n_connections: u64,
    /// How long a message could be.
    max: usize,
}

/// What became of a first message.
enum Begun {
    /// It is on the way, or what it belongs to is stored, or the next look tells more.
    Done,
    /// The server does not take what it needs.
    Refused,
    /// It cannot be sent.
    Not(Unstored),
}

impl Lane {
    /// Stores a body. Returns the sequence of its first message. `None`: the server did not take it in the given tries.
    ///
    /// Fails if another forwarder writes to the subject.
    pub(crate) async fn put(
        &mut self,
        headers: Headers,
        bytes: Bytes,
        tries: u32,
    ) -> Result<Option<u64>, Failure> {
        let body = Body::new(headers, bytes, Proof::Nothing, None);
        let mut one = One { body: Some(body), first: 0 };
        Ok((self.store(&mut one, tries).await? == Put::Stored).then_some(one.first))
    }

    /// Stores bodies, until there are none. `tries`: those of the first body.
    ///
    /// Fails if another forwarder writes to the subject.
    pub(crate) async fn store(&mut self, bodies: &mut impl Bodies, tries: u32) -> Result<Put, Failure> {
        let link = Rc::clone(&self.link);
        let _sender = link.line.enter();
        let mut run = Run::default();
        let put = self.run(&mut run, bodies, tries).await;
        // Some of them may be stored later.
        let plans = run.bodies.into_iter().filter_map(|body| Some((body.headers.number, body.plan?.0)));
        self.past.extend(plans);
        let excess = self.past.len().saturating_sub(PAST_MAX);
        self.past.drain(..excess);
        put
    }

    async fn run(&mut self, run: &mut Run, bodies: &mut impl Bodies, tries: u32) -> Result<Put, Failure> {
        let mut pauses = Pauses::new(tries);
        loop {
            while self.follow(run, bodies) {}
            if let Some(OnWay { sent, before, is_behind, n_connections, max, .. }) = run.on_way.front_mut() {
                let before = if *is_behind { self.stored.0 } else { *before };
                tokio::select! {
                    biased;
                    answer = self.link.answer(sent, *n_connections) => {
                        let stored = self.link.stored(&self.subject, answer, before, *max).await;
                        self.settle(run, bodies, stored, &mut pauses);
                    }
                    () = bodies.more(), if !run.is_broken => {}
                }
                continue;
            }
            run.is_broken = false;
            if let Some(why) = run.trouble.take()
                && !self.wait(why, &mut pauses).await
            {
                return Ok(Put::Refused);
            }
            if run.bodies.is_empty() {
                match bodies.next() {
                    Some(body) => run.bodies.push_back(body),
                    None => return Ok(Put::Stored),
                }
            }
            match self.begin(run, bodies, pauses.max()).await? {
                Begun::Done => {}
                Begun::Refused => return Ok(Put::Refused),
                Begun::Not(why) => run.trouble = Some(why),
            }
        }
    }

    /// Sends a message behind the last one of the subject, which is known or asked for.
    async fn begin(&mut self, run: &mut Run, bodies: &mut impl Bodies, tries: u32) -> Result<Begun, Failure> {
        let is_asked = match self.refresh().await {
            Ok(is_asked) => is_asked,
            Err(why) => return Ok(Begun::Not(why)),
        };
        if is_asked && let Err(why) = self.settle_behind(run, bodies).await {
            return Ok(Begun::Not(why));
        }
        self.recount(run, bodies);
        let Some(body) = run.bodies.front_mut() else { return Ok(Begun::Done) };
        let number = body.headers.number;
        match self.stored_before(run).await {
            Ok(None) => self.check(number)?,
            Ok(Some(sequence)) => {
                if let Some(body) = run.bodies.front_mut() {
                    body.first = sequence;
                }
                self.pop(run, bodies);
                return Ok(Begun::Done);
            }
            Err(why) => return Ok(Begun::Not(why)),
        }
        let Some(body) = run.bodies.front_mut() else { return Ok(Begun::Done) };
        let is_outdated = |body: &Body| body.generation.is_some_and(|of| of != self.link.generation());
        if is_outdated(body) && !bodies.renew(body, tries).await? {
            return Ok(Begun::Refused);
        }
        let slot = match self.link.slot().await {
            Ok(slot) => slot,
            Err(why) => return Ok(Begun::Not(why)),
        };
        if is_outdated(body) {
            return Ok(Begun::Done);
        }
        if !self.plan(body) {
            return Ok(Begun::Not(self.too_small()));
        }
        let before = self.last.as_ref().map_or(0, |last| last.expected);
        // Linked to the last message in the line, it does not end the runs of other subjects.
        let end = self.link.line.end().filter(|id| self.has_room_for(id));
        run.on_way.extend(self.send(body, slot, (before, false), end.as_deref()));
        Ok(Begun::Done)
    }

    /// Sends a message behind the last one on the way, if that may be. It is stored only if that one and all of other
    /// subjects in between are, next to each other.
    fn follow(&self, run: &mut Run, bodies: &mut impl Bodies) -> bool {
        let (line, n_on_way) = (&self.link.line, run.on_way.len());
        let Some(last) = run.on_way.back().filter(|_| !run.is_broken && n_on_way < line.share()) else {
            return false;
        };
        let is_there = self.link.is_open() && last.n_connections == self.link.troubles.n_lost();
        if !is_there {
            return false;
        }
        let end = line.end_behind(&last.sent).filter(|id| self.has_room_for(id));
        let Some(end) = end else { return false };
        let Some(slot) = line.try_slot() else { return false };
        // After a break there may be several that are not sent.
        let place = run.bodies.iter().position(Body::has_more).unwrap_or(run.bodies.len());
        if place == run.bodies.len() {
            let Some(body) = bodies.next() else { return false };
            run.bodies.push_back(body);
        }
        let Some(body) = run.bodies.get_mut(place) else { return false };
        // What is on the way has to be settled first.
        if body.generation.is_some_and(|of| of != self.link.generation()) || !self.keep_plan(body) {
            return false;
        }
        let message = self.send(body, slot, (last.before, true), Some(&end));
        let is_sent = message.is_some();
        run.on_way.extend(message);
        is_sent
    }

    /// Plans how a body is split, unless it is planned. Returns false if parts of another plan are on the way, or
    /// nothing fits.
    fn keep_plan(&self, body: &mut Body) -> bool {
        match &body.plan {
            None => self.plan(body),
            Some((plan, max)) => *max == self.link.message_max() && plan.ends(self.end(body.headers.number)),
        }
    }

    /// Plans how a body is split. Returns false if nothing fits.
    fn plan(&self, body: &mut Body) -> bool {
        // After a purge a text may get its number again. The server must not take it for a duplicate.
        let (max, end) = (self.link.message_max(), self.end(body.headers.number));
        if body.plan.as_ref().is_some_and(|(plan, of)| *of == max && plan.ends(end)) {
            return true;
        }
        let Some(room) = self.room(&body.headers) else { return false };
        let same = body.plan.take().map(|(plan, _)| plan).filter(|plan| plan.fits(room, end));
        let is_new = same.is_none();
        let plan = same.unwrap_or_else(|| Plan::new(body.bytes.len(), room, end));
        if is_new {
            (body.sent, body.first) = (0, 0);
        }
        body.plan = Some((plan, max));
        true
    }

    /// Sends the next part of a body. `before`: the sequence that the first of the run expects, and whether this one
    /// is behind it. `end`: the id of the last message in the line, if it is linked to that one.
    fn send(
        &self,
        body: &mut Body,
        slot: Slot,
        (before, is_behind): (u64, bool),
        end: Option<&str>,
    ) -> Option<OnWay> {
        let (plan, max) = body.plan.as_ref()?;
        let max = *max;
        let part = plan.part(body.sent.saturating_add(1))?;
        let (token, piece) = (plan.token(part), plan.piece(&body.bytes, part));
        let headers = Headers { part, ..body.headers.clone() };
        let line = &self.link.line;
        let id = id(&self.id, &headers, before, end.map(|_| line.next_place()), token);
        let map = self.headers(&headers, &id, (!is_behind).then_some(before), end);
        let (is_linked, is_whole) = (end.is_some(), part.is_last());
        let subject = self.subject.clone();
        let sent = line.send(slot, ToSend { subject, headers: map, body: piece, id, is_linked, is_whole });
        body.sent += 1;
        let n_connections = self.link.troubles.n_lost();
        Some(OnWay { sent, headers, token, before, is_behind, is_linked, n_connections, max })
    }

    /// Takes the answer to the first message on the way: its sequence, or why it is not stored.
    fn settle(
        &mut self,
        run: &mut Run,
        bodies: &mut impl Bodies,
        stored: Result<u64, Unstored>,
        pauses: &mut Pauses,
    ) {
        let Some(message) = run.on_way.pop_front() else { return };
        match stored {
            Ok(sequence) if !run.is_broken => {
                let part = message.headers.part;
                pauses.reset(part.is_last());
                self.note_stored(message.headers, message.token, sequence);
                let Some(body) = run.bodies.front_mut() else { return };
                if part.number() == 1 {
                    body.first = sequence;
                }
                if part.is_last() {
                    self.pop(run, bodies);
                }
            }
            // One before it is not known to be stored. It is for the last message to say.
            Ok(_) => run.trouble = run.trouble.take().or(Some(Unstored::Doubt)),
            Err(Unstored::Unlinked) if message.is_linked => {
                if !run.is_broken {
                    self.link.line.note_refused();
                }
                run.is_broken = true;
            }
            Err(why) => {
                run.is_broken = true;
                run.trouble = run.trouble.take().or(Some(why));
            }
        }
    }

    /// Notes that a message of this process is the last one.
    fn note_stored(&mut self, headers: Headers, token: u64, sequence: u64) {
        let generation = self.link.generation();
        let meaning = headers.sub_buffer.as_ref().and_then(|sub_buffer| sub_buffer.meaning.as_ref());
        if meaning.is_some_and(|meaning| meaning.dictionary >= sequence) {
            // Only another stream counts from 1 again.
            self.link.has_lost(generation);
        }
        (self.stored, self.has_stored) = ((sequence, self.link.generation()), true);
        self.known = Some(sequence);
        self.last = Some(Last { sequence, expected: sequence, written: Some(Written::new(headers, token)) });
        self.past.clear();
    }

    /// Finds out what is stored of the bodies, if nothing is on the way.
    fn recount(&mut self, run: &mut Run, bodies: &mut impl Bodies) {
        let last = self.last.take().unwrap_or_default();
        if let Some(written) = last.written.as_ref().filter(|written| self.is_ours(written, run)) {
            self.pop_until(written, last.sequence, run, bodies);
        }
        run.bodies.iter_mut().for_each(|body| body.sent = 0);
        if let Some(body) = run.bodies.front_mut() {
            body.sent = body.n_stored(last.written.as_ref());
            if body.sent > 0 {
                body.note_first(last.sequence, body.sent);
            }
            if !body.has_more() {
                self.pop(run, bodies);
            }
        }
        self.last = Some(last);
    }

    /// Takes the bodies out that are stored with a message of this process: it is stored only behind those before it.
    pub(super) fn pop_until(
        &self,
        written: &Written,
        sequence: u64,
        run: &mut Run,
        bodies: &mut impl Bodies,
    ) {
        let (number, is_end) = (written.headers.number, self.is_end(written));
        let is_stored = |body: &Body| body.headers.number < number || is_end && body.headers.number == number;
        while let Some(body) = run.bodies.front_mut().filter(|body| is_stored(body)) {
            // Packets name the first message of a text.
            if body.headers.number == number {
                body.note_first(sequence, written.headers.part.number());
            }
            self.pop(run, bodies);
        }
    }

    /// Returns whether this process has written the message, in this run or before.
    pub(super) fn is_ours(&self, written: &Written, run: &Run) -> bool {
        let number = written.headers.number;
        let of_run = || {
            run.bodies.iter().any(|body| body.headers.number == number && body.n_stored(Some(written)) > 0)
        };
        let is_past = || self.past.iter().any(|(of, plan)| *of == number && plan.stored(Some(written)) > 0);
        written.headers.instance == self.instance && (self.is_end(written) || of_run() || is_past())
    }

    /// Returns whether a message is the last part of a body of this process.
    fn is_end(&self, written: &Written) -> bool {
        written.headers.part.is_last() && written.token == self.end(written.headers.number)
    }

    /// Takes the first body out, which is stored.
    pub(super) fn pop(&self, run: &mut Run, bodies: &mut impl Bodies) {
        if let Some(body) = run.bodies.pop_front() {
            self.link.troubles.clear(&self.subject);
            bodies.stored(body.first);
        }
    }
}
