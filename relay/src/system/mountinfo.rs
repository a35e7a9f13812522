//! The kernel's table of mounts, `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
//!
//! The table answers where paths cannot. Looking up a path below a dead or hanging FUSE mount fails or hangs, and a
//! path alone does not distinguish one mount from the next.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::system::descriptor;

/// File system type of relayfs mounts, in /proc/mounts and in fstab.
pub const FS_TYPE: &str = "fuse.relayfsd";

const MOUNTINFO: &str = "/proc/self/mountinfo";
/// The error text where /proc is missing.
const NO_PROC: &str = "/proc is not mounted: mount -t proc proc /proc";

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Number of this mount while it exists; the kernel reuses numbers.
    pub id: u64,
    /// Number of the mount that this one is mounted on.
    pub parent: u64,
    /// `major:minor` of the superblock; FUSE has one for each daemon.
    pub device: String,
    /// Path of the mount point.
    pub point: PathBuf,
    /// Type of the file system, with FUSE's subtype.
    pub fs_type: String,
    /// Source, as the mount's creator named it.
    pub source: String,
    /// Options of the superblock, comma-separated.
    pub super_options: String,
}

/// Returns the real path of a mount point, without a request to a file system mounted there.
pub fn resolve(path: &Path) -> io::Result<PathBuf> {
    // realpath(3) only reads links. A dead mount is in its way only if a slash or dot at the end asks it to enter. The
    // components leave those out.
    path.components().collect::<PathBuf>().canonicalize()
}

/// Opens the table, to read it or to poll it for changes.
/// The error says if /proc is not mounted.
pub fn open() -> io::Result<File> {
    descriptor::open(OpenOptions::new().read(true), MOUNTINFO).map_err(explained)
}

fn explained(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::NotFound => io::Error::new(io::ErrorKind::NotFound, NO_PROC),
        _ => error,
    }
}

/// Returns all mounts of this process's mount namespace.
pub fn read() -> io::Result<Vec<Entry>> {
    read_again(&open()?)
}

/// Returns all mounts as they are now, from a table that [`open`] has opened. Takes no further descriptor.
pub fn read_again(mut table: &File) -> io::Result<Vec<Entry>> {
    let mut text = Vec::new();
    table.rewind()?;
    table.read_to_end(&mut text)?;
    Ok(parse(&text))
}

/// Returns the mount that a path lookup of `point` ends in.
/// `None` if no file system is mounted exactly there.
pub fn topmost<'a>(entries: &'a [Entry], point: &Path) -> Option<&'a Entry> {
    let here = || entries.iter().filter(|entry| entry.point == point);
    // Of mounts stacked on one point, take the one without another on it. (The first root is its own parent.)
    here()
        .filter(|entry| !here().any(|other| other.parent == entry.id && other.id != entry.id))
        .find(|entry| !is_hidden(entries, entry))
}

/// Returns whether a later mount covers a directory on the way to this one. The table still has such a mount.
fn is_hidden(entries: &[Entry], entry: &Entry) -> bool {
    let covers = |other: &Entry, mount: &Entry| {
        other.parent == mount.parent
            && other.id != mount.parent
            && other.point != mount.point
            && mount.point.starts_with(&other.point)
    };
    let on = |mount: &&Entry| entries.iter().find(|other| other.id == mount.parent && other.id != mount.id);
    // A table that changes while it is read could name parents in a circle.
    let way = std::iter::successors(Some(entry), on).take(entries.len());
    way.into_iter().any(|mount| entries.iter().any(|other| covers(other, mount)))
}

/// Returns the mount that a directory lies in, without one that is mounted exactly there.
pub fn around<'a>(entries: &'a [Entry], dir: &Path) -> Option<&'a Entry> {
    dir.ancestors().skip(1).find_map(|outer| topmost(entries, outer))
}

