//! Messages into the stream, in one line: the order in which they are published on the connection, and acknowledged.
//!
//! A message has the next sequence after the one before it in the line, unless another connection writes in between. So
//! messages can be linked: each expects that the last message of the stream is the one before it in the line.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use async_nats::client::PublishErrorKind;
use async_nats::jetstream;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use async_nats::{Client, HeaderMap, Message, StatusCode, Subscriber};
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_stream::StreamExt;

use super::depth::Depth;
use crate::error::Failure;
use crate::server::requests::Unanswered;

/// The server's answer to a message.
pub(crate) type Answer = Result<PublishAck, Refusal>;

/// Why the server does not say that it has a message.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// There is no answer.
    Unanswered(Unanswered),
    /// The stream refuses it.
    Error(jetstream::Error),
    /// The answer is no answer of JetStream.
    Nonsense,
}

/// Whether the server has let the message through to the stream, whatever that has said to it.
pub(crate) fn is_let_through(answer: &Answer) -> bool {
    !matches!(answer, Err(Refusal::Unanswered(_)))
}

/// The line of messages to the server.
pub(crate) struct Line {
    state: Rc<RefCell<State>>,
    /// What the subjects of answers begin with.
    inbox: String,
    out: mpsc::UnboundedSender<Publish>,
    /// A permit for each message that may be on the way.
    slots: Arc<Semaphore>,
    window: usize,
    /// Number of subjects that send.
    senders: Cell<usize>,
    /// Whether more than one message of a subject may be on the way, as the stream is set up.
    is_deep: Cell<bool>,
}

struct State {
    /// Messages on the way, by place.
    on_way: BTreeMap<u64, oneshot::Sender<Answer>>,
    /// Place of the next message.
    next: u64,
    /// The message before that; `None` if none may be linked to it.
    last: Option<End>,
    /// Place of a message, behind which each one is linked to the one before it.
    linked: u64,
    /// Sequence of the last acknowledged message.
    acked: u64,
    /// Place of the last answered message, and when that was.
    answered: (u64, Instant),
    depth: Depth,
}

/// The end of the line.
struct End {
    /// Id of the last message.
    id: String,
    /// Whether a body ends with it.
    is_whole: bool,
}

/// A message for the server.
struct Publish {
    place: u64,
    reply: String,
    message: ToSend,
}

/// A message.
pub(crate) struct ToSend {
    pub(crate) subject: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Its id.
    pub(crate) id: String,
    /// Whether it is linked to the last message in the line.
    pub(crate) is_linked: bool,
    /// Whether it is the last part of its body.
    pub(crate) is_whole: bool,
}

/// Room for one message on the way.
pub(crate) type Slot = OwnedSemaphorePermit;

/// A message on the way.
pub(crate) struct Sent {
    state: Rc<RefCell<State>>,
    answer: oneshot::Receiver<Answer>,
    place: u64,
    at: Instant,
    _slot: Slot,
}

/// A subject that sends. It is none when this is dropped.
pub(crate) struct Sender<'l>(&'l Cell<usize>);

impl Line {
    /// Begins a line with at most `window` messages on the way.
    pub(crate) async fn new(client: &Client, window: usize) -> Result<Line, Failure> {
        let inbox = client.new_inbox();
        let answers = client.subscribe(format!("{inbox}.*")).await;
        let answers =
            answers.map_err(|error| Failure::system("wait for answers", std::io::Error::other(error)))?;
        let state = State {
            on_way: BTreeMap::new(),
            next: 1,
            last: None,
            linked: 1,
            acked: 0,
            answered: (0, Instant::now()),
            depth: Depth::new(window),
        };
        let state = Rc::new(RefCell::new(state));
        let (out, messages) = mpsc::unbounded_channel();
        tokio::task::spawn_local(hand_over(answers, Rc::clone(&state)));
        tokio::task::spawn_local(publish(client.clone(), messages, Rc::clone(&state)));
        let (slots, senders) = (Arc::new(Semaphore::new(window)), Cell::new(0));
        Ok(Line { state, inbox, out, slots, window, senders, is_deep: Cell::new(false) })
    }

