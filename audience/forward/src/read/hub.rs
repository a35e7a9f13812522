//! The lanes of all subjects that are asked for, and what they have delivered.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use relay::ChannelName;
use relay::trace::merge::Notice;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, mpsc};

use super::connect;
use super::delivery::{Delivery, kind};
use super::error::Failure;
use super::lane::Lane;
use super::stops::Stops;
use super::store::{Extent, Store};
use super::texts::Texts;
use super::watch;
use crate::message::{Kind, Subject, to_token};
use crate::options::Options;

/// Sub-buffers that a lane is ahead of the main thread.
const AHEAD: usize = 1;
/// Threads that talk to the server.
const WORKERS: usize = 2;
/// Notices in a row that are shown for a lane; others are counted.
const NOTICES_MAX: usize = 8;
/// Word for all hosts.
const ALL: &str = "all";

/// Which subjects are asked for.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    stream: String,
    /// `None`: all.
    host: Option<String>,
    /// Empty: all.
    channels: Vec<ChannelName>,
}

impl Selection {
    /// Returns the subject of this text, if it has sub-buffers that are asked for.
    pub(super) fn pick(&self, text: &str) -> Option<(Subject, u32)> {
        let subject = Subject::decode(&self.stream, text)?;
        let Kind::Cpu(cpu) = subject.kind else { return None };
        let is_host = self.host.as_ref().is_none_or(|host| *host == subject.host);
        let is_channel = self.channels.is_empty() || self.channels.contains(&subject.channel);
        (is_host && is_channel).then_some((subject, cpu))
    }

    /// Returns how many channels are named; 0: all.
    pub(super) fn n_channels(&self) -> usize {
        self.channels.len()
    }

    /// Returns a filter that all of the subjects match.
    pub(super) fn filter(&self) -> String {
        let host = self.host.as_deref().map_or("*".to_owned(), to_token);
        let channel = match &self.channels[..] {
            [channel] => to_token(channel.as_str()),
            _ => "*".to_owned(),
        };
        format!("{}.{host}.{channel}.*", self.stream)
    }
}

/// Waits for tasks from the main thread.
pub(super) struct Waiter {
    runtime: Runtime,
    pub(super) stops: Stops,
}

impl Waiter {
    /// Waits for this; `None` if the end comes first.
    pub(super) fn wait<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.stops.ended() => None,
                value = future => Some(value),
            }
        })
    }
}

/// What a lane has delivered.
pub(super) struct Arrivals {
    pub(super) subject: Subject,
    pub(super) cpu: u32,
    deliveries: mpsc::Receiver<Delivery>,
    queue: VecDeque<Delivery>,
    /// Notices at the end of the queue.
    n_notices: usize,
    /// Whether all messages of the start have come.
    is_ended: bool,
    /// Counts messages that could not be used.
    refused: Rc<Cell<u64>>,
}

impl Arrivals {
    /// Returns the next delivery that is here already.
    pub(super) fn take(&mut self) -> Option<Delivery> {
        let taken = self.queue.pop_front();
        self.n_notices = self.n_notices.min(self.queue.len());
        taken
    }

    /// Returns what comes first of what is not taken, if that is here.
    pub(super) fn queued(&self) -> impl Iterator<Item = &Delivery> {
        self.queue.iter()
    }

    /// Waits for the next delivery. Returns whether one came: `false` behind the last of the start, or at the end.
    pub(super) fn wait(&mut self, waiter: &Waiter) -> bool {
        if self.is_ended {
            return false;
        }
        let got = waiter.wait(self.deliveries.recv()).flatten();
        let Some(delivery) = got else {
            self.is_ended = true;
            return false;
        };
        self.put(delivery);
        !self.is_ended
    }

    /// Takes over a delivery that is here, without waiting. Returns whether there was one.
    pub(super) fn poll(&mut self) -> bool {
        let Ok(delivery) = self.deliveries.try_recv() else { return false };
        self.put(delivery);
        true
    }

