//! The recording of one CPU: a file, or several consecutive files.
//!
//! ```text
//! one file                  DIR/cpu0
//! --rotate-size             DIR/cpu0.000000  DIR/cpu0.000001  ...      in this order also when sorted by name
//! --rotate-count 2                           DIR/cpu0.000001  DIR/cpu0.000002
//! ```
//!
//! Bytes that were read from a buffer exist nowhere else, so the room for them is reserved before. The file system
//! reserves it behind the file's end, without making the file longer. The unused rest is returned at the end. If the
//! file system cannot reserve room (NFS before 4.2, for example), a failed write loses the current block, and the error
//! says so.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::resource::{Resource, getrlimit};
use relay::memory::lent::Lent;

use crate::error::Failure;

/// Blocks reserved at a time, if the file system has the room.
const BLOCKS_AHEAD: u64 = 4;
/// Least digits of a file's number.
const DIGITS: usize = 6;
/// Mode of a recording: only its owner reads it.
///
/// Other users might not have been allowed to read the buffers.
const MODE: u32 = 0o600;

/// When another file begins, and how many files are kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rotation {
    /// Size at which a file is long enough, in bytes.
    pub(crate) size: u64,
    /// How many files are kept; `None` for all.
    pub(crate) keep: Option<u64>,
}

/// The recording of one CPU.
#[derive(Debug)]
pub(crate) struct Recording {
    dir: PathBuf,
    cpu: usize,
    rotation: Option<Rotation>,
    /// Number of the current file, if files have numbers.
    number: u64,
    current: Current,
    /// Bytes recorded in all files.
    total: Arc<AtomicU64>,
}

/// The file that is being written.
#[derive(Debug)]
struct Current {
    path: PathBuf,
    file: File,
    len: u64,
    /// Position up to which room is reserved; `None` if the file system cannot reserve room.
    room: Option<u64>,
    /// Whether the file ends with a whole message.
    whole: bool,
}

/// Creates the directory if it does not exist. Refuses a directory that holds a recording.
pub(crate) fn prepare(dir: &Path) -> Result<(), Failure> {
    match fs::create_dir(dir) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(Failure::record(dir, error)),
    }
    for entry in fs::read_dir(dir).map_err(|error| Failure::record(dir, error))? {
        let entry = entry.map_err(|error| Failure::record(dir, error))?;
        if entry.file_name().to_str().is_some_and(is_recording) {
            return Err(Failure::Recorded(dir.to_owned()));
        }
    }
    Ok(())
}

/// Whether a file's name is that of a recording: `cpu0`, `cpu12.000003`.
fn is_recording(name: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    name.strip_prefix("cpu").is_some_and(|rest| match rest.split_once('.') {
        Some((cpu, number)) => digits(cpu) && digits(number),
        None => digits(rest),
    })
}

impl Recording {
    /// Begins an empty recording.
    pub(crate) fn new(dir: &Path, cpu: usize, rotation: Option<Rotation>) -> Result<Recording, Failure> {
        let current = Current::new(dir, path_of(dir, cpu, rotation.map(|_| 0)))?;
        let dir = dir.to_owned();
        Ok(Recording { dir, cpu, rotation, number: 0, current, total: Arc::default() })
    }

    /// The counter of bytes recorded so far, for other threads to read.
    pub(crate) fn total(&self) -> Arc<AtomicU64> {
        self.total.clone()
    }

    /// Reserves room for the next block, of at most `len` bytes. Begins another file first if this file is long enough.
    pub(crate) fn make_room(&mut self, len: usize) -> Result<(), Failure> {
        if let Some(rotation) = self.rotation {
            let Current { len, whole, .. } = self.current;
            if len >= rotation.size && (whole || len / 2 >= rotation.size) {
                self.rotate(rotation.keep)?;
            }
        }
        self.current.make_room(len as u64)
    }

