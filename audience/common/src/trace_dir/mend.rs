//! Cuts what a recorder that was killed in a write has left: a packet that is not whole.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use relay::trace::packet::{HEADER_LEN, PacketError, PacketHeader, Packets};

use super::{MODE, streams, traces};
use crate::error::Failure;

/// The file that a recorder holds locked.
pub const LOCK: &str = ".lock";

/// Locks a recording's directory, until the result is dropped. `None` if a recorder is at work on it.
pub fn lock(dir: &Path) -> Result<Option<Flock<File>>, Failure> {
    let path = dir.join(LOCK);
    let opened = OpenOptions::new().write(true).create(true).truncate(false).mode(MODE).open(&path);
    match Flock::lock(opened.map_err(|error| Failure::record(&path, error))?, FlockArg::LockExclusiveNonblock)
    {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(Failure::record(&path, errno)),
    }
}

/// Cuts the torn ends of a recording's stream files. Returns how many bytes were cut.
///
/// Nothing is cut while a recorder is at work.
pub fn mend(dir: &Path) -> Result<u64, Failure> {
    match lock(dir)? {
        Some(lock) => mend_locked(dir, &lock),
        None => Ok(0),
    }
}

/// Cuts the torn ends of a recording that the caller has locked.
pub fn mend_locked(dir: &Path, _: &Flock<File>) -> Result<u64, Failure> {
    let mut cut = 0;
    for trace in traces(dir)? {
        for (_, path) in streams(&trace)? {
            let failure = |error| Failure::record(&path, error);
            let file = OpenOptions::new().read(true).write(true).open(&path).map_err(failure)?;
            let len = file.metadata().map_err(failure)?.len();
            let whole = whole_len(&file, len).map_err(failure)?;
            if let Some(whole) = whole.filter(|whole| *whole < len) {
                file.set_len(whole).map_err(failure)?;
                cut += len - whole;
            }
        }
    }
    Ok(cut)
}

/// The length of all whole packets at the start of a file. `None` if something else than a torn packet follows them.
fn whole_len(file: &File, len: u64) -> std::io::Result<Option<u64>> {
    let mut at = 0;
    while at < len {
        let mut bytes = [0; HEADER_LEN];
        let there = usize::try_from(len - at).unwrap_or(usize::MAX).min(HEADER_LEN);
        file.read_exact_at(&mut bytes[..there], at)?;
        if there < HEADER_LEN {
            let is_torn = matches!(Packets::new(&bytes[..there]).next(), Some(Err(PacketError::Torn { .. })));
            return Ok(is_torn.then_some(at));
        }
        let Ok(header) = PacketHeader::decode(&bytes, at) else { return Ok(None) };
        if header.packet_len() > len - at {
            return Ok(Some(at));
        }
        at += header.packet_len();
    }
    Ok(Some(at))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn torn_packet_is_cut_wherever_it_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cpu0");
        fs::write(dir.path().join("metadata"), "").unwrap();
        let header =
            PacketHeader { cpu: 0, begin: 1, end: 2, records_len: 20, padding: 0, number: 0, discarded: 0 };
        let mut packet = header.encode().to_vec();
        packet.extend([0; 20]);
        for torn in 0..packet.len() {
            fs::write(&path, [&packet[..], &packet[..], &packet[..torn]].concat()).unwrap();
            assert_eq!(mend(dir.path()).unwrap(), torn as u64);
            assert_eq!(fs::read(&path).unwrap(), [&packet[..], &packet[..]].concat());
        }
    }

    #[test]
    fn nothing_is_cut_while_a_recorder_is_at_work() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("metadata"), "").unwrap();
        fs::write(dir.path().join("cpu0"), relay::trace::packet::MAGIC.to_le_bytes()).unwrap();
        let lock = lock(dir.path()).unwrap();
        assert_eq!(mend(dir.path()).unwrap(), 0);
        drop(lock);
        assert_eq!(mend(dir.path()).unwrap(), 4);
    }

    #[test]
    fn what_is_no_packet_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("metadata"), "").unwrap();
        for content in [&b"text"[..], &[0; 100]] {
            fs::write(dir.path().join("cpu0"), content).unwrap();
            assert_eq!(mend(dir.path()).unwrap(), 0);
            assert_eq!(fs::read(dir.path().join("cpu0")).unwrap(), content);
        }
    }
}
