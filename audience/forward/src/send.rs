//! `--to`: forwards channels into a stream.
//!
//! ```text
//! channel.rs    a channel: takes sub-buffers, gives them back when they are stored
//! channel/      what it does with each buffer
//! cpu.rs        one of its buffers, and the tasks that store its sub-buffers
//! feed.rs       its sub-buffers on the way, from the channel to the task and back
//! source.rs     its buffers, mapped, and its files
//! bell.rs       waits for a finished sub-buffer
//! idle.rs       when its buffers are closed
//! window.rs     how much is on the way
//! spare.rs      the memory of it
//! packets.rs    packets of a timed channel
//! texts.rs      the texts that belong to them
//! lane.rs       a subject: each body is stored behind the last one, once
//! lane/         its messages on the way, and what was in it at the start
//! history.rs    what of that matters
//! written.rs    whose a message is, and which part of what
//! pauses.rs     pauses between tries
//! link.rs       the stream: messages into it
//! link/         how it is found or created, its messages of a subject, what is said about it
//! line.rs       the order of the messages on the connection
//! depth.rs      how many of a subject are on the way
//! extent.rs     what the stream has
//! requests.rs   questions and answers
//! troubles.rs   what is said
//! ```
//!
//! One thread does all: it waits for the server most of the time, and calls to the daemon are short. They are not
//! while the daemon stands still. So signals are caught by another thread, which ends the program by force after a
//! while.

mod bell;
mod channel;
mod cpu;
mod depth;
mod extent;
mod feed;
mod history;
mod idle;
mod lane;
mod line;
mod link;
mod packets;
mod pauses;
mod source;
mod spare;
mod texts;
mod troubles;
mod window;
mod written;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use audience_common::signals;
use relay::ChannelName;
use sd_notify::NotifyState;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::{Id, JoinSet, LocalSet};
use tokio::time::{Instant, sleep_until, timeout_at};

use self::channel::{Job, forward};
use self::link::{Link, NoStream, Unstored};
use self::pauses::Pauses;
use self::source::READERS;
use self::spare::Spare;
use self::troubles::Troubles;
use self::window::Window;
use crate::error::Failure;
use crate::options::{Options, Servers};
use crate::output::say;
use crate::server;

/// Time between two looks at the list of channels.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Longest time for acknowledgements after a signal.
const END_MAX: Duration = Duration::from_secs(5);
/// Longest time for the end after a signal: the rest is for a daemon that stands still.
const SIGNAL_MAX: Duration = END_MAX.saturating_add(Duration::from_secs(1));
/// Requests that may wait to be written, beside those of the window.
const SPARE_REQUESTS: usize = 64;

/// Forwards until a signal, or an error that trying again does not mend.
pub(crate) fn run(servers: &Servers, options: &Options) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::system("start", error))?;
    let result = LocalSet::new().block_on(&runtime, begin(servers, options));
    // A lookup of names may hang in a thread.
    runtime.shutdown_background();
    result
}

async fn begin(servers: &Servers, options: &Options) -> Result<(), Failure> {
    let caught = signals::catch(Some(SIGNAL_MAX), || {})?;
    let hung_up = caught.as_fd().try_clone_to_owned().and_then(pipe::Receiver::from_owned_fd);
    let hung_up = hung_up.map_err(|error| Failure::system("wait for signals", error))?;
    let (stopper, stop) = watch::channel(false);
    let signalled = stopper.clone();
    tokio::task::spawn_local(async move {
        // It has no bytes: it hangs up at the first signal.
        let _ = hung_up.readable().await;
        signalled.send_replace(true);
    });
    let host = match &options.host {
        Some(host) => host.clone(),
        None => server::hostname()?,
    };
    let troubles = Arc::new(Troubles::new(servers.to_string()));
    let listener = Arc::clone(&troubles);
    let capacity = options.send.window.saturating_add(SPARE_REQUESTS);
    let client =
        server::connect(servers, &options.server, capacity, move |change| listener.change(change)).await?;
    let replicas = options.send.create.then_some(options.send.replicas);
    let link = Rc::new(Link::new(client, &options.stream, replicas, options.send.window, troubles).await?);
    // A server that is away holds up no boot. A start that waiting does not help ends behind this, with a status that
    // says so.
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        say(format_args!("cannot notify the service manager: {error}"));
    }
    let mut stopped = stop.clone();
    tokio::select! {
        prepared = prepare(&link) => prepared?,
        why = link.troubles.until_hopeless() => return Err(Failure::Start(why)),
        _ = stopped.wait_for(|stop| *stop) => return Ok(()),
    }
    link.troubles.note_started();
    let watched = Rc::clone(&link);
    tokio::task::spawn_local(async move { watched.watch().await });
    let job = Rc::new(Job {
        link,
        mount: options.send.mount.clone(),
        host,
        flush_interval: options.send.flush_interval.0,
        window: Window::new(options.send.window),
        spare: Spare::default(),
        was_opened: Cell::new(false),
        stop,
    });
    let mut channels = Channels { job, running: BTreeMap::new(), tasks: JoinSet::new(), was_listed: false };
    let result = channels.run(&options.channel).await;
    // An error of one channel does not cut short what is on the way of others.
    stopper.send_replace(true);
    // What is on the way then is stored or not; the next start finds out.
    let begin = caught.caught().map_or_else(Instant::now, |(_, at)| at.into());
    result.and(timeout_at(begin + END_MAX, channels.end()).await.unwrap_or(Ok(())))
}

