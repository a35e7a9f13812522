//! Identity of the directory a daemon was mounted on: the line `point` of a state file.
//!
//! ```text
//! DEVICE:INODE:SECONDS.NANOSECONDS PATH      the time is the directory's birth; missing if unknown
//! ```
//!
//! The numbers still identify a directory after it was renamed. File systems reuse inode numbers, so the birth time is
//! there as well: it tells a new directory from a removed one.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nix::fcntl::OFlag;
use rustix::fs::{AtFlags, StatxFlags, statx};

/// A directory that a daemon was mounted on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    device: u64,
    inode: u64,
    /// Birth in seconds and nanoseconds since 1970, if the file system knows it.
    born: Option<(u64, u32)>,
    path: PathBuf,
}

impl Point {
    /// Looks up a directory without triggering an automounter.
    /// Nothing may be mounted on the directory.
    ///
    /// # Errors
    ///
    /// Those of open(2) and statx(2).
    pub fn of(path: &Path) -> io::Result<Point> {
        // O_PATH alone: with O_DIRECTORY the kernel would trigger an automounter.
        let directory = File::options().read(true).custom_flags(OFlag::O_PATH.bits()).open(path)?;
        let status = directory.metadata()?;
        Ok(Point { device: status.dev(), inode: status.ino(), born: born(&directory), path: path.to_owned() })
    }

    /// Returns the directory's path when it was looked up.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns whether both are the same directory, under any path.
    /// False if the birth time is unknown.
    pub fn is_same_directory(&self, other: &Point) -> bool {
        let numbers = |point: &Point| (point.device, point.inode, point.born);
        self.born.is_some() && numbers(self) == numbers(other)
    }
}

/// Returns the birth of an open directory, which the standard library does not know where the C library is musl.
fn born(directory: &File) -> Option<(u64, u32)> {
    let status = statx(directory, "", AtFlags::EMPTY_PATH, StatxFlags::BTIME).ok()?;
    let is_known = StatxFlags::from_bits_retain(status.stx_mask).contains(StatxFlags::BTIME);
    let seconds = u64::try_from(status.stx_btime.tv_sec).ok()?;
    is_known.then_some((seconds, status.stx_btime.tv_nsec))
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.device, self.inode)?;
        if let Some((seconds, nanoseconds)) = self.born {
            write!(f, ":{seconds}.{nanoseconds:09}")?;
        }
        write!(f, " {}", self.path.as_os_str().as_bytes().escape_ascii())
    }
}

/// The error for a text that is not a [`Point`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPoint;

impl FromStr for Point {
    type Err = NoPoint;

    fn from_str(text: &str) -> Result<Point, NoPoint> {
        let parse = |text: &str| text.parse().map_err(|_| NoPoint);
        let (numbers, path) = text.split_once(' ').ok_or(NoPoint)?;
        let mut numbers = numbers.split(':');
        let mut next = || numbers.next();
        let (device, inode, born) = (next().ok_or(NoPoint)?, next().ok_or(NoPoint)?, next());
        let born = born.map(|born| {
            let (seconds, nanoseconds) = born.split_once('.').ok_or(NoPoint)?;
            Ok((parse(seconds)?, nanoseconds.parse().map_err(|_| NoPoint)?))
        });
        if next().is_some() {
            return Err(NoPoint);
        }
        let path = PathBuf::from(OsString::from_vec(unescape(path.as_bytes()).ok_or(NoPoint)?));
        Ok(Point { device: parse(device)?, inode: parse(inode)?, born: born.transpose()?, path })
    }
}

/// Reverses [`slice::escape_ascii`].
fn unescape(mut text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    loop {
        let (byte, rest) = match text {
            [] => return Some(bytes),
            [b'\\', b'x', high, low, rest @ ..] => {
                let digits = [*high, *low];
                (u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?, rest)
            }
            [b'\\', b't', rest @ ..] => (b'\t', rest),
            [b'\\', b'r', rest @ ..] => (b'\r', rest),
            [b'\\', b'n', rest @ ..] => (b'\n', rest),
            [b'\\', byte @ (b'\'' | b'"' | b'\\'), rest @ ..] => (*byte, rest),
            [b'\\', ..] => return None,
            [byte, rest @ ..] => (*byte, rest),
        };
        bytes.push(byte);
        text = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_point_is_read() {
        for path in ["/mnt/relay", "/a b/\t\n\r\\\"'", "/Gr\u{fc}\u{df}e", ""] {
            for born in [None, Some((0, 0)), Some((1_764_415_650, 7))] {
                let point = Point { device: 45, inode: u64::MAX, born, path: path.into() };
                assert_eq!(point.to_string().parse(), Ok(point.clone()));
            }
        }
        let text = "45:1234:1764415650.000000007 /mnt/relay";
        assert_eq!(text.parse::<Point>().unwrap().to_string(), text);
        for wrong in [
            "",
            "45:1234",
            "45 /a",
            "45:x /a",
            "45:1:2 /a",
            "45:1:2.3:4 /a",
            "45:1 \\",
            "45:1 \\x1",
            "4:1 \\q",
        ] {
            assert_eq!(wrong.parse::<Point>(), Err(NoPoint), "{wrong:?}");
        }
    }

    #[test]
    fn renamed_directory_is_the_same_but_new_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("a")).unwrap();
        let before = Point::of(&at("a")).unwrap();
        std::fs::rename(at("a"), at("b")).unwrap();
        let after = Point::of(&at("b")).unwrap();
        assert!(before.is_same_directory(&after) && before.path() != after.path());
        std::fs::remove_dir(at("b")).unwrap();
        std::fs::create_dir(at("b")).unwrap();
        assert!(!before.is_same_directory(&Point::of(&at("b")).unwrap()));
        let unknown = Point { born: None, ..before };
        assert!(!unknown.is_same_directory(&unknown), "the inode number may have been reused");
    }
}
