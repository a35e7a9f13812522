//! A channel as files: `cpu` is MOUNT/cpu0, MOUNT/cpu1, ...; `app/log` is MOUNT/app/log0, ...
//!
//! A channel has a file for every configured CPU; a global channel has only the file of number 0. So the reader counts
//! the CPUs, as the classic reader does, and takes the files that exist.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use relay::ChannelName;
use relay::layout::channel_name::COMPONENTS_MAX;

use relay::system::cpus;

use crate::error::{Failure, means_gone};

/// One CPU's open file.
#[derive(Debug)]
pub(crate) struct CpuFile {
    pub(crate) cpu: usize,
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    /// The file's block size: the bytes that one read should ask for.
    pub(crate) block_size: u64,
    /// Device and inode number.
    id: (u64, u64),
}

impl CpuFile {
    /// Opens the file of a CPU.
    pub(crate) fn open(cpu: usize, path: PathBuf) -> Result<CpuFile, Failure> {
        let file = File::open(&path).map_err(|error| Failure::open(&path, error))?;
        let found = file.metadata().map_err(|error| Failure::read(&path, error))?;
        Ok(CpuFile { cpu, path, file, block_size: found.blksize(), id: (found.dev(), found.ino()) })
    }

    /// The file's inode number. A buffer whose stream begins again has another one, also with another daemon.
    pub(crate) fn inode(&self) -> u64 {
        self.id.1
    }

    /// Identifies this file, to tell it from a later file of the same path.
    pub(crate) fn identity(&self) -> Identity {
        Identity { path: self.path.clone(), id: self.id }
    }
}

/// A path, and the file that it named.
#[derive(Debug)]
pub(crate) struct Identity {
    path: PathBuf,
    id: (u64, u64),
}

impl Identity {
    /// Whether the path names another file now, or none.
    ///
    /// A mount that was detached during reading lives on, invisible to other processes, until its files are closed.
    pub(crate) fn was_replaced(&self) -> bool {
        match fs::metadata(&self.path) {
            Ok(found) => (found.dev(), found.ino()) != self.id,
            Err(error) => means_gone(&error),
        }
    }
}

/// The mount point and the name of a channel.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) mount: PathBuf,
    pub(crate) channel: ChannelName,
}

impl Place {
    /// The file of a CPU's buffer.
    pub(crate) fn cpu_path(&self, cpu: usize) -> PathBuf {
        self.mount.join(format!("{}{cpu}", self.channel))
    }

    /// One of the channel's control files.
    pub(crate) fn control_path(&self, file: &str) -> PathBuf {
        channels_dir(&self.mount).join(self.channel.as_str()).join(file)
    }

    /// The file of the channel's counters.
    pub(crate) fn stats_path(&self) -> PathBuf {
        self.control_path("stats")
    }

    /// Whether the channel is timed. A channel whose mode cannot be read is read as a raw one.
    pub(crate) fn is_timed(&self) -> bool {
        self.mode().is_ok_and(|mode| has_word(&mode, "timed"))
    }

    /// Whether new messages take the place of the oldest ones when the channel is full.
    pub(crate) fn overwrites(&self) -> bool {
        self.mode().is_ok_and(|mode| has_word(&mode, "overwrite"))
    }

    fn mode(&self) -> io::Result<String> {
        fs::read_to_string(self.control_path("mode"))
    }

    /// Opens files as [`Place::open`] does, and says whether the channel is timed.
    ///
    /// A channel that goes meanwhile is not taken for a raw one.
    pub(crate) fn open_of_kind(&self, only: Option<usize>) -> Result<(Vec<CpuFile>, bool), Failure> {
        let files = self.open(only)?;
        let has_gone = || files.first().is_some_and(|file| file.identity().was_replaced());
        match self.mode() {
            Ok(mode) => Ok((files, has_word(&mode, "timed"))),
            Err(error) if means_gone(&error) && has_gone() => {
                Err(Failure::read(&self.control_path("mode"), error))
            }
            Err(_) => Ok((files, false)),
        }
    }

    /// Opens the files of all CPUs, or of one, ordered by CPU. `NoChannel` if there are none.
    pub(crate) fn open(&self, only: Option<usize>) -> Result<Vec<CpuFile>, Failure> {
        loop {
            let mut files = Vec::new();
            for cpu in wanted(only) {
                match CpuFile::open(cpu, self.cpu_path(cpu)) {
                    Ok(file) => files.push(file),
                    Err(Failure::Open { source, .. }) if source.kind() == ErrorKind::NotFound => {}
                    Err(failure) => return Err(failure),
                }
            }
            match files.first() {
                // The channel came while the first CPUs' files were looked for.
                Some(first) if (wanted(only).start..first.cpu).any(|cpu| self.cpu_path(cpu).exists()) => {}
                Some(_) => return Ok(files),
                None => return Err(self.nothing(only)?),
            }
        }
    }

