//! Writes a recording for each channel of each host, as `audience record` would have written it there.
//!
//! ```text
//! DIR/HOST/CHANNEL/metadata      of a timed channel: a CTF trace
//! DIR/HOST/CHANNEL/cpu0 ...      packets, or the bytes of a raw channel
//! DIR/HOST/CHANNEL/000000 ...    traces one after the other, if the channel was created again
//! ```

mod bytes;
mod trace;

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use audience_common::error::Failure as Common;
use audience_common::trace_dir::{self, METADATA, mend};
use nix::fcntl::Flock;

use self::bytes::Bytes;
use self::trace::Traces;
use super::arrivals::Arrivals;
use super::delivery::{Arrived, Delivery};
use super::error::Failure;
use super::hub::{Hub, LOOK_AGAIN};
use super::meaning::shown;
use super::raw::place;
use crate::message::Subject;
use crate::output::say;

/// Mode of directories: other users might not have been allowed to read the buffers.
const DIR_MODE: u32 = 0o700;

/// Records all lanes below a directory.
pub(super) fn run(hub: &mut Hub, dir: &Path) -> Result<(), Failure> {
    if hub.found.is_empty() && !hub.follow {
        return Err(hub.nothing()?);
    }
    create_dirs(dir)?;
    let mut recorder = Recorder { dir: dir.to_owned(), channels: BTreeMap::new() };
    let recorded = recorder.run(hub);
    // What is recorded is complete, whatever ended it.
    let finished = recorder.finish();
    recorded.and(finished)?;
    hub.end()
}

/// The recordings below a directory.
struct Recorder {
    dir: PathBuf,
    /// By host and channel.
    channels: BTreeMap<(String, String), Channel>,
}

/// The recording of a channel.
struct Channel {
    content: Content,
    /// Held by a recorder at work.
    _lock: Flock<File>,
    n_bytes: u64,
    is_other_told: bool,
}

/// What a channel has.
enum Content {
    Timed(Traces),
    Raw(Bytes),
}

impl Recorder {
    fn run(&mut self, hub: &mut Hub) -> Result<(), Failure> {
        // One after the other, and each begins at its turn: what many fetch before that has no room.
        for subject in hub.found.clone() {
            if hub.waiter.stops.is_ended() {
                break;
            }
            let Some(lane) = hub.begin_one(&subject) else { continue };
            let mut is_there = true;
            while is_there {
                is_there = lane.borrow_mut().wait(&hub.waiter);
                self.take(&mut lane.borrow_mut())?;
                if hub.is_tight() {
                    self.take_all(hub)?;
                }
            }
        }
        while hub.follow {
            let is_ending = hub.waiter.stops.is_ended();
            hub.add_appeared();
            self.take_all(hub)?;
            if is_ending {
                break;
            }
            hub.pause(LOOK_AGAIN);
        }
        Ok(())
    }

    /// Records what all lanes have delivered.
    fn take_all(&mut self, hub: &Hub) -> Result<(), Failure> {
        for lane in &hub.lanes {
            let mut lane = lane.borrow_mut();
            while lane.poll() {
                self.take(&mut lane)?;
            }
        }
        Ok(())
    }

    /// Records what a lane has delivered.
    fn take(&mut self, lane: &mut Arrivals) -> Result<(), Failure> {
        while let Some(delivery) = lane.take() {
            match delivery {
                Delivery::SubBuffer(arrived) => {
                    let key = (lane.subject.host.clone(), lane.subject.channel.to_string());
                    if !self.channels.contains_key(&key) {
                        let channel = Channel::begin(&self.dir, &lane.subject, arrived.timed.is_some())?;
                        self.channels.insert(key.clone(), channel);
                    }
                    let Some(channel) = self.channels.get_mut(&key) else { continue };
                    channel.record(lane, *arrived)?;
                }
                Delivery::Notice { notice, .. } => say(format_args!("{}: {}", place(lane), notice.text)),
                Delivery::End => {}
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Failure> {
        let mut finished = Ok(());
        for ((host, name), channel) in &mut self.channels {
            if let Content::Timed(traces) = &mut channel.content {
                finished = finished.and(traces.finish());
            }
            say(format_args!("{} {name}: {} bytes recorded", shown(host), channel.n_bytes));
        }
        finished
    }
}

impl Channel {
    fn begin(dir: &Path, subject: &Subject, is_timed: bool) -> Result<Channel, Failure> {
        let dir = dir.join(file_name(&subject.host)).join(subject.channel.as_str());
        create_dirs(&dir)?;
        let has_metadata = dir.join(METADATA).exists();
        if has_metadata || !trace_dir::streams(&dir)?.is_empty() || !trace_dir::pieces(&dir)?.is_empty() {
            return Err(Common::Recorded(dir).into());
        }
        let Some(lock) = mend::lock(&dir)? else { return Err(Failure::RecorderAtWork(dir)) };
        let content = if is_timed { Content::Timed(Traces::new(dir)) } else { Content::Raw(Bytes::new(dir)) };
        Ok(Channel { content, _lock: lock, n_bytes: 0, is_other_told: false })
    }

    fn record(&mut self, lane: &Arrivals, arrived: Arrived) -> Result<(), Failure> {
        let n_bytes = match (&mut self.content, &arrived.timed) {
            (Content::Timed(traces), Some(_)) => traces.append(lane, arrived)?,
            (Content::Raw(bytes), None) => bytes.append(lane.cpu, &arrived.bytes)?,
            _ => {
                if !std::mem::replace(&mut self.is_other_told, true) {
                    say(format_args!(
                        "{}: the channel was raw and is timed now, or the other way around: record it into another \
                         directory",
                        place(lane)
                    ));
                }
                0
            }
        };
        self.n_bytes += n_bytes;
        Ok(())
    }
}

/// Creates a directory and those above it, if they are missing.
fn create_dirs(dir: &Path) -> Result<(), Failure> {
    let created = DirBuilder::new().mode(DIR_MODE).recursive(true).create(dir);
    match created {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(Common::record(dir, error).into()),
        _ => Ok(()),
    }
}

/// Returns a host's name as that of one file, whatever it is. Different names have different files.
fn file_name(host: &str) -> String {
    let mut name = String::with_capacity(host.len());
    for (at, byte) in host.bytes().enumerate() {
        let is_plain = byte.is_ascii_alphanumeric() || b"_-".contains(&byte) || byte == b'.' && at > 0;
        if is_plain {
            name.push(byte.into());
        } else {
            name.push_str(&format!("%{byte:02X}"));
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_of_files() {
        assert_eq!(file_name("web1.example.org"), "web1.example.org");
        assert_eq!(file_name("../../etc"), "%2E.%2F..%2Fetc");
        assert_eq!(file_name(".."), "%2E.");
        assert_eq!(file_name("a%b\u{e4}"), "a%25b%C3%A4");
    }
}
