//! Handles the requests of a connection: OPEN, SHARE, WATCH, CONSUME, CLOSE.
//!
//! `write.rs` has WRITE and FLUSH, `timed.rs` ATTACH, DEFINE and LEVELS. A request takes effect only after everything in
//! its frame has been checked. [`Requests`] also has the connection's channels, its incomplete long message, and its jobs
//! that found no room.

pub(crate) mod timed;

mod write;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;

use log::debug;
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use relay::ChannelName;
use relay::layout::abi::LAYOUT_VERSION;
use relay::wire::frame::{
    Body, Close, Consume, DESCRIPTORS_MAX, Frame, FrameType, OPEN_CREATE, OPEN_WRITE, Open, OpenReply,
    Refusal, SHARE_FIRST_EXTRA, SHARE_READ, Share, ShareReply, Watch, done,
};

use self::write::Long;
use crate::channel::ChannelRef;
use crate::channel::clients::{Presence, Use};
use crate::policy::quota::{QuotaExceeded, Reservation};
use crate::policy::share_policy::NotShared;
use crate::registry::OpenError;
use crate::registry::create_queue::{Opened, PendingCreate};
use crate::socket::attached::Attached;
use crate::socket::backpressure::InFlight;
use crate::socket::context::ConnectionContext;
use crate::socket::peer::Peer;
use crate::socket::refusal::FrameRefusal;
use crate::socket::watch::Reading;
use crate::writers::{Busy, Job, WaitEnd};

/// Most channels that one connection holds.
const CHANNELS_MAX: usize = 1024;

/// Most descriptors that a connection has in flight, sent and not received.
///
/// One channel's may be more.
const DESCRIPTORS_IN_FLIGHT_MAX: usize = 256;

/// An OPEN whose channel is being created.
struct Making {
    id: u32,
    ordered: PendingCreate,
    hold: Reservation,
}

/// A channel that the connection holds.
struct Held {
    channel: ChannelRef,
    /// The connection among the channel's clients.
    presence: Presence,
    _place: Reservation,
}

/// The requests and holdings of one connection.
pub(crate) struct Requests {
    common: Arc<ConnectionContext>,
    /// The open channels, by the numbers that the producer knows.
    ///
    /// Numbers are not used again, so that no frame for a closed channel ends up in another one.
    channels: BTreeMap<u32, Held>,
    next_channel: u32,
    /// A channel that is being created for the connection. Its socket is not read meanwhile.
    making: Option<Making>,
    long: Option<Long>,
    /// Jobs that found no room, oldest first. They come from one frame at most.
    held_back: VecDeque<Job>,
    writes_in_flight: Arc<InFlight>,
    /// Whether a batch of the connection may wait for room.
    has_waited: bool,
    /// Number of descriptors sent since the last check that the peer had received all.
    descriptors_in_flight: usize,
    /// The producer's doorbell, if it got files.
    bell: Option<EventFd>,
    /// The channels that the peer reads in mappings.
    reading: Reading,
    /// The peer's process, if it is attached to timed channels.
    attached: Option<Attached>,
    wait_end: Arc<WaitEnd>,
    /// Dropped last: a peer that sees the hang-up holds nothing any more.
    peer: Arc<Peer>,
}

impl Requests {
    pub(crate) fn new(common: Arc<ConnectionContext>, peer: Arc<Peer>) -> Requests {
        Requests {
            writes_in_flight: InFlight::new(Arc::clone(&common.ring), Arc::clone(&common.all_in_flight)),
            reading: Reading::new(peer.number()),
            common,
            peer,
            channels: BTreeMap::new(),
            next_channel: 0,
            making: None,
            long: None,
            held_back: VecDeque::new(),
            has_waited: false,
            descriptors_in_flight: 0,
            bell: None,
            attached: None,
            wait_end: Arc::default(),
        }
    }

    /// Abandons the jobs that found no room.
    pub(crate) fn abandon(&mut self) {
        self.held_back.drain(..).for_each(Job::abandon);
    }

    /// Ends the wait of the connection's batches for room in their buffers, since the producer is gone.
    pub(crate) fn cancel(&self) {
        if self.wait_end.producer_is_gone() && self.has_waited {
            self.common.writers.sweep();
        }
    }