    /// The reason why no CPU, or not the CPU that was named, has a file.
    ///
    /// `NoChannel` also for a channel that has come since: it is not missing a CPU.
    pub(crate) fn nothing(&self, only: Option<usize>) -> Result<Failure, Failure> {
        let cpus = cpus::count();
        let has: Vec<usize> = (0..cpus).filter(|&cpu| self.cpu_path(cpu).exists()).collect();
        let (mount, channel) = (self.mount.clone(), self.channel.clone());
        match only {
            Some(cpu) if !has.is_empty() && !self.cpu_path(cpu).exists() => {
                Ok(Failure::NoCpu { channel, mount, cpu, has })
            }
            _ => Ok(Failure::NoChannel { channel, known: known(&mount), mount }),
        }
    }
}

/// The numbers of all CPUs, or only the number that the caller named.
pub(crate) fn wanted(only: Option<usize>) -> Range<usize> {
    match only {
        Some(cpu) => cpu..cpu.saturating_add(1),
        // CPUs that are offline count too.
        None => 0..cpus::count(),
    }
}

fn has_word(mode: &str, word: &str) -> bool {
    mode.split_whitespace().any(|found| found == word)
}

fn channels_dir(mount: &Path) -> PathBuf {
    mount.join(".relay/channels")
}

/// The names of the channels that the caller may see, sorted.
pub(crate) fn known(mount: &Path) -> Vec<String> {
    let mut names = Vec::new();
    // Directories that cannot be listed are left out: the names only improve messages.
    let _ = collect(&channels_dir(mount), "", COMPONENTS_MAX, &mut names);
    names.sort_unstable();
    names
}

/// Collects the names of the channels below a directory.
///
/// A directory with a regular file `stats` is a channel; a directory with a directory `stats` is not.
fn collect(dir: &Path, prefix: &str, depth: usize, names: &mut Vec<String>) -> io::Result<()> {
    if depth == 0 {
        return Ok(());
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let Ok(component) = entry.file_name().into_string() else { continue };
        if !entry.file_type()?.is_dir() {
            continue;
        }
        let name = format!("{prefix}{component}");
        if fs::symlink_metadata(entry.path().join("stats")).is_ok_and(|stats| stats.is_file()) {
            names.push(name);
        } else {
            let _ = collect(&entry.path(), &format!("{name}/"), depth - 1, names);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(mount: &Path, channel: &str) -> Place {
        Place { mount: mount.to_owned(), channel: channel.parse().unwrap() }
    }

    fn make(mount: &Path, files: &[&str]) {
        for file in files {
            let path = mount.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
    }

    #[test]
    fn paths_are_below_the_mount() {
        let log = place(Path::new("/mnt/relay"), "app/log");
        assert_eq!(log.cpu_path(10), Path::new("/mnt/relay/app/log10"));
        assert_eq!(log.stats_path(), Path::new("/mnt/relay/.relay/channels/app/log/stats"));
    }

    #[test]
    fn channels_are_directories_with_a_file_stats() {
        let dir = tempfile::tempdir().unwrap();
        assert!(known(dir.path()).is_empty());
        make(
            dir.path(),
            &["cpu/stats", "cpu/msg", "app/log/stats", "app/stats/stats", "stats/a/b/stats", "x/msg"]
                .map(|name| format!(".relay/channels/{name}"))
                .each_ref()
                .map(String::as_str),
        );
        assert_eq!(known(dir.path()), ["app/log", "app/stats", "cpu", "stats/a/b"]);
    }

    #[test]
    fn files_that_exist_are_opened_in_order() {
        let dir = tempfile::tempdir().unwrap();
        // A global channel has file 0 only; the last one is another channel's.
        make(dir.path(), &["app/log0", "app/logger0"]);
        let paths = |only| {
            let files = place(dir.path(), "app/log").open(only)?;
            Ok::<_, Failure>(files.into_iter().map(|file| file.path).collect::<Vec<_>>())
        };
        assert_eq!(paths(None).unwrap(), [dir.path().join("app/log0")]);
        assert_eq!(paths(Some(0)).unwrap(), [dir.path().join("app/log0")]);
        assert!(matches!(paths(Some(1)), Err(Failure::NoCpu { cpu: 1, has, .. }) if has == [0]));
        assert!(matches!(paths(Some(usize::MAX)), Err(Failure::NoCpu { .. })));
    }

    #[test]
    fn an_unknown_channel_is_an_error_for_one_cpu_too() {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), &["cpu0", ".relay/channels/cpu/stats"]);
        for only in [None, Some(0)] {
            let error = place(dir.path(), "app/log").open(only).unwrap_err();
            assert!(matches!(error, Failure::NoChannel { known, .. } if known == ["cpu"]));
        }
    }
}
