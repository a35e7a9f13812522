//! The file object of a buffer: names, attributes, opening, and all refused calls. Labels are those of the kernel's
//! recorded behaviour, Fn of its table of the file object. The kernel's file has size 0 and no position. This file
//! has the stream's: see `seek.rs`.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, OFlag, PosixFadviseAdvice, fallocate, fcntl, posix_fadvise};
use nix::poll::PollFlags;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::stat::{Mode, SFlag, mknod};
use nix::unistd::{getegid, geteuid};
use relay::layout::paths;
use relay_producer::Channel;
use relayfs_tests::buffer::{Buffer, MIB, Shape, poll_now, read_once, runs};
use relayfs_tests::{Mount, eventually, exit_code, program, run, stdout_of, text, tool};

/// Returns the errno of a refusal.
#[track_caller]
fn refusal<T>(result: io::Result<T>) -> Errno {
    match result {
        Ok(_) => panic!("not refused"),
        Err(error) => Errno::from_raw(error.raw_os_error().expect("an errno")),
    }
}

/// Returns a mount whose owner may open files for writing too.
fn writable(spec: &str) -> Mount {
    Mount::new(&["--channel", &format!("cpu:{spec}"), "-o", "mode=0600"])
}

fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Each configured CPU has a file. It is a regular file that only its owner may read.
#[test]
fn every_cpu_has_a_file() {
    let before = SystemTime::now();
    let mount = Mount::new(&[]);
    let n_cpus: usize =
        text(&stdout_of(tool("getconf", "libc-bin").arg("_NPROCESSORS_CONF"))).trim().parse().unwrap();
    let mut names: Vec<String> = (0..n_cpus).map(|cpu| format!("cpu{cpu}")).collect();
    for name in &names {
        let metadata = fs::metadata(mount.path(name)).unwrap();
        assert_eq!(metadata.mode(), libc::S_IFREG | 0o400, "F1");
        assert_eq!((metadata.uid(), metadata.gid()), (geteuid().as_raw(), getegid().as_raw()), "F1");
        assert_eq!((metadata.nlink(), metadata.size(), metadata.blocks()), (1, 0, 0), "F1");
        assert_eq!(metadata.blksize(), MIB as u64, "what cat asks for at a time");
        let modified = metadata.modified().unwrap();
        assert!(before <= modified && modified <= SystemTime::now(), "F4: {modified:?}");
    }
    names.insert(0, ".relay".to_owned());
    names.sort();
    assert_eq!(names_in(mount.point()), names, "F1");
    assert_eq!(fs::metadata(mount.point()).unwrap().mode(), libc::S_IFDIR | 0o755);
}

/// A global channel has one file, with the messages of all CPUs in their order of time.
#[test]
fn global_channel_has_one_file() {
    let mount = Mount::new(&["--channel", "app/log:global:subbuf-size=1000"]);
    assert_eq!(names_in(&mount.path("app")), ["log0"], "F3");
    let channel = mount.channel("app/log");
    assert_eq!(channel.n_bufs(), 1, "F3");
    for (cpu, letter) in [(0, b'a'), (1, b'b'), (0, b'c')] {
        mount.send_to("app/log", cpu, &[&[letter; 100]]);
    }
    assert_eq!(runs(&mount.read("app/log0")), "a*100 b*100 c*100", "F3");
}

/// The size is the number of bytes written since creation, with the unfinished sub-buffer. Neither reads nor resets
/// lower it.
#[test]
fn size_is_number_of_written_bytes() {
    let [a, b] = [Shape::new(4096, 4), Shape::new(1000, 3)];
    let shapes = [a, a.direct(), b, b.direct()];
    for shape in
        shapes.into_iter().flat_map(|shape| [shape, shape.over()]).chain([Shape::new(8192, 2).over()])
    {
        let (b, s) = (Buffer::new(shape), shape.s);
        let check = |size: usize| {
            for metadata in [b.file().metadata(), fs::metadata(b.mount().path("cpu0"))].map(Result::unwrap) {
                assert_eq!(
                    (metadata.size(), metadata.blocks()),
                    (size as u64, size.div_ceil(512) as u64),
                    "F5"
                );
            }
            assert_eq!(b.stat("bytes"), size, "F5");
        };
        check(0);
        b.write("a", s / 4);
        check(s / 4);
        b.write("b", s);
        check(s + s / 4);
        b.write("c", s / 4);
        let size = s + 2 * (s / 4);
        check(size);
        for _ in 0..2 {
            b.flush();
            check(size);
        }
        b.write("x", s + 1);
        check(size);
        b.reset();
        check(size);
        b.write("d", 10);
        check(size + 10);
        b.read(MIB);
        check(size + 10);
        b.audit();
    }
}