    /// Ends that wait because the daemon ends: what has no room is handed back to a producer that takes it.
    pub(crate) fn end_waits(&self) {
        if self.wait_end.daemon_ends() && self.has_waited {
            self.common.writers.sweep();
        }
    }

    /// Tries the jobs that found no room again, and answers a pending OPEN.
    ///
    /// False: the socket must not be read yet. `ring` is called when another try makes sense.
    pub(crate) fn resume(&mut self) -> bool {
        if let Some(making) = self.making.take() {
            match making.ordered.take() {
                None => {
                    self.making = Some(making);
                    return false;
                }
                Some(made) => self.answer_open(making.id, made, making.hold),
            }
        }
        while let Some(job) = self.held_back.pop_front() {
            if let Err(Busy(job)) = self.common.writers.submit(job) {
                self.held_back.push_front(*job);
                return false;
            }
        }
        self.writes_in_flight.has_room()
    }

    /// Does what a frame asks for. A refused frame has no effect.
    pub(crate) fn handle(&mut self, frame: &Frame) -> Result<(), FrameRefusal> {
        // A long message continues in WRITEs of its id. Any other frame means that the producer gave it up.
        let long = self.long.take();
        match (frame.kind, frame.reply) {
            (FrameType::Open, false) => self.open(frame),
            (FrameType::Write, false) => self.write(frame, long),
            (FrameType::Flush, false) => self.flush(frame),
            (FrameType::Close, false) => self.close(frame),
            (FrameType::Share, false) => self.share(frame),
            (FrameType::Watch, false) => self.watch(frame),
            (FrameType::Consume, false) => self.consume(frame),
            (FrameType::Attach, false) => self.attach(frame),
            (FrameType::Define, false) => self.define(frame),
            (FrameType::Levels, false) => self.levels(frame),
            (FrameType::Hello | FrameType::Error, _) | (_, true) => {
                Err(FrameRefusal::request(Errno::EOPNOTSUPP, "only the daemon sends replies and errors"))
            }
        }
    }

    fn open(&mut self, frame: &Frame) -> Result<(), FrameRefusal> {
        let open = Open::decode(frame.body)?;
        if self.channels.len() >= CHANNELS_MAX {
            let text =
                format!("a connection holds at most {CHANNELS_MAX} channels: close some, or connect again");
            return Err(FrameRefusal::request(Errno::EMFILE, text));
        }
        // Bytes that are not UTF-8 become a character that people can see, and that no name may have.
        let name: ChannelName = String::from_utf8_lossy(open.name)
            .parse()
            .map_err(|error| FrameRefusal::request(Errno::EINVAL, error))?;
        let hold = self.common.holds.claim(self.peer.uid(), 1).map_err(|why| {
            let text = match why {
                QuotaExceeded::All => "the connections hold",
                QuotaExceeded::Yours => "your connections hold as many channels as are left for others, of",
            };
            let text = format!("{text} {} channels: close some", self.common.holds.max());
            FrameRefusal::request(Errno::EMFILE, text)
        })?;
        let registry = &self.common.registry;
        let attached = match registry.attach(&name) {
            Ok(Some(held)) => Ok((held, false)),
            Ok(None) if self.creates(frame.flags) => {
                let (uid, ring) = (self.peer.uid(), Arc::clone(&self.common.ring));
                let ordered = registry.order(name, open.spec(), uid, move || ring());
                self.making = Some(Making { id: frame.id, ordered, hold });
                return Ok(());
            }
            Ok(None) => Err(registry.unknown(name)),
            Err(error) => Err(error),
        };
        self.answer_open(frame.id, attached, hold);
        Ok(())
    }

    /// Returns whether an OPEN with these flags creates a channel that does not exist.
    fn creates(&self, flags: u16) -> bool {
        flags & OPEN_CREATE != 0 || flags & OPEN_WRITE != 0 && self.common.create_on_write
    }

