//! The lanes of all subjects that are asked for.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, mpsc};

use super::arrivals::{Arrivals, Queue};
use super::connect;
use super::error::Failure;
use super::known::Known;
use super::lane::Lane;
use super::room::Room;
use super::selection::Selection;
use super::stops::Stops;
use super::store::{Extent, Store, Subjects};
use super::texts::Texts;
use super::watch;
use crate::options::Options;
use crate::output::say;

/// Sub-buffers that a lane is ahead of the main thread.
const AHEAD: usize = 1;
/// Threads that talk to the server.
const WORKERS: usize = 2;
/// Longest wait without a look at what ends it.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Most lanes.
pub(super) const LANES_MAX: usize = 1 << 14;

/// Waits for tasks from the main thread.
pub(super) struct Waiter {
    runtime: Runtime,
    pub(super) stops: Stops,
}

impl Waiter {
    pub(super) fn new(stops: Stops) -> Result<Waiter, Failure> {
        let runtime = Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build();
        let runtime = runtime.map_err(|error| Failure::system("start threads", error))?;
        Ok(Waiter { runtime, stops })
    }

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

/// The lanes of a stream.
pub(super) struct Hub {
    pub(super) waiter: Rc<Waiter>,
    pub(super) selection: Selection,
    pub(super) follow: bool,
    /// One for each subject.
    pub(super) lanes: Vec<Rc<RefCell<Arrivals>>>,
    pub(super) store: Arc<Store>,
    /// The stream at the start.
    pub(super) extent: Extent,
    /// Subjects of sub-buffers that were there at the start.
    pub(super) found: Vec<String>,
    /// Whether a subject's last sub-buffer is one of a timed channel, where that was looked up.
    pub(super) timed: BTreeMap<String, bool>,
    known: Arc<Known>,
    texts: Arc<Texts>,
    room: Arc<Room>,
    delivered: Arc<Notify>,
    /// Subjects that have appeared.
    appeared: mpsc::UnboundedReceiver<String>,
    /// Subjects that are not read.
    left_out: BTreeSet<String>,
    is_cut_told: bool,
    refused: Rc<Cell<u64>>,
}

impl Hub {
    /// Connects, and finds the subjects that the options ask for. [`Hub::begin`] begins to read them.
    pub(super) fn open(options: &Options) -> Result<Hub, Failure> {
        let read = &options.read;
        let output = match read.record {
            Some(_) => None,
            // A closed descriptor was found before; this one is for polling alone.
            None => io::stdout().as_fd().try_clone_to_owned().ok(),
        };
        let stops = Stops::watch(output)?;
        let waiter = Waiter::new(stops)?;
        let selection = Selection::new(options);
        let open = async {
            // With --follow, all is waited for.
            let give_up = (!read.follow).then(|| waiter.stops.give_up());
            let store = connect::open(options, give_up).await?;
            let extent = store.extent().await;
            store.note_creation(extent.created);
            let subjects = find(&store, &selection).await;
            Ok::<_, Failure>((store, extent, subjects))
        };
        let (store, extent, subjects) = waiter.wait(open).ok_or_else(|| waiter.stops.why())??;
        let (appear, appeared) = mpsc::unbounded_channel();
        let room = Arc::<Room>::default();
        let mut hub = Hub {
            waiter: Rc::new(waiter),
            selection,
            follow: read.follow,
            lanes: Vec::new(),
            store: Arc::new(store),
            extent,
            found: subjects.all.iter().map(|(subject, _)| subject.clone()).collect(),
            timed: BTreeMap::new(),
            known: Arc::new(Known::new(extent)),
            texts: Arc::new(Texts::new(&room)),
            room,
            delivered: Arc::default(),
            appeared,
            left_out: BTreeSet::new(),
            is_cut_told: false,
            refused: Rc::default(),
        };
        if subjects.is_cut {
            hub.tell_cut();
        }
        if hub.follow {
            let watch = watch::Watch {
                store: Arc::clone(&hub.store),
                known: Arc::clone(&hub.known),
                selection: hub.selection.clone(),
                appear,
            };
            hub.waiter.runtime.spawn(watch.run(extent, subjects));
        }
        Ok(hub)
    }

    /// Begins to read the subjects that were found, from a sequence on. What was read before is forgotten.
    pub(super) fn begin(&mut self, from: u64) {
        self.lanes.clear();
        self.refused.set(u64::from(self.is_cut_told));
        for subject in self.found.clone() {
            if !self.left_out.contains(&subject) {
                self.add(&subject, from);
            }
        }
    }

