//! The connection of a reader.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, watch};

use super::error::Failure;
use super::stops::GiveUp;
use super::store::{DirectAnswers, Store, Told};
use crate::options::Options;
use crate::output::say;
use crate::server::requests::Requests;
use crate::server::{self, Change, Trouble};

/// Requests that may wait to be written.
const CAPACITY: usize = 256;
/// Subject of direct questions, without the name of the stream.
const DIRECT: &str = "$JS.API.DIRECT.GET.";

/// What happens to the connection.
struct Troubles {
    /// Addresses of the servers, for messages.
    server: String,
    last: Mutex<Option<Trouble>>,
    has_come: Notify,
    /// Counts its losses.
    cuts: watch::Sender<u64>,
    /// Whether direct questions are of use.
    direct: Arc<DirectAnswers>,
    /// What is done without a right that reading needs; `None` before it begins.
    reading: Mutex<Option<Reading>>,
}

/// The stream is read.
struct Reading {
    /// Ends it. `None`: it waits for the right.
    give_up: Option<GiveUp>,
    /// Missing rights that were said since the last connection was made.
    told: Told,
}

impl Troubles {
    fn new(server: String) -> Troubles {
        Troubles {
            server,
            last: Mutex::default(),
            has_come: Notify::new(),
            cuts: watch::Sender::default(),
            direct: Arc::default(),
            reading: Mutex::default(),
        }
    }

    fn change(&self, change: Change) {
        match change {
            Change::Made => {
                self.direct.ask_again();
                // What kept it from being made is over.
                *self.last() = None;
                if let Some(reading) = &mut *self.reading() {
                    reading.told.end();
                }
            }
            Change::Lost => self.cuts.send_modify(|cuts| *cuts = cuts.wrapping_add(1)),
            Change::Refused(trouble) if self.reading().is_some() => self.refused(trouble),
            Change::Missing(trouble) | Change::Refused(trouble) => {
                *self.last() = Some(trouble);
                self.has_come.notify_one();
            }
        }
    }

    /// Takes a refusal while the stream is read. Only missing rights keep it from being read.
    fn refused(&self, Trouble { why, advice, subject }: Trouble) {
        let (Some(advice), server) = (advice, &self.server) else { return };
        if subject.is_some_and(|subject| subject.starts_with(DIRECT)) {
            if self.direct.note_useless(Instant::now()) {
                say(format_args!("{server}: {why}; asking without it, which is slower ({advice})"));
            }
            return;
        }
        let mut reading = self.reading();
        let Some(Reading { give_up, told }) = &mut *reading else { return };
        match give_up {
            Some(give_up) => give_up.because(format!("cannot read from {server}: {why}; {advice}")),
            None if told.is_news(&why) => {
                say(format_args!("{server}: {why}; {advice}"));
            }
            None => {}
        }
    }

    fn reading(&self) -> MutexGuard<'_, Option<Reading>> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the last trouble.
    fn last(&self) -> MutexGuard<'_, Option<Trouble>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a trouble that is not tried again: one that only the operator can end, or with `hasty` any.
    async fn until_hopeless(&self, hasty: bool) {
        while !self.last().as_ref().is_some_and(|trouble| hasty || trouble.advice.is_some()) {
            self.has_come.notified().await;
        }
    }

    /// Puts the connection's trouble in the place of a request's, which just got no answer.
    fn explain(&self, failure: Failure) -> Failure {
        match (failure, &*self.last()) {
            (Failure::Connect { server, .. }, Some(Trouble { why, advice, .. })) => {
                let reason = advice.map_or(why.clone(), |advice| format!("{why}; {advice}"));
                Failure::Connect { server, reason }
            }
            (failure, _) => failure,
        }
    }
}

/// Connects to the servers that the options name, and finds the stream.
///
/// With `--follow` it waits for both, unless only the operator can make a connection possible. `give_up` ends reading
/// when that cannot continue; `None`: it is waited for.
pub(super) async fn open(options: &Options, give_up: Option<GiveUp>) -> Result<Store, Failure> {
    let Some(servers) = &options.read.from else {
        return Err(Failure::Nothing("--from is missing".to_owned()));
    };
    let server = servers.to_string();
    let troubles = Arc::new(Troubles::new(server.clone()));
    let listener = Arc::clone(&troubles);
    let connected =
        server::connect(servers, &options.server, CAPACITY, move |change| listener.change(change)).await;
    let client = connected.map_err(|failure| Failure::Server(Box::new(failure)))?;
    let requests = Requests::new(client).await.map_err(|failure| Failure::Server(Box::new(failure)))?;
    let requests = Arc::new(requests);
    let (mut attempts, mut told) = (0, Told::default());
    loop {
        let cuts = troubles.cuts.subscribe();
        let open = Store::open(&requests, cuts, &troubles.direct, give_up.clone(), &server, &options.stream);
        // The first trouble with the only server decides, unless there is time.
        let is_hasty = !options.read.follow && servers.0.len() == 1;
        let (opened, is_final) = tokio::select! {
            opened = open => (opened, !options.read.follow),
            () = troubles.until_hopeless(is_hasty) => {
                (Err(Failure::Connect { server: server.clone(), reason: String::new() }), true)
            }
        };
        let failure = match opened {
            Ok(store) => {
                *troubles.reading() = Some(Reading { give_up, told: Told::default() });
                if told.end() {
                    say(format_args!("{server}: reading stream '{}'", options.stream));
                }
                return Ok(store);
            }
            Err(failure) => troubles.explain(failure),
        };
        if is_final {
            return Err(failure);
        }
        if told.is_news(&failure.to_string()) {
            say(format_args!("{failure}; trying again"));
        }
        attempts += 1;
        tokio::time::sleep(server::pause(attempts + 1)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The connection is there, and the stream is not.
    #[test]
    fn trouble_of_a_connection_ends_with_it() {
        let troubles = Troubles::new("s".to_owned());
        let explained = || {
            let failure = Failure::Connect { server: "s".to_owned(), reason: "no answer".to_owned() };
            troubles.explain(failure).to_string()
        };
        let trouble = Trouble { why: "refused".to_owned(), advice: None, subject: None };
        troubles.change(Change::Missing(trouble));
        assert!(explained().ends_with(": refused"));
        troubles.change(Change::Made);
        assert!(explained().ends_with(": no answer"));
    }
}
