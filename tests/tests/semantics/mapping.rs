//! mmap(2) of `map/cpuN` and of `control`, by a program in C: the kernel's table (4.8, of files that it can map), as
//! far as FUSE asks. A map shows the ring at any time. `cpuN` is read beside it.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::thread;

use nix::errno::Errno;
use nix::fcntl::{SpliceFFlags, splice};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::sendfile::sendfile;
use nix::sys::signal::Signal;
use nix::sys::statvfs::statvfs;
use nix::unistd::pipe;
use relay_producer::{BatchOptions, Channel, Wait};
use relayfs_tests::buffer::{Buffer, MIB, Shape, runs};
use relayfs_tests::c::{Mapper, Program};
use relayfs_tests::direct::on_cpu;
use relayfs_tests::users::where_users_mount;
use relayfs_tests::{Mount, Process, eventually, exit_code, run, stdout_of, text, tool};

/// The live ring, beside read() of the buffer's file: neither affects the other.
#[test]
fn map_shows_the_live_ring_while_read_consumes() {
    for shape in [Shape::new(4096, 2), Shape::new(4096, 2).over(), Shape::new(4096, 2).direct()] {
        let b = Buffer::new(shape);
        let mut c = Mapper::start();
        assert_eq!(c.open(0, &b.mount().path("cpu0"), "r"), "ok");
        assert_eq!(c.open(1, &b.mount().control("cpu", "map/cpu0"), "r"), "ok");
        assert_eq!(c.tell("map 0 1 8192 0 r shared"), "ok");
        assert_eq!(c.tell("show 0 0 8192"), r"\0*8192");
        assert_eq!(c.tell("poll 0 0"), "idle");
        b.write("a", 3000);
        assert_eq!(c.tell("show 0 0 8192"), r"a*3000 \0*5192", "live, without mapping it again: {shape}");
        b.write("b", 3000);
        assert_eq!(c.tell("show 0 0 8192"), r"a*3000 \0*1096 b*3000 \0*1096");
        assert_eq!(c.tell("poll 0 -1"), "in rdnorm");
        assert_eq!(c.tell("read 0 1000"), "a*1000");
        assert_eq!(b.read(MIB), "a*2000 b*3000", "mapping consumes nothing, and all read one stream");
        b.note_delivered(1000);
        assert_eq!(c.tell("poll 0 0"), "idle");
        assert_eq!(c.tell("show 0 0 8192"), r"a*3000 \0*1096 b*3000 \0*1096", "reading clears nothing");
        b.write("c", 2000);
        b.reset();
        assert_eq!(c.tell("show 0 0 8192"), r"c*2000 a*1000 \0*1096 b*3000 \0*1096", "nor does a reset");
        assert_eq!(c.tell("read 0 1000"), "nothing");
        b.write("d", 10);
        assert_eq!(c.tell("show 0 0 12"), "d*10 c*2");
        b.audit();
    }
}

/// Any length and offset, since FUSE does not ask. Behind the ring there is nothing.
#[test]
fn map_takes_any_length_and_offset() {
    let b = Buffer::new(Shape::new(1000, 9)); // three pages, not quite
    b.write("a", 1000);
    b.write("bcdef", 1000);
    let mut c = Mapper::start();
    assert_eq!(c.open(0, &b.mount().control("cpu", "map/cpu0"), "r"), "ok");
    for (len, offset, answer) in [
        (12288, 0, "ok"),
        (12287, 0, "ok"),
        (9000, 0, "ok"),
        (4096, 0, "ok"),
        (1, 0, "ok"),
        (12289, 0, "ok"),
        (16384, 0, "ok"),
        (12288, 4096, "ok"),
        (0, 0, "EINVAL"),
        (4096, 100, "EINVAL"),
    ] {
        assert_eq!(c.tell(&format!("map 0 0 {len} {offset} r shared")), answer, "4.8: {len} at {offset}");
        if answer == "ok" {
            let first = if offset == 0 { "a*1" } else { "e*1" };
            assert_eq!(c.tell("show 0 0 1"), first);
            let end = 12288 - offset;
            if len + 4095 >= end {
                assert_eq!(c.tell(&format!("show 0 {} 1", end - 1)), r"\0*1");
            }
            if len > end {
                assert_eq!(c.tell(&format!("show 0 {end} 1")), "SIGBUS", "4.8");
            }
            assert_eq!(c.tell("unmap 0"), "ok");
        }
    }
    assert_eq!(c.tell("map 0 0 8192 4096 r shared"), "ok");
    assert_eq!(c.tell("show 0 0 1904"), "e*904 f*1000", "4.8: it starts at byte 4096 of the ring");
}

