//! No room, memory, descriptors or threads: the caller gets an error, and all others continue. Later requests succeed
//! when the resource is free again.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::Output;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use nix::sys::socket::MsgFlags;
use relay::layout::state_file::{STATE_FILE, StateFile};
use relay::wire::frame::{Body, Frame, FrameType, OPEN_CREATE, SHARE_READ, Share};
use relayfs_tests::honest::Honest;
use relayfs_tests::peer::{Peer, hello, open};
use relayfs_tests::users::where_users_mount;
use relayfs_tests::{Mount, eventually, exit_code, program, run, stdout_of, text, tool};

/// A tmpfs for one test, unmounted at its end.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn new(size: &str) -> Tmpfs {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={size},mode=755");
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
        Tmpfs(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Fills the file system, as long as the returned file exists.
    fn fill(&self) -> PathBuf {
        let path = self.path("filler");
        let mut file = File::create(&path).unwrap();
        for len in [1 << 20, 4096, 1] {
            while file.write_all(&vec![0; len]).is_ok() {}
        }
        path
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

/// Sets a soft limit of a running daemon.
fn limit(mount: &mut Mount, limit: &str) {
    let mut command = tool("prlimit", "util-linux");
    stdout_of(command.arg(format!("--pid={}", mount.daemon().pid())).arg(limit));
}

/// Returns a line of the daemon's `/proc/PID/status`, in KiB.
fn status_kib(mount: &mut Mount, line: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", mount.daemon().pid())).unwrap();
    let value = status.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(':')).unwrap();
    value.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

fn create(mount: &Mount, geometry: &str, name: &str) -> Output {
    let mut command = std::process::Command::new(program("relay-producer"));
    command.arg("-m").arg(mount.point()).args([
        "-c",
        name,
        &format!("--create={geometry}"),
        "--transport=socket",
    ]);
    run(command.arg("x"))
}

/// On a full tmpfs, opening a channel fails, for its buffers or for the state file. Channels still end, and free
/// their memory.
#[test]
fn full_file_system_refuses_new_channels_only() {
    let tmpfs = Tmpfs::new("16M");
    let state = tmpfs.path("state");
    let args =
        ["--state-dir", state.to_str().unwrap(), "--subbuf-size=64K", "--channel=honest", "--max-memory=1G"];
    let mut mount = Mount::new(&args);
    let honest = Honest::on(&mount, "honest");
    let holder = Peer::hello(&mount);
    holder.open("before", OPEN_CREATE);
    let filler = tmpfs.fill();
    for geometry in ["subbuf-size=1M:n-subbufs=2", "subbuf-size=4K:n-subbufs=2:global"] {
        let output = create(&mount, geometry, "new");
        let said = text(&output.stderr);
        assert!(!output.status.success(), "{output:?}");
        assert!(said.contains("channel 'new': cannot allocate its buffers in "), "{said}");
        assert!(said.contains("No space left on device"), "{said}");
        assert!(!mount.path("new0").exists());
    }
    honest.assert_going_on();
    let n_files = fs::read_dir(&state).unwrap().count();
    drop(holder);
    eventually("the end of a channel", || !mount.path("before0").exists());
    eventually("its files' end", || fs::read_dir(&state).unwrap().count() < n_files);
    fs::remove_file(filler).unwrap();
    assert!(create(&mount, "subbuf-size=4K:n-subbufs=2", "new").status.success());
    // Both are opened before the first read: a channel goes with its unread data.
    let mut files = ["new0", "new1"].map(|file| File::open(mount.path(file)).unwrap());
    let mut got = Vec::new();
    for file in &mut files {
        file.read_to_end(&mut got).unwrap();
    }
    drop(files);
    assert_eq!(got, b"x\n");
    assert_eq!(mount.send(0, &[b"x"]).written, 1);
    assert_eq!(mount.read("cpu0"), b"x");
    honest.end();
    assert_eq!(exit_code(mount.end(Signal::SIGTERM)), 0);
    assert!(!state.exists());
}

/// The buffers have room, but the state file that names them has not.
#[test]
fn full_file_system_refuses_state_file_only() {
    let tmpfs = Tmpfs::new("16M");
    let state = tmpfs.path("state");
    let args =
        ["--state-dir", state.to_str().unwrap(), "--subbuf-size=64K", "--channel=honest", "--max-memory=1G"];
    let mount = Mount::new(&args);
    let honest = Honest::on(&mount, "honest");
    let filler = File::options().write(true).open(tmpfs.fill()).unwrap();
    let mut left = filler.metadata().unwrap().len();
    // Each try has a page more. At one of them the buffers have room, and the state file has not.
    let mut answers = Vec::new();
    while answers.last() != Some(&true) {
        left -= 4096;
        filler.set_len(left).unwrap();
        let output = create(&mount, "subbuf-size=4K:n-subbufs=2:global", "new");
        let said = text(&output.stderr);
        assert!(output.status.success() || said.contains("No space left on device"), "{output:?}");
        answers.push(output.status.success());
        assert!(answers.len() < 20, "it never fits: {said}");
    }
    assert!(answers.len() > 3, "pages for the files: {answers:?}");
    honest.end();
}

/// Without room to recreate a broken channel, `reset` fails, and succeeds when there is room.
#[test]
fn reset_of_broken_channel_without_room_fails_until_room() {
    let tmpfs = Tmpfs::new("16M");
    let state = tmpfs.path("state");
    let args = [
        "--state-dir",
        state.to_str().unwrap(),
        "--channel=honest",
        "--channel=dir/evil:subbuf-size=512K:n-subbufs=2",
        "--max-memory=1G",
    ];
    let mut mount = Mount::new(&args);
    let honest = Honest::on(&mount, "honest");
    let named = || StateFile::parse(&fs::read_to_string(state.join(STATE_FILE)).unwrap()).unwrap().channels;
    let id = named().iter().find(|entry| entry.name.as_str() == "dir/evil").unwrap().id;
    let data = File::options().write(true).open(state.join(format!("{id}.data0"))).unwrap();
    data.set_len(0).unwrap();
    let filler = tmpfs.fill();
    let reset = || fs::write(mount.control("dir/evil", "reset"), "1").map_err(|error| error.raw_os_error());
    for _ in 0..2 {
        assert_eq!(reset(), Err(Some(libc::ENOSPC)));
        let read = fs::read(mount.path("dir/evil0")).expect_err("a broken channel");
        assert_eq!(read.raw_os_error(), Some(libc::EIO));
    }
    honest.assert_going_on();
    fs::remove_file(filler).unwrap();
    assert_eq!(reset(), Ok(()));
    assert!(named().iter().all(|entry| entry.id != id), "the broken channel does not continue");
    mount.send_to("dir/evil", 0, &[b"again"]);
    assert_eq!(mount.read("dir/evil0"), b"again");
    honest.end();
    assert_eq!(exit_code(mount.end(Signal::SIGTERM)), 0);
}

/// Requests that need much memory are refused, and existing channels continue.
#[test]
fn exhausted_memory_refuses_large_requests_only() {
    let large = "--channel=large:subbuf-size=64M:n-subbufs=1:global:overwrite";
    let mut mount = Mount::new(&["--channel=honest", "--max-memory=1G", large]);
    let honest = Honest::on(&mount, "honest");
    let channel = mount.channel("cpu");
    mount.send_to("large", 0, &[b"message"]);
    honest.assert_going_on();
    let now = status_kib(&mut mount, "VmSize");
    limit(&mut mount, &format!("--as={}:", (now + 512) << 10));
    let output = create(&mount, "subbuf-size=4M:n-subbufs=4:global", "new");
    let said = text(&output.stderr);
    assert!(
        said.contains("channel 'new': cannot allocate its buffers")
            && said.contains("Cannot allocate memory"),
        "{said}"
    );
    // The daemon keeps the rest of a partly read sub-buffer that a writer overwrites.
    let error = File::open(mount.path("large0")).unwrap().read(&mut [0; 1]).expect_err("no room for that");
    assert_eq!(error.raw_os_error(), Some(libc::ENOMEM));
    honest.assert_going_on();
    limit(&mut mount, "--as=unlimited:");
    assert_eq!(mount.read("large0"), b"message");
    assert!(create(&mount, "subbuf-size=4M:n-subbufs=4:global", "new").status.success());
    channel.flush().unwrap();
    honest.end();
    assert!(mount.daemon().is_running());
}

/// Without descriptors, connecting, sharing a channel's files, and opening a file that needs a descriptor fail. Reads
/// and writes need none.
#[test]
fn exhausted_descriptors_refuse_what_needs_one() {
    let mut mount = Mount::new(&["--channel=honest"]);
    let honest = Honest::on(&mount, "honest");
    let peer = Peer::hello(&mount);
    let channel = peer.open("cpu", 0);
    let in_use = fs::read_dir(format!("/proc/{}/fd", mount.daemon().pid())).unwrap();
    let number = |entry: fs::DirEntry| entry.file_name().to_str().unwrap().parse::<u32>().unwrap();
    // The daemon's inherited descriptors are far above.
    let last = in_use.map(|entry| number(entry.unwrap())).filter(|number| *number < 100).max().unwrap();
    limit(&mut mount, &format!("--nofile={}:", last + 1));
    // Until all numbers below the limit are used.
    let connect = || {
        let peer = Peer::connect(&mount);
        let _ = peer.try_send(&hello(1, 1), MsgFlags::empty());
        let answer = peer.receive().expect("an answer");
        (Frame::decode(&answer).unwrap().kind == FrameType::Hello).then_some(peer)
    };
    let crowd: Vec<Peer> = std::iter::from_fn(connect).take(100).collect();
    assert!(crowd.len() < 100);
    Peer::connect(&mount)
        .assert_dropped(Errno::EMFILE, "no file descriptors left: raise its limit (ulimit -n)");
    peer.send(&Share { channel }.frame(SHARE_READ, 3));
    peer.assert_refused(Errno::EMFILE, "cannot share the channel's files: ");
    peer.send(&open("new", OPEN_CREATE, 4));
    peer.assert_refused(Errno::EMFILE, "channel 'new': cannot allocate its buffers");
    let error = File::open(mount.control("cpu", "control")).expect_err("a file that takes a descriptor");
    assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
    assert!(File::open(mount.path("cpu0")).is_ok(), "read() takes none");
    peer.assert_served();
    honest.assert_going_on();
    drop(crowd);
    limit(&mut mount, "--nofile=1000:");
    Peer::hello(&mount).open("new", OPEN_CREATE);
    assert!(File::open(mount.control("cpu", "control")).is_ok());
    honest.end();
}

/// A message for a CPU whose thread cannot start is refused and counted. CPUs with threads continue.
#[test]
fn message_without_writer_thread_is_refused_and_counted() {
    let lines = where_users_mount(
        r#"
        # A user of the system that no other test uses: limits count all processes of a user.
        nobody="setpriv --reuid=games --regid=games --clear-groups"; chown games:games relay
        $nobody relayfsd -f relay & until $nobody test -e relay/.relay/version; do kill -0 $! || exit 1; done
        send="timeout 60 $nobody relay-producer -m relay --transport=socket"
        $send --cpu 0 "first"
        $nobody prlimit --pid $! --nproc=1:
        $send --cpu 1 "lost"; echo "ended $?"
        $send --cpu 0 "second"
        $nobody cat relay/cpu0 relay/cpu1
        $nobody prlimit --pid $! --nproc=1000:
        $send --cpu 1 "third"
        $nobody cat relay/cpu1
        $nobody grep "total.dropped " relay/.relay/channels/cpu/stats
        kill $!; wait $!; echo "ended $?"
        "#,
    );
    let refused = "relay-producer: CPU 1 has no thread of the daemon's: Resource temporarily unavailable";
    assert!(lines[0].starts_with(refused), "{lines:?}");
    assert_eq!(
        lines[1..],
        ["ended 1", "first", "second", "third", "total.dropped 1", "ended 0"],
        "{lines:?}"
    );
}
