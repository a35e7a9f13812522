//! A channel as the forwarder sees it: its mapped buffers, and its files in the mount.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use audience::{ConnectError, ReadError, Reader, Refused};
use nix::errno::Errno;
use relay::ChannelName;
use relay::system::mountinfo::{self, FS_TYPE};
use thiserror::Error;
use tokio::io::unix::AsyncFd;

use super::bell;

/// Which processes may read channels.
pub(crate) const READERS: &str =
    "its files are for the user who mounted it, root, and the group that relayfsd --group names";

/// What finishes sub-buffers that are not full, where this process may not.
pub(crate) const FLUSHERS: &str =
    "set relayfsd --flush-interval: only the user who mounted it and root may flush";

/// Why a channel cannot be forwarded now.
#[derive(Debug, Error)]
pub(crate) enum Closed {
    /// There is no daemon, or no such channel.
    #[error("{0}; waiting for it")]
    Gone(String),
    /// This process may not read it.
    #[error("{0}")]
    Forbidden(String),
    /// The daemon refuses, or something failed.
    #[error("{0}")]
    Trouble(String),
}

/// The files of a channel.
#[derive(Clone, Debug)]
pub(crate) struct Files {
    mount: PathBuf,
    channel: ChannelName,
}

impl Files {
    pub(crate) fn new(mount: &Path, channel: &ChannelName) -> Files {
        Files { mount: mount.to_owned(), channel: channel.clone() }
    }

    /// Reads one of the control files of the channel with this number. Fails if another channel has its name now.
    pub(crate) fn read(&self, instance: u64, name: &str) -> io::Result<String> {
        let bytes = fs::read(self.control(name))?;
        // A number that has gone does not come back. So what was read before is of the same channel.
        if self.instance()? != instance {
            return Err(io::Error::other("another channel has this name now"));
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Returns the number that identifies the channel: the inode number of its first file.
    pub(crate) fn instance(&self) -> io::Result<u64> {
        let path = self.mount.join(format!("{}0", self.channel));
        fs::metadata(path).map(|found| found.ino())
    }

    /// Returns whether a daemon serves the mount.
    pub(crate) fn is_mounted(&self) -> bool {
        self.mount.join(".relay/version").exists()
    }

    /// Finishes the sub-buffers that have something in them. A failure only delays what they have.
    pub(crate) fn flush(&self) -> io::Result<()> {
        fs::write(self.control("flush"), "1")
    }

    /// Returns a counter of each buffer.
    pub(crate) fn counters(&self, instance: u64, names: &[&str]) -> io::Result<Vec<BTreeMap<usize, u64>>> {
        let stats = self.read(instance, "stats")?;
        Ok(names.iter().map(|name| counter(&stats, name)).collect())
    }

    fn control(&self, name: &str) -> PathBuf {
        self.mount.join(".relay/channels").join(self.channel.as_str()).join(name)
    }
}

/// Returns a counter of each buffer in the text of `stats`.
fn counter(stats: &str, name: &str) -> BTreeMap<usize, u64> {
    let of_line = |line: &str| {
        let (cpu, rest) = line.strip_prefix("cpu")?.split_once('.')?;
        let (key, value) = rest.split_once(' ')?;
        (key == name).then(|| Some((cpu.parse().ok()?, value.parse().ok()?))).flatten()
    };
    stats.lines().filter_map(of_line).collect()
}

/// Returns the channels of a mount that this process may see.
pub(crate) fn channels(mount: &Path) -> io::Result<Vec<ChannelName>> {
    let status = fs::read(mount.join(".relay/status"))?;
    let status = String::from_utf8_lossy(&status);
    Ok(status.lines().filter_map(|line| line.strip_prefix("channel ")?.parse().ok()).collect())
}

/// Returns whether it is a daemon's mount that does not let this process in.
///
/// Without one, it is the directory below, which another user may keep from us until the daemon mounts there.
pub(crate) fn is_refused_for_good(mount: &Path) -> bool {
    // A path that this process cannot look up stays so, whatever is mounted.
    let Ok(point) = mountinfo::resolve(mount) else { return true };
    mountinfo::read().is_ok_and(|entries| {
        mountinfo::topmost(&entries, &point).is_some_and(|entry| entry.fs_type == FS_TYPE)
    })
}

/// A channel's mapped buffers.
pub(crate) struct Source {
    pub(crate) files: Files,
    pub(crate) reader: Reader,
    /// Identifies the channel.
    pub(crate) instance: u64,
    /// Becomes readable when a sub-buffer is finished, if the daemon was asked to ring.
    pub(crate) bell: AsyncFd<OwnedFd>,
    /// Whether the daemon has gone, so that nothing can be given back.
    pub(crate) is_gone: bool,
}

impl Source {
    /// Maps the buffers of a channel.
    pub(crate) fn open(files: Files) -> Result<Source, Closed> {
        let missing =
            || Closed::Gone(format!("there is no channel '{}' on {}", files.channel, files.mount.display()));
        let no_mount = || Closed::Gone(format!("no relayfs is mounted on {}", files.mount.display()));
        let forbidden = |error: &dyn Display| {
            Closed::Forbidden(format!("channel '{}' is not forwarded: {error}; {READERS}", files.channel))
        };
        let instance = files.instance().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound if files.is_mounted() => missing(),
            io::ErrorKind::PermissionDenied if is_refused_for_good(&files.mount) => forbidden(&error),
            _ => no_mount(),
        })?;
        let reader = Reader::open(&files.mount, files.channel.as_str()).map_err(|error| match error {
            ReadError::Refused(Refused { errno, .. }) if errno == Errno::ENOENT as i32 => missing(),
            ReadError::Connect(ConnectError::Forbidden { .. }) => forbidden(&error),
            ReadError::Refused(Refused { errno, .. }) if errno == Errno::EPERM as i32 => forbidden(&error),
            ReadError::Connect(ConnectError::NotMounted { .. } | ConnectError::Stale { .. }) => no_mount(),
            // The same for all channels, so it is said once.
            ReadError::Connect(_) => {
                Closed::Trouble(format!("channels of {} are not forwarded: {error}", files.mount.display()))
            }
            error => Closed::Trouble(format!("channel '{}' is not forwarded: {error}", files.channel)),
        })?;
        // Between the two, another daemon may have come, or another channel of this name.
        if files.instance().ok() != Some(instance) {
            return Err(missing());
        }
        let bell = bell::register(&reader).map_err(|error| Closed::Trouble(error.to_string()))?;
        Ok(Source { files, reader, instance, bell, is_gone: false })
    }

