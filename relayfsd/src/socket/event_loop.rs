//! The daemon's end of the socket: a thread with an epoll loop that never waits for a peer.
//!
//! Events are edge-triggered. An event puts its connection in a queue (`ready`). There the connection gets turns of a
//! bounded number of frames until its socket is empty, so no connection keeps the others waiting. A connection that is
//! not read for a while (`stalled`) needs no system call for that. It cannot make the loop spin, not even by hanging
//! up.
//!
//! There is no timer: the thread sleeps when nothing happens. A peer that connects and sends nothing costs one
//! descriptor, and only until another peer needs the place.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle, available_parallelism};
use std::time::{Duration, Instant};

use log::{debug, error};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use relay::wire::frame::{Body, FRAME_MAX, Refusal};

use crate::policy::quota::{Quota, QuotaExceeded, Reservation};
use crate::policy::share_policy::Sharing;
use crate::registry::Registry;
use crate::socket::attached::PROCESS;
use crate::socket::backpressure::{AllInFlight, Ring};
use crate::socket::connection::{Connection, Turn};
use crate::socket::context::{CONNECTION_BELL, ConnectionContext};
use crate::socket::peer::{self, Peer};
use crate::socket::reassembly::{Budget, LONG_WAITING_MAX};
use crate::socket::requests::timed::Ending;
use crate::writers::Writers;

/// Most connections accepted before the others get their turn.
const ACCEPTS_PER_TURN: usize = 64;
/// Most events taken at once.
const EVENTS_MAX: usize = 64;
/// Looks for further events before the thread sleeps. They take some microseconds, as a wake-up does.
///
/// A producer that sends one message after the other is not much slower than this thread. If the thread slept after
/// each message, the producer would spend more time on waking it than on sending.
const LOOKS_MAX: u32 = 24;
/// Longest time that [`Server::stop`] takes to read the sockets.
const STOP_MAX: Duration = Duration::from_millis(500);
/// Longest time without a HELLO. After that, another peer may take the connection's place.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Most channels that all connections together hold.
const HOLDS_MAX: usize = 64 << 10;

const THREAD_BELL: u64 = 0;
const LISTENER: u64 = 1;

/// The thread that serves the socket. Dropping it is the same as [`Server::stop`].
pub(crate) struct Server {
    control: Arc<Control>,
    thread: Option<JoinHandle<()>>,
}

/// State that other threads share with the socket's thread.
struct Control {
    stopping: AtomicBool,
    /// Rung when a writer's queue has room, and to stop the thread.
    bell: EventFd,
}

impl Control {
    fn ring(&self) {
        // Fails only if the counter is at its limit, and then the bell has been rung already.
        let _ = self.bell.write(1);
    }
}

impl Server {
    /// Serves a listening, non-blocking SOCK_SEQPACKET socket, on a new thread named "socket".
    pub(crate) fn start(
        listener: OwnedFd,
        registry: Arc<Registry>,
        writers: Arc<Writers>,
        connections_max: usize,
        sharing: Sharing,
        create_on_write: bool,
    ) -> io::Result<Server> {
        peer::refuse_descriptors(&listener);
        let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let control = Arc::new(Control { stopping: AtomicBool::new(false), bell });
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&control.bell, EpollEvent::new(EpollFlags::EPOLLIN, THREAD_BELL))?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, LISTENER))?;

        let ringer = Arc::clone(&control);
        let ring: Ring = Arc::new(move || ringer.ring());
        let on_room = Arc::clone(&ring);
        writers.set_on_room(Box::new(move || on_room()));
        let places = Quota::new(connections_max);
        registry.set_connections(Arc::clone(&places));
        let event_loop = Loop {
            control: Arc::clone(&control),
            // Only `accept` is used, which works for every type of Unix socket.
            listener: listener.into(),
            accepting: false,
            spare: spare(&control),
            common: Arc::new(ConnectionContext {
                registry,
                writers,
                budget: Budget::new(),
                holds: Quota::new(HOLDS_MAX),
                all_in_flight: AllInFlight::default(),
                long_waiting: Quota::new(LONG_WAITING_MAX),
                ring,
                sharing,
                create_on_write,
                epoll,
            }),
            connections: HashMap::new(),
            ending: HashMap::new(),
            places,
            next_token: LISTENER + 1,
            ready: VecDeque::new(),
            stalled: VecDeque::new(),
            packet: vec![0; FRAME_MAX],
            looks_max: if available_parallelism().is_ok_and(|n| n.get() > 1) { LOOKS_MAX } else { 0 },
        };
        let thread = thread::Builder::new().name("socket".into()).spawn(|| event_loop.run())?;
        Ok(Server { control, thread: Some(thread) })
    }

    /// Takes the frames that are in the sockets, then closes all sockets and ends the thread.
    pub(crate) fn stop(self) {}
}

impl Drop for Server {
    fn drop(&mut self) {
        self.control.stopping.store(true, Ordering::Release);
        self.control.ring();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            error!("the socket thread panicked; please report this");
        }
    }
}