/// Blocks until the given mount has left the table, unmounted lazily or not.
///
/// `table` comes from [`open`], and no other caller may poll it.
pub fn wait_until_gone(table: &File, id: u64, device: &str) -> io::Result<()> {
    loop {
        if !read_again(table)?.iter().any(|entry| entry.id == id && entry.device == device) {
            return Ok(());
        }
        // The kernel compares with the state at this descriptor's last poll, so a change since the read above is not
        // missed.
        let mut fds = [PollFd::new(table.as_fd(), PollFlags::POLLPRI)];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn parse(table: &[u8]) -> Vec<Entry> {
    table.split(|&b| b == b'\n').filter_map(parse_line).collect()
}

/// `ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [OPTIONAL...] - TYPE SOURCE SUPER_OPTIONS`
fn parse_line(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split(|&b| b == b' ');
    let mut text = || Some(String::from_utf8_lossy(fields.next()?).into_owned());
    let (id, parent, device, _root) = (text()?.parse().ok()?, text()?.parse().ok()?, text()?, text()?);
    let point = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let mut text = || Some(String::from_utf8_lossy(&unescape(rest.next()?)).into_owned());
    Some(Entry { id, parent, device, point, fs_type: text()?, source: text()?, super_options: text()? })
}

/// Reverses the kernel's octal escapes of space, tab, newline, backslash and `#`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n\
30 27 0:35 / /mnt/a\\040b\\134\\011\\012\\043 rw shared:7 master:2 - fuse.relayfsd my\\040source rw,user_id=0\n\
torn line\n\
42 27 0:39 / /mnt/x rw - autofs systemd-1 rw\n\
43 42 0:40 / /mnt/x rw - fuse.relayfsd relayfs rw\n\
44 43 0:41 / /mnt/x/y rw - tmpfs tmpfs rw\n";

    #[test]
    fn fields_of_a_line_are_unescaped() {
        let entries = parse(TABLE);
        assert_eq!(entries.len(), 5);
        assert_eq!(
            entries[1],
            Entry {
                id: 30,
                parent: 27,
                device: "0:35".into(),
                point: "/mnt/a b\\\t\n#".into(),
                fs_type: "fuse.relayfsd".into(),
                source: "my source".into(),
                super_options: "rw,user_id=0".into(),
            }
        );
    }

    #[test]
    fn topmost_of_stacked_mounts_is_found() {
        let entries = parse(TABLE);
        assert_eq!(topmost(&entries, Path::new("/mnt/x")).unwrap().id, 43);
        assert_eq!(topmost(&entries, Path::new("/mnt/x/y")).unwrap().id, 44);
        assert_eq!(topmost(&entries, Path::new("/mnt")), None);
    }

    #[test]
    fn hidden_mounts_are_passed_over() {
        const TABLE: &[u8] = b"\
27 27 254:0 / / rw - ext4 /dev/vda rw\n\
30 27 0:35 / /mnt/x rw - fuse.relayfsd relayfs rw\n\
31 27 0:36 / /srv rw - tmpfs tmpfs rw\n\
32 31 0:37 / /srv/x rw - fuse.relayfsd relayfs rw\n\
33 27 0:38 / /mnt rw - tmpfs tmpfs rw\n\
34 31 0:39 / /srv rw - tmpfs tmpfs rw\n\
35 34 0:40 / /srv/x rw - fuse.relayfsd relayfs rw\n";
        let entries = parse(TABLE);
        let topmost = |path| topmost(&entries, Path::new(path)).map(|entry| entry.id);
        assert_eq!(
            ["/", "/mnt", "/mnt/x", "/srv", "/srv/x"].map(topmost),
            [Some(27), Some(33), None, Some(34), Some(35)]
        );
        assert_eq!(around(&entries, Path::new("/mnt/x/y")).map(|entry| entry.id), Some(33));
    }

    #[test]
    fn mount_around_a_directory_is_the_nearest_above() {
        let entries = parse(TABLE);
        let around = |path| around(&entries, Path::new(path)).map(|entry| entry.id);
        assert_eq!(
            ["/mnt/x/y/z", "/mnt/x/y", "/mnt/x", "/"].map(around),
            [Some(44), Some(43), Some(27), None]
        );
    }

    #[test]
    fn invalid_escapes_stay() {
        assert_eq!(unescape(b"a\\04"), b"a\\04");
        assert_eq!(unescape(b"\\400\\"), b"\\400\\");
    }

    #[test]
    fn table_of_this_process_has_a_root() {
        assert!(topmost(&read().unwrap(), Path::new("/")).is_some());
    }
}