/// Waits for the stream. Fails if it is not there, or takes nothing of ours, unless the operator changes that.
async fn prepare(link: &Link) -> Result<(), Failure> {
    let mut pauses = Pauses::new(u32::MAX);
    loop {
        link.troubles.until(true).await;
        match link.prepare().await {
            // The stream may be there for a user without the right to its messages.
            Ok(()) => match link.message(1).await {
                Ok(_) => {
                    link.troubles.clear(&link.name);
                    return Ok(());
                }
                Err(Unstored::Trouble(why)) => link.troubles.set(&link.name, &why),
                // It was created a moment ago, or the connection has gone.
                Err(_) => {}
            },
            Err(NoStream::Final(why)) => return Err(Failure::Start(why)),
            Err(NoStream::Trouble(why)) => link.troubles.set(&link.name, &why),
        }
        pauses.pause().await;
    }
}

/// The channels that are forwarded.
struct Channels {
    job: Rc<Job>,
    running: BTreeMap<ChannelName, Id>,
    tasks: JoinSet<Result<(), Failure>>,
    /// Whether the mount has said which there are.
    was_listed: bool,
}

impl Channels {
    /// Forwards these channels, or all, also later ones. Returns when the job is stopped.
    async fn run(&mut self, only: &[ChannelName]) -> Result<(), Failure> {
        let mut stop = self.job.stop.clone();
        while !*stop.borrow() {
            // Also after a channel has ended, which may be listed again: it has its time until then.
            let look_again = Instant::now() + LOOK_AGAIN;
            let names = if only.is_empty() { self.list()? } else { only.to_vec() };
            for name in names {
                if !self.running.contains_key(&name) {
                    let work = forward(Rc::clone(&self.job), name.clone(), only.is_empty());
                    self.running.insert(name, self.tasks.spawn_local(work).id());
                }
            }
            loop {
                tokio::select! {
                    Some(ended) = self.tasks.join_next_with_id() => self.ended(ended)?,
                    () = sleep_until(look_again) => break,
                    _ = stop.wait_for(|stop| *stop) => break,
                }
            }
        }
        Ok(())
    }

    /// Waits for the end of all channels.
    async fn end(&mut self) -> Result<(), Failure> {
        while let Some(ended) = self.tasks.join_next_with_id().await {
            self.ended(ended)?;
        }
        Ok(())
    }

    fn ended(
        &mut self,
        ended: Result<(Id, Result<(), Failure>), tokio::task::JoinError>,
    ) -> Result<(), Failure> {
        let (id, result) = ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        self.running.retain(|_, running| *running != id);
        result
    }

    /// Returns the channels that there are.
    fn list(&mut self) -> Result<Vec<ChannelName>, Failure> {
        let (mount, troubles) = (&self.job.mount, &self.job.link.troubles);
        let what = mount.display().to_string();
        Ok(match source::channels(mount) {
            Ok(names) => {
                troubles.clear(&what);
                self.was_listed = true;
                names
            }
            Err(error)
                if error.kind() == ErrorKind::PermissionDenied
                    && !self.was_listed
                    && source::is_refused_for_good(mount) =>
            {
                return Err(Failure::Start(format!("no channels on {what}: {error}; {READERS}")));
            }
            Err(error) => {
                troubles.set(&what, &format!("no channels on {what}: {error}; waiting for relayfs there"));
                Vec::new()
            }
        })
    }
}