/// A connection and its state in the loop.
struct Entry {
    /// Dropped before the connection, which hangs up: a peer that sees that does not count any more.
    place: Reservation,
    connection: Connection,
    since: Instant,
    /// Whether the connection is in `ready` or in `stalled`, once.
    queued: bool,
    /// Whether the process of the peer has ended, so that only what it has sent is left.
    process_ended: bool,
}

struct Loop {
    control: Arc<Control>,
    listener: UnixListener,
    /// Whether a peer may wait to be accepted.
    accepting: bool,
    /// A descriptor to close when descriptors run out, so that the next peer can get an error.
    spare: Option<OwnedFd>,
    common: Arc<ConnectionContext>,
    /// The connections by token.
    ///
    /// Tokens are not used again, so that a late event cannot hit another connection.
    connections: HashMap<u64, Entry>,
    /// Processes whose connections are over, by their tokens, until the kernel tells how they ended.
    ///
    /// Each keeps the place of its connection.
    ending: HashMap<u64, (Ending, Reservation)>,
    places: Arc<Quota>,
    next_token: u64,
    ready: VecDeque<u64>,
    stalled: VecDeque<u64>,
    packet: Vec<u8>,
    /// See [`LOOKS_MAX`].
    looks_max: u32,
}

impl Loop {
    fn run(mut self) {
        let mut events = [EpollEvent::empty(); EVENTS_MAX];
        let mut deadline = None;
        let mut looks_left = 0;
        loop {
            let n = match self.common.epoll.wait(&mut events, self.timeout(deadline, looks_left > 0)) {
                Ok(n) => n,
                Err(Errno::EINTR) => 0,
                Err(error) => return error!("the socket thread ends: epoll_wait: {error}"),
            };
            looks_left = if n > 0 { self.looks_max } else { looks_left.saturating_sub(1) };
            for event in &events[..n] {
                self.event(*event);
            }
            if deadline.is_none() && self.control.stopping.load(Ordering::Acquire) {
                deadline = Some(Instant::now() + STOP_MAX);
                self.begin_to_stop();
            }
            for _ in 0..self.ready.len() {
                self.turn(deadline.is_some());
            }
            // After the turns, in which connections may have ended.
            if self.accepting {
                self.accept();
            }
            if deadline.is_some_and(|deadline| self.connections.is_empty() || Instant::now() >= deadline) {
                return;
            }
        }
    }