/// The modification time changes when a message is written, and only then.
#[test]
fn modification_time_changes_with_the_data() {
    let b = Buffer::new(Shape::new(1000, 3));
    let times = || {
        let metadata = fs::metadata(b.mount().path("cpu0")).unwrap();
        (metadata.modified().unwrap(), (metadata.ctime(), metadata.ctime_nsec()))
    };
    let mut last = times();
    for letter in ["a", "b"] {
        b.write(letter, 700);
        let now = times();
        assert!(now > last, "F4: {now:?} after {last:?}");
        last = now;
        b.read(100);
        b.flush();
        b.poll();
        b.reset();
        b.write("x", 1001);
        assert_eq!(times(), last, "F4");
    }
}

/// A buffer's file can be opened with all flags. No open creates or truncates it.
#[test]
fn file_can_be_opened_with_all_flags() {
    let mount = writable("subbuf-size=4096");
    let path = mount.path("cpu0");
    mount.send(0, &[&[b'a'; 4000], &[b'b'; 4000]]);
    let open = |flags: OFlag| nix::fcntl::open(&path, flags, Mode::S_IRUSR);
    let access = [OFlag::O_RDONLY, OFlag::O_WRONLY, OFlag::O_RDWR];
    let more =
        [OFlag::empty(), OFlag::O_NONBLOCK, OFlag::O_APPEND, OFlag::O_CREAT, OFlag::O_TRUNC, OFlag::O_SYNC];
    for flags in access.into_iter().flat_map(|access| more.map(|more| access | more)) {
        let fd = open(flags).unwrap_or_else(|errno| panic!("F6: {flags:?}: {errno}"));
        let kept = OFlag::O_ACCMODE | OFlag::O_NONBLOCK | OFlag::O_APPEND;
        let told = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL).unwrap());
        assert_eq!(told & kept, flags & kept, "F6");
        assert_eq!(File::from(fd).metadata().unwrap().len(), 8000, "F6, F16: {flags:?}");
    }
    assert_eq!(open(OFlag::O_DIRECTORY).unwrap_err(), Errno::ENOTDIR, "F7");
    assert_eq!(open(OFlag::O_CREAT | OFlag::O_EXCL).unwrap_err(), Errno::EEXIST, "F7");
    assert_eq!(open(OFlag::O_DIRECT).unwrap_err(), Errno::EINVAL, "F7");
    assert_eq!(runs(&mount.read("cpu0")), "a*4000 b*4000", "F16: nothing was lost");
}

/// Other users can see that the file exists, and no more.
#[test]
fn other_users_may_not_open_it() {
    assert!(geteuid().is_root(), "this test takes root, to run programs as another user");
    let mount = Mount::new(&[]);
    mount.send(0, &[b"secret"]);
    fs::set_permissions(mount.point().parent().unwrap(), Permissions::from_mode(0o755)).unwrap();
    let script = "stat -c %s cpu0; test -r cpu0 || echo unreadable; cat cpu0; echo x > cpu0; ls .relay/channels/cpu >&2";
    let output = run(Command::new("sh").args(["-c", script]).uid(1000).gid(1000).current_dir(mount.point()));
    assert_eq!(text(&output.stdout), "6\nunreadable\n", "F8");
    let complaints = text(&output.stderr);
    assert_eq!(complaints.matches("Permission denied").count(), 2, "F8: {complaints}");
    assert_eq!(text(&mount.read("cpu0")), "secret");
}