    fn put(&mut self, delivery: Delivery) {
        match &delivery {
            Delivery::End => {
                self.is_ended = true;
                return;
            }
            Delivery::SubBuffer(_) => self.n_notices = 0,
            Delivery::Notice(notice) => {
                if [kind::REFUSED, kind::INCOMPLETE].contains(&notice.kind) {
                    self.refused.set(self.refused.get() + 1);
                }
                self.n_notices += 1;
                // A stream of nonsense must not fill the memory.
                if self.n_notices > NOTICES_MAX && !notice.restarts {
                    let more = format!("{} messages and more are refused", self.n_notices);
                    if let Some(Delivery::Notice(last)) = self.queue.back_mut()
                        && !last.restarts
                    {
                        *last = Notice { text: more, ..last.clone() };
                        return;
                    }
                }
            }
        }
        self.queue.push_back(delivery);
    }
}

/// The wake-ups of lanes, by subject.
pub(super) type Wakes = Arc<Mutex<BTreeMap<String, Arc<Notify>>>>;

/// The lanes of a stream.
pub(super) struct Hub {
    pub(super) waiter: Rc<Waiter>,
    pub(super) selection: Selection,
    pub(super) follow: bool,
    /// One for each subject.
    pub(super) lanes: Vec<Rc<RefCell<Arrivals>>>,
    store: Arc<Store>,
    texts: Arc<Texts>,
    /// The stream at the start.
    extent: Extent,
    delivered: Arc<Notify>,
    wakes: Wakes,
    creations: Arc<AtomicU64>,
    /// Subjects that have appeared.
    appeared: mpsc::UnboundedReceiver<String>,
    refused: Rc<Cell<u64>>,
}

impl Hub {
    /// Connects, and begins to read the subjects that the options ask for.
    pub(super) fn open(options: &Options) -> Result<Hub, Failure> {
        let read = &options.read;
        let output = match read.record {
            Some(_) => None,
            // A closed descriptor was found before; this one is for polling alone.
            None => io::stdout().as_fd().try_clone_to_owned().ok(),
        };
        let stops = Stops::watch(output)?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .enable_all()
            .build()
            .map_err(|error| Failure::system("start threads", error))?;
        let waiter = Waiter { runtime, stops };
        let name = options.stream.clone();
        let open = async {
            let store = connect::open(options).await?;
            let extent = store.extent().await;
            Ok::<_, Failure>((store, extent))
        };
        let (store, extent) = waiter.wait(open).ok_or_else(|| waiter.stops.why())??;
        let host = options.host.clone().filter(|host| host != ALL);
        let selection = Selection { stream: name, host, channels: options.channel.clone() };
        let (appear, appeared) = mpsc::unbounded_channel();
        let mut hub = Hub {
            waiter: Rc::new(waiter),
            selection,
            follow: read.follow,
            lanes: Vec::new(),
            store: Arc::new(store),
            texts: Arc::default(),
            extent,
            delivered: Arc::default(),
            wakes: Wakes::default(),
            creations: Arc::default(),
            appeared,
            refused: Rc::default(),
        };
        let filter = hub.selection.filter();
        let found = hub.waiter.wait(hub.store.subjects(&filter)).ok_or_else(|| hub.waiter.stops.why())?;
        for (subject, _) in &found {
            hub.add(subject);
        }
        if hub.follow {
            let watch = watch::Watch {
                store: Arc::clone(&hub.store),
                filter,
                wakes: Arc::clone(&hub.wakes),
                creations: Arc::clone(&hub.creations),
                appear,
            };
            hub.waiter.runtime.spawn(watch.run(extent, found));
        }
        Ok(hub)
    }