    fn timeout(&self, deadline: Option<Instant>, look: bool) -> EpollTimeout {
        match deadline {
            _ if look || self.accepting || !self.ready.is_empty() => EpollTimeout::ZERO,
            None => EpollTimeout::NONE,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                EpollTimeout::try_from(left).unwrap_or(EpollTimeout::ZERO)
            }
        }
    }

    fn event(&mut self, event: EpollEvent) {
        match event.data() {
            THREAD_BELL => self.room(),
            LISTENER => self.accepting = true,
            token if token & CONNECTION_BELL != 0 => {
                if let Some(entry) = self.connections.get(&(token & !CONNECTION_BELL)) {
                    entry.connection.rung();
                }
            }
            token if token & PROCESS != 0 => self.process_event(token & !PROCESS),
            token => {
                // Always found: the loop does not watch connections that are over.
                let Some(entry) = self.connections.get_mut(&token) else { return };
                if event.events().contains(EpollFlags::EPOLLHUP) {
                    // At once: a stalled connection is not read, and may wait for its own jobs.
                    entry.connection.cancel();
                }
                if !entry.queued {
                    entry.queued = true;
                    self.ready.push_back(token);
                }
            }
        }
    }

    /// Handles news of a connection's process: it has ended, or the kernel tells more about that.
    ///
    /// What the process has sent is read before the end is reported.
    fn process_event(&mut self, token: u64) {
        if let Some(entry) = self.connections.get_mut(&token) {
            entry.process_ended = true;
            if !entry.queued {
                entry.queued = true;
                self.ready.push_back(token);
            }
        } else if let Some((ending, place)) = self.ending.remove(&token)
            && let Some(ending) = ending.report()
        {
            self.ending.insert(token, (ending, place));
        }
    }

    /// Handles a ring of the bell: all stalled connections try again.
    ///
    /// No ring is lost. Writers ring after they made room in a queue that a connection found full. If they ring before
    /// that connection is in `stalled`, the eventfd keeps the ring: only this thread reads it, only here, when the
    /// connection is in the list. This empties the eventfd before any connection tries again. So a ring during the
    /// tries is kept for the next round.
    fn room(&mut self) {
        // Only this thread reads the bell, so there is a ring. Without one, the tries do no harm.
        let _ = self.control.bell.read();
        // The first connection may fill the queue again, so each time another one is first.
        let first = self.stalled.pop_front();
        self.stalled.extend(first);
        self.ready.append(&mut self.stalled);
    }

    /// Gives the first ready connection its turn.
    fn turn(&mut self, stopping: bool) {
        let Some(token) = self.ready.pop_front() else { return };
        let Some(entry) = self.connections.get_mut(&token) else { return };
        match entry.connection.turn(&mut self.packet) {
            Turn::More => self.ready.push_back(token),
            Turn::Stalled => self.stalled.push_back(token),
            Turn::Idle if !stopping => {
                entry.queued = false;
                if entry.process_ended {
                    entry.connection.report_end_of_process();
                }
            }
            Turn::Idle | Turn::Over => {
                // Explicitly, since a pending reply keeps the descriptor open.
                let _ = self.common.epoll.delete(&entry.connection);
                let Some(mut entry) = self.connections.remove(&token) else { return };
                if let Some(ending) = entry.connection.take_ending().and_then(Ending::report) {
                    self.ending.insert(token, (ending, entry.place));
                }
                // A peer that found no descriptor may be accepted now.
                self.accepting = !stopping;
            }
        }
    }

    /// Gives every connection turns until its socket is empty, and then drops it.
    fn begin_to_stop(&mut self) {
        let _ = self.common.epoll.delete(&self.listener);
        self.accepting = false;
        for (&token, entry) in &mut self.connections {
            entry.connection.begin_end();
            if !entry.queued {
                entry.queued = true;
                self.ready.push_back(token);
            }
        }
    }

    fn accept(&mut self) {
        // When the last spare was closed, there may have been no descriptor for a new one.
        self.spare = self.spare.take().or_else(|| spare(&self.control));
        for _ in 0..ACCEPTS_PER_TURN {
            match self.listener.accept() {
                Ok((socket, _)) => self.admit(socket.into()),
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    // The peer hung up while it waited.
                    Some(Errno::ECONNABORTED) => {}
                    // The kernel reports this before it checks whether a peer waits.
                    Some(Errno::EMFILE | Errno::ENFILE) if self.spare.take().is_some() => {
                        let accepted = self.listener.accept();
                        self.accepting = accepted.is_ok();
                        if let Ok((socket, _)) = accepted {
                            let text = "the daemon has no file descriptors left: raise its limit (ulimit -n)";
                            turn_away(&Peer::new(socket.into(), self.next_token), Errno::EMFILE, text.into());
                            self.next_token += 1;
                        }
                        self.spare = spare(&self.control);
                        if !self.accepting {
                            return;
                        }
                    }
                    // No peer waits, or accepting is impossible now. The next connect, or the next end of a
                    // connection, causes another try.
                    _ => {
                        self.accepting = false;
                        return;
                    }
                },
            }
        }
    }

    fn admit(&mut self, socket: OwnedFd) {
        let token = self.next_token;
        self.next_token += 1;
        let peer = Peer::new(socket, token);
        let mut place = self.places.claim(peer.uid(), 1);
        if place.is_err() && self.drop_silent() {
            place = self.places.claim(peer.uid(), 1);
        }
        let place = match place {
            Ok(place) => place,
            Err(QuotaExceeded::All) => {
                let text = format!(
                    "{} connections are open, the limit of --max-connections of relayfsd, or of its open files",
                    self.places.max()
                );
                return turn_away(&peer, Errno::EUSERS, text);
            }
            Err(QuotaExceeded::Yours) => {
                let text = format!(
                    "uid {} has as many connections as are left for others, of {}: raise --max-connections of relayfsd",
                    peer.uid(),
                    self.places.max()
                );
                return turn_away(&peer, Errno::EUSERS, text);
            }
        };
        let events = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        if let Err(error) = self.common.epoll.add(&peer, EpollEvent::new(events, token)) {
            let text = format!("the daemon cannot watch another connection: {error}");
            return turn_away(&peer, error, text);
        }
        let connection = Connection::new(Arc::clone(&self.common), peer);
        let entry = Entry { connection, since: Instant::now(), place, queued: false, process_ended: false };
        self.connections.insert(token, entry);
    }

    /// Drops the oldest connection that has sent no HELLO in [`SILENCE_MAX`].
    fn drop_silent(&mut self) -> bool {
        let is_silent = |entry: &Entry| {
            !entry.queued && entry.connection.is_silent() && entry.since.elapsed() >= SILENCE_MAX
        };
        let silent = self.connections.iter().filter(|(_, entry)| is_silent(entry)).map(|(token, _)| *token);
        // Tokens are given in order.
        let Some(entry) = silent.min().and_then(|token| self.connections.remove(&token)) else {
            return false;
        };
        let text = format!("no HELLO for {}s, and others want to connect", SILENCE_MAX.as_secs());
        entry.connection.dismiss(Errno::ETIMEDOUT, text);
        let _ = self.common.epoll.delete(&entry.connection);
        true
    }
}

/// Tells a peer why it cannot be served.
fn turn_away(peer: &Peer, errno: Errno, text: String) {
    debug!("{peer}: turned away: {text}");
    peer.send(&Refusal { errno: errno as i32, text }.frame(0, 0));
    peer.stop_receiving();
}

/// Opens a descriptor that is only there to be closed when descriptors run out.
fn spare(control: &Control) -> Option<OwnedFd> {
    control.bell.as_fd().try_clone_to_owned().ok()
}

#[cfg(test)]
mod tests;