/// No process can write through the file, whatever it was opened for. An attempt changes nothing.
#[test]
fn writing_is_refused() {
    let mount = writable("subbuf-size=4096");
    let path = mount.path("cpu0");
    mount.send(0, &[b"data"]);
    assert_eq!(refusal(File::open(&path).unwrap().write(b"x")), Errno::EBADF, "F9");
    for append in [false, true] {
        for read in [false, true] {
            let mut file = OpenOptions::new().read(read).write(true).append(append).open(&path).unwrap();
            assert_eq!(refusal(file.write(b"x")), Errno::EINVAL, "F10");
            assert_eq!(refusal(file.write(&vec![b'x'; 3 * MIB])), Errno::EINVAL, "F10");
            assert_eq!(
                refusal(file.write_vectored(&[IoSlice::new(b"x"), IoSlice::new(b"y")])),
                Errno::EINVAL,
                "F10"
            );
            assert_eq!(file.write(b"").unwrap(), 0, "F10: FUSE does not ask");
            assert_eq!(refusal(file.write_at(b"x", 2)), Errno::EINVAL, "F11");
        }
    }
    let write_only = OpenOptions::new().write(true).open(&path).unwrap();
    assert_eq!(refusal(io::Read::read(&mut &write_only, &mut [0; 10])), Errno::EBADF, "F12");
    assert_eq!(poll_now(&write_only), PollFlags::empty(), "F12");
    assert_eq!(fs::metadata(&path).unwrap().len(), 4);
    assert_eq!(mount.read("cpu0"), b"data");
}

/// Calls without a meaning for a buffer's file are refused. Calls that would read ahead consume nothing.
#[test]
fn other_calls_change_nothing() {
    let mount = writable("subbuf-size=4096");
    let path = mount.path("cpu0");
    mount.send(0, &[b"data"]);
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    assert_eq!(refusal(file.sync_all()), Errno::EINVAL, "F13");
    assert_eq!(refusal(file.sync_data()), Errno::EINVAL, "F13");
    assert_eq!(fallocate(&file, FallocateFlags::empty(), 0, 100), Err(Errno::EOPNOTSUPP), "F13");
    for advice in [PosixFadviseAdvice::POSIX_FADV_WILLNEED, PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL] {
        assert_eq!(posix_fadvise(&file, 0, 0, advice), Ok(()), "F13");
    }
    let script = "
import ctypes, fcntl, os, sys, termios
libc = ctypes.CDLL(None, use_errno=True)
libc.preadv2.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_int]
fd = os.open(sys.argv[1], os.O_RDONLY)
def tell(name, call):
    try:
        print(name, call())
    except OSError as error:
        print(name, error.strerror)
tell('ioctl', lambda: fcntl.ioctl(fd, termios.TCGETS, bytes(60)))
tell('ioctl', lambda: fcntl.ioctl(fd, 0x7b01, bytes(60)))
tell('lseek', lambda: os.lseek(fd, 0, 42))
tell('pread', lambda: os.pread(fd, 10, -1))
def preadv2(size, flags):
    buffer = ctypes.create_string_buffer(size)
    iovec = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), size)
    n = libc.preadv2(fd, iovec, 1, -1, flags)
    if n < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return buffer.raw[:n]
tell('preadv2 RWF_NOWAIT', lambda: preadv2(2, os.RWF_NOWAIT))
tell('readahead', lambda: libc.readahead(fd, ctypes.c_long(0), ctypes.c_size_t(4096)))
tell('preadv2', lambda: preadv2(2, 0))
tell('preadv2', lambda: preadv2(10, 0))
tell('preadv2', lambda: preadv2(10, 0))
";
    let said = stdout_of(tool("python3", "python3").args(["-c", script]).arg(&path));
    let expected = "\
ioctl Inappropriate ioctl for device
ioctl Inappropriate ioctl for device
lseek Invalid argument
pread Invalid argument
preadv2 RWF_NOWAIT Operation not supported
readahead 0
preadv2 b'da'
preadv2 b'ta'
preadv2 b''
";
    assert_eq!(text(&said), expected, "F13, F15, F19, F20, F21");
}

/// Size, mode, owner and time cannot be set. A shell that truncates the file at open does no harm.
#[test]
fn attributes_cannot_be_set() {
    let mount = writable("subbuf-size=4096");
    let path = mount.path("cpu0");
    mount.send(0, &[&[b'a'; 4096], &[b'b'; 4000]]);
    assert_eq!(refusal(File::open(&path).unwrap().set_len(0)), Errno::EINVAL, "F16");
    let both = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    for len in [0, 100, 8096, 1 << 40] {
        assert_eq!(refusal(both.set_len(len)), Errno::EINVAL, "F16");
        assert_eq!(nix::unistd::truncate(&path, len as i64), Err(Errno::EINVAL), "F16");
    }
    let truncated = OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
    assert_eq!(truncated.metadata().unwrap().len(), 8096, "F16");
    assert_eq!(refusal(fs::set_permissions(&path, Permissions::from_mode(0o644))), Errno::EPERM, "F17");
    assert_eq!(refusal(std::os::unix::fs::chown(&path, Some(geteuid().as_raw()), None)), Errno::EPERM, "F17");
    assert_eq!(refusal(both.set_modified(SystemTime::UNIX_EPOCH)), Errno::EPERM, "F17");
    assert_eq!(fs::metadata(&path).unwrap().mode(), libc::S_IFREG | 0o600, "F17");
    assert_eq!(runs(&mount.read("cpu0")), "a*4096 b*4000", "F16: what is unread, stays");
    // A file for writing accepts truncation before the write.
    for name in ["flush", "reset", "msg"] {
        assert_eq!(nix::unistd::truncate(&mount.control("cpu", name), 0), Ok(()), "{name}");
    }
}

