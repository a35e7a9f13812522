//! Where a report's records and counters come from: recordings, a snapshot, or some time with live channels.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Cursor, ErrorKind};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use audience_common::signals::Stop;
use audience_common::trace_dir::{PROCESSES, Texts, traces};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use relay::trace::event::id;
use relay::trace::merge::{Merge, Source as _};
use relay::trace::metadata::Metadata;
use relay::trace::packet::{HEADER_LEN, PacketHeader};
use relay::trace::record::Records;
use relay::trace::text::{Format, Lines};

use super::gather::{Gathered, Kind};
use super::series::Step;
use crate::channel_files::{Place, known, wanted};
use crate::convert::recording::Recording;
use crate::error::{Failure, means_gone};
use crate::losses::{self, split};
use crate::output::say;
use crate::timed::meaning::Meaning;
use crate::timed::streams::{Live, SharedLive, Stream};
use crate::unread;

/// Most directories from the given one down to a recording.
const DEPTH_MAX: usize = 8;
/// Least time between two looks at live channels.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Most bytes of packets that are kept of live channels.
const KEPT_MAX: usize = 512 << 20;

/// Gathers the recordings in a directory. Returns whether something is damaged.
pub(super) fn recordings(dir: &Path, gathered: &mut Gathered, stop: &Stop) -> Result<bool, Failure> {
    let mut found = Vec::new();
    find(dir, DEPTH_MAX, &mut found)?;
    if found.is_empty() {
        return Err(Failure::NoTrace(dir.to_owned()));
    }
    let mut is_damaged = false;
    for one in found {
        is_damaged |= recording(dir, &one, gathered, stop)?;
    }
    Ok(is_damaged)
}

/// Finds the recordings of timed channels at or below a directory, in order.
fn find(dir: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), Failure> {
    if !traces(dir)?.is_empty() {
        found.push(dir.to_owned());
        return Ok(());
    }
    let failure = |error| Failure::open(dir, error);
    let mut below = Vec::new();
    for entry in fs::read_dir(dir).map_err(failure)? {
        let entry = entry.map_err(failure)?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            below.push(entry.path());
        }
    }
    below.sort_unstable();
    if depth > 1 {
        below.iter().try_for_each(|dir| find(dir, depth - 1, found))?;
    }
    Ok(())
}

fn recording(root: &Path, dir: &Path, gathered: &mut Gathered, stop: &Stop) -> Result<bool, Failure> {
    let mut recording = Recording::open(dir)?;
    let last = traces(dir)?.pop().unwrap_or_else(|| dir.to_owned());
    let metadata = Texts::read(&last, PROCESSES).ok().and_then(|texts| Metadata::parse(&texts.metadata).ok());
    let (name, about, size) = match &metadata {
        Some((of, _)) => {
            let below = dir.strip_prefix(root).unwrap_or(Path::new(""));
            let about = format!("{} on {}, {}", of.geometry, of.hostname, below.display());
            (
                of.channel.clone(),
                about.trim_end_matches([',', ' ']).to_owned(),
                of.geometry.subbuf_size() as u64,
            )
        }
        None => (dir.display().to_string(), String::new(), u64::MAX),
    };
    let channel = gathered.channel(&name, about, Kind::Recording);
    let mut lines = Lines::new(Format::Cat, recording.timeline().clone(), recording.names().clone());
    let mut n_items: u64 = 0;
    while let Some((entry, of)) = recording.next() {
        if let Some(names) = of.new_names {
            lines.change_names(|before| *before = names.clone());
        }
        for PacketHeader { cpu, begin, records_len, .. } in of.packets {
            let fill = Some(thousandths(*records_len, size));
            let time = lines.timeline().realtime(*begin);
            gathered.add(channel, *cpu, time, Step { fill, ..Step::default() });
        }
        of.failures.iter().for_each(say);
        gathered.entry(channel, &entry, &mut lines);
        n_items += 1;
        if n_items.is_multiple_of(1024)
            && let Some((signal, _)) = stop.caught()
        {
            return Err(Failure::Interrupted(signal));
        }
    }
    gathered.end(channel);
    Ok(recording.is_damaged())
}