/// The right to read does not let a user write by a map. The option `mode` can give the right to write.
#[test]
fn map_is_writable_only_for_users_who_may_write() {
    let mut mount = Mount::new(&["--subbuf-size=4096", "--n-subbufs=2", "-o", "mode=0600"]);
    mount.send(0, &[&[b'a'; 4000]]);
    let mut c = Mapper::start();
    let ring = mount.control("cpu", "map/cpu0");
    assert_eq!(c.open(0, &ring, "r"), "ok");
    assert_eq!(c.tell("map 0 0 8192 0 rw shared"), "EACCES", "4.8");
    assert_eq!(c.tell("map 0 0 8192 0 w shared"), "EACCES", "4.8");
    assert_eq!(c.tell("map 0 0 8192 0 rx shared"), "ok", "4.8");
    assert_eq!(c.tell("protect 0 rw"), "EACCES", "4.8");
    assert_eq!(c.tell("poke 0 0 x"), "SIGSEGV");
    assert_eq!(c.tell("advise 0"), "ok", "4.8: madvise, msync, mlock");
    assert_eq!(c.tell("grow 0 4096"), "ok", "4.8: shrinking");
    assert_eq!(c.tell("grow 0 8192"), "ok", "the kernel's relay says EFAULT; FUSE does not ask");
    assert_eq!(c.tell("show 0 0 8192"), r"a*4000 \0*4192");

    assert_eq!(c.tell("map 1 0 8192 0 rw private"), "ok", "4.8");
    assert_eq!(c.tell("poke 1 0 x"), "ok");
    assert_eq!(c.tell("show 1 0 4000"), "x*1 a*3999", "4.8: copied on write");
    assert_eq!(c.tell("show 0 0 4000"), "a*4000", "4.8: the ring is as it was");

    assert_eq!(c.open(2, &ring, "rw"), "ok");
    assert_eq!(c.tell("map 2 2 8192 0 rw shared"), "ok", "4.8");
    assert_eq!(c.tell("poke 2 1 x"), "ok");
    assert_eq!(c.tell("show 0 0 4000"), "a*1 x*1 a*3998");
    assert_eq!(runs(&mount.read("cpu0")), "a*1 x*1 a*3998", "4.8: read() returns it");
    assert_eq!(c.open(3, &ring, "w"), "ok");
    assert_eq!(c.tell("map 3 3 8192 0 r shared"), "EACCES");
    assert_eq!(exit_code(mount.end(Signal::SIGTERM)), 0);
}