    /// Begins to read a subject that was found, from its start, unless it is read already.
    pub(super) fn begin_one(&mut self, subject: &str) -> Option<Rc<RefCell<Arrivals>>> {
        let n_before = self.lanes.len();
        self.add_new(subject);
        self.lanes.get(n_before).cloned()
    }

    /// Whether so much waits that lanes do not read ahead.
    pub(super) fn is_tight(&self) -> bool {
        self.room.is_tight()
    }

    /// Begins to read a subject, if it is asked for.
    fn add(&mut self, text: &str, from: u64) {
        let Some((subject, cpu)) = self.selection.pick(text) else { return };
        if self.lanes.len() >= LANES_MAX {
            return self.tell_cut();
        }
        let (deliver, deliveries) = mpsc::channel(AHEAD);
        let lane = Lane {
            store: Arc::clone(&self.store),
            known: Arc::clone(&self.known),
            texts: Arc::clone(&self.texts),
            room: Arc::clone(&self.room),
            subject: subject.clone(),
            cpu,
            from,
            last: self.extent.last,
            follow: self.follow,
            wake: self.known.listen(text),
            deliveries: deliver,
            delivered: Arc::clone(&self.delivered),
        };
        let task = self.waiter.runtime.spawn(lane.run()).abort_handle();
        let (is_timed, refused) = (self.timed.get(text).copied(), Rc::clone(&self.refused));
        let (give_up, queue) = (self.waiter.stops.give_up(), Queue::default());
        let follow = self.follow;
        let arrivals = Arrivals { subject, cpu, follow, is_timed, deliveries, task, refused, give_up, queue };
        self.lanes.push(Rc::new(RefCell::new(arrivals)));
    }

    /// Says that there are more subjects than can be read.
    fn tell_cut(&mut self) {
        if !std::mem::replace(&mut self.is_cut_told, true) {
            self.refused.set(self.refused.get() + 1);
            say(format_args!(
                "the stream has more than {LANES_MAX} subjects of what is asked for, and the others are left out: \
                 --host and -c choose fewer"
            ));
        }
    }

    /// Ends lanes, and does not begin them again.
    pub(super) fn leave_out(&mut self, is_left_out: impl Fn(&Arrivals) -> bool) {
        let (store, left_out) = (&self.store, &mut self.left_out);
        self.lanes.retain(|lane| {
            let lane = lane.borrow();
            let is_left_out = is_left_out(&lane);
            if is_left_out {
                left_out.insert(lane.subject.encode(store.name()));
            }
            !is_left_out
        });
    }

    /// Begins to read the subjects that have appeared.
    pub(super) fn add_appeared(&mut self) {
        while let Ok(subject) = self.appeared.try_recv() {
            self.add_new(&subject);
        }
    }

    fn add_new(&mut self, subject: &str) {
        if !self.known.is_heard(subject) {
            self.add(subject, 1);
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
            self.add_new(&subject);
        }
    }

    /// Returns how many messages could not be used.
    pub(super) fn n_refused(&self) -> u64 {
        self.refused.get()
    }

    /// Returns whether the stream was deleted and created again since the start. Fails if the end comes first.
    pub(super) fn is_created_again(&self) -> Result<bool, Failure> {
        let looked = self.waiter.wait(self.known.look(&self.store));
        let now = looked.ok_or_else(|| self.waiter.stops.why())?;
        Ok(now.created != self.extent.created)
    }

    /// Returns why there is nothing to read. Fails if the end comes first.
    pub(super) fn nothing(&self) -> Result<Failure, Failure> {
        Ok(match !self.follow && self.is_created_again()? {
            true => Failure::CreatedAgain(self.store.name().to_owned()),
            false => self.selection.nothing(),
        })
    }

    /// Returns how reading has ended: a signal is the usual end of `--follow`, and an early one of all else.
    pub(super) fn end(&self) -> Result<(), Failure> {
        let stops = &self.waiter.stops;
        if stops.is_ended() && !(self.follow && stops.is_signalled()) { Err(stops.why()) } else { Ok(()) }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        // Lanes are at work when the program ends early.
        self.store.end();
    }
}

/// Returns the subjects that a selection asks for.
pub(super) async fn find(store: &Store, selection: &Selection) -> Subjects {
    store.subjects(&selection.filter(), LANES_MAX, |subject| selection.pick(subject).is_some()).await
}