    /// Asks the daemon to ring. Returns true if there is a finished sub-buffer already.
    pub(crate) fn arm(&mut self) -> bool {
        match self.reader.wait(Some(Instant::now())) {
            Ok(is_there) => is_there,
            Err(_) => {
                self.is_gone = true;
                false
            }
        }
    }

    /// Gives back what was taken of a CPU, up to this number.
    pub(crate) fn release_until(&mut self, cpu: usize, number: u64) {
        if self.is_gone {
            return;
        }
        match self.reader.release_until(cpu, number) {
            // Overwritten meanwhile, or read by another process too.
            Ok(()) | Err(ReadError::Stale) => {}
            Err(_) => self.is_gone = true,
        }
    }

    /// Forgets what was taken of a CPU and not given back: it is there again.
    pub(crate) fn take_again(&mut self, cpu: usize) {
        self.reader.take_again(cpu);
    }

    /// Looks for the next daemon of these buffers. Returns false if there are other ones in their place.
    pub(crate) fn reopen(&mut self) -> bool {
        let is_same = |found: &io::Result<u64>| found.as_ref().is_ok_and(|number| *number == self.instance);
        let found = self.files.instance();
        if !is_same(&found) {
            return found.is_err() && !self.files.is_mounted();
        }
        match self.reader.reopen() {
            Ok(true) => {}
            Ok(false) => return false,
            Err(_) => return true,
        }
        if let Ok(bell) = bell::register(&self.reader) {
            (self.bell, self.is_gone) = (bell, false);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_another_channel_of_the_name_are_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path(), &"app/log".parse().unwrap());
        fs::create_dir_all(files.control("x")).unwrap();
        fs::create_dir_all(dir.path().join("app")).unwrap();
        let first = dir.path().join("app/log0");
        fs::write(&first, "").unwrap();
        fs::write(files.control("stats"), "cpu0.produced 3\n").unwrap();
        let instance = files.instance().unwrap();
        assert_eq!(files.read(instance, "stats").unwrap(), "cpu0.produced 3\n");
        assert_eq!(files.counters(instance, &["produced"]).unwrap(), [BTreeMap::from([(0, 3)])]);
        // The number of a file that is there goes to no other.
        fs::rename(&first, dir.path().join("before")).unwrap();
        assert!(files.read(instance, "stats").is_err(), "none");
        fs::write(&first, "").unwrap();
        assert!(files.read(instance, "stats").is_err() && files.counters(instance, &["produced"]).is_err());
    }

    #[test]
    fn counters_are_those_of_each_buffer() {
        let stats =
            "cpu0.produced 3\ncpu0.produced_more 9\ncpu11.produced 4\ntotal.produced 7\ncpu1.bytes 2\n";
        assert_eq!(counter(stats, "produced"), BTreeMap::from([(0, 3), (11, 4)]));
        assert!(counter("cpux.produced 1\ncpu1.produced\ncpu1.produced x\n", "produced").is_empty());
    }
}