/// A live channel.
struct Watched {
    place: Place,
    number: usize,
    is_timed: bool,
    /// Bytes of a buffer.
    capacity: u64,
    /// The counters at the last look: written messages, bytes, lost messages.
    before: BTreeMap<usize, [u64; 3]>,
    /// Messages of a timed channel that were written since the first copies.
    written: u64,
    /// Those of them that the later copies had.
    copied: u64,
    /// Whether the daemon had no memory for a copy.
    lacks_memory: bool,
    lives: BTreeMap<usize, SharedLive>,
    packets: BTreeMap<usize, Vec<u8>>,
}

/// Gathers what the channels have now, or what comes in some time. Returns what the copies have missed, if anything.
pub(super) fn live(
    mount: &Path,
    names: &[relay::ChannelName],
    time: Option<Duration>,
    gathered: &mut Gathered,
    stop: &Stop,
) -> Result<Option<String>, Failure> {
    let all: Vec<relay::ChannelName> = match names {
        [] => known(mount).iter().filter_map(|name| name.parse().ok()).collect(),
        names => names.to_vec(),
    };
    let mut watched = Vec::new();
    for channel in all {
        let place = Place { mount: mount.to_owned(), channel };
        place.open(None)?;
        let kind = time.map_or(Kind::Snapshot, |_| Kind::Live(LOOK_AGAIN.as_nanos() as u64));
        watched.push(Watched::begin(place, kind, gathered));
    }
    let end = time.map(|time| (Instant::now(), time));
    let (mut kept, mut is_first) = (0, true);
    loop {
        for one in &mut watched {
            one.look(gathered, time.is_some());
            one.copy(&mut kept)?;
            if is_first {
                one.begin_count(gathered, time.is_some());
            }
        }
        is_first = false;
        let left = end.map_or(Duration::ZERO, |(begun, time)| time.saturating_sub(begun.elapsed()));
        if left.is_zero() || stop.caught().is_some() {
            break;
        }
        rest(stop, left.min(LOOK_AGAIN))?;
    }
    if kept >= KEPT_MAX {
        say("more messages came than a report keeps; the rest is left out");
    }
    let missed: Vec<String> = watched.iter().filter_map(Watched::missed).collect();
    watched.into_iter().try_for_each(|one| one.finish(gathered))?;
    Ok((!missed.is_empty()).then(|| missed.join("; ")))
}

fn rest(stop: &Stop, time: Duration) -> Result<(), Failure> {
    let mut fds = [PollFd::new(stop.as_fd(), PollFlags::empty())];
    let time = PollTimeout::try_from(time.as_millis()).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, time) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(errno) => Err(Failure::system("poll", errno)),
    }
}

impl Watched {
    fn begin(place: Place, kind: Kind, gathered: &mut Gathered) -> Watched {
        let text = |file| fs::read_to_string(place.control_path(file)).unwrap_or_default().trim().to_owned();
        let (size, count, mode) = (text("subbuf_size"), text("n_subbufs"), text("mode"));
        let (bytes, n_subbufs) = (size.parse().unwrap_or(u64::MAX), count.parse().unwrap_or(1));
        let capacity = bytes.saturating_mul(n_subbufs.max(1));
        let about = format!("{count} sub-buffers of {size} bytes, {mode}");
        let number = gathered.channel(place.channel.as_str(), about, kind);
        let is_timed = place.is_timed();
        let (before, lives, packets) = Default::default();
        let (written, copied, lacks_memory) = Default::default();
        Watched { place, number, is_timed, capacity, before, written, copied, lacks_memory, lives, packets }
    }

    /// Adds what the counters say. `is_live`: also what came since the last look.
    fn look(&mut self, gathered: &mut Gathered, is_live: bool) {
        let stats = fs::read_to_string(self.place.stats_path()).unwrap_or_default();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let mut counts: BTreeMap<usize, [u64; 3]> = BTreeMap::new();
        for (cpu, name, value) in stats.lines().filter_map(split) {
            let of = counts.entry(cpu).or_default();
            match name {
                "messages" if self.is_timed => of[0] = value,
                "written" if !self.is_timed => of[0] = value,
                "bytes" => of[1] = value,
                _ => {}
            }
        }
        for (cpu, losses) in losses::of_text(&stats) {
            counts.entry(cpu).or_default()[2] = losses.messages();
        }
        let unread = unread::by_cpu(&stats);
        for (cpu, counts) in counts {
            let before = self.before.insert(cpu, counts).filter(|_| is_live).unwrap_or(counts);
            // A channel that was created again counts from zero.
            let [messages, bytes, lost] =
                [0, 1, 2].map(|n| counts[n].checked_sub(before[n]).unwrap_or(counts[n]));
            let fill = Some(thousandths(unread.get(&cpu).copied().unwrap_or(0), self.capacity));
            self.written = self.written.saturating_add(messages);
            gathered.add(self.number, cpu as u32, now, Step { messages, bytes, lost, fill });
        }
    }