/// The tree changes by its channels only: no entry can be created, removed or renamed.
#[test]
fn tree_cannot_be_changed() {
    let mount = Mount::new(&["--channel", "app/log"]);
    for (dir, file, subdir) in [
        (mount.path(""), mount.path("cpu0"), mount.path("app")),
        (mount.path("app"), mount.path("app/log0"), mount.path("app")),
        (mount.path(".relay"), mount.path(".relay/version"), mount.path(".relay/channels")),
        (mount.path(".relay/channels"), mount.control("cpu", "mode"), mount.path(".relay/channels/cpu")),
        (mount.control("cpu", ""), mount.control("cpu", "stats"), mount.control("app/log", "")),
    ] {
        let new = dir.join("new");
        let names = names_in(&dir);
        assert_eq!(refusal(File::create(&new)), Errno::EACCES, "F18");
        // `directories` has those that make channels.
        if !dir.starts_with(mount.path(".relay/channels")) {
            assert_eq!(refusal(fs::create_dir(&new)), Errno::EACCES, "F18");
        }
        assert_eq!(refusal(symlink("cpu0", &new)), Errno::EACCES, "F18");
        assert_eq!(mknod(&new, SFlag::S_IFIFO, Mode::S_IRUSR, 0), Err(Errno::EACCES), "F18");
        assert_eq!(refusal(fs::remove_file(&file)), Errno::EPERM, "F18");
        assert_eq!(refusal(fs::remove_dir(&subdir)), Errno::EPERM, "F18");
        assert_eq!(refusal(fs::rename(&file, &new)), Errno::EPERM, "F18");
        assert_eq!(refusal(fs::hard_link(&file, &new)), Errno::EPERM, "F18");
        assert_eq!(names_in(&dir), names, "F18");
    }
}

/// inotify reports opens, reads and closes. It reports no written messages.
#[test]
fn inotify_sees_readers_but_no_data() {
    let mount = Mount::new(&["--subbuf-size", "1000"]);
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).unwrap();
    inotify.add_watch(&mount.path("cpu0"), AddWatchFlags::IN_ALL_EVENTS).unwrap();
    let seen = || match inotify.read_events() {
        Ok(events) => events.iter().map(|event| event.mask).collect(),
        Err(errno) => {
            assert_eq!(errno, Errno::EAGAIN);
            Vec::new()
        }
    };
    mount.send(0, &[&[b'a'; 700], &[b'b'; 700]]);
    mount.poke("cpu", "flush");
    assert_eq!(seen(), [], "F22: written, switched, flushed");
    let file = File::open(mount.path("cpu0")).unwrap();
    assert_eq!(seen(), [AddWatchFlags::IN_OPEN], "F22");
    assert_eq!(read_once(&file, MIB).len(), 1400);
    assert_eq!(seen(), [AddWatchFlags::IN_ACCESS], "F22");
    assert_eq!(read_once(&file, MIB).len(), 0);
    assert_eq!(seen(), [], "F22: read nothing");
    drop(file);
    // A process that another test just starts may have it open for a moment.
    let mut last = Vec::new();
    eventually("the file being closed", || {
        last.extend(seen());
        !last.is_empty()
    });
    assert_eq!(last, [AddWatchFlags::IN_CLOSE_NOWRITE], "F22");
}

/// A geometry without room for a message is refused at the start.
#[test]
fn impossible_geometries_are_refused() {
    for spec in ["subbuf-size=0", "n-subbufs=0", "subbuf-size=64M:n-subbufs=64K", "subbuf-size=16:header=16"]
    {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(program("relayfsd"));
        let output = run(command.args(["-f", "--channel", &format!("cpu:{spec}")]).arg(dir.path()));
        assert_ne!(exit_code(output.status), 0, "F24: {spec}");
        assert!(!output.stderr.is_empty(), "F24: {spec}");
        assert_eq!(names_in(dir.path()), Vec::<String>::new(), "F24: {spec}");
    }
}