/// Descriptors and processes share a map's memory. It stays when its descriptor goes.
#[test]
fn map_outlives_descriptors_and_daemon() {
    let mut mount = Mount::new(&["--subbuf-size=4096", "--n-subbufs=2"]);
    let open = || Channel::builder(mount.point(), "app/log").create(true).open().unwrap();
    let channel = open();
    let mut c = Mapper::start();
    for fd in 0..2 {
        assert_eq!(c.open(fd, &mount.control("app/log", "map/cpu0"), "r"), "ok");
        assert_eq!(c.tell(&format!("map {fd} {fd} 8192 0 r shared")), "ok");
    }
    let send = |message: &[u8]| assert_eq!(mount.send_to("app/log", 0, &[message]).written, 1);
    send(b"aaa");
    for map in 0..2 {
        assert_eq!(c.tell(&format!("show {map} 0 4")), r"a*3 \0*1", "two opens share");
    }
    assert_eq!(c.tell("child 1 0 8"), "forked");
    send(b"bbb");
    assert_eq!(c.tell(""), r"a*3 b*3 \0*2", "4.8: a child sees the same, live");
    assert_eq!(c.tell("close 0"), "ok");
    assert_eq!(c.tell("close 1"), "ok");
    send(b"cc");
    assert_eq!(c.tell("show 0 0 9"), r"a*3 b*3 c*2 \0*1", "4.8: live after close");
    assert_eq!(mount.read("app/log0"), b"aaabbbcc");
    drop(channel);
    eventually("the end of the channel", || !mount.path("app/log0").exists());
    assert_eq!(c.tell("show 0 0 9"), r"a*3 b*3 c*2 \0*1", "4.8: after the channel");

    let _next = open();
    send(b"next");
    assert_eq!(c.open(2, &mount.control("app/log", "map/cpu0"), "r"), "ok");
    assert_eq!(c.open(3, &mount.path("app/log0"), "r"), "ok");
    assert_eq!(c.tell("map 2 2 8192 0 r shared"), "ok");
    assert_eq!(c.tell("show 2 0 4"), "n*1 e*1 x*1 t*1");
    assert_eq!(c.tell("show 1 0 9"), r"a*3 b*3 c*2 \0*1", "4.8: a channel of the same name is another");
    mount.daemon().signal(Signal::SIGTERM);
    assert_eq!(c.tell("poll 3 -1"), "err");
    assert_eq!(exit_code(mount.daemon().wait()), 0);
    assert_eq!(c.tell("show 2 0 4"), "n*1 e*1 x*1 t*1", "after the daemon");
    assert_eq!(c.tell("show 1 0 9"), r"a*3 b*3 c*2 \0*1");
}

/// A descriptor from before the end can be mapped after it, and keeps the daemon as an open file does.
#[test]
fn open_file_can_be_mapped_after_unmounting() {
    let mut mount = Mount::new(&["--subbuf-size=4096"]);
    let mut c = Mapper::start();
    assert_eq!(c.open(0, &mount.path("cpu0"), "r"), "ok");
    assert_eq!(c.open(1, &mount.control("cpu", "map/cpu0"), "r"), "ok");
    mount.send(0, &[b"aaa"]);
    mount.detach();
    assert_eq!(c.tell("poll 0 -1"), "err", "4.10");
    assert_eq!(c.tell("map 0 1 8192 0 r shared"), "ok", "4.8");
    assert_eq!(c.tell("show 0 0 4"), r"a*3 \0*1", "4.8");
    assert_eq!(c.tell("read 0 10"), "a*3", "4.10");
    assert_eq!(c.tell("close 0"), "ok");
    assert_eq!(c.tell("close 1"), "ok");
    assert_eq!(c.tell("show 0 0 4"), r"a*3 \0*1");
    assert!(mount.daemon().is_running());
    assert_eq!(c.tell("unmap 0"), "ok");
    assert_eq!(exit_code(mount.daemon().wait()), 0);
}

/// Splicing uses the page cache, mapped or not: it is refused and consumes nothing.
#[test]
fn mapped_file_is_not_spliced() {
    let b = Buffer::new(Shape::new(4096, 4));
    let mut c = Mapper::start();
    assert_eq!(c.open(0, &b.mount().control("cpu", "map/cpu0"), "r"), "ok");
    assert_eq!(c.tell("map 0 0 16384 0 r shared"), "ok");
    assert_eq!(c.tell("map 1 0 16384 0 rw private"), "ok");
    b.write("abc", 3000);
    assert_eq!(c.tell("show 1 0 3001"), r"a*3000 \0*1");
    let (mut file, (_reader, writer)) = (b.open(), pipe().unwrap());
    for _ in 0..2 {
        let spliced = splice(&file, None, writer.as_fd(), None, 4096, SpliceFFlags::empty());
        assert_eq!(spliced, Err(Errno::EINVAL));
        assert_eq!(sendfile(&writer, &file, None, 4096), Err(Errno::EINVAL));
        assert_eq!(file.stream_position().unwrap(), 0);
        assert_eq!(c.tell("show 0 0 4097"), r"a*3000 \0*1096 b*1");
    }
    assert_eq!(b.read(MIB), "a*3000 b*3000 c*3000", "nothing was consumed");
    b.audit();
}

