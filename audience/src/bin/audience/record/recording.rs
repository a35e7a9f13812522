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

mod end;

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use audience_common::trace_dir::mend::mend;
use audience_common::trace_dir::stream::check_limit;
use audience_common::trace_dir::{METADATA, piece_number};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

pub(crate) use self::end::{End, settle};
use super::source::Bytes;
use super::store::Store;
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
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rotation {
    /// Size at which a file is long enough, in bytes.
    pub(crate) size: Option<u64>,
    /// Age at which a file is old enough.
    pub(crate) age: Option<Duration>,
    /// How many files are kept; `None` for all.
    pub(crate) keep: Option<u64>,
}

/// The recording of one CPU.
#[derive(Debug)]
pub(crate) struct Recording<'a> {
    dir: PathBuf,
    cpu: usize,
    store: &'a Store,
    rotation: Option<Rotation>,
    /// Where the recording ends, for the next recorder.
    end: Option<End>,
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
    since: Instant,
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
        let name = entry.file_name();
        let is_trace = name == METADATA || piece_number(Path::new(&name)).is_some();
        if is_trace {
            // A recorder that was killed may have left a packet that is not whole.
            mend(dir)?;
        }
        if is_trace || name.to_str().is_some_and(is_recording) {
            return Err(Failure::Recorded(dir.to_owned()));
        }
    }
    Ok(())
}

/// Whether a file's name is that of a recording: `cpu0`, `cpu12.000003`.
pub(crate) fn is_recording(name: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    name.strip_prefix("cpu").is_some_and(|rest| match rest.split_once('.') {
        Some((cpu, number)) => digits(cpu) && digits(number),
        None => digits(rest),
    })
}

/// Whether a recording's file has a number.
pub(crate) fn has_number(name: &str) -> bool {
    is_recording(name) && name.contains('.')
}

/// The numbers of a CPU's files, in order.
fn numbers(dir: &Path, cpu: usize) -> Result<Vec<u64>, Failure> {
    let failure = |error| Failure::open(dir, error);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(failure)? {
        let name = entry.map_err(failure)?.file_name();
        let name = name.to_str().filter(|name| has_number(name));
        let parts = name.and_then(|name| name.strip_prefix("cpu")?.split_once('.'));
        found.extend(
            parts.filter(|(of, _)| of.parse() == Ok(cpu)).and_then(|(_, number)| number.parse::<u64>().ok()),
        );
    }
    found.sort_unstable();
    Ok(found)
}

impl Recording<'_> {
    /// Begins an empty recording.
    pub(crate) fn new<'a>(
        dir: &Path,
        cpu: usize,
        rotation: Option<Rotation>,
        store: &'a Store,
    ) -> Result<Recording<'a>, Failure> {
        let current = Current::new(dir, path_of(dir, cpu, rotation.map(|_| 0)))?;
        store.begin(&current.path);
        let dir = dir.to_owned();
        Ok(Recording { dir, cpu, store, rotation, end: None, number: 0, current, total: Arc::default() })
    }

    /// Continues a recording, or begins it.
    pub(crate) fn open<'a>(
        dir: &Path,
        cpu: usize,
        rotation: Option<Rotation>,
        store: &'a Store,
        end: Option<End>,
    ) -> Result<Recording<'a>, Failure> {
        let number = numbers(dir, cpu)?.last().copied();
        let rotation = rotation.or(number.map(|_| Rotation::default()));
        let number = number.unwrap_or(0);
        let current = Current::open(path_of(dir, cpu, rotation.map(|_| number)))?;
        store.begin(&current.path);
        let dir = dir.to_owned();
        Ok(Recording { dir, cpu, store, rotation, end, number, current, total: Arc::default() })
    }

    /// Notes where the recording ends, however long its files stay.
    pub(crate) fn finish(&mut self) -> Result<(), Failure> {
        self.end.as_mut().map_or(Ok(()), End::finish)
    }

    /// Where the recording ends in the buffer's stream, if that is kept.
    pub(crate) fn end(&mut self) -> Option<&mut End> {
        self.end.as_mut()
    }

    /// The counter of bytes recorded so far, for other threads to read.
    pub(crate) fn total(&self) -> Arc<AtomicU64> {
        self.total.clone()
    }

    /// Reserves room for the next block, of at most `len` bytes. Begins another file first if this file is long enough.
    pub(crate) fn make_room(&mut self, len: usize) -> Result<(), Failure> {
        if let Some(rotation) = self.rotation {
            let Current { len, whole, since, .. } = self.current;
            let is_long = rotation.size.is_some_and(|size| len >= size && (whole || len / 2 >= size));
            let is_old = rotation.age.is_some_and(|age| len > 0 && whole && since.elapsed() >= age);
            if is_long || is_old {
                self.rotate(rotation.keep)?;
            }
        }
        self.current.make_room(len as u64)
    }

    fn rotate(&mut self, keep: Option<u64>) -> Result<(), Failure> {
        self.current.give_back_room();
        let next = self.number + 1;
        let gone = keep.and_then(|keep| next.checked_sub(keep));
        for old in
            numbers(&self.dir, self.cpu)?.into_iter().filter(|old| gone.is_some_and(|gone| *old <= gone))
        {
            let path = path_of(&self.dir, self.cpu, Some(old));
            match fs::remove_file(&path) {
                // A file that is missing was moved away by the user, which is no error.
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(Failure::record(&path, error));
                }
                _ => {}
            }
        }
        let next_file = Current::new(&self.dir, path_of(&self.dir, self.cpu, Some(next)))?;
        self.store.begin(&next_file.path);
        let complete = std::mem::replace(&mut self.current, next_file);
        self.number = next;
        if let Some(end) = &mut self.end {
            end.next_file(next)?;
        }
        self.store.end(&complete.path)
    }

    /// Appends a block of bytes, unless a writer has overwritten it meanwhile: then it counts as overwritten, or another
    /// reader has it.
    pub(crate) fn append(&mut self, block: &Bytes<'_>) -> Result<(), Failure> {
        let Bytes { bytes, whole, consumed, at, .. } = *block;
        let current = &mut self.current;
        if !consumed {
            check_limit(&current.path, current.len, bytes.len() as u64)?;
        }
        if let Some(end) = &mut self.end
            && let Some(at) = at
        {
            // Bytes that are not consumed come again.
            let len = if consumed { 0 } else { bytes.len() as u64 };
            end.note(self.rotation.map(|_| self.number), current.len, at, len)?;
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
        let kept = if (result.is_err() && !consumed) || !block.is_whole() { 0 } else { written };
        current.len += kept;
        if let Some(end) = &mut self.end {
            end.grow(kept);
        }
        // Relaxed: the number is only shown, and orders nothing else.
        self.total.fetch_add(kept, Ordering::Relaxed);
        current.whole = whole;
        if kept < written {
            current.take_back();
        }
        result.map_err(|source| {
            let lost = if consumed { rest.len() } else { 0 };
            Failure::Record { path: current.path.clone(), source, lost }
        })
    }
}