    /// Counts a subject that sends.
    pub(crate) fn enter(&self) -> Sender<'_> {
        self.senders.set(self.senders.get() + 1);
        Sender(&self.senders)
    }

    /// Says whether the stream may have more than one message of a subject on the way.
    pub(crate) fn set_deep(&self, is_deep: bool) {
        self.is_deep.set(is_deep);
    }

    /// Returns how many messages of a subject may be on the way.
    pub(crate) fn share(&self) -> usize {
        let fair = (self.window / self.senders.get().max(1)).max(1);
        if self.is_deep.get() { self.state.borrow().depth.get().min(fair) } else { 1 }
    }

    /// Waits for room for a message.
    pub(crate) async fn slot(&self) -> Option<Slot> {
        // It is never closed.
        Arc::clone(&self.slots).acquire_owned().await.ok()
    }

    /// Returns room for a message if there is some.
    pub(crate) fn try_slot(&self) -> Option<Slot> {
        Arc::clone(&self.slots).try_acquire_owned().ok()
    }

    /// Returns the id of the last message in the line, if all behind this one are linked, and the next one of its
    /// subject may be.
    pub(crate) fn end_behind(&self, sent: &Sent) -> Option<String> {
        self.state.borrow().end_behind(sent.place)
    }

    /// Returns the id of the last message in the line, if that is on the way, and one of another subject may be
    /// linked to it.
    pub(crate) fn end(&self) -> Option<String> {
        let state = self.state.borrow();
        // Where others write to the stream, it would be refused too often.
        let is_worth_it = self.is_deep.get() && state.depth.get() > 1;
        if is_worth_it { state.end() } else { None }
    }

    /// Returns the place of the next message. No other one of this process has it.
    pub(crate) fn next_place(&self) -> u64 {
        self.state.borrow().next
    }

    /// Sends a message behind all that were sent before.
    pub(crate) fn send(&self, slot: Slot, message: ToSend) -> Sent {
        let (sender, answer) = oneshot::channel();
        let mut state = self.state.borrow_mut();
        let place = state.enter(sender, &message);
        let reply = format!("{}.{place}", self.inbox);
        // Its task ends with the process.
        let _ = self.out.send(Publish { place, reply, message });
        Sent { state: Rc::clone(&self.state), answer, place, at: Instant::now(), _slot: slot }
    }

    /// Notes that the server refused a message because of what is stored between it and the one before.
    pub(crate) fn note_refused(&self) {
        self.state.borrow_mut().depth.note_refused();
    }

    /// Notes that the connection was lost.
    pub(crate) fn note_lost(&self) {
        self.state.borrow_mut().depth.reset();
    }
}

impl Drop for Sender<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

impl Sent {
    /// Waits for the answer, for `patience` after the answer to the message before.
    ///
    /// A call that was cancelled can be made again.
    pub(crate) async fn answer(&mut self, patience: Duration) -> Answer {
        let mut since = self.at;
        loop {
            let (place, at) = self.state.borrow().answered;
            // Those in front of it take their time. Those behind it do not make it wait longer.
            if place < self.place {
                since = since.max(at);
            }
            let deadline = since + patience;
            match timeout_at(deadline, &mut self.answer).await {
                Ok(Ok(answer)) => return answer,
                Ok(Err(_)) => return Err(Refusal::Unanswered(Unanswered::Away)),
                Err(_) => {
                    let (place, at) = self.state.borrow().answered;
                    if place >= self.place || at <= since {
                        return Err(Refusal::Unanswered(Unanswered::Silence));
                    }
                }
            }
        }
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        let mut state = self.state.borrow_mut();
        if state.on_way.remove(&self.place).is_some() {
            state.cut(self.place);
        }
    }
}

impl State {
    /// Takes a message into the line. Returns its place.
    fn enter(&mut self, sender: oneshot::Sender<Answer>, message: &ToSend) -> u64 {
        let place = self.next;
        self.next += 1;
        self.on_way.insert(place, sender);
        if !message.is_linked {
            self.linked = place;
        }
        self.last = Some(End { id: message.id.clone(), is_whole: message.is_whole });
        place
    }