    /// Begins to read a subject, if it is asked for. Returns whether it is.
    fn add(&mut self, text: &str) -> bool {
        let Some((subject, cpu)) = self.selection.pick(text) else { return false };
        let (deliver, deliveries) = mpsc::channel(AHEAD);
        let wake = Arc::new(Notify::new());
        let mut wakes = self.wakes.lock().unwrap_or_else(PoisonError::into_inner);
        if wakes.insert(text.to_owned(), Arc::clone(&wake)).is_some() {
            return false;
        }
        drop(wakes);
        let lane = Lane {
            store: Arc::clone(&self.store),
            texts: Arc::clone(&self.texts),
            subject: subject.clone(),
            cpu,
            last: self.extent.last,
            follow: self.follow,
            wake,
            creations: Arc::clone(&self.creations),
            deliveries: deliver,
            delivered: Arc::clone(&self.delivered),
        };
        self.waiter.runtime.spawn(lane.run());
        let (queue, refused) = (VecDeque::new(), Rc::clone(&self.refused));
        let arrivals = Arrivals { subject, cpu, deliveries, queue, n_notices: 0, is_ended: false, refused };
        self.lanes.push(Rc::new(RefCell::new(arrivals)));
        true
    }

    /// Begins to read the subjects that have appeared.
    pub(super) fn add_appeared(&mut self) {
        while let Ok(subject) = self.appeared.try_recv() {
            self.add(&subject);
        }
    }

    /// Waits until something is delivered or appears, the time is over, or the end comes.
    pub(super) fn pause(&mut self, time: Duration) {
        let (delivered, appeared) = (&self.delivered, &mut self.appeared);
        let news = async {
            tokio::select! {
                () = delivered.notified() => None,
                subject = appeared.recv() => subject,
                () = tokio::time::sleep(time) => None,
            }
        };
        if let Some(Some(subject)) = self.waiter.wait(news) {
            self.add(&subject);
        }
    }

    /// Returns how many messages could not be used.
    pub(super) fn n_refused(&self) -> u64 {
        self.refused.get()
    }

    /// Returns how reading has ended: a signal is the usual end of `--follow`, and an early one of all else.
    pub(super) fn end(&self) -> Result<(), Failure> {
        let stops = &self.waiter.stops;
        if stops.is_ended() && !(self.follow && stops.is_signalled()) { Err(stops.why()) } else { Ok(()) }
    }

    /// Says that the stream has nothing that is asked for.
    pub(super) fn nothing(&self) -> Failure {
        let Selection { stream, host, channels } = &self.selection;
        let mut what = String::new();
        if let Some(host) = host {
            what.push_str(&format!(" of host '{host}'"));
        }
        if !channels.is_empty() {
            let names: Vec<&str> = channels.iter().map(ChannelName::as_str).collect();
            what.push_str(&format!(" of channel {}", names.join(", ")));
        }
        Failure::Nothing(format!("stream '{stream}' has nothing{what}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_picked_by_host_and_channel() {
        let selection = |host: Option<&str>, channels: &[&str]| Selection {
            stream: "relay".to_owned(),
            host: host.map(str::to_owned),
            channels: channels.iter().map(|channel| channel.parse().unwrap()).collect(),
        };
        let all = selection(None, &[]);
        assert!(all.pick("relay.a.app/log.cpu0").is_some() && all.pick("relay.a.app/log.metadata").is_none());
        assert_eq!(all.filter(), "relay.*.*.*");
        let one = selection(Some("a.org"), &["app/log"]);
        assert_eq!(one.filter(), "relay.a%2Eorg.app/log.*");
        assert!(one.pick("relay.a%2Eorg.app/log.cpu3").is_some_and(|(_, cpu)| cpu == 3));
        assert!(one.pick("relay.b.app/log.cpu3").is_none() && one.pick("relay.a%2Eorg.cpu.cpu3").is_none());
        let two = selection(None, &["a", "b"]);
        assert_eq!(two.filter(), "relay.*.*.*");
        assert!(two.pick("relay.h.b.cpu0").is_some() && two.pick("relay.h.c.cpu0").is_none());
    }
}
