//! Requests, and their answers.
//!
//! The client has requests, too. One that gets no answer stays in its memory for ever, and a server without
//! a quorum answers none for hours. Here nothing stays.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::client::PublishErrorKind;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::RawMessage;
use async_nats::jetstream::{Error, ErrorCode};
use async_nats::{Client, HeaderMap, Message, StatusCode, Subscriber};
use bytes::Bytes;
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_stream::StreamExt;

use crate::error::Failure;

/// Requests that wait for their answers, by number.
#[derive(Clone, Default)]
struct Waiting(Arc<Mutex<HashMap<u64, oneshot::Sender<Message>>>>);

impl Waiting {
    fn all(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Message>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks, and waits for answers.
pub(crate) struct Requests {
    client: Client,
    /// What the subjects of answers begin with.
    inbox: String,
    waiting: Waiting,
    next: AtomicU64,
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
        tokio::spawn(hand_over(answers, waiting.clone()));
        Ok(Requests { client, inbox, waiting, next: AtomicU64::new(0) })
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
        // Relaxed: the number says nothing about other memory.
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.waiting.all().insert(number, sender);
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
        self.waiting.all().remove(&self.number);
    }
}

/// Decodes an answer to MSG.GET: the message, `None` if there is none, or the server's error.
pub(crate) fn decode_message(answer: &[u8]) -> Result<Result<Option<RawMessage>, Error>, serde_json::Error> {
    Ok(match serde_json::from_slice::<Response<Value>>(answer)? {
        Response::Ok(mut answer) => {
            // Valid JSON need not be an object.
            let message = answer.get_mut("message").map(Value::take).unwrap_or_default();
            Ok(Some(serde_json::from_value(message)?))
        }
        Response::Err { error } if error.error_code() == ErrorCode::NO_MESSAGE_FOUND => Ok(None),
        Response::Err { error } => Err(error),
    })
}

async fn hand_over(mut answers: Subscriber, waiting: Waiting) {
    while let Some(answer) = answers.next().await {
        let number = answer.subject.rsplit('.').next().and_then(|number| number.parse().ok());
        let sender = number.and_then(|number: u64| waiting.all().remove(&number));
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
    fn answers_that_are_no_message_are_errors() {
        let message = br#"{"message":{"subject":"a","seq":7,"data":"","time":"2024-01-01T00:00:00Z"}}"#;
        assert_eq!(decode_message(message).unwrap().unwrap().map(|message| message.sequence), Some(7));
        let missing = br#"{"error":{"code":404,"err_code":10037,"description":"no message found"}}"#;
        assert!(decode_message(missing).unwrap().unwrap().is_none());
        let error = br#"{"error":{"code":404,"err_code":10059,"description":"stream not found"}}"#;
        assert!(decode_message(error).unwrap().is_err());
        for nonsense in ["", "[1]", "7", "null", "\"message\"", "{}", "{\"message\":[]}"] {
            assert!(decode_message(nonsense.as_bytes()).is_err(), "{nonsense}");
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
            assert!(requests.waiting.all().is_empty());
        });
        drop(runtime);
        server.join().expect("the server's thread");
    }
}
