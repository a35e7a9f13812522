//! The tracks of a trace: processes, their threads, and counters of CPUs.

use std::collections::HashMap;

use relay::trace::names::{Names, Process, START_TICK};

use super::fields::{packet, track};
use super::packets::{Packets, int32};
use crate::convert::protobuf::Message;

/// Most tracks of threads; further threads share one. Threads of a trace are hostile input.
const THREADS_MAX: usize = 1 << 17;

/// What a counter counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Counter {
    /// Messages lost so far.
    Lost,
    /// Sub-buffers given up for newer messages so far.
    Overwritten,
    /// Bytes of records in a sub-buffer.
    Fill,
}

/// What a track shows. Processes have the numbers of their channel, since process ids are used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Shows {
    Process(u32),
    Thread { process: u32, tid: u32 },
    OtherThreads,
    Counter(Counter, u32),
}

/// The tracks that are described, by their numbers.
#[derive(Debug, Default)]
pub(super) struct Tracks {
    uuids: HashMap<Shows, u64>,
    n_threads: usize,
}

impl Tracks {
    /// Returns the track of a thread.
    pub(super) fn thread(&mut self, packets: &mut Packets, tid: u32, process: Option<&Process>) -> u64 {
        let shows = Shows::Thread { process: process.map_or(0, |process| process.number), tid };
        if let Some(uuid) = self.uuids.get(&shows) {
            return *uuid;
        }
        if self.n_threads >= THREADS_MAX {
            return self.get(packets, Shows::OtherThreads, |descriptor| {
                descriptor.text(track::NAME, b"other threads");
            });
        }
        self.n_threads += 1;
        let parent = process.map(|process| self.process(packets, process));
        self.get(packets, shows, |descriptor| {
            if let Some(parent) = parent {
                descriptor.number(track::PARENT, parent);
            }
            descriptor.message(track::THREAD, |thread| {
                // A thread whose process is not known shows as a process.
                let pid = process.map_or(tid, |process| process.pid);
                thread.signed(track::THREAD_PID, int32(pid)).signed(track::THREAD_TID, int32(tid));
                if let Some(process) = process {
                    thread.text(track::THREAD_NAME, process.command.as_bytes());
                }
            });
        })
    }

    /// Returns the track of a process.
    pub(super) fn process(&mut self, packets: &mut Packets, process: &Process) -> u64 {
        self.get(packets, Shows::Process(process.number), |descriptor| {
            descriptor.message(track::PROCESS, |message| {
                message.signed(track::PROCESS_PID, int32(process.pid));
                message.text(track::PROCESS_CMDLINE, process.executable.as_bytes());
                message.text(track::PROCESS_NAME, process.command.as_bytes());
                let start = process.start_ticks.saturating_mul(START_TICK);
                message.signed(track::PROCESS_START, i64::try_from(start).unwrap_or(i64::MAX));
            });
        })
    }

    /// Describes all processes and threads that have names.
    pub(super) fn known(&mut self, packets: &mut Packets, names: &Names) {
        for process in names.processes() {
            self.process(packets, process);
        }
        for (tid, process) in names.threads() {
            self.thread(packets, tid, Some(process));
        }
    }

    /// Returns the track of a CPU's counter.
    pub(super) fn counter(&mut self, packets: &mut Packets, counter: Counter, cpu: u32) -> u64 {
        let (name, unit) = match counter {
            Counter::Lost => ("messages lost", track::UNIT_COUNT),
            Counter::Overwritten => ("sub-buffers overwritten", track::UNIT_COUNT),
            Counter::Fill => ("sub-buffer fill", track::UNIT_BYTES),
        };
        self.get(packets, Shows::Counter(counter, cpu), |descriptor| {
            descriptor.text(track::NAME, format!("cpu{cpu} {name}").as_bytes());
            descriptor.message(track::COUNTER, |message| {
                message.number(track::COUNTER_UNIT, unit);
            });
        })
    }

    /// Returns the number of a track. Describes the track if it is new.
    fn get(&mut self, packets: &mut Packets, shows: Shows, describe: impl FnOnce(&mut Message)) -> u64 {
        let next = self.uuids.len() as u64 + 1;
        let uuid = *self.uuids.entry(shows).or_insert(next);
        if uuid == next {
            packets.add(|packet| {
                packet.message(packet::TRACK_DESCRIPTOR, |descriptor| {
                    descriptor.number(track::UUID, uuid);
                    describe(descriptor);
                });
            });
        }
        uuid
    }
}