    /// Answers an OPEN.
    fn answer_open(&mut self, id: u32, made: Opened, hold: Reservation) {
        let (held, created) = match made {
            Ok(made) => made,
            Err(error) => {
                let refusal = Refusal { errno: error.errno(), text: error.to_string() };
                debug!("{}: refused: {}", self.peer, refusal.text);
                return self.peer.send(&refusal.frame(0, id));
            }
        };
        while self.channels.contains_key(&self.next_channel) {
            self.next_channel = self.next_channel.wrapping_add(1);
        }
        // Before the reply: a peer that has it finds itself in `status` and `metrics`.
        let presence = held.clients().enter(self.peer.pid(), self.peer.uid(), Use::Socket);
        let reply = OpenReply::new(self.next_channel, held.geometry(), held.n_bufs(), created);
        self.peer.send(&reply.frame(0, id));
        self.channels.insert(self.next_channel, Held { channel: held, presence, _place: hold });
        self.next_channel = self.next_channel.wrapping_add(1);
    }

    fn close(&mut self, frame: &Frame) -> Result<(), FrameRefusal> {
        let number = Close::decode(frame.body)?.channel;
        let Held { channel, .. } = self.channels.remove(&number).ok_or_else(|| unknown_channel(number))?;
        self.reading.end(number, &channel);
        if let Some(attached) = &mut self.attached {
            attached.remove(number);
        }
        // Before the reply: the channel may go with its last holder.
        drop(channel);
        self.peer.send(&done(FrameType::Close, frame.id));
        Ok(())
    }

    /// Sends the channel's files and a doorbell, to a producer for writing or to a reader.
    fn share(&mut self, frame: &Frame) -> Result<(), FrameRefusal> {
        let number = Share::decode(frame.body)?.channel;
        let to_write = frame.flags & SHARE_READ == 0;
        let n_descriptors = SHARE_FIRST_EXTRA + self.channel(number)?.n_bufs();
        self.check_descriptors(n_descriptors)?;
        let channel = self.channel(number)?;
        let (sharing, uid) = (&self.common.sharing, self.peer.uid());
        let is_member = |group| self.peer.is_member(group);
        let admitted = match to_write {
            false => sharing.admits_reader(uid, is_member),
            true if channel.geometry().global() => Err(NotShared::Global),
            true => sharing.admits(uid, is_member),
        };
        admitted.map_err(|why| FrameRefusal::request(Errno::EPERM, why))?;
        let files = channel.share(to_write).map_err(failed)?;
        self.descriptors_in_flight += n_descriptors;
        let bell = match to_write {
            true => self.bell().map(AsFd::as_fd),
            false => self.reading.begin(number),
        };
        let bell = bell.map_err(|errno| failed(errno.into()))?;
        let mut descriptors: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
        // The doorbell comes behind the control file.
        descriptors.insert(1.min(descriptors.len()), bell.as_raw_fd());
        // Before the replies, as with OPEN.
        self.note_use(number, if to_write { Use::Direct } else { Use::Map });
        let sent = self.send_descriptors(frame.id, &descriptors);
        if sent.is_err() {
            self.note_use(number, Use::Socket);
        }
        sent.map_err(|errno| failed(errno.into()))
    }

    fn note_use(&self, channel: u32, what: Use) {
        if let Some(held) = self.channels.get(&channel) {
            held.presence.set(what);
        }
    }

    /// Sends the descriptors of a channel in as many replies as they take.
    fn send_descriptors(&self, id: u32, descriptors: &[RawFd]) -> nix::Result<()> {
        let mut first = 0;
        for (index, part) in descriptors.chunks(DESCRIPTORS_MAX).enumerate() {
            let count = (part.len() - if index == 0 { SHARE_FIRST_EXTRA } else { 0 }) as u32;
            let reply = ShareReply { layout_version: LAYOUT_VERSION, first, count };
            self.peer.send_with(&reply.frame(0, id), part)?;
            first += count;
        }
        Ok(())
    }

    /// Refuses to send further descriptors, if too many wait to be received.
    fn check_descriptors(&mut self, n_descriptors: usize) -> Result<(), FrameRefusal> {
        if self.descriptors_in_flight > 0 && self.peer.has_taken_all() {
            self.descriptors_in_flight = 0;
        }
        if self.descriptors_in_flight > 0
            && self.descriptors_in_flight + n_descriptors > DESCRIPTORS_IN_FLIGHT_MAX
        {
            let text = format!(
                "{} descriptors wait to be received, the limit is {DESCRIPTORS_IN_FLIGHT_MAX}: take the replies first",
                self.descriptors_in_flight
            );
            return Err(FrameRefusal::request(Errno::ETOOMANYREFS, text));
        }
        Ok(())
    }