    fn end_behind(&self, place: u64) -> Option<String> {
        let is_last = self.next == place.saturating_add(1);
        let last = self.last.as_ref().filter(|last| is_last || last.is_whole);
        last.filter(|_| place >= self.linked).map(|last| last.id.clone())
    }

    /// Parts of a body are next to each other in the stream, unless each is acknowledged before the next one is sent.
    fn end(&self) -> Option<String> {
        let is_on_way = self.on_way.contains_key(&self.next.wrapping_sub(1));
        self.last.as_ref().filter(|last| is_on_way && last.is_whole).map(|last| last.id.clone())
    }

    /// Notes that a message is not known to be stored. What is linked to it is refused, and nothing more needs to be.
    fn cut(&mut self, place: u64) {
        if place >= self.linked {
            self.last = None;
        }
    }

    /// Takes the answer to a message.
    fn note(&mut self, place: u64, answer: Answer) {
        let Some(sender) = self.on_way.remove(&place) else { return };
        if !answer.as_ref().is_ok_and(|ack| !ack.duplicate) {
            self.cut(place);
        }
        self.answered = (self.answered.0.max(place), Instant::now());
        if let Ok(ack) = &answer
            && !ack.duplicate
        {
            self.depth.note_stored(ack.sequence == self.acked.saturating_add(1));
            self.acked = ack.sequence;
        }
        // A message that was given up meanwhile wants no answer.
        let _ = sender.send(answer);
    }
}

async fn hand_over(mut answers: Subscriber, state: Rc<RefCell<State>>) {
    while let Some(answer) = answers.next().await {
        let place = answer.subject.rsplit('.').next().and_then(|place| place.parse().ok());
        if let Some(place) = place {
            state.borrow_mut().note(place, read(&answer));
        }
    }
}

fn read(answer: &Message) -> Answer {
    if answer.status == Some(StatusCode::NO_RESPONDERS) {
        return Err(Refusal::Unanswered(Unanswered::NoResponders));
    }
    match serde_json::from_slice::<Response<PublishAck>>(&answer.payload) {
        Ok(Response::Ok(ack)) => Ok(ack),
        Ok(Response::Err { error }) => Err(Refusal::Error(error)),
        Err(_) => Err(Refusal::Nonsense),
    }
}

