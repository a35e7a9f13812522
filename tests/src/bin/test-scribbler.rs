//! Writes at random over a channel's files, as a process that the daemon trusted with them might.
//!
//! `test-scribbler STATE_DIR CHANNEL SECONDS`. Prints at the end how many stores it made, and in how many successive
//! channels of that name.
//!
//! Half of the time it stores plausible mistakes: positions, numbers and paddings near the right ones. In the other
//! half it stores any byte anywhere, the header included.

use std::error::Error;
use std::fs::{self, File};
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use relay::layout::abi::{BufferBlock, ControlHeader, Record, control_header};
use relay::layout::position::{Position, Widths};
use relay::layout::state_file::{ChannelEntry, STATE_FILE, StateFile};
use relay::memory::mapping::Mapping;
use relayfs_tests::numbered::Random;

/// Stores between two checks whether the channel was replaced.
const STORES_PER_LOOK: usize = 2000;
/// Number of checks after which the kind of stores changes.
const LOOKS_PER_KIND: u64 = 20;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, name, seconds] = &args[..] else { return Err("STATE_DIR CHANNEL SECONDS".into()) };
    let end = Instant::now() + Duration::from_secs(seconds.parse()?);
    let mut random = Random::new(7);
    let (mut stores, mut channels, mut looks) = (0u64, 0u64, 0u64);
    let mut target: Option<Target> = None;
    while Instant::now() < end {
        let entry = entry(Path::new(dir), name);
        if target.as_ref().map(|target| target.id) != entry.as_ref().map(|entry| entry.id) {
            target = entry.and_then(|entry| Target::map(Path::new(dir), &entry));
            channels += u64::from(target.is_some());
        }
        let Some(target) = &target else {
            std::thread::yield_now(); // the channel is being created
            continue;
        };
        looks += 1;
        for _ in 0..STORES_PER_LOOK {
            if (looks / LOOKS_PER_KIND).is_multiple_of(2) {
                target.nudge(&mut random)
            } else {
                target.scribble(&mut random)
            }
        }
        stores += STORES_PER_LOOK as u64;
    }
    println!("{stores} {channels}");
    Ok(())
}

/// Reads a channel's entry in the state file. The file is replaced atomically, so it is always whole.
fn entry(dir: &Path, name: &str) -> Option<ChannelEntry> {
    let state = StateFile::parse(&fs::read_to_string(dir.join(STATE_FILE)).ok()?).ok()?;
    state.channels.into_iter().find(|channel| channel.name.as_str() == name)
}

/// A channel's files.
struct Target {
    id: u32,
    n_bufs: usize,
    header: ControlHeader,
    widths: Widths,
    n_subbufs: u64,
    control: (Mapping, usize),
    data: Vec<(Mapping, usize)>,
}

impl Target {
    fn map(dir: &Path, entry: &ChannelEntry) -> Option<Target> {
        let map = |suffix: String| {
            let path = dir.join(format!("{}.{suffix}", entry.id));
            let file = File::options().read(true).write(true).open(path).ok()?;
            let len = file.metadata().ok()?.len();
            Some((Mapping::new(&file, len).ok()?, len as usize))
        };
        Some(Target {
            id: entry.id,
            n_bufs: entry.n_bufs,
            header: control_header(&entry.geometry, entry.n_bufs),
            widths: Widths::new(&entry.geometry),
            n_subbufs: entry.geometry.n_subbufs() as u64,
            control: map("control".to_owned())?,
            data: (0..entry.n_bufs).map(|cpu| map(format!("data{cpu}"))).collect::<Option<_>>()?,
        })
    }

    /// Stores a few random bytes at a random place.
    fn scribble(&self, random: &mut Random) {
        let (mapping, len) =
            if random.below(2) == 0 { &self.control } else { &self.data[random.below(self.n_bufs)] };
        let n = 1 + random.below(16);
        let bytes = mapping.bytes(random.below(len - n), n).expect("inside the file");
        bytes.iter().for_each(|byte| byte.store(random.next() as u8, Ordering::Relaxed));
    }

    /// Stores a plausible value in a random word.
    fn nudge(&self, random: &mut Random) {
        let block_at =
            self.header.buffers_offset + random.below(self.n_bufs) as u64 * self.header.buffer_stride;
        let block: &BufferBlock = self.control.0.get(block_at as usize).expect("inside the file");
        let record_at = block_at
            + self.header.records_offset
            + random.below(2 * self.n_subbufs as usize) as u64 * self.header.record_stride;
        let record: &Record = self.control.0.get(record_at as usize).expect("inside the file");
        let state = block.state.load(Ordering::Relaxed);
        let position = |random: &mut Random| {
            let lap = self.widths.lap(Position(state)).wrapping_add(random.next() % 3).wrapping_sub(1);
            self.widths.pack(lap, random.next() % self.n_subbufs, 0).0
        };
        let near = |word: &AtomicU64, random: &mut Random| {
            let by = (random.next() % 9).wrapping_sub(4);
            word.store(word.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
        };
        match random.below(12) {
            0 => block.state.store(position(random), Ordering::Relaxed),
            1 => block.consumed.store(position(random), Ordering::Relaxed),
            2 => block.begun.store(position(random), Ordering::Relaxed),
            3 => near(&record.number, random),
            4 => near(&record.begin, random),
            5 => record.padding.store(random.next() % 10_000, Ordering::Relaxed),
            6 => block.high_water.store(random.next() % 100, Ordering::Relaxed),
            7 => block.closed.store(random.next() % 2, Ordering::Relaxed),
            8 => near(&block.wake, random),
            9 => near(&block.dropped, random),
            10 => near(&block.read_bytes, random),
            _ => self.data[random.below(self.n_bufs)].0.bytes(random.below(4096), 1).expect("inside")[0]
                .store(random.next() as u8, Ordering::Relaxed),
        }
    }
}
