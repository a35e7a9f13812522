//! Reads through the page cache instead of read(2). The kernel fills it ahead of the caller, so a fill that consumed
//! would lose bytes. The daemon refuses all of them. Programs that fall back to read(2) get each byte. These tests
//! notice a kernel that changes.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::fcntl::{
    FcntlArg, OFlag, PosixFadviseAdvice, SpliceFFlags, copy_file_range, fcntl, posix_fadvise, splice,
};
use nix::sys::sendfile::sendfile;
use nix::unistd::pipe;
use relayfs_tests::lines::{Twins, assert_same, shell};
use relayfs_tests::{run, stdout_of, text, tool};

const LEN: usize = 100_000;

/// A way to read an open file, and its result.
type Way = fn(&Twins, &File) -> Result<usize, Errno>;

const WAYS: [(&str, Way, Result<usize, Errno>); 8] = [
    ("splice", |_, file| splice_to_pipe(file, None), Err(Errno::EINVAL)),
    ("splice at an offset", |_, file| splice_to_pipe(file, Some(4096)), Err(Errno::EINVAL)),
    (
        "sendfile to a pipe",
        |_, file| sendfile(pipe().unwrap().1, file, None, LEN), // its reader is gone, but that comes later
        Err(Errno::EINVAL),
    ),
    (
        "sendfile to a file",
        |_, file| sendfile(tempfile::tempfile().unwrap(), file, Some(&mut 0), LEN),
        Err(Errno::EINVAL),
    ),
    (
        "sendfile to a socket",
        |_, file| sendfile(&UnixStream::pair().unwrap().0, file, None, LEN),
        Err(Errno::EINVAL),
    ),
    (
        "copy_file_range to another file system",
        |_, file| copy_file_range(file, None, tempfile::tempfile().unwrap(), None, LEN),
        Err(Errno::EXDEV),
    ),
    (
        "copy_file_range within the mount",
        |twins, file| {
            let msg = OpenOptions::new().write(true).open(twins.mount.control("app/log", "msg")).unwrap();
            copy_file_range(file, None, msg, None, LEN)
        },
        Err(Errno::EINVAL),
    ),
    (
        "posix_fadvise, which only begins to read ahead",
        |_, file| posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_WILLNEED).map(|()| 0),
        Ok(0),
    ),
];

fn splice_to_pipe(file: &File, mut offset: Option<i64>) -> Result<usize, Errno> {
    let (_reader, writer) = pipe().unwrap();
    splice(file, offset.as_mut(), writer, None, LEN, SpliceFFlags::empty())
}

/// Refused with EINVAL, as the kernel's relay files on debugfs do it. Whatever the kernel tried, no byte is consumed.
#[test]
fn page_cache_fills_consume_nothing() {
    for (name, way, says) in WAYS {
        for twins in [Twins::medium(), Twins::overwriting()] {
            let mut file = File::open(twins.mount.path("cpu0")).unwrap();
            assert_eq!(way(&twins, &file), says, "{name}");
            let mut got = vec![0; 10];
            file.read_exact(&mut got).unwrap();
            assert_eq!(way(&twins, &file), says, "{name}, after a read");
            assert_eq!(file.stream_position().unwrap(), 10, "{name} moves nothing");
            file.read_to_end(&mut got).unwrap();
            assert_same(name, &got, &twins.content);
            assert_eq!(way(&twins, &file).unwrap_or(0), 0, "{name}, at the end");
        }
    }
}

/// mmap(2) of a buffer's file is refused, shared and private, and neither it nor readahead(2) consumes anything.
#[test]
fn mappings_are_refused_and_consume_nothing() {
    let twins = Twins::medium();
    let script = "
import ctypes, mmap, sys
f = open(sys.argv[1], 'rb', buffering=0)
libc = ctypes.CDLL(None, use_errno=True)
print(libc.readahead(f.fileno(), ctypes.c_int64(0), 100000))
for flags in mmap.MAP_SHARED, mmap.MAP_PRIVATE:
    for length in 1, 4096, 100000:
        try:
            mmap.mmap(f.fileno(), length, flags=flags, prot=mmap.PROT_READ)
        except OSError as error:
            print(error.strerror)
print(len(f.read(1000)))
";
    let mut python = tool("python3", "python3");
    let output = run(python.args(["-c", script]).arg(twins.mount.path("cpu0")));
    let expected = format!("0\n{}1000\n", "No such device\n".repeat(6));
    assert_eq!(text(&output.stdout), expected, "{}", text(&output.stderr));
    let mut got = twins.content[..1000].to_vec();
    got.extend(twins.mount.read("cpu0"));
    assert_same("after it", &got, &twins.content);
}

