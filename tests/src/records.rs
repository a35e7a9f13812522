//! Records of timed channels, as they lie in the buffers.

use std::collections::BTreeMap;
use std::fs;

use relay::trace::event::id;
use relay::trace::record::Records;

use crate::Mount;

/// A record that was read from a buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundRecord {
    /// Number of its buffer.
    pub cpu: usize,
    /// Ticks of the channel's clock.
    pub stamp: u64,
    /// Id of its event.
    pub id: u16,
    /// Its thread.
    pub tid: u32,
    /// Bytes behind the head.
    pub payload: Vec<u8>,
}

impl FoundRecord {
    /// The payload as text.
    pub fn text(&self) -> String {
        String::from_utf8(self.payload.clone()).expect("a text")
    }
}

/// Reads all records of a channel that producers wrote, buffer by buffer, which consumes them.
/// Those that the daemon writes by itself are left out.
///
/// Fails the test if there are bytes that are no record, or if stamps of a buffer decrease.
#[track_caller]
pub fn records(mount: &Mount, channel: &str) -> Vec<FoundRecord> {
    let mut all = Vec::new();
    for cpu in 0.. {
        let path = mount.path(&format!("{channel}{cpu}"));
        if !path.exists() {
            break;
        }
        let (bytes, mut last) = (fs::read(path).expect("reading a buffer"), 0);
        for record in Records::new(&bytes) {
            let record = record.unwrap_or_else(|damaged| panic!("{channel}{cpu}: {damaged:?}"));
            assert!(record.stamp >= last, "{channel}{cpu}: {} after {last}", record.stamp);
            last = record.stamp;
            let (id, tid, payload) = (record.id, record.tid, record.payload.to_vec());
            if ![id::LOST, id::CLOCK, id::PROCESS].contains(&id) {
                all.push(FoundRecord { cpu, stamp: record.stamp, id, tid, payload });
            }
        }
    }
    all
}

/// Reads all records of a channel, in the order of their stamps.
#[track_caller]
pub fn merged(mount: &Mount, channel: &str) -> Vec<FoundRecord> {
    let mut all = records(mount, channel);
    all.sort_by_key(|record| (record.stamp, record.cpu));
    all
}

/// The processes of a channel's threads, by the file `processes`: the pid and the command of each thread.
#[track_caller]
pub fn threads(mount: &Mount, channel: &str) -> BTreeMap<u32, (u32, String)> {
    let text = fs::read_to_string(mount.control(channel, "processes")).expect("reading processes");
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split([' ', '\t']).collect()).collect();
    let number = |word: &str| word.parse::<u32>().unwrap_or_else(|_| panic!("{word:?} in {text}"));
    let processes: BTreeMap<u32, (u32, String)> = lines
        .iter()
        .filter(|line| line[0] != "thread")
        .map(|line| (number(line[0]), (number(line[1]), line[4].to_owned())))
        .collect();
    let threads = lines.iter().filter(|line| line[0] == "thread");
    threads.filter_map(|line| Some((number(line[1]), processes.get(&number(line[2]))?.clone()))).collect()
}

/// The sum of a counter over all buffers of a channel.
#[track_caller]
pub fn total(mount: &Mount, channel: &str, counter: &str) -> u64 {
    let end = format!(".{counter}");
    let stats = mount.stats(channel);
    stats.iter().filter(|(name, _)| name.starts_with("cpu") && name.ends_with(&end)).map(|(_, n)| n).sum()
}