    fn rotate(&mut self, keep: Option<u64>) -> Result<(), Failure> {
        self.current.give_back_room();
        let next = self.number + 1;
        if let Some(old) = keep.and_then(|keep| next.checked_sub(keep)) {
            let path = path_of(&self.dir, self.cpu, Some(old));
            match fs::remove_file(&path) {
                // A file that is missing was moved away by the user, which is no error.
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(Failure::record(&path, error));
                }
                _ => {}
            }
        }
        self.current = Current::new(&self.dir, path_of(&self.dir, self.cpu, Some(next)))?;
        self.number = next;
        Ok(())
    }

    /// Appends a block. `whole`: it ends with a whole message. `consumed`: no other copy of it exists.
    pub(crate) fn append(&mut self, bytes: Lent<'_>, whole: bool, consumed: bool) -> Result<(), Failure> {
        let current = &mut self.current;
        if !consumed {
            current.check_limit(bytes.len() as u64)?;
        }
        let mut rest = bytes;
        let result = loop {
            if rest.is_empty() {
                break Ok(());
            }
            match rest.write_to(&current.file) {
                Ok(0) => break Err(ErrorKind::WriteZero.into()),
                Ok(n) => rest = rest.skip(n),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        let written = (bytes.len() - rest.len()) as u64;
        // A block that is not consumed will be read again, all of it.
        let kept = if result.is_err() && !consumed { 0 } else { written };
        current.len += kept;
        // Relaxed: the number is only shown, and orders nothing else.
        self.total.fetch_add(kept, Ordering::Relaxed);
        current.whole = whole;
        result.map_err(|source| {
            if kept < written {
                current.cut();
            }
            let lost = if consumed { rest.len() } else { 0 };
            Failure::Record { path: current.path.clone(), source, lost }
        })
    }
}

/// Returns the room that was reserved and not used.
impl Drop for Recording {
    fn drop(&mut self) {
        self.current.give_back_room();
    }
}

impl Current {
    fn new(dir: &Path, path: PathBuf) -> Result<Current, Failure> {
        let opened = OpenOptions::new().write(true).create_new(true).mode(MODE).open(&path);
        let file = opened.map_err(|error| match error.kind() {
            // Another process has begun a recording since the check.
            ErrorKind::AlreadyExists => Failure::Recorded(dir.to_owned()),
            _ => Failure::record(&path, error),
        })?;
        Ok(Current { path, file, len: 0, room: Some(0), whole: true })
    }

    fn make_room(&mut self, len: u64) -> Result<(), Failure> {
        self.check_limit(len)?;
        let failure = |errno| Failure::record(&self.path, errno);
        let Some(room) = self.room else { return Ok(()) };
        // Bytes that are not consumed need no room, and may already lie behind the reserved room.
        if room.saturating_sub(self.len) >= len {
            return Ok(());
        }
        match self.allocate(len * BLOCKS_AHEAD).or_else(|_| self.allocate(len)) {
            Ok(room) => self.room = Some(room),
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => self.room = None,
            Err(errno) => return Err(failure(errno)),
        }
        Ok(())
    }

    /// Fails if `len` more bytes exceed the limit of a file's size, where a write would raise a signal.
    fn check_limit(&self, len: u64) -> Result<(), Failure> {
        let limit = getrlimit(Resource::RLIMIT_FSIZE).map_or(u64::MAX, |(soft, _)| soft);
        let fits = len <= limit.saturating_sub(self.len);
        if fits { Ok(()) } else { Err(Failure::record(&self.path, Errno::EFBIG)) }
    }

    /// Reserves room for `len` bytes behind the end. Returns the position up to which room is reserved now.
    fn allocate(&self, len: u64) -> Result<u64, Errno> {
        let offset = |n: u64| i64::try_from(n).map_err(|_| Errno::EFBIG);
        loop {
            match fallocate(&self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, offset(self.len)?, offset(len)?)
            {
                Err(Errno::EINTR) => {}
                result => return result.map(|()| self.len + len),
            }
        }
    }

    /// Returns the unused room. A failure is ignored: it only wastes the room.
    fn give_back_room(&self) {
        if self.room.is_some_and(|room| room > self.len) {
            self.cut();
        }
    }

    /// Cuts the file behind the bytes that it keeps.
    fn cut(&self) {
        let _ = self.file.set_len(self.len);
    }
}

fn path_of(dir: &Path, cpu: usize, number: Option<u64>) -> PathBuf {
    dir.join(match number {
        Some(number) => format!("cpu{cpu}.{number:0DIGITS$}"),
        None => format!("cpu{cpu}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn recordings_are_recognized_by_name() {
        for name in ["cpu0", "cpu12", "cpu1.000000", "cpu1.1234567"] {
            assert!(is_recording(name), "{name}");
        }
        for name in ["cpu", "cpux", "cpu0.", "cpu0.txt", "cpu0~", "xcpu0", "cpu.0", "cpu0.0.gz", "metadata"] {
            assert!(!is_recording(name), "{name}");
        }
    }

    #[test]
    fn only_directory_with_recording_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (new, file) = (dir.path().join("new"), dir.path().join("new/cpu3"));
        prepare(&new).unwrap();
        fs::write(new.join("notes"), "").unwrap();
        prepare(&new).unwrap();
        fs::write(&file, "kept").unwrap();
        assert!(matches!(prepare(&new), Err(Failure::Recorded(dir)) if dir == new));
        assert!(matches!(Recording::new(&new, 3, None), Err(Failure::Recorded(dir)) if dir == new));
        assert_eq!(fs::read(&file).unwrap(), b"kept");
        assert!(matches!(prepare(&file), Err(Failure::Record { .. })));
        assert!(matches!(prepare(&dir.path().join("a/b")), Err(Failure::Record { .. })));
    }

    #[test]
    fn files_end_with_whole_messages_up_to_twice_their_size() {
        let dir = tempfile::tempdir().unwrap();
        let mut recording = Recording::new(dir.path(), 1, Some(Rotation { size: 10, keep: None })).unwrap();
        let mut append = |bytes: &[u8], whole| {
            recording.make_room(100).unwrap();
            recording.append(Lent::from(bytes), whole, true).unwrap();
        };
        append(b"abcdefgh", true);
        append(b"ijklmn", false);
        append(b"op", true);
        append(b"123456789012", false);
        append(b"34567890", false);
        append(b"x", true);
        drop(recording);
        assert_eq!(names(dir.path()), ["cpu1.000000", "cpu1.000001", "cpu1.000002"]);
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("cpu1.000000"), "abcdefghijklmnop");
        assert_eq!(read("cpu1.000001"), "12345678901234567890");
        assert_eq!(read("cpu1.000002"), "x");
    }

    #[test]
    fn rotation_keeps_newest_files() {
        let dir = tempfile::tempdir().unwrap();
        let rotation = Rotation { size: 1, keep: Some(2) };
        let mut recording = Recording::new(dir.path(), 0, Some(rotation)).unwrap();
        for n in 0..5 {
            recording.make_room(1).unwrap();
            recording.append(Lent::from(&[b'0' + n]), true, true).unwrap();
        }
        assert_eq!(names(dir.path()), ["cpu0.000003", "cpu0.000004"]);
        assert_eq!(recording.total().load(Ordering::Relaxed), 5);
    }

    #[test]
    fn unconsumed_bytes_need_no_reserved_room() {
        let dir = tempfile::tempdir().unwrap();
        let mut recording = Recording::new(dir.path(), 0, None).unwrap();
        for _ in 0..3 {
            recording.make_room(0).unwrap();
            recording.append(Lent::from(b"abc"), true, false).unwrap();
        }
        recording.make_room(10).unwrap();
        recording.append(Lent::from(b"d"), true, true).unwrap();
        drop(recording);
        assert_eq!(fs::read(dir.path().join("cpu0")).unwrap(), b"abcabcabcd");
    }

    #[test]
    fn reserved_room_is_returned_and_makes_no_file_longer() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let mut recording = Recording::new(dir.path(), 0, None).unwrap();
        recording.make_room(1 << 20).unwrap();
        recording.append(Lent::from(b"short"), true, true).unwrap();
        let found = || fs::metadata(dir.path().join("cpu0")).unwrap();
        assert_eq!(found().len(), 5);
        drop(recording);
        assert_eq!(found().len(), 5);
        assert!(found().blocks() * 512 < 1 << 20, "{} blocks", found().blocks());
    }
}
