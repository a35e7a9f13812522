//! What lines begin with: time, CPU and writer.

use crate::trace::json;
use crate::trace::names::Names;
use crate::trace::text::digits::{nine, push, six};
use crate::trace::text::format::Format;
use crate::trace::text::time::{Cached, Zone, before, behind};
use crate::trace::text::who::who;

/// Nanoseconds of a second.
const NANOS: u64 = 1_000_000_000;
/// How many prefixes are remembered.
const PLACES: usize = 128;

/// What a prefix is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    second: u64,
    cpu: u32,
    /// The writer, if there is one.
    tid: Option<u32>,
    late: bool,
    /// The time in which the writer has one process.
    era: usize,
}

/// A prefix whose digits behind the point change from line to line.
#[derive(Clone, Debug)]
struct Prefix {
    /// `None` for a place that is not used.
    key: Option<Key>,
    digits_at: usize,
    bytes: Vec<u8>,
}

/// The prefixes of the last second, for each thread and CPU.
#[derive(Debug)]
pub(super) struct Prefixes {
    format: Format,
    zone: Box<dyn Zone>,
    places: Box<[Prefix]>,
}

impl Prefixes {
    pub(super) fn new(format: Format, zone: Box<dyn Zone>) -> Prefixes {
        let unused = Prefix { key: None, digits_at: 0, bytes: Vec::new() };
        Prefixes { format, zone, places: vec![unused; PLACES].into_boxed_slice() }
    }

    /// Forgets all prefixes, since names have changed.
    pub(super) fn forget(&mut self) {
        self.places.iter_mut().for_each(|place| place.key = None);
    }

    /// Appends the prefix of a line.
    #[inline]
    pub(super) fn push(
        &mut self,
        (stamp, cpu, tid, late): (u64, u32, Option<u32>, bool),
        timeline: &mut Cached,
        names: &Names,
        out: &mut Vec<u8>,
    ) {
        let nanos = match self.format {
            Format::ShortMonotonic => timeline.monotonic(stamp),
            _ => timeline.realtime(stamp),
        };
        let (second, nanos) = (nanos / NANOS, (nanos % NANOS) as u32);
        let boottime = timeline.boottime(stamp);
        let key = Key { second, cpu, tid, late, era: names.era(boottime) };
        let place = tid.unwrap_or(0).wrapping_add(cpu.wrapping_mul(31)) as usize % PLACES;
        if self.places[place].key != Some(key) {
            self.make(place, key, boottime, names);
        }
        let prefix = &self.places[place];
        let digits_at = out.len() + prefix.digits_at;
        out.extend_from_slice(&prefix.bytes);
        if self.format == Format::Json {
            out[digits_at..digits_at + 9].copy_from_slice(&nine(nanos));
        } else {
            out[digits_at..digits_at + 6].copy_from_slice(&six(nanos / 1000));
        }
    }

    #[cold]
    fn make(&mut self, place: usize, key: Key, boottime: u64, names: &Names) {
        let Prefixes { format, zone, places } = self;
        let prefix = &mut places[place];
        let out = &mut prefix.bytes;
        out.clear();
        if *format == Format::Json {
            out.extend_from_slice(b"{\"time\":\"");
        }
        before(*format, &**zone, key.second, out);
        prefix.digits_at = out.len();
        out.extend_from_slice(if *format == Format::Json { b"000000000" } else { b"000000" });
        behind(*format, &**zone, key.second, out);
        if *format == Format::Json {
            json::writer(key.cpu, key.tid.map(|tid| (tid, boottime)), key.late, names, out);
        } else {
            out.extend_from_slice(b" cpu");
            push(key.cpu.into(), out);
            out.push(b' ');
            if key.late {
                out.extend_from_slice(b"late ");
            }
            if let Some(tid) = key.tid {
                who(tid, boottime, names, out);
            }
        }
        prefix.key = Some(key);
    }
}
