//! The connection of a reader.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::context::ContextBuilder;
use async_nats::{ClientError, Event};
use tokio::sync::{Notify, watch};

use super::error::Failure;
use super::store::Store;
use crate::options::Options;
use crate::output::say;
use crate::server;

/// Requests that may wait to be written.
const CAPACITY: usize = 256;
/// Longest wait for an answer, before the request is sent again.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// What happens to the connection.
#[derive(Default)]
struct Trouble {
    /// Why there is none.
    last: Mutex<Option<String>>,
    has_come: Notify,
    /// Counts its losses.
    cuts: watch::Sender<u64>,
}

impl Trouble {
    fn event(&self, event: &Event) {
        let why = match event {
            Event::ClientError(ClientError::Other(why)) => why.clone(),
            Event::ServerError(error) => error.to_string(),
            Event::Disconnected => return self.cuts.send_modify(|cuts| *cuts = cuts.wrapping_add(1)),
            _ => return,
        };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
        self.has_come.notify_one();
    }

    /// Puts the connection's trouble in the place of a request's, which just got no answer.
    fn explain(&self, failure: Failure) -> Failure {
        match (failure, self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()) {
            (Failure::Connect { server, .. }, Some(reason)) => Failure::Connect { server, reason },
            (failure, _) => failure,
        }
    }
}

/// Connects to the servers that the options name, and finds the stream. With `--follow` it waits for both.
pub(super) async fn open(options: &Options) -> Result<Store, Failure> {
    let Some(servers) = &options.read.from else {
        return Err(Failure::Nothing("--from is missing".to_owned()));
    };
    let server = servers.to_string();
    let trouble = Arc::new(Trouble::default());
    let listener = Arc::clone(&trouble);
    let connected =
        server::connect(servers, &options.server, CAPACITY, move |event| listener.event(&event)).await;
    let client = connected.map_err(|failure| Failure::Server(Box::new(failure)))?;
    let context = ContextBuilder::new().timeout(ANSWER_MAX).build(client);
    let (mut attempts, mut is_told) = (0, false);
    loop {
        let open = Store::open(context.clone(), trouble.cuts.subscribe(), &server, &options.stream);
        // The first trouble with the only server decides, unless there is time.
        let is_hasty = !options.read.follow && servers.0.len() == 1;
        let opened = tokio::select! {
            opened = open => opened,
            () = trouble.has_come.notified(), if is_hasty => {
                Err(Failure::Connect { server: server.clone(), reason: String::new() })
            }
        };
        let failure = match opened {
            Ok(store) => {
                if is_told {
                    say(format_args!("{server}: reading stream '{}'", options.stream));
                }
                return Ok(store);
            }
            Err(failure) => trouble.explain(failure),
        };
        if !options.read.follow {
            return Err(failure);
        }
        if !std::mem::replace(&mut is_told, true) {
            say(format_args!("{failure}; trying again"));
        }
        attempts += 1;
        tokio::time::sleep(server::pause(attempts + 1)).await;
    }
}