    /// Rings the reader's bell once a buffer has a finished sub-buffer.
    fn watch(&mut self, frame: &Frame) -> Result<(), FrameRefusal> {
        let Watch { channel, cpu } = Watch::decode(frame.body)?;
        let held = self.channel(channel)?;
        self.reading.watch(channel, held, buffer_of(held, cpu)?)?;
        self.peer.send(&done(FrameType::Watch, frame.id));
        Ok(())
    }

    /// Gives back sub-buffers that the peer has read in a mapping.
    fn consume(&mut self, frame: &Frame) -> Result<(), FrameRefusal> {
        let Consume { channel, cpu, from, count } = Consume::decode(frame.body)?;
        let held = self.channel(channel)?;
        let cpu = buffer_of(held, cpu)?;
        held.note_activity();
        if self.reading.consume(channel, held, cpu, from, count)? {
            self.common.writers.make_room(held, cpu);
        }
        self.peer.send(&done(FrameType::Consume, frame.id));
        Ok(())
    }

    /// Returns the connection's doorbell, which a direct producer rings when a poller waits.
    ///
    /// Each ring is an event, so the daemon never reads the doorbell. A read could wait: the producer has the same open
    /// file, and can make it blocking.
    fn bell(&mut self) -> nix::Result<&EventFd> {
        if self.bell.is_none() {
            let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
            self.common.watch_bell(&bell, self.peer.number())?;
            self.bell = Some(bell);
        }
        self.bell.as_ref().ok_or(Errno::EIO)
    }

    /// Wakes the pollers of the producer's channels: it has rung its doorbell, or is gone.
    pub(crate) fn rung(&self) {
        if self.bell.is_some() {
            for Held { channel, .. } in self.channels.values() {
                channel.wake_readable();
                channel.note_activity();
            }
        }
    }

    /// Stops listening to the doorbell, of which the producer may keep a copy.
    pub(crate) fn give_up_bell(&mut self) {
        for (number, Held { channel, .. }) in &self.channels {
            self.reading.end(*number, channel);
        }
        self.rung(); // the producer may have been killed between a switch and the ring
        if let Some(bell) = self.bell.take() {
            let _ = self.common.epoll.delete(bell);
        }
    }

    /// Hands a job to the writers, behind the jobs that are held back.
    ///
    /// Without room it is held back too.
    fn submit(&mut self, job: Job) {
        self.held_back.push_back(job);
        self.resume();
    }

    fn channel(&self, number: u32) -> Result<&ChannelRef, FrameRefusal> {
        let Held { channel, .. } = self.channels.get(&number).ok_or_else(|| unknown_channel(number))?;
        match channel.broken_reason() {
            None => Ok(channel),
            Some(why) => {
                let (name, why) = (channel.name().clone(), why.to_owned());
                let text = OpenError::Broken { name, why }.to_string();
                // A producer need not read answers to writes. If this is its only channel, the end of the connection
                // tells the producer.
                let alone = self.channels.len() == 1;
                Err(if alone { FrameRefusal::connection } else { FrameRefusal::request }(Errno::EIO, text))
            }
        }
    }
}

/// Returns the refusal for files that cannot be shared.
fn failed(error: io::Error) -> FrameRefusal {
    let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    FrameRefusal::request(errno, format!("cannot share the channel's files: {error}"))
}

/// Returns the buffer that a request names: a CPU's, or the only one of a global channel.
fn buffer_of(channel: &ChannelRef, cpu: u32) -> Result<usize, FrameRefusal> {
    let n_bufs = channel.n_bufs();
    match usize::try_from(cpu) {
        _ if channel.geometry().global() => Ok(0),
        Ok(cpu) if cpu < n_bufs => Ok(cpu),
        _ => {
            let (name, last) = (channel.name(), n_bufs - 1);
            Err(FrameRefusal::request(
                Errno::EINVAL,
                format!("channel '{name}' has no cpu {cpu}: there are 0 to {last}"),
            ))
        }
    }
}

fn unknown_channel(number: u32) -> FrameRefusal {
    FrameRefusal::request(Errno::EBADF, format!("no channel {number} is open on this connection"))
}
