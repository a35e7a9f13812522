//! Requests, and their answers.
//!
//! The client has requests, too. One that gets no answer stays in its memory for ever, and a server without
//! a quorum answers none for hours. Here nothing stays.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use async_nats::client::PublishErrorKind;
use async_nats::{Client, HeaderMap, Message, StatusCode, Subscriber};
use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_stream::StreamExt;

use crate::error::Failure;

/// Requests that wait for their answers, by number.
type Waiting = Rc<RefCell<HashMap<u64, oneshot::Sender<Message>>>>;

/// Asks, and waits for answers.
pub(crate) struct Requests {
    client: Client,
    /// What the subjects of answers begin with.
    inbox: String,
    waiting: Waiting,
    next: Cell<u64>,
}

/// Why a request has no answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unanswered {
    /// There is no connection, or it was lost.
    Away,
    /// None came in time.
    Silence,
    /// The server has refused the question, in these words.
    Refused(String),
    /// Nothing listens to the subject.
    NoResponders,
    /// The server takes no message of this length.
    TooLong,
    /// The client refused to send it.
    Other(String),
}

impl Requests {
    /// Subscribes to answers.
    pub(crate) async fn new(client: Client) -> Result<Requests, Failure> {
        let inbox = client.new_inbox();
        let answers = client.subscribe(format!("{inbox}.*")).await;
        let answers =
            answers.map_err(|error| Failure::system("wait for answers", std::io::Error::other(error)))?;
        let waiting = Waiting::default();
        tokio::task::spawn_local(hand_over(answers, Rc::clone(&waiting)));
        Ok(Requests { client, inbox, waiting, next: Cell::new(0) })
    }

    /// Returns the longest message that the server takes, headers counted, in bytes.
    pub(crate) fn max_payload(&self) -> usize {
        self.client.max_payload()
    }

    /// Sends a request, and returns the answer.
    pub(crate) async fn ask(
        &self,
        subject: String,
        headers: Option<HeaderMap>,
        body: Bytes,
        patience: Duration,
    ) -> Result<Message, Unanswered> {
        let number = self.next.replace(self.next.get().wrapping_add(1));
        let (sender, answer) = oneshot::channel();
        self.waiting.borrow_mut().insert(number, sender);
        let _entry = Entry { waiting: &self.waiting, number };
        let reply = format!("{}.{number}", self.inbox);
        let asked = async {
            let sent = match headers {
                Some(headers) => {
                    self.client.publish_with_reply_and_headers(subject, reply, headers, body).await
                }
                None => self.client.publish_with_reply(subject, reply, body).await,
            };
            sent.map_err(|error| match error.kind() {
                PublishErrorKind::MaxPayloadExceeded => Unanswered::TooLong,
                _ => Unanswered::Other(error.to_string()),
            })?;
            answer.await.map_err(|_| Unanswered::Away)
        };
        let answer = timeout(patience, asked).await.map_err(|_| Unanswered::Silence)??;
        if answer.status == Some(StatusCode::NO_RESPONDERS) {
            return Err(Unanswered::NoResponders);
        }
        Ok(answer)
    }
}

/// A request that waits. It waits no more when this is dropped.
struct Entry<'w> {
    waiting: &'w Waiting,
    number: u64,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.waiting.borrow_mut().remove(&self.number);
    }
}

async fn hand_over(mut answers: Subscriber, waiting: Waiting) {
    while let Some(answer) = answers.next().await {
        let number = answer.subject.rsplit('.').next().and_then(|number| number.parse().ok());
        let sender = number.and_then(|number: u64| waiting.borrow_mut().remove(&number));
        if let Some(sender) = sender {
            // A request that was given up meanwhile wants no answer.
            let _ = sender.send(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    /// A server that answers the first request, and no other.
    fn serve(listener: &TcpListener) {
        let (stream, _) = listener.accept().expect("a client");
        let mut out = stream.try_clone().expect("a second handle");
        out.write_all(b"INFO {\"server_id\":\"x\",\"version\":\"2.9.10\",\"max_payload\":1000}\r\n")
            .expect("writing");
        let mut has_answered = false;
        for line in BufReader::new(stream).lines() {
            let Ok(line) = line else { return };
            let words: Vec<&str> = line.split(' ').collect();
            let answer = match words[..] {
                ["PING"] => "PONG\r\n".to_owned(),
                ["PUB", _, reply, _] if !has_answered => {
                    has_answered = true;
                    format!("MSG {reply} 1 3\r\nyes\r\n")
                }
                _ => continue,
            };
            if out.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }

    #[test]
    fn request_without_answer_leaves_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("nats://{}", listener.local_addr().expect("an address"));
        let server = thread::spawn(move || serve(&listener));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let client = async_nats::connect(url).await.expect("a client");
            let requests = Requests::new(client).await.expect("requests");
            let ask = |len, patience| {
                requests.ask("subject".to_owned(), None, Bytes::from(vec![b'x'; len]), patience)
            };
            let answer = ask(1, Duration::from_secs(100)).await.expect("an answer");
            assert_eq!(&answer.payload[..], b"yes");
            for _ in 0..3 {
                assert_eq!(ask(1, Duration::from_millis(1)).await.unwrap_err(), Unanswered::Silence);
            }
            assert_eq!(ask(1001, Duration::from_secs(100)).await.unwrap_err(), Unanswered::TooLong);
            drop(ask(1, Duration::from_secs(100)));
            assert!(requests.waiting.borrow().is_empty());
        });
        drop(runtime);
        server.join().expect("the server's thread");
    }
}