/// `control` has the documented layout, by reads of any pieces, and by a map.
#[test]
fn control_is_the_documented_layout() {
    let b = Buffer::new(Shape::new(4096, 3).header(8));
    let path = b.mount().control("cpu", "control");
    b.write("abc", 3000);
    let by_cat = stdout_of(tool("cat", "coreutils").arg(&path));
    let by_dd =
        stdout_of(tool("dd", "coreutils").arg(format!("if={}", path.display())).args(["bs=1", "count=5000"]));
    assert_eq!(by_dd, by_cat[..5000]);
    assert_eq!(by_cat.len() as u64, fs::metadata(&path).unwrap().len());
    let u32_at = |at: usize| u32::from_le_bytes(by_cat[at..at + 4].try_into().unwrap());
    let u64_at = |at: usize| u64::from_le_bytes(by_cat[at..at + 8].try_into().unwrap());
    assert_eq!(&by_cat[..8], b"relayctl");
    assert_eq!((u32_at(8), u32_at(12), u64_at(16)), (1, 88, 0));
    let n_bufs = b.mount().channel("cpu").n_bufs();
    let geometry = (u32_at(32), u32_at(36), u32_at(40), u32_at(44), u32_at(48));
    assert_eq!(geometry, (4096, 3, 8, 0, n_bufs as u32));
    let (block, stride, records, record) =
        (u64_at(56) as usize, u64_at(64) as usize, u64_at(72) as usize, u64_at(80) as usize);
    assert_eq!((block, records, record), (4096, 512, 64));
    assert!(by_cat.len() >= block + n_bufs * stride);
    let (offset_bits, slot_bits) = (by_cat[52], by_cat[53]);
    let state = u64_at(block);
    assert_eq!(state & ((1 << offset_bits) - 1), 3008);
    assert_eq!(state >> offset_bits & ((1 << slot_bits) - 1), 2);
    assert_eq!(u64_at(block + 64) >> offset_bits, (state >> offset_bits) - 2, "consumed is two behind");
    let lap = (state >> (offset_bits + slot_bits)) as usize;
    for slot in 0..2 {
        let at = block + records + (2 * slot + lap % 2) * record;
        assert_eq!([at, at + 8, at + 16].map(u64_at), [slot as u64, 3008 * slot as u64, 1088], "a record");
    }

    // The same values by a live map.
    let mut c = Mapper::start();
    assert_eq!(c.open(0, &path, "r"), "ok");
    assert_eq!(c.tell("map 0 0 8192 0 r shared"), "ok");
    assert_eq!(c.tell("map 1 0 8192 0 rw shared"), "EACCES");
    assert_eq!(c.tell("show 0 0 8"), "r*1 e*1 l*1 a*1 y*1 c*1 t*1 l*1");
    let mapped = |c: &mut Mapper, at: usize| c.tell(&format!("show 0 {at} 8"));
    let before = (mapped(&mut c, block), mapped(&mut c, block + 64));
    b.write("d", 100);
    let written = (mapped(&mut c, block), mapped(&mut c, block + 64));
    assert!(written.0 != before.0 && written.1 == before.1, "{before:?} {written:?}");
    b.read(MIB);
    // The daemon stores this after the reply.
    eventually("what was read, in the map", || mapped(&mut c, block + 64) != written.1);
    // A program with the open file reads it again. No other call has an effect.
    let file = File::open(&path).unwrap();
    let mut now = [0; 8];
    file.read_exact_at(&mut now, block as u64).unwrap();
    assert_eq!(u64::from_le_bytes(now) & ((1 << offset_bits) - 1), 3108);
    let writing = OpenOptions::new().write(true).open(&path).and_then(|file| file.write_at(b"x", 0));
    assert_eq!(writing.unwrap_err().raw_os_error(), Some(libc::EINVAL));
    b.audit();
}