    /// Begins to count what the copies have, behind the first of them.
    ///
    /// What is written during that copy may be in it, and is counted by this look. So nothing is taken for missed that a
    /// copy has.
    fn begin_count(&mut self, gathered: &mut Gathered, is_live: bool) {
        self.look(gathered, is_live);
        (self.written, self.copied) = (0, 0);
    }

    /// Says how many messages no copy had: they were consumed or overwritten between two looks.
    fn missed(&self) -> Option<String> {
        let missed = self.written.checked_sub(self.copied).filter(|missed| self.is_timed && *missed > 0)?;
        let channel = &self.place.channel;
        Some(if self.lacks_memory {
            format!(
                "{channel}: {missed} messages, relayfsd had no memory for copies of all: raise --max-memory"
            )
        } else {
            format!("{channel}: at least {missed} messages, consumed or overwritten between two looks")
        })
    }

    /// Keeps the packets that came since the last look.
    fn copy(&mut self, kept: &mut usize) -> Result<(), Failure> {
        if !self.is_timed {
            return Ok(());
        }
        let losses = losses::now(&self.place.stats_path());
        for cpu in wanted(None) {
            let path = self.place.control_path(&format!("snapshot/cpu{cpu}"));
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if means_gone(&error) => continue,
                Err(error) if error.kind() == ErrorKind::OutOfMemory => {
                    self.lacks_memory = true;
                    continue;
                }
                Err(error) => return Err(Failure::open(&path, error)),
            };
            let before = losses.get(&cpu).copied().unwrap_or_default();
            let live = self.lives.entry(cpu).or_insert_with(|| Rc::new(RefCell::new(Live::new(&before))));
            live.borrow_mut().seen.may_come_again(false);
            live.borrow_mut().counters = before;
            let mut stream = Stream::new(file, Some(Rc::clone(live)));
            let mut packet = Vec::new();
            let packets = self.packets.entry(cpu).or_default();
            loop {
                let next = stream.next_packet(&mut packet);
                if next.as_ref().is_ok_and(Option::is_some) {
                    self.copied = self.copied.saturating_add(messages(&packet));
                }
                match next {
                    Ok(Some(header)) if *kept < KEPT_MAX => {
                        packet[..HEADER_LEN].copy_from_slice(&header.encode());
                        packets.extend_from_slice(&packet);
                        *kept += packet.len();
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    // The daemon has gone; the next look finds the next one.
                    Err(_) => break,
                }
            }
        }
        Ok(())
    }

    /// Gathers the records that were kept.
    fn finish(self, gathered: &mut Gathered) -> Result<(), Failure> {
        if !self.is_timed {
            return Ok(());
        }
        let meaning = match Meaning::of_channel(&self.place) {
            Ok(meaning) => meaning,
            Err(failure) => {
                say(format_args!("channel {}: {failure}; its messages are left out", self.place.channel));
                return Ok(());
            }
        };
        let mut merge = Merge::new();
        for (cpu, packets) in self.packets {
            merge.push(cpu as u32, Stream::new(Cursor::new(packets), None));
        }
        let names = meaning.names();
        let mut lines = Lines::new(Format::Cat, meaning.timeline, names);
        while let Some(entry) = merge.next() {
            gathered.entry(self.number, &entry, &mut lines);
        }
        gathered.end(self.number);
        Ok(())
    }
}

/// Returns the number of records in a packet that are in the buffer, too.
fn messages(packet: &[u8]) -> u64 {
    let records = Records::new(packet.get(HEADER_LEN..).unwrap_or_default());
    records.map_while(Result::ok).filter(|record| record.id != id::LOST).count() as u64
}

fn thousandths(part: u64, of: u64) -> u16 {
    (u128::from(part) * 1000 / u128::from(of.max(1))).min(1000) as u16
}