/// Returns the room that was reserved and not used.
impl Drop for Recording<'_> {
    fn drop(&mut self) {
        self.current.give_back_room();
        self.store.moved(&self.current.path);
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
        Ok(Current { path, file, since: Instant::now(), len: 0, room: Some(0), whole: true })
    }

    /// Opens a file at its end, or makes it.
    fn open(path: PathBuf) -> Result<Current, Failure> {
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(MODE);
        let opened = options.open(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
        let (len, file) = opened.map_err(|error| Failure::record(&path, error))?;
        // A recorder that was killed in a write has left the begin of a message.
        Ok(Current { path, file, since: Instant::now(), len, room: Some(len), whole: len == 0 })
    }

    fn make_room(&mut self, len: u64) -> Result<(), Failure> {
        check_limit(&self.path, self.len, len)?;
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

    /// Removes what was written behind the bytes that the file keeps. The next bytes are written there.
    fn take_back(&mut self) {
        self.cut();
        // It fails for no file.
        let _ = self.file.seek(SeekFrom::Start(self.len));
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
    use relay::memory::lent::Lent;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }

    fn store(dir: &Path) -> Store {
        Store::new(dir.to_owned(), None)
    }

    fn block(bytes: &[u8], whole: bool, consumed: bool) -> Bytes<'_> {
        Bytes { bytes: Lent::from(bytes), whole, all: true, consumed, at: None, within: None }
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
        let store = store(&new);
        assert!(matches!(Recording::new(&new, 3, None, &store), Err(Failure::Recorded(dir)) if dir == new));
        assert_eq!(fs::read(&file).unwrap(), b"kept");
        assert!(matches!(prepare(&file), Err(Failure::Record { .. })));
        assert!(matches!(prepare(&dir.path().join("a/b")), Err(Failure::Record { .. })));
    }

    #[test]
    fn files_end_with_whole_messages_up_to_twice_their_size() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let rotation = Rotation { size: Some(10), ..Rotation::default() };
        let mut recording = Recording::new(dir.path(), 1, Some(rotation), &store).unwrap();
        let mut append = |bytes: &[u8], whole| {
            recording.make_room(100).unwrap();
            recording.append(&block(bytes, whole, true)).unwrap();
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
        let store = store(dir.path());
        let rotation = Rotation { size: Some(1), age: None, keep: Some(2) };
        let mut recording = Recording::new(dir.path(), 0, Some(rotation), &store).unwrap();
        for n in 0..5 {
            recording.make_room(1).unwrap();
            recording.append(&block(&[b'0' + n], true, true)).unwrap();
        }
        assert_eq!(names(dir.path()), ["cpu0.000003", "cpu0.000004"]);
        assert_eq!(recording.total().load(Ordering::Relaxed), 5);
    }

    #[test]
    fn unconsumed_bytes_need_no_reserved_room() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let mut recording = Recording::new(dir.path(), 0, None, &store).unwrap();
        for _ in 0..3 {
            recording.make_room(0).unwrap();
            recording.append(&block(b"abc", true, false)).unwrap();
        }
        recording.make_room(10).unwrap();
        recording.append(&block(b"d", true, true)).unwrap();
        drop(recording);
        assert_eq!(fs::read(dir.path().join("cpu0")).unwrap(), b"abcabcabcd");
    }

    #[test]
    fn reserved_room_is_returned_and_makes_no_file_longer() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let mut recording = Recording::new(dir.path(), 0, None, &store).unwrap();
        recording.make_room(1 << 20).unwrap();
        recording.append(&block(b"short", true, true)).unwrap();
        let found = || fs::metadata(dir.path().join("cpu0")).unwrap();
        assert_eq!(found().len(), 5);
        drop(recording);
        assert_eq!(found().len(), 5);
        assert!(found().blocks() * 512 < 1 << 20, "{} blocks", found().blocks());
    }
}