/// Parses the output of a `consumer`: sub-buffers and messages that it gave back, from first to last.
fn taken(output: &[u8]) -> Vec<[u64; 4]> {
    let parse = |line: &str| {
        let numbers: Vec<u64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
        numbers.try_into().unwrap()
    };
    text(output).lines().map(parse).collect()
}

/// A client in C that knows only the layout, and a writer that waits for it: each message once, in order.
#[test]
fn client_in_c_loses_nothing() {
    const MESSAGES: u64 = 300_000;
    let program = Program::compile("consumer");
    for (spec, n_clients) in [
        ("subbuf-size=4096:n-subbufs=3", 1),
        ("subbuf-size=64:n-subbufs=5", 2),
        ("subbuf-size=4096:n-subbufs=8:header=8", 3),
        ("subbuf-size=1000:n-subbufs=64", 2),
    ] {
        let mut mount = Mount::new(&["--channel", &format!("cpu:{spec}")]);
        let clients: Vec<Process> = (0..n_clients)
            .map(|_| {
                let mut command = program.command();
                let files = [
                    mount.path("cpu0"),
                    mount.control("cpu", "map/cpu0"),
                    mount.control("cpu", "control"),
                    mount.control("cpu", "consumed/cpu0"),
                ];
                Process::start(command.args(files).arg("0").stdout(Stdio::piped()).stderr(Stdio::piped()))
            })
            .collect();
        let printing: Vec<_> = clients
            .into_iter()
            .map(|mut client| {
                thread::spawn(move || {
                    let mut printed = Vec::new();
                    client.child().stdout.take().unwrap().read_to_end(&mut printed).unwrap();
                    let status = client.wait();
                    assert_eq!(exit_code(status), 0, "{}", client.stderr());
                    printed
                })
            })
            .collect();
        let channel = mount.direct_channel("cpu");
        on_cpu(0, || {
            let options = BatchOptions { cpu: Some(0), wait: Wait::Forever };
            let counts = channel.write_batch((0..MESSAGES).map(u64::to_le_bytes), options).unwrap();
            assert_eq!(counts.written, MESSAGES, "{spec}");
        });
        channel.flush().unwrap();
        eventually("everything given back", || {
            let stats = mount.stats("cpu");
            stats["cpu0.produced"] == stats["cpu0.consumed"]
        });
        let stats: BTreeMap<_, _> = mount.stats("cpu");
        drop(channel);
        mount.daemon().signal(Signal::SIGTERM);
        let mut parts: Vec<[u64; 4]> =
            printing.into_iter().flat_map(|printing| taken(&printing.join().unwrap())).collect();
        parts.sort();
        let (mut next_message, mut next_subbuf) = (0, 0);
        for [from, count, first, last] in parts {
            assert!(from >= next_subbuf, "{spec}: {from} was given back twice");
            assert_eq!(first, next_message, "{spec}: sub-buffer {from}");
            (next_message, next_subbuf) = (last + 1, from + count);
        }
        assert_eq!(next_message, MESSAGES, "{spec}");
        assert_eq!((stats["cpu0.dropped"], stats["cpu0.discarded_bytes"]), (0, 0), "{spec}");
        // That of the current sub-buffer, which has not begun if the flush found all others full.
        let header = if spec.ends_with("header=8") { 8 } else { 0 };
        let unread = stats["cpu0.bytes"] - stats["cpu0.read_bytes"];
        assert!(unread == 0 || unread == header, "{spec}: {unread}");
        assert_eq!(exit_code(mount.daemon().wait()), 0);
    }
}

/// A directory on a new tmpfs, to see whether any process still has one of its files.
struct OwnTmpfs(tempfile::TempDir);

impl OwnTmpfs {
    fn new() -> OwnTmpfs {
        let dir = tempfile::tempdir().unwrap();
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), None::<&str>)
            .expect("this test takes root");
        OwnTmpfs(dir)
    }

    fn used(&self) -> u64 {
        let stat = statvfs(self.0.path()).unwrap();
        stat.blocks() - stat.blocks_free()
    }
}

