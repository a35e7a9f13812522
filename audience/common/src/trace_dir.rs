//! A directory that is a CTF trace: `metadata`, a stream file for each CPU, and hidden files that CTF readers ignore.
//!
//! ```text
//! DIR/metadata        what the records mean; written before the packets that need it, replaced by a rename
//! DIR/cpu0 ...        packets, each written by one write(2)
//! DIR/.processes      the channel's file `processes`
//! ```

pub mod mend;
pub mod stream;

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::Failure;

/// Name of the file that says what records mean.
pub const METADATA: &str = "metadata";
/// Name of the copy of the channel's file `processes`.
pub const PROCESSES: &str = ".processes";
/// Mode of the files: other users might not have been allowed to read the buffers.
pub const MODE: u32 = 0o600;
/// Mode of the directories of pieces.
const DIR_MODE: u32 = 0o700;

/// The texts that belong to a channel's packets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Texts {
    /// The CTF text.
    pub metadata: String,
    /// Processes and threads.
    pub processes: String,
}

impl Texts {
    /// Reads the texts of a channel, or of a trace: `processes` is the name of that file, which may be missing.
    pub fn read(dir: &Path, processes: &str) -> Result<Texts, Failure> {
        let path = dir.join(METADATA);
        let metadata = fs::read(&path).map_err(|error| Failure::open(&path, error))?;
        let processes = fs::read(dir.join(processes)).unwrap_or_default();
        let [metadata, processes] =
            [metadata, processes].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Ok(Texts { metadata, processes })
    }

    /// Writes the texts into the directory of a trace. Each file is replaced at once.
    pub fn write(&self, dir: &Path) -> Result<(), Failure> {
        replace(dir, PROCESSES, &self.processes)?;
        replace(dir, METADATA, &self.metadata)
    }
}

/// Writes a file under a hidden name, and gives it its name when it is complete.
fn replace(dir: &Path, name: &str, text: &str) -> Result<(), Failure> {
    let (path, new) = (dir.join(name), dir.join(unfinished(name)));
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(MODE).open(&new)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&new, &path)
    };
    write().map_err(|error| Failure::record(&path, error))
}

/// The name of a file that is being written.
fn unfinished(name: &str) -> String {
    format!(".{}.new", name.trim_start_matches('.'))
}

/// Whether this program writes files of this name into a trace.
pub fn is_ours(name: &str) -> bool {
    let is_text = |text: &&str| name == *text || name == unfinished(text);
    cpu_of(name).is_some() || [METADATA, PROCESSES].iter().any(is_text)
}

/// Creates the directory of a trace, which must not exist, with its texts.
pub fn create(dir: &Path, texts: &Texts) -> Result<(), Failure> {
    let failure = |error| Failure::record(dir, error);
    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let new = dir.with_file_name(format!(".{name}.new"));
    // A recorder that was killed may have left it.
    remove(&new)?;
    DirBuilder::new().mode(DIR_MODE).create(&new).map_err(failure)?;
    texts.write(&new)?;
    fs::rename(&new, dir).map_err(failure)
}