/// With O_DIRECT, set later, the kernel splices by reads, and delivers what it reads.
#[test]
fn splicing_a_file_set_to_direct_io_gets_every_byte() {
    let twins = Twins::medium();
    let file = File::open(twins.mount.path("cpu0")).unwrap();
    fcntl(&file, FcntlArg::F_SETFL(OFlag::O_DIRECT)).unwrap();
    let (reader, writer) = pipe().unwrap();
    let mut got = Vec::new();
    let mut reader = File::from(reader);
    loop {
        let len = splice(&file, None, writer.as_fd(), None, LEN, SpliceFFlags::empty()).unwrap();
        if len == 0 {
            break;
        }
        let mut part = vec![0; len];
        reader.read_exact(&mut part).unwrap();
        got.extend(part);
    }
    assert_same("splice", &got, &twins.content);
}

/// A program that tries sendfile(2) or the like first falls back to read(2) and gets each byte, also in the middle of
/// a file.
#[test]
fn programs_fall_back_to_reading() {
    tool("busybox", "busybox");
    let python = tool("python3", "python3");
    let python = format!("{} -c", python.get_program().display());
    let copy = "import os, shutil; shutil.copyfile(os.environ['F'], os.environ['OUT'])";
    let scripts = [
        "busybox cat $F".to_owned(),
        "busybox cat $F > $OUT; cat $OUT".to_owned(),
        "busybox cat $F | cat".to_owned(),
        "(head -n 3; busybox cat) < $F".to_owned(),
        "(head -n 3; busybox cat) < $F | cat".to_owned(),
        "cp $F $OUT; cat $OUT".to_owned(),
        "busybox cp $F $OUT; cat $OUT".to_owned(),
        format!("{python} \"{copy}\"; cat $OUT"),
    ];
    for script in scripts {
        Twins::medium().compare(&script);
        Twins::overwriting().compare(&script);
    }
}

/// libuv copies as many bytes as the size says. If other readers have read some, it tries sendfile(2) and pread(2)
/// for ever. Its copy has the bytes that are there, and zeroes for the rest, like that of tar or cpio.
#[test]
fn node_copies_what_there_is_and_ends() {
    let mut node = tool("node", "nodejs");
    let version = stdout_of(node.arg("--version"));
    let what = format!("node {}", text(&version));
    for mut twins in [Twins::medium(), Twins::overwriting()] {
        let copy = |twins: &Twins| {
            let out = tempfile::tempdir().unwrap();
            let mut command = shell("node -e 'fs.copyFileSync(process.env.F, process.env.OUT)'; cat $OUT");
            command.env("F", twins.mount.path("cpu0")).env("OUT", out.path().join("out"));
            let copied = stdout_of(&mut command);
            assert_eq!(twins.mount.read("cpu0"), b"", "{what}");
            copied
        };
        assert_same(&what, &copy(&twins), &twins.content);
        let before = twins.content.len();
        twins.refill(0..10_000);
        assert_same(&what, &copy(&twins), &[&twins.content[..], &vec![0; before]].concat());
    }
}

/// Python's own sendfile for sockets falls back too.
#[test]
fn python_sends_a_file_over_a_socket() {
    let script = "
import socket, sys, threading
ours, theirs = socket.socketpair()
got = bytearray()
def receive():
    while part := theirs.recv(65536):
        got.extend(part)
receiver = threading.Thread(target=receive)
receiver.start()
ours.sendfile(open(sys.argv[1], 'rb'))
ours.close()
receiver.join()
sys.stdout.buffer.write(got)
";
    let twins = Twins::medium();
    let mut python = tool("python3", "python3");
    let got = stdout_of(python.args(["-c", script]).arg(twins.mount.path("cpu0")));
    assert_same("socket.sendfile", &got, &twins.content);
}

/// Data that a program skips before it splices is still there for a read at the same place.
#[test]
fn refused_splice_at_another_position_skips_nothing() {
    let twins = Twins::medium();
    let mut file = File::open(twins.mount.path("cpu0")).unwrap();
    file.seek(SeekFrom::Start(500_000)).unwrap();
    assert_eq!(splice_to_pipe(&file, None), Err(Errno::EINVAL));
    assert_same("another reader", &twins.mount.read("cpu0"), &twins.content);
}