impl Drop for OwnTmpfs {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

/// Returns resident memory in KiB, and the number of open files.
fn holdings(mount: &mut Mount) -> (u64, usize) {
    let proc = format!("/proc/{}", mount.daemon().pid());
    let status = fs::read_to_string(format!("{proc}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    let kib = line.trim().trim_end_matches(" kB").parse().unwrap();
    (kib, fs::read_dir(format!("{proc}/fd")).unwrap().count())
}

/// Many threads open, map, read and close the files of many channels, again and again. None is refused, and nothing
/// is left: no descriptor, no memory, and no file of a gone channel, which the kernel would otherwise keep.
#[test]
fn opening_and_closing_leaves_nothing_behind() {
    let program = Program::compile("openers");
    let state = OwnTmpfs::new();
    let state_dir = format!("--state-dir={}", state.0.path().join("state").display());
    let mut mount = Mount::new(&[&state_dir, "--subbuf-size=4096", "--n-subbufs=2"]);
    let names: Vec<String> = (0..20).map(|i| format!("app/log-{}", (b'a' + i) as char)).collect();
    let empty = state.used();
    let mut after_first = None;
    for round in 0..4 {
        let channels: Vec<Channel> = names
            .iter()
            .map(|name| Channel::builder(mount.point(), name).create(true).open().unwrap())
            .collect();
        assert!(state.used() > empty);
        let mut command = program.command();
        command.args(["8", "700"]);
        command.args(names.iter().map(|name| mount.path(&format!("{name}0"))));
        command.args(names.iter().map(|name| mount.control(name, "map/cpu0")));
        command.args(names.iter().map(|name| mount.control(name, "control")));
        command.arg(mount.control("cpu", "map/cpu0"));
        let output = run(&mut command);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "5600\n");
        drop(channels);
        eventually("the end of the channels", || !mount.path("app").exists());
        eventually("their files being gone", || state.used() == empty);
        // The daemon learns of closed files a moment later.
        let (kib, fds) = *after_first.get_or_insert_with(|| holdings(&mut mount));
        eventually(&format!("round {round}: no more than {fds} open files and {kib} KiB"), || {
            let now = holdings(&mut mount);
            now.1 <= fds && now.0 <= kib + 4096
        });
    }
    assert_eq!(exit_code(mount.end(Signal::SIGTERM)), 0);
    drop(mount);
    // The file system can be unmounted if no process has one of its files.
    eventually("nothing having a file there", || umount2(state.0.path(), MntFlags::empty()).is_ok());
}

/// Without the privilege for passthrough, files are opened and read as usual, and not mapped.
#[test]
fn without_privilege_everything_but_mapping_works() {
    let program = Program::compile("mapping");
    let script = r#"
        $nobody relayfsd relay; echo "started $?"
        $nobody relay-producer -m relay --cpu 0 hello
        $nobody PROGRAM <<END
open 0 relay/cpu0 r
map 0 0 4096 0 r shared
map 0 0 100000 0 r shared
poll 0 0
read 0 100
open 1 relay/.relay/channels/cpu/control r
map 1 1 4096 0 r shared
read 1 8
open 2 relay/.relay/channels/cpu/consumed/cpu0 rw
read 2 8
open 3 relay/.relay/channels/cpu/map/cpu0 r
map 3 3 4096 0 r shared
read 3 6
END
        $nobody fusermount3 -u relay; echo "unmounted $?"
        while ls -A /dev/shm | grep -q .; do :; done
    "#;
    let lines = where_users_mount(&script.replace("PROGRAM", program.path().to_str().unwrap()));
    let hello = r"h*1 e*1 l*2 o*1 \12*1";
    let control = "r*1 e*1 l*1 a*1 y*1 c*1 t*1 l*1";
    let expected = [
        &["started 0"][..],
        &["ok", "ENODEV", "ENODEV", "idle", hello],
        &["ok", "ENODEV", control],
        &["ok", r"0*1 \12*1"],
        &["ok", "ENODEV", hello],
        &["unmounted 0"],
    ];
    assert_eq!(lines, expected.concat());
}