/// Makes a trace the first piece of a recording: moves its files into a directory below.
///
/// The metadata go last. So a trace that was left half moved has them, and the next call moves the rest.
pub fn become_piece(dir: &Path) -> Result<(), Failure> {
    let piece = piece(dir, 0);
    match DirBuilder::new().mode(DIR_MODE).create(&piece) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(Failure::record(&piece, error)),
        _ => {}
    }
    let names = streams(dir)?.into_iter().map(|(cpu, _)| format!("cpu{cpu}"));
    for name in names.chain([PROCESSES.to_owned(), METADATA.to_owned()]) {
        match fs::rename(dir.join(&name), piece.join(&name)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Failure::record(&piece.join(&name), error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The numbers of a recording's pieces, in order, also of those without metadata.
pub fn piece_numbers(dir: &Path) -> Result<Vec<u64>, Failure> {
    let failure = |error| Failure::open(dir, error);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(failure)? {
        let entry = entry.map_err(failure)?;
        let number = piece_number(&entry.path());
        found.extend(number.filter(|_| entry.file_type().is_ok_and(|kind| kind.is_dir())));
    }
    found.sort_unstable();
    Ok(found)
}

/// The stream file of a CPU.
pub fn stream_path(dir: &Path, cpu: usize) -> PathBuf {
    dir.join(format!("cpu{cpu}"))
}

/// Whether a name is that of a stream file: `cpu0`.
pub fn cpu_of(name: &str) -> Option<usize> {
    let digits = name.strip_prefix("cpu")?;
    let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| digits.parse().ok())?
}

/// The stream files of a trace, ordered by CPU. Empty if the directory has none.
pub fn streams(dir: &Path) -> Result<Vec<(usize, PathBuf)>, Failure> {
    let failure = |error| Failure::open(dir, error);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(failure)? {
        let entry = entry.map_err(failure)?;
        if let Some(cpu) = entry.file_name().to_str().and_then(cpu_of) {
            found.push((cpu, entry.path()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The directories of a recording's traces, in order: the directory itself, or the pieces in it.
pub fn traces(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    if dir.join(METADATA).exists() {
        return Ok(vec![dir.to_owned()]);
    }
    let mut found = pieces(dir)?;
    found.retain(|piece| piece.join(METADATA).exists());
    Ok(found)
}

/// The directories of a recording's pieces, in order, also of those without metadata.
pub fn pieces(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let failure = |error| Failure::open(dir, error);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(failure)? {
        let path = entry.map_err(failure)?.path();
        if piece_number(&path).is_some() && path.is_dir() {
            found.push(path);
        }
    }
    found.sort_unstable_by_key(|path| piece_number(path));
    Ok(found)
}

/// The number of a piece, by its name: `000003`.
pub fn piece_number(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    let is_number = name.len() >= DIGITS && name.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| name.parse().ok())?
}

/// Least digits of a piece's number.
const DIGITS: usize = 6;

/// The directory of a piece.
pub fn piece(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:0DIGITS$}"))
}

/// Removes a piece, but no file that this program has not written.
pub fn remove(piece: &Path) -> Result<(), Failure> {
    let Ok(entries) = fs::read_dir(piece) else { return Ok(()) };
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if is_ours(name) {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(Failure::record(&path, error));
                }
                _ => {}
            }
        }
    }
    // A directory in which other files lie stays.
    let _ = fs::remove_dir(piece);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_and_pieces_are_recognized_by_name() {
        assert_eq!(cpu_of("cpu12"), Some(12));
        for name in ["cpu", "cpux", "cpu0.000001", "metadata", ".clock", "cpu99999999999999999999999"] {
            assert_eq!(cpu_of(name), None, "{name}");
        }
        assert_eq!(piece_number(Path::new("d/000012")), Some(12));
        for name in ["12", "d/00001", "d/0000x1", "cpu000001"] {
            assert_eq!(piece_number(Path::new(name)), None, "{name}");
        }
        assert_eq!(piece(Path::new("d"), 12), Path::new("d/000012"));
    }

    #[test]
    fn texts_are_replaced_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut texts = Texts { metadata: "/* CTF 1.8 */".into(), processes: "1 2 3 0 app".into() };
        texts.write(dir.path()).unwrap();
        texts.metadata.push('\n');
        texts.write(dir.path()).unwrap();
        assert_eq!(Texts::read(dir.path(), PROCESSES).unwrap(), texts);
        let names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(matches!(Texts::read(&dir.path().join("none"), PROCESSES), Err(Failure::Open { .. })));
    }

    #[test]
    fn a_trace_becomes_a_piece_however_far_it_was_moved() {
        let dir = tempfile::tempdir().unwrap();
        let texts = Texts { metadata: "/* CTF 1.8 */".into(), processes: "1 2 3 0 app".into() };
        texts.write(dir.path()).unwrap();
        for cpu in 0..2 {
            fs::write(stream_path(dir.path(), cpu), cpu.to_string()).unwrap();
        }
        let first = piece(dir.path(), 0);
        fs::create_dir(&first).unwrap();
        fs::rename(stream_path(dir.path(), 0), stream_path(&first, 0)).unwrap();
        become_piece(dir.path()).unwrap();
        assert_eq!(traces(dir.path()).unwrap(), std::slice::from_ref(&first));
        assert_eq!(Texts::read(&first, PROCESSES).unwrap(), texts);
        assert_eq!(streams(&first).unwrap().len(), 2);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(piece_numbers(dir.path()).unwrap(), [0]);
        create(&piece(dir.path(), 7), &texts).unwrap();
        assert_eq!(piece_numbers(dir.path()).unwrap(), [0, 7]);
    }

    #[test]
    fn foreign_files_of_a_piece_stay() {
        let dir = tempfile::tempdir().unwrap();
        let piece = piece(dir.path(), 0);
        create(&piece, &Texts::default()).unwrap();
        for name in ["cpu0", METADATA, PROCESSES, ".metadata.new"] {
            fs::write(piece.join(name), "x").unwrap();
        }
        let foreign = ["notes", "my metadata", "processes.txt", ".metadata.bak", "cpu0.gz"];
        foreign.iter().for_each(|name| fs::write(piece.join(name), "x").unwrap());
        remove(&piece).unwrap();
        assert_eq!(fs::read_dir(&piece).unwrap().count(), foreign.len());
        foreign.iter().for_each(|name| fs::remove_file(piece.join(name)).unwrap());
        remove(&piece).unwrap();
        assert!(!piece.exists());
        remove(&piece).unwrap();
    }
}