/// A buffer takes its ring's size in memory, rounded up to pages.
#[test]
fn memory_is_rounded_up_to_pages() {
    let shapes =
        [(1, 1, 4096), (100, 5, 4096), (1000, 3, 4096), (8193, 2, 20480), (4096, 3, 12288), (8192, 2, 16384)];
    let channels: Vec<String> = shapes
        .iter()
        .enumerate()
        .map(|(i, (s, n, _))| format!("ch-{}:subbuf-size={s}:n-subbufs={n}", (b'a' + i as u8) as char))
        .collect();
    let args: Vec<&str> = channels.iter().flat_map(|channel| ["--channel", channel]).collect();
    let mount = Mount::new(&[args.as_slice(), &["--subbuf-size", "1M", "--n-subbufs", "1"]].concat());
    let state = paths::state_dir(mount.point(), geteuid().as_raw());
    let is_first = |name: &str| name.ends_with(".data0");
    let mut sizes: Vec<u64> = names_in(&state)
        .iter()
        .filter(|name| is_first(name))
        .map(|name| fs::metadata(state.join(name)).unwrap().len())
        .collect();
    sizes.sort();
    let mut expected: Vec<u64> = shapes.iter().map(|shape| shape.2).chain([1 << 20]).collect();
    expected.sort();
    assert_eq!(sizes, expected, "F25");
}

/// Opening a channel that exists attaches to it. It lives while an open file or a connection holds it, or it has
/// unread data. The next channel of that name is new.
#[test]
fn name_is_attached_to_and_used_again() {
    let mount = Mount::new(&[]);
    let path = mount.path("app/log0");
    let open = |spec: &str| -> Channel {
        Channel::builder(mount.point(), "app/log")
            .create(true)
            .geometry(spec.parse().unwrap())
            .open()
            .unwrap()
    };
    let first = open("subbuf-size=1000:n-subbufs=2");
    let second = open("subbuf-size=5000:overwrite");
    assert!(first.created() && !second.created(), "F27, 0");
    assert_eq!(second.geometry(), first.geometry(), "F27, 0");
    mount.send_to("app/log", 0, &[b"left"]);
    drop((first, second));
    let file = File::open(&path).unwrap();
    assert_eq!(read_once(&file, 10), b"left", "unread data keeps a channel");

    let third = open("subbuf-size=3000");
    assert!(!third.created(), "F27: the open file has kept it");
    mount.send_to("app/log", 0, &[b"more"]);
    assert_eq!(read_once(&file, 10), b"more", "F27");
    drop(third);
    drop(file);
    eventually("the end of the channel", || !path.exists());
    assert!(!mount.path("app").exists() && !mount.control("app/log", "").exists(), "F2: the names vanish");
    let last = open("subbuf-size=3000");
    assert!(last.created(), "F27");
    assert_eq!((last.geometry().subbuf_size(), fs::metadata(&path).unwrap().len()), (3000, 0), "F27");
}

/// After `umount -l` the names are gone at once. Readers with open files get POLLERR, and read the rest to its end.
#[test]
fn unread_data_can_be_read_after_unmounting() {
    for mode in ["no-overwrite", "overwrite"] {
        let mut mount = Mount::new(&["--channel", &format!("cpu:subbuf-size=8192:n-subbufs=2:{mode}")]);
        let file = File::open(mount.path("cpu0")).unwrap();
        mount.send(0, &[&[b'a'; 8092], &[b'b'; 200]]);
        assert_eq!(runs(&read_once(&file, 10)), "a*10", "4.10");
        mount.detach();
        assert!(!mount.path("cpu0").exists(), "F2");
        eventually("poll telling of the end", || poll_now(&file) == PollFlags::POLLERR);
        assert_eq!(file.metadata().unwrap().len(), 8292, "F2, 4.10");
        assert_eq!(runs(&read_once(&file, 50)), "a*50", "4.10");
        assert_eq!(runs(&read_once(&file, MIB)), "a*8032 b*200", "4.10");
        assert_eq!(runs(&read_once(&file, MIB)), "", "4.10");
        assert!(mount.daemon().is_running());
        drop(file);
        assert_eq!(exit_code(mount.daemon().wait()), 0);
    }
}