/// Hands the messages to the client, one behind the other. The client keeps their order.
async fn publish(client: Client, mut messages: mpsc::UnboundedReceiver<Publish>, state: Rc<RefCell<State>>) {
    while let Some(Publish { place, reply, message }) = messages.recv().await {
        // It was given up while the connection was away.
        if !state.borrow().on_way.contains_key(&place) {
            continue;
        }
        let ToSend { subject, headers, body, .. } = message;
        if let Err(error) = client.publish_with_reply_and_headers(subject, reply, headers, body).await {
            let why = match error.kind() {
                PublishErrorKind::MaxPayloadExceeded => Unanswered::TooLong,
                _ => Unanswered::Other(error.to_string()),
            };
            state.borrow_mut().note(place, Err(Refusal::Unanswered(why)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(sequence: u64, duplicate: bool) -> Answer {
        let text = format!("{{\"stream\":\"relay\",\"seq\":{sequence},\"duplicate\":{duplicate}}}");
        Ok(serde_json::from_str(&text).expect("an acknowledgement"))
    }

    fn state() -> State {
        let (next, linked, now) = (1, 1, Instant::now());
        let depth = Depth::new(64);
        State { on_way: BTreeMap::new(), next, last: None, linked, acked: 0, answered: (0, now), depth }
    }

    /// Sends a message whose id is this text.
    fn enter(state: &mut State, id: &str, is_linked: bool, is_whole: bool) -> u64 {
        let (subject, headers, body, id) = (String::new(), HeaderMap::new(), Bytes::new(), id.to_owned());
        let message = ToSend { subject, headers, body, id, is_linked, is_whole };
        state.enter(oneshot::channel().0, &message)
    }

    /// A user that may not publish gets no answer.
    #[test]
    fn answers_of_the_stream_prove_the_right_to_publish() {
        let error = br#"{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 7"}}"#;
        let message = |payload: &'static [u8], status| Message {
            subject: "answers.0".into(),
            reply: None,
            payload: payload.into(),
            headers: None,
            status,
            description: None,
            length: 0,
        };
        for payload in [&error[..], br#"{"stream":"relay","seq":7}"#, b"nonsense"] {
            assert!(is_let_through(&read(&message(payload, None))), "{}", payload.escape_ascii());
        }
        assert!(!is_let_through(&read(&message(b"", Some(StatusCode::NO_RESPONDERS)))));
        assert!(!is_let_through(&Err(Refusal::Unanswered(Unanswered::Silence))));
    }

    #[test]
    fn messages_of_several_subjects_are_linked() {
        let mut state = state();
        assert_eq!(state.end(), None, "nothing is on the way");
        let first = enter(&mut state, "a1", false, true);
        assert_eq!((state.end(), state.end_behind(first)), (Some("a1".into()), Some("a1".into())));
        let other = enter(&mut state, "b1", true, true);
        assert_eq!(
            (state.end_behind(first), state.end_behind(other)),
            (Some("b1".into()), Some("b1".into()))
        );
        // What is stored can still be followed by its own subject, while others are on the way.
        state.note(first, ack(1, false));
        let second = enter(&mut state, "a2", true, true);
        assert_eq!(state.end_behind(first), Some("a2".into()));
        // Between this one and those before it, other programs may write.
        let alone = enter(&mut state, "c1", false, true);
        assert_eq!([first, other, second].map(|place| state.end_behind(place)), [None, None, None]);
        assert_eq!(state.end_behind(alone), Some("c1".into()));
        state.note(alone, ack(4, false));
        assert_eq!(state.end(), None, "nothing of it is on the way");
    }

    #[test]
    fn parts_of_a_body_stay_together() {
        let mut state = state();
        let before = enter(&mut state, "a1", false, true);
        let part = enter(&mut state, "b1", true, false);
        assert_eq!((state.end(), state.end_behind(before)), (None, None));
        assert_eq!(state.end_behind(part), Some("b1".into()));
        enter(&mut state, "b2", true, true);
        assert_eq!((state.end(), state.end_behind(before)), (Some("b2".into()), Some("b2".into())));
    }

    #[test]
    fn nothing_is_linked_to_what_may_not_be_stored() {
        for answer in [Err(Refusal::Nonsense), ack(1, true)] {
            let mut state = state();
            let first = enter(&mut state, "a1", false, true);
            let second = enter(&mut state, "b1", true, true);
            state.note(first, answer);
            assert_eq!((state.end(), state.end_behind(first), state.end_behind(second)), (None, None, None));
            // Answers to those that were linked to it mean nothing for the next ones.
            let third = enter(&mut state, "c1", false, true);
            state.note(second, Err(Refusal::Nonsense));
            assert_eq!((state.end(), state.end_behind(third)), (Some("c1".into()), Some("c1".into())));
            assert_eq!(state.end_behind(second), None);
        }
    }

    #[test]
    fn depth_follows_the_answers_in_the_line() {
        let mut state = state();
        let mut answers = Vec::new();
        for place in 1..=40 {
            let (sender, answer) = oneshot::channel();
            state.on_way.insert(place, sender);
            answers.push(answer);
        }
        // The stream has had 100 messages before.
        (1..=9).for_each(|place| state.note(place, ack(100 + place, false)));
        assert_eq!((state.depth.get(), state.acked, state.answered.0), (2, 109, 9));
        // One of another program comes between.
        (10..=17).for_each(|place| state.note(place, ack(101 + place, false)));
        assert_eq!((state.depth.get(), state.acked), (2, 118));
        state.note(18, ack(119, false));
        assert_eq!(state.depth.get(), 4);
        // A duplicate is not stored now, and a refused message not at all.
        state.note(19, ack(5, true));
        state.note(20, Err(Refusal::Nonsense));
        assert_eq!((state.acked, state.on_way.len()), (119, 20));
        // What was given up, or never sent, does not count.
        assert!(state.on_way.remove(&21).is_some());
        state.note(21, ack(500, false));
        state.note(99, ack(600, false));
        assert_eq!((state.acked, state.answered.0), (119, 20));
        assert!(answers[0].try_recv().is_ok_and(|answer| answer.is_ok_and(|ack| ack.sequence == 101)));
    }
}
